"""region-snapshot-replacement-step: one volume reads from the successor (nexus.md §3.6).

A volume D still names the lost target ``a``; one transaction puts its successor N there, the step's stash F takes over
the reference to ``a``, and who has D constructed is told. There is nothing to repair: N holds what ``a`` held, proved
by digests before anybody named it.

Why each node may run again: the ids are reckoned from the saga's (W35). F's id is written into the step when the step
is taken, before F names anything, so that nobody takes F for a volume that has to be mended (W45). What is to become
what is recorded before it is done, as ids with their addresses: the swap refuses when the address is another's by then
(W55). Telling is sending the document as it is in the database, again and again if need be; a generation is never
raised for it, so whoever reads goes on (R41).

What may happen between: D is deleted (R21, R22: the swap says so, nobody is told, the step ends with an F that names
nothing, or ``a``); D's parent is taken away (before the swap the step is undone, and the task finds that it is no
longer needed, R23; after it the swap back finds nothing, W32); a guest that has D starts or stops (the step is undone
and tried again, for the guest may have the old document and cannot be told). To undo a swap that somebody was told of
does no harm: both targets hold the same, and the request keeps N.

Undoing F lets go of whatever it counts on by then (W30, W31).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection

from crucible_emu.pantry.documents import ReplaceResult
from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.objects.refusals import UNAVAILABLE, told_to_users
from nexus.replacement import notice, read_only
from nexus.replacement.machine import move
from nexus.replacement.notice import Notice, Reading
from nexus.replacement.step import READ_ONLY_REPLACEMENT_STEP, StepEdge, step_get
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.saga.identities import derived
from nexus.sagas import target_swap
from nexus.sagas.target_swap import Swap
from nexus.services import Gone, World
from nexus.volumes import ReadOnlyRegion, VolumeReplaceResult, volume_get


class Params(BaseModel):
    """Which step."""

    step_id: str


def stash_id(saga: Context[Params]) -> str:
    """F."""
    return derived(saga.saga_id, "stash volume", saga.params.step_id)


async def set_saga_id(saga: Context[Params]) -> dict[str, str]:
    """Safe to rerun: it recognises itself."""
    await _move(saga, StepEdge.RUN, old_snapshot_volume_id=stash_id(saga))
    return {"stash_id": stash_id(saga)}


async def unset_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun, as above."""
    await _move(saga, StepEdge.RUN_UNDONE)


async def create_replace_params(saga: Context[Params]) -> dict[str, Any]:
    """What is to become what. Safe to rerun; what counts is what was recorded. A target that is gone, or is being
    destroyed, is nobody's any more: the next activation of the task decides."""

    def body(connection: Connection) -> Swap:
        step = step_get(connection, saga.params.step_id)
        request = read_only.read_only_replacement_get(connection, step.request_id)
        if request.new_region_id is None:
            raise ActionFailed(f"request {request.id} has no successor for its target", UNAVAILABLE)
        targets = []
        for resource in (request.old, ReadOnlyRegion(request.new_region_id)):
            target = read_only.target_of(connection, resource)
            if target is None:
                raise Gone(str(resource))
            targets.append(target)
        return Swap(step.volume_id, targets[0], targets[1], stash_id(saga))

    with told_to_users():
        return (await _world(saga).database.read(body)).recorded()


async def create_fake_volume(saga: Context[Params]) -> None:
    """Safe to rerun: F is found."""
    await target_swap.create_stash(_world(saga), stash_id(saga))


async def destroy_fake_volume(saga: Context[Params]) -> None:
    """Safe to rerun."""
    await target_swap.destroy_stash(_world(saga), stash_id(saga))


async def replace_snapshot_in_volume(saga: Context[Params]) -> str:
    """Safe to rerun, and it ends well where D is deleted (R22)."""
    return (await target_swap.swap(_world(saga), _swap(saga))).value


async def replace_snapshot_in_volume_back(saga: Context[Params]) -> None:
    """Safe to rerun, whatever the swap came to."""
    await target_swap.swap_back(_world(saga), _swap(saga))


# -- telling who reads ------------------------------------------------------------------------------------------------


async def notify_upstairs(saga: Context[Params]) -> str:
    """What was done (:mod:`nexus.replacement.notice`). Safe to rerun: an Upstairs that has the new target says so."""
    world, volume_id = _world(saga), _swap(saga).volume_id
    result = VolumeReplaceResult(saga.output("REPLACE_SNAPSHOT_IN_VOLUME"))

    def body(connection: Connection) -> tuple[Reading, VolumeConstructionRequest | None]:
        # R41: the text of the database, and no checkout, which would be a right to take over.
        volume = volume_get(connection, volume_id)
        return notice.reading_of(connection, volume_id), None if volume is None else volume.request

    reading, request = await world.database.read(body)
    decision = notice.notice(result, reading.reader)
    match decision:
        case Notice.NOTHING:
            pass
        case Notice.TRY_LATER:
            assert reading.vmm is not None and reading.vmm_state is not None
            raise ActionFailed(
                f"instance {reading.vmm.instance_id} is {reading.vmm_state}, and cannot be told of volume {volume_id}",
                UNAVAILABLE,
            )
        case Notice.TELL_HOST | Notice.TELL_PANTRY:
            if request is not None:
                await _tell(world, reading, volume_id, request)
    return str(decision.value)


async def _tell(world: World, reading: Reading, volume_id: str, request: VolumeConstructionRequest) -> None:
    """Send the document to who reads. *Liveness*: whoever is gone for good reads nothing."""
    try:
        if reading.pantry is not None:
            answer = await world.pantries.replace(reading.pantry, volume_id, request)
        else:
            assert reading.vmm is not None and reading.disk_id is not None
            disk_id, instance_id = reading.disk_id, reading.vmm.instance_id
            answer = await world.hosts.ask(
                reading.vmm,
                f"disk {disk_id} of instance {instance_id}",
                lambda host: host.instance_issue_crucible_vcr_request(disk_id, request),
            )
    except Gone:
        return
    if answer is ReplaceResult.MISSING:
        raise ActionFailed(f"who has volume {volume_id} does not know the target that was replaced", UNAVAILABLE)


async def update_step_record(saga: Context[Params]) -> None:
    """The lock of D goes in the same transaction. Safe to rerun: it recognises itself."""
    await _move(saga, StepEdge.COMPLETE)


async def _move(saga: Context[Params], edge: StepEdge, **recorded: Any) -> None:
    world, step_id = _world(saga), saga.params.step_id
    with told_to_users():
        await world.database.transact(
            lambda c: move(
                c,
                READ_ONLY_REPLACEMENT_STEP,
                edge,
                step_id,
                saga_id=saga.saga_id,
                locks=world.locks,
                **recorded,
            )
        )


def _swap(saga: Context[Params]) -> Swap:
    return Swap.of(saga.output("CREATE_REPLACE_PARAMS"))


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


REGION_SNAPSHOT_REPLACEMENT_STEP = Saga(
    "region-snapshot-replacement-step",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=unset_saga_id),
    Node("CREATE_REPLACE_PARAMS", create_replace_params),
    Node("CREATE_FAKE_VOLUME", create_fake_volume, undo=destroy_fake_volume),
    Node("REPLACE_SNAPSHOT_IN_VOLUME", replace_snapshot_in_volume, undo=replace_snapshot_in_volume_back),
    Node("NOTIFY_UPSTAIRS", notify_upstairs),
    Node("UPDATE_STEP_RECORD", update_step_record),
)
