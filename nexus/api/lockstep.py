"""The lockstep API: what operators ask of one Nexus (apis-and-tools.md §5.5), and beside it our own routes.

For operators. Background tasks are those of the Nexus that is asked; sagas and hardware are everybody's.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from crucible_emu.service import Api, Call, Operation
from nexus.api import emulator, saga_views, views
from nexus.api import lockstep_documents as documents
from nexus.api.callers import Doors
from nexus.api.queries import by_attribute, page_of, path_id, slice_of
from nexus.api.refusals import answering, not_found
from nexus.objects import hardware
from nexus.objects.lookups import Order
from nexus.running import Nexus
from nexus.tasks import UnknownTask

NAME = "nexus-lockstep"
BODY_BYTES_MAX = 1 << 20
BY_ID = (Order.ID_ASCENDING,)


class Lockstep:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def ping(self, _call: Call) -> object:
        return documents.Ping(status="ok")

    # -- background tasks ---------------------------------------------------------------------------------------------

    async def tasks(self, _call: Call) -> object:
        found = self._nexus.tasks.statuses()
        return {name: documents.BackgroundTask.model_validate(status) for name, status in found.items()}

    async def task(self, call: Call) -> object:
        name = call.path["bgtask_name"]
        try:
            return documents.BackgroundTask.model_validate(self._nexus.tasks.status(name))
        except UnknownTask:
            raise not_found("background task", name[:80]) from None

    async def activate(self, call: Call) -> object:
        try:
            self._nexus.tasks.activate(sorted(call.body.bgtask_names))
        except UnknownTask as error:
            raise not_found("background task", error.name[:80]) from None
        return None

    # -- hardware -----------------------------------------------------------------------------------------------------

    async def expunge_physical_disk(self, call: Call) -> object:
        disk_id, world = str(call.body.disk_id), self._world
        await world.database.transact(lambda c: hardware.physical_disk_expunge(c, disk_id, world.now()))
        return None

    async def expunge_sled(self, call: Call) -> object:
        sled_id, world = str(call.body.sled), self._world
        before = await world.database.transact(lambda c: hardware.sled_expunge(c, sled_id, world.now()))
        return views.sled_policy(before)

    # -- sagas --------------------------------------------------------------------------------------------------------

    async def sagas(self, call: Call) -> object:
        wanted = slice_of(call, BY_ID)

        def body(connection: Any) -> Any:
            rows = saga_views.page(connection, wanted)
            return rows, saga_views.failures(connection, rows)

        rows, why = await self._world.database.read(body)
        items = tuple(saga_views.lockstep(row, why.get(row.id, {})) for row in rows if _is_uuid(row.id))
        return documents.SagaResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def saga(self, call: Call) -> object:
        saga_id = path_id(call, "saga_id")

        def body(connection: Any) -> Any:
            row = saga_views.require(connection, saga_id)
            return saga_views.lockstep(row, saga_views.failures(connection, [row]).get(saga_id, {}))

        return await self._world.database.read(body)


def _is_uuid(text: str) -> bool:
    """The document has no other ids for sagas; ours are shown by the emulator's own routes."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def lockstep_api(nexus: Nexus, doors: Doors, *, faithful: bool = False) -> Api:
    """The API of ``nexus``; a faithful one is without our own routes."""
    do = Lockstep(nexus)
    rows: tuple[tuple[str, str, str, Any, Any, int], ...] = (
        ("ping", "GET", "/v1/ping", do.ping, None, 200),
        ("bgtask_list", "GET", "/bgtasks", do.tasks, None, 200),
        ("bgtask_view", "GET", "/bgtasks/view/{bgtask_name}", do.task, None, 200),
        (
            "bgtask_activate",
            "POST",
            "/bgtasks/activate",
            do.activate,
            documents.BackgroundTasksActivateRequest,
            204,
        ),
        (
            "physical_disk_expunge",
            "POST",
            "/physical-disk/expunge",
            do.expunge_physical_disk,
            documents.PhysicalDiskPath,
            204,
        ),
        ("sled_expunge", "POST", "/sleds/expunge", do.expunge_sled, documents.SledSelector, 200),
        ("saga_list", "GET", "/sagas", do.sagas, None, 200),
        ("saga_view", "GET", "/sagas/{saga_id}", do.saga, None, 200),
    )
    operations = [
        Operation(name, way, path, answering(handler), body, ok) for name, way, path, handler, body, ok in rows
    ]
    if not faithful:
        operations += emulator.operations(nexus)
    return Api(NAME, operations, BODY_BYTES_MAX, faithful=faithful, identify=doors.operators)
