"""Instances with real Downstairs behind their disks and NBD clients as guests: booted, rebooted, stopped, rescued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from disk_rig import RegionSet, digests, failures, make_regions, pattern, region_set, until
from host_rig import BLOCK, DISK, NEWEST, Plane, black_hole, ensure_body, flush, guest, plane
from receiver_rig import Received, receive
from trio.testing import wait_all_tasks_blocked

from crucible_emu.control.notifier import Notifier
from crucible_emu.host.disk import Disk
from crucible_emu.nbd import protocol as p
from crucible_emu.volume.vcr import RegionRequest, VolumeRequest

SIZE = 4 * 8 * BLOCK
ENDED = "connection ended"
ExpectLog = Callable[..., Any]


def with_target(request: RegionRequest, client: int, target: str, **changes: Any) -> RegionRequest:
    targets = list(request.opts.target)
    targets[client] = target
    opts = request.opts.model_copy(update={"target": tuple(targets)})
    return request.model_copy(update={"opts": opts, **changes})


async def test_boot_and_io_over_nbd(tmp_path: Path) -> None:
    """An instance is made, run, and its guest reads what it wrote; the three replicas hold the same."""
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, plane(tmp_path / "host") as control:
        request = servers.request()
        await control.ensure(request)
        assert (await control.seen(0))["state"] == "Creating"
        found = await control.disk()
        assert (found["active"], found["uri"], found["size_bytes"]) == (False, None, SIZE)
        await control.put_state("Run")
        await control.until("Running")
        found = await control.disk()
        assert (found["active"], found["problem"], found["read_only"]) == (True, None, False)
        assert found["uri"] == f"nbd+unix:///?socket={tmp_path}/host/{DISK}.sock"
        data = pattern(SIZE)
        async with guest(found["uri"]) as machine:
            assert machine.size_bytes == SIZE
            await machine.write(0, data)
            assert await machine.read(0, SIZE) == data
            await flush(machine)
        status = await control.status()
        upstairs = status["volume"]["sub_volumes"][0]["upstairs"]
        assert (upstairs["state"], upstairs["generation"]) == ("active", 1)
        assert [target["state"] for target in upstairs["targets"]] == [{"type": "active"}] * 3
        await control.stop()
        assert not list((tmp_path / "host").glob("*.sock"))
    assert len(digests(paths)) == 1
    assert all(failures(path) == [] for path in paths)


async def test_reboot_sends_the_guest_away_and_keeps_the_disk(tmp_path: Path) -> None:
    """Everything acknowledged is durable after a reboot, and the disks do not leave service for it."""
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request())
        uri = (await control.disk())["uri"]
        session = (await control.status())["volume"]["sub_volumes"][0]["upstairs"]["session_id"]
        async with guest(uri) as machine:
            await machine.write(0, pattern(BLOCK))
            await control.put_state("Reboot")
            seen = await control.seen(3)
            assert seen["state"] in ("Rebooting", "Running")
            with pytest.raises(EOFError), trio.fail_after(30):
                await machine.read_exactly(1)
        while seen["state"] != "Running":
            seen = await control.seen(seen["gen"] + 1)
        assert seen["gen"] == 4
        dirty = [bool(member.region.extent_versions()[2].any()) for member in servers.members]
        assert sum(dirty) <= 1, "a flush is answered when two replicas have done it"
        async with guest(uri) as machine:
            assert await machine.read(0, BLOCK) == pattern(BLOCK)
        assert (await control.status())["volume"]["sub_volumes"][0]["upstairs"]["session_id"] == session


async def test_data_survives_stop_and_start_with_a_higher_generation(tmp_path: Path) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        for generation in (1, 2, 3):
            await control.boot(servers.request(generation))
            async with guest((await control.disk())["uri"]) as machine:
                before = generation - 1
                expected = pattern(BLOCK, before) if before else bytes(BLOCK)
                assert await machine.read(0, BLOCK) == expected
                await machine.write(0, pattern(BLOCK, generation))
            await control.stop()
            answer = await control.ask("GET", f"/disk/{DISK}/status")
            assert (answer.status_code, answer.json()["error_code"]) == (424, "NoInstance")


async def test_an_instance_whose_generation_is_too_low_fails_and_may_be_made_again(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request(7))
        async with guest((await control.disk())["uri"]) as machine:
            await machine.write(0, pattern(SIZE))
        await control.stop()
        expect_log("disk disabled")
        expect_log("an instance failed.*cannot be activated.*generation is too low")
        await control.ensure(servers.request(3))
        await control.put_state("Run")
        seen = await control.seen(2)
        assert seen["state"] == "Failed"
        answer = await control.ask("PUT", "/state", "Run")
        assert answer.status_code == 403
        answer = await control.replace(servers.request(8))
        assert answer.status_code == 403
        (listed,) = (await control.http.get("/hosts/0/instances", headers=NEWEST)).json()["instances"]
        assert "the generation is too low" in listed["problem"]
        assert (await control.ask("GET", "/state-monitor", {"gen": 3})).status_code == 410
        await control.boot(servers.request(8))


async def test_a_vcr_that_comes_during_start_rescues_a_machine_whose_target_is_a_black_hole(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """Race: replacement with activation. The start waits for a Downstairs that will never speak; the good VCR comes
    while it waits."""
    expect_log(ENDED, at_least=0)
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, plane(tmp_path / "host") as control, black_hole() as hole:
        good = servers.request()
        await control.ensure(with_target(good, 1, hole))
        await control.put_state("Run")
        await until_targets(control, {"wait_quorum"}, clients=(0, 2))
        assert (await control.seen(0))["state"] == "Starting"
        answer = await control.replace(good)
        assert (answer.status_code, answer.json()) == (200, "started")
        await control.until("Running")
        async with guest((await control.disk())["uri"]) as machine:
            await machine.write(0, pattern(SIZE))
        answer = await control.replace(good)
        assert (answer.status_code, answer.json()["error_code"]) == (400, answer.json()["message"])
        assert "no difference" in answer.json()["message"], "the accepted VCR is the one to compare with"
    assert len(digests(paths)) == 1


async def until_targets(control: Plane, states: set[str], *, clients: tuple[int, ...]) -> None:
    """Wait until these Downstairs are on their way in and as far as that."""
    with trio.fail_after(30):
        while True:
            targets = (await control.status())["volume"]["sub_volumes"][0]["upstairs"]["targets"]
            if {targets[client]["state"].get("state") for client in clients} == states:
                return
            await wait_all_tasks_blocked(0.001)


async def test_a_machine_that_waits_for_a_black_hole_can_be_stopped(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Race: stop with activation. The activation is given up, and nothing becomes active later."""
    expect_log(ENDED, at_least=0)
    expect_log("disk disabled.*the activation was cancelled")
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        async with black_hole() as hole:
            await control.ensure(with_target(servers.request(), 2, hole))
            await control.put_state("Run")
            await until_targets(control, {"wait_quorum"}, clients=(0, 1))
            await control.stop()
        await control.boot(servers.request(2))


