"""Agents, as sagas ask them: until they answer, or are gone for good (nexus.md §8.1).

What it guarantees: every call may be made again after any failure and ends in the same state. Before each attempt the
database is asked whether the dataset is still in service. When it is not, what makes something fails with
:class:`~nexus.services.refusals.Gone`, and what takes something away has succeeded: *liveness*, for whatever is on a
disk that is gone needs no deleting, and nobody may wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

import trio
from sqlalchemy import select

from crucible_emu.agent.documents import CreateRegion, DigestStatus, GetSnapshotResponse, Region
from crucible_emu.client import regions as waiting
from crucible_emu.client.agent import AgentClient
from crucible_emu.client.failures import ServiceError
from crucible_emu.client.persistence import Persistence
from nexus.db import Database, NotFound, schema
from nexus.placement import AllocatedRegion, Geometry
from nexus.services.connections import Connections
from nexus.services.gone import dataset_gone
from nexus.services.refusals import Gone, told_of
from nexus.volumes import Address, RegionSnapshot, region_record_port
from nexus.volumes.freed import Dataset, FreedRegion, FreedSnapshot

REQUESTS_MAX = 3
"""How many requests of one batch are under way at once (§8.1)."""

T = TypeVar("T")
Item = TypeVar("Item")
_REGION, _DATASET = schema.region, schema.crucible_dataset


@dataclass(frozen=True, slots=True)
class WantedRegion:
    """A region that was placed and is to be made. ``source``: the repair address of what it is a clone of; it is
    read-only then."""

    region: AllocatedRegion
    geometry: Geometry
    source: Address | None = None

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.region.dataset_id, self.region.ip, self.region.agent_port)


class Agents:
    """All agents of the rack. ``persistence`` says how long the pauses are; its ``gone`` is not used."""

    def __init__(
        self, database: Database, connections: Connections, persistence: Persistence, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._connections = connections
        self._persistence = persistence
        self._now = now

    # -- making -------------------------------------------------------------------------------------------------------

    async def regions_ensure(self, wanted: Sequence[WantedRegion]) -> list[Address]:
        """Where each region's Downstairs listens, when all are made; the ports are recorded. Raises
        :class:`Gone`, :class:`~nexus.services.refusals.ServiceRefused`."""
        return await self._batch(self.region_ensure, wanted)

    async def region_ensure(self, wanted: WantedRegion) -> Address:
        """As :meth:`regions_ensure`, for one."""
        region, geometry = wanted.region, wanted.geometry
        wish = CreateRegion(
            id=region.region_id,
            block_size=geometry.block_size,
            extent_size=geometry.blocks_per_extent,
            extent_count=geometry.extent_count,
            encrypted=True,
            source=None if wanted.source is None else str(wanted.source),
        )
        with told_of(f"region {region.region_id}"):
            made = await waiting.ensure_region(self._agent(wanted.dataset), wish, self._persisting(wanted.dataset))
        port = made.port_number
        await self._database.transact(lambda c: region_record_port(c, region.region_id, port, self._now()))
        return Address.of(region.ip, port)

    async def snapshot_run(self, dataset: Dataset, snapshot: RegionSnapshot) -> Address:
        """Where the snapshot's read-only Downstairs listens, when it runs. Raises as :meth:`regions_ensure`; an
        unknown snapshot is a :class:`~nexus.services.refusals.ServiceRefused` of status 404."""
        with told_of(f"snapshot {snapshot.snapshot_id} of region {snapshot.region_id}"):
            running = await waiting.run_snapshot(
                self._agent(dataset), snapshot.region_id, snapshot.snapshot_id, self._persisting(dataset)
            )
        return Address.of(dataset.ip, running.port_number)

    # -- taking away --------------------------------------------------------------------------------------------------

    async def regions_delete(self, freed: Sequence[FreedRegion]) -> None:
        """Return when all are destroyed, or their datasets are gone."""
        await self._batch(lambda each: self.region_delete(each.dataset, each.region_id), freed)

    async def region_delete(self, dataset: Dataset, region_id: str) -> None:
        with _gone_is_done(), told_of(f"region {region_id}"):
            await waiting.delete_region(self._agent(dataset), region_id, self._persisting(dataset))

    async def snapshots_stop(self, freed: Sequence[FreedSnapshot]) -> None:
        """Return when no Downstairs serves any of them; of those that were never run, and of regions that the agent
        does not know, that is so."""
        await self._batch(lambda each: self.snapshot_stop(each.dataset, each.snapshot), freed)

    async def snapshot_stop(self, dataset: Dataset, snapshot: RegionSnapshot) -> None:
        region_id, name = snapshot.region_id, snapshot.snapshot_id
        agent, persistence = self._agent(dataset), self._persisting(dataset)
        with _gone_is_done(), told_of(f"running snapshot {name} of region {region_id}"):
            # *Liveness*: an agent refuses to stop what it never ran, and an undo has to end well there, too.
            held = await persistence.ask(lambda: _held(agent, region_id))
            if held is not None and name in held.running_snapshots:
                await waiting.stop_snapshot(agent, region_id, name, persistence)

    async def snapshots_delete(self, freed: Sequence[FreedSnapshot]) -> None:
        """Return when none of them exists, as with regions that the agent does not know."""
        await self._batch(lambda each: self.snapshot_delete(each.dataset, each.snapshot), freed)

    async def snapshot_delete(self, dataset: Dataset, snapshot: RegionSnapshot) -> None:
        region_id, name = snapshot.region_id, snapshot.snapshot_id
        agent, persistence = self._agent(dataset), self._persisting(dataset)
        with _gone_is_done(), told_of(f"snapshot {name} of region {region_id}"):
            if await persistence.ask(lambda: _held(agent, region_id)) is not None:
                await waiting.delete_snapshot(agent, region_id, name, persistence)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def region_address(self, region_id: str) -> Address:
        """Where the region's Downstairs listens: as recorded, or as the agent says, which is recorded then. Raises
        :class:`Gone` also where there is no such region any more."""
        dataset, port = await self._recorded(region_id)
        if port is None:
            with told_of(f"region {region_id}"):
                found = await self._persisting(dataset).ask(lambda: self._agent(dataset).region_get(region_id))
            told = found.port_number
            try:
                await self._database.transact(lambda c: region_record_port(c, region_id, told, self._now()))
            except NotFound as error:
                raise Gone(f"region {region_id}") from error
            port = told
        return Address.of(dataset.ip, port)

    async def region_digest(self, dataset: Dataset, region_id: str) -> DigestStatus:
        """The digest of a region, when it is computed. Raises as :meth:`regions_ensure`."""
        return await self._digest(dataset, f"region {region_id}", lambda agent: agent.region_digest(region_id))

    async def snapshot_digest(self, dataset: Dataset, snapshot: RegionSnapshot) -> DigestStatus:
        """The digest of a snapshot, when it is computed. Raises as :meth:`regions_ensure`."""
        region_id, name = snapshot.region_id, snapshot.snapshot_id
        what = f"snapshot {name} of region {region_id}"
        return await self._digest(dataset, what, lambda agent: agent.snapshot_digest(region_id, name))

    async def digest_forget(self, dataset: Dataset, region_id: str, snapshot_id: str | None = None) -> None:
        """Have the bytes of a region, or of its snapshot, read again by the next question for their digest. Raises as
        :meth:`regions_ensure`."""
        agent = self._agent(dataset)
        with told_of(f"the digest of region {region_id}"):
            await self._persisting(dataset).ask(
                lambda: (
                    agent.region_digest_forget(region_id)
                    if snapshot_id is None
                    else agent.snapshot_digest_forget(region_id, snapshot_id)
                )
            )

    async def regions_list(self, dataset: Dataset) -> list[Region]:
        """Every region the agent knows, destroyed ones included; asked once, so that who looks for faults does not
        wait for a dead agent. Raises :class:`~nexus.services.refusals.ServiceRefused`, and
        :class:`~crucible_emu.client.failures.ServiceUnreachable`."""
        with told_of(f"the agent at {Address.of(dataset.ip, dataset.port)}"):
            return await self._agent(dataset).region_list()

    async def region_snapshots(self, dataset: Dataset, region_id: str) -> GetSnapshotResponse:
        """The snapshots of a region, running ones included. Raises as :meth:`regions_list`."""
        with told_of(f"the snapshots of region {region_id}"):
            return await self._agent(dataset).region_get_snapshots(region_id)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _digest(
        self, dataset: Dataset, what: str, look: Callable[[AgentClient], Awaitable[DigestStatus]]
    ) -> DigestStatus:
        agent = self._agent(dataset)
        with told_of(f"the digest of {what}"):
            return await self._persisting(dataset).wait_for(lambda: look(agent), lambda each: each.state != "computing")

    async def _recorded(self, region_id: str) -> tuple[Dataset, int | None]:
        query = (
            select(_REGION.c.dataset_id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.port.label("downstairs_port"))
            .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
            .where(_REGION.c.id == region_id)
        )
        row = await self._database.read(lambda c: c.execute(query).one_or_none())
        if row is None:
            raise Gone(f"region {region_id}")
        return Dataset(row.dataset_id, row.ip, row.port), row.downstairs_port

    def _agent(self, dataset: Dataset) -> AgentClient:
        return self._connections.agent(Address.of(dataset.ip, dataset.port))

    def _persisting(self, dataset: Dataset) -> Persistence:
        async def gone() -> bool:
            return await self._database.read(lambda c: dataset_gone(c, dataset.id))

        return replace(self._persistence, gone=gone)

    async def _batch(self, work: Callable[[Item], Awaitable[T]], items: Iterable[Item]) -> list[T]:
        """All of them, a few at a time; all come to their end before the first failure is raised."""
        given = list(items)
        limiter = trio.CapacityLimiter(REQUESTS_MAX)
        results: dict[int, T] = {}
        failures: dict[int, Exception] = {}

        async def one(number: int, item: Item) -> None:
            async with limiter:
                try:
                    results[number] = await work(item)
                except Exception as error:  # noqa: BLE001 - raised below, when the others have ended
                    failures[number] = error

        async with trio.open_nursery() as nursery:
            for number, item in enumerate(given):
                nursery.start_soon(one, number, item)
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(len(given))]


@contextmanager
def _gone_is_done() -> Iterator[None]:
    try:
        yield
    except Gone:
        return


async def _held(agent: AgentClient, region_id: str) -> GetSnapshotResponse | None:
    """The snapshots of a region; ``None`` where the agent never had the region."""
    try:
        return await agent.region_get_snapshots(region_id)
    except ServiceError as error:
        if error.status == 404:
            return None
        raise
