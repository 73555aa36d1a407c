"""The machines of replacements: every edge only from the state and out of the hand that its table names (§2, §9.5)."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update
from volumes_rig import Rack

from nexus.db import Conflict, Database, NotFound, schema
from nexus.db.schema import ReadOnlyTargetType
from nexus.db.transitions import HOLDER, Outcome
from nexus.replacement import notes
from nexus.replacement.machine import STATE, Hold, Machine, move
from nexus.replacement.read_only import READ_ONLY_REPLACEMENT, read_only_replacement_request
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    RegionEdge,
    RequestResult,
    region_replacement_get,
    region_replacement_request,
)
from nexus.replacement.step import READ_ONLY_REPLACEMENT_STEP, InsertStepResult, step_insert
from nexus.tasks.lease_reaper import AT_REST
from nexus.volumes import FairLocks, ReadOnlyRegion
from nexus.volumes.at_rest import at_rest, rest_proved
from nexus.volumes.checkout import FOR_NO_WRITER, CopyAndModify, Pantry, volume_checkout
from nexus.volumes.repair_lock import holder, waiters

MACHINES: dict[str, Machine[Any]] = {
    each.name: each for each in (REGION_REPLACEMENT, READ_ONLY_REPLACEMENT, READ_ONLY_REPLACEMENT_STEP)
}
LOCKS = FairLocks()


@pytest.fixture
def rack(in_memory: Database) -> Rack:
    """Whose rows need not make sense as a whole."""
    return with_sleds(in_memory)


@pytest.fixture
def either(database: Database) -> Rack:
    """The same, on either database."""
    return with_sleds(database)


def with_sleds(database: Database) -> Rack:
    rack = Rack(database, checked=False)
    for _ in range(5):
        rack.add_sled()
    return rack


def in_state(rack: Rack, machine: Machine[Any], state: str, **also: Any) -> str:
    """A row in that state, with what the schema asks of it."""
    held = state in {edge.target for edge in machine.edges.values() if edge.hold is Hold.TAKE}
    values = {"id": rack.id(), "request_time": rack.now(), STATE: state, HOLDER: rack.id() if held else None} | also
    for column in machine.table.columns:
        known = state not in (machine.created, "allocating") and column.name.startswith(("new_", "old_"))
        needed = not column.nullable or known
        if needed and column.name not in values:
            values[column.name] = rack.id()
    if machine is READ_ONLY_REPLACEMENT:
        values |= {"replacement_type": ReadOnlyTargetType.READ_ONLY_REGION, "old_dataset_id": None}
        values |= {"old_snapshot_id": None}
    rack.run(lambda c: c.execute(insert(machine.table).values(**values)) and None)
    return str(values["id"])


def row(rack: Rack, machine: Machine[Any], row_id: str) -> dict[str, Any]:
    query = select(machine.table).where(machine.table.c.id == row_id)
    return dict(rack.run(lambda c: c.execute(query).mappings().one()))


def prepared(rack: Rack, machine: Machine[Any], name: Enum) -> tuple[str, dict[str, Any]]:
    """A row from which the edge may be taken, and with what."""
    edge = machine.edges[name]
    row_id = in_state(rack, machine, edge.source, **dict.fromkeys(edge.expects_null))
    saga_id = row(rack, machine, row_id)[HOLDER] if edge.hold is Hold.GIVE else rack.id()
    arguments: dict[str, Any] = {each: rack.id() for each in edge.records}
    arguments |= {} if edge.hold is Hold.NONE else {"saga_id": saga_id}
    return row_id, arguments | ({"locks": LOCKS} if edge.ends else {})


EDGES = [
    pytest.param(machine, name, id=f"{machine.name}: {name.value}")
    for machine in MACHINES.values()
    for name in machine.edges
]


@pytest.mark.parametrize(("machine", "name"), EDGES)
def test_an_edge_is_taken_once_and_recognises_itself(rack: Rack, machine: Machine[Any], name: Enum) -> None:
    edge = machine.edges[name]
    row_id, arguments = prepared(rack, machine, name)
    assert rack.run(move, machine, name, row_id, **arguments) is Outcome.UPDATED
    found = row(rack, machine, row_id)
    assert found[STATE] == edge.target
    assert found[HOLDER] == (arguments["saga_id"] if edge.hold is Hold.TAKE else None)
    assert [found[each] for each in edge.records] == [arguments[each] for each in edge.records]
    assert rack.run(move, machine, name, row_id, **arguments) is Outcome.ALREADY


@pytest.mark.parametrize(("machine", "name"), EDGES)
def test_an_edge_is_taken_from_no_other_state(rack: Rack, machine: Machine[Any], name: Enum) -> None:
    """A saga that has not got the lease any more gave it back, and the row was moved on since."""
    edge = machine.edges[name]
    for state in sorted(set(type(machine.created)) - {edge.source, edge.target}):
        _, arguments = prepared(rack, machine, name)
        other = in_state(rack, machine, state)
        before = row(rack, machine, other)
        with nullcontext() if edge.hold is Hold.GIVE else pytest.raises(Conflict):
            assert rack.run(move, machine, name, other, **arguments) is Outcome.ALREADY
        assert row(rack, machine, other) == before


@pytest.mark.parametrize(
    ("machine", "name"), [each for each in EDGES if each.values[0].edges[each.values[1]].hold is Hold.GIVE]
)
def test_only_the_saga_that_has_it_moves_it(rack: Rack, machine: Machine[Any], name: Enum) -> None:
    """Another cannot have come here without having had it: it gave it back before, and nothing happens."""
    row_id, arguments = prepared(rack, machine, name)
    before = row(rack, machine, row_id)
    assert rack.run(move, machine, name, row_id, **arguments | {"saga_id": rack.id()}) is Outcome.ALREADY
    assert row(rack, machine, row_id) == before
    wrong = next(each for each in machine.edges.values() if each.hold is Hold.TAKE).target
    if wrong is not machine.edges[name].source:
        held = in_state(rack, machine, wrong)
        with pytest.raises(Conflict):
            rack.run(move, machine, name, held, **arguments | {"saga_id": row(rack, machine, held)[HOLDER]})


def test_an_edge_that_lacks_something_is_a_mistake(rack: Rack) -> None:
    row_id = rack.id()
    for wrong in ({}, {"saga_id": row_id}, {"saga_id": row_id, "new_region_id": row_id}):
        with pytest.raises(ValueError, match="this edge"):
            rack.run(move, REGION_REPLACEMENT, RegionEdge.RUN, row_id, **wrong)
    with pytest.raises(ValueError, match="locks"):
        rack.run(move, REGION_REPLACEMENT, RegionEdge.COMPLETE, row_id, saga_id=row_id)
    with pytest.raises(NotFound):
        rack.run(move, REGION_REPLACEMENT, RegionEdge.DRIVE, row_id, saga_id=row_id)


@pytest.mark.parametrize("name", MACHINES)
def test_the_reaper_goes_back_where_the_table_does(name: str) -> None:
    """What was taken by an edge is put back where that came from."""
    machine = MACHINES[name]
    taken = {edge.target: edge.source for edge in machine.edges.values() if edge.hold is Hold.TAKE}
    assert {state: rest for state, (rest, _) in AT_REST[machine.table].items()} == taken


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_taken_can_be_given_back(name: str) -> None:
    """No intermediate state without a way back, and all states can be reached."""
    machine = MACHINES[name]
    for edge in machine.edges.values():
        if edge.hold is Hold.TAKE:
            back = (edge.target, edge.source, Hold.GIVE)
            assert back in [(each.source, each.target, each.hold) for each in machine.edges.values() if each.back]
    reached = {machine.created} | {edge.target for edge in machine.edges.values()}
    assert reached == {type(machine.created)(each) for each in reached}
    assert reached == set(type(machine.created))


# -- requests ---------------------------------------------------------------------------------------------------------


def states(rack: Rack, request_id: str, state: str) -> None:
    """The request has come to ``state``, by hand."""
    also = {"new_region_id": rack.id(), "old_region_volume_id": rack.id(), STATE: state}
    table = schema.region_replacement
    rack.run(lambda c: c.execute(update(table).where(table.c.id == request_id).values(**also)) and None)


def test_one_replacement_per_volume(either: Rack) -> None:
    rack = either
    disk = rack.disk()
    first, result = rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now())
    assert result is RequestResult.MADE
    assert rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now()) == (
        first,
        RequestResult.OPEN_ALREADY,
    )
    second, result = rack.run(region_replacement_request, LOCKS, disk.regions[1], rack.now())
    assert result is RequestResult.LOCK_HELD
    with pytest.raises(NotFound):
        rack.run(region_replacement_get, second)
    assert [each.repair_id for each in rack.run(waiters, disk.volume_id)] == [second]
    states(rack, first, "replacement_done")
    saga_id = rack.id()
    rack.run(move, REGION_REPLACEMENT, RegionEdge.COMPLETE_BEGUN, first, saga_id=saga_id)
    rack.run(move, REGION_REPLACEMENT, RegionEdge.COMPLETE, first, saga_id=saga_id, locks=LOCKS)
    assert rack.run(region_replacement_request, LOCKS, disk.regions[1], rack.now()) == (second, RequestResult.MADE)
    assert rack.run(waiters, disk.volume_id) == []


def test_a_second_lost_region_shares_the_lock_until_both_are_complete(either: Rack) -> None:
    """W54: as a request of its own it would wait for ever for the first, which needs three whole members."""
    rack = either
    disk = rack.disk()
    first, _ = rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now(), join=True)
    second, result = rack.run(region_replacement_request, LOCKS, disk.regions[1], rack.now(), join=True)
    assert result is RequestResult.MADE
    locked = rack.run(holder, disk.volume_id)
    assert locked is not None and locked.repair_id == first
    rack.run(move, REGION_REPLACEMENT, RegionEdge.VOLUME_DELETED, first, locks=LOCKS)
    locked = rack.run(holder, disk.volume_id)
    assert locked is not None and locked.repair_id == second
    rack.run(move, REGION_REPLACEMENT, RegionEdge.VOLUME_DELETED, second, locks=LOCKS)
    assert rack.run(holder, disk.volume_id) is None


def test_nobody_joins_a_snapshot_that_is_being_made(rack: Rack) -> None:
    disk, saga = rack.disk(), rack.id()
    rack.run(LOCKS.volume_repair_overtake, disk.volume_id, saga, rack.now()).require()
    _, result = rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now(), join=True)
    assert result is RequestResult.LOCK_HELD


def test_one_replacement_per_volume_conflict_with_region(rack: Rack) -> None:
    """A step of a read-only target replacement and a region's replacement keep each other out."""
    disk = rack.disk()
    _, made = rack.run(step_insert, LOCKS, rack.id(), disk.volume_id, rack.now())
    assert made is InsertStepResult.INSERTED
    _, result = rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now(), join=True)
    assert result is RequestResult.LOCK_HELD


