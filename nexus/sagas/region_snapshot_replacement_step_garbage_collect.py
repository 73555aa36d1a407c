"""region-snapshot-replacement-step-garbage-collect: a step's stash goes (nexus.md §3.7).

The stash holds the reference to the old target that the step's volume had. Deleting the last one destroys the target.

It takes nothing in hand: several at once do no harm, for volume-delete may run beside itself, and the record goes one
way only. That is also why each node may run again.
"""

from __future__ import annotations

from pydantic import BaseModel

from nexus.objects.refusals import told_to_users
from nexus.replacement.machine import move
from nexus.replacement.step import READ_ONLY_REPLACEMENT_STEP, StepEdge, step_get
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.services import World


class Params(BaseModel):
    """Which step."""

    step_id: str


async def stash_of_the_step(saga: Context[Params]) -> volume_delete.Params:
    """Safe to rerun: it was written down before the step was complete, and stays."""
    world: World = saga.world
    with told_to_users():
        found = await world.database.read(lambda c: step_get(c, saga.params.step_id))
    assert found.old_snapshot_volume_id is not None
    return volume_delete.Params(volume_id=found.old_snapshot_volume_id)


async def update_step_record(saga: Context[Params]) -> None:
    """Safe to rerun: it recognises what it did, and what another of these did."""
    world: World = saga.world
    with told_to_users():
        await world.database.transact(
            lambda c: move(c, READ_ONLY_REPLACEMENT_STEP, StepEdge.STASH_DELETED, saga.params.step_id)
        )


REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT = Saga(
    "region-snapshot-replacement-step-garbage-collect",
    Params,
    SubSaga("DELETE_STASH_VOLUME", VOLUME_DELETE, params=stash_of_the_step),
    Node("UPDATE_STEP_RECORD", update_step_record),
)
