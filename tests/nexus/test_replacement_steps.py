"""Requests and steps of read-only replacement as rows, with agents that give ports away (nexus.md §9.5, §10.2)."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from volumes_rig import Disk, Rack, Snapshot, stash

from nexus.db import Conflict, Database, schema
from nexus.db.schema import RegionSnapshotReplacementState as State
from nexus.db.schema import RegionSnapshotReplacementStepState as StepState
from nexus.replacement.affected import affected_volumes, give_up_if_void, step_make
from nexus.replacement.read_only import (
    ReadOnlyReplacement,
    read_only_replacement_get,
    read_only_replacement_request,
    target_of,
    target_present,
)
from nexus.replacement.region import RequestResult, region_replacement_request
from nexus.replacement.step import InsertStepResult, step_get, step_insert, steps_in, steps_in_progress
from nexus.tasks.read_only_region_replacement_start import lost_read_only_regions
from nexus.tasks.region_snapshot_replacement_start import lost_region_snapshots
from nexus.volumes import FairLocks, ReadOnlyRegion, deletion, volume_remove_rop, volume_replace_snapshot
from nexus.volumes.repair_lock import holder, waiters
from nexus.volumes.resolution import Resource, flag_deleting
from nexus.volumes.search import find_volumes_referencing_socket_addr

LOCKS = FairLocks()
_STEP = schema.region_snapshot_replacement_step


@pytest.fixture
def rack(in_memory: Database) -> Rack:
    return with_sleds(in_memory)


@pytest.fixture
def either(database: Database) -> Rack:
    return with_sleds(database)


def with_sleds(database: Database) -> Rack:
    rack = Rack(database, checked=False)
    for _ in range(5):
        rack.add_sled()
    return rack


def frozen(rack: Rack, disk: Disk) -> Snapshot:
    """A snapshot as a user has it."""
    made = rack.snapshot(disk)
    rack.add(
        schema.snapshot,
        id=made.id,
        project_id=rack.id(),
        name=made.id,
        description="",
        disk_id=rack.id(),
        volume_id=made.volume_id,
        destination_volume_id=rack.id(),
        state="ready",
        gen=1,
        block_size=512,
        size_bytes=8192,
    )
    return made


def asked_for(rack: Rack, target: Resource, state: State = State.RUNNING) -> ReadOnlyReplacement:
    """A request for the target, in ``state`` by hand."""
    request_id, result = rack.run(read_only_replacement_request, LOCKS, target, rack.now())
    assert result is RequestResult.MADE
    later = {"old_snapshot_volume_id": rack.id(), "new_region_id": rack.id(), "new_region_volume_id": rack.id()}
    rack.set(schema.region_snapshot_replacement, request_id, replacement_state=state, **later)
    return rack.run(read_only_replacement_get, request_id)


def in_state(rack: Rack, step_id: str, state: StepState) -> None:
    held = {"operating_saga_id": rack.id()} if state is StepState.RUNNING else {"operating_saga_id": None}
    stashed = {} if state is StepState.VOLUME_DELETED else {"old_snapshot_volume_id": rack.id()}
    rack.set(_STEP, step_id, replacement_state=state, **held, **stashed)


# -- requests ---------------------------------------------------------------------------------------------------------


def test_one_replacement_per_volume_of_two_region_snapshots(either: Rack) -> None:
    """R3, and who comes second is in line for the lock."""
    rack = either
    snapshot = frozen(rack, rack.disk())
    first, second, _ = [each.resource for each in snapshot.members]
    request_id, result = rack.run(read_only_replacement_request, LOCKS, first, rack.now())
    assert result is RequestResult.MADE
    assert rack.run(read_only_replacement_request, LOCKS, first, rack.now())[1] is RequestResult.OPEN_ALREADY
    waits, result = rack.run(read_only_replacement_request, LOCKS, second, rack.now())
    assert result is RequestResult.LOCK_HELD
    held = rack.run(holder, snapshot.volume_id)
    assert held is not None and held.repair_id == request_id
    assert [each.repair_id for each in rack.run(waiters, snapshot.volume_id)] == [waits]


def test_volume_lock_should_pass_without_volume(rack: Rack) -> None:
    """R4, R40: the snapshot and its volume are gone, and a copy of it reads from the target all the same."""
    disk = rack.disk()
    snapshot = frozen(rack, disk)
    rack.image(snapshot)
    rack.delete(snapshot.volume_id)
    rack.set(schema.snapshot, snapshot.id, state="destroyed", time_deleted=rack.now())
    made = rack.run(read_only_replacement_request, LOCKS, snapshot.members[0].resource, rack.now())
    assert made[1] is RequestResult.MADE


# -- steps ------------------------------------------------------------------------------------------------------------


def test_count_replacement_steps(rack: Rack) -> None:
    """All but *volume deleted* keep a request from its end."""
    request_id = rack.id()
    made = [rack.run(step_insert, LOCKS, request_id, rack.id(), rack.now())[0] for _ in range(4)]
    for step_id, state in zip(made[1:], (StepState.RUNNING, StepState.COMPLETE, StepState.VOLUME_DELETED), strict=True):
        in_state(rack, step_id, state)
    assert rack.run(steps_in_progress, request_id) == 3
    for step_id, state in zip(made, StepState, strict=True):
        assert [each.id for each in rack.run(steps_in, (state,), request_id=request_id)] == [step_id]
    assert rack.run(steps_in_progress, rack.id()) == 0


def test_region_snapshot_replacement_step_gc(rack: Rack) -> None:
    """Only complete steps have something to be cleaned up."""
    request_id = rack.id()
    for state in StepState:
        step_id, _ = rack.run(step_insert, LOCKS, request_id, rack.id(), rack.now())
        if state is not StepState.REQUESTED:
            in_state(rack, step_id, state)
    (found,) = rack.run(steps_in, (StepState.COMPLETE,))
    assert found.old_snapshot_volume_id is not None


def test_unique_region_snapshot_replacement_step_per_volume(either: Rack) -> None:
    """One at a time; when it has ended there may be another, under another id."""
    rack = either
    request_id, volume_id = rack.id(), rack.id()
    step_id, result = rack.run(step_insert, LOCKS, request_id, volume_id, rack.now())
    assert result is InsertStepResult.INSERTED
    again = (step_id, InsertStepResult.ALREADY_HANDLED)
    assert rack.run(step_insert, LOCKS, request_id, volume_id, rack.now()) == again
    in_state(rack, step_id, StepState.RUNNING)
    assert rack.run(step_insert, LOCKS, request_id, volume_id, rack.now()) == again
    for state in (StepState.COMPLETE, StepState.VOLUME_DELETED):
        in_state(rack, step_id, state)
        rack.run(LOCKS.volume_repair_delete, volume_id, step_id)
        step_id, result = rack.run(step_insert, LOCKS, request_id, volume_id, rack.now())
        assert result is InsertStepResult.INSERTED
    assert rack.count(_STEP) == 3


def test_old_step_does_not_hide_the_one_that_is_under_way(either: Rack) -> None:
    """W37: of several steps of a volume the active one counts, and there is one at most. The original looks at
    whichever comes first, and has no such index."""
    rack = either
    request_id, volume_id = rack.id(), rack.id()
    row = {"request_id": request_id, "volume_id": volume_id}
    for step_id, state in ((rack.id(), StepState.VOLUME_DELETED), (rack.id(), StepState.REQUESTED)):
        rack.add(_STEP, id=step_id, request_time=rack.now(), replacement_state=state, **row)
    originally = select(_STEP).where(_STEP.c.volume_id == volume_id).order_by(_STEP.c.id)
    assert rack.run(lambda c: c.execute(originally).first()).replacement_state == StepState.VOLUME_DELETED
    again = rack.run(step_insert, LOCKS, request_id, volume_id, rack.now())
    assert again == (step_id, InsertStepResult.ALREADY_HANDLED)
    another = insert(_STEP).values(id=rack.id(), request_time=rack.now(), replacement_state="requested", **row)
    with pytest.raises(IntegrityError):
        rack.run(lambda c: c.execute(another) and None)


def test_region_snapshot_replacement_step_conflict(rack: Rack) -> None:
    """R10: no step for what another step has put aside, whether or not that is over."""
    step_id, _ = rack.run(step_insert, LOCKS, rack.id(), rack.id(), rack.now())
    for state in (StepState.RUNNING, StepState.COMPLETE):
        in_state(rack, step_id, state)
        stash_id = rack.run(step_get, step_id).old_snapshot_volume_id
        made = rack.run(step_insert, LOCKS, rack.id(), stash_id, rack.now())
        assert made == (stash_id, InsertStepResult.ALREADY_HANDLED)


def test_region_snapshot_replacement_step_conflict_with_region_replacement(rack: Rack) -> None:
    """The step waits in line until the region's replacement is over."""
    disk = rack.disk()
    request_id, _ = rack.run(region_replacement_request, LOCKS, disk.regions[0], rack.now())
    step_id, result = rack.run(step_insert, LOCKS, rack.id(), disk.volume_id, rack.now())
    assert result is InsertStepResult.LOCK_HELD and rack.count(_STEP) == 0
    assert [each.repair_id for each in rack.run(waiters, disk.volume_id)] == [step_id]
    held = rack.run(holder, disk.volume_id)
    assert held is not None and held.repair_id == request_id


