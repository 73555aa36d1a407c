"""image-delete: an image's row and its volume (nexus.md §3.14).

No undos, as in snapshot-delete, and for the same reason row and soft deletion are one transaction: what stops half-way
is a soft-deleted volume, which is deleted again (W24). Disks that were made from the image have references of their
own.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.objects.images import image_delete
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.volumes import soft_delete_volume


class Params(BaseModel):
    """Which image."""

    image_id: str


async def delete_image_record(saga: Context[Params]) -> str:
    """The id of its volume. Safe to rerun: row and volume are as they are to become."""
    world, image_id = saga.world, saga.params.image_id

    def body(connection: Connection) -> str:
        now = world.now()
        volume_id = image_delete(connection, image_id, now).volume_id
        soft_delete_volume(connection, volume_id, now)
        return volume_id

    return str(await world.database.transact(body))


async def volume_of_the_image(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.output("DELETE_IMAGE_RECORD"))


IMAGE_DELETE = Saga(
    "image-delete",
    Params,
    Node("DELETE_IMAGE_RECORD", delete_image_record),
    SubSaga("DELETE_VOLUME", VOLUME_DELETE, params=volume_of_the_image),
)
