"""What may happen to one Downstairs process, as a table that the code executes (upstairs-volume.md §16.2).

What it is for: :data:`TRANSITIONS` gives for a state and an event the state after it, and the one thing to be done.
The seven states are those of the real control API, with their real meaning but for one: ``stopping``, which the real
program never sets, is here what a process is from the moment it was told to end until it has ended.

What it guarantees: an event that the table does not list for a state changes nothing; :func:`step` says so by
returning ``None``. Unlike in the data plane that is no defect here: a person may start what runs, and a process may end
just before it is told to.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ProcessState(Enum):
    """State of a Downstairs process; the values are those of the control API."""

    STOPPED = "stopped"
    """Never started."""
    STARTING = "starting"
    """Started, and cannot be reached yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Told to end, and has not ended yet."""
    EXIT = "exit"
    """Ended by a signal, or as it was told to."""
    ERROR = "error"
    """Could not be started at all."""
    FAILED = "failed"
    """Ended by itself with an exit code; it is not restarted automatically."""


class Event(Enum):
    """What happens to a process."""

    START = "start is asked for"
    STOP = "an end without grace is asked for"
    END = "an orderly end is asked for"
    READY = "it can be reached"
    SIGNALLED = "it ended by a signal"
    EXITED = "it ended with an exit code"
    UNSTARTABLE = "it could not be started"


class Doing(Enum):
    """What a transition asks for."""

    NOTHING = "nothing"
    SPAWN = "start a process"
    KILL = "send SIGKILL"
    TERMINATE = "send SIGTERM"
    START_AGAIN = "start again as soon as it has ended"


class Transition(NamedTuple):
    """Where an event leads, and what is to be done."""

    after: ProcessState
    doing: Doing = Doing.NOTHING


_S = ProcessState

TRANSITIONS: dict[tuple[ProcessState, Event], Transition] = {
    (_S.STOPPED, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.EXIT, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.ERROR, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    (_S.FAILED, Event.START): Transition(_S.STARTING, Doing.SPAWN),
    # Somebody stops and starts without waiting in between: the port is free only when the old process is gone.
    (_S.STOPPING, Event.START): Transition(_S.STOPPING, Doing.START_AGAIN),
    (_S.STARTING, Event.READY): Transition(_S.RUNNING),
    (_S.STARTING, Event.UNSTARTABLE): Transition(_S.ERROR),
    (_S.STOPPING, Event.UNSTARTABLE): Transition(_S.ERROR),
    (_S.STARTING, Event.STOP): Transition(_S.STOPPING, Doing.KILL),
    (_S.RUNNING, Event.STOP): Transition(_S.STOPPING, Doing.KILL),
    (_S.STOPPING, Event.STOP): Transition(_S.STOPPING, Doing.KILL),
    (_S.STARTING, Event.END): Transition(_S.STOPPING, Doing.TERMINATE),
    (_S.RUNNING, Event.END): Transition(_S.STOPPING, Doing.TERMINATE),
    (_S.STARTING, Event.SIGNALLED): Transition(_S.EXIT),
    (_S.RUNNING, Event.SIGNALLED): Transition(_S.EXIT),
    (_S.STOPPING, Event.SIGNALLED): Transition(_S.EXIT),
    (_S.STARTING, Event.EXITED): Transition(_S.FAILED),
    (_S.RUNNING, Event.EXITED): Transition(_S.FAILED),
    (_S.STOPPING, Event.EXITED): Transition(_S.EXIT),
}

HAS_PROCESS = frozenset({_S.STARTING, _S.RUNNING, _S.STOPPING})
"""States in which there is, or is about to be, a process."""


def step(state: ProcessState, event: Event) -> Transition | None:
    """Where ``event`` leads from ``state``; ``None`` where it changes nothing."""
    return TRANSITIONS.get((state, event))
