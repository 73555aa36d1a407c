"""What may happen to one service of a rack, as a table that the code executes.

What it is for: :data:`TRANSITIONS` gives for a state and an event the state after it, and the one thing to be done. It
differs from :mod:`crucible_emu.supervisor.states`, which is the real ``dsc``'s: a service that ends by itself is
started again after a while, and one that a person killed stays dead until that person starts it.

What it guarantees: a process is started only from states without one, so a service has at most one (*safety*). An event
that the table does not list for a state changes nothing: a person may kill what is dead, and a process may end just
before it is told to.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ServiceState(Enum):
    """State of a service, as ``rack status`` shows it."""

    STOPPED = "stopped"
    """Not started, or ended as it was told to."""
    STARTING = "starting"
    """Started, and cannot be reached yet."""
    READY = "ready"
    WAITING = "waiting"
    """Ended by itself; it is started again in a while."""
    FAILED = "failed"
    """Ended by itself, and starting it again would not help or has not helped."""
    STOPPING = "stopping"
    """Told to end, and has not ended yet."""
    KILLING = "killing"
    """SIGKILL was sent, and something of it is still there."""
    KILLED = "killed"
    """Dead until somebody starts it."""


class Event(Enum):
    """What happens to a service."""

    START = "start is asked for"
    END = "an orderly end is asked for"
    KILL = "sudden death is asked for"
    READY = "it can be reached"
    ENDED = "its process is gone"
    HOPELESS = "its process is gone, and another one would end the same way"
    LEFT = "its process is gone just before it was told to end"
    DUE = "it has waited long enough"


class Doing(Enum):
    """What a transition asks for."""

    NOTHING = "nothing"
    SPAWN = "start a process"
    TERMINATE = "send SIGTERM"
    KILL = "send SIGKILL"
    WAIT = "let the time before the next start begin"
    START_AGAIN = "start again as soon as it is gone"


class Transition(NamedTuple):
    """Where an event leads, and what is to be done."""

    after: ServiceState
    doing: Doing = Doing.NOTHING


_S = ServiceState

TRANSITIONS: dict[tuple[ServiceState, Event], Transition] = {
    (_S.STOPPED, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.WAITING, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.FAILED, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.KILLED, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    # Its port is free only when the old process is gone.
    (_S.KILLING, Event.START): Transition(_S.KILLING, Doing.START_AGAIN),
    (_S.STARTING, Event.READY): Transition(_S.READY),
    (_S.STARTING, Event.ENDED): Transition(_S.WAITING, Doing.WAIT),
    (_S.READY, Event.ENDED): Transition(_S.WAITING, Doing.WAIT),
    (_S.STARTING, Event.HOPELESS): Transition(_S.FAILED),
    (_S.READY, Event.HOPELESS): Transition(_S.FAILED),
    (_S.STARTING, Event.LEFT): Transition(_S.STOPPED),
    (_S.READY, Event.LEFT): Transition(_S.STOPPED),
    (_S.STOPPING, Event.ENDED): Transition(_S.STOPPED),
    (_S.KILLING, Event.ENDED): Transition(_S.KILLED),
    (_S.WAITING, Event.DUE): Transition(_S.STARTING, Doing.SPAWN),
    (_S.STARTING, Event.END): Transition(_S.STOPPING, Doing.TERMINATE),
    (_S.READY, Event.END): Transition(_S.STOPPING, Doing.TERMINATE),
    (_S.WAITING, Event.END): Transition(_S.STOPPED),
    (_S.FAILED, Event.END): Transition(_S.STOPPED),
    (_S.STOPPED, Event.KILL): Transition(_S.KILLED),
    (_S.WAITING, Event.KILL): Transition(_S.KILLED),
    (_S.FAILED, Event.KILL): Transition(_S.KILLED),
    (_S.STARTING, Event.KILL): Transition(_S.KILLING, Doing.KILL),
    (_S.READY, Event.KILL): Transition(_S.KILLING, Doing.KILL),
    (_S.STOPPING, Event.KILL): Transition(_S.KILLING, Doing.KILL),
}

HAS_PROCESS = frozenset({_S.STARTING, _S.READY, _S.STOPPING, _S.KILLING})
"""States in which there is, or is about to be, a process."""


def step(state: ServiceState, event: Event) -> Transition | None:
    """Where ``event`` leads from ``state``; ``None`` where it changes nothing."""
    return TRANSITIONS.get((state, event))
