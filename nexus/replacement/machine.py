"""A state machine of a replacement: a table that the code runs and that the documents are drawn from (nexus.md §2).

What it is for: a request is moved on by whoever finds it, and several Nexus find it at the same time. Each edge of a
machine is one statement that changes the row if it is as the edge expects, so all but one lose, and who runs the same
node a second time recognises its own work (:func:`nexus.db.transitions.update_and_check`).

The lease (§1.6). ``operating_saga_id`` is set exactly while a row is in an intermediate state, and is the id of the
engine's saga: only that one moves the row on or back. So :data:`Hold.TAKE` expects that nobody has it,
:data:`Hold.GIVE` that this saga has it, and :data:`Hold.NONE` is for the few edges between states at rest.

What it guarantees (R1, *safety*): :func:`move` takes no edge that is not in the table, and takes it only from the state
and out of the hand that the table names. A saga that gave the lease back, and does so again after a crash, is told that
it did (:func:`given_before`). Where the edge ends the replacement, the volume's lock is given back in the same
transaction: a conflict rolls both back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table

from nexus.db import Conflict
from nexus.db.transitions import HOLDER, Outcome, update_and_check
from nexus.volumes import RepairLocks
from nexus.volumes.repair_lock import hand_on, held_by

STATE = "replacement_state"
S = TypeVar("S", bound=StrEnum)


class Hold(Enum):
    """What an edge does to the lease of the row."""

    TAKE = "takes it"
    GIVE = "gives it back"
    NONE = "nobody has it"


@dataclass(frozen=True, slots=True)
class Edge(Generic[S]):
    """One line of the table. ``number``: in nexus.md §2. ``records``: columns that are told with the move, and that a
    row which has been moved already must show; ``clears``: columns that become NULL; ``expects_null``: columns that are
    NULL before. ``ends``: the lock of the volume is given back. ``back``: it undoes another (drawn dashed)."""

    number: int
    source: S
    target: S
    hold: Hold
    who: str
    records: tuple[str, ...] = ()
    clears: tuple[str, ...] = ()
    expects_null: tuple[str, ...] = ()
    ends: bool = False
    back: bool = False


@dataclass(frozen=True, slots=True)
class Machine(Generic[S]):
    """``created``: the state of a new row, and who makes it. ``edges``: by their names, which are an enumeration."""

    name: str
    table: Table
    created: S
    created_by: str
    edges: Mapping[Enum, Edge[S]]
    heir: Callable[[Connection, str], str | None] = field(default=lambda connection, row_id: None)
    """Who goes on holding the volume's lock when the row is done with it; nobody, as a rule."""


def move(
    connection: Connection,
    machine: Machine[Any],
    name: Enum,
    row_id: str,
    *,
    saga_id: str | None = None,
    locks: RepairLocks | None = None,
    **recorded: Any,
) -> Outcome:
    """Take the edge ``name`` with the row ``row_id``, or find that it was taken. ``saga_id``: who takes or gives the
    lease. ``locks``: needed where the edge ends the replacement. ``recorded``: the edge's columns.

    Raises :class:`~nexus.db.Conflict`, :class:`~nexus.db.NotFound`."""
    edge = machine.edges[name]
    _require_arguments(edge, name, saga_id, locks, recorded)
    expected: dict[str, Any] = {STATE: edge.source, HOLDER: saga_id if edge.hold is Hold.GIVE else None}
    expected |= dict.fromkeys(edge.expects_null)
    new: dict[str, Any] = {STATE: edge.target, HOLDER: saga_id if edge.hold is Hold.TAKE else None}
    new |= dict.fromkeys(edge.clears) | recorded
    same = {STATE: edge.target} if edge.ends else new
    try:
        outcome = update_and_check(connection, machine.table, row_id, expected=expected, new=new, same=same)
    except Conflict as conflict:
        if not given_before(edge, conflict, saga_id):
            raise
        outcome = Outcome.ALREADY
    if edge.ends and locks is not None:
        _release(connection, machine, locks, row_id)
    return outcome


def given_before(edge: Edge[Any], conflict: Conflict, saga_id: str | None) -> bool:
    """Whether an earlier run of this node gave the lease back (*safety*). Only who has the lease moves the row, and the
    saga had it; so if it has it no more, it gave it, and the row may have been moved on since by anybody. To take that
    for a failure would undo what others build on."""
    return edge.hold is Hold.GIVE and conflict.operating_saga_id != saga_id


def _release(connection: Connection, machine: Machine[Any], locks: RepairLocks, row_id: str) -> None:
    """Give back every lock that the request or step has."""
    for held in held_by(connection, row_id):
        heir = machine.heir(connection, row_id)
        if heir is None:
            locks.volume_repair_delete(connection, held.volume_id, row_id)
        else:
            hand_on(connection, held.volume_id, row_id, heir)


def _require_arguments(
    edge: Edge[Any], name: Enum, saga_id: str | None, locks: RepairLocks | None, recorded: Mapping[str, Any]
) -> None:
    """A mistake in the program, and none in the world."""
    if (saga_id is None) is not (edge.hold is Hold.NONE):
        raise ValueError(
            f"{name}: this edge {edge.hold.value}, so a saga is {'needed' if saga_id is None else 'wrong'}"
        )
    if edge.ends and locks is None:
        raise ValueError(f"{name}: this edge gives the volume's lock back, so it needs the locks")
    if set(recorded) != set(edge.records):
        raise ValueError(f"{name}: this edge records {', '.join(edge.records) or 'nothing'}, not {', '.join(recorded)}")
