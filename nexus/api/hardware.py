"""``/v1/system/hardware``: sleds and physical disks. An operator's alone: a tenant does not learn what a rack is."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from crucible_emu.service import Call, Operation
from nexus.api import external_documents as documents
from nexus.api import views
from nexus.api.callers import require_operator
from nexus.api.queries import by_attribute, page_of, path_id, slice_of
from nexus.api.refusals import Handler, answering
from nexus.db import schema
from nexus.db.schema import SledPolicy
from nexus.objects import hardware, lookups
from nexus.objects.lookups import Order
from nexus.running import Nexus

_SLED, _DISK = schema.sled, schema.physical_disk
BASE = "/v1/system/hardware"
BY_ID = (Order.ID_ASCENDING,)

PROVISION_POLICIES = {"provisionable": SledPolicy.IN_SERVICE, "non_provisionable": SledPolicy.NO_PROVISION}


class Hardware:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._world = nexus.world

    async def sleds(self, call: Call) -> object:
        wanted = slice_of(call, BY_ID)
        rows = await self._world.database.read(
            lambda c: lookups.page(c, hardware.sleds_selected(), _SLED, wanted),
        )
        items = tuple(map(views.sled, rows))
        return documents.SledResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def sled(self, call: Call) -> object:
        sled_id = path_id(call, "sled_id")
        return views.sled(await self._world.database.read(lambda c: hardware.sled_require(c, sled_id)))

    async def disks(self, call: Call) -> object:
        return await self._disks(call, None)

    async def disks_of_sled(self, call: Call) -> object:
        return await self._disks(call, path_id(call, "sled_id"))

    async def _disks(self, call: Call, sled_id: str | None) -> object:
        wanted = slice_of(call, BY_ID)

        def body(connection: Connection) -> list[Any]:
            query = hardware.physical_disks_selected()
            if sled_id is not None:
                hardware.sled_require(connection, sled_id)
                query = query.where(_DISK.c.sled_id == sled_id)
            return lookups.page(connection, query, _DISK, wanted)

        rows = await self._world.database.read(body)
        items = tuple(map(views.physical_disk, rows))
        return documents.PhysicalDiskResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def disk(self, call: Call) -> object:
        disk_id = path_id(call, "disk_id")
        found = await self._world.database.read(lambda c: hardware.physical_disk_require(c, disk_id))
        return views.physical_disk(found)

    async def set_policy(self, call: Call) -> object:
        sled_id, world, wanted = path_id(call, "sled_id"), self._world, call.body.state
        before = await world.database.transact(
            lambda c: hardware.sled_set_provisionable(c, sled_id, PROVISION_POLICIES[wanted], world.now())
        )
        old = next(name for name, policy in PROVISION_POLICIES.items() if policy is before)
        return documents.SledProvisionPolicyResponse.model_validate({"old_state": old, "new_state": wanted})


def for_operators(handler: Handler) -> Handler:
    """``handler``, for operators."""

    async def guarded(call: Call) -> object:
        require_operator(call.caller)
        return await handler(call)

    return answering(guarded)


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, sled, policy = Hardware(nexus), f"{BASE}/sleds/{{sled_id}}", documents.SledProvisionPolicyParams
    return (
        Operation("sled_list", "GET", f"{BASE}/sleds", for_operators(do.sleds)),
        Operation("sled_view", "GET", sled, for_operators(do.sled)),
        Operation("sled_physical_disk_list", "GET", f"{sled}/disks", for_operators(do.disks_of_sled)),
        Operation("sled_set_provision_policy", "PUT", f"{sled}/provision-policy", for_operators(do.set_policy), policy),
        Operation("physical_disk_list", "GET", f"{BASE}/disks", for_operators(do.disks)),
        Operation("physical_disk_view", "GET", f"{BASE}/disks/{{disk_id}}", for_operators(do.disk)),
    )
