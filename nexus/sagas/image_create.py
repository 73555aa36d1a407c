"""image-create: an image from a snapshot (nexus.md §3.14).

The image's volume is a copy of the snapshot's under new ids; it counts on the same region snapshots, so that snapshot
and disk may go. Its id is a parameter: a rerun finds the copy that it made. The snapshot may be deleted between the
two nodes, and the image is made all the same; or the copy is undone, and then it was perhaps the last that counted on
what the snapshot left, and takes that with it (W39).

The row comes last, so that nobody sees an image without a volume; what comes last needs no undo.
"""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.db.schema import SnapshotState
from nexus.objects.images import Image, image_insert
from nexus.objects.refusals import invalid_request, told_to_users
from nexus.objects.snapshots import snapshot_get, snapshot_require
from nexus.saga import Context, Node, Saga
from nexus.sagas.volume_delete import undo_volume
from nexus.volumes import Deletion, ReadOnlyCopy, volume_checkout_randomize_ids, volume_state
from nexus.volumes.walks import NewId


class Params(BaseModel):
    """``project_id`` is ``None`` for a silo's image."""

    image_id: str
    dest_volume_id: str
    project_id: str | None
    silo_id: str
    name: str
    description: str
    os: str
    version: str
    snapshot_id: str


async def copy_source_volume(saga: Context[Params]) -> None:
    """Safe to rerun: a copy that was made is found, also when its source is gone meanwhile."""
    world, params = saga.world, saga.params

    def body(connection: Connection) -> None:
        if volume_state(connection, params.dest_volume_id) is Deletion.LIVE:
            return
        snapshot = snapshot_require(connection, params.snapshot_id)
        if snapshot.state is not SnapshotState.READY:
            raise invalid_request(f"snapshot {snapshot.id} is {snapshot.state}; an image is made of one that is ready")
        volume_checkout_randomize_ids(
            connection, snapshot.volume_id, params.dest_volume_id, ReadOnlyCopy(), world.now(), _new_uuid(saga)
        )

    with told_to_users():
        await world.database.transact(body)


async def delete_copy(saga: Context[Params]) -> None:
    """Safe to rerun: of a volume that is gone it is done."""
    await undo_volume(saga.world, saga.params.dest_volume_id)


async def create_image_record(saga: Context[Params]) -> None:
    """Safe to rerun: the row that was made is found."""
    world, params = saga.world, saga.params

    def body(connection: Connection) -> None:
        # Rows of snapshots stay when they are deleted.
        snapshot = snapshot_get(connection, params.snapshot_id)
        assert snapshot is not None
        now = world.now()
        image = Image(
            id=params.image_id,
            silo_id=params.silo_id,
            project_id=params.project_id,
            name=params.name,
            description=params.description,
            volume_id=params.dest_volume_id,
            os=params.os,
            version=params.version,
            digest=None,
            block_size=snapshot.block_size,
            size_bytes=snapshot.size_bytes,
            time_created=now,
            time_modified=now,
        )
        image_insert(connection, image)

    await world.database.transact(body)


def _new_uuid(saga: Context[Params]) -> NewId:
    return lambda: UUID(saga.world.new_id())


IMAGE_CREATE = Saga(
    "image-create",
    Params,
    Node("GET_SOURCE_VOLUME", copy_source_volume, undo=delete_copy),
    Node("CREATE_IMAGE_RECORD", create_image_record),
)