def test_what_cannot_be_replaced_is_refused_in_words(rack: Rack) -> None:
    disk, unknown = rack.disk(), rack.id()
    with pytest.raises(NotFound):
        rack.run(region_replacement_request, LOCKS, unknown, rack.now())
    with pytest.raises(Conflict, match="is written to"):
        rack.run(read_only_replacement_request, LOCKS, ReadOnlyRegion(disk.regions[0]), rack.now())
    with pytest.raises(NotFound):
        rack.run(read_only_replacement_request, LOCKS, ReadOnlyRegion(unknown), rack.now())


# -- at rest, and notes -----------------------------------------------------------------------------------------------


def test_a_volume_is_at_rest_until_it_is_handed_out(rack: Rack) -> None:
    disk = rack.disk()
    assert rack.run(at_rest, disk.volume_id), "nobody was ever given it"
    rack.run(volume_checkout, disk.volume_id, CopyAndModify(), rack.now())
    assert rack.run(at_rest, disk.volume_id), "what is made of it is something else"
    rack.run(volume_checkout, disk.volume_id, Pantry(), rack.now())
    assert not rack.run(at_rest, disk.volume_id)
    rack.run(rest_proved, disk.volume_id, 3, rack.now())
    assert rack.run(at_rest, disk.volume_id)
    rack.run(volume_checkout, disk.volume_id, Pantry(), rack.now())
    assert not rack.run(at_rest, disk.volume_id)
    assert not rack.run(at_rest, rack.id())