async def test_a_target_is_replaced_while_a_guest_writes(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Live repair under load: writes go on, the newcomer ends up with the same bytes, the control plane is told."""
    expect_log(ENDED, at_least=0)
    paths = make_regions(tmp_path, extent_count=24, count=4)
    received: list[Received] = []
    async with trio.open_nursery() as nursery:
        url = await nursery.start(receive, received)
        settings = {"notifier": Notifier(url)}
        async with region_set(paths[:3]) as servers, plane(tmp_path / "host", **settings) as control:
            request = servers.request()
            await control.boot(request)
            uri = (await control.disk())["uri"]
            servers.paths.append(paths[3])
            spare = await servers.start(3)
            written = [bytes(BLOCK)] * (24 * 8)
            busy = trio.Event()

            def repaired() -> bool:
                if written.count(bytes(BLOCK)) < 24 * 4:
                    busy.set()
                return any(path.endswith("/repair-finish") for path, _ in received)

            with trio.fail_after(60):
                async with trio.open_nursery() as writers:
                    for lane in range(4):
                        writers.start_soon(write_until, repaired, uri, written, lane)
                    await busy.wait()
                    answer = await control.replace(with_target(request, 1, spare.target, gen=2))
                    assert (answer.status_code, answer.json()) == (200, "started")
            async with guest(uri) as machine:
                assert await machine.read(0, 24 * 8 * BLOCK) == b"".join(written)
            answer = await control.replace(with_target(request, 1, spare.target, gen=3))
            assert answer.json() == "vcr_matches"
            kept = (await control.get("/spec"))["spec"]["value"]["components"][DISK]["component"]["request_json"]
            assert '"gen": 3' in kept
        nursery.cancel_scope.cancel()
    starts = [body for path, body in received if path.endswith("/repair-start")]
    finishes = [body for path, body in received if path.endswith("/repair-finish")]
    assert [body["repair_type"] for body in starts] == ["reconciliation"] * (len(starts) - 1) + ["live"]
    assert finishes[-1]["aborted"] is False and finishes[-1]["repairs"][0]["target_addr"] == spare.target
    assert len(digests([paths[0], paths[2], paths[3]])) == 1


async def write_until(done: Callable[[], bool], uri: str, written: list[bytes], lane: int) -> None:
    """Write blocks of this lane, one after the other, until ``done()``."""
    async with guest(uri) as machine:
        number = 0
        while not done():
            block = lane + 4 * (number * 7 % (len(written) // 4))
            data = pattern(BLOCK, 1 + lane + number % 200)
            await machine.write(block * BLOCK, data)
            written[block] = data
            number += 1


async def test_a_snapshot_is_taken_of_all_three_replicas(tmp_path: Path) -> None:
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request())
        snapshot_id = uuid4()
        async with guest((await control.disk())["uri"]) as machine:
            await machine.write(0, pattern(SIZE, 1))
            answer = await control.ask("POST", f"/disk/{DISK}/snapshot/{snapshot_id}")
            assert (answer.status_code, answer.json()) == (200, None)
            await machine.write(0, pattern(SIZE, 2))
        again = await control.ask("POST", f"/disk/{DISK}/snapshot/no-uuid")
        assert again.status_code == 400
        other = await control.ask("POST", f"/disk/other/snapshot/{snapshot_id}")
        assert other.status_code == 404 and "error_code" not in other.json()
    snapshots = [path / ".zfs" / "snapshot" / str(snapshot_id) for path in paths]
    assert len(digests(snapshots)) == 1
    assert not digests(snapshots) & digests(paths)


async def test_a_snapshot_of_a_disk_out_of_service_is_a_crucible_error(tmp_path: Path) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.ensure(servers.request())
        answer = await control.ask("POST", f"/disk/{DISK}/snapshot/{uuid4()}")
        assert (answer.status_code, answer.json()["message"]) == (
            400,
            "the disk is not active: activate it first",
        )


async def test_a_read_only_disk_takes_no_writes(tmp_path: Path) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request(), readonly=True)
        found = await control.disk()
        assert found["read_only"]
        async with guest(found["uri"]) as machine:
            answer = await machine.call(p.Command.WRITE, 0, data=bytes(BLOCK))
            assert answer.errno == p.Errno.EPERM
            assert await machine.read(0, BLOCK) == bytes(BLOCK)


async def test_the_parent_is_scrubbed_in_the_background_and_the_control_plane_is_asked_to_remove_it(
    tmp_path: Path,
) -> None:
    """What the parent held is in the disk, also where the guest wrote first."""
    image = tmp_path / "image"
    image.write_bytes(pattern(SIZE, 9))
    received: list[Received] = []
    volume_id = UUID(int=0xF0)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(receive, received)
        settings = {"notifier": Notifier(url), "scrub_delay_s": 0.0, "scrub_pause_s": 0.0}
        async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host", **settings) as control:
            parent = {"type": "file", "id": str(uuid4()), "block_size": BLOCK, "path": str(image)}
            request = VolumeRequest.model_validate(
                {
                    "type": "volume",
                    "id": volume_id,
                    "block_size": BLOCK,
                    "sub_volumes": [servers.request().model_dump(mode="json")],
                    "read_only_parent": parent,
                }
            )
            await control.boot(request)
            async with guest((await control.disk())["uri"]) as machine:
                await machine.write(BLOCK, pattern(BLOCK, 2))
                await until(lambda: bool(received))
                image.write_bytes(bytes(SIZE))
                expected = pattern(SIZE, 9)
                assert await machine.read(0, BLOCK) == expected[:BLOCK]
                assert await machine.read(BLOCK, BLOCK) == pattern(BLOCK, 2)
                assert await machine.read(2 * BLOCK, SIZE - 2 * BLOCK) == expected[2 * BLOCK :]
            status = await control.status()
            assert status["volume"]["read_only_parent"] is None
            removed = request.model_copy(update={"read_only_parent": None})
            answer = await control.replace(removed.model_copy(update={"sub_volumes": (servers.request(2),)}))
            assert answer.json() == "vcr_matches", "that the parent is gone is tolerated"
        nursery.cancel_scope.cancel()
    assert received == [(f"/disk/{volume_id}/remove-read-only-parent", {})]


async def test_a_lost_downstairs_is_told(tmp_path: Path, expect_log: ExpectLog) -> None:
    received: list[Received] = []
    async with trio.open_nursery() as nursery:
        url = await nursery.start(receive, received)
        settings = {"notifier": Notifier(url)}
        async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host", **settings) as control:
            await control.boot(servers.request())
            with expect_log(ENDED):
                await servers.members[1].stop()
                await until(lambda: any(path.endswith("/stopped") for path, _ in received))
        nursery.cancel_scope.cancel()


async def test_a_faithful_host_tells_nobody_of_a_region_set_without_ipv6(tmp_path: Path, expect_log: ExpectLog) -> None:
    """The API has IPv6 addresses only, so the real one is silent; a host that is not faithful is not."""
    received: list[Received] = []
    async with trio.open_nursery() as nursery:
        url = await nursery.start(receive, received)
        settings = {"notifier": Notifier(url), "faithful": True}
        async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host", **settings) as control:
            await control.boot(servers.request())
            ended = expect_log(ENDED)
            await servers.members[1].stop()
            await until(lambda: ended.met > 0)
            await control.stop()
        nursery.cancel_scope.cancel()
    assert received == []


@pytest.mark.real_client
async def test_nbdcopy_fills_a_disk_and_reads_it_back(tmp_path: Path, require_program: Callable[[str], str]) -> None:
    nbdcopy = require_program("nbdcopy")
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(pattern(SIZE, 5))
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request())
        uri = (await control.disk())["uri"]
        with trio.fail_after(60):
            await trio.run_process([nbdcopy, "--flush", image, uri])
            await trio.run_process([nbdcopy, uri, back])
        await control.stop()
    assert back.read_bytes() == image.read_bytes()
    assert len(digests(paths)) == 1


async def test_leaving_the_host_flushes_what_its_guests_wrote(tmp_path: Path) -> None:
    """SIGTERM in other words: nobody stopped the instance, and nothing is lost."""
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers:
        async with plane(tmp_path / "host") as control:
            await control.boot(servers.request())
            async with guest((await control.disk())["uri"]) as machine:
                await machine.write(0, pattern(SIZE))
        assert not list((tmp_path / "host").glob("*.sock"))
        assert not (tmp_path / "host" / "host.json").exists()
        assert not any(member.region.extent_versions()[2].any() for member in servers.members)
    assert len(digests(paths)) == 1


async def test_a_defect_costs_its_instance_and_no_other(
    tmp_path: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.boot(servers.request())
        async with guest((await control.disk())["uri"]) as machine:
            other = Plane(control.http, f"/hosts/0/instances/{UUID(int=3)}")
            await other.ensure(None)

            def breaks(_self: Disk) -> None:
                raise RuntimeError("a defect")

            with monkeypatch.context() as broken:
                broken.setattr("crucible_emu.host.machine.Machine._open_doors", breaks)
                with expect_log("an instance broke"):
                    await other.put_state("Run")
                    assert (await other.seen(2))["state"] == "Failed"
            assert await machine.read(0, BLOCK) == bytes(BLOCK)


async def test_two_disks_one_of_which_cannot_be_activated(tmp_path: Path, expect_log: ExpectLog) -> None:
    """The one that could is out of service again when the instance has failed."""
    expect_log("disk disabled", at_least=1)
    expect_log("an instance failed")
    expect_log(ENDED, at_least=0)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with (
        region_set(make_regions(tmp_path / "one")) as one,
        region_set(make_regions(tmp_path / "two")) as two,
        plane(tmp_path / "host") as control,
    ):
        body = ensure_body(one.request(1), disk="one")
        more = ensure_body(two.request(0), disk="two")
        body["init"]["value"]["spec"]["components"] |= more["init"]["value"]["spec"]["components"]
        assert (await control.ask("PUT", "", body)).status_code == 201
        await control.put_state("Run")
        assert (await control.seen(2))["state"] == "Failed"
        assert (await control.ask("GET", "/state-monitor", {"gen": 3})).status_code == 410
        await take(one, 2)


async def take(servers: RegionSet, generation: int) -> None:
    async with servers.disk(generation) as disk:
        assert disk.upstairs.active


async def test_two_instances_of_one_host(tmp_path: Path) -> None:
    """Disks of one name at two instances have two doors; each instance has routes of its own."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with (
        region_set(make_regions(tmp_path / "one")) as one,
        region_set(make_regions(tmp_path / "two")) as two,
        plane(tmp_path / "host") as control,
    ):
        places = [Plane(control.http, f"/hosts/0/instances/{UUID(int=number)}") for number in (1, 2)]
        for place, servers, seed in zip(places, (one, two), (1, 2)):
            await place.boot(servers.request())
            async with guest((await place.disk())["uri"]) as machine:
                await machine.write(0, pattern(BLOCK, seed))
        listed = (await control.http.get("/hosts/0/instances", headers=NEWEST)).json()
        assert [(found["key"], found["state"]) for found in listed["instances"]] == [
            (str(UUID(int=1)), "Running"),
            (str(UUID(int=2)), "Running"),
        ]
        uris = [found["disks"][0]["uri"] for found in listed["instances"]]
        assert [Path(uri).name for uri in uris] == [f"{DISK}.sock", f"{DISK}-2.sock"]
        await places[0].stop()
        async with guest(uris[1]) as machine:
            assert await machine.read(0, BLOCK) == pattern(BLOCK, 2)
        assert (await control.ask("GET")).status_code == 424, "/instance is a place of its own"
