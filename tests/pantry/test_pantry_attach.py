"""Attaching and detaching: repetitions and conflicts, activations that fail or take long, the end of the pantry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from disk_rig import digests, pattern, until
from image_server import image_server
from pantry_rig import (
    BLOCK,
    SIZE,
    attach_body,
    raised,
    replicas,
    request_of,
    running_pantry,
    volume_of,
    write_body,
)

from crucible_emu import errors
from crucible_emu.pantry import driver, work
from crucible_emu.pantry.ledger import Job
from crucible_emu.pantry.states import EntryState
from crucible_emu.volume import region_set as region_set_module
from crucible_emu.volume.vcr import CrucibleOpts, FileRequest, RegionRequest, UrlRequest, VolumeRequest
from crucible_emu.volume.volume import Volume

ExpectLog = Callable[..., Any]
DATA_ROUTES: list[tuple[str, Any]] = [
    ("import-from-url", {"url": "http://127.0.0.1:9/x"}),
    ("snapshot", {"snapshot_id": "s"}),
    ("bulk-write", write_body(0, bytes(BLOCK))),
    ("bulk-read", {"offset": 0, "size": BLOCK}),
    ("scrub", None),
    ("validate", {"expected_digest": {"sha256": "0" * 64}}),
]


def file_of(folder: Path, name: str = "disk.raw", size: int = SIZE) -> FileRequest:
    path = folder / name
    path.write_bytes(bytes(size))
    return FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))


def nowhere() -> VolumeRequest:
    """A disk whose Downstairs are not there: its activation waits for them."""
    targets = tuple(f"127.0.0.1:{port}" for port in (1, 2, 3))
    opts = CrucibleOpts(id=uuid4(), target=targets)
    return volume_of(
        RegionRequest(type="region", block_size=BLOCK, blocks_per_extent=16, extent_count=16, opts=opts, gen=1)
    )


def unreachable(expect_log: ExpectLog) -> None:
    for words in ("cannot connect", "connection ended", "disk disabled error=.*activation was cancelled"):
        expect_log(words, at_least=0)


# -- attach -----------------------------------------------------------------------------------------------------------


async def test_several_volumes_are_attached_and_detached(tmp_path: Path) -> None:
    async with (
        replicas(tmp_path / "a") as one,
        replicas(tmp_path / "b") as two,
        running_pantry() as caller,
    ):
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        assert await caller.attach(volume_of(request_of(two, number=2)), "two") == {"id": "two"}
        assert await caller.attach(volume_of(request_of(one, number=1)), "one") == {"id": "one"}
        assert await caller.do("GET", "") == {"volumes": ["one", "two"], "num_job_handles": 2}
        await caller.write(0, pattern(BLOCK, 1), "one")
        await caller.write(0, pattern(BLOCK, 2), "two")
        assert await caller.read(0, BLOCK, "one") == pattern(BLOCK, 1)
        await caller.detach("one")
        assert await caller.do("GET", "") == {"volumes": ["two"], "num_job_handles": 1}
        assert await caller.read(0, BLOCK, "two") == pattern(BLOCK, 2)
        await caller.refused(404, "POST", "/volume/one/bulk-read", {"offset": 0, "size": BLOCK})
        await caller.attach(volume_of(request_of(one, 2, number=1)), "one")
        assert await caller.read(0, BLOCK, "one") == pattern(BLOCK, 1)


async def test_what_an_attached_volume_says_about_itself(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers, 7)))
        status = await caller.status()
        info = status.pop("info")["volume"]
        assert status == {"active": True, "seen_active": True, "num_job_handles": 1}
        assert info["read_only_parent"] is None
        (part,) = info["sub_volumes"]
        upstairs = part["upstairs"]
        assert (upstairs["state"], upstairs["generation"], upstairs["block_size"]) == ("active", 7, BLOCK)
        assert [target["target_addr"] for target in upstairs["targets"]] == [each.target for each in servers.members]
        old = await caller.call("GET", "/volume/v", version="1.0.0")
        assert old.json == status, "the older version has no info"


async def test_files_and_urls_are_left_out_of_what_a_volume_is_made_of(tmp_path: Path) -> None:
    """The documents have no word for them; the real pantry has no status then."""
    async with image_server(bytes(SIZE)) as image, replicas(tmp_path) as servers:
        url = UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=image.url)
        vcr = volume_of(request_of(servers), parent=url)
        async with running_pantry() as caller:
            await caller.attach(vcr)
            info = (await caller.status())["info"]["volume"]
            assert info["read_only_parent"] is None and len(info["sub_volumes"]) == 1
            await caller.detach()
        async with running_pantry(faithful=True) as caller:
            await caller.attach(raised(vcr, 2))
            await caller.refused(400, "GET", "/volume/v")
            assert (await caller.call("GET", "/volume/v", version="1.0.0")).json["active"] is True


async def test_an_attach_may_be_repeated_and_not_changed(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers))
        for _ in range(2):
            await caller.attach_in_background(vcr, "j")
        assert await caller.ok("j")
        for _ in range(2):
            await caller.attach_in_background(vcr, "j")
        other = await caller.refused(400, "POST", "/volume/v/background", attach_body(raised(vcr, 2), "j"))
        assert "another volume construction request" in other
        assert "'j', not 'k'" in await caller.refused(400, "POST", "/volume/v/background", attach_body(vcr, "k"))
        # In the foreground the job has the name of the volume, so that is another job; all its refusals are 409.
        assert "not 'v'" in await caller.refused(409, "POST", "/volume/v", attach_body(vcr))
        assert "another volume" in await caller.refused(409, "POST", "/volume/v", attach_body(raised(vcr, 2)))
        assert (await caller.status())["num_job_handles"] == 1
        await caller.detach()
        for _ in range(2):
            assert await caller.attach(raised(vcr, 2)) == {"id": "v"}


async def test_two_callers_who_attach_the_same_at_the_same_time_both_get_it(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers))
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(caller.attach, vcr)
        assert (await caller.status())["num_job_handles"] == 1


async def test_of_two_callers_who_race_for_one_id_one_is_told_that_it_is_taken(tmp_path: Path) -> None:
    async with running_pantry() as caller:
        answers: list[int] = []

        async def attach(vcr: VolumeRequest) -> None:
            answers.append((await caller.call("POST", "/volume/v/background", attach_body(vcr, "j"))).status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attach, volume_of(file_of(tmp_path, "a")))
            nursery.start_soon(attach, volume_of(file_of(tmp_path, "b")))
        assert sorted(answers) == [204, 400]


async def test_a_job_id_means_one_job_in_the_whole_pantry(tmp_path: Path) -> None:
    async with running_pantry() as caller:
        await caller.attach_in_background(volume_of(file_of(tmp_path, "a")), "j", "a")
        vcr = volume_of(file_of(tmp_path, "b"))
        assert "'j' is in use" in await caller.refused(400, "POST", "/volume/b/background", attach_body(vcr, "j"))
        assert "'j' is in use" in await caller.refused(409, "POST", "/volume/j", attach_body(vcr))
        assert (await caller.do("GET", ""))["volumes"] == ["a"]


@pytest.mark.parametrize("faithful", [False, True])
async def test_a_volume_that_cannot_be_built_is_not_there(tmp_path: Path, faithful: bool) -> None:
    async with running_pantry(faithful=faithful) as caller:
        vcr = volume_of(file_of(tmp_path, size=BLOCK + 1))
        for path, job, status in (("/volume/v", None, 409), ("/volume/v/background", "j", 400)):
            answer = await caller.refused(500 if faithful else status, "POST", path, attach_body(vcr, job))
            assert answer == "Internal Server Error" if faithful else "not made of whole blocks" in answer
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        await caller.refused(404, "GET", "/volume/v")
        await caller.refused(404, "GET", "/job/j/is-finished")


@pytest.mark.parametrize("damaged", ["targets", "key", "block_size", "gen"])
async def test_a_document_that_is_none_is_refused_without_showing_a_key(tmp_path: Path, damaged: str) -> None:
    key = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I="
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        body = attach_body(request_of(servers, key=key))
        request = body["volume_construction_request"]
        if damaged == "targets":
            request["opts"]["target"].pop()
        elif damaged == "key":
            request["opts"]["key"] = [key]
        else:
            request[damaged] = key
        answer = await caller.refused(400, "POST", "/volume/v", body)
        assert key not in answer and "volume_construction_request" in answer


async def test_data_is_refused_for_now_while_a_volume_was_never_active(expect_log: ExpectLog) -> None:
    """503 asks the control plane to come again; how the volume is can be asked at any time."""
    unreachable(expect_log)
    async with running_pantry() as caller:
        await caller.attach_in_background(nowhere())
        for route, body in DATA_ROUTES:
            if route in ("import-from-url", "scrub", "validate"):
                job = await caller.start(route, body)
                assert not await caller.ok(job) or route == "scrub"
            else:
                assert "not active" in await caller.refused(503, "POST", f"/volume/v/{route}", body)
        status = await caller.status()
        assert (status["active"], status["seen_active"]) == (False, False)
        assert status["info"]["volume"]["sub_volumes"][0]["upstairs"]["state"] == "go_active"
        assert await caller.do("GET", "/job/j/is-finished") == {"job_is_finished": False}


async def test_an_activation_that_fails_is_a_job_that_failed(tmp_path: Path, expect_log: ExpectLog) -> None:
    """A stale generation: other clients wrote with a higher one."""
    for words in ("disk disabled", "connection ended"):
        expect_log(words, at_least=0)
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers, 5))
        await caller.attach(vcr)
        await caller.write(0, pattern(BLOCK))
        await caller.detach()
        stale = raised(vcr, 4)
        await caller.attach_in_background(stale, "j")
        assert not await caller.ok("j")
        job = await caller.job("j")
        assert (job["kind"], job["state"]) == ("activate", "failed") and "generation is too low" in job["error"]
        assert (await caller.status())["seen_active"] is False
        await caller.attach_in_background(stale, "j")
        await caller.detach()
        for _ in range(2):
            answer = await caller.refused(409, "POST", "/volume/v", attach_body(stale))
            assert "generation is too low" in answer
        await caller.detach()
        await caller.attach(raised(vcr, 6))


async def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    async with running_pantry() as caller:
        vcr = volume_of(FileRequest(type="file", id=uuid4(), block_size=BLOCK, path="a\0b"))
        assert "zero byte" in await caller.refused(409, "POST", "/volume/v", attach_body(vcr))


# -- detach -----------------------------------------------------------------------------------------------------------


async def test_a_detach_of_what_is_not_there_is_fine() -> None:
    async with running_pantry() as caller:
        await caller.detach()


async def test_a_detach_that_cannot_flush_says_so_once_and_the_next_one_finds_it_out_of_service(
    tmp_path: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """*Liveness*: two of three replicas are lost for good, so what was written last can never be flushed. That of the
    explorer does the same."""
    for words in ("connection ended", "deactivation failed", "acknowledged writes may be lost", "operation failed"):
        expect_log(words, at_least=0)
    monkeypatch.setattr(region_set_module, "FAREWELL_TIMEOUT_S", 0.2)
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        await caller.write(0, pattern(BLOCK))
        for member in servers.members[1:3]:
            await member.stop()
        answer = await caller.call("DELETE", "/volume/v")
        assert answer.status >= 400, "what was written may not be durable"
        assert not (await caller.status())["active"]
        await caller.detach()
        assert (await caller.do("GET", ""))["volumes"] == []


async def test_a_detach_ends_an_activation_that_would_never_end(expect_log: ExpectLog) -> None:
    """The real one forgets the volume and lets the activation go on."""
    unreachable(expect_log)
    async with running_pantry() as caller:
        vcr = nowhere()
        results: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def wait_for(path: str, body: Any = None) -> None:
                results.append(await caller.call("GET" if body is None else "POST", path, body))

            await caller.attach_in_background(vcr, "v")
            nursery.start_soon(wait_for, "/job/v/ok")
            nursery.start_soon(wait_for, "/volume/v", attach_body(vcr))
            await until(lambda: not results)
            held = caller.pantry.held["v"]
            await caller.detach()
        assert sorted(answer.status for answer in results) == [200, 409]
        assert next(answer.json for answer in results if answer.status == 200) == {"job_result_ok": False}
        assert held.activation.ended.is_set() and not held.running
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        await caller.refused(404, "GET", "/job/v/ok")


async def test_a_detach_ends_the_building_of_a_volume() -> None:
    """Its image's server accepts and says nothing."""
    async with trio.open_nursery() as nursery, running_pantry() as caller:
        asked = trio.Event()

        async def silent(stream: trio.SocketStream) -> None:
            asked.set()
            await trio.sleep_forever()

        (listener,) = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/x"
        vcr = volume_of(UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=url))
        answers: list[Any] = []

        async def ask(method: str, path: str, body: Any = None) -> None:
            answers.append(await caller.call(method, path, body))

        async with trio.open_nursery() as asking:
            asking.start_soon(ask, "POST", "/volume/v/background", attach_body(vcr, "j"))
            await asked.wait()
            asking.start_soon(ask, "GET", "/volume/v")
            await until(lambda: not answers)
            assert (await caller.call("POST", "/volume/v/background", attach_body(vcr, "k"))).status == 400
            await caller.detach()
        assert sorted(answer.status for answer in answers) == [400, 404]
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        nursery.cancel_scope.cancel()


