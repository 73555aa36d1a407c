"""What may happen to an instance, as a table that the code executes (apis-and-tools.md §6.1, §6.3).

What it is for: :data:`TRANSITIONS` gives for a state and an event the state after it, and the one thing to be done.
The ten states are those of the Propolis document. Two are not as large here as there: ``Migrating`` is that of a target
only (a source is not told, it finds its disks taken), and no transition leads to ``Repairing``, as in the real program.

What it guarantees: a request that the table does not list for a state is refused; a report of the driver that it does
not list comes too late, because something else was asked for meanwhile, and changes nothing. A request that is already
being carried out is listed, and does nothing.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple


class InstanceState(StrEnum):
    """State of an instance; the values are those of the document."""

    CREATING = "Creating"
    """It is there, and nobody has asked for it to run."""
    STARTING = "Starting"
    """Its disks are being activated."""
    RUNNING = "Running"
    """A guest may use its disks."""
    STOPPING = "Stopping"
    """Its disks are being flushed and taken out of service."""
    STOPPED = "Stopped"
    """No disk is in service; what it held is being given back."""
    REBOOTING = "Rebooting"
    """The guest is sent away and the disks are flushed; they stay in service."""
    MIGRATING = "Migrating"
    """It comes from another host: its spec is fetched and its disks are being activated."""
    REPAIRING = "Repairing"
    """Never reached; a member of the document."""
    FAILED = "Failed"
    """It could not start, or broke. It holds nothing."""
    DESTROYED = "Destroyed"
    """It has ended in order. It holds nothing."""


class Event(Enum):
    """What happens to an instance."""

    RUN = "Run is asked for"
    STOP = "Stop is asked for"
    REBOOT = "Reboot is asked for"
    PREPARED = "its disks are built"
    STARTED = "its disks are active and can be reached"
    RESET = "the guest is gone and everything is durable"
    LEFT = "no disk is in service"
    RELEASED = "it holds nothing"
    BROKEN = "it cannot go on"


class Doing(Enum):
    """What a transition asks for."""

    NOTHING = "nothing"
    PREPARE = "build the disks"
    START = "activate the disks and open their doors"
    RESET = "close the doors, flush, and open the doors again"
    LEAVE = "give up what is under way, close the doors, flush and deactivate"
    RELEASE = "give back everything"


class Transition(NamedTuple):
    """Where an event leads, and what is to be done."""

    after: InstanceState
    doing: Doing = Doing.NOTHING


_S = InstanceState

TRANSITIONS: dict[tuple[InstanceState, Event], Transition] = {
    (_S.CREATING, Event.PREPARED): Transition(_S.CREATING),
    (_S.CREATING, Event.RUN): Transition(_S.STARTING, Doing.START),
    (_S.STARTING, Event.PREPARED): Transition(_S.STARTING),
    (_S.STARTING, Event.RUN): Transition(_S.STARTING),
    (_S.STARTING, Event.STARTED): Transition(_S.RUNNING),
    (_S.MIGRATING, Event.PREPARED): Transition(_S.MIGRATING, Doing.START),
    (_S.MIGRATING, Event.RUN): Transition(_S.MIGRATING),
    (_S.MIGRATING, Event.STARTED): Transition(_S.RUNNING),
    (_S.RUNNING, Event.RUN): Transition(_S.RUNNING),
    (_S.RUNNING, Event.REBOOT): Transition(_S.REBOOTING, Doing.RESET),
    (_S.REBOOTING, Event.REBOOT): Transition(_S.REBOOTING),
    (_S.REBOOTING, Event.RUN): Transition(_S.REBOOTING),
    (_S.REBOOTING, Event.RESET): Transition(_S.RUNNING),
    # A stop does not wait for what may never end: an activation whose target is gone is given up.
    (_S.CREATING, Event.STOP): Transition(_S.STOPPING, Doing.LEAVE),
    (_S.STARTING, Event.STOP): Transition(_S.STOPPING, Doing.LEAVE),
    (_S.MIGRATING, Event.STOP): Transition(_S.STOPPING, Doing.LEAVE),
    (_S.RUNNING, Event.STOP): Transition(_S.STOPPING, Doing.LEAVE),
    (_S.REBOOTING, Event.STOP): Transition(_S.STOPPING, Doing.LEAVE),
    (_S.STOPPING, Event.STOP): Transition(_S.STOPPING),
    (_S.STOPPING, Event.LEFT): Transition(_S.STOPPED, Doing.RELEASE),
    (_S.STOPPED, Event.STOP): Transition(_S.STOPPED),
    (_S.STOPPED, Event.RELEASED): Transition(_S.DESTROYED),
    (_S.DESTROYED, Event.STOP): Transition(_S.DESTROYED),
    (_S.CREATING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.STARTING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.MIGRATING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.RUNNING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.REBOOTING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.STOPPING, Event.BROKEN): Transition(_S.FAILED, Doing.LEAVE),
    (_S.FAILED, Event.LEFT): Transition(_S.FAILED, Doing.RELEASE),
}

REQUESTS = {"Run": Event.RUN, "Stop": Event.STOP, "Reboot": Event.REBOOT}
"""The requests of the document."""

ALIVE = frozenset({_S.CREATING, _S.STARTING, _S.RUNNING, _S.REBOOTING, _S.MIGRATING})
"""States in which an instance has, or is about to have, disks that can be asked about and changed."""

FINAL = frozenset({_S.FAILED, _S.DESTROYED})
"""States that nothing leaves."""


def step(state: InstanceState, event: Event) -> Transition | None:
    """Where ``event`` leads from ``state``; ``None`` where the table does not list it."""
    return TRANSITIONS.get((state, event))
