"""What may happen to a region and to a running snapshot, as executed tables (apis-and-tools.md §1.3, §1.4).

What it is for: :data:`REGION_TRANSITIONS` and :data:`RUN_TRANSITIONS` give for a state and an event the state after it.
Rows that lead back to their state are there on purpose: a request that is repeated, and news that come too late.

What it guarantees: what a table does not list is a defect of this program, and raises. A region's states are those that
clients see and one more, *creating*: a clone is under way. It is shown and stored as *requested*, so that a clone which
a restart interrupts begins again.
"""

from __future__ import annotations

from enum import Enum

from crucible_emu.agent.documents import State
from crucible_emu.errors import LocalError


class RegionState(Enum):
    """State of a region inside the agent."""

    REQUESTED = "requested"
    CREATING = "creating"
    """Its clone runs in the background."""
    CREATED = "created"
    TOMBSTONED = "tombstoned"
    """It shall go, and may not be gone yet."""
    DESTROYED = "destroyed"
    FAILED = "failed"

    @property
    def shown(self) -> State:
        """What clients and the data file see."""
        return State.REQUESTED if self is RegionState.CREATING else State(self.value)


class RegionEvent(Enum):
    """What happens to a region."""

    CLONE_BEGINS = "its clone begins"
    MADE = "it is made"
    NOT_MADE = "it could not be made"
    DELETE = "DELETE"
    REMOVED = "it is removed"
    NOT_REMOVED = "it could not be removed"


_R, _E = RegionState, RegionEvent

REGION_TRANSITIONS: dict[tuple[RegionState, RegionEvent], RegionState] = {
    (_R.REQUESTED, _E.CLONE_BEGINS): _R.CREATING,
    (_R.REQUESTED, _E.MADE): _R.CREATED,
    (_R.REQUESTED, _E.NOT_MADE): _R.FAILED,
    (_R.CREATING, _E.MADE): _R.CREATED,
    (_R.CREATING, _E.NOT_MADE): _R.FAILED,
    (_R.CREATING, _E.DELETE): _R.CREATING,  # answered 503
    (_R.REQUESTED, _E.DELETE): _R.TOMBSTONED,
    (_R.CREATED, _E.DELETE): _R.TOMBSTONED,
    (_R.FAILED, _E.DELETE): _R.TOMBSTONED,
    (_R.TOMBSTONED, _E.DELETE): _R.TOMBSTONED,
    (_R.DESTROYED, _E.DELETE): _R.DESTROYED,
    # It was deleted while it was being made, or about to be.
    (_R.TOMBSTONED, _E.CLONE_BEGINS): _R.TOMBSTONED,
    (_R.TOMBSTONED, _E.MADE): _R.TOMBSTONED,
    (_R.TOMBSTONED, _E.NOT_MADE): _R.TOMBSTONED,
    (_R.TOMBSTONED, _E.REMOVED): _R.DESTROYED,
    (_R.TOMBSTONED, _E.NOT_REMOVED): _R.FAILED,
}


class RunEvent(Enum):
    """What happens to a running snapshot."""

    STARTED = "its Downstairs runs"
    CANNOT_RUN = "its Downstairs will never run"
    STOP = "DELETE"
    STOPPED = "its Downstairs has ended"


_S, _V = State, RunEvent

RUN_TRANSITIONS: dict[tuple[State, RunEvent], State] = {
    (_S.REQUESTED, _V.STARTED): _S.CREATED,
    (_S.REQUESTED, _V.CANNOT_RUN): _S.FAILED,
    (_S.REQUESTED, _V.STOP): _S.TOMBSTONED,
    (_S.CREATED, _V.STOP): _S.TOMBSTONED,
    (_S.TOMBSTONED, _V.STOP): _S.TOMBSTONED,
    (_S.DESTROYED, _V.STOP): _S.DESTROYED,
    # It was stopped while it was being started.
    (_S.TOMBSTONED, _V.STARTED): _S.TOMBSTONED,
    (_S.TOMBSTONED, _V.CANNOT_RUN): _S.TOMBSTONED,
    (_S.TOMBSTONED, _V.STOPPED): _S.DESTROYED,
}

OCCUPIES_PORT = frozenset({State.REQUESTED, State.CREATED, State.TOMBSTONED, State.FAILED})
"""States in which a record keeps its port (§1.5); only *destroyed* gives it back."""


def after_region(state: RegionState, event: RegionEvent) -> RegionState:
    """Where ``event`` leads a region. Raises :class:`LocalError` for what cannot happen."""
    try:
        return REGION_TRANSITIONS[state, event]
    except KeyError:
        raise LocalError(f"a region that is {state.value} cannot see the event {event.value!r}") from None


def after_run(state: State, event: RunEvent) -> State:
    """Where ``event`` leads a running snapshot. Raises :class:`LocalError` for what cannot happen."""
    try:
        return RUN_TRANSITIONS[state, event]
    except KeyError:
        raise LocalError(f"a running snapshot that is {state.value} cannot see the event {event.value!r}") from None
