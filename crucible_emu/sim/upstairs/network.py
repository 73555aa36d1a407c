"""Connections that delay, lose and end: what lies between the Upstairs and a model Downstairs.

What it is for: a :class:`Wire` carries messages in order, each way with its own delay. It can be cut at any moment:
then a random part of what was under way is lost, and each end learns of it in its own time, the far end perhaps only
after the Upstairs has connected anew. :class:`ModelConnector` is the Upstairs' way to a Downstairs over such wires; its
jobs go through the real encoder and decoder.
"""

from __future__ import annotations

from uuid import UUID

import trio

from crucible_emu import wire as codec
from crucible_emu.integrity import BlockContexts
from crucible_emu.sim.upstairs.connection import Connection
from crucible_emu.sim.upstairs.downstairs import ModelDownstairs
from crucible_emu.sim.upstairs.world import World
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.links import Port
from crucible_emu.upstairs.tcp_link import encode_job
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import RECEIVE_SILENCE_S_MAX

REFUSED_AFTER_S = 0.005
NOTICED_LATE_S = (0.0, 0.001, 0.005, 0.02, 3.0, 12.0)
"""How long the Downstairs may take to notice that a connection is cut."""


class _Way:
    """One direction of a wire: messages arrive in the order in which they were sent."""

    __slots__ = ("arrived", "last", "lost_from", "sent")

    def __init__(self) -> None:
        self.last = 0.0
        self.sent = 0
        self.arrived = 0
        self.lost_from: int | None = None


class Wire:
    """One connection from opening to end; see the module's essay."""

    def __init__(self, world: World, downstairs: ModelDownstairs, port: Port, number: int) -> None:
        self.world = world
        self.downstairs = downstairs
        self.number = number
        self.ended = trio.Event()
        self.why = "closed by the Downstairs"
        self.near_open = True
        self._port = port
        self._down, self._up = _Way(), _Way()
        self.connection = Connection(downstairs, self, number)
        downstairs.accept(self.connection)

    def _send(self, way: _Way, action: object, *arguments: object) -> None:
        world = self.world
        way.sent += 1
        when = max(way.last, trio.current_time() + self.downstairs.latency_s())
        way.last = world.at(max(when, trio.current_time()), self._arrive, way, way.sent, action, *arguments)

    def _arrive(self, way: _Way, number: int, action: object, *arguments: object) -> None:
        way.arrived = number
        if way.lost_from is None or number < way.lost_from:
            action(*arguments)  # type: ignore[operator]

    def _lose_some(self, way: _Way) -> None:
        """What is under way arrives up to a random message; nothing that is sent later does."""
        if way.lost_from is None:
            way.lost_from = self.world.rng.randint(way.arrived + 1, way.sent + 1)

    # -- messages -----------------------------------------------------------------------------------------------------

    def to_downstairs(self, message: m.Message) -> None:
        if self.near_open:
            self._send(self._down, self._arrived_down, message)

    def _arrived_down(self, message: m.Message) -> None:
        if self.connection.open:
            if self.world.trace is not None:
                self.world.say(f"  > {self.downstairs} #{self.number} {short(message)}")
            self.downstairs.arrived(self.connection, message)

    def to_upstairs(self, message: m.Message, *, bad_news: bool = False) -> None:
        """``bad_news``: it tells of a failure, or of damage."""
        self._send(self._up, self._arrived_up, message, bad_news)

    def _arrived_up(self, message: m.Message, bad_news: bool) -> None:
        if self.near_open:
            if self.world.trace is not None:
                self.world.say(f"  < {self.downstairs} #{self.number} {short(message)}")
            if bad_news:
                self.downstairs.failure_arrives()
            self._port.received([message])

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _near_end(self, why: str) -> None:
        """The Upstairs learns that the connection is over."""
        if self.near_open:
            self.near_open = False
            self.downstairs.in_trouble()
            self.why = why
            self.ended.set()

    def cut(self) -> None:
        """The connection breaks; each end learns of it in its own time."""
        if self.near_open:
            self.downstairs.in_trouble()
            self._lose_some(self._down)
            self._lose_some(self._up)
            self.world.after(self.downstairs.latency_s(), self._near_end, "cut")
            self.world.after(self.world.rng.choice(NOTICED_LATE_S), self.downstairs.gone, self.connection)

    def far_end_died(self) -> None:
        """The process of the Downstairs is gone: its kernel tells ours."""
        self._lose_some(self._up)
        self.world.after(self.downstairs.latency_s(), self._near_end, "reset")

    def close_far_end(self) -> None:
        """The Downstairs closes; what it has sent still arrives."""
        self.downstairs.gone(self.connection)
        self._send(self._up, self._near_end, "closed by the Downstairs")

    def close_near_end(self) -> None:
        """The Upstairs closes, or is gone: some of what it sent may still arrive."""
        if self.near_open:
            self.near_open = False
            self.downstairs.in_trouble(by_upstairs=True)
            if self.world.rng.random() < 0.5:
                self._lose_some(self._down)
            way = self._down
            way.last = max(way.last, trio.current_time() + self.world.rng.choice(NOTICED_LATE_S[:-1]))
            self.world.at(way.last, self.downstairs.gone, self.connection)

    def watch_silence(self, limit_s: float) -> None:
        """The Downstairs is stalled: the Upstairs gives up when it stays so."""
        self.world.after(limit_s, self._still_silent, self.downstairs.stalls)

    def _still_silent(self, stall: int) -> None:
        if self.downstairs.stalled and self.downstairs.stalls == stall:
            self._near_end(f"silent for {RECEIVE_SILENCE_S_MAX:.0f} s")


