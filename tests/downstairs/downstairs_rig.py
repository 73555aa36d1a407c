"""What the tests of the Downstairs share: short messages, a region that is a dictionary, a scripted Upstairs."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import numpy as np
import trio

from crucible_emu import errors
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.downstairs.server import DownstairsServer, ServerOptions
from crucible_emu.downstairs.work import Abandon, Close, Kind, Resume, Run, Send, SendTrain, Work
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.wire import Decoder, encode
from crucible_emu.wire import messages as m

U = UUID("00112233-4455-6677-8899-aabbccddeeff")
S = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
OTHER_U = UUID("99999999-4455-6677-8899-aabbccddeeff")
OTHER_S = UUID("88888888-4b5a-6978-8796-a5b4c3d2e1f0")
REGION = UUID("12345678-1234-4234-8234-123456789abc")
REPAIR = m.SocketAddress("127.0.0.1", 7810)
BLOCK = 512


def definition(extents: int = 4, blocks: int = 8, **changes: Any) -> RegionDefinition:
    return RegionDefinition(
        **{"block_size": BLOCK, "blocks_per_extent": blocks, "extent_count": extents, "uuid": REGION} | changes
    )


def hello(upstairs: UUID = U, session: UUID = S, generation: int = 1, **changes: Any) -> m.HereIAm:
    members = {"version": 13, "read_only": False, "encrypted": False, "alternate_versions": ()} | changes
    return m.HereIAm(upstairs_id=upstairs, session_id=session, generation=generation, **members)


def promote(upstairs: UUID = U, session: UUID = S, generation: int = 1) -> m.PromoteToActive:
    return m.PromoteToActive(upstairs, session, generation)


def payload(count: int = 1, fill: int = 1) -> memoryview:
    return memoryview(bytes([fill % 256]) * (count * BLOCK))


def contexts_of(data: memoryview, block_size: int = BLOCK) -> BlockContexts:
    return BlockContexts.plain(hash_blocks(np.frombuffer(data, np.uint8).reshape(-1, block_size)))


def write(
    job: int,
    start: int,
    count: int = 1,
    fill: int = 1,
    deps: Iterable[int] = (),
    *,
    kind: type[m.BlockWrite] = m.Write,
    ids: tuple[UUID, UUID] = (U, S),
) -> Any:
    data = payload(count, fill)
    return kind(*ids, job, tuple(deps), start, contexts_of(data), data)


def read(job: int, start: int, count: int = 1, deps: Iterable[int] = ()) -> m.ReadRequest:
    return m.ReadRequest(U, S, job, tuple(deps), start, count)


def flush(
    job: int,
    deps: Iterable[int] = (),
    number: int = 1,
    gen: int = 1,
    snapshot: str | None = None,
    limit: int | None = None,
) -> m.Flush:
    return m.Flush(U, S, job, tuple(deps), number, gen, snapshot, limit)


def barrier(job: int, deps: Iterable[int] = ()) -> m.Barrier:
    return m.Barrier(U, S, job, tuple(deps))


class Rig:
    """A pure Downstairs whose actions are collected: what was sent, what was closed, what is to be run."""

    def __init__(self, region: RegionDefinition | None = None, **options: Any) -> None:
        self.definition = region if region is not None else definition()
        self.core = Downstairs(self.definition, **options)
        self.sent: dict[int, list[m.Message]] = {}
        self.closed: dict[int, str] = {}
        self.resumed: list[int] = []
        self.abandoned: list[Work] = []
        self.running: deque[Work] = deque()
        self.pauses: list[float] = []

    def take(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send(connection_id, message):
                    assert connection_id not in self.closed, "nothing is sent after the close"
                    self.sent.setdefault(connection_id, []).append(message)
                case SendTrain(connection_id, messages):
                    assert connection_id not in self.closed, "nothing is sent after the close"
                    self.sent.setdefault(connection_id, []).extend(messages)
                case Close(connection_id, reason):
                    self.closed[connection_id] = reason
                case Run(work, pause_s):
                    assert work not in self.running, "work is handed out once"
                    self.running.append(work)
                    if pause_s:
                        self.pauses.append(pause_s)
                case Abandon(work):
                    self.abandoned.append(work)
                case Resume(connection_id):
                    self.resumed.append(connection_id)

    def open(self, connection_id: int = 1, *, in_order: bool = False) -> None:
        self.core.opened(connection_id, REPAIR, in_order)

    def give(self, *messages: m.Message, to: int = 1) -> list[m.Message]:
        """Hand messages in; what was sent back during that."""
        before = len(self.sent.get(to, []))
        for message in messages:
            self.take(self.core.receive(to, message))
        return self.sent.get(to, [])[before:]

    def end(self, work: Work | None = None, outcome: Any = None) -> Work:
        """Report work as done: the oldest that runs, or ``work``."""
        if work is None:
            work = self.running.popleft()
        else:
            self.running.remove(work)
        self.take(self.core.work_done(work, outcome))
        return work

    def run_all(self, outcome: Callable[[Work], Any] = lambda work: default_outcome(work)) -> None:
        while self.running:
            work = self.running[0]
            self.end(work, outcome(work))

    def activate(self, to: int = 1, last_flush: int | None = None, **changes: Any) -> None:
        """Open a connection and negotiate until it runs."""
        ids = {key: changes[key] for key in ("upstairs", "session", "generation") if key in changes}
        self.open(to, in_order=changes.pop("in_order", False))
        self.give(hello(**changes), promote(**ids), to=to)
        self.run_all()
        start = m.ExtentVersionsPlease() if last_flush is None else m.LastFlush(last_flush)
        self.give(m.RegionInfoPlease(), start, to=to)
        self.run_all()
        assert to not in self.closed, self.closed
        self.sent[to].clear()

    def kinds(self) -> list[Kind]:
        return [work.kind for work in self.running]


def default_outcome(work: Work) -> Any:
    """What a region that never fails would yield, as far as the core can tell."""
    if work.kind is Kind.READ:
        return BlockContexts.empty(work.count), memoryview(bytes(work.count * BLOCK))
    if work.kind in (Kind.CLOSE, Kind.FLUSH_CLOSE):
        return (1, 2, False)
    if work.kind is Kind.EXTENT_VERSIONS:
        none = np.zeros(4, np.uint64)
        return none, none, np.zeros(4, np.bool_)
    return None


class ModelRegion:
    """A region as the simplest thing that can be right: a dictionary from block to fill byte."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self.frozen: dict[int, int] = {}
        self.durable: dict[int, int] = {}

    def begin(self, work: Work) -> None:
        """A flush fixes what it covers when it begins."""
        if work.kind is Kind.FLUSH:
            self.frozen = dict(self.blocks)

    def finish(self, work: Work) -> Any:
        span = range(work.start, work.start + work.count)
        if work.kind is Kind.READ:
            data = b"".join(bytes([self.blocks.get(block, 0)]) * BLOCK for block in span)
            return contexts_of(memoryview(data)), memoryview(data)
        if work.kind is Kind.WRITE:
            self.blocks.update((block, work.message.data[0]) for block in span)
        elif work.kind is Kind.WRITE_UNWRITTEN:
            for block in span:
                self.blocks.setdefault(block, work.message.data[0])
        elif work.kind is Kind.FLUSH:
            self.durable = self.frozen
        return None


