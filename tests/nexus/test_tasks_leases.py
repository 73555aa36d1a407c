"""What an ended saga left locked is let go of (W42), and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from db_rows import ROWS
from sqlalchemy import insert, select
from volumes_rig import Rack

from nexus.db import Database, schema
from nexus.db.saga_claims import claims, saga_behind
from nexus.db.transitions import HOLDER
from nexus.saga import SagaState
from nexus.services import World
from nexus.tasks.lease_reaper import AT_REST, LeaseReaper
from nexus.volumes import FairLocks

ENDED = [SagaState.DONE, SagaState.UNWOUND]
NOT_ENDED = [SagaState.RUNNING, SagaState.UNWINDING, SagaState.STUCK]
EDGES = [(table, state) for table, states in AT_REST.items() for state in states]


@pytest.fixture
def sqlite() -> Iterator[Database]:
    with Database.open("sqlite://", inline=True) as opened:
        yield opened


def rack_of(database: Database) -> Rack:
    return Rack(database, checked=False)


def reaper(rack: Rack) -> LeaseReaper:
    """A task over a world with a database: it asks nobody else."""
    nobody: Any = None
    world = World(rack.database, nobody, nobody, nobody, FairLocks(), rack.now, rack.id, lambda size: bytes(size))
    return LeaseReaper(world)


def saga(rack: Rack, state: SagaState, **params: str) -> str:
    return rack.add(
        schema.saga,
        name="saga",
        params=json.dumps(params),
        labels="[]",
        state=state.value,
        executor_id="nexus",
        fence=0,
        event_count=0,
        time_created=rack.now(),
        time_modified=rack.now(),
    )


def lock(rack: Rack, holder: str) -> str:
    volume_id = rack.id()
    rack.add(schema.volume_repair, volume_id=volume_id, repair_id=holder, time_taken=rack.now())
    return volume_id


def held(rack: Rack, table: Any, state: Any, holder: str) -> str:
    """A request or step in an intermediate state."""
    values = {**ROWS[table], "id": rack.id(), "replacement_state": state, HOLDER: holder}
    names = ("old_snapshot_volume_id", "new_region_id", "new_region_volume_id", "old_region_volume_id")
    if state != "allocating":
        values |= {name: rack.id() for name in names if name in table.c}
    rack.run(lambda c: c.execute(insert(table).values(**values)) and None)
    return str(values["id"])


# -- locks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ENDED)
async def test_lock_of_a_saga_that_has_ended_is_given_back(database: Database, state: SagaState) -> None:
    """As snapshot-create takes it: under an id that is among its parameters."""
    rack = rack_of(database)
    holder = rack.id()
    saga_id = saga(rack, state, lock_id=holder)
    volume_id = lock(rack, holder)
    status = await reaper(rack).activate()
    assert status == {
        "released": [f"the lock of volume {volume_id} is held by saga {saga_id}, which is {state.value}"],
        "errors": [],
    }
    assert rack.count(schema.volume_repair) == 0
    assert (await reaper(rack).activate())["released"] == []


@pytest.mark.parametrize("state", NOT_ENDED)
async def test_lock_of_a_saga_that_may_go_on_stays(sqlite: Database, state: SagaState) -> None:
    """A stuck one too: an operator can resume it, and then it counts on its lock."""
    rack = rack_of(sqlite)
    holder = rack.id()
    saga(rack, SagaState.UNWOUND, lock_id=holder)
    saga(rack, state, lock_id=holder)
    lock(rack, holder)
    assert await reaper(rack).activate() == {"released": [], "errors": []}
    assert rack.count(schema.volume_repair) == 1


async def test_lock_of_a_request_stays_though_a_saga_of_it_has_ended(sqlite: Database) -> None:
    """A request holds its lock from saga to saga."""
    rack = rack_of(sqlite)
    request = held(rack, schema.region_replacement, "driving", saga(rack, SagaState.RUNNING))
    saga(rack, SagaState.DONE, request_id=request)
    lock(rack, request)
    assert await reaper(rack).activate() == {"released": [], "errors": []}
    assert rack.count(schema.volume_repair) == 1


async def test_lock_that_nobody_knows_the_holder_of_stays_and_is_told_of(sqlite: Database) -> None:
    rack = rack_of(sqlite)
    holder = rack.id()
    volume_id = lock(rack, holder)
    status = await reaper(rack).activate()
    assert status["errors"] == [f"the lock of volume {volume_id} is held by {holder}, which nobody knows"]
    assert rack.count(schema.volume_repair) == 1


# -- requests and steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "state"), EDGES, ids=[f"{table.name}-{state}" for table, state in EDGES])
async def test_record_of_a_saga_that_has_ended_goes_back_to_rest(sqlite: Database, table: Any, state: Any) -> None:
    rack = rack_of(sqlite)
    running = held(rack, table, state, saga(rack, SagaState.RUNNING))
    # Two steps of one volume, or two requests for one region, cannot be under way at once.
    rack.run(lambda c: c.execute(table.update().values(_others(table, rack))) and None)
    ended = held(rack, table, state, saga(rack, SagaState.UNWOUND))
    status = await reaper(rack).activate()
    assert len(status["released"]) == 1 and ended in status["released"][0] and status["errors"] == []
    found = rack.run(lambda c: dict(c.execute(select(table.c.id, table.c.replacement_state)).all()))
    assert found == {running: state, ended: AT_REST[table][state][0]}


def _others(table: Any, rack: Rack) -> dict[str, str]:
    names = ("old_region_id", "volume_id")
    return {name: rack.id() for name in names if name in table.c}


def test_every_intermediate_state_has_a_way_back() -> None:
    """Those in which a row must have a holder, as the schema says."""
    for table, states in AT_REST.items():
        (rule,) = (each for each in table.constraints if str(each.name).endswith("held_while_intermediate"))
        words = str(rule.sqltext).split("IN (")[1].split(")")[0]
        assert {each.strip(" '") for each in words.split(",")} == {str(state) for state in states}


async def test_lease_says_which_saga_is_behind_a_holder(sqlite: Database) -> None:
    """An operating_saga_id that is not the saga's own id; forgotten when nothing is held."""
    rack = rack_of(sqlite)
    saga_id, holder = saga(rack, SagaState.DONE), rack.id()
    rack.add(schema.saga_lease, holder_id=holder, saga_id=saga_id, time_taken=rack.now())
    held(rack, schema.region_replacement, "driving", holder)
    behind = rack.run(saga_behind, holder)
    assert (behind.saga_id, behind.ended) == (saga_id, True)
    assert len((await reaper(rack).activate())["released"]) == 1
    assert rack.count(schema.saga_lease) == 0