async def test_while_a_volume_leaves_other_callers_are_told_to_call_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, let = trio.Event(), trio.Event()
    leave = Volume.leave_service

    async def slow(self: Volume) -> None:
        leaving.set()
        await let.wait()
        await leave(self)

    monkeypatch.setattr(Volume, "leave_service", slow)
    async with running_pantry() as caller, trio.open_nursery() as nursery:
        vcr = volume_of(file_of(tmp_path))
        await caller.attach(vcr)
        nursery.start_soon(caller.detach)
        await leaving.wait()
        assert "call again" in await caller.refused(503, "DELETE", "/volume/v")
        assert "call again" in await caller.refused(503, "POST", "/volume/v/background", attach_body(vcr, "v"))
        assert "call again" in await caller.refused(409, "POST", "/volume/v", attach_body(vcr))
        for route, body in DATA_ROUTES:
            assert "being deactivated" in await caller.refused(500, "POST", f"/volume/v/{route}", body)
        assert (await caller.call("GET", "/volume/v", version="1.0.0")).status == 200
        let.set()


async def test_an_attach_races_with_the_end_of_a_detach(tmp_path: Path) -> None:
    """Race: the volume is out of service and its files are not closed yet; the newcomer must not be forgotten with the
    volume that leaves."""
    async with running_pantry() as caller:
        vcr = volume_of(file_of(tmp_path))

        async def come_and_go() -> None:
            for _ in range(20):
                answer = await caller.call("POST", "/volume/v/background", attach_body(vcr, "j"))
                assert answer.status in (204, 500, 503), answer.json
                answer = await caller.call("DELETE", "/volume/v")
                assert answer.status in (204, 503), answer.json
                answer = await caller.call("GET", "/volume/v")
                assert answer.status in (200, 404), answer.json

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(come_and_go)
        await caller.detach()
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        assert caller.pantry.held == {} and caller.pantry.ledger.jobs == {}