# -- which volumes ----------------------------------------------------------------------------------------------------


def test_affected_volumes_are_found_without_looking_at_others(rack: Rack) -> None:
    """W20: by their references, in a number of statements that does not grow with the volumes there are."""
    snapshot = frozen(rack, rack.disk())
    copies = sorted(rack.image(snapshot) for _ in range(3))
    request = asked_for(rack, snapshot.members[0].resource)

    def cost() -> int:
        before = rack.database.statistics().statements
        assert rack.run(affected_volumes, request) == sorted([*copies, snapshot.volume_id])
        return rack.database.statistics().statements - before

    alone = cost()
    for _ in range(3):
        rack.disk()
    assert cost() == alone


def test_steps_are_made_and_given_up_as_the_volume_is(rack: Rack) -> None:
    """R9, R19, R20, R23, each in the transaction that acts on it."""
    snapshot = frozen(rack, rack.disk())
    copy, another = rack.image(snapshot), rack.disk(snapshot.volume_id).volume_id
    request = asked_for(rack, snapshot.members[0].resource, State.REPLACEMENT_DONE)
    assert rack.run(step_make, LOCKS, request, copy, rack.now()) is None, "R9"
    rack.set(schema.region_snapshot_replacement, request.id, replacement_state=State.RUNNING)
    steps: list[Any] = [rack.run(step_make, LOCKS, request, each, rack.now()) for each in (copy, another)]
    assert [result for _, result in steps] == [InsertStepResult.INSERTED] * 2
    first, second = (rack.run(step_get, step_id) for step_id, _ in steps)
    assert rack.run(give_up_if_void, LOCKS, first) is None
    rack.delete(copy)
    assert "is deleted" in str(rack.run(give_up_if_void, LOCKS, first)), "R20"
    assert rack.run(volume_remove_rop, another, stash(rack), rack.now())
    assert "does not name the target" in str(rack.run(give_up_if_void, LOCKS, second)), "R23"
    assert rack.run(step_make, LOCKS, request, copy, rack.now()) is None, "R19"
    assert rack.run(give_up_if_void, LOCKS, second) is not None, "and again"
    assert rack.run(lambda c: c.execute(select(func.count()).select_from(schema.volume_repair)).scalar_one()) == 1


