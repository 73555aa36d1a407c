"""Our own routes, ``/emulator/v1``: what the real rack's operator looks up in the database, and how one comes to be.

For operators, beside the lockstep API. A token is told once, to who asked for it; here only its digest stays.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from crucible_emu.service import Call, Operation
from nexus.api import emulator_documents as documents
from nexus.api import replacements, saga_views, views
from nexus.api.queries import by_attribute, page_of, path_id, slice_of
from nexus.api.refusals import answering, bad_request
from nexus.api.volume_tree import volume_of, volume_tree
from nexus.checking import check
from nexus.db import Conflict, schema
from nexus.db.schema.user_visible import TokenRole
from nexus.objects import hardware, lookups, tenants
from nexus.objects.lookups import Order
from nexus.objects.refusals import not_found
from nexus.running import Nexus
from nexus.sagas import volume_verify
from nexus.volumes import Address, repair_lock, volume_get

BY_ID = (Order.ID_ASCENDING,)
SAGA_ID_LENGTH_MAX = 128


class Emulator:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    # -- faults and volumes -------------------------------------------------------------------------------------------

    async def check(self, _call: Call) -> object:
        found = await check(self._world)
        told = [documents.CheckFinding(rule=each.invariant, sentence=each.sentence, ids=each.ids) for each in found]
        return documents.CheckReport(findings=tuple(told))

    async def volume(self, call: Call) -> object:
        return await volume_tree(self._world, await self._volume_id(call))

    async def lock_holder(self, call: Call) -> object:
        volume_id, lease = await self._volume_id(call), schema.saga_lease

        def body(connection: Connection) -> object:
            held = repair_lock.holder(connection, volume_id)
            if held is None:
                if volume_get(connection, volume_id) is None:
                    raise not_found("volume", volume_id)
                return documents.LockReport(volume_id=UUID(volume_id), holder=None)
            behind = select(lease.c.saga_id).where(lease.c.holder_id == held.repair_id)
            holder = documents.LockHolder(
                holder_id=UUID(held.repair_id),
                time_taken=held.time_taken,
                saga_id=connection.execute(behind).scalar_one_or_none(),
            )
            return documents.LockReport(volume_id=UUID(volume_id), holder=holder)

        return await self._world.database.read(body)

    async def verify(self, call: Call) -> object:
        """Answered when all of it was read and compared."""
        params = volume_verify.Params(volume_id=await self._volume_id(call))
        outputs = await self._nexus.executor.run(volume_verify.VOLUME_VERIFY, params)
        return documents.VerifyReport.model_validate(outputs["COMPARE"])

    async def _volume_id(self, call: Call) -> str:
        wanted = path_id(call, "volume_id")
        return await self._world.database.read(lambda connection: volume_of(connection, wanted))

    # -- hardware -----------------------------------------------------------------------------------------------------

    async def sleds(self, call: Call) -> object:
        wanted, table = slice_of(call, BY_ID), schema.sled

        def body(connection: Connection) -> Any:
            rows = lookups.page(connection, hardware.sleds_selected(), table, wanted)
            return rows, tuple(_sled(connection, row) for row in rows)

        rows, items = await self._world.database.read(body)
        return documents.SledPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def add_sled(self, call: Call) -> object:
        wish, world = call.body, self._world
        new = hardware.NewSled(
            wish.serial,
            wish.part,
            _address(wish.host),
            None if wish.pantry is None else _address(wish.pantry),
            tuple(
                hardware.NewAgent(_address(each), each.size_bytes, each.serial, each.vendor, each.model)
                for each in wish.agents
            ),
        )

        def body(connection: Connection) -> object:
            sled_id = hardware.sled_add(connection, new, world.new_id, world.now())
            return _sled(connection, hardware.sled_require(connection, sled_id))

        return await world.database.transact(body)

    async def expunge_sled(self, call: Call) -> object:
        sled_id, world = path_id(call, "sled_id"), self._world

        def body(connection: Connection) -> object:
            hardware.sled_expunge(connection, sled_id, world.now())
            return _sled(connection, hardware.sled_require(connection, sled_id))

        return await world.database.transact(body)

    async def physical_disks(self, call: Call) -> object:
        wanted, table = slice_of(call, BY_ID), schema.physical_disk

        def body(connection: Connection) -> Any:
            rows = lookups.page(connection, hardware.physical_disks_selected(), table, wanted)
            return rows, tuple(_physical_disk(connection, row) for row in rows)

        rows, items = await self._world.database.read(body)
        return documents.PhysicalDiskPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def expunge_physical_disk(self, call: Call) -> object:
        disk_id, world = path_id(call, "disk_id"), self._world

        def body(connection: Connection) -> object:
            hardware.physical_disk_expunge(connection, disk_id, world.now())
            return _physical_disk(connection, hardware.physical_disk_require(connection, disk_id))

        return await world.database.transact(body)

    # -- sagas --------------------------------------------------------------------------------------------------------

    async def sagas(self, call: Call) -> object:
        wanted = slice_of(call, BY_ID)
        rows = await self._world.database.read(lambda c: saga_views.page(c, wanted))
        items = tuple(map(saga_views.entry, rows))
        return documents.SagaPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def saga(self, call: Call) -> object:
        saga_id = _saga_id(call)
        return await self._world.database.read(lambda c: saga_views.detail(c, saga_id))

    async def resume(self, call: Call) -> object:
        """Begin with the undos that failed once more; of a saga that is not stuck nothing is done."""
        saga_id = _saga_id(call)
        await self._world.database.read(lambda c: saga_views.require(c, saga_id))
        try:
            await self._nexus.executor.resume(saga_id)
        except KeyError:
            raise Conflict(f"saga {saga_id} cannot be resumed: its recipe is not known here") from None
        return await self._world.database.read(lambda c: saga_views.detail(c, saga_id))


class Tenants:
    """Silos, projects and tokens of ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._world = nexus.world

    async def silos(self, call: Call) -> object:
        wanted, table = slice_of(call, BY_ID), schema.silo
        query = select(table).where(table.c.time_deleted.is_(None))
        rows = await self._world.database.read(lambda c: lookups.page(c, query, table, wanted))
        items = tuple(documents.Silo(**views.identity(row)) for row in rows)
        return documents.SiloPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def create_silo(self, call: Call) -> object:
        wish, world, silo_id, table = call.body, self._world, self._world.new_id(), schema.silo

        def body(connection: Connection) -> object:
            tenants.silo_create(connection, silo_id, wish.name, wish.description, world.now())
            row = connection.execute(select(table).where(table.c.id == silo_id)).one()
            return documents.Silo(**views.identity(row))

        return await world.database.transact(body)

    async def projects(self, call: Call) -> object:
        wanted, table = slice_of(call, BY_ID), schema.project
        query = select(table).where(table.c.time_deleted.is_(None))
        rows = await self._world.database.read(lambda c: lookups.page(c, query, table, wanted))
        items = tuple(map(_project, rows))
        return documents.ProjectPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def create_project(self, call: Call) -> object:
        wish, world, project_id, table = call.body, self._world, self._world.new_id(), schema.project

        def body(connection: Connection) -> object:
            silo_id = tenants.only_silo(connection) if wish.silo_id is None else str(wish.silo_id)
            tenants.project_create(connection, project_id, silo_id, wish.name, wish.description, world.now())
            return _project(connection.execute(select(table).where(table.c.id == project_id)).one())

        return await world.database.transact(body)

    async def tokens(self, call: Call) -> object:
        wanted = slice_of(call, BY_ID)
        table = schema.access_token
        rows = await self._world.database.read(
            lambda c: lookups.page(c, tenants.tokens_selected(), table, wanted),
        )
        items = tuple(documents.TokenEntry.model_validate(_token(row)) for row in rows)
        return documents.TokenPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def create_token(self, call: Call) -> object:
        wish, world = call.body, self._world
        drawn = tenants.token_of(world.draw_bytes(tenants.TOKEN_BYTES))
        new = tenants.NewToken(
            id=world.new_id(),
            digest=tenants.digest_of(drawn),
            role=TokenRole(wish.role),
            project_id=None if wish.project_id is None else str(wish.project_id),
            time_expires=wish.time_expires,
        )

        def body(connection: Connection) -> object:
            tenants.token_insert(connection, new, world.now())
            return _token(tenants.token_get(connection, new.id))

        row: Any = await world.database.transact(body)
        return documents.TokenCreated.model_validate(row | {"token": drawn})

    async def delete_token(self, call: Call) -> object:
        token_id, world = path_id(call, "token_id"), self._world
        await world.database.transact(lambda c: tenants.token_revoke(c, token_id, world.now()))
        return None


