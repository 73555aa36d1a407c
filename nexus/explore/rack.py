"""A light rack: sleds in memory, a database in memory, and what a Nexus in front of them is given.

What it guarantees: the same rack, to the byte and to the id, whenever it is made from the same :class:`Image`. An image
is the whole state of a rack in which nothing runs; to make a rack of one costs about a millisecond, so that what was
set up once serves thousands of runs. Nothing here looks at the real clock, at real randomness, or at a file.

The database object, and with it SQLAlchemy's compiled statements, is one for each process and is filled anew.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import trio
from sqlalchemy import Connection, insert

from crucible_emu.client.persistence import Persistence
from crucible_emu.client.retry import Backoff
from nexus.db import schema
from nexus.db.schema import RepairNotificationType, RepairType
from nexus.explore.fabric import AGENT_PORT, HOST_PORT, PANTRY_PORT, Fabric
from nexus.explore.rehearsal import Course, Recalling
from nexus.explore.services import Switchboard
from nexus.explore.upstairs import Repaired
from nexus.objects.hardware import NewAgent, NewSled, datasets_of, physical_disk_expunge, sled_add, sled_expunge
from nexus.objects.notifications import Repair, repair_notified
from nexus.placement import Sizes
from nexus.services import Agents, Hosts, Pantries, World
from nexus.volumes import Address, FairLocks, recorded

SLEDS, PANTRIES = 6, 3
"""Two sleds may be lost in a run, and a pantry is left."""
BLOCK_BYTES = 512
EXTENT_BYTES = 4096
DISK_BYTES = 2 * EXTENT_BYTES
SIZES = Sizes(EXTENT_BYTES, EXTENT_BYTES, 64 * EXTENT_BYTES)
CAPACITY_BYTES = 1 << 20
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
QUICK = Backoff(first_s=0.25, factor=2.0, longest_s=30.0)


def pattern(*words: object) -> bytes:
    """A block that nobody else writes."""
    return hashlib.shake_128("/".join(map(str, words)).encode()).digest(BLOCK_BYTES)


@dataclass(slots=True)
class Thing:
    """A disk, snapshot, image or instance that a user has. ``own``: the blocks that were written to it, ``beneath``
    those that it was made of; together what its user must find. ``written``: all that ever was, in order. ``either``:
    what a block may be as well, for it was written while the snapshot was taken. ``sure``: the user was told; else the
    database knows whether it lives."""

    kind: str
    name: str
    id: str
    volume_id: str = ""
    own: dict[int, bytes] = field(default_factory=dict)
    beneath: dict[int, bytes] = field(default_factory=dict)
    written: tuple[tuple[int, bytes], ...] = ()
    either: dict[int, frozenset[bytes]] = field(default_factory=dict)
    living: bool = True
    sure: bool = True
    read_only: bool = False
    letting_go: bool = False
    """Its parent is being removed: it shows what is beneath, or does not any more."""

    @property
    def contents(self) -> dict[int, bytes]:
        return self.beneath | self.own

    def note(self, block: int, data: bytes) -> None:
        """Its user was told that this is written."""
        self.own[block] = data
        self.written += ((block, data),)


@dataclass(frozen=True, slots=True)
class Image:
    """A rack at rest."""

    rows: bytes = field(repr=False)
    memory: bytes = field(repr=False)


class Stock:
    """The database of this process, and the empty one that racks begin with."""

    def __init__(self) -> None:
        self.database = Recalling.open("sqlite://", inline=True, random=Random(0))
        self.empty = self.database.image()


_stock: list[Stock] = []


def stock() -> Stock:
    """Made at the first call."""
    if not _stock:
        _remember_documents()
        _stock.append(Stock())
    return _stock[0]


def _remember_documents() -> None:
    """*Optimisation*: reading a document is pure, documents never change, and each run reads the same ones hundreds of
    times; it is a third of the time of a run."""
    read: Callable[[str, str], Any] = recorded.parse
    known: dict[str, Any] = {}

    def parse(text: str, source: str = "the volume") -> Any:
        found = known.get(text)
        if found is None:
            found = read(text, source)
            if len(known) > 20_000:
                known.clear()
            known[text] = found
        return found

    recorded.parse = parse


class Rack:
    """All of it, for one run. ``nursery``: where what goes on by itself in pantries and hosts lives.
    ``course``: knows what its first transactions come to."""

    def __init__(self, nursery: trio.Nursery, image: Image | None = None, course: Course | None = None) -> None:
        self.database = stock().database
        self.nursery = nursery
        memory = None if image is None else pickle.loads(image.memory)
        self.database.course = None
        if course is None:
            self.database.fill(stock().empty if image is None else image.rows)
        self.things: dict[str, Thing] = {} if memory is None else memory["things"]
        self.fabric: Fabric = Fabric(SLEDS) if memory is None else memory["fabric"]
        self._ids: int = 0 if memory is None else memory["ids"]
        self._ticks: int = 0 if memory is None else memory["ticks"]
        self._base_s: float = 0.0 if memory is None else memory["seconds"]
        self._random = Random(0) if memory is None else memory["random"]
        self._draws = 0
        if course is not None:
            course.begin(self, self.database)
        self.fabric.now_s = trio.current_time
        self.mute = 0
        """So many notifications of Upstairs are lost on their way."""
        self.switchboard = Switchboard(self.fabric, nursery.start_soon, self._told, PANTRIES)
        self.world = self._world()
        self.silo_id: str = "" if memory is None else memory["silo_id"]
        self.project_id: str = "" if memory is None else memory["project_id"]
        if memory is None:
            self._furnish()

    # -- the world ----------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The clock of the run; no two answers are the same."""
        self._ticks += 1
        return EPOCH + timedelta(seconds=self._base_s + trio.current_time(), microseconds=self._ticks)

    def id(self) -> str:
        self._ids += 1
        return str(UUID(int=self._ids << 64 | 0x8000_0000_0000_0000, version=4))

    @property
    def drawn(self) -> Any:
        """How far ids, ticks and chance are used up; may be set back where nothing came of it."""
        return self._ids, self._ticks, self._random.getstate()

    @drawn.setter
    def drawn(self, value: Any) -> None:
        self._ids, self._ticks, state = value
        self._random.setstate(state)

    @property
    def draws(self) -> int:
        """How often chance was asked: if a transaction leaves that as it is, it leaves chance as it is."""
        return self._draws

    def _chance(self) -> float:
        self._draws += 1
        return self._random.random()

    def _randbytes(self, length: int) -> bytes:
        self._draws += 1
        return self._random.randbytes(length)

    @property
    def counted(self) -> tuple[int, int]:
        """Of :attr:`drawn` what is told quickly: ids and ticks."""
        return self._ids, self._ticks

    @counted.setter
    def counted(self, value: tuple[int, int]) -> None:
        self._ids, self._ticks = value

    def _world(self) -> World:
        connections: Any = self.switchboard
        persistence = Persistence(QUICK, self._chance)
        return World(
            self.database,
            Agents(self.database, connections, persistence, self.now),
            Pantries(self.database, connections, persistence),
            Hosts(self.database, connections, persistence),
            FairLocks(),
            self.now,
            self.id,
            self._randbytes,
            SIZES,
        )

    async def _told(self, upstairs_id: UUID, session: str, repaired: Repaired) -> None:
        """What an Upstairs tells Nexus of a repair."""
        if self.mute:
            self.mute -= 1
            return
        kind = RepairType.LIVE if repaired.live else RepairType.RECONCILIATION
        repair = Repair(
            time=self.now(),
            repair_id=self.id(),
            repair_type=kind,
            upstairs_id=str(upstairs_id),
            session_id=str(UUID(int=int(session.rpartition("-")[2]))),
            regions=((repaired.region_id, Address.parse(repaired.address)),),
        )

        def body(connection: Connection) -> None:
            repair_notified(connection, repair, RepairNotificationType.STARTED)
            repair_notified(connection, repair, RepairNotificationType.SUCCEEDED)

        await self.database.transact(body)

    def run(self, body: Any, *args: Any) -> Any:
        """One transaction."""
        return self.database.transact_blocking(lambda connection: body(connection, *args))

    # -- making and keeping -------------------------------------------------------------------------------------------

    def _furnish(self) -> None:
        now = self.now()
        self.silo_id, self.project_id = self.id(), self.id()
        stamps = {"time_created": now, "time_modified": now, "description": ""}
        silo = {"id": self.silo_id, "name": "silo"} | stamps
        project = {"id": self.project_id, "silo_id": self.silo_id, "name": "project"} | stamps
        self.run(lambda c: c.execute(insert(schema.silo).values(**silo)) and None)
        self.run(lambda c: c.execute(insert(schema.project).values(**project)) and None)
        for sled in self.fabric.sleds:
            agent = NewAgent(Address.of(sled.ip, AGENT_PORT), CAPACITY_BYTES, f"disk{sled.number}", "light", "memory")
            pantry = Address.of(sled.ip, PANTRY_PORT) if sled.ip in self.switchboard.pantries else None
            new = NewSled(f"sled{sled.number}", "light", Address.of(sled.ip, HOST_PORT), pantry, (agent,))
            sled.sled_id = self.run(sled_add, new, self.id, now)
            disks = schema.physical_disk.select().where(schema.physical_disk.c.sled_id == sled.sled_id)
            sled.disk_id = self.run(lambda c, query=disks: c.execute(query).one().id)
            sled.dataset_id = self.run(datasets_of, sled.disk_id)[0].id

    def keep(self) -> Image:
        """The rack as it is, for later; nothing may be under way."""
        memory = {
            "things": self.things,
            "fabric": self.fabric,
            "ids": self._ids,
            "ticks": self._ticks,
            "seconds": self._base_s + trio.current_time(),
            "random": self._random,
            "silo_id": self.silo_id,
            "project_id": self.project_id,
        }
        return Image(self.database.image(), pickle.dumps(memory))

    # -- misfortune ---------------------------------------------------------------------------------------------------

    async def lose_sled(self, number: int) -> None:
        """The sled is dead, and an operator says so."""
        sled = self.fabric.sleds[number]
        sled.alive = False
        await self.database.transact(lambda c: sled_expunge(c, sled.sled_id, self.now()) and None)

    async def lose_disk(self, number: int) -> None:
        """The sled's physical disk is dead, with agent and Downstairs, and an operator says so."""
        sled = self.fabric.sleds[number]
        sled.alive = False
        await self.database.transact(lambda c: physical_disk_expunge(c, sled.disk_id, self.now()))

    def sled_of_region(self, region_id: str) -> int:
        return next(sled.number for sled in self.fabric.sleds if region_id in sled.regions)

    def thing(self, name: str) -> Thing:
        return self.things[name]

    def living(self, kind: str) -> list[Thing]:
        return [each for each in self.things.values() if each.kind == kind and each.living]
