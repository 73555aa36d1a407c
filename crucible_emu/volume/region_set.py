"""One region set as a part of a volume: an Upstairs with its guest.

What it is for: :class:`RegionSet` runs the two, brings them into service and out of it, and says how they are doing.
Requests go to :attr:`RegionSet.device`, the guest, without a detour.

What it guarantees: leaving service flushes, and a flush that fails then is heard: it is the last chance to say so. A
snapshot of a read-only region set is refused (the real one answers that all is well and takes none).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.upstairs.driver import FlushHandle, Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume.backend import Backend, ExtentInfo, WorkCounts

if TYPE_CHECKING:
    from crucible_emu.volume.info import UpstairsNode

FAREWELL_TIMEOUT_S = 15.0
"""How long leaving a disk waits for replicas that are away, so that its last flush need not fail."""


class RegionSet(Backend):
    """The region set of ``upstairs``, whose definition is known."""

    def __init__(self, upstairs: Upstairs, backend_id: UUID | None = None) -> None:
        self.upstairs = upstairs
        self.guest = Guest(upstairs)
        self._running = False
        super().__init__(self.guest, backend_id or upstairs.core.identity.upstairs_id)

    @property
    def active(self) -> bool:
        # *Liveness*: without its tasks nothing that is asked of it would ever end.
        return self.upstairs.active and self._running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.upstairs.run)
                nursery.start_soon(self.guest.run)
                self._running = True
                task_status.started()
        finally:
            self._running = False

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        upstairs = self.upstairs
        try:
            await upstairs.activate(generation, timeout_s)
        except trio.Cancelled:
            # *Liveness*: else it would become active later, with nobody who knows.
            upstairs.core.abandon(errors.IoError("the activation was cancelled"))
            upstairs.perform()
            raise

    async def deactivate(self) -> None:
        if not self.active:
            raise errors.UpstairsInactive()
        flush, flushed = Request(Kind.FLUSH), trio.Event()
        self.guest.submit([flush], lambda _: flushed.set())
        with trio.CancelScope(shield=True):
            with trio.move_on_after(FAREWELL_TIMEOUT_S):
                await flushed.wait()
            if self.active:
                # *Liveness*: a flush that waits for replicas which do not come back is failed by this.
                await self.upstairs.deactivate()
            await flushed.wait()
        # Asked for by itself because its failure must be heard: it is the last chance to say so.
        if flush.error is not None:
            raise flush.error

    async def snapshot(self, name: str) -> None:
        core = self.upstairs.core
        if core.identity.read_only:
            raise errors.ModifyingReadOnlyRegion()
        refusal = core.admission_error(JobKind.SNAPSHOT_FLUSH)
        if refusal is not None:
            raise refusal
        done, outcome = trio.Event(), []

        def answered(error: errors.CrucibleError | None) -> None:
            outcome.append(error)
            done.set()

        core.flush(FlushHandle(answered), name)
        self.upstairs.perform()
        await done.wait()
        if outcome[0] is not None:
            raise outcome[0]

    def volume_info(self) -> UpstairsNode:
        from crucible_emu.volume.region_set_info import info_of  # *Optimisation*: pydantic is 4 MiB, and few ask

        return info_of(self.upstairs)

    def work_counts(self) -> WorkCounts:
        core = self.upstairs.core
        return WorkCounts(
            sum(job.count for job in core.jobs if not job.acked),
            sum(job.count for job in core.jobs),
            sum(client.state.phase is Phase.ACTIVE for client in core.clients),
        )

    def extent_info(self) -> ExtentInfo:
        definition = self.guest.definition
        return ExtentInfo(definition.block_size, definition.blocks_per_extent, definition.extent_count)

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        return self.upstairs.replace_downstairs(old, new)