async def test_a_volume_stays_attached_when_its_deactivation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    leave = Volume.leave_service

    async def fails(self: Volume) -> None:
        raise errors.GenericError("on purpose")

    monkeypatch.setattr(Volume, "leave_service", fails)
    async with running_pantry() as caller:
        await caller.attach(volume_of(file_of(tmp_path)))
        with expect_log("deactivation failed"):
            assert "on purpose" in await caller.refused(500, "DELETE", "/volume/v")
        await caller.write(0, pattern(BLOCK))
        monkeypatch.setattr(Volume, "leave_service", leave)
        await caller.detach()
        assert (await caller.do("GET", ""))["volumes"] == []


async def test_the_end_of_the_pantry_flushes_and_deactivates_every_volume(tmp_path: Path) -> None:
    """Also those whose jobs have not ended; afterwards nothing is to be repaired."""
    async with replicas(tmp_path / "a") as one, replicas(tmp_path / "b") as two:
        async with running_pantry() as caller:
            for name, servers in (("one", one), ("two", two)):
                await caller.attach(volume_of(request_of(servers)), name)
                await caller.write(0, pattern(BLOCK), name)
            held = list(caller.pantry.held.values())
        assert all(not each.running and not each.built.active for each in held)
        for servers in (one, two):
            async with running_pantry() as caller:
                await caller.attach(volume_of(request_of(servers, 2)))
                assert await caller.read(0, BLOCK) == pattern(BLOCK)
    assert len(digests(one.paths)) == 1


