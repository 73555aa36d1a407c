"""A volume: sub-volumes end to end, and what reads fall through to (upstairs-volume.md §11).

What it is for: :class:`Volume` is a disk for doors and a part for other volumes, so trees of any depth can be built.
The blocks are the business of :class:`~crucible_emu.volume.layered.LayeredDevice`; here is its life: activation in
order and undone where a part refuses, the scrub that makes a parent superfluous, replacement of a Downstairs anywhere
in the tree, and what the tree looks like.

What it guarantees: after an activation that failed, no part is active that was not before. A parent that was scrubbed
into the sub-volumes counts as absent from then on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.logs import get_logger
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume import comparison
from crucible_emu.volume.backend import Backend, ExtentInfo, WorkCounts
from crucible_emu.volume.image import submit
from crucible_emu.volume.info import VolumeInfo, VolumeNode, VolumeParts
from crucible_emu.volume.layered import Defer, LayeredDevice
from crucible_emu.volume.scrub import Scrub
from crucible_emu.volume.vcr import VolumeConstructionRequest

log = get_logger(__name__)


def next_turn(function: Callable[[], None]) -> None:
    """Run ``function`` in the loop's next turn."""
    trio.lowlevel.current_trio_token().run_sync_soon(function)


class Volume(LayeredDevice, Backend):
    """``sub_volumes`` end to end over ``parent``. Each is a :class:`Backend`, or a device that is always active.

    Raises :class:`~crucible_emu.errors.BlockSizeMismatch`.
    """

    def __init__(
        self,
        block_size: int,
        sub_volumes: Sequence[Backend | BlockDevice],
        parent: Backend | BlockDevice | None = None,
        *,
        volume_id: UUID | None = None,
        defer: Defer = next_turn,
    ) -> None:
        self.sub_volumes = [_backend(part) for part in sub_volumes]
        self.parent = None if parent is None else _backend(parent)
        LayeredDevice.__init__(
            self,
            block_size,
            [part.device for part in self.sub_volumes],
            None if self.parent is None else self.parent.device,
            defer,
        )
        Backend.__init__(self, self, volume_id)
        self._sizes = [part.device.size_bytes for part in self.sub_volumes]
        self.scrubbing = Scrub(self)

    @property
    def parts(self) -> list[Backend]:
        """The sub-volumes in order, then the parent."""
        return self.sub_volumes if self.parent is None else [*self.sub_volumes, self.parent]

    @property
    def shows_a_parent(self) -> bool:
        return self.parent is not None or any(part.shows_a_parent for part in self.sub_volumes)

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        return all(part.active for part in self.parts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for part in self.parts:
                await nursery.start(part.run)
            task_status.started()
            await trio.sleep_forever()

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        """Bring all parts into service, one after the other; the parent last (§11.3). All get the same ``generation``
        where one is given, else each its own; all together have ``timeout_s`` seconds.

        Raises the error of the first that refuses; those that this call activated are out of service again then.
        """
        give_up_at = None if timeout_s is None else trio.current_time() + timeout_s
        activated: list[Backend] = []
        try:
            for index, part in enumerate(self.parts):
                if not part.active:
                    activated.append(part)
                if give_up_at is not None and index:
                    timeout_s = max(0.0, round(give_up_at - trio.current_time(), 3))
                await part.activate(generation, timeout_s)
                if index < len(self._sizes) and part.device.size_bytes != self._sizes[index]:
                    raise errors.SubvolumeSizeMismatch()
        except BaseException:
            with trio.CancelScope(shield=True):
                for part in reversed(activated):
                    try:
                        await part.leave_service()
                    except errors.CrucibleError as error:
                        # The error that ended the activation is the one to tell.
                        log.warning("cannot leave service after a failed activation", error=str(error))
            raise

    async def deactivate(self) -> None:
        """Take all parts out of service, in order, the parent last. Goes on where one fails; raises the first error."""
        await _all([part.deactivate for part in self.parts])

    async def leave_service(self) -> None:
        await _all([part.leave_service for part in self.parts])

    # -- the disk as a whole ------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Make everything acknowledged so far durable. Raises what the flush failed with."""
        await submit(self, Request(Kind.FLUSH))

    async def snapshot(self, name: str) -> None:
        """Flush every sub-volume and take a snapshot ``name`` of it (§11.7). Raises the first error."""
        for part in self.sub_volumes:
            await part.snapshot(name)

    async def scrub(self, start_delay_s: float | None = None, pause_s: float | None = None) -> None:
        """Copy the parent into the sub-volumes and let go of it; see :class:`~crucible_emu.volume.scrub.Scrub`."""
        await self.scrubbing.run(start_delay_s, pause_s)

    @property
    def scrub_point(self) -> int:
        """The first byte that a scrub has not copied yet."""
        return self.scrubbing.point

    async def let_go_of_parent(self) -> None:
        """Read no more from the parent and take it out of service, which may fail; it counts as absent from now on."""
        parent, released = self.parent, trio.Event()
        if parent is None:
            return
        self.release_parent(released.set)
        await released.wait()
        self.parent = None
        self.forget_parent()
        try:
            await parent.leave_service()
        except errors.CrucibleError as error:
            log.warning("the parent did not leave service after the scrub", volume=str(self.id), error=str(error))

    # -- what it is made of -------------------------------------------------------------------------------------------

    def volume_info(self) -> VolumeInfo:
        parent = None if self.parent is None else self.parent.volume_info()
        sub_volumes = tuple(part.volume_info() for part in self.sub_volumes)
        return VolumeNode(volume=VolumeParts(sub_volumes=sub_volumes, read_only_parent=parent))

    def work_counts(self) -> WorkCounts:
        return sum((part.work_counts() for part in self.parts), WorkCounts())

    def volume_extent_info(self) -> list[ExtentInfo]:
        """How the direct sub-volumes are cut into extents, without the parent; empty where none is.

        Raises :class:`~crucible_emu.errors.SubvolumeTypeMismatch` where some are and some are not.
        """
        found = [part.extent_info() for part in self.sub_volumes]
        extents = [info for info in found if info is not None]
        if extents and len(extents) < len(found):
            raise errors.SubvolumeTypeMismatch()
        return extents

    # -- replacement --------------------------------------------------------------------------------------------------

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        """Ask the sub-volumes in order, then the parent; the first that knows ``old`` or ``new`` answers (§11.9)."""
        for part in self.parts:
            result = part.replace_downstairs(old, new)
            if result is not ReplaceResult.MISSING:
                return result
        return ReplaceResult.MISSING

    def target_replace(
        self, original: VolumeConstructionRequest, replacement: VolumeConstructionRequest
    ) -> ReplaceResult:
        """Replace the one Downstairs in which ``replacement`` differs from ``original``, which describes this volume
        (§13.5). The generation of ``replacement`` is not applied.

        Raises :class:`~crucible_emu.errors.ReplaceRequestInvalid`.
        """
        change = comparison.compare_vcr_for_target_replacement(original, replacement)
        if change is None:
            return ReplaceResult.VCR_MATCHES
        try:
            result = self.replace_downstairs(change.old, change.new)
        except errors.CrucibleError as error:
            raise errors.ReplaceRequestInvalid(f"Replace downstairs failed for {self.id} with {error}") from error
        if result is ReplaceResult.MISSING:
            raise errors.ReplaceRequestInvalid(f"Volume {self.id} Can't locate {change.old} to replace")
        return result


def _backend(part: Backend | BlockDevice) -> Backend:
    return part if isinstance(part, Backend) else Backend(part)


async def _all(steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do every step; raise the first error when all are done."""
    first: errors.CrucibleError | None = None
    for step in steps:
        try:
            await step()
        except errors.CrucibleError as error:
            first = first or error
    if first is not None:
        raise first
