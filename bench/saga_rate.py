"""How many sagas a second a Nexus runs: a disk is made, and its volume deleted, on SQLite in memory and in a file.

What it is for: with agents that answer at once (:class:`bench.control_plane.InstantAgents`) what is left is the saga's
log, its transactions and Python. A saga in a file must be on the disk after each of its steps; so beside it stands how
often a second the same file system takes a transaction of one row, divided by how many a saga makes: the most that any
program could do that writes its log as often.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from random import Random
from statistics import median
from uuid import UUID

import trio

from bench.control_plane import LEASE_S, NEXUS_ID, InstantAgents, blank_disk, world_of
from bench.crowd import Crowd
from bench.rate import Rate
from nexus.db import Database
from nexus.db.sagas import Leases, SagaStore
from nexus.saga import Executor
from nexus.sagas.disk_create import DISK_CREATE
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.sagas.volume_delete import Params as VolumeDelete
from nexus.services import Connections

SAGAS_PER_PAIR = 2
COMMITS = 200


async def pairs(url: str, count: int, rounds: int) -> tuple[list[float], float]:
    """Sagas per second in each round of ``count`` pairs, and how many transactions a saga makes."""
    with Database.open(url) as database:
        await trio.to_thread.run_sync(lambda: Crowd(database).build(disks=0, snapshots=0))
        random = Random(1)
        await Leases(database, LEASE_S).register(NEXUS_ID)
        async with Connections(transport=InstantAgents()) as connections, trio.open_nursery() as nursery:
            world = world_of(database, connections, random)
            sagas = [DISK_CREATE, VOLUME_DELETE]
            executor = Executor(nursery, SagaStore(database), sagas, world, NEXUS_ID, new_id=world.new_id)
            await pair(executor, random)
            before, found = database.statistics().transactions, []
            for _ in range(rounds):
                began = time.monotonic()
                for _ in range(count):
                    await pair(executor, random)
                found.append(SAGAS_PER_PAIR * count / (time.monotonic() - began))
            transactions = (database.statistics().transactions - before) / (SAGAS_PER_PAIR * count * rounds)
            nursery.cancel_scope.cancel()
    return found, transactions


async def pair(executor: Executor, random: Random) -> None:
    """Make a disk, and delete its volume."""
    disk_id, volume_id = (str(UUID(bytes=random.randbytes(16), version=4)) for _ in range(2))
    await executor.run(DISK_CREATE, blank_disk(disk_id, volume_id))
    await executor.run(VOLUME_DELETE, VolumeDelete(volume_id=volume_id))


def commits_per_second(path: Path) -> float:
    """Durable transactions of one row a second, in a database of its own with the settings of Nexus."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, text TEXT)")
        began = time.monotonic()
        for number in range(COMMITS):
            connection.execute("INSERT INTO event (text) VALUES (?)", (str(number),))
        return COMMITS / (time.monotonic() - began)
    finally:
        connection.close()


def rates(folder: Path, count: int, rounds: int) -> list[Rate]:
    """Sagas per second, medians over the rounds of ``count`` disks each."""
    in_memory, _ = trio.run(pairs, "sqlite://", count, rounds)
    in_file, transactions = trio.run(pairs, f"sqlite:///{folder / 'nexus.db'}", count, rounds)
    most = commits_per_second(folder / "plain.db") / transactions
    beside = f"as many durable transactions ({transactions:.0f} a saga) of one row"
    return [
        Rate("sagas on SQLite in memory", "a second", median(in_memory)),
        Rate("sagas on SQLite in a file", "a second", median(in_file), beside, most, median(in_file) / most),
    ]
