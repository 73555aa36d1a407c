"""One client: the driver between its socket, the pure halves of the protocol, and the device.

What it is for: :class:`Connection` runs one client from greeting to goodbye. In transmission one task receives: all
that is there in one call, all complete requests as one batch to the device, and whatever the device completed at once
answered in one ``sendmsg``; or all of it is done past request objects (:mod:`~crucible_emu.nbd.at_once`). What the
device completes later is sent from inside its completion. A second task sends what the socket does not take at once; a
third answers BLOCK_STATUS, the one command that may wait for something.

What it guarantees: outstanding requests and the memory under them are bounded by :class:`Limits`; above that the
socket is not read, so a client that floods or does not read its replies stalls itself alone. :meth:`Connection.run`
returns only after the device has completed every request of this client, so no buffer is in use afterwards; the
exception is cancellation, after which late completions give their buffers back by themselves. A client that breaks
the protocol loses its connection and nothing else.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from crucible_emu.blockio import Allocation, PayloadDevice, Request
from crucible_emu.errors import CrucibleError, RemoteError
from crucible_emu.logs import get_logger
from crucible_emu.nbd.alignment import ByteDevice
from crucible_emu.nbd.at_once import AtOnce, ReadReplies
from crucible_emu.nbd.buffers import Allowance, BufferPool
from crucible_emu.nbd.handshake import Handshake, Outcome
from crucible_emu.nbd.protocol import PAYLOAD_BYTES_MAX
from crucible_emu.nbd.replies import Replies, Train
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.transmission import RECEIVE_BYTES, SLAB_BYTES, Batch, Intake, StatusQuery
from crucible_emu.nbd.transport import BROKEN, SocketTransport, Transport

log = get_logger(__name__)

HANDSHAKE_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may occupy. ``memory_bytes_max`` covers every payload on its way in or out."""

    outstanding_requests_max: int = 1024
    memory_bytes_max: int = 64 * 1024 * 1024
    handshake_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        needed = PAYLOAD_BYTES_MAX + RECEIVE_BYTES + SLAB_BYTES
        if self.memory_bytes_max < needed:
            raise ValueError(f"memory_bytes_max {self.memory_bytes_max} cannot hold one payload: at least {needed}")
        if self.outstanding_requests_max < 1:
            raise ValueError(f"outstanding_requests_max {self.outstanding_requests_max} is too small: at least 1")


@dataclass(frozen=True, slots=True)
class Served:
    """What stands behind an export: its device for any byte range, and whether zeroing is faster than writing."""

    device: ByteDevice
    fast_zero: bool


Lookup = Callable[[str], Served | None]


class Connection:
    """One client. ``tls`` is the context for STARTTLS, ``None`` without certificates."""

    def __init__(
        self,
        transport: SocketTransport,
        handshake: Handshake,
        serve: Lookup,
        *,
        tls: ssl.SSLContext | None,
        limits: Limits,
        pool: BufferPool,
        statistics: Statistics,
    ) -> None:
        self._transport: Transport = transport
        self._socket = transport
        self._handshake = handshake
        self._serve = serve
        self._tls = tls
        self._limits = limits
        self._pool = pool
        self._statistics = statistics
        self._transmission: Transmission | None = None

    def shut_down(self) -> None:
        """Take no more requests, finish those outstanding, then close."""
        self._handshake.shutting_down = True
        if self._transmission is not None:
            self._transmission.stop_receiving()

    async def run(self) -> None:
        """Serve the client until it leaves. Raises nothing that the client could cause."""
        try:
            with trio.move_on_after(self._limits.handshake_timeout_s) as patience:
                entered = await self._negotiate()
            if patience.cancelled_caught:
                raise RemoteError(f"no export was agreed on within {self._limits.handshake_timeout_s} s")
            if entered:
                await self._transmit()
        except RemoteError as error:
            self._statistics.errors["RemoteError"] += 1
            log.info("connection closed", reason=str(error))
        except BROKEN as error:
            self._statistics.errors["disconnected"] += 1
            log.debug("connection lost", reason=str(error))
        finally:
            with trio.CancelScope(shield=True):
                await self._transport.close()

    # --- handshake ---

    async def _negotiate(self) -> bool:
        handshake = self._handshake
        await self._transport.send([handshake.greeting()])
        memory = memoryview(bytearray(HANDSHAKE_READ_BYTES))
        while True:
            count = await self._transport.receive([memory])
            if not count:
                return False
            answer, outcome = handshake.receive(bytes(memory[:count]))
            if answer:
                await self._transport.send([answer])
            if outcome is Outcome.UPGRADE:
                assert self._tls is not None
                self._transport = await self._socket.encrypted(self._tls)
                handshake.encrypted_now()
                self._statistics.tls_connections += 1
            elif outcome is Outcome.ENTERED:
                return True
            elif outcome is Outcome.ABORTED:
                return False

    async def _transmit(self) -> None:
        agreement = self._handshake.agreement
        assert agreement is not None
        served = self._serve(agreement.export.name)
        if served is None:
            raise RemoteError(f"the export '{agreement.export.name}' was withdrawn during the handshake")
        allowance = Allowance(self._pool, self._limits.memory_bytes_max)
        device = served.device.device
        payload_memory = device.payload_memory if isinstance(device, PayloadDevice) else None
        intake = Intake(agreement, allowance, fast_zero=served.fast_zero, payload_memory=payload_memory)
        replies = Replies(agreement.structured, agreement.contexts, self._statistics)
        intake.preload(self._handshake.rest())
        read_replies = ReadReplies(agreement.structured, device.block_size, allowance)
        read_only = agreement.export.read_only
        at_once = AtOnce(intake, served.device, read_replies, self._statistics, read_only=read_only)
        self._transmission = Transmission(
            self._transport, served.device, intake, replies, at_once, self._limits, self._statistics
        )
        if self._handshake.shutting_down:
            self._transmission.stop_receiving()
        await self._transmission.run()


