"""A Downstairs reached over TCP, a unix socket, or TLS (wire-protocol.md §1, §6.5; upstairs-volume.md §10).

What it is for: one task receives into the decoder's buffer and reports all messages that were there; sending tries the
socket at once and leaves the rest to a second task. A train of jobs goes out as one buffer list in one system call.
Where the driver asks for a delay (:attr:`TcpLink.delay_us`), messages wait in a queue of their own, of which a task
takes one after the other; without a delay, and with that queue empty, sending goes past both. A link to a unix socket
has two short ways beside it: for reads of what is at hand (:mod:`reads_at_hand`), and for the data of large writes
(:mod:`writes_by_reference`).

Nobody waits for a write that is on its way. So up to :data:`HELD_BYTES_MAX` of writes are held back, and go out in one
piece: with anything that somebody waits for, as a flush, or when the driver has had enough of waiting
(:meth:`TcpLink.hurry`). *Optimisation*: a replica in another process costs some 50 µs of processor time for each piece,
however little is in it; and as much for each answer, so where only such can come the socket is looked at once in
:data:`ACKS_PAUSE_S`. *Liveness*: writes wait for earlier ones only, or for jobs of a repair, and those take along
whatever waits.

What it guarantees: messages leave in the order in which they were given. Connecting takes at most 10 s; a ``Ruok``
goes out every 5 s; 45 s without a complete message end the connection. Memory is bounded by admission, which stops at
1500 jobs or 75 MiB in progress.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import trio

from crucible_emu import wire
from crucible_emu.errors import LocalError, RemoteError
from crucible_emu.integrity import BlockContexts
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.links import Port
from crucible_emu.upstairs.reads_at_hand import ReadsAtHand
from crucible_emu.upstairs.row_memory import LARGE_BYTES, RowMemory
from crucible_emu.upstairs.rules import WRITES, JobKind
from crucible_emu.upstairs.statistics import UpstairsStatistics
from crucible_emu.upstairs.writes_by_reference import WritesByReference
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import PING_INTERVAL_S, RECEIVE_SILENCE_S_MAX, UNIX_SEND_BUFFER_BYTES
from crucible_emu.wire.runs import AckRun, ReadResponseRun

CONNECT_TIMEOUT_S = 10.0
RECEIVE_BYTES = 256 * 1024
HELD_BYTES_MAX = 512 * 1024
BY_REFERENCE_SHIFT = 2
"""Of a write whose data stay where they are, a quarter is counted: 2 MiB of such leave in one piece."""
ACKS_PAUSE_S = 0.004
"""How long the acks of writes, for which nobody waits, may lie in the socket before they are looked at."""
IOVECS_MAX = 1000
TURNS_MAX = 4
"""Receives in a row that may succeed at once before other tasks get their turn."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where a Downstairs listens: ``host`` and ``port``, or the ``path`` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TcpConnector:
    """Connects to one Downstairs at ``address``; ``tls`` with ``server_name`` for mutual TLS (§6.7)."""

    in_process = False

    def __init__(
        self,
        address: TcpAddress,
        upstairs_id: UUID,
        session_id: UUID,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self.address = address
        self.target = str(address)
        self.upstairs_id = upstairs_id
        self.session_id = session_id
        self.tls = tls
        self.server_name = server_name

    async def run(self, port: Port) -> str:
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                stream = await self._connect()
        except trio.TooSlowError:
            return f"no answer from {self.address} within {CONNECT_TIMEOUT_S:.0f} s"
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            return f"cannot connect to {self.address}: {error}"
        link = TcpLink(stream, self.upstairs_id, self.session_id, self.address.path)
        try:
            return await link.run(port)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)

    async def _connect(self) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        if self.address.path:
            raw = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER_BYTES)
                await raw.connect(self.address.path)
            except BaseException:
                raw.close()
                raise
            stream = trio.SocketStream(raw)
        else:
            stream = await trio.open_tcp_stream(self.address.host, self.address.port)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is None:
            return stream
        secure = trio.SSLStream(stream, self.tls, server_hostname=self.server_name)
        await secure.do_handshake()
        return secure


