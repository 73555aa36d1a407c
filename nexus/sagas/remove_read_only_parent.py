"""volume-remove-read-only-parent: a volume that needs its parent no longer lets go of it (nexus.md §3.10).

The parent moves to a volume that is made for that, and goes with it: what nobody counts on then is freed by the one
saga that frees anything. Where there is no parent to be moved, the volume that was made is deleted as blank as it was.

It takes no lock. A replacement that is about to change a target of the parent finds the parent gone, and that is one of
its answers.
"""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel

from nexus.objects.refusals import told_to_users
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE, undo_volume
from nexus.volumes import volume_remove_rop
from nexus.volumes.recorded import blank
from nexus.volumes.rows import volume_create


class Params(BaseModel):
    """Whose parent, and the id of the volume that it moves to."""

    volume_id: str
    temporary_id: str


async def create_temporary_volume(saga: Context[Params]) -> None:
    """Safe to rerun: the volume is found, blank, for nobody else knows its id."""
    world, temporary_id = saga.world, saga.params.temporary_id
    request = blank(UUID(temporary_id))
    await world.database.transact(lambda c: volume_create(c, temporary_id, request, world.now()) and None)


async def delete_temporary_volume(saga: Context[Params]) -> None:
    """With all that it took over: the parent does not come back, for the volume has no use for it. Safe to rerun: of a
    volume that is gone it is done."""
    await undo_volume(saga.world, saga.params.temporary_id)


async def remove_read_only_parent(saga: Context[Params]) -> bool:
    """Whether there was a parent to be moved. Safe to rerun: the second time there is none, which changes nothing."""
    world, params = saga.world, saga.params
    with told_to_users():
        return bool(
            await world.database.transact(
                lambda c: volume_remove_rop(c, params.volume_id, params.temporary_id, world.now())
            )
        )


async def temporary_volume(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.params.temporary_id)


REMOVE_READ_ONLY_PARENT = Saga(
    "volume-remove-read-only-parent",
    Params,
    Node("CREATE_TEMP_VOLUME", create_temporary_volume, undo=delete_temporary_volume),
    Node("REMOVE_ROP", remove_read_only_parent),
    SubSaga("DELETE_TEMP_VOLUME", VOLUME_DELETE, params=temporary_volume),
)
