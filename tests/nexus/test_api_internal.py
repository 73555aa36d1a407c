"""What Upstairs and sled agents tell (nexus.md §9.3, apis-and-tools.md §5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from api_rig import Asking, Served, disk_wish, served, some_things
from db_rig import open_database
from sqlalchemy import select

from nexus.db import Database, schema
from nexus.objects.notifications import repairs_of
from nexus.volumes import volume_get

FEW = {"sleds": 1, "checked": False}
UPSTAIRS, OTHER_UPSTAIRS = (str(UUID(int=number)) for number in (1001, 1002))
SESSION, OTHER_SESSION = (str(UUID(int=number)) for number in (2001, 2002))
REGION, OTHER_REGION = (str(UUID(int=number)) for number in (3001, 3002))
REPAIR, OTHER_REPAIR = (str(UUID(int=number)) for number in (4001, 4002))
TIME = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T01:00:00.123456+01:00"


def told(**changed: Any) -> dict[str, Any]:
    repairs = [{"region_uuid": REGION, "target_addr": "[fd00::1]:19000"}]
    return {
        "time": TIME,
        "repair_id": REPAIR,
        "repair_type": "live",
        "session_id": SESSION,
        "repairs": repairs,
    } | changed


async def start(asking: Asking, status: int = 204, upstairs: str = UPSTAIRS, **changed: Any) -> None:
    await asking.ask("POST", f"/crucible/0/upstairs/{upstairs}/repair-start", told(**changed), status)


async def finish(
    asking: Asking, status: int = 204, upstairs: str = UPSTAIRS, *, aborted: bool = False, **changed: Any
) -> None:
    body = told(aborted=aborted, **changed)
    await asking.ask("POST", f"/crucible/0/upstairs/{upstairs}/repair-finish", body, status)


def rows(it: Served, table: Any = schema.upstairs_repair_notification) -> list[Any]:
    return list(it.rack.run(lambda c: list(c.execute(select(table)))))


def became(it: Served, region: str = REGION) -> list[str]:
    return [kind.value for _, kind in it.rack.run(repairs_of, [region])]


async def test_upstairs_repair_notify_idempotent(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        for _ in range(2):
            await start(it.internal)
        for _ in range(2):
            await finish(it.internal)
        assert sorted(became(it)) == ["started", "succeeded"]
        assert (rows(it)[0].target_ip, rows(it)[0].target_port) == ("fd00::1", 19000)


async def test_upstairs_repair_notify_one_row_for_each_region(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        repairs = [
            {"region_uuid": REGION, "target_addr": "[fd00::1]:19000"},
            {"region_uuid": OTHER_REGION, "target_addr": "[fd00:0::2]:19001"},
        ]
        await start(it.internal, repairs=repairs)
        await finish(it.internal, repairs=repairs[:1])
        assert (sorted(became(it)), became(it, OTHER_REGION)) == (["started", "succeeded"], ["started"])


async def test_upstairs_repair_notify_different_finish_status(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        await start(it.internal)
        await finish(it.internal)
        await finish(it.internal, 409, aborted=True)
        assert sorted(became(it)) == ["started", "succeeded"]


async def retried(tmp_path: Path, database: Database, *, interrupted: bool = False, **again: Any) -> None:
    """A new repair id, whatever became of the first."""
    async with served(tmp_path, database, **FEW) as it:
        await start(it.internal)
        if not interrupted:
            await finish(it.internal, aborted=True)
        await start(it.internal, repair_id=OTHER_REPAIR, **again)
        await finish(it.internal, repair_id=OTHER_REPAIR, **again)
        assert sorted(became(it)) == ["failed"] * (not interrupted) + ["started", "started", "succeeded"]


async def test_upstairs_repair_same_upstairs_retry(tmp_path: Path, database: Database) -> None:
    await retried(tmp_path, database)


async def test_upstairs_repair_different_upstairs_retry(tmp_path: Path, database: Database) -> None:
    await retried(tmp_path, database, session_id=OTHER_SESSION, upstairs=OTHER_UPSTAIRS)


async def test_upstairs_repair_different_upstairs_retry_interrupted(tmp_path: Path, database: Database) -> None:
    await retried(tmp_path, database, interrupted=True, session_id=OTHER_SESSION, upstairs=OTHER_UPSTAIRS)


async def test_upstairs_repair_repair_id_and_type_conflict(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        await start(it.internal)
        await start(it.internal, 409, repair_type="reconciliation")
        await finish(it.internal, 409, repair_type="reconciliation")
        await start(it.internal, 409, repair_type="reconciliation", upstairs=OTHER_UPSTAIRS, session_id=OTHER_SESSION)
        assert became(it) == ["started"]


async def test_upstairs_repair_submit_progress(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        await start(it.internal)
        path = f"/crucible/0/upstairs/{UPSTAIRS}/repair/{REPAIR}/progress"
        for item in (1, 2, 2, 3):
            body = {"time": LATER, "current_item": item, "total_items": 3}
            await it.internal.ask("POST", path, body, 204)
        found = rows(it, schema.upstairs_repair_progress)
        assert sorted(each.current_item for each in found) == [1, 2, 3]
        assert found[0].time.isoformat() == "2026-01-01T00:00:00.123456+00:00"


async def test_upstairs_repair_reject_submit_progress_when_no_repair(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        body = {"time": TIME, "current_item": 1, "total_items": 3}
        await it.internal.ask("POST", f"/crucible/0/upstairs/{UPSTAIRS}/repair/{REPAIR}/progress", body, 404)
        await start(it.internal)
        await it.internal.ask("POST", f"/crucible/0/upstairs/{OTHER_UPSTAIRS}/repair/{REPAIR}/progress", body, 404)
        assert rows(it, schema.upstairs_repair_progress) == []


async def test_upstairs_notify_downstairs_client_stop_request(tmp_path: Path, database: Database) -> None:
    await told_of_a_client(tmp_path, database, "stop-request", ("replacing", "i_o_error", "deactivated"))


async def test_upstairs_notify_downstairs_client_stops(tmp_path: Path, database: Database) -> None:
    await told_of_a_client(tmp_path, database, "stopped", ("connection_timeout", "finished", "read_failed"))


async def told_of_a_client(tmp_path: Path, database: Database, what: str, reasons: tuple[str, ...]) -> None:
    tables = {
        "stop-request": schema.downstairs_client_stop_request_notification,
        "stopped": schema.downstairs_client_stopped_notification,
    }
    async with served(tmp_path, database, **FEW) as it:
        path = f"/crucible/0/upstairs/{UPSTAIRS}/downstairs/{REGION}/{what}"
        for reason, time in (
            (reasons[0], TIME),
            (reasons[0], TIME),
            (reasons[0], LATER),
            *((r, TIME) for r in reasons),
        ):
            await it.internal.ask("POST", path, {"time": time, "reason": reason}, 204)
        await it.internal.ask("POST", path, {"time": TIME, "reason": "tired"}, 400)
        assert len(rows(it, tables[what])) == len(reasons) + 1


async def test_what_makes_no_sense_is_a_bad_request(tmp_path: Path) -> None:
    with open_database("sqlite://", inline=True) as in_memory:
        async with served(tmp_path, in_memory, **FEW) as it:
            for changed in (
                {"time": "2026-01-01T00:00:00"},
                {"time": "0999-12-31T23:59:59Z"},
                {"time": "9999-12-31T23:59:59-01:00"},
                {"repair_type": "quick"},
                {"repair_id": "7"},
                {"repairs": [{"region_uuid": REGION, "target_addr": "127.0.0.1:19000"}]},
                {"repairs": [{"region_uuid": REGION, "target_addr": "[fe80::1%eth0]:19000"}]},
                {"repairs": [{"region_uuid": REGION, "target_addr": "[fd00::1]:0"}]},
                {"repairs": [{"region_uuid": REGION, "target_addr": "[fd00::1]:19000"}] * 65},
            ):
                await start(it.internal, 400, **changed)
            await start(it.internal, 400, upstairs="nobody")
            path = f"/crucible/0/upstairs/{UPSTAIRS}/repair/{REPAIR}/progress"
            await it.internal.ask("POST", path, {"time": TIME, "current_item": -1, "total_items": 3}, 400)
            disk = {"disk_state": {"state": "detached"}, "gen": 1, "time_updated": TIME}
            await it.internal.ask("PUT", f"/disks/{it.rack.id()}", disk, 400)
            version = await it.internal.http.get("/v1/ping", headers={"api-version": "1.0.1"})
            assert version.status_code == 400
            assert rows(it) == []


async def test_a_vmm_tells_how_it_is(tmp_path: Path) -> None:
    with open_database("sqlite://", inline=True) as in_memory:
        async with served(tmp_path, in_memory, **FEW) as it:
            instance = some_things(it.rack, it.rack.project_id, "vm").instance
            sled = next(iter(it.rack.sled_of.values()))
            where = {"sled_id": sled, "propolis_ip": "::1", "propolis_port": 17500, "instance_id": instance}
            vmm = it.rack.add(schema.vmm, state="running", state_generation=3, **where)
            it.rack.set(schema.instance, instance, active_propolis_id=vmm)

            async def tell(state: str, gen: int, status: int = 204, vmm_id: str = vmm) -> str:
                body = {"vmm_state": {"gen": gen, "state": state, "time_updated": TIME}}
                await it.internal.ask("PUT", f"/vmms/{vmm_id}", body, status)
                return str((await it.user.ask("GET", "/v1/instances/vm"))["run_state"])

            assert await tell("stopping", 3) == "running", "not newer"
            assert await tell("rebooting", 4) == "rebooting"
            assert await tell("running", 2**63, 400) == "rebooting"
            assert await tell("running", 9, 404, it.rack.id()) == "rebooting"
            assert await tell("destroyed", 5) == "stopped"
            assert await tell("running", 6) == "stopped", "what has ended stays so"


async def test_volume_remove_rop_saga(tmp_path: Path) -> None:
    """By disk and by volume; twice; of a volume without a parent, of none, and of one that is deleted."""
    with open_database("sqlite://", inline=True) as in_memory:
        async with served(tmp_path, in_memory) as it:
            await it.disk("source")
            snapshot = {"name": "s", "description": "", "disk": "source"}
            snapshot = await it.user.ask("POST", "/v1/snapshots", snapshot, 201)
            of_it = {"type": "snapshot", "snapshot_id": snapshot["id"]}
            disks = [await it.user.ask("POST", "/v1/disks", disk_wish(name, of_it), 201) for name in ("a", "b")]
            crucible = schema.disk_type_crucible
            volumes = {row.disk_id: row.volume_id for row in it.rack.run(lambda c: list(c.execute(select(crucible))))}

            def parent(disk: Any) -> bool:
                found = it.rack.run(volume_get, volumes[disk["id"]])
                return found.request.read_only_parent is not None

            assert parent(disks[0]) and parent(disks[1])
            for _ in range(2):
                await it.internal.ask("POST", f"/disk/{disks[0]['id']}/remove-read-only-parent", status=204)
                assert not parent(disks[0]) and parent(disks[1])
            await it.internal.ask("POST", f"/volume/{volumes[disks[1]['id']]}/remove-read-only-parent", status=204)
            assert not parent(disks[1])
            await it.internal.ask("POST", f"/volume/{it.rack.id()}/remove-read-only-parent", status=204)
            await it.internal.ask("POST", f"/disk/{it.rack.id()}/remove-read-only-parent", status=404)
            await it.internal.ask("POST", "/disk/x/remove-read-only-parent", status=400)
            for path in ("disks/a", "disks/b", "snapshots/s", "disks/source"):
                await it.user.ask("DELETE", f"/v1/{path}", status=204)
            await it.rack.require_empty()
