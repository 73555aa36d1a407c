"""``region_snapshot_replacement_start``: lost region snapshots get a request, and requests get going (nexus.md §4.3).

What it finds: region snapshots on physical disks that are expunged, of which nobody ever asked for a replacement; and
requests, of whatever read-only target, that wait to be begun with.

What it does: a request for each, under the lock of its snapshot's volume; who is refused that is in line for it, and
comes back with the next activation. Then: where the target of a request is gone, for everybody who counted on it was
deleted, the request is complete and gives its lock back; else its start saga is begun. Whether the snapshot's volume is
there is not asked: copies of it need the replacement all the same.

Why it is safe beside other Nexus: a target has one open request, an index says so; and of several sagas for one request
all but one end at their first node (R1). A target that ever had a request is not asked for again: one that is complete
means that the target's row is gone.

A request that waits for a good copy to clone is not begun with at every activation (*optimisation*): the saga would
find the same. The next one that it might be cloned from is looked for here each time.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, select

from nexus.db import Conflict, DatabaseError, NotFound, schema
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.replacement import notes
from nexus.replacement.machine import move
from nexus.replacement.read_only import (
    READ_ONLY_REPLACEMENT,
    ReadOnlyEdge,
    ReadOnlyReplacement,
    read_only_replacement_request,
    read_only_replacements_in,
    target_of,
    target_present,
    target_was_requested,
)
from nexus.replacement.region import RequestResult
from nexus.replacement.snapshot_copies import nothing_to_clone
from nexus.saga import Executor
from nexus.sagas.region_snapshot_replacement_start import REGION_SNAPSHOT_REPLACEMENT_START, Params
from nexus.services import World
from nexus.services.gone import on_expunged_disk
from nexus.tasks.task import Status, told
from nexus.volumes import RegionSnapshot
from nexus.volumes.resolution import Resource

_SNAPSHOT = schema.region_snapshot


class RegionSnapshotReplacementStart:
    """The entries are sentences, each with the id of the request at its end."""

    name = "region_snapshot_replacement_start"
    description = "asks for the replacement of region snapshots on expunged disks, and begins with what was asked for"
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
        await ask_for(self._world, await self._world.database.read(lost_region_snapshots), status)
        await self._begin(status)
        return status

    async def _begin(self, status: Status) -> None:
        states = (RegionSnapshotReplacementState.REQUESTED,)
        for request in await self._world.database.read(lambda c: read_only_replacements_in(c, states, at_rest=True)):
            try:
                await self._begin_with(request, status)
            except DatabaseError as error:
                status["errors"].append(f"request {request.id}: {told(error)}")

    async def _begin_with(self, request: ReadOnlyReplacement, status: Status) -> None:
        world = self._world
        if await world.database.transact(lambda c: completed_without_target(c, world, request)):
            status["requests_completed_ok"].append(f"the {request.old} is gone: completed request {request.id}")
            return
        waits_for = await world.database.transact(lambda c: waits(c, world, request))
        if waits_for is not None:
            status["waiting"].append(f"{waits_for}: request {request.id}")
            return
        await self._executor.start(REGION_SNAPSHOT_REPLACEMENT_START, Params(request_id=request.id))
        status["start_invoked_ok"].append(f"began with request {request.id}")


_LOST = (
    select(_SNAPSHOT.c.dataset_id, _SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id)
    .where(on_expunged_disk(_SNAPSHOT.c.dataset_id), ~_SNAPSHOT.c.deleting)
    .order_by(_SNAPSHOT.c.dataset_id, _SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id)
)


def lost_region_snapshots(connection: Connection) -> list[Resource]:
    """Region snapshots on expunged disks for which there never was a request, in the order of their keys. *W52*: none
    that is being destroyed, for nobody reads it any more."""
    found = [RegionSnapshot(*row) for row in connection.execute(_LOST)]
    return [each for each in found if not target_was_requested(connection, each)]


async def ask_for(world: World, targets: list[Resource], status: Status) -> None:
    """A request for each target, noted in ``status``. Who is refused the lock is in line for it, and no error; and a
    target that was deleted since it was found needs none."""
    for target in targets:
        try:
            request_id, result = await world.database.transact(
                partial(read_only_replacement_request, locks=world.locks, old=target, now=world.now())
            )
        except NotFound:
            continue
        except DatabaseError as error:
            status["errors"].append(f"{target}: {told(error)}")
            continue
        if result is RequestResult.MADE:
            status["requests_created_ok"].append(f"the {target} is lost: created request {request_id}")


def completed_without_target(connection: Connection, world: World, request: ReadOnlyReplacement) -> bool:
    """Complete a request whose target is gone (edge 11); whether it is complete now. W53: this is the one way to the
    end beside the finish saga, and both ask for the target's row."""
    if target_present(connection, request.old):
        return False
    try:
        move(connection, READ_ONLY_REPLACEMENT, ReadOnlyEdge.TARGET_GONE, request.id, locks=world.locks)
    except Conflict:
        return False
    notes.waiting_no_more(connection, request.id)
    return True


def waits(connection: Connection, world: World, request: ReadOnlyReplacement) -> str | None:
    """Why the request cannot be begun with now, in a sentence, which is noted; ``None``: it can."""
    if target_of(connection, request.old) is None:
        why: str | None = f"the {request.old} is being deleted, or nobody knows where it listens"
    else:
        why = nothing_to_clone(connection, request.id, request.old)
    if why is not None:
        notes.waiting_since(connection, request.id, why, world.now())
    return why