class ModelConnector:
    """The Upstairs' way to the Downstairs ``downstairs``."""

    in_process = False

    def __init__(self, world: World, downstairs: ModelDownstairs, upstairs_id: UUID, session_id: UUID) -> None:
        self.world = world
        self.downstairs = downstairs
        self.target = downstairs.target
        self._ids = (upstairs_id, session_id)
        self.wire: Wire | None = None

    async def run(self, port: Port) -> str:
        """One connection; see :class:`~crucible_emu.upstairs.links.Connector`."""
        world, downstairs = self.world, self.downstairs
        await trio.sleep(REFUSED_AFTER_S + downstairs.index / 10_000)
        if downstairs.refusing or not downstairs.up:
            return "connection refused"
        world.counts["connections"] = world.counts.get("connections", 0) + 1
        wire = self.wire = Wire(world, downstairs, port, world.counts["connections"])
        if downstairs.stalled:
            wire.watch_silence(RECEIVE_SILENCE_S_MAX)
        try:
            port.opened(ModelLink(wire, *self._ids))
            await wire.ended.wait()
        finally:
            wire.close_near_end()
        return wire.why


class ModelLink:
    """An open connection, as the Upstairs sees it."""

    def __init__(self, wire: Wire, upstairs_id: UUID, session_id: UUID) -> None:
        self._wire = wire
        self._ids = (upstairs_id, session_id)
        self._decoder = codec.Decoder()

    def send(self, message: m.Message) -> None:
        self._wire.to_downstairs(message)

    def send_job(self, job: Job, dependencies: list[list[int]]) -> bool:
        for buffer in encode_job(job, dependencies, *self._ids):
            for message in self._decoder.receive(buffer):
                self._wire.to_downstairs(message)
        return False

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        return None

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> None:
        return None

    def written(self, start: int, count: int) -> None:
        return None


def short(message: m.Message) -> str:
    """A message in a few words, for the trace."""
    name = type(message).__name__
    match message:
        case m.Write() | m.WriteUnwritten():
            heads = range(0, len(message.data), len(message.data) // len(message.contexts))
            values = [int.from_bytes(bytes(message.data[at : at + 8]), "little") for at in heads]
            return f"{name} {message.job_id} after {list(message.dependencies)}: {message.start} = {values}"
        case m.ReadRequest():
            return f"{name} {message.job_id} after {list(message.dependencies)}: {message.start}+{message.count}"
        case m.Flush():
            limit = "" if message.extent_limit is None else f", up to extent {message.extent_limit}"
            return f"{name} {message.job_id} after {list(message.dependencies)}: number {message.flush_number}{limit}"
        case m.ReadResponse():
            return f"{name} {message.job_id}"
        case m.Ack():
            return f"{name} {message.job_id}{'' if message.result is None else f' {message.result!r}'}"
        case m.JobRequest():
            extent = getattr(message, "extent_id", "")
            return f"{name} {message.job_id} after {list(message.dependencies)} {extent}"
        case m.JobReply():
            return f"{name} {message.job_id} {getattr(message, 'result', getattr(message, 'error', ''))}"
        case m.ExtentVersions():
            return (
                f"{name} {message.gen_numbers.tolist()} {message.flush_numbers.tolist()} {message.dirty_bits.tolist()}"
            )
    return str(message)[:160]
