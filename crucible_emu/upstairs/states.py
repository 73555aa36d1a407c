"""The two state machines of an Upstairs, as tables which the code runs (upstairs-volume.md §2, §3).

What it is for: everything that may happen to a replica's connection (*client*) and to the Upstairs as a whole stands
in :data:`CLIENT_TRANSITIONS` and :data:`UPSTAIRS_TRANSITIONS`, back edges included. :func:`next_client_state` and
:func:`next_upstairs_state` look the answer up; nobody assigns a state by any other way.

What it guarantees: a transition that is not listed raises :class:`IllegalTransition`. Where a peer's message caused it,
that peer's connection is dropped (out of order); where we caused it, it is a defect and tears the Upstairs down rather
than going on wrongly. The real program aborts on three combinations which its own rules produce (§19, defect 1); they
are listed here and therefore legal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class IllegalTransition(Exception):
    """The tables do not list this event in this state."""


class Mode(Enum):
    """What a connection will do once it is negotiated (§2.1)."""

    NEW = "New"
    OFFLINE = "Offline"
    FAULTED = "Faulted"
    REPLACED = "Replaced"


class Phase(Enum):
    """Where a client is: how far a connection is negotiated, or what it does afterwards (§2.1)."""

    WAIT_CONNECT = "WaitConnect"
    START = "Start"
    WAIT_FOR_PROMOTE = "WaitForPromote"
    WAIT_FOR_REGION_INFO = "WaitForRegionInfo"
    GET_EXTENT_VERSIONS = "GetExtentVersions"
    WAIT_QUORUM = "WaitQuorum"
    RECONCILE = "Reconcile"
    LIVE_REPAIR_READY = "LiveRepairReady"
    ACTIVE = "Active"
    LIVE_REPAIR = "LiveRepair"
    STOPPING = "Stopping"


class StopReason(Enum):
    """Why a connection is being closed by us (§2.1)."""

    REPLACING = "Replacing"
    DISABLED = "Disabled"
    DEACTIVATED = "Deactivated"
    FAILED_RECONCILE = "NegotiationFailed(FailedReconcile)"
    BAD_NEGOTIATION_ORDER = "NegotiationFailed(BadNegotiationOrder)"
    INCOMPATIBLE_VERSION = "NegotiationFailed(IncompatibleVersion)"
    INCOMPATIBLE_SESSION = "NegotiationFailed(IncompatibleSession)"
    INCOMPATIBLE_SETTINGS = "NegotiationFailed(IncompatibleSettings)"
    IO_ERROR = "Fault(IOError)"
    FAILED_LIVE_REPAIR = "Fault(FailedLiveRepair)"
    OFFLINE_DEACTIVATED = "Fault(OfflineDeactivated)"


NEGOTIATION_FAILURES = frozenset(
    {
        StopReason.FAILED_RECONCILE,
        StopReason.BAD_NEGOTIATION_ORDER,
        StopReason.INCOMPATIBLE_VERSION,
        StopReason.INCOMPATIBLE_SESSION,
        StopReason.INCOMPATIBLE_SETTINGS,
    }
)
FAULTS = frozenset({StopReason.IO_ERROR, StopReason.FAILED_LIVE_REPAIR, StopReason.OFFLINE_DEACTIVATED})


@dataclass(frozen=True, slots=True)
class ClientState:
    """State of one client. ``mode`` says what the connection is for; once Active or in LiveRepair it is history."""

    phase: Phase
    mode: Mode = Mode.NEW
    reason: StopReason | None = None

    @property
    def connecting(self) -> bool:
        return self.phase in CONNECTING

    @property
    def accepts_io(self) -> bool:
        """Counts for admission (§2.6): Active, LiveRepair, or Connecting while Offline."""
        return self.phase in (Phase.ACTIVE, Phase.LIVE_REPAIR) or (self.connecting and self.mode is Mode.OFFLINE)

    @property
    def parked(self) -> bool:
        """Exactly Connecting{New, WaitConnect}: what a deactivated client comes to rest in."""
        return self.phase is Phase.WAIT_CONNECT and self.mode is Mode.NEW

    def __str__(self) -> str:
        if self.phase is Phase.STOPPING:
            return f"Stopping({self.reason.value})" if self.reason else "Stopping"
        if self.connecting:
            return f"Connecting{{{self.mode.value}, {self.phase.value}}}"
        return str(self.phase.value)


CONNECTING = frozenset(
    {
        Phase.WAIT_CONNECT,
        Phase.START,
        Phase.WAIT_FOR_PROMOTE,
        Phase.WAIT_FOR_REGION_INFO,
        Phase.GET_EXTENT_VERSIONS,
        Phase.WAIT_QUORUM,
        Phase.RECONCILE,
        Phase.LIVE_REPAIR_READY,
    }
)
ANY_PHASE = frozenset(Phase)
NOT_STOPPING = ANY_PHASE - {Phase.STOPPING}
ANY_MODE = frozenset(Mode)
INITIAL_CLIENT_STATE = ClientState(Phase.WAIT_CONNECT)


class UpstairsState(Enum):
    """State of the Upstairs (§3)."""

    INITIALIZING = "Initializing"
    GO_ACTIVE = "GoActive"
    ACTIVE = "Active"
    DEACTIVATING = "Deactivating"
    DISABLED = "Disabled"


class ClientEvent(Enum):
    """What can happen to a client."""

    ACTIVATION_REQUESTED = "the guest asks to activate"
    YES_ITS_ME = "YesItsMe with our version"
    NOW_ACTIVE = "YouAreNowActive with our ids and generation"
    REGION_INFO = "a compatible RegionInfo"
    EXTENT_VERSIONS = "ExtentVersions"
    MISMATCHES_FOUND = "collation found extents to repair"
    ALL_NEED_REPAIR = "all three need repair: reconcile them"
    JOINED = "reconciled, nothing to reconcile, or read-only"
    LIVE_REPAIR_STARTED = "a live repair starts with this client"
    LIVE_REPAIR_SKIPPED = "live repair skipped, the Upstairs is read-only"
    LIVE_REPAIR_FINISHED = "the final flush of the repair succeeded"
    FELL_BEHIND = "owes too much to be replayed, or another client's repair starts"
    STOP = "we close the connection"
    STOPPED = "the connection's task has ended"


_UPSTAIRS_OPEN = frozenset({UpstairsState.ACTIVE, UpstairsState.GO_ACTIVE})
_NOT_YET_ACTIVE = frozenset({UpstairsState.INITIALIZING, UpstairsState.GO_ACTIVE})
ANY_UPSTAIRS = frozenset(UpstairsState)


@dataclass(frozen=True, slots=True)
class ClientTransition:
    """One row: in these phases and modes, on ``event``, while the Upstairs is in ``upstairs``, go to ``phase``.

    ``to_mode`` ``None`` keeps the mode. ``reasons`` restricts rows for a stopping client; ``replayable`` restricts
    rows to where the client's jobs can (``True``) or cannot (``False``) be replayed.
    """

    event: ClientEvent
    phases: frozenset[Phase]
    to_phase: Phase | None
    modes: frozenset[Mode] = ANY_MODE
    to_mode: Mode | None = None
    upstairs: frozenset[UpstairsState] = ANY_UPSTAIRS
    reasons: frozenset[StopReason] | None = None
    replayable: bool | None = None

    def matches(self, state: ClientState, upstairs: UpstairsState, replayable: bool) -> bool:
        return (
            state.phase in self.phases
            and state.mode in self.modes
            and upstairs in self.upstairs
            and (self.reasons is None or state.reason in self.reasons)
            and (self.replayable is None or self.replayable == replayable)
        )


def _phases(*phases: Phase) -> frozenset[Phase]:
    return frozenset(phases)


_E, _P, _M, _U = ClientEvent, Phase, Mode, UpstairsState

CLIENT_TRANSITIONS: tuple[ClientTransition, ...] = (
    # Negotiation, in the order of the messages (§2.3, rows 1 to 7).
    # Nothing is owed to a replay or a repair from before: activation makes all three equal anyway.
    ClientTransition(_E.ACTIVATION_REQUESTED, _phases(_P.WAIT_CONNECT), _P.START, to_mode=_M.NEW),
    ClientTransition(_E.YES_ITS_ME, _phases(_P.START), _P.WAIT_FOR_PROMOTE),
    ClientTransition(_E.NOW_ACTIVE, _phases(_P.WAIT_FOR_PROMOTE), _P.WAIT_FOR_REGION_INFO),
    ClientTransition(_E.REGION_INFO, _phases(_P.WAIT_FOR_REGION_INFO), _P.ACTIVE, frozenset({_M.OFFLINE})),
    ClientTransition(_E.REGION_INFO, _phases(_P.WAIT_FOR_REGION_INFO), _P.GET_EXTENT_VERSIONS, ANY_MODE - {_M.OFFLINE}),
    ClientTransition(_E.EXTENT_VERSIONS, _phases(_P.GET_EXTENT_VERSIONS), _P.WAIT_QUORUM, frozenset({_M.NEW})),
    ClientTransition(
        _E.EXTENT_VERSIONS,
        _phases(_P.GET_EXTENT_VERSIONS),
        _P.WAIT_QUORUM,
        frozenset({_M.REPLACED}),
        upstairs=_NOT_YET_ACTIVE,
    ),
    ClientTransition(
        _E.EXTENT_VERSIONS,
        _phases(_P.GET_EXTENT_VERSIONS),
        _P.LIVE_REPAIR_READY,
        frozenset({_M.FAULTED, _M.REPLACED}),
    ),
    # Into service (§2.3, rows 8 to 13).
    ClientTransition(_E.MISMATCHES_FOUND, _phases(_P.WAIT_QUORUM), _P.RECONCILE, to_mode=_M.NEW),
    ClientTransition(_E.ALL_NEED_REPAIR, _phases(_P.LIVE_REPAIR_READY), _P.RECONCILE, to_mode=_M.NEW),
    ClientTransition(_E.JOINED, _phases(_P.WAIT_QUORUM, _P.RECONCILE, _P.LIVE_REPAIR_READY), _P.ACTIVE),
    ClientTransition(_E.LIVE_REPAIR_STARTED, _phases(_P.LIVE_REPAIR_READY), _P.LIVE_REPAIR),
    ClientTransition(_E.LIVE_REPAIR_SKIPPED, _phases(_P.LIVE_REPAIR_READY), _P.ACTIVE),
    ClientTransition(_E.LIVE_REPAIR_FINISHED, _phases(_P.LIVE_REPAIR), _P.ACTIVE),
    ClientTransition(_E.FELL_BEHIND, CONNECTING, None, frozenset({_M.OFFLINE}), to_mode=_M.FAULTED),
    # Out of service: every reason (§2.3, rows 15 to 19).
    ClientTransition(_E.STOP, NOT_STOPPING, _P.STOPPING),
    # The task has ended; what the connection is for next (§2.4). First matching row counts.
    ClientTransition(
        _E.STOPPED, _phases(_P.ACTIVE), _P.START, to_mode=_M.OFFLINE, upstairs=_UPSTAIRS_OPEN, replayable=True
    ),
    ClientTransition(_E.STOPPED, _phases(_P.ACTIVE), _P.WAIT_CONNECT, to_mode=_M.OFFLINE, replayable=True),
    ClientTransition(
        _E.STOPPED, _phases(_P.ACTIVE, _P.LIVE_REPAIR), _P.START, to_mode=_M.FAULTED, upstairs=_UPSTAIRS_OPEN
    ),
    ClientTransition(_E.STOPPED, _phases(_P.ACTIVE, _P.LIVE_REPAIR), _P.WAIT_CONNECT, to_mode=_M.FAULTED),
    ClientTransition(
        _E.STOPPED,
        CONNECTING,
        _P.START,
        frozenset({_M.OFFLINE}),
        to_mode=_M.FAULTED,
        upstairs=_UPSTAIRS_OPEN,
        replayable=False,
    ),
    # The real program keeps mode New here and then waits for a quorum that nobody else waits for.
    ClientTransition(_E.STOPPED, _phases(_P.RECONCILE), _P.START, to_mode=_M.FAULTED, upstairs=frozenset({_U.ACTIVE})),
    ClientTransition(_E.STOPPED, CONNECTING, _P.START, upstairs=_UPSTAIRS_OPEN),
    ClientTransition(_E.STOPPED, CONNECTING, _P.WAIT_CONNECT),
    ClientTransition(
        _E.STOPPED, _phases(_P.STOPPING), _P.START, to_mode=_M.FAULTED, upstairs=_UPSTAIRS_OPEN, reasons=FAULTS
    ),
    ClientTransition(_E.STOPPED, _phases(_P.STOPPING), _P.WAIT_CONNECT, to_mode=_M.FAULTED, reasons=FAULTS),
    ClientTransition(
        _E.STOPPED,
        _phases(_P.STOPPING),
        _P.START,
        to_mode=_M.FAULTED,
        upstairs=frozenset({_U.ACTIVE}),
        reasons=NEGOTIATION_FAILURES,
    ),
    ClientTransition(
        _E.STOPPED,
        _phases(_P.STOPPING),
        _P.START,
        to_mode=_M.REPLACED,
        upstairs=frozenset({_U.ACTIVE}),
        reasons=frozenset({StopReason.REPLACING}),
    ),
    ClientTransition(_E.STOPPED, _phases(_P.STOPPING), _P.START, to_mode=_M.NEW, upstairs=_UPSTAIRS_OPEN),
    ClientTransition(_E.STOPPED, _phases(_P.STOPPING), _P.WAIT_CONNECT, to_mode=_M.NEW),
)

_CLIENT_ROWS: dict[ClientEvent, tuple[ClientTransition, ...]] = {
    event: tuple(row for row in CLIENT_TRANSITIONS if row.event is event) for event in ClientEvent
}


def next_client_state(
    state: ClientState,
    event: ClientEvent,
    upstairs: UpstairsState,
    *,
    replayable: bool = False,
    reason: StopReason | None = None,
) -> ClientState:
    """The state after ``event``, from the table. ``reason`` goes with STOP. Raises :class:`IllegalTransition`."""
    for row in _CLIENT_ROWS[event]:
        if row.matches(state, upstairs, replayable):
            return replace(
                state,
                phase=row.to_phase or state.phase,
                mode=row.to_mode or state.mode,
                reason=reason if event is ClientEvent.STOP else None,
            )
    raise IllegalTransition(f"client in {state}, Upstairs {upstairs.value}: {event.value}")


class UpstairsEvent(Enum):
    """What can happen to the Upstairs as a whole."""

    ACTIVATE = "activate"
    QUORUM = "quorum and reconciliation done, or the first read-only client is ready"
    DISABLE = "bad generation, settings or session; another Upstairs took over"
    DEACTIVATE = "deactivate"
    DEACTIVATED = "all clients are parked"


UPSTAIRS_TRANSITIONS: dict[tuple[UpstairsState, UpstairsEvent], UpstairsState] = {
    (_U.INITIALIZING, UpstairsEvent.ACTIVATE): _U.GO_ACTIVE,
    (_U.DISABLED, UpstairsEvent.ACTIVATE): _U.GO_ACTIVE,
    (_U.GO_ACTIVE, UpstairsEvent.QUORUM): _U.ACTIVE,
    (_U.GO_ACTIVE, UpstairsEvent.DISABLE): _U.DISABLED,
    (_U.ACTIVE, UpstairsEvent.DISABLE): _U.DISABLED,
    (_U.DEACTIVATING, UpstairsEvent.DISABLE): _U.DISABLED,
    (_U.DISABLED, UpstairsEvent.DISABLE): _U.DISABLED,
    (_U.ACTIVE, UpstairsEvent.DEACTIVATE): _U.DEACTIVATING,
    (_U.DEACTIVATING, UpstairsEvent.DEACTIVATED): _U.INITIALIZING,
}


def next_upstairs_state(state: UpstairsState, event: UpstairsEvent) -> UpstairsState:
    """The state after ``event``, from the table. Raises :class:`IllegalTransition`."""
    try:
        return UPSTAIRS_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"Upstairs {state.value}: {event.value}") from None