# -- rows as documents ------------------------------------------------------------------------------------------------


def _sled(connection: Connection, row: Any) -> documents.SledEntry:
    disks, datasets = hardware.count_on(connection, row.id)
    pantry = hardware.pantry_on(connection, row.id)
    return documents.SledEntry(
        id=UUID(row.id),
        serial=row.serial_number,
        policy=row.sled_policy.value,
        state=row.sled_state.value,
        host=str(Address.of(row.ip, row.port)),
        pantry=None if pantry is None else str(pantry),
        physical_disks=disks,
        datasets=datasets,
    )


def _physical_disk(connection: Connection, row: Any) -> documents.PhysicalDiskEntry:
    on_it = hardware.datasets_of(connection, row.id)
    dataset = on_it[0] if on_it else None
    return documents.PhysicalDiskEntry(
        id=UUID(row.id),
        sled_id=UUID(row.sled_id),
        serial=row.serial,
        policy=row.disk_policy.value,
        state=row.disk_state.value,
        dataset_id=None if dataset is None else UUID(dataset.id),
        agent=None if dataset is None else str(Address.of(dataset.ip, dataset.port)),
        size_bytes=None if dataset is None else dataset.total_size,
        size_used=None if dataset is None else dataset.size_used,
    )


def _project(row: Any) -> documents.ProjectEntry:
    return documents.ProjectEntry(**views.identity(row), silo_id=UUID(row.silo_id))


