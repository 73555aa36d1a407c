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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import trio
from sqlalchemy import Connection, select

from bench.asked import Asked
from bench.control_plane import NEXUS_ID, InstantAgents, world_of
from bench.crowd import EXTENTS, Crowd, Family
from crucible_emu.client.agent import REGIONS
from nexus.db import Database, schema
from nexus.db.sagas import Leases, SagaStore
from nexus.db.schema import RegionSnapshotReplacementState
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
SIZES = (10, 100)
"""Families that are looked at beside the one that is asked for, to see that each volume costs the same in all."""
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
        if await database.read(_is_complete):
            return number
    raise Incomplete(f"the request is not complete after {ACTIVATIONS_MAX} activations of every task")


def _is_complete(connection: Connection) -> bool:
    request = schema.region_snapshot_replacement.c
    of_state = {
        state: connection.execute(select(request.id).where(request.replacement_state == state)).first()
        for state in RegionSnapshotReplacementState
    }
    complete = of_state.pop(RegionSnapshotReplacementState.COMPLETE)
    return complete is not None and not any(of_state.values())


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
        disks = {
            row.disk_id
            for row in connection.execute(select(disk.disk_id, disk.volume_id))
            if row.volume_id not in concerned
        }
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
            scans={name: sorted(found) for name, found in sorted(asked.scans().items()) if not _is_small(name)},
        )


def _is_small(scanned: str) -> bool:
    return scanned.partition(".")[0] in SMALL


def build(database: Database, dependents: int, unrelated: int) -> Family:
    """A family beside ``unrelated`` volumes, of which a quarter is of disks that were deleted, and have snapshots."""
    snapshots = unrelated // 4
    crowd = {"disks": unrelated - 2 * snapshots, "snapshots": snapshots, "deleted": snapshots}
    family = Crowd(database).build(**crowd, dependents=dependents)
    assert family is not None
    return family


# -- timed ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timed:
    """Of one replacement, per affected volume: seconds on the clock, and of this process's CPU."""

    seconds: float
    cpu_seconds: float


def timed(kept: Path, family: Family) -> Timed:
    """One replacement on a copy of the database ``kept``, as a Nexus has it: in a file, with threads."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=kept.parent) as directory:
        copy = Path(directory) / "nexus.db"
        shutil.copyfile(kept, copy)

        async def main(database: Database) -> Timed:
            async with nexus_over(database) as place:
                began, cpu = time.perf_counter(), time.process_time()
                await replaced(place, family)
                many = len(family.volume_ids)
                return Timed((time.perf_counter() - began) / many, (time.process_time() - cpu) / many)

        with Database.open(f"sqlite:///{copy}") as database:
            return trio.run(main, database)


def run(dependents: int, unrelated: int, rounds: int) -> dict[str, Any]:
    """Counts for a few sizes of family alone, and for ``dependents`` beside ``unrelated`` volumes; then times."""
    sizes = [each for each in SIZES if each < dependents]
    alone = [counted(dependents=each, unrelated=0) for each in (*sizes, dependents)]
    beside = counted(dependents=dependents, unrelated=unrelated)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        places = [(Path(directory) / f"{each}.db", each) for each in (0, unrelated)]
        families = []
        for path, each in places:
            with Database.open(f"sqlite:///{path}") as database:
                families.append(build(database, dependents, each))
        turns = [[timed(path, family) for (path, _), family in zip(places, families)] for _ in range(rounds)]
    seconds = [statistics.median(turn[place].seconds for turn in turns) for place in (0, 1)]
    cpu = [statistics.median(turn[place].cpu_seconds for turn in turns) for place in (0, 1)]
    ratios = {
        "seconds": statistics.median(there.seconds / here.seconds for here, there in turns),
        "cpu_seconds": statistics.median(there.cpu_seconds / here.cpu_seconds for here, there in turns),
        "steps": beside.steps / alone[-1].steps,
    }
    return {
        "counted": [each.figures() for each in (*alone, beside)],
        "rounds": rounds,
        "per_volume": {"seconds": seconds, "cpu_seconds": cpu},
        "ratio": ratios,
    }


def summary(found: dict[str, Any]) -> list[str]:
    """The figures in lines for a person."""
    lines = []
    for each in found["counted"]:
        per = each["per_volume"]
        lines.append(
            f"{each['dependents']:,} volumes beside {each['unrelated']:,}: each row read {_told(each['reads'])} times "
            f"and written {_told(each['writes'])}, named by {_told(each['named'])} statements; "
            f"{per['statements']:.0f} statements and {per['steps']:,.0f} steps for each; "
            f"others met {each['strangers']} times; gone through: {', '.join(each['scans']) or 'nothing'}"
        )
    seconds, cpu, ratio = found["per_volume"]["seconds"], found["per_volume"]["cpu_seconds"], found["ratio"]
    lines.append(
        f"for each volume {seconds[0] * 1000:.1f} ms alone, {seconds[1] * 1000:.1f} ms beside them "
        f"({ratio['seconds']:.2f}); of CPU {cpu[0] * 1000:.1f} and {cpu[1] * 1000:.1f} ms "
        f"({ratio['cpu_seconds']:.2f}); steps {ratio['steps']:.2f}; medians of {found['rounds']} rounds"
    )
    return lines


def _told(span: tuple[int, int]) -> str:
    least, most = span
    return str(least) if least == most else f"{least} to {most}"
