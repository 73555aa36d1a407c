"""Our routes about replacements, ``/emulator/v1/replacements``: looked at, asked for, decided (nexus.md §4.11).

For operators. To look changes nothing. What is asked for is only written down: the background tasks find it, whichever
Nexus they run in, as they find what they asked for themselves.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, get_args

from sqlalchemy import Connection, select

from crucible_emu.service import Call
from nexus.api import replacement_documents as documents
from nexus.api import replacement_views as views
from nexus.api.queries import by_attribute, page_of, path_id, slice_of
from nexus.api.refusals import bad_request
from nexus.db import Conflict, schema
from nexus.objects.lookups import Order
from nexus.objects.refusals import invalid_request, not_found
from nexus.replacement.notes import survivor_decide
from nexus.replacement.read_only import read_only_replacement_request
from nexus.replacement.region import RequestResult, region_replacement_request, region_replacements_of_volume
from nexus.running import Nexus
from nexus.services.gone import dataset_gone
from nexus.volumes import ReadOnlyRegion, RegionSnapshot, RepairLocks
from nexus.volumes.repair_lock import PATIENCE

_REGION = schema.region

BY_ID = (Order.ID_ASCENDING,)
STATES = get_args(documents.State)


class Replacements:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._world = nexus.world

    async def page(self, call: Call) -> object:
        wanted, state = slice_of(call, BY_ID), call.query.get("state")
        if state is not None and state not in STATES:
            raise bad_request(f"state is one of {', '.join(STATES)}")
        everything = call.query.get("all", "false")
        if everything not in ("true", "false"):
            raise bad_request("all is true or false")
        find = partial(views.page, wanted=wanted, state=state, everything=everything == "true")
        items = await self._world.database.read(find)
        return documents.ReplacementPage(items=tuple(items), next_page=page_of(items, wanted, by_attribute))

    async def one(self, call: Call) -> object:
        request_id = path_id(call, "request_id")
        return await self._world.database.read(lambda c: views.detail(c, request_id))

    async def waiting(self, _call: Call) -> object:
        now = self._world.now()
        return await self._world.database.read(lambda c: views.waiting(c, now))

    async def to_do(self, _call: Call) -> object:
        return await self._world.database.read(views.to_do)

    async def request(self, call: Call) -> object:
        """Who is refused the lock stands in line for it all the same: so that is committed, and told afterwards."""
        target, world = call.body.target, self._world

        def body(connection: Connection) -> tuple[str, RequestResult]:
            return _ask(connection, world.locks, target, world.now())

        request_id, result = await world.database.transact(body)
        if result is RequestResult.OPEN_ALREADY:
            raise Conflict(f"it is being replaced already, by request {request_id}")
        if result is RequestResult.LOCK_HELD:
            raise Conflict(
                f"another has the lock of its volume; {request_id} stands in line for it, which nexus replacement"
                f" waiting shows: ask again within {PATIENCE.total_seconds() / 60:.0f} minutes to keep the place"
            )
        return await world.database.read(lambda c: views.told_of(c, views.require(c, request_id)))

    async def believe(self, call: Call) -> object:
        volume_id, region_id, world = str(call.body.volume_id), str(call.body.region_id), self._world

        def body(connection: Connection) -> object:
            _require_survivor(connection, volume_id, region_id)
            survivor_decide(connection, volume_id, region_id, world.now())
            return views.decided(connection, volume_id, region_id)

        return await world.database.transact(body)


def _ask(connection: Connection, locks: RepairLocks, target: Any, now: datetime) -> tuple[str, RequestResult]:
    """Of a region it is looked up which of the two requests is the right one (W8)."""
    if isinstance(target, documents.RegionSnapshotToReplace):
        ids = (str(target.dataset_id), str(target.region_id), str(target.snapshot_id))
        return read_only_replacement_request(connection, locks, RegionSnapshot(*ids), now)
    region_id = str(target.region_id)
    read_only = connection.execute(select(_REGION.c.read_only).where(_REGION.c.id == region_id)).scalar_one_or_none()
    if read_only is None:
        raise not_found("region", region_id)
    if read_only:
        return read_only_replacement_request(connection, locks, ReadOnlyRegion(region_id), now)
    return region_replacement_request(connection, locks, region_id, now)


def _require_survivor(connection: Connection, volume_id: str, region_id: str) -> None:
    """*Safety*: the word is for a copy that is there, and for a volume that waits for it; given beforehand it would
    be about another loss than the one that the operator thinks of. Raises :class:`~nexus.saga.ActionFailed`."""
    row = connection.execute(select(_REGION).where(_REGION.c.id == region_id)).one_or_none()
    if row is None:
        raise not_found("region", region_id)
    if row.volume_id != volume_id or row.read_only:
        raise invalid_request(f"region {region_id} is no copy of volume {volume_id}")
    requests = region_replacements_of_volume(connection, volume_id)
    if not requests:
        raise invalid_request(f"no copy of volume {volume_id} is being replaced: there is nothing to decide")
    if region_id in {each.new_region_id for each in requests}:
        raise invalid_request(f"region {region_id} is new, and has nothing yet that could be believed")
    if dataset_gone(connection, row.dataset_id):
        raise invalid_request(f"region {region_id} is on an expunged disk, and so it is no survivor")


def rows(nexus: Nexus) -> tuple[tuple[str, str, str, Any, Any, int], ...]:
    """The rows of the API."""
    do, path = Replacements(nexus), documents.PATH
    return (
        ("emulator_replacement_list", "GET", path, do.page, None, 200),
        ("emulator_replacement_view", "GET", f"{path}/{{request_id}}", do.one, None, 200),
        ("emulator_replacement_request", "POST", path, do.request, documents.ReplacementRequest, 201),
        ("emulator_replacement_believe", "POST", f"{path}/believe", do.believe, documents.SurvivorDecision, 201),
        ("emulator_replacement_waiting", "GET", f"{path}/waiting", do.waiting, None, 200),
        ("emulator_replacement_to_do", "GET", f"{path}/to-do", do.to_do, None, 200),
    )
