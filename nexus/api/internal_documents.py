"""The documents of the internal API, by the names and members of ``nexus-internal-1.0.0.json``.

What it is for: what an Upstairs says of its repairs, and a sled agent of its instances (apis-and-tools.md §5.3).
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from nexus.api.external_documents import DiskState, Ping
from nexus.api.members import Document, Moment, Uint64
from nexus.volumes import Address, MalformedVolume

Count = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _address(text: str) -> str:
    try:
        found = Address.parse(text)
    except MalformedVolume as error:
        raise ValueError(str(error)) from None
    if found.port == 0 or "%" in found.ip:
        raise ValueError("a target is [IPv6]:port, with a port that is not 0 and without a zone")
    return str(found)


class DownstairsUnderRepair(Document):
    """A copy that is repaired. ``target_addr``: ``[IPv6]:port`` of its Downstairs."""

    region_uuid: UUID
    target_addr: Annotated[str, AfterValidator(_address)]


class RepairStartInfo(Document):
    """A repair has begun."""

    time: Moment
    session_id: UUID
    repair_id: UUID
    repair_type: Literal["live", "reconciliation"]
    repairs: tuple[DownstairsUnderRepair, ...]


class RepairFinishInfo(RepairStartInfo):
    """A repair has ended."""

    aborted: bool


class RepairProgress(Document):
    """How far a repair is."""

    time: Moment
    current_item: Count
    total_items: Count


class DownstairsClientStopRequest(Document):
    """An Upstairs asked its client of a Downstairs to stop."""

    time: Moment
    reason: Literal[
        "replacing",
        "disabled",
        "failed_reconcile",
        "i_o_error",
        "bad_negotiation_order",
        "incompatible",
        "failed_live_repair",
        "too_many_outstanding_jobs",
        "deactivated",
    ]


class DownstairsClientStopped(Document):
    """An Upstairs' client of a Downstairs has stopped."""

    time: Moment
    reason: Literal[
        "connection_timeout",
        "connection_failed",
        "timeout",
        "write_failed",
        "read_failed",
        "requested_stop",
        "finished",
        "queue_closed",
        "receive_task_cancelled",
    ]


class DiskRuntimeState(Document):
    """What nobody sends any more."""

    disk_state: DiskState
    gen: Uint64
    time_updated: Moment


class VmmRuntimeState(Document):
    """How far a process is that runs an instance; of two the one with the higher ``gen`` is newer."""

    gen: Uint64
    state: Literal["starting", "running", "stopping", "stopped", "rebooting", "migrating", "failed", "destroyed"]
    time_updated: Moment


class MigrationRuntimeState(Document):
    """How far a migration is."""

    gen: Uint64
    migration_id: UUID
    state: Literal["pending", "in_progress", "failed", "completed"]
    time_updated: Moment


class SledVmmState(Document):
    """What a sled agent says of a process. Migrations are looked at by nobody here."""

    vmm_state: VmmRuntimeState
    migration_in: MigrationRuntimeState | None = None
    migration_out: MigrationRuntimeState | None = None


__all__ = [
    "DiskRuntimeState",
    "DownstairsClientStopRequest",
    "DownstairsClientStopped",
    "DownstairsUnderRepair",
    "MigrationRuntimeState",
    "Ping",
    "RepairFinishInfo",
    "RepairProgress",
    "RepairStartInfo",
    "SledVmmState",
    "VmmRuntimeState",
]
