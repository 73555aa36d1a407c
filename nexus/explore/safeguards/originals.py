"""The rules of the real control plane that ours stand for, as far as they are more than *nothing*.

What it is for: a correction is taken out by putting the original rule in its place, so that what the explorer finds is
what the real one suffers from. Each function gets what stands there now, and gives the original.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, text, update

from nexus.db import NotFound, schema
from nexus.placement import regions_hard_delete
from nexus.replacement.read_only import ReadOnlyReplacement, target_was_requested
from nexus.replacement.step import ACTIVE
from nexus.sagas.region_replacement_start import new_region_id
from nexus.services.gone import on_expunged_disk
from nexus.volumes import (
    Address,
    RegionSnapshot,
    VolumeReplaceResult,
    region_snapshot_remove,
    soft_delete_volume,
    volume_get,
    volume_hard_delete,
    volume_hard_delete_when_done,
)
from nexus.volumes.replacing import ReadOnlyTarget
from nexus.volumes.resolution import ReadOnlyRegion, Resource, read_only_target_to_resource
from nexus.volumes.rows import Volume
from nexus.volumes.search import find_volumes_referencing_socket_addr

_REGION, _DATASET, _VOLUME = schema.region, schema.crucible_dataset, schema.volume
_SNAPSHOT, _STEP = schema.region_snapshot, schema.region_snapshot_replacement_step


# -- who is affected --------------------------------------------------------------------------------------------------


def address_of(connection: Connection, target: Resource) -> Address | None:
    """Where the row says that the target listens, be it deleted or not."""
    match target:
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            mine = (_SNAPSHOT.c.dataset_id == dataset_id, _SNAPSHOT.c.region_id == region_id)
            query = select(_SNAPSHOT.c.snapshot_addr).where(*mine, _SNAPSHOT.c.snapshot_id == snapshot_id)
            found = connection.execute(query).scalar_one_or_none()
            return None if found is None else Address.parse(found)
        case ReadOnlyRegion(region_id):
            place = select(_DATASET.c.ip, _REGION.c.port).join(_REGION, _REGION.c.dataset_id == _DATASET.c.id)
            row = connection.execute(place.where(_REGION.c.id == region_id)).one_or_none()
            return None if row is None or row.port is None else Address.of(row.ip, row.port)


def scan(original: Any) -> Any:
    """W20: every volume is read, and those that name the address are affected."""

    def affected_volumes(connection: Connection, request: ReadOnlyReplacement) -> list[str]:
        address = address_of(connection, request.old)
        return [] if address is None else find_volumes_referencing_socket_addr(connection, address)

    return affected_volumes


def by_address(original: Any) -> Any:
    """W55: a target is what listens at its address."""

    def target_of(connection: Connection, target: Resource) -> ReadOnlyTarget | None:
        address = address_of(connection, target)
        if address is None:
            return None
        return ReadOnlyTarget(address, read_only_target_to_resource(connection, address) or target)

    return target_of


def used_by_address(original: Any) -> Any:
    """W55: who counts on what listens at the address of a resource."""

    def asked(connection: Connection, *words: Any) -> Any:
        *volume, resource = words
        address = address_of(connection, resource)
        found = None if address is None else read_only_target_to_resource(connection, address)
        return original(connection, *volume, resource if found is None else found)

    return asked


def going_as_well(original: Any) -> Any:
    """W52: lost targets, those that are being destroyed among them."""

    def lost(connection: Connection) -> list[Resource]:
        known = list(original(connection))
        snapshots = select(_SNAPSHOT.c.dataset_id, _SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id)
        going = snapshots.where(on_expunged_disk(_SNAPSHOT.c.dataset_id), _SNAPSHOT.c.deleting)
        more = [RegionSnapshot(*row) for row in connection.execute(going)]
        return known + [each for each in more if not target_was_requested(connection, each)]

    return lost


# -- steps ------------------------------------------------------------------------------------------------------------


def any_step(original: Any) -> Any:
    """W37: the first row of the volume, whatever its state."""

    def active_step(connection: Connection, volume_id: str) -> str | None:
        query = select(_STEP.c.id, _STEP.c.replacement_state).where(_STEP.c.volume_id == volume_id)
        row = connection.execute(query.order_by(_STEP.c.id).limit(1)).one_or_none()
        return row.id if row is not None and row.replacement_state in ACTIVE else None

    return active_step


def stash_unknown(original: Any) -> Any:
    """W45: the step is taken, and nobody is told of its stash."""

    async def set_saga_id(saga: Any) -> dict[str, str]:
        found: dict[str, str] = await original(saga)
        await _stash_written(saga, None)
        return found

    return set_saga_id


def stash_told_at_the_end(original: Any) -> Any:
    """W45: the stash is written down by who completes the step."""

    async def update_step_record(saga: Any) -> None:
        await _stash_written(saga, saga.output("SET_SAGA_ID")["stash_id"])
        await original(saga)

    return update_step_record


async def _stash_written(saga: Any, stash_id: str | None) -> None:
    mine = (_STEP.c.id == saga.params.step_id, _STEP.c.operating_saga_id == saga.saga_id)
    written = update(_STEP).where(*mine).values(old_snapshot_volume_id=stash_id)
    await saga.world.database.transact(lambda c: c.execute(written) and None)


# -- regions ----------------------------------------------------------------------------------------------------------

_before: dict[str, set[Row[Any]]] = {}
"""By saga, as the real one has it among its outputs."""


def _rows(connection: Connection, volume_id: str) -> set[Row[Any]]:
    return set(connection.execute(select(_REGION).where(_REGION.c.volume_id == volume_id)))


def noting_what_was_there(original: Any) -> Any:
    """W35: the regions of the volume are kept as they were, to be compared."""

    async def allocate(saga: Any) -> Any:
        rows = await saga.world.database.read(lambda c: _rows(c, saga.params.volume_id))
        _before[saga.saga_id] = {row for row in rows if row.id != new_region_id(saga.saga_id)}
        return await original(saga)

    return allocate


def by_comparison(original: Any) -> Any:
    """W35: what the undo takes away is the one row that was not there before; where it is not one, nothing."""

    async def forget(saga: Any) -> None:
        world, before = saga.world, _before.pop(saga.saga_id, set())

        def body(connection: Connection) -> None:
            new = _rows(connection, saga.params.volume_id) - before
            if len(new) == 1:
                regions_hard_delete(connection, [each.id for each in new], world.now())

        await world.database.transact(body)

    return forget


def owners_of_written_ones(original: Any) -> Any:
    """W40: only owners of read/write regions are looked at when regions go."""

    def forget(connection: Connection, region_ids: Collection[str], now: datetime) -> None:
        gone = (_REGION.c.id.in_(region_ids), ~_REGION.c.read_only)
        owners = sorted(connection.execute(select(_REGION.c.volume_id).where(*gone).distinct()).scalars())
        regions_hard_delete(connection, region_ids, now)
        for volume_id in owners:
            volume_hard_delete_when_done(connection, volume_id)

    return forget


# -- volumes ----------------------------------------------------------------------------------------------------------


def nothing_destroyed(original: Any) -> Any:
    """W39: a volume is deleted by an undo, and what that frees is left to nobody."""

    async def undo(world: Any, volume_id: str) -> None:
        def body(connection: Connection) -> None:
            soft_delete_volume(connection, volume_id, world.now())
            volume_hard_delete(connection, volume_id)

        await world.database.transact(body)

    return undo


def row_first(original: Any) -> Any:
    """W43: the row goes before the snapshot."""
    return region_snapshot_remove


def whatever_is_there(original: Any) -> Any:
    """W50: a row with the id is what was wanted, be it deleted or of other content."""

    def create(connection: Connection, volume_id: str, request: Any, now: datetime) -> Volume:
        found = volume_get(connection, volume_id)
        made: Volume = original(connection, volume_id, request, now) if found is None else found
        return made

    return create


def deleted_or_not(original: Any) -> Any:
    """W50: a volume is handed out as long as it has a row."""

    def require(connection: Connection, volume_id: str) -> Volume:
        found = volume_get(connection, volume_id)
        if found is None:
            raise NotFound("volume", volume_id)
        return found

    return require


def both_are_well(original: Any) -> Any:
    """W51: a volume that names both targets has the new one in the place of the old one as well."""

    def decided(*, old: bool, new: bool, swap: str) -> VolumeReplaceResult | None:
        found: VolumeReplaceResult | None = None if old else original(old=old, new=new, swap=swap)
        return found

    return decided


def without_index(*names: str) -> Callable[[Any], Any]:
    """The database of the explorer has no such index."""

    def instead(original: Any) -> Any:
        def fill(self: Any, rows: bytes) -> None:
            original(self, rows)
            for name in names:
                self.transact_blocking(lambda c, one=name: c.execute(text(f"DROP INDEX IF EXISTS {one}")) and None)

        return fill

    return instead
