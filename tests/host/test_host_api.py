"""The host's API: versions, statuses, error codes, what a faithful host does not tell, and what both kinds of route
share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import trio
from disk_rig import make_regions, region_set
from host_rig import BLOCK, DISK, INSTANCE, NEWEST, backend, ensure_body, plane, properties, spec
from trio.testing import wait_all_tasks_blocked

from crucible_emu.host import Settings, api, hosting
from crucible_emu.host.documents import InstanceEnsureRequest
from crucible_emu.host.host import INSTANCES_MAX
from crucible_emu.host.machine import WATCHERS_MAX
from crucible_emu.host.operations import ROWS
from crucible_emu.host.refusals import Full
from crucible_emu.volume.vcr import FileRequest, VolumeRequest

PLACES = ("/instance", f"/hosts/0/instances/{INSTANCE}")


def refusal(answer: httpx2.Response) -> tuple[int, str | None, str]:
    members = answer.json()
    assert members["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, members.get("error_code"), members["message"]


def file_volume(path: Path) -> VolumeRequest:
    """A disk that needs no Downstairs."""
    path.write_bytes(bytes(8 * BLOCK))
    part = FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))
    return VolumeRequest(type="volume", id=uuid4(), block_size=BLOCK, sub_volumes=(part,))


EVERYTHING = [
    ("GET", "", None),
    ("GET", "/spec", None),
    ("PUT", "/state", "Run"),
    ("GET", "/state-monitor", {"gen": 0}),
    ("GET", "/migration-status", None),
    ("POST", f"/disk/{DISK}/snapshot/{UUID(int=1)}", None),
    ("GET", f"/disk/{DISK}/status", None),
    ("PUT", f"/disk/{DISK}/vcr", {"vcr_json": "{}"}),
]


@pytest.mark.parametrize("place", PLACES)
async def test_without_an_instance_everything_is_a_failed_dependency(tmp_path: Path, place: str) -> None:
    async with plane(tmp_path) as control:
        control.prefix = place
        for method, path, body in EVERYTHING:
            assert refusal(await control.ask(method, path, body)) == (
                424,
                "NoInstance",
                "Server not initialized (no instance)",
            )
    assert len(EVERYTHING) == len(ROWS) - 1


@pytest.mark.parametrize("place", PLACES)
async def test_there_is_one_instance_in_a_place(tmp_path: Path, place: str) -> None:
    async with plane(tmp_path) as control:
        control.prefix = place
        await control.ensure(None)
        answer = await control.ask("PUT", "", ensure_body(None))
        assert refusal(answer)[:2] == (409, "AlreadyInitialized")
        assert await control.get() == {"instance": {"properties": properties(), "state": "Creating"}}
        found = await control.get("/spec")
        assert found == {"properties": properties(), "state": "Creating", "spec": {"type": "Present", "value": spec()}}
        assert await control.get("/migration-status") == {"migration_in": None, "migration_out": None}
        await control.stop()
        await control.ensure(None)


async def test_of_two_that_come_at_once_one_wins(tmp_path: Path) -> None:
    """Race: ensure with ensure. The place is taken before anything is built."""
    async with plane(tmp_path / "host") as control:
        body = ensure_body(file_volume(tmp_path / "image"))
        statuses = []

        async def ensure() -> None:
            statuses.append((await control.ask("PUT", "", body)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ensure)
        assert sorted(statuses) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"api-version": "six"}, 400),
        ({"api-version": "5.0.1"}, 400),
        ({"api-version": "5.0.0"}, 201),
        ({"api-version": "1.0.0"}, 201),
    ],
)
async def test_the_version_is_asked_for(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with plane(tmp_path) as control:
        answer = await control.http.put("/instance", json=ensure_body(None), headers=headers)
        assert answer.status_code == status, answer.text


async def test_before_version_5_the_status_is_one_bit(tmp_path: Path) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        await control.ensure(servers.request())
        for state, active in (("Creating", False), ("Running", True)):
            if state == "Running":
                await control.put_state("Run")
            await control.until(state)
            for version in ("1.0.0", "4.0.0"):
                answer = await control.ask("GET", f"/disk/{DISK}/status", **{"api-version": version})
                assert answer.json() == {"active": active}
            assert list(await control.get(f"/disk/{DISK}/status")) == ["volume_info"]


async def test_a_file_is_a_disk_that_cannot_be_asked_about(tmp_path: Path) -> None:
    async with plane(tmp_path / "host") as control:
        await control.boot(file_volume(tmp_path / "image"))
        answer = await control.ask("GET", f"/disk/{DISK}/status")
        assert refusal(answer)[0] == 400 and "volume info" in refusal(answer)[2]
        older = await control.ask("GET", f"/disk/{DISK}/status", **{"api-version": "4.0.0"})
        assert older.json() == {"active": True}


async def test_a_faithful_host_hides_reasons_and_has_one_instance(tmp_path: Path) -> None:
    async with plane(tmp_path / "host", faithful=True) as control:
        await control.ensure(file_volume(tmp_path / "image"))
        assert refusal(await control.ask("GET", "/disk/other/status")) == (404, None, "Not Found")
        code = "no Crucible backend 'other' in this instance"
        assert refusal(await control.replace("{}", "other")) == (404, code, "Not Found")
        assert (await control.http.get("/hosts/0/instances", headers=NEWEST)).status_code == 404
        assert (await control.ask("GET", "/disks")).status_code == 404


async def test_refusals_of_a_replacement(tmp_path: Path) -> None:
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "host") as control:
        request = servers.request(2)
        await control.ensure(request)
        for wanted, reason in (
            ("no JSON", "is not JSON"),
            ('{"type": "region"}', "Field required"),
            (request, "no difference"),
            (servers.request(1), "generation too low"),
            (servers.request(2, extent_count=9), "extent_count mismatch"),
        ):
            status, code, message = refusal(await control.replace(wanted))
            assert status == 400 and reason in message and code == message
        assert (await control.replace(servers.request(3))).json() == "vcr_matches"
        await control.stop()
        assert refusal(await control.replace(servers.request(4)))[0] == 403


async def test_the_monitor_waits_for_what_was_not_seen_yet(tmp_path: Path) -> None:
    async with plane(tmp_path) as control:
        await control.ensure(None)
        seen: list[dict[str, Any]] = []

        async def watch() -> None:
            seen.append(await control.seen(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            assert seen == []
            await control.put_state("Stop")
        assert seen[0]["gen"] >= 1 and seen[0]["state"] in ("Stopping", "Stopped", "Destroyed")
        assert seen[0]["migration"] == {"migration_in": None, "migration_out": None}
        await control.until("Destroyed")
        last = await control.seen(0)
        assert (last["gen"], last["state"]) == (3, "Destroyed")
        assert (await control.ask("GET", "/state-monitor", {"gen": 4})).status_code == 410


async def test_there_is_a_bound_to_those_who_wait(tmp_path: Path) -> None:
    async with plane(tmp_path) as control:
        await control.ensure(None)
        async with trio.open_nursery() as nursery:
            for _ in range(WATCHERS_MAX):
                nursery.start_soon(control.seen, 1)
            await wait_all_tasks_blocked()
            assert (await control.ask("GET", "/state-monitor", {"gen": 1})).status_code == 503
            assert (await control.seen(0))["gen"] == 0
            await control.put_state("Stop")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"properties": None}, "properties"),
        ({"init": {"method": "Clone", "value": {}}}, "init"),
        ({"init": {"method": "Spec", "value": {"spec": spec(disk=backend("{}"))}}}, "request_json"),
        ({"init": {"method": "Spec", "value": {"spec": spec(disk=backend("{}") | {"more": 1})}}}, "more"),
    ],
)
async def test_what_cannot_be_meant_leaves_the_place_free(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    async with plane(tmp_path) as control:
        status, _, message = refusal(await control.ask("PUT", "", ensure_body(None) | change))
        assert status == 400 and reason in message
        await control.ensure(None)


async def test_what_cannot_be_built_leaves_the_place_free(tmp_path: Path, expect_log: Any) -> None:
    missing = FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(tmp_path / "no-file"))
    async with plane(tmp_path) as control:
        with expect_log("an instance failed"):
            answer = await control.ask("PUT", "", ensure_body(missing))
        assert answer.status_code in (400, 500)
        assert "no-file" in answer.json()["message"]
        assert (await control.ask("GET")).status_code == 424
        await control.ensure(None)


async def test_a_defect_while_disks_are_built_is_an_internal_error(
    tmp_path: Path, expect_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any) -> None:
        raise RuntimeError("a defect")

    async with plane(tmp_path) as control:
        with monkeypatch.context() as broken, expect_log("an instance broke"):
            broken.setattr("crucible_emu.host.machine.Machine._fetch", breaks)
            assert refusal(await control.ask("PUT", "", ensure_body(None)))[:2] == (500, "Internal")
        await control.ensure(None)


async def test_a_stop_while_disks_are_built_leaves_the_place_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Race: stop with ensure. Whoever asked for the instance hears that it is not there."""

    async def takes_long(*_: Any) -> None:
        await trio.sleep_forever()

    async with plane(tmp_path) as control:
        with monkeypatch.context() as slow:
            slow.setattr("crucible_emu.host.machine.Machine._fetch", takes_long)
            answers: list[httpx2.Response] = []

            async def ensure() -> None:
                answers.append(await control.ask("PUT", "", ensure_body(None)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ensure)
                await wait_all_tasks_blocked()
                await control.put_state("Stop")
            assert refusal(answers[0])[0] == 500 and "stopped" in refusal(answers[0])[2]
        await control.ensure(None)


async def test_a_key_whose_socket_could_not_be_reached_is_refused(tmp_path: Path, expect_log: Any) -> None:
    async with plane(tmp_path / "host") as control:
        with expect_log("an instance failed"):
            answer = await control.ask("PUT", "", ensure_body(file_volume(tmp_path / "image"), disk="d" * 120))
        assert refusal(answer)[0] == 400 and "too long" in refusal(answer)[2]


@pytest.mark.parametrize(("method", "path"), [("GET", "/hosts/0/instances/me"), ("PUT", "/hosts/0/instances/7/state")])
async def test_a_place_is_named_by_a_uuid(tmp_path: Path, method: str, path: str) -> None:
    async with plane(tmp_path) as control:
        answer = await control.http.request(method, path, json="Run", headers=NEWEST)
        assert refusal(answer)[0] == 400 and "must be a UUID" in refusal(answer)[2]


async def test_the_oldest_that_ended_makes_room(tmp_path: Path) -> None:
    async with hosting(Settings(tmp_path, scrub_delay_s=None)) as host:
        request = InstanceEnsureRequest.model_validate_json(json.dumps(ensure_body(None)), strict=True)
        for number in range(INSTANCES_MAX):
            await host.ensure(UUID(int=number), request)
        with pytest.raises(Full, match=f"{INSTANCES_MAX} instances"):
            await host.ensure(None, request)
        for number in (5, 9):
            host.machine(UUID(int=number)).request("Stop")
            await host.machine(UUID(int=number)).ended()
        await host.ensure(None, request)
        keys = {found.key for found in host.describe().instances}
        assert UUID(int=5) not in keys and UUID(int=9) in keys and None in keys
        assert len(api(host).operations) == 2 * (len(ROWS) + 1) + 1


async def test_both_kinds_of_route_are_one_table(tmp_path: Path) -> None:
    async with hosting(Settings(tmp_path)) as host:
        faithful = {(row.method, row.path) for row in api(host, faithful=True).operations}
        many = {(row.method, row.path) for row in api(host).operations}
    assert {(row.method, f"/instance{row.path}") for row in ROWS} == faithful
    prefix = "/hosts/0/instances/{instance_id}"
    assert {(method, path.replace("/instance", prefix, 1)) for method, path in faithful} < many