def _token(row: Any) -> dict[str, Any]:
    return dict(row._mapping) | {"role": row.role.value}


def _address(given: Any) -> Address:
    try:
        found = Address.of(given.ip, given.port)
    except ValueError:
        raise bad_request("ip is an IPv6 address, without brackets") from None
    if "%" in found.ip:
        raise bad_request("ip is an IPv6 address without a zone")
    return found


def _saga_id(call: Call) -> str:
    text = call.path["saga_id"]
    if len(text) > SAGA_ID_LENGTH_MAX or not text.isprintable():
        raise bad_request("bad parameter in the path: saga_id is the id of a saga")
    return text


def operations(nexus: Nexus) -> list[Operation]:
    """The rows of the API."""
    do, tenancy, base = Emulator(nexus), Tenants(nexus), documents.BASE
    volume, sled, saga = f"{base}/volumes/{{volume_id}}", f"{base}/sleds/{{sled_id}}", f"{base}/sagas/{{saga_id}}"
    disk = f"{base}/physical-disks/{{disk_id}}"
    rows: tuple[tuple[str, str, str, Any, Any, int], ...] = (
        ("emulator_check", "GET", f"{base}/check", do.check, None, 200),
        ("emulator_volume_view", "GET", volume, do.volume, None, 200),
        ("emulator_volume_lock_holder", "GET", f"{volume}/lock-holder", do.lock_holder, None, 200),
        ("emulator_volume_verify", "POST", f"{volume}/verify", do.verify, None, 200),
        ("emulator_sled_list", "GET", f"{base}/sleds", do.sleds, None, 200),
        ("emulator_sled_add", "POST", f"{base}/sleds", do.add_sled, documents.SledAdd, 201),
        ("emulator_sled_expunge", "POST", f"{sled}/expunge", do.expunge_sled, None, 200),
        ("emulator_physical_disk_list", "GET", f"{base}/physical-disks", do.physical_disks, None, 200),
        ("emulator_physical_disk_expunge", "POST", f"{disk}/expunge", do.expunge_physical_disk, None, 200),
        ("emulator_saga_list", "GET", f"{base}/sagas", do.sagas, None, 200),
        ("emulator_saga_view", "GET", saga, do.saga, None, 200),
        ("emulator_saga_resume", "POST", f"{saga}/resume", do.resume, None, 200),
        ("emulator_silo_list", "GET", f"{base}/silos", tenancy.silos, None, 200),
        ("emulator_silo_create", "POST", f"{base}/silos", tenancy.create_silo, documents.SiloCreate, 201),
        ("emulator_project_list", "GET", f"{base}/projects", tenancy.projects, None, 200),
        ("emulator_project_create", "POST", f"{base}/projects", tenancy.create_project, documents.ProjectAdd, 201),
        ("emulator_token_list", "GET", f"{base}/tokens", tenancy.tokens, None, 200),
        ("emulator_token_create", "POST", f"{base}/tokens", tenancy.create_token, documents.TokenCreate, 201),
        ("emulator_token_delete", "DELETE", f"{base}/tokens/{{token_id}}", tenancy.delete_token, None, 204),
    )
    rows += replacements.rows(nexus)
    return [Operation(name, way, path, answering(handler), body, ok) for name, way, path, handler, body, ok in rows]