# -- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "state", "after"),
    [
        ("finalizing", SagaState.UNWOUND, "import_ready"),
        ("maintenance", SagaState.DONE, "detached"),
        ("destroyed", SagaState.UNWOUND, "faulted"),
        ("destroyed", SagaState.DONE, "destroyed"),
        ("finalizing", SagaState.RUNNING, "finalizing"),
    ],
)
async def test_disk_in_the_hand_of_a_saga(sqlite: Database, before: str, state: SagaState, after: str) -> None:
    rack = rack_of(sqlite)
    deleted = {"time_deleted": rack.now()} if before == "destroyed" else {}
    disk_id = rack.user_disk(rack.id(), disk_state=before, operating_saga_id=saga(rack, state), **deleted)
    charged = {"resource_type": "disk", "project_id": rack.id(), "virtual_disk_bytes_provisioned": 512}
    rack.add(schema.virtual_provisioning_resource, id=disk_id, time_modified=rack.now(), **charged)
    status = await reaper(rack).activate()
    disk = schema.disk
    found = rack.run(lambda c: c.execute(select(disk.c.disk_state, disk.c[HOLDER], disk.c.time_deleted)).one())
    assert found.disk_state == after
    assert len(status["released"]) == (before != after)
    if before != after:
        assert found[1:] == (None, None)


# -- claims -----------------------------------------------------------------------------------------------------------


def test_sagas_that_are_not_finished_claim_what_they_speak_of(sqlite: Database) -> None:
    """In their parameters and in what their nodes recorded, at any depth."""
    rack = rack_of(sqlite)
    ids = [rack.id() for _ in range(4)]
    running = saga(rack, SagaState.RUNNING, volume_id=ids[0])
    recorded = json.dumps({"regions": [{"id": ids[1]}], "text": json.dumps([ids[2].upper()])})
    event = {"saga_id": running, "number": 0, "label": "NODE", "kind": "succeeded", "data": recorded}
    rack.run(lambda c: c.execute(insert(schema.saga_event).values(**event, time=rack.now())) and None)
    for state in (*ENDED, SagaState.STUCK):
        saga(rack, state, volume_id=ids[3])
    assert rack.run(claims) == dict.fromkeys([running, *ids[:3]], running)
