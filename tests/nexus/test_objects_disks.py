"""Disks' rows and their states (nexus.md §1.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, update

from nexus.db import Conflict, Database, NotFound, schema
from nexus.db.schema import DiskState
from nexus.db.transitions import Outcome
from nexus.objects import disks
from nexus.objects.disks import MOVES, Move, NewDisk, disk_get, disk_insert, disk_move
from nexus.saga import ActionFailed
from nexus.volumes import Address

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SAGA, OTHER = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"
DISK = NewDisk(
    id="22222222-0000-4000-8000-000000000001",
    project_id="33333333-0000-4000-8000-000000000001",
    name="disk",
    description="",
    size_bytes=65536,
    block_size=512,
    volume_id="44444444-0000-4000-8000-000000000001",
)
INSTANCE = "55555555-0000-4000-8000-000000000001"
PANTRY, ANOTHER_PANTRY = Address("::1", 17900), Address("::1", 17901)
Run = Callable[..., Any]


@pytest.fixture
def run(database: Database) -> Run:
    return lambda body, *args, **kwargs: database.transact_blocking(lambda c: body(c, *args, **kwargs))


def in_state(run: Run, state: DiskState) -> None:
    """The disk, put there by hand."""
    run(disk_insert, DISK, NOW)
    attached = INSTANCE if state in schema.user_visible.WITH_INSTANCE else None
    deleted = NOW if state is DiskState.DESTROYED else None
    row = update(schema.disk).where(schema.disk.c.id == DISK.id)
    values = {"disk_state": state, "attach_instance_id": attached, "time_deleted": deleted}
    run(lambda c: c.execute(row.values(**values)) and None)


@pytest.mark.parametrize("move", Move)
def test_every_move_is_made_from_where_it_may_be_and_from_nowhere_else(database: Database, move: Move) -> None:
    def run(body: Any, *args: Any, **kwargs: Any) -> Any:
        return database.transact_blocking(lambda c: body(c, *args, **kwargs))

    edge = MOVES[move]
    also = {Move.ATTACHED: {"attach_instance_id": INSTANCE}, Move.DETACHED: {"attach_instance_id": None}}.get(move)
    for state in DiskState:
        in_state(run, state)
        before = run(disk_get, DISK.id)
        if state is edge.after or state in edge.before:
            generation = run(disk_move, DISK.id, move, NOW, also=also)
            assert generation == before.generation + (state in edge.before), f"{move} from {state}"
            assert run(disk_move, DISK.id, move, NOW, also=also) == generation, "again is the same"
            after = run(disk_get, DISK.id)
            assert (after.state, after.deleted) == (edge.after, edge.after is DiskState.DESTROYED)
        else:
            with pytest.raises(Conflict, match=f"is {state}"):
                run(disk_move, DISK.id, move, NOW, also=also)


def test_insert_is_repeated_and_a_name_is_taken_once(run: Run) -> None:
    run(disk_insert, DISK, NOW)
    run(disk_insert, DISK, NOW)
    found = run(disk_get, DISK.id)
    assert (found.state, found.generation, found.volume_id, found.pantry) == ("creating", 1, DISK.volume_id, None)
    other = replace(DISK, id=OTHER, volume_id=SAGA)
    with pytest.raises(ActionFailed, match="called 'disk' already") as caught:
        run(disk_insert, other, NOW)
    assert caught.value.kind == "object_already_exists"
    run(disk_move, DISK.id, Move.CREATION_UNDONE, NOW)
    run(disk_insert, other, NOW)
    with pytest.raises(ActionFailed, match="there is no disk"):
        run(disks.require_disk, DISK.id)
    assert run(disks.require_disk, OTHER).name == "disk"


def test_move_of_a_saga_is_its_own(run: Run) -> None:
    in_state(run, DiskState.IMPORT_READY)
    start = run(disk_move, DISK.id, Move.FINALIZING_STARTED, NOW, saga_id=SAGA)
    assert run(disk_move, DISK.id, Move.FINALIZING_STARTED, NOW, saga_id=SAGA) == start
    with pytest.raises(Conflict, match="is finalizing"):
        run(disk_move, DISK.id, Move.FINALIZING_STARTED, NOW, saga_id=OTHER)
    with pytest.raises(Conflict, match="is finalizing"):
        run(disk_move, DISK.id, Move.FINALIZED, NOW)
    assert run(disks.disk_move_on, DISK.id, Move.FINALIZED, NOW, saga_id=OTHER) is Outcome.ALREADY
    assert run(disks.disk_in_hand, DISK.id, SAGA)
    assert run(disks.disk_move_on, DISK.id, Move.FINALIZED, NOW, saga_id=SAGA) is Outcome.UPDATED
    assert run(disks.disk_move_on, DISK.id, Move.FINALIZED, NOW, saga_id=SAGA) is Outcome.ALREADY
    assert not run(disks.disk_in_hand, DISK.id, SAGA)
    assert run(disk_get, DISK.id).state == "detached"


def test_move_away_from_one_generation_is_made_from_no_other(run: Run) -> None:
    in_state(run, DiskState.MAINTENANCE)
    with pytest.raises(Conflict):
        run(disk_move, DISK.id, Move.MAINTENANCE_ENDED, NOW, generation=7)
    assert run(disk_move, DISK.id, Move.MAINTENANCE_ENDED, NOW, generation=1) == 2
    assert run(disk_move, DISK.id, Move.MAINTENANCE_ENDED, NOW, generation=1) == 2


def test_user_is_refused_what_is_done_already(run: Run) -> None:
    in_state(run, DiskState.IMPORTING_FROM_BULK_WRITES)
    with pytest.raises(ActionFailed, match="must be import_ready for this") as caught:
        run(disks.disk_move_strictly, DISK.id, Move.BULK_WRITE_STARTED, NOW)
    assert caught.value.kind == "invalid_request"
    assert run(disks.disk_move_strictly, DISK.id, Move.BULK_WRITE_STOPPED, NOW) == 2


def test_faulted_disk_that_is_attached_is_not_deleted(run: Run) -> None:
    in_state(run, DiskState.FAULTED)
    run(lambda c: c.execute(update(schema.disk).values(attach_instance_id=INSTANCE)) and None)
    with pytest.raises(Conflict, match="is faulted"):
        run(disk_move, DISK.id, Move.DELETED, NOW)


def test_pantry_that_was_recorded_stays(run: Run) -> None:
    run(disk_insert, DISK, NOW)
    assert run(disks.disk_pantry_record, DISK.id, PANTRY, NOW) == PANTRY
    assert run(disks.disk_pantry_record, DISK.id, ANOTHER_PANTRY, NOW) == PANTRY
    assert run(disk_get, DISK.id).pantry == PANTRY
    run(disks.disk_pantry_clear, DISK.id, NOW)
    assert run(disk_get, DISK.id).pantry is None
    with pytest.raises(NotFound):
        run(disks.disk_pantry_record, OTHER, PANTRY, NOW)


def test_every_disk_is_selected_as_it_is(run: Run) -> None:
    run(disk_insert, DISK, NOW)
    run(lambda c: c.execute(insert(schema.disk_type_crucible).values(disk_id=OTHER, volume_id=OTHER)) and None)
    rows = run(lambda c: c.execute(disks.disks_selected()).all())
    assert [disks.disk_of_row(row).id for row in rows] == [DISK.id]
