"""``region_snapshot_replacement_step``: mend every volume that still names a target that is replaced (nexus.md §4.6).

What it finds: after a request's target was replaced in the snapshot's volume, and the stash of that is gone, copies of
the snapshot still name it: disks and images that were made of it, snapshots of these. Each of them has a reference to
the target, so they are found by that and no volume is looked through (W20).

What it does, in an order that matters:

A. Steps that are complete are cleaned up: their stash, which holds a reference, is deleted. (*Liveness*: stashes keep
   the target, and with it the request, alive.)
B. For each volume with a reference a step is made, under the volume's lock; who is refused is in line for it. No step
   is made for a stash (R10, W45), for a volume that is deleted (R19), which has no references any more, for a request
   that does not run (R9), or for a target that is being destroyed (W55).
C. Steps that nobody has begun with are, or are given up, where the volume is deleted (R20, an *optimisation*: the saga
   would find that, too) or does not name the target any more (R23, *liveness*: the saga would fail for ever, and hold
   the volume's lock), or where others wait for a volume that cannot be changed now; that one gets another step.

Why no volume is missed: a reference to the target is added only by copying a volume that has one, and that one has a
reference until it is mended. So as long as any volume names the target there is a row that says so, the target is
there, the request runs, and the next activation finds it.

Beside other Nexus a volume has one step at a time, an index says so (W37); of several sagas for one step all but one
end at their first node (R1).
"""

from __future__ import annotations

from functools import partial

from nexus.db import DatabaseError
from nexus.db.schema import RegionSnapshotReplacementState, RegionSnapshotReplacementStepState
from nexus.replacement import affected
from nexus.replacement.read_only import ReadOnlyReplacement, read_only_replacements_in
from nexus.replacement.step import InsertStepResult, Step, steps_in
from nexus.saga import Executor
from nexus.sagas import region_snapshot_replacement_step as step_saga
from nexus.sagas import region_snapshot_replacement_step_garbage_collect as collecting
from nexus.services import World
from nexus.tasks.task import Status, told


class RegionSnapshotReplacementStep:
    """The entries are sentences, each with the id of the step at its end."""

    name = "region_snapshot_replacement_step"
    description = "replaces read-only targets that are lost in every volume that names them"
    period_s = 30.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        status: Status = {
            "step_records_created_ok": [],
            "step_garbage_collect_invoked_ok": [],
            "step_invoked_ok": [],
            "step_set_volume_deleted_ok": [],
            "errors": [],
        }
        await self._clean_up(status)
        await self._create(status)
        await self._launch(status)
        return status

    async def _clean_up(self, status: Status) -> None:
        for step in await self._steps(RegionSnapshotReplacementStepState.COMPLETE):
            try:
                await self._executor.start(
                    collecting.REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT, collecting.Params(step_id=step.id)
                )
            except DatabaseError as error:
                status["errors"].append(f"step {step.id}: {told(error)}")
                continue
            status["step_garbage_collect_invoked_ok"].append(f"requested garbage collection for step {step.id}")

    async def _create(self, status: Status) -> None:
        states = (RegionSnapshotReplacementState.RUNNING,)
        database = self._world.database
        for request in await database.read(lambda c: read_only_replacements_in(c, states, at_rest=True)):
            for volume_id in await database.read(partial(affected.affected_volumes, request=request)):
                try:
                    await self._create_one(request, volume_id, status)
                except DatabaseError as error:
                    status["errors"].append(f"request {request.id}, volume {volume_id}: {told(error)}")

    async def _create_one(self, request: ReadOnlyReplacement, volume_id: str, status: Status) -> None:
        world = self._world
        found = await world.database.transact(
            lambda c: affected.step_make(c, world.locks, request, volume_id, world.now())
        )
        if found is not None and found[1] is InsertStepResult.INSERTED:
            status["step_records_created_ok"].append(f"volume {volume_id} names the {request.old}: step {found[0]}")

    async def _launch(self, status: Status) -> None:
        for step in await self._steps(RegionSnapshotReplacementStepState.REQUESTED):
            try:
                await self._launch_one(step, status)
            except DatabaseError as error:
                status["errors"].append(f"step {step.id}: {told(error)}")

    async def _launch_one(self, step: Step, status: Status) -> None:
        world = self._world
        why = await world.database.transact(lambda c: affected.give_up_if_void(c, world.locks, step))
        if why is not None:
            status["step_set_volume_deleted_ok"].append(f"{why}: gave up step {step.id}")
            return
        await self._executor.start(step_saga.REGION_SNAPSHOT_REPLACEMENT_STEP, step_saga.Params(step_id=step.id))
        status["step_invoked_ok"].append(f"began with step {step.id}")

    async def _steps(self, state: RegionSnapshotReplacementStepState) -> list[Step]:
        return await self._world.database.read(lambda c: steps_in(c, (state,)))
