"""The documents of our routes about replacements, ``/emulator/v1/replacements`` (nexus.md §4.11).

What it is for: an operator has to see three things: how far every replacement is, what those that stand still wait for
and since when, and what is lost and has no successor yet. The real rack's operator reads the database for it.

What it guarantees: no document has a key in it, for none has a volume's document. A sentence names things by kind, name
and id, so that the next command can be copied from it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from nexus.api.emulator_documents import BASE, VolumeOwner
from nexus.api.members import Document, Page

PATH = f"{BASE}/replacements"

Kind = Literal["region", "region_snapshot", "read_only_region"]
State = Literal[
    "requested",
    "allocating",
    "running",
    "driving",
    "replacement_done",
    "deleting_old_volume",
    "completing",
    "complete",
]
"""Of requests of both families: ``driving`` has only that of a read/write region, ``deleting_old_volume`` only the
other."""


# -- GET replacements, GET replacements/{request_id} ------------------------------------------------------------------


class Note(Document):
    """Why a request does not go on, in one sentence, and since when that is the reason."""

    reason: str
    since: datetime


class Replacement(Document):
    """One request: a lost copy that is to have a successor.

    ``volume_id``: whose lock it holds: of a read/write region the volume that it is part of, of a read-only target the
    volume of the snapshot, which need not be there any more. ``old_dataset_id``, ``old_snapshot_id``: of a region
    snapshot. ``operating_saga_id``: who moves it just now. ``note``: of one that does not go on.
    """

    id: UUID
    kind: Kind
    state: State
    request_time: datetime
    volume_id: UUID | None = None
    old_region_id: UUID
    old_dataset_id: UUID | None = None
    old_snapshot_id: UUID | None = None
    new_region_id: UUID | None = None
    operating_saga_id: str | None = None
    note: Note | None = None


class ReplacementPage(Page[Replacement]):
    """Requests of all kinds, by id."""


class RepairStep(Document):
    """Whom a read/write replacement asked to repair, and when. ``who``: ``propolis`` is a machine that runs."""

    time: datetime
    who: Literal["propolis", "pantry"]
    instance_id: UUID | None = None
    vmm_id: UUID | None = None
    pantry: str | None = None
    job_id: UUID | None = None


class VolumeStep(Document):
    """One volume from which a read-only target is taken. ``volume_deleted``: the step is over: what was taken out is
    destroyed, or the volume had no need of it any more. ``owner``: whose volume it is, where that can be said."""

    id: UUID
    volume_id: UUID
    state: Literal["requested", "running", "complete", "volume_deleted"]
    request_time: datetime
    owner: VolumeOwner | None = None


class Repair(Document):
    """One attempt of an Upstairs to make the new region good, as it was told. ``done_items`` of ``total_items``: how
    far it was when it last said so."""

    repair_id: UUID
    upstairs_id: UUID
    session_id: UUID
    type: Literal["live", "reconciliation"]
    state: Literal["started", "succeeded", "failed"]
    time_started: datetime | None = None
    time_ended: datetime | None = None
    done_items: int | None = None
    total_items: int | None = None


class RefusedSource(Document):
    """A copy that was not cloned, for what was found in it."""

    source: str
    reason: str


class ReplacementDetail(Replacement):
    """A request with all that is known of it. ``repair_steps`` and ``repairs`` has a read/write one, ``volume_steps``
    and ``refused_sources`` the other."""

    repair_steps: tuple[RepairStep, ...] = ()
    repairs: tuple[Repair, ...] = ()
    volume_steps: tuple[VolumeStep, ...] = ()
    refused_sources: tuple[RefusedSource, ...] = ()


# -- POST replacements ------------------------------------------------------------------------------------------------


class RegionToReplace(Document):
    """A region, read/write or read-only, by its id."""

    type: Literal["region"]
    region_id: UUID


class RegionSnapshotToReplace(Document):
    """The snapshot of a region, by the three ids that are its key."""

    type: Literal["region_snapshot"]
    dataset_id: UUID
    region_id: UUID
    snapshot_id: UUID


class ReplacementRequest(Document):
    """What is to have a successor, although nobody says that it is lost."""

    target: Annotated[RegionToReplace | RegionSnapshotToReplace, Field(discriminator="type")]


# -- GET replacements/waiting -----------------------------------------------------------------------------------------


class Waiter(Document):
    """Somebody in the line for the lock of a volume. ``what``: a request, a step or a snapshot that is made, in words.
    ``overtaken``: how often somebody who came later was let through."""

    id: UUID
    what: str
    since: datetime
    overtaken: int


class LockLine(Document):
    """The lock of a volume for which somebody waits: who has it, since when, and who waits, the first in line first."""

    volume_id: UUID
    owner: VolumeOwner | None = None
    holder_id: UUID | None = None
    holder: str | None = None
    held_since: datetime | None = None
    line: tuple[Waiter, ...]


class Reason(Document):
    """One thing that a request waits for. ``holder_id``: who has to let go, where it is somebody."""

    kind: Literal["note", "saga", "lock", "step", "repair", "task"]
    sentence: str
    since: datetime
    holder_id: UUID | None = None
    volume_id: UUID | None = None


class Waiting(Document):
    """An open request, and all that it waits for."""

    request: Replacement
    reasons: tuple[Reason, ...]


class Blocker(Document):
    """Somebody who waits for nobody else that is known, and for whom others wait: ``held_up``, their ids."""

    holder_id: UUID
    what: str
    held_up: tuple[UUID, ...]


class WaitingReport(Document):
    """What every open request waits for. ``blockers``: who holds up most comes first."""

    requests: tuple[Waiting, ...]
    locks: tuple[LockLine, ...]
    blockers: tuple[Blocker, ...]


# -- GET replacements/to-do -------------------------------------------------------------------------------------------


class LostCopy(Document):
    """A copy on an expunged disk. ``request_id``, ``state``: of the newest request about it, where there is one."""

    kind: Kind
    region_id: UUID
    snapshot_id: UUID | None = None
    dataset_id: UUID
    physical_disk_id: UUID
    sled_id: UUID
    volume_id: UUID
    request_id: UUID | None = None
    state: State | None = None


class ToDoReport(Document):
    """Everything on expunged disks that is not replaced yet."""

    copies: tuple[LostCopy, ...]


# -- POST replacements/believe ----------------------------------------------------------------------------------------


class SurvivorDecision(Document):
    """An operator's word that the last good copy of a volume is to be believed, although it may have missed writes."""

    volume_id: UUID
    region_id: UUID


class SurvivorDecided(SurvivorDecision):
    """That word, as it is kept."""

    time_decided: datetime