# -- what is being destroyed ------------------------------------------------------------------------------------------


def expunge(rack: Rack, resource: Resource) -> None:
    """The physical disk under it is lost."""
    region, dataset, pool = schema.region, schema.crucible_dataset, schema.zpool
    query = (
        select(pool.c.physical_disk_id)
        .join(dataset, dataset.c.pool_id == pool.c.id)
        .join(region, region.c.dataset_id == dataset.c.id)
        .where(region.c.id == resource.region_id)
    )
    disk_id = rack.run(lambda c: c.execute(query).scalar_one())
    rack.set(schema.physical_disk, disk_id, disk_policy="expunged")


def test_target_that_is_being_destroyed_is_not_asked_for(rack: Rack) -> None:
    """W52: nobody reads it any more. The original asks for a replacement until the row is gone."""
    snapshot = frozen(rack, rack.disk())
    clone = rack.read_only_region(snapshot.volume_id, snapshot.id)
    lost = [snapshot.members[0].resource, clone.resource]
    for each in lost:
        expunge(rack, each)
    assert [*rack.run(lost_region_snapshots), *rack.run(lost_read_only_regions)] == lost
    for each in lost:
        rack.run(flag_deleting, each)
        assert rack.run(target_present, each) and rack.run(target_of, each) is None
    assert rack.run(lost_region_snapshots) == [] == rack.run(lost_read_only_regions)


def test_what_was_asked_for_once_is_not_asked_for_again(rack: Rack) -> None:
    snapshot = frozen(rack, rack.disk())
    lost = snapshot.members[0].resource
    expunge(rack, lost)
    asked_for(rack, lost, State.COMPLETE)
    assert rack.run(lost_region_snapshots) == []


def test_port_given_to_another_snapshot_before_the_step_swaps(rack: Rack) -> None:
    """W55: the target is destroyed, its port is another's, its row still there. The original knows the address alone:
    it finds that other snapshot's volumes, and puts the successor of the first into them."""
    disk = rack.disk()
    snapshot = frozen(rack, disk)
    old, copy = snapshot.members[0], rack.image(snapshot)
    request = asked_for(rack, old.resource)
    successor = rack.read_only_region(snapshot.volume_id, snapshot.id)
    rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    rack.run(deletion.soft_delete_volume, copy, rack.now())
    rack.give_port(old.address)
    other = frozen(rack, disk)
    assert [each.address for each in other.members].count(old.address) == 1, "the agent uses its ports again"
    originally = rack.run(find_volumes_referencing_socket_addr, old.address)
    assert other.volume_id in originally and rack.run(affected_volumes, request) == []
    before = rack.request(other.volume_id)
    with pytest.raises(Conflict, match="the port was given away"):
        rack.run(volume_replace_snapshot, other.volume_id, old, successor, stash(rack), rack.now())
    assert rack.request(other.volume_id) == before
    assert isinstance(successor.resource, ReadOnlyRegion)