class TcpLink:
    """An open connection; see the module's essay. ``path``: of the unix socket, where it is to one."""

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        upstairs_id: UUID,
        session_id: UUID,
        path: str = "",
    ) -> None:
        self._stream = stream
        self._at_hand = ReadsAtHand(path, upstairs_id, session_id) if path else None
        self._by_reference = WritesByReference(path, upstairs_id, session_id) if path else None
        self._ids = (upstairs_id, session_id)
        self._raw = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._fd = self._raw.fileno() if self._raw is not None else -1
        self.delay_us = 0
        """How long to sleep before each message but a write, microseconds (§6.14)."""
        self._held: deque[tuple[bool, wire.Parts]] = deque()
        self._wake_pacer = trio.Event()
        self._queue: deque[memoryview] = deque()
        self._wake_sender = trio.Event()
        self._decoder = wire.Decoder(runs=True)
        self.gathers = False
        # What has been queued since something was sent last: writes, their bytes, anything that somebody waits for.
        self._queued_writes = self._urgent = False
        self._queued_bytes = self._receives_in_a_row = 0
        self._heard_at = 0.0
        self._looked_at = -math.inf
        self._awaits_acks = False  # writes were sent, and nothing has come since
        self._asked = 0  # answers that somebody waits for: to anything but writes
        self._wanted = trio.Event()
        self._blocked = False  # the socket takes nothing now: the sender's task waits for it

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, message: m.Message) -> None:
        self._ask(type(message) is not m.LastFlush)  # the one that is not answered
        self._send_in_turn(True, wire.encode(message))

    def send_job(self, job: Job, dependencies: list[list[int]]) -> bool:
        writes = job.kind in WRITES
        reference = None
        if writes:
            if self._by_reference is not None and job.size_bytes >= LARGE_BYTES:
                reference = self._by_reference.reference(job)
            self._queued_writes = True
            self._queued_bytes += job.size_bytes if reference is None else job.size_bytes >> BY_REFERENCE_SHIFT
        else:
            self._ask(job.count)
            if job.kind is JobKind.READ and self._at_hand is not None:
                self._at_hand.want()
        self._send_in_turn(not writes, encode_job(job, dependencies, *self._ids, reference=reference))
        return False

    def _ask(self, count: int) -> None:
        """So many answers are waited for from now on."""
        self._urgent = True
        self._asked += count
        self._wanted.set()

    def _send_in_turn(self, paced: bool, buffers: wire.Parts) -> None:
        """Send now, or behind what waits for its delay; ``paced`` messages wait themselves (§6.14)."""
        if self._held or (paced and self.delay_us):
            self._held.append((paced, buffers))
            self._wake_pacer.set()
        else:
            self._send_buffers(buffers)

    async def _pacer(self) -> None:
        while True:
            await self._wake_pacer.wait()
            self._wake_pacer = trio.Event()
            while self._held:
                paced, buffers = self._held[0]
                if paced and self.delay_us:
                    await trio.sleep(self.delay_us / 1_000_000)
                self._held.popleft()
                self._urgent = True  # what has waited its delay does not wait for acks on top of it
                self._send_buffers(buffers)
            self.send_off()

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        return None if self._at_hand is None else self._at_hand.read_range(start, count, out)

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> None:
        return None

    @property
    def reads_at_hand(self) -> bool:
        return self._at_hand is not None and self._at_hand.open

    def read_singles(self, blocks: list[int], outs: list[memoryview]) -> list[int] | None:
        return None if self._at_hand is None else self._at_hand.read_singles(blocks, outs)

    def read_sealed(self, blocks: list[int], outs: list[memoryview]) -> list[bytes | None] | None:
        return None if self._at_hand is None else self._at_hand.read_sealed(blocks, outs)

    def written(self, start: int, count: int) -> None:
        return None

    def _send_buffers(self, buffers: list[bytes | memoryview]) -> None:
        self._queue.extend(memoryview(buffer).cast("B") for buffer in buffers)
        if not self.gathers:
            self.send_off()

    def send_off(self) -> bool:
        """Send what waits, as far as the socket takes it; the sender's task does the rest."""
        # Trying at once saves the hand-over to another task, which costs more than the system call.
        if not self._queue or self._blocked:
            return False
        if self.gathers and not self._urgent and self._queued_bytes < HELD_BYTES_MAX:
            return True
        self._awaits_acks = self._awaits_acks or self._queued_writes
        self._queued_writes = self._urgent = False
        self._queued_bytes = 0
        if self._raw is not None:
            with contextlib.suppress(BlockingIOError, OSError):  # the sender task meets the same error and reports it
                self._send_some()
                return False
        self._blocked = True
        self._wake_sender.set()
        return False

    def hurry(self) -> None:
        if self._queue:
            self._urgent = True
            self.send_off()

    def holds(self, size_bytes: int) -> bool:
        waits = self.gathers and not self._urgent and not self._held
        return waits and self._queued_bytes + size_bytes < HELD_BYTES_MAX

    def may_refer_to(self, memory: RowMemory, statistics: UpstairsStatistics) -> None:
        if self._by_reference is not None:
            self._by_reference.may_refer_to(memory, statistics)

    def _send_some(self) -> None:
        """Send from the queue until it is empty or the socket is full (:class:`BlockingIOError`)."""
        queue = self._queue
        while queue:
            sent = _sendmsg(self._fd, list(islice(queue, IOVECS_MAX)))
            while sent:
                head = queue[0]
                if len(head) > sent:
                    queue[0] = head[sent:]
                    break
                sent -= len(head)
                queue.popleft()

    async def _sender(self) -> str:
        while True:
            await self._wake_sender.wait()
            self._wake_sender = trio.Event()
            try:
                while self._queue:
                    if self._raw is None:
                        await self._stream.send_all(self._queue.popleft())
                        continue
                    try:
                        self._send_some()
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._raw)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                return f"sending failed: {error}"
            self._blocked = False

    # -- receiving ------------------------------------------------------------------------------------------------

    async def run(self, port: Port) -> str:
        """Serve the connection until it ends; why it ended. What is sent from then on goes nowhere."""
        try:
            return await self._serve(port)
        finally:
            # *Safety*: the socket is closed before the Upstairs hears of the end; what is sent in between must not go
            # to the file, or the peer, that gets its number.
            self._fd = -1

    async def _serve(self, port: Port) -> str:
        why = "closed by us"
        self._heard_at = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def until_it_ends(part: object) -> None:
                nonlocal why
                why = await part()  # type: ignore[operator]
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_it_ends, self._sender)
            nursery.start_soon(self._pacer)
            nursery.start_soon(self._pinger)
            nursery.start_soon(until_it_ends, self._watch_for_silence)
            if self._at_hand is not None:
                nursery.start_soon(self._at_hand.run)
            if self._by_reference is not None:
                nursery.start_soon(self._by_reference.run)
            port.opened(self)
            await until_it_ends(lambda: self._receiver(port))
        return why

    async def _pinger(self) -> None:
        while True:
            await trio.sleep(PING_INTERVAL_S)
            self.send(m.Ruok())
            self.send_off()

    async def _watch_for_silence(self) -> str:
        while True:
            await trio.sleep_until(self._heard_at + RECEIVE_SILENCE_S_MAX)
            if trio.current_time() >= self._heard_at + RECEIVE_SILENCE_S_MAX:
                return f"silent for {RECEIVE_SILENCE_S_MAX:.0f} s"

    async def _receiver(self, port: Port) -> str:
        try:
            while True:
                messages = await self._receive()
                if messages is None:
                    self._decoder.finish()
                    return "closed by the Downstairs"
                self._heard_at = trio.current_time()
                self._awaits_acks = False
                if self._at_hand is not None and not self._at_hand.knows_region:
                    self._at_hand.heard(messages)
                if self._by_reference is not None:
                    self._by_reference.answered(messages)
                if self._asked:
                    self._asked = max(0, self._asked - sum(map(_answers_in, messages)))
                port.received(messages)
        except RemoteError as error:
            return f"broke the protocol: {error}"
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            return f"receiving failed: {error}"

    async def _receive(self) -> list[m.Message] | None:
        """At least one message, ``None`` at the end of the stream."""
        while True:
            if self._raw is not None:
                count = await self._receive_into(self._decoder.buffer(RECEIVE_BYTES))
                messages = self._decoder.received(count) if count else None
            else:
                chunk = await self._stream.receive_some(RECEIVE_BYTES)
                messages = self._decoder.receive(chunk) if chunk else None
            if messages is None or messages:
                return messages

    async def _receive_into(self, target: memoryview) -> int:
        """Receive what is there; wait only where nothing is, and let others have their turn now and then."""
        assert self._raw is not None
        self._receives_in_a_row += 1
        if self._receives_in_a_row >= TURNS_MAX:
            self._receives_in_a_row = 0
            await trio.lowlevel.checkpoint()
        while True:
            look_at = self._looked_at + ACKS_PAUSE_S
            if self._awaits_acks and not self._asked and trio.current_time() < look_at:
                self._wanted = trio.Event()
                with trio.move_on_at(look_at):
                    await self._wanted.wait()
            try:
                count = os.readv(self._fd, [target])
            except BlockingIOError:
                self._receives_in_a_row = 0
                await trio.lowlevel.wait_readable(self._raw)
            else:
                self._looked_at = trio.current_time()
                return count


