"""What the Upstairs core asks the world to do: the only way out of the pure state machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crucible_emu.errors import CrucibleError
from crucible_emu.upstairs.jobs import Job
from crucible_emu.wire import messages as m


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection for ``client``; wait the reconnect delay first when ``again``."""

    client: int
    connection_id: int
    again: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message, or all operations of a job, to ``client``."""

    client: int
    item: m.Message | Job


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the connection of ``client``; report its end with ``stopped``."""

    client: int
    connection_id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell whoever gave ``handle`` that it is done, or why it failed."""

    handle: Any
    error: CrucibleError | None


@dataclass(frozen=True, slots=True)
class RepairNews:
    """A repair or reconciliation has begun, gone on, or ended (§15.4).

    ``what``: "start", "progress" or "finish"; ``repair_type``: "live" or "reconciliation"; ``number`` tells the runs
    of one Upstairs apart. ``current`` of ``total`` counts extents in a live repair, steps in a reconciliation.
    """

    what: str
    repair_type: str
    number: int
    clients: tuple[int, ...]
    current: int
    total: int
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Something a person may want to know: goes to the log. ``fields`` never hold a key."""

    level: str
    event: str
    fields: dict[str, Any]


Action = Connect | Send | Hangup | Answer | Report | RepairNews