@pytest.mark.parametrize("reason", FOR_NO_WRITER, ids=lambda each: each.__name__)
def test_who_writes_nothing_leaves_a_volume_at_rest(rack: Rack, reason: Any) -> None:
    disk = rack.disk()
    for _ in range(2):
        rack.run(volume_checkout, disk.volume_id, reason(), rack.now())
        assert rack.run(at_rest, disk.volume_id)


def test_a_reason_keeps_its_time_and_another_takes_its_place(rack: Rack) -> None:
    request_id, since = rack.id(), rack.now()

    def reason(connection: Connection) -> tuple[str, bool] | None:
        found = notes.waiting_of(connection, request_id)
        return None if found is None else (found.reason, found.time_since == since)

    rack.run(notes.waiting_since, request_id, "no good copy is left", since)
    rack.run(notes.waiting_since, request_id, "no good copy is left", rack.now())
    assert rack.run(reason) == ("no good copy is left", True)
    rack.run(notes.waiting_since, request_id, "its lock is held", rack.now())
    assert rack.run(reason) == ("its lock is held", False)
    rack.run(notes.waiting_no_more, request_id)
    assert rack.run(reason) is None
    rack.run(notes.source_refused, request_id, "region a", "its bytes differ", since)
    rack.run(notes.source_refused, request_id, "region a", "still", rack.now())
    assert [each.reason for each in rack.run(notes.sources_refused, request_id)] == ["its bytes differ"]
