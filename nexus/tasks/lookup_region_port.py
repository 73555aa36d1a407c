"""``lookup_region_port``: learn where Downstairs listen (nexus.md §4.8).

What it finds: regions whose port nobody wrote down, for the saga that made them died in between, or an older Nexus did
not. What it does: asks each agent once what it has, and writes down the ports of the regions that are made.

Why it is safe beside the sagas that make regions: a region keeps its port for as long as it is there, so whoever writes
it first writes the same. An agent that does not answer is an error of this activation, and no more: nothing waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import trio
from sqlalchemy import Connection, select

from crucible_emu.agent.documents import Region, State
from crucible_emu.client.failures import ServiceUnreachable
from crucible_emu.errors import RemoteError
from nexus.db import DatabaseError, schema
from nexus.saga import ActionFailed
from nexus.services import World
from nexus.services.gone import dataset_gone
from nexus.tasks.task import Status, told
from nexus.volumes import region_record_port
from nexus.volumes.freed import Dataset

AGENT_TIMEOUT_S = 15.0

_REGION, _DATASET = schema.region, schema.crucible_dataset


class LookupRegionPort:
    """Found ports are in ``found_port_ok``."""

    name = "lookup_region_port"
    description = "fills in the ports of regions that are not written down"
    period_s = 60.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        found: list[str] = []
        errors: list[str] = []
        for dataset, regions in (await self._world.database.read(without_port)).items():
            try:
                with trio.fail_after(AGENT_TIMEOUT_S):
                    there = {each.id: each for each in await self._world.agents.regions_list(dataset)}
            except (ActionFailed, ServiceUnreachable, RemoteError, trio.TooSlowError) as error:
                errors.append(f"dataset {dataset.id}: {_why(error)}")
                continue
            for region_id in regions:
                region = there.get(region_id)
                if region is None or region.state is not State.CREATED:
                    state = "unknown to its agent" if region is None else region.state.value
                    errors.append(f"dataset {dataset.id} region {region_id} is {state}")
                    continue
                try:
                    await self._record(region)
                    found.append(f"dataset {dataset.id} region {region_id} found port {region.port_number}")
                except DatabaseError as error:
                    errors.append(f"dataset {dataset.id} region {region_id}: {told(error)}")
        return {"found_port_ok": found, "errors": errors}

    async def _record(self, region: Region) -> None:
        world = self._world
        await world.database.transact(lambda c: region_record_port(c, region.id, region.port_number, world.now()))


_WITHOUT_PORT = (
    select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.id)
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .where(_REGION.c.port.is_(None))
    .order_by(_DATASET.c.id, _REGION.c.id)
)


def without_port(connection: Connection) -> Mapping[Dataset, Sequence[str]]:
    """Regions without a port by dataset. Those whose dataset is gone are left out: nobody is there to be asked."""
    found: dict[Dataset, list[str]] = defaultdict(list)
    for row in connection.execute(_WITHOUT_PORT):
        found[Dataset(*row[:3])].append(row[3])
    return {dataset: regions for dataset, regions in found.items() if not dataset_gone(connection, dataset.id)}


def _why(error: Exception) -> str:
    if isinstance(error, ServiceUnreachable):
        return f"its agent does not answer: {error.reason}"
    return "its agent does not answer in time" if isinstance(error, trio.TooSlowError) else told(error)