async def test_a_volume_that_fails_unexpectedly_takes_no_other_with_it(tmp_path: Path, expect_log: ExpectLog) -> None:
    crash = trio.Event()

    class Crashing(Volume):
        async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(super().run)
                task_status.started()
                await crash.wait()
                raise RuntimeError("on purpose")

    async with running_pantry() as caller:
        construct = caller.pantry.construct

        async def crashing(vcr: Any, stack: Any) -> Volume:
            volume: Volume = await construct(vcr, stack)
            volume.__class__ = Crashing
            return volume

        await caller.attach(volume_of(file_of(tmp_path, "a")), "a")
        caller.pantry.construct = crashing  # type: ignore[assignment]
        await caller.attach(volume_of(file_of(tmp_path, "b")), "b")
        expect_log("volume lost")
        statuses: list[int] = []

        async def never_answered() -> None:
            caller.pantry.held["b"].built.submit = lambda *_: None  # type: ignore[method-assign]
            answer = await caller.call("POST", "/volume/b/bulk-read", {"offset": 0, "size": BLOCK})
            statuses.append(answer.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(never_answered)
            await until(lambda: bool(caller.pantry.held["b"].operations))
            crash.set()
        assert statuses == [503]
        await until(lambda: caller.pantry.ledger.entries["b"].state is EntryState.LOST)
        await caller.refused(410, "POST", "/volume/b/bulk-read", {"offset": 0, "size": BLOCK})
        assert (await caller.call("GET", "/volume/b", version="1.0.0")).json["active"] is False
        await caller.detach("b")
        await caller.write(0, pattern(BLOCK), "a")
        assert (await caller.do("GET", ""))["volumes"] == ["a"]


async def test_a_job_that_dies_is_no_result_and_harms_nobody(
    tmp_path: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(volume: Volume, job: Job) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(work, "scrub", dies)
    async with running_pantry() as caller:
        await caller.attach(volume_of(file_of(tmp_path)))
        expect_log("job died")
        job = await caller.start("scrub")
        assert "RuntimeError" in await caller.refused(500, "GET", f"/job/{job}/ok")
        assert await caller.do("GET", f"/job/{job}/is-finished") == {"job_is_finished": True}
        assert (await caller.job(job))["state"] == "died"
        await caller.write(0, pattern(BLOCK))


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faithful", [False, True])
async def test_unknown_volumes_and_jobs(faithful: bool) -> None:
    async with running_pantry(faithful=faithful) as caller:
        routes = [("POST", f"/volume/x/{route}", body) for route, body in DATA_ROUTES]
        routes += [("GET", path, None) for path in ("/volume/x", "/job/x/ok", "/job/x/is-finished", "/job/x")]
        routes.append(("POST", "/volume/x/replace", attach_body(nowhere())))
        for method, path, body in routes:
            message = await caller.refused(404, method, path, body)
            assert message == "Not Found" if faithful else "'x'" in message


async def test_ids_may_be_any_text(tmp_path: Path) -> None:
    async with running_pantry() as caller:
        await caller.attach(volume_of(file_of(tmp_path)), "a%20%2F%C3%A4")
        assert (await caller.do("GET", ""))["volumes"] == ["a /ä"]
        assert await caller.do("GET", "/job/a%20%2F%C3%A4/is-finished") == {"job_is_finished": True}


async def test_the_version_must_be_said_unless_the_pantry_is_lenient() -> None:
    async with running_pantry() as caller:
        assert (await caller.call("GET", "", version=None)).status == 400
        assert (await caller.call("GET", "", version="3.0.0")).status == 400
        assert (await caller.call("GET", "", version="1.0.0")).status == 200
    async with running_pantry(lenient=True) as caller:
        assert (await caller.call("GET", "", version=None)).status == 200


def test_the_pantry_must_run_before_it_is_used() -> None:
    async def use() -> None:
        await driver.Pantry().attach("v", nowhere())

    with pytest.raises(RuntimeError, match="start run"):
        trio.run(use)
