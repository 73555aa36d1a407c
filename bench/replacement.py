"""What it costs to replace one copy of a snapshot that very many disks were made of (nexus.md §2.2, §2.3, W20).

What it is for: each volume that was made of the snapshot names the lost copy, and has to be mended. That must cost the
same for each, however many there are and whatever else is in the database: no volume that is not affected is read.

How: a database with a family in it (:mod:`bench.crowd`), alone or beside a crowd; the physical disk with the lost copy
is expunged, and the background tasks and sagas of Nexus do the rest, activation after activation, until the request is
complete. Agents that answer at once stand in for the real ones. What is asked of the database is counted in one run
(:mod:`bench.asked`), time is measured in others: those alone and those beside the crowd take turns.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import trio
from sqlalchemy import select

from bench.asked import Asked
from bench.control_plane import NEXUS_ID, InstantAgents, world_of
from bench.crowd import EXTENTS, Crowd, Family
from crucible_emu.client.agent import REGIONS
from nexus.db import Database, schema
from nexus.db.sagas import Leases, SagaStore
from nexus.objects.hardware import physical_disk_expunge
from nexus.saga import Executor
from nexus.sagas import ALL_SAGAS
from nexus.services import Connections, World
from nexus.tasks import Task, all_tasks

LEASE_S = 3600.0
ACTIVATIONS_MAX = 30
DIGEST = "0" * 64
SEED = 2
"""Not the crowd's, or sagas would have the ids of its volumes."""
TASKS = (
    "region_snapshot_replacement_start",
    "region_snapshot_replacement_garbage_collection",
    "region_snapshot_replacement_step",
    "region_snapshot_replacement_finish",
    "read_only_region_replacement_start",
)
"""Those that replace read-only targets, in the order in which each finds what the one before it has done."""
SMALL = frozenset({"physical_disk", "sled", "zpool", "crucible_dataset", "nexus_instance", "pantry"})
"""Tables whose size is that of the rack: to go through them costs the same whatever users have."""


class Incomplete(Exception):
    """The request did not come to its end."""


class CloningAgents(InstantAgents):
    """Agents at every address, that clone, too, and say of everything that it holds the same."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if (request.method, request.url.path) == ("GET", REGIONS):
            await trio.lowlevel.checkpoint()
            return httpx2.Response(200, json=[])
        if request.url.path.endswith("/digest"):
            await trio.lowlevel.checkpoint()
            if request.method == "DELETE":
                return httpx2.Response(204)
            found = {"state": "done", "extents_done": EXTENTS, "extent_count": EXTENTS, "extents_waiting": 0}
            return httpx2.Response(
                200, json=found | {"extents": [DIGEST] * EXTENTS, "digest": DIGEST, "immutable": True}
            )
        return await super().handle_async_request(request)


@dataclass(frozen=True, slots=True)
class Place:
    """A Nexus that does nothing by itself, and its tasks by their names."""

    world: World
    executor: Executor
    tasks: dict[str, Task]


@asynccontextmanager
async def nexus_over(database: Database) -> AsyncIterator[Place]:
    random = Random(SEED)
    leases = Leases(database, LEASE_S)
    await leases.register(NEXUS_ID)
    async with Connections(transport=CloningAgents()) as connections, trio.open_nursery() as nursery:
        world = world_of(database, connections, random)
        store = SagaStore(database)
        executor = Executor(nursery, store, ALL_SAGAS, world, NEXUS_ID, new_id=world.new_id)
        yield Place(world, executor, {each.name: each for each in all_tasks(world, executor, leases)})
        nursery.cancel_scope.cancel()


async def replaced(place: Place, family: Family) -> int:
    """Lose the family's disk, and have the copy replaced everywhere; after so many activations of all tasks. Raises
    :class:`Incomplete`."""
    database = place.world.database
    await database.transact(lambda c: physical_disk_expunge(c, family.physical_disk_id, place.world.now()))
    for number in range(1, ACTIVATIONS_MAX + 1):
        for name in TASKS:
            await place.tasks[name].activate()
        for saga_id in place.executor.in_hand:
            await place.executor.wait(saga_id)
        state = schema.region_snapshot_replacement.c.replacement_state
        states = await database.read(lambda c: list(c.execute(select(state)).scalars()))
        if states and set(states) == {"complete"}:
            return number
    raise Incomplete(f"the request is {states} after {ACTIVATIONS_MAX} activations of every task")


# -- counted ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """``reads`` and ``writes``: how often a statement read or wrote the row of an affected volume, the least and the
    most over all of them; ``named``: how often one named it on whatever table. ``strangers``: how often an id of a
    volume or disk that is not affected was met. ``scans``: what some statement goes through from end to end."""

    dependents: int
    unrelated: int
    activations: int
    reads: tuple[int, int]
    writes: tuple[int, int]
    named: tuple[int, int]
    strangers: int
    statements: int
    steps: int
    scans: dict[str, list[str]]

    def figures(self) -> dict[str, Any]:
        per = {"statements": self.statements / self.dependents, "steps": self.steps / self.dependents}
        touches = {"reads": self.reads, "writes": self.writes, "named": self.named}
        counts = {"dependents": self.dependents, "unrelated": self.unrelated, "activations": self.activations}
        return counts | touches | {"strangers": self.strangers, "scans": self.scans, "per_volume": per}


def strangers_of(database: Database, family: Family) -> set[str]:
    """The ids of every volume and disk that the replacement does not concern: not of the family, nor of the snapshot
    that it is made of."""
    disk, snapshot = schema.disk_type_crucible.c, schema.snapshot.c

    def body(connection: Any) -> set[str]:
        of_snapshot = select(snapshot.disk_id, snapshot.destination_volume_id)
        concerned = set(connection.execute(of_snapshot.where(snapshot.volume_id == family.snapshot_volume_id)).one())
        concerned |= {family.snapshot_volume_id, *family.volume_ids}
        volumes = set(connection.execute(select(schema.volume.c.id)).scalars())
        disks = {row.disk_id for row in connection.execute(select(disk)) if row.volume_id not in concerned}
        return (volumes | disks) - concerned

    return database.transact_blocking(body)


def span(counts: list[int]) -> tuple[int, int]:
    return min(counts), max(counts)


def counted(*, dependents: int, unrelated: int) -> Counted:
    """One replacement, in memory."""
    with Database.open("sqlite://", inline=True, random=Random(1)) as database:
        family = build(database, dependents, unrelated)
        strangers = strangers_of(database, family)
        asked = Asked(database, strangers | set(family.volume_ids))

        async def main() -> int:
            async with nexus_over(database) as place:
                return await replaced(place, family)

        activations = trio.run(main)
        touches = [asked.of("volume", each) for each in family.volume_ids]
        return Counted(
            dependents=dependents,
            unrelated=unrelated,
            activations=activations,
            reads=span([each for each, _ in touches]),
            writes=span([each for _, each in touches]),
            named=span([asked.named(each) for each in family.volume_ids]),
            strangers=sum(asked.met[each] for each in strangers),
            statements=asked.statements,
            steps=asked.steps,
            scans={name: sorted(found) for name, found in sorted(asked.scans().items()) if name not in SMALL},
        )


def build(database: Database, dependents: int, unrelated: int) -> Family:
    """A family beside ``unrelated`` volumes, of which a quarter is of disks that were deleted, and have snapshots."""
    snapshots = unrelated // 4
    crowd = {"disks": unrelated - 2 * snapshots, "snapshots": snapshots, "deleted": snapshots}
    family = Crowd(database).build(**crowd, dependents=dependents)
    assert family is not None
    return family


# -- timed ------------------------------------------------------------------------------------------------------------
