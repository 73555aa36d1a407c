"""snapshot-delete: a snapshot's row, what it is charged, and its two volumes (nexus.md §3.14).

It has no undos, takes no lock, and may run at any moment of a replacement. A deletion that stops half-way is finished
by deleting the volumes again; that is done with every soft-deleted volume that has something left (W24).

What differs from the real one: row, charge and the soft deletion of both volumes are one transaction. *Safety*: a saga
that ended after the row alone would leave volumes that nobody owns and nobody deletes, and a charge for nothing.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.objects.provisioning import refund
from nexus.objects.refusals import told_to_users
from nexus.objects.snapshots import Change, snapshot_change, snapshot_get
from nexus.saga import Context, Node, Parallel, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.volumes import soft_delete_volume


class Params(BaseModel):
    """Which snapshot."""

    snapshot_id: str


async def delete_snapshot_record(saga: Context[Params]) -> dict[str, str]:
    """The ids of its volumes. Safe to rerun: the row is as it is to become, nothing is charged, and volumes that are
    deleted stay as they are."""
    world, snapshot_id = saga.world, saga.params.snapshot_id

    def body(connection: Connection) -> dict[str, str]:
        now = world.now()
        # *Liveness*: whoever makes or deletes anything changes the same three sums. Changed at the end of a transaction
        # as long as this they would always be another's by then, and PostgreSQL would refuse it again and again.
        refund(connection, snapshot_id, now)
        snapshot_change(connection, snapshot_id, Change.DELETE, now)
        snapshot = snapshot_get(connection, snapshot_id)
        assert snapshot is not None
        soft_delete_volume(connection, snapshot.volume_id, now)
        soft_delete_volume(connection, snapshot.destination_volume_id, now)
        return {"volume_id": snapshot.volume_id, "destination_volume_id": snapshot.destination_volume_id}

    with told_to_users():
        found: dict[str, str] = await world.database.transact(body)
    return found


async def snapshot_volume(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.output("DELETE_SNAPSHOT_RECORD")["volume_id"])


async def destination_volume(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.output("DELETE_SNAPSHOT_RECORD")["destination_volume_id"])


SNAPSHOT_DELETE = Saga(
    "snapshot-delete",
    Params,
    Node("DELETE_SNAPSHOT_RECORD", delete_snapshot_record),
    Parallel(
        SubSaga("DELETE_VOLUME", VOLUME_DELETE, params=snapshot_volume),
        SubSaga("DELETE_DESTINATION_VOLUME", VOLUME_DELETE, params=destination_volume),
    ),
)
