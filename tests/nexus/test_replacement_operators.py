"""What operators are told of replacements: listed, shown, what each waits for, what is lost (nexus.md §4.11)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_rig import Served, served
from db_rig import open_database
from nexus_rig import EPOCH

from nexus.db import Database, schema
from nexus.replacement.notes import survivor_decided

BASE = "/emulator/v1/replacements"
FEW = {"sleds": 1, "checked": False}


@pytest.fixture
def in_memory() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nobody_moves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests here are rows with nothing behind them: no background task looks at them."""
    monkeypatch.setattr("nexus.running.nexus.all_tasks", lambda *_: [])


def region_request(it: Served, state: str = "requested", **values: Any) -> str:
    row = {"old_region_id": it.rack.id(), "volume_id": it.rack.id(), "request_time": it.rack.now()}
    if state != "requested" and state != "allocating":
        row |= {"new_region_id": it.rack.id(), "old_region_volume_id": it.rack.id()}
    return it.rack.add(schema.region_replacement, replacement_state=state, **row | values)


def snapshot_request(it: Served, state: str = "requested", **values: Any) -> tuple[str, dict[str, str]]:
    """A request, and the key of what it is about, with the row of that."""
    target = {"dataset_id": it.rack.id(), "region_id": it.rack.id(), "snapshot_id": it.rack.id()}
    address = f"[::1]:{1 + it.rack.count(schema.region_snapshot)}"
    it.rack.add(schema.region_snapshot, snapshot_addr=address, volume_references=0, deleting=False, **target)
    row = {f"old_{name}": value for name, value in target.items()}
    row |= {"replacement_type": "region_snapshot", "request_time": it.rack.now()}
    if state not in ("requested", "allocating"):
        row |= {name: it.rack.id() for name in ("old_snapshot_volume_id", "new_region_id", "new_region_volume_id")}
    return it.rack.add(schema.region_snapshot_replacement, replacement_state=state, **row | values), target


def uses(it: Served, volume_id: str, target: dict[str, str]) -> None:
    named = {f"region_snapshot_{name}": value for name, value in target.items()}
    it.rack.add(
        schema.volume_resource_usage,
        usage_id=it.rack.id(),
        volume_id=volume_id,
        usage_type="region_snapshot",
        **named,
    )


def holds(it: Served, holder_id: str, volume_id: str) -> None:
    it.rack.add(schema.volume_repair, volume_id=volume_id, repair_id=holder_id, time_taken=it.rack.now())


def stands_in_line(it: Served, waiter_id: str, volume_id: str, overtaken: int = 0) -> None:
    now = it.rack.now()
    row = {"volume_id": volume_id, "repair_id": waiter_id, "time_queued": now, "time_asked": now}
    it.rack.add(schema.volume_repair_queue, overtaken=overtaken, **row)


