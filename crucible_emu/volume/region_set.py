"""One region set as a part of a volume: an Upstairs with its guest.

What it is for: :class:`RegionSet` runs the two, brings them into service and out of it, and says how they are doing.
Requests go to :attr:`RegionSet.device`, the guest, without a detour.

What it guarantees: leaving service flushes, and a flush that fails then is heard: it is the last chance to say so. A
snapshot of a read-only region set is refused (the real one answers that all is well and takes none).
"""

from __future__ import annotations

from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.upstairs.driver import FlushHandle, Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.members import Client
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.volume.backend import Backend, ExtentInfo, WorkCounts
from crucible_emu.volume.info import (
    Connecting,
    ConnectingState,
    ConnectionMode,
    Settled,
    TargetInfo,
    UpstairsInfo,
    UpstairsNode,
    UpstairsPhase,
)

FAREWELL_TIMEOUT_S = 15.0
"""How long leaving a disk waits for replicas that are away, so that its last flush need not fail."""
UPSTAIRS_PHASES: dict[UpstairsState, UpstairsPhase] = {
    UpstairsState.INITIALIZING: "initializing",
    UpstairsState.GO_ACTIVE: "go_active",
    UpstairsState.ACTIVE: "active",
    UpstairsState.DEACTIVATING: "deactivating",
    UpstairsState.DISABLED: "disabled",
}
CONNECTING_STATES: dict[Phase, ConnectingState] = {
    Phase.WAIT_CONNECT: "wait_connect",
    Phase.START: "negotiating",
    Phase.WAIT_FOR_PROMOTE: "negotiating",
    Phase.WAIT_FOR_REGION_INFO: "negotiating",
    Phase.GET_EXTENT_VERSIONS: "negotiating",
    Phase.WAIT_QUORUM: "wait_quorum",
    Phase.RECONCILE: "reconcile",
    Phase.LIVE_REPAIR_READY: "live_repair_ready",
}
CONNECTION_MODES: dict[Mode, ConnectionMode] = {
    Mode.NEW: "new",
    Mode.OFFLINE: "offline",
    Mode.FAULTED: "faulted",
    Mode.REPLACED: "replaced",
}


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
        core = self.upstairs.core
        phases = {client.state.phase for client in core.clients}
        info = UpstairsInfo(
            state=UPSTAIRS_PHASES[core.state],
            block_size=None if core.definition is None else core.definition.block_size,
            upstairs_id=core.identity.upstairs_id,
            session_id=core.identity.session_id,
            generation=core.generation,
            read_only=core.identity.read_only,
            encrypted=core.identity.encrypted,
            reconcile_in_progress=core.reconciliation is not None,
            live_repair_in_progress=Phase.LIVE_REPAIR in phases,
            targets=tuple(_target_info(client) for client in core.clients),
        )
        return UpstairsNode(upstairs=info)

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


def _target_info(client: Client) -> TargetInfo:
    state = client.state
    shown: Connecting | Settled
    if state.connecting:
        shown = Connecting(state=CONNECTING_STATES[state.phase], mode=CONNECTION_MODES[state.mode])
    elif state.phase is Phase.ACTIVE:
        shown = Settled(type="active")
    elif state.phase is Phase.LIVE_REPAIR:
        shown = Settled(type="live_repair")
    else:
        shown = Settled(type="stopping")
    return TargetInfo(
        region_id=client.region_uuid,
        target_addr=client.target or None,
        repair_addr=None if client.repair_address is None else str(client.repair_address),
        state=shown,
    )
