"""``region_replacement_driver``: keep replacements of read/write regions going until their volumes are whole (§4.2).

What it finds: requests that run, and requests whose volume is whole again.

What it does, in this order: a request whose new region an Upstairs has notified of is done; for any other a drive saga
is started. Then the finish saga is started for those that are done, also for those that became so just now.

Why it is safe: a notification is believed where the volume was last given to an instance, or to nobody (R29). Where a
pantry was asked it is not: hashes have to show it, and the drive saga asks for them. Marking takes the request only out
of nobody's hand (R28); sagas that come too late lose at their first node (R1). That a failed repair is driven again
needs no code: nothing has succeeded. Only what runs is driven (R27): its document is not taken back any more.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from nexus.db import Conflict, DatabaseError, schema
from nexus.db.schema import RegionReplacementState, RepairNotificationType
from nexus.replacement.driving import ANOTHER_REPAIRS
from nexus.replacement.machine import move
from nexus.replacement.notes import waiting_no_more, waiting_since
from nexus.replacement.owners import CONSTRUCTED, owner_of
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    PantryStep,
    RegionEdge,
    RegionReplacement,
    region_replacement_get,
    region_replacements_in,
    step_newest,
)
from nexus.replacement.survivors import drives_at_a_pantry
from nexus.saga import Executor
from nexus.sagas import region_replacement_drive, region_replacement_finish
from nexus.sagas.region_replacement_drive import REGION_REPLACEMENT_DRIVE
from nexus.sagas.region_replacement_finish import REGION_REPLACEMENT_FINISH
from nexus.services import World
from nexus.tasks.task import Status, told

_NOTIFICATION = schema.upstairs_repair_notification


class RegionReplacementDriver:
    """Entries name requests."""

    name = "region_replacement_driver"
    description = "drives replacements of read/write regions until the volumes are whole, and finishes them"
    period_s = 10.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        status: Status = {"drive_invoked_ok": [], "finish_invoked_ok": [], "errors": []}
        for each in await self._at_rest(RegionReplacementState.RUNNING):
            try:
                await self._drive(each, status)
            except DatabaseError as error:
                status["errors"].append(f"request {each.id}: {told(error)}")
        for each in await self._at_rest(RegionReplacementState.REPLACEMENT_DONE):
            try:
                await self._finish(each, status)
            except DatabaseError as error:
                status["errors"].append(f"request {each.id}: {told(error)}")
        return status

    async def _at_rest(self, state: RegionReplacementState) -> list[RegionReplacement]:
        return await self._world.database.read(lambda c: region_replacements_in(c, [state], at_rest=True))

    async def _drive(self, request: RegionReplacement, status: Status) -> None:
        world = self._world
        if await world.database.transact(lambda c: marked_done(c, request)):
            return
        if await world.database.transact(lambda c: _is_driven_by_another(c, request, world.now())):
            return
        params = region_replacement_drive.Params(request_id=request.id, volume_id=request.volume_id)
        await self._executor.start(REGION_REPLACEMENT_DRIVE, params)
        status["drive_invoked_ok"].append(f"request {request.id}")

    async def _finish(self, request: RegionReplacement, status: Status) -> None:
        if request.old_region_volume_id is None:
            status["errors"].append(f"request {request.id} is done, and has no stash volume")
            return
        params = region_replacement_finish.Params(
            request_id=request.id,
            volume_id=request.volume_id,
            old_region_id=request.old_region_id,
            stash_id=request.old_region_volume_id,
        )
        await self._executor.start(REGION_REPLACEMENT_FINISH, params)
        status["finish_invoked_ok"].append(f"request {request.id}")


def marked_done(connection: Connection, request: RegionReplacement) -> bool:
    """Whether an Upstairs told that the new region is whole; the request is done then. A request that a saga has by
    now is left to that (R28): what was told stays written, and is read again."""
    if not was_notified(connection, request):
        return False
    try:
        move(connection, REGION_REPLACEMENT, RegionEdge.NOTIFIED, request.id)
    except Conflict:
        return False
    waiting_no_more(connection, request.id)
    return True


def was_notified(connection: Connection, request: RegionReplacement) -> bool:
    """Whether a repair of the new region has succeeded, by the word of an Upstairs that serves a guest."""
    newest = step_newest(connection, request.id)
    if newest is not None and isinstance(newest[0], PantryStep):
        return False
    query = select(_NOTIFICATION.c.repair_id).where(
        _NOTIFICATION.c.region_id == request.new_region_id,
        _NOTIFICATION.c.notification_type == RepairNotificationType.SUCCEEDED,
    )
    return connection.execute(query.limit(1)).first() is not None


def _is_driven_by_another(connection: Connection, request: RegionReplacement, now: datetime) -> bool:
    """*Optimisation*: an older request has the volume repaired, this one's new region with it; its saga would find that
    there is nothing to do, and say so."""
    if owner_of(connection, request.volume_id).situation in CONSTRUCTED:
        return False
    if drives_at_a_pantry(connection, request.volume_id) == request.id:
        return False
    if region_replacement_get(connection, request.id).state is RegionReplacementState.RUNNING:
        waiting_since(connection, request.id, ANOTHER_REPAIRS, now)
    return True