async def test_requests_of_both_kinds_are_listed_page_by_page(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        ask = it.lockstep.ask
        assert await ask("GET", BASE) == {"items": [], "next_page": None}
        some = {region_request(it), region_request(it, "running"), snapshot_request(it, "running")[0]}
        done = {region_request(it, "complete"), snapshot_request(it, "complete")[0]}
        assert {each["id"] for each in (await ask("GET", BASE))["items"]} == some
        assert {each["id"] for each in (await ask("GET", BASE, all="true"))["items"]} == some | done
        assert {each["state"] for each in (await ask("GET", BASE, state="running"))["items"]} == {"running"}
        assert [each["kind"] for each in (await ask("GET", BASE, state="requested"))["items"]] == ["region"]
        assert (await ask("GET", BASE, state="driving"))["items"] == []
        found: list[str] = []
        page = await ask("GET", BASE, limit=2, all="true")
        while page["items"]:
            found += [each["id"] for each in page["items"]]
            if page["next_page"] is None:
                break
            page = await ask("GET", BASE, limit=2, all="true", page_token=page["next_page"])
        assert found == sorted(some | done)
        await ask("GET", BASE, state="odd", status=400)
        await ask("GET", BASE, all="perhaps", status=400)
        await ask("GET", f"{BASE}/{it.rack.id()}", status=404)
        await ask("GET", f"{BASE}/odd", status=400)


async def test_a_request_is_shown_with_its_steps_and_how_far_its_repairs_are(
    tmp_path: Path, in_memory: Database
) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        request_id = region_request(it, "running")
        shown = await it.lockstep.ask("GET", f"{BASE}/{request_id}")
        assert (shown["repair_steps"], shown["repairs"], shown["note"]) == ([], [], None)
        pantry = {"step_associated_pantry_ip": "::1", "step_associated_pantry_port": 17900}
        it.rack.add(
            schema.region_replacement_step,
            replacement_id=request_id,
            step_time=it.rack.now(),
            step_type="pantry",
            step_associated_pantry_job_id=it.rack.id(),
            **pantry,
        )
        repair = {"repair_id": it.rack.id(), "upstairs_id": it.rack.id(), "session_id": it.rack.id()}
        told = {"repair_type": "live", "region_id": shown["new_region_id"], "target_ip": "::1", "target_port": 1}
        notified, progress = schema.upstairs_repair_notification, schema.upstairs_repair_progress
        it.rack.add(notified, time=it.rack.now(), notification_type="started", **repair | told)
        for item in (1, 3):
            it.rack.add(progress, repair_id=repair["repair_id"], time=it.rack.now(), current_item=item, total_items=4)
        it.rack.add(
            schema.replacement_waiting, request_id=request_id, reason="it needs a word", time_since=it.rack.now()
        )
        shown = await it.lockstep.ask("GET", f"{BASE}/{request_id}")
        (step,), (seen,) = shown["repair_steps"], shown["repairs"]
        assert (step["who"], step["pantry"]) == ("pantry", "[::1]:17900")
        assert (seen["type"], seen["state"], seen["done_items"], seen["total_items"]) == ("live", "started", 3, 4)
        assert shown["note"]["reason"] == "it needs a word"
        it.rack.add(notified, time=it.rack.now(), notification_type="succeeded", **repair | told)
        (seen,) = (await it.lockstep.ask("GET", f"{BASE}/{request_id}"))["repairs"]
        assert seen["state"] == "succeeded" and seen["time_ended"] > seen["time_started"]

        read_only_id, _ = snapshot_request(it, "running")
        it.rack.add(
            schema.region_snapshot_replacement_step,
            request_id=read_only_id,
            request_time=it.rack.now(),
            volume_id=it.rack.id(),
            replacement_state="requested",
        )
        refusal = {"request_id": read_only_id, "source": "read-only region x", "reason": "extent 3 differs"}
        it.rack.add(schema.clone_source_refusal, time_refused=it.rack.now(), **refusal)
        shown = await it.lockstep.ask("GET", f"{BASE}/{read_only_id}")
        assert [each["state"] for each in shown["volume_steps"]] == ["requested"]
        assert shown["refused_sources"] == [{"source": "read-only region x", "reason": "extent 3 differs"}]
        assert (shown["kind"], shown["repair_steps"]) == ("region_snapshot", [])


async def test_what_each_waits_for_and_who_holds_everybody_up(tmp_path: Path, database: Database) -> None:
    """A request waits for the locks of two volumes: one has a snapshot that is made, one another request, which waits
    for nobody but its repair."""
    async with served(tmp_path, database, **FEW) as it:
        idle = await it.lockstep.ask("GET", f"{BASE}/waiting")
        assert idle == {"requests": [], "locks": [], "blockers": []}
        waiting_id, target = snapshot_request(it, "running")
        with_request, with_saga, free = it.rack.id(), it.rack.id(), it.rack.id()
        for volume_id in (with_request, with_saga, free):
            uses(it, volume_id, target)
        other_id = region_request(it, "running", volume_id=with_request)
        snapshot_lock = it.rack.id()
        holds(it, other_id, with_request)
        holds(it, snapshot_lock, with_saga)
        common = {"params": "{}", "labels": "[]", "executor_id": "x", "fence": 0, "event_count": 0}
        it.rack.add(schema.saga, id="making", name="snapshot-create", state="running", **common)
        it.rack.add(schema.saga_lease, holder_id=snapshot_lock, saga_id="making", time_taken=it.rack.now())
        to_come = it.rack.id()
        stands_in_line(it, to_come, with_saga, overtaken=2)
        third_id = region_request(it, "requested", volume_id=with_saga)
        held = region_request(it, "allocating", operating_saga_id=it.rack.id())

        told = await it.lockstep.ask("GET", f"{BASE}/waiting")
        of = {each["request"]["id"]: each["reasons"] for each in told["requests"]}
        assert set(of) == {waiting_id, other_id, third_id, held}
        assert {(each["kind"], each["volume_id"]) for each in of[waiting_id]} == {
            ("lock", with_request),
            ("lock", with_saga),
            ("task", free),
        }
        assert any("saga snapshot-create making" in each["sentence"] for each in of[waiting_id])
        assert [each["kind"] for each in of[other_id]] == ["task"]
        assert [each["kind"] for each in of[held]] == ["saga"]
        (line,) = told["locks"]
        assert (line["volume_id"], line["holder_id"]) == (with_saga, snapshot_lock)
        assert [(each["id"], each["overtaken"]) for each in line["line"]] == [(to_come, 2)]
        behind = {each["holder_id"]: set(each["held_up"]) for each in told["blockers"]}
        assert behind == {snapshot_lock: {waiting_id, to_come}, other_id: {waiting_id}}
        assert told["blockers"][0]["holder_id"] == snapshot_lock, "who holds up most comes first"
        assert all(each["since"] >= (EPOCH - timedelta(1)).isoformat() for found in of.values() for each in found)


async def test_a_request_always_says_what_it_waits_for(tmp_path: Path, in_memory: Database) -> None:
    """In every state of both machines."""
    async with served(tmp_path, in_memory, **FEW) as it:
        for state in ("requested", "running", "replacement_done"):
            region_request(it, state)
            snapshot_request(it, state)
        for state in ("allocating", "driving", "completing"):
            region_request(it, state, operating_saga_id=it.rack.id())
        for state in ("allocating", "deleting_old_volume", "completing"):
            snapshot_request(it, state, operating_saga_id=it.rack.id())
        gone_id, target = snapshot_request(it, "running")
        it.rack.run(lambda c: c.execute(schema.region_snapshot.delete().where(
            schema.region_snapshot.c.region_id == target["region_id"])) and None)  # fmt: skip
        told = await it.lockstep.ask("GET", f"{BASE}/waiting")
        assert len(told["requests"]) == 13
        assert [each["request"]["id"] for each in told["requests"] if not each["reasons"]] == []
        (last,) = [each["reasons"] for each in told["requests"] if each["request"]["id"] == gone_id]
        assert "region_snapshot_replacement_finish" in last[0]["sentence"]


async def test_what_is_lost_and_not_replaced(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, sleds=4) as it:
        disk = await it.disk("data")
        (dataset_id, *_) = it.rack.agents
        assert (await it.lockstep.ask("GET", f"{BASE}/to-do"))["copies"] == []
        regions = it.rack.run(
            lambda c: [
                row.dataset_id
                for row in c.execute(schema.region.select().where(schema.region.c.volume_id.is_not(None)))
            ]
        )
        dataset_id = regions[0]
        it.rack.expunge(dataset_id)
        (lost,) = (await it.lockstep.ask("GET", f"{BASE}/to-do"))["copies"]
        assert (lost["kind"], lost["dataset_id"], lost["request_id"]) == ("region", dataset_id, None)
        request_id = region_request(it, "requested", old_region_id=lost["region_id"], volume_id=lost["volume_id"])
        (lost,) = (await it.lockstep.ask("GET", f"{BASE}/to-do"))["copies"]
        assert (lost["request_id"], lost["state"]) == (request_id, "requested")
        assert disk["state"] == {"state": "detached"}


async def test_what_is_asked_for_is_a_request_of_the_right_kind(tmp_path: Path, in_memory: Database) -> None:
    """A region that is written to, a region snapshot; and each refusal is a sentence."""
    async with served(tmp_path, in_memory, sleds=4) as it:
        ask = it.lockstep.ask
        await it.disk("data")
        await it.user.ask("POST", "/v1/snapshots", {"name": "kept", "description": "", "disk": "data"}, 201)
        crucible, snapshots = schema.disk_type_crucible, schema.region_snapshot
        volume_id = it.rack.run(lambda c: c.execute(crucible.select()).one().volume_id)
        rows = it.rack.run(
            lambda c: c.execute(schema.region.select().where(schema.region.c.volume_id == volume_id)).all()
        )
        first, second = (str(row.id) for row in rows[:2])
        target = it.rack.run(lambda c: dict(c.execute(snapshots.select()).first()._mapping))

        made = await ask("POST", BASE, {"target": {"type": "region", "region_id": first}}, 201)
        assert (made["kind"], made["state"], made["volume_id"]) == ("region", "requested", volume_id)
        again = await ask("POST", BASE, {"target": {"type": "region", "region_id": first}}, 409)
        assert again["message"] == f"it is being replaced already, by request {made['id']}"
        refused = await ask("POST", BASE, {"target": {"type": "region", "region_id": second}}, 409)
        assert "stands in line for it" in refused["message"]
        (line,) = (await ask("GET", f"{BASE}/waiting"))["locks"]
        assert line["holder_id"] == made["id"] and line["owner"]["name"] == "data"
        assert [each["id"] in refused["message"] for each in line["line"]] == [True]

        ids = {name: target[name] for name in ("dataset_id", "region_id", "snapshot_id")}
        read_only = await ask("POST", BASE, {"target": {"type": "region_snapshot"} | ids}, 201)
        assert (read_only["kind"], read_only["old_snapshot_id"]) == ("region_snapshot", ids["snapshot_id"])
        assert read_only["volume_id"] != volume_id
        for wrong in (
            {"type": "region", "region_id": it.rack.id()},
            {"type": "region_snapshot"} | ids | {"region_id": it.rack.id()},
        ):
            await ask("POST", BASE, {"target": wrong}, 404)
        for wrong in ({"type": "region", "region_id": "odd"}, {"type": "else"}):
            await ask("POST", BASE, {"target": wrong}, 400)


async def test_a_survivor_is_believed_only_where_there_is_something_to_decide(
    tmp_path: Path, in_memory: Database
) -> None:
    async with served(tmp_path, in_memory, sleds=4) as it:
        ask, path = it.lockstep.ask, f"{BASE}/believe"
        await it.disk("data")
        rows = it.rack.run(lambda c: c.execute(schema.region.select()).all())
        volume_id, survivor, lost = rows[0].volume_id, rows[0].id, rows[1]
        word = {"volume_id": volume_id, "region_id": survivor}
        assert "nothing to decide" in (await ask("POST", path, word, 400))["message"]
        new = region_request(it, "running", volume_id=volume_id, new_region_id=rows[2].id)
        it.rack.expunge(lost.dataset_id)
        for wrong, status, words in (
            ({"region_id": it.rack.id()}, 404, "there is no region"),
            ({"volume_id": it.rack.id()}, 400, "is no copy of volume"),
            ({"region_id": rows[2].id}, 400, "is new"),
            ({"region_id": lost.id}, 400, "is on an expunged disk"),
        ):
            assert words in (await ask("POST", path, word | wrong, status))["message"]
        given = await ask("POST", path, word, 201)
        assert (given["volume_id"], given["region_id"]) == (volume_id, survivor)
        assert await ask("POST", path, word, 201) == given, "said again it is the same word"
        assert it.rack.run(survivor_decided, volume_id, survivor) and new