class Transmission:
    """The transmission phase of one connection: who reads, who sends, and how much may be under way."""

    def __init__(
        self,
        transport: Transport,
        device: ByteDevice,
        intake: Intake,
        replies: Replies,
        at_once: AtOnce,
        limits: Limits,
        statistics: Statistics,
    ) -> None:
        self._transport = transport
        self._device = device
        self._intake = intake
        self._replies = replies
        self._at_once = at_once
        self._limits = limits
        self._statistics = statistics
        self._receiving = trio.CancelScope()
        self._outstanding = 0  # requests whose answers have not left
        self._in_device = 0
        self._submitting = False
        self._gone: Exception | None = None  # why nothing more can be sent
        self._stalled: Train | None = None  # what the sender's task is sending
        self._to_send = trio.Event()
        self._queries: deque[StatusQuery] = deque()
        self._to_query = trio.Event()
        self._progress: trio.Event | None = None  # somebody waits for answers to leave or requests to complete

    def stop_receiving(self) -> None:
        """Finish what is outstanding, take nothing more."""
        self._receiving.cancel()

    async def run(self) -> None:
        """Until the client leaves or :meth:`stop_receiving`. Raises :class:`RemoteError` or one of ``BROKEN``."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_late)
                nursery.start_soon(self._answer_queries)
                try:
                    with self._receiving:
                        await self._receive()
                except (RemoteError, *BROKEN) as error:
                    await self._lose(error)
                while self._outstanding and self._gone is None:
                    await self._wait_for_progress()
                # Nobody takes the answers of a client that is gone, but its requests still own their buffers.
                while self._in_device:
                    await self._wait_for_progress()
                failure = self._gone
                nursery.cancel_scope.cancel()
        finally:
            self._gone = self._gone or trio.ClosedResourceError("the connection is over")
            self._discard()
            if self._stalled is not None:
                self._left(self._stalled)
            self._intake.close()
            self._at_once.close()
        if failure is not None:
            raise failure

    # --- in ---

    async def _receive(self) -> None:
        intake, outstanding_max = self._intake, self._limits.outstanding_requests_max
        receive, wait_for_room = self._transport.receive, self._device.device.wait_for_room
        while True:
            if self._outstanding >= outstanding_max:
                await self._wait_for_progress()
                continue
            admitted = self._answer_at_once()
            if not admitted or intake.midway:
                batch = intake.parse(outstanding_max - self._outstanding)
                admitted += self._admit(batch)
                if batch.disconnect:
                    return
                if batch.requests:
                    await wait_for_room()
                if batch.blocked:
                    if self._outstanding:
                        await self._wait_for_progress()
                    elif not admitted:
                        raise RuntimeError("nothing is under way and yet there is no memory for a request")
                    continue
            targets = intake.targets()
            if targets is None:
                await self._wait_for_progress()
                continue
            count = await receive(targets, admitted > 0 and not self._outstanding)
            if not count:
                if intake.midway:
                    raise RemoteError("the stream ended in the middle of a request")
                return
            intake.received(count)

    def _answer_at_once(self) -> int:
        """Do and answer what can be done at once, as far as it stands first and the socket takes it: how much."""
        answered = 0
        while answered < self._limits.outstanding_requests_max and self._stalled is None and self._gone is None:
            train = self._at_once.answer(self._limits.outstanding_requests_max)
            if train is None:
                break
            answered += train.requests
            self._outstanding += train.requests
            self._send(train)
        return answered

    def _admit(self, batch: Batch) -> int:
        """Hand a batch on and send what it completed at once: how many requests it had."""
        requests = batch.requests
        count = len(requests) + len(batch.refusals) + len(batch.queries)
        if not count:
            return 0
        self._outstanding += count
        if requests:
            self._in_device += len(requests)
            self._statistics.batches[len(requests).bit_length()] += 1
            self._submitting = True
            try:
                self._device.submit(requests, self._completed, batch.bits)
            finally:
                self._submitting = False
        if batch.refusals:
            self._replies.refused(batch.refusals)
        if batch.queries:
            self._queries.extend(batch.queries)
            self._to_query.set()
        self._send_now()
        return count

    # --- out ---

    def _completed(self, requests: list[Request]) -> None:
        """The device is done with these; may be called at any time, even after this connection."""
        self._in_device -= len(requests)
        self._replies.completed(requests)
        if self._gone is not None:
            self._discard()
        elif not self._submitting:
            self._send_now()

    def _send_now(self) -> None:
        """Send what waits without waiting, unless the sender's task is at it: the order of bytes is sacred."""
        if self._gone is not None:
            self._discard()
            return
        train = self._replies.take() if self._stalled is None else None
        if train is not None:
            self._send(train)

    def _send(self, train: Train) -> None:
        """Send, or leave it to the sender's task where the socket does not take all of it."""
        try:
            train.buffers = self._transport.send_now(train.buffers)
        except BROKEN as error:
            self._left(train)
            self._vanish(error)
            return
        if train.buffers:
            self._stalled = train
            self._to_send.set()
        else:
            self._left(train)

    async def _send_late(self) -> None:
        """The sender's task: what the socket did not take at once, and what gathered behind that."""
        while self._gone is None:
            await self._to_send.wait()
            self._to_send = trio.Event()
            while self._gone is None and (train := self._stalled or self._replies.take()):
                self._stalled = train
                try:
                    await self._transport.send(train.buffers)
                except BROKEN as error:
                    self._vanish(error)
                self._stalled = None
                self._left(train)

    def _left(self, train: Train) -> None:
        """These answers are out (or will never be): their requests and buffers are free."""
        self._outstanding -= train.requests
        for holder in train.holders:
            holder.release()
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _vanish(self, error: Exception) -> None:
        """The client does not take answers any more."""
        self._gone = self._gone or error
        self._receiving.cancel()
        self._discard()

    async def _lose(self, error: Exception) -> None:
        """Close at once: what is outstanding has nobody to go to."""
        self._vanish(error)
        await self._transport.close()

    def _discard(self) -> None:
        train = self._replies.take()
        if train is not None:
            self._left(train)

    async def _wait_for_progress(self) -> None:
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    # --- block status ---

    async def _answer_queries(self) -> None:
        """The task for BLOCK_STATUS, one query at a time: the next waits until the last answer is on its way."""
        while True:
            await self._to_query.wait()
            self._to_query = trio.Event()
            while self._queries:
                query = self._queries.popleft()
                try:
                    allocations = await self._allocation(query)
                except CrucibleError as error:
                    self._replies.status_failed(query, error)
                else:
                    self._replies.status(query, allocations)
                self._send_now()
                while self._stalled is not None:
                    await self._wait_for_progress()

    async def _allocation(self, query: StatusQuery) -> list[Allocation]:
        """The device's answer for whole blocks, cut to begin where the query does."""
        device = self._device.device
        start = query.offset & -device.block_size
        end = -(-(query.offset + query.length) // device.block_size) * device.block_size
        skip = query.offset - start
        found = []
        for run in await device.allocation(start, min(end, device.size_bytes) - start):
            if run.length > skip:
                found.append(Allocation(run.length - skip, run.depth))
            skip = max(0, skip - run.length)
        # Nothing found within the first block: "written" is always a safe answer.
        return found or [Allocation(query.length, 1)]