def _answers_in(message: m.Message) -> int:
    """How many answers that somebody waits for are in a message or run."""
    if isinstance(message, AckRun):
        return 0 if message.cls in _WRITE_ACKS else len(message.job_ids)
    if isinstance(message, ReadResponseRun):
        return len(message.job_ids)
    return 0 if type(message) in _WRITE_ACKS else 1


_WRITE_ACKS = (m.WriteAck, m.WriteUnwrittenAck)


def _sendmsg(fd: int, vector: list[memoryview]) -> int:
    """``writev`` on a non-blocking socket; raises :class:`BlockingIOError` when it is full."""
    try:
        return os.writev(fd, vector)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise BlockingIOError from None
        raise


def encode_job(
    job: Job, dependencies: list[list[int]], upstairs_id: UUID, session_id: UUID, *, reference: int | None = None
) -> wire.Parts:
    """The frames of a job's operations as one list of buffers. Those of writes are kept for the next replica, which is
    sent the same as a rule. ``reference``: where the peer finds the data, if it does not need to be sent them."""
    ids = (upstairs_id, session_id)
    if job.kind in WRITES:
        if job.rows is None or job.contexts is None:
            raise LocalError(f"{job!r} has no data to send")
        if job.encoded is not None and job.encoded[:2] == (dependencies, reference):
            return job.encoded[2]
        train = wire.encode_write_train(
            *ids,
            first_job_id=job.first_id,
            dependencies=dependencies,
            starts=job.starts,
            counts=job.lengths,
            contexts=job.contexts,
            rows=job.rows,
            unwritten=job.kind is JobKind.WRITE_UNWRITTEN,
            reference=reference,
        )
        if not job.retained:  # of what is sent again, each replica is sent what that one missed
            job.encoded = dependencies, reference, train
        return train
    if job.kind is JobKind.READ:
        return [wire.encode_read_train(*ids, job.first_id, dependencies, job.starts, job.lengths)]
    return wire.encode(job_message(job, dependencies, *ids))


def job_message(job: Job, dependencies: list[list[int]], upstairs_id: UUID, session_id: UUID) -> m.Message:
    """The message of a job that has one operation and no data."""
    ids = (upstairs_id, session_id, job.first_id, tuple(dependencies[0]))
    match job.kind:
        case JobKind.READ:
            return m.ReadRequest(*ids, job.starts[0], job.lengths[0])
        case JobKind.FLUSH | JobKind.SNAPSHOT_FLUSH:
            return m.Flush(*ids, job.flush_number, job.gen_number, job.snapshot, None)
        case JobKind.BARRIER:
            return m.Barrier(*ids)
    raise LocalError(f"{job!r} is no job of one message")
