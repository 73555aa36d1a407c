"""``region_replacement``: find lost read/write regions, and begin to replace them (nexus.md §4.1).

What it finds: regions on physical disks that are expunged, and requests that nobody has begun with.

What it does, in this order: a request for each lost region that never had one, if the volume's lock can be had; a
region of a volume that is being repaired already shares that lock (W41, W54). Then each request that nobody has begun
with is ended, if its volume is deleted or does not name the region any more (R46), or waits and says why, or its start
saga is started.

Why it is safe: to ask twice makes one request, and of two start sagas one loses at its first node (R1). That the saga
is not started when the swap would be refused, or the volume is deleted, is an *optimisation*: the saga asks again. That
a region which had a request gets no other is *safety*: afterwards it lies in a stash, whose region is not to be
replaced. To be refused the lock is no error; the request waits in line for it.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, select

from nexus.db import Conflict, DatabaseError, schema
from nexus.db.schema import RegionReplacementState
from nexus.replacement.machine import move
from nexus.replacement.notes import waiting_since
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    RegionEdge,
    RegionReplacement,
    RequestResult,
    region_replacement_get,
    region_replacement_request,
    region_replacements_in,
    region_was_requested,
)
from nexus.replacement.survivors import is_member, request_ended, swap_refused
from nexus.saga import ActionFailed, Executor
from nexus.sagas.region_replacement_start import REGION_REPLACEMENT_START, Params
from nexus.services import World
from nexus.services.gone import on_expunged_disk
from nexus.tasks.task import Status, told
from nexus.volumes import volume_deleted

_REGION = schema.region


class RegionReplacementDetector:
    """``waiting``: requests that could be begun with, but for the reason named."""

    name = "region_replacement"
    description = "detects lost read/write regions, and begins to replace them"
    period_s = 30.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        status: Status = {
            "requests_created_ok": [],
            "start_invoked_ok": [],
            "requests_completed_ok": [],
            "waiting": [],
            "errors": [],
        }
        await self._ask_for_successors(status)
        await self._begin(status)
        return status

    async def _ask_for_successors(self, status: Status) -> None:
        world = self._world
        for region_id, volume_id in await world.database.read(lost_regions):
            try:
                request_id = await world.database.transact(partial(self._asked, region_id=region_id))
            except (DatabaseError, ActionFailed) as error:
                status["errors"].append(f"region {region_id}: {told(error)}")
                continue
            if request_id is not None:
                status["requests_created_ok"].append(f"region {region_id} of volume {volume_id}: request {request_id}")

    def _asked(self, connection: Connection, region_id: str) -> str | None:
        """The new request; ``None`` where there is one, or was, or the lock is held by another."""
        if region_was_requested(connection, region_id):
            return None
        world = self._world
        request_id, result = region_replacement_request(connection, world.locks, region_id, world.now(), join=True)
        return request_id if result is RequestResult.MADE else None

    async def _begin(self, status: Status) -> None:
        world = self._world
        requested = [RegionReplacementState.REQUESTED]
        for each in await world.database.read(lambda c: region_replacements_in(c, requested)):
            try:
                await self._begin_with(each, status)
            except (DatabaseError, ActionFailed) as error:
                status["errors"].append(f"request {each.id}: {told(error)}")

    async def _begin_with(self, request: RegionReplacement, status: Status) -> None:
        world = self._world
        unneeded, why = await world.database.read(lambda c: (not_needed(c, request), _refusal(c, request)))
        if unneeded:
            if await world.database.transact(lambda c: completed_without_swap(c, world, request)):
                status["requests_completed_ok"].append(f"request {request.id}")
            return
        if why is not None:
            await world.database.transact(lambda c: noted(c, world, request, why))
            status["waiting"].append(f"request {request.id}: {why}")
            return
        params = Params(request_id=request.id, volume_id=request.volume_id, old_region_id=request.old_region_id)
        await self._executor.start(REGION_REPLACEMENT_START, params)
        status["start_invoked_ok"].append(f"request {request.id}")


_LOST = (
    select(_REGION.c.id, _REGION.c.volume_id)
    .where(on_expunged_disk(_REGION.c.dataset_id), ~_REGION.c.read_only)
    .order_by(_REGION.c.id)
)


def lost_regions(connection: Connection) -> list[tuple[str, str]]:
    """Read/write regions on expunged disks that living volumes name, and these volumes; in order of their ids.

    *Optimisation*: a region whose volume is deleted needs no successor, and a request for it would end at once.
    """
    rows = connection.execute(_LOST).all()
    return [(row.id, row.volume_id) for row in rows if is_member(connection, row.volume_id, row.id)]


def not_needed(connection: Connection, request: RegionReplacement) -> bool:
    """R46: whether the volume is deleted, or does not name the region any more."""
    return volume_deleted(connection, request.volume_id) or not is_member(
        connection, request.volume_id, request.old_region_id
    )


def _refusal(connection: Connection, request: RegionReplacement) -> str | None:
    return swap_refused(connection, request.volume_id, request.old_region_id)


def noted(connection: Connection, world: World, request: RegionReplacement, why: str) -> None:
    """Write down why the request waits, unless it does not any more: another Nexus may have begun with it, or ended it,
    since this one looked, and nobody takes a note away from a request that is complete."""
    if region_replacement_get(connection, request.id).state is RegionReplacementState.REQUESTED:
        waiting_since(connection, request.id, why, world.now())


def completed_without_swap(connection: Connection, world: World, request: RegionReplacement) -> bool:
    """R46, *liveness*: there is nothing to replace any more; the request is complete, and the lock given back. A
    request that a saga has by now is left to that."""
    if not not_needed(connection, request):
        return False
    try:
        move(connection, REGION_REPLACEMENT, RegionEdge.VOLUME_DELETED, request.id, locks=world.locks)
    except Conflict:
        return False
    request_ended(connection, request.id, request.volume_id)
    return True
