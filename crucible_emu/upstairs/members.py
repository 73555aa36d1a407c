"""Who takes part: the Upstairs itself, and what it knows of each replica."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from crucible_emu.upstairs.reconciliation import ExtentVersions
from crucible_emu.upstairs.states import INITIAL_CLIENT_STATE, ClientState
from crucible_emu.wire import messages as m


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this Upstairs is and what it expects. ``remote``: some replica is reached by messages that it may reorder,
    so jobs need dependencies and barriers; replicas in this process run jobs in order of arrival and need neither."""

    upstairs_id: UUID
    session_id: UUID
    encrypted: bool = False
    read_only: bool = False
    remote: bool = True


class Client:
    """What the Upstairs knows of one replica.

    ``last_flush``: the id of the newest flush that it acknowledged since the set was made equal. ``knows_from``: jobs
    with lower ids were never sent over its connection. ``refusals``: how often in a row it closed the connection when
    asked for the promotion; ``calls_missed``: how often in a row it could not be reached since it went away. The other
    counters are those of §15.2.
    """

    __slots__ = (
        "calls_missed",
        "connected",
        "connection_id",
        "errors",
        "extents_confirmed",
        "extents_repaired",
        "index",
        "knows_from",
        "last_flush",
        "live_repair_aborted",
        "live_repair_completed",
        "refusals",
        "region_uuid",
        "repair_address",
        "replaced",
        "ro_lr_skipped",
        "state",
        "stop_requested",
        "target",
        "versions",
    )

    def __init__(self, index: int) -> None:
        self.target = ""
        self.last_flush: int | None = None
        self.knows_from = 0
        self.connected = self.replaced = self.ro_lr_skipped = self.refusals = self.calls_missed = 0
        self.live_repair_completed = self.live_repair_aborted = 0
        self.extents_repaired = self.extents_confirmed = 0
        self.index = index
        self.state: ClientState = INITIAL_CLIENT_STATE
        self.connection_id = 0
        self.stop_requested = False
        self.repair_address: m.SocketAddress | None = None
        self.region_uuid: UUID | None = None
        self.versions: ExtentVersions | None = None
        self.errors = 0