SMALL = JobLimits(jobs_max=4, bytes_max=1 << 20)
FAILURE = errors.IoError("the device is gone")


class ScriptedUpstairs:
    """An Upstairs that says what the test tells it to, over any stream."""

    def __init__(self, stream: trio.abc.Stream, upstairs: UUID = U, session: UUID = S) -> None:
        self.stream = stream
        self.ids = (upstairs, session)
        self.decoder = Decoder()
        self.inbox: deque[m.Message] = deque()
        self.ended = False

    async def say(self, *messages: m.Message) -> None:
        await self.stream.send_all(b"".join(part for message in messages for part in encode(message)))

    async def hear(self, kind: type[m.Message] = m.Message) -> Any:
        """The next message, which must be of this kind."""
        while not self.inbox:
            data = await self.stream.receive_some(1 << 20)
            assert data, "the Downstairs closed the connection"
            self.inbox.extend(self.decoder.receive(data))
        message = self.inbox.popleft()
        assert isinstance(message, kind), message
        return message

    async def hear_end(self) -> list[m.Message]:
        """What comes before the Downstairs closes the connection."""
        while True:
            try:
                data = await self.stream.receive_some(1 << 20)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.decoder.finish()
                return list(self.inbox)
            self.inbox.extend(self.decoder.receive(data))

    async def ask(self, message: m.Message, kind: type[m.Message] = m.Message) -> Any:
        await self.say(message)
        return await self.hear(kind)

    async def activate(
        self, generation: int = 1, last_flush: int | None = None, **changes: Any
    ) -> m.ExtentVersions | None:
        """Negotiate until jobs are taken; the extents' versions, unless a last flush is named."""
        await self.ask(hello(*self.ids, generation=generation, **changes), m.YesItsMe)
        await self.ask(promote(*self.ids, generation), m.YouAreNowActive)
        await self.ask(m.RegionInfoPlease(), m.RegionInfo)
        if last_flush is not None:
            await self.say(m.LastFlush(last_flush))
            return None
        versions: m.ExtentVersions = await self.ask(m.ExtentVersionsPlease(), m.ExtentVersions)
        return versions


@asynccontextmanager
async def serving(region: Region, **options: Any) -> AsyncIterator[DownstairsServer]:
    """The region, served on ports that the system chooses, while the block runs."""
    sources = options.pop("sources", None)
    options.setdefault("port", 0)
    options.setdefault("repair_port", 0)
    async with trio.open_nursery() as nursery:
        server = DownstairsServer(region, ServerOptions(**options), sources=sources)
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(server: DownstairsServer, upstairs: UUID = U, session: UUID = S) -> AsyncIterator[ScriptedUpstairs]:
    stream = await trio.open_tcp_stream(server.address.host, server.address.port)
    async with stream:
        yield ScriptedUpstairs(stream, upstairs, session)
