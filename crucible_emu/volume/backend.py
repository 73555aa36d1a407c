"""What a volume is made of: a block device, and its life (upstairs-volume.md §5.1, §11.2, §11.11).

What it is for: a :class:`Backend` is a disk that can be activated, deactivated and asked about; a region set, a volume,
a file, a URL, memory. :attr:`Backend.device` takes the requests, so that nothing stands between a door and it.

The life of a backend: :meth:`Backend.run` is started in a nursery, then :meth:`Backend.activate`, requests,
:meth:`Backend.deactivate`, and ``run`` is cancelled. What is said here is what a backend does that has no peers: it is
always active, and has nothing to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import trio

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice
from crucible_emu.upstairs.replacement import ReplaceResult

if TYPE_CHECKING:
    from crucible_emu.volume.info import VolumeInfo


@dataclass(frozen=True, slots=True)
class WorkCounts:
    """What is under way (query_work_queue): jobs that the guest has no answer to, jobs that some replica still has to
    do, and connections in service, which are three for a healthy region set."""

    up_count: int = 0
    ds_count: int = 0
    active_count: int = 0

    def __add__(self, other: WorkCounts) -> WorkCounts:
        return WorkCounts(
            self.up_count + other.up_count, self.ds_count + other.ds_count, self.active_count + other.active_count
        )


@dataclass(frozen=True, slots=True)
class ExtentInfo:
    """How a region set is cut into extents."""

    block_size: int
    blocks_per_extent: int
    extent_count: int


class Backend:
    """A ``device`` with a life of its own."""

    def __init__(self, device: BlockDevice, backend_id: UUID | None = None) -> None:
        self.device = device
        self.id = backend_id or uuid4()

    @property
    def active(self) -> bool:
        """Whether it serves requests (query_is_active)."""
        return True

    @property
    def shows_a_parent(self) -> bool:
        """Whether some of what it reads may come from a read-only parent of its own."""
        return False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what takes more than one step, until cancelled."""
        task_status.started()
        await trio.sleep_forever()

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        """Bring it into service with ``generation``, its own by default; gives up after ``timeout_s`` seconds."""
        await trio.lowlevel.checkpoint()

    async def deactivate(self) -> None:
        """Make everything durable and leave service. Raises :class:`errors.UpstairsInactive` where it was not in it."""
        await trio.lowlevel.checkpoint()

    async def leave_service(self) -> None:
        """Deactivate what is active; nothing where it is not in service. Raises the first error."""
        if self.active:
            await self.deactivate()

    async def snapshot(self, name: str) -> None:
        """Flush and take a snapshot ``name`` of every replica (§11.7). Raises what it failed with."""
        raise errors.Unsupported("only a region set has snapshots")

    def volume_info(self) -> VolumeInfo:
        """What it is made of and how that is doing (§12.4). Raises :class:`errors.Unsupported`."""
        raise errors.Unsupported("only a volume and a region set can be asked for volume info")

    def work_counts(self) -> WorkCounts:
        """What is under way."""
        return WorkCounts()

    def extent_info(self) -> ExtentInfo | None:
        """How it is cut into extents, ``None`` where it is not."""
        return None

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        """Put the Downstairs at ``new`` in the place of the one at ``old`` (§9, §11.9), where it is one of this one's.

        Raises :class:`errors.ReplaceRequestInvalid`.
        """
        return ReplaceResult.MISSING
