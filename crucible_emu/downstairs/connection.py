"""One peer on a socket: frames in, answers out (wire-protocol.md §1, §6.5).

What it is for: the task of a connection receives into the decoder's memory, hands all messages that are there to the
runner at once, and the answers that come of it leave by one system call. Only what the socket does not take at once
is left to a second task.

What it guarantees: 45 s without a complete frame end the connection, and so do 45 s in which the peer takes no
answer. Memory is bounded: while too much waits to be sent, or the jobs have no room, nothing is received, and the
silence that follows is not the peer's. What was answered before a close is still sent.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import trio

from crucible_emu.downstairs.faults import FaultInjector
from crucible_emu.downstairs.runner import Runner
from crucible_emu.downstairs.transport import Buffer, Transport
from crucible_emu.errors import LocalError, RemoteError
from crucible_emu.logs import get_logger
from crucible_emu.wire import Decoder, encode, encode_ack_train
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import FRAME_BYTES_MAX, RECEIVE_SILENCE_S_MAX
from crucible_emu.wire.runs import AckRun, ResponseFrames

FIRST_FRAME_BYTES_MAX = 2 * 1024 * 1024
"""The longest frame from a peer that may not write (yet): strangers do not get to fill 100 MiB each."""
UNSENT_BYTES_MAX = 16 * 1024 * 1024
"""While more than this waits to be sent, nothing is received."""
JOINED_BYTES_MAX = 64 * 1024
"""Buffers up to this size are joined rather than given to the kernel one by one."""
TURNS_MAX = 4
"""Receives in a row that may succeed at once before other tasks get their turn."""
GOODBYE_S_MAX = 5.0
"""How long a closed connection may take for the last answers."""
GOODBYE_BYTES_MAX = 64 * 1024 * 1024

log = get_logger(__name__)


class Connection:
    """A connected peer; an :class:`~crucible_emu.downstairs.runner.Outlet`."""

    trusted = False

    def __init__(
        self,
        runner: Runner,
        transport: Transport,
        repair_address: m.SocketAddress,
        injector: FaultInjector | None = None,
    ) -> None:
        self._runner = runner
        self._transport = transport
        self._repair_address = repair_address
        self._injector = injector
        self._decoder = Decoder(FIRST_FRAME_BYTES_MAX, runs=True)
        self._unsent: deque[Buffer] = deque()
        self._unsent_bytes = 0
        self._more_to_send = trio.Event()
        self._sent_enough = trio.Event()
        self._room = trio.Event()
        self._paused = False
        self._last_frame_at = trio.current_time()
        self._scope = trio.CancelScope()
        self._reason: str | None = None
        self._says_goodbye = True
        self.id = 0

    async def run(self) -> str:
        """Serve the peer until either side ends it; why it ended."""
        self.id = self._runner.connect(self, self._repair_address)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_the_rest)
                    nursery.start_soon(self._watch_for_silence)
                    reason = await self._receive()
                    self._reason = self._reason or reason
                    nursery.cancel_scope.cancel()
        finally:
            self._runner.disconnect(self.id)
            self._decoder.memory = None
        if self._says_goodbye:
            await self._say_goodbye()
        return self._reason or "the server stops"

    # What the runner calls

    def deliver(self, messages: list[m.Message]) -> None:
        try:
            buffers = encode_answers(messages)
        except LocalError as error:
            self.close(f"an answer has no bytes: {error}")
            return
        idle = not self._unsent
        self._unsent.extend(buffers)
        self._unsent_bytes += sum(map(len, buffers))
        if idle:
            self._try_to_send()
        if self._unsent:
            self._more_to_send.set()

    def cut(self, reason: str) -> None:
        """End the connection as a broken network would: nothing more is said."""
        self._says_goodbye = False
        self.close(reason)

    def close(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()

    def resume(self) -> None:
        self._room.set()

    # Writes whose data lie in memory of the peer

    @property
    def refers_to_memory(self) -> bool:
        """Whether the peer has shown memory."""
        return self._decoder.memory is not None

    def refer_to(self, memory: memoryview | None) -> None:
        """From now on writes of the peer may say where in ``memory`` their data are; or none may, with ``None``."""
        self._decoder.memory = memory

    # Receiving

    async def _receive(self) -> str:
        transport, decoder = self._transport, self._decoder
        turns = 0
        try:
            while True:
                count = transport.receive_into(decoder.buffer())
                if count is None:
                    turns = 0
                    await transport.readable()
                    continue
                if count == 0:
                    decoder.finish()
                    return "the peer left"
                messages = decoder.received(count)
                if messages:
                    await self._take(messages)
                if self._injector is not None and self._injector.drops():
                    self.cut("dropped on purpose")
                turns += 1
                if turns >= TURNS_MAX:
                    turns = 0
                    await trio.lowlevel.checkpoint()
        except RemoteError as error:
            return str(error)
        except OSError as error:
            return f"the connection broke: {error}"

    async def _take(self, messages: list[m.Message]) -> None:
        """Hand the messages over, as fast as there is room for them and for what they are answered with."""
        taken = 0
        while True:
            self._last_frame_at = trio.current_time()
            self._room = trio.Event()
            taken += self._runner.receive(self.id, messages, taken)
            if self._decoder.max_frame_bytes != FRAME_BYTES_MAX and self._runner.may_write(self.id):
                self._decoder.max_frame_bytes = FRAME_BYTES_MAX
            done = taken >= len(messages)
            if not done or self._unsent_bytes > UNSENT_BYTES_MAX:
                self._paused = True
                if not done:
                    await self._room.wait()
                await self._wait_until_sent()
                self._paused = False
            if done:
                return

    async def _wait_until_sent(self) -> None:
        while self._unsent_bytes > UNSENT_BYTES_MAX:
            self._sent_enough = trio.Event()
            await self._sent_enough.wait()

    async def _watch_for_silence(self) -> None:
        while True:
            await trio.sleep_until(self._last_frame_at + RECEIVE_SILENCE_S_MAX)
            if self._paused:
                self._last_frame_at = trio.current_time()
            elif trio.current_time() >= self._last_frame_at + RECEIVE_SILENCE_S_MAX:
                self.close(f"no frame came for {RECEIVE_SILENCE_S_MAX:.0f} s")
                return

    # Sending

    def _try_to_send(self) -> None:
        """Send what the socket takes at once."""
        unsent, most = self._unsent, self._transport.buffers_max
        try:
            while unsent:
                count = self._transport.send(list(islice(unsent, most)))
                if count is None:
                    return
                self._unsent_bytes -= count
                drop_sent(unsent, count)
        except OSError as error:
            self._unsent.clear()
            self._unsent_bytes = 0
            self.close(f"answers cannot be sent: {error}")

    async def _send_the_rest(self) -> None:
        while True:
            while self._unsent:
                await self._send_some()
            self._more_to_send = trio.Event()
            await self._more_to_send.wait()

    async def _send_some(self) -> None:
        """Send some of what waits, once the peer takes it."""
        with trio.move_on_after(RECEIVE_SILENCE_S_MAX) as scope:
            await self._transport.writable()
        if scope.cancelled_caught:
            self.cut(f"the peer took nothing for {RECEIVE_SILENCE_S_MAX:.0f} s")
            return
        self._try_to_send()
        if self._unsent_bytes <= UNSENT_BYTES_MAX:
            self._sent_enough.set()

    async def _say_goodbye(self) -> None:
        """Send what was answered before the end, and let the peer read it: a socket that is closed with something
        unread in it takes back what it has sent."""
        with trio.move_on_after(GOODBYE_S_MAX):
            try:
                while self._unsent:
                    await self._send_some()
                self._transport.end_of_sending()
                await self._read_to_the_end()
            except OSError as error:
                log.debug("no goodbye", connection=self.id, reason=str(error))

    async def _read_to_the_end(self) -> None:
        scratch, seen = memoryview(bytearray(64 * 1024)), 0
        while seen < GOODBYE_BYTES_MAX:
            count = self._transport.receive_into(scratch)
            if count is None:
                await self._transport.readable()
            elif count == 0:
                return
            else:
                seen += count
                await trio.lowlevel.checkpoint()


def encode_answers(messages: list[m.Message]) -> list[Buffer]:
    """The frames of ``messages`` as few buffers: runs of good acks at once, small pieces joined, block data as it is.

    Raises :class:`LocalError`.
    """
    buffers: list[Buffer] = []
    small: list[Buffer] = []
    index, count = 0, len(messages)
    while index < count:
        message = messages[index]
        if isinstance(message, AckRun):
            small.append(encode_ack_train(message.cls, message.upstairs_id, message.session_id, message.job_ids))
            index += 1
            continue
        if isinstance(message, m.Ack) and message.result is None:
            stop = _end_of_acks(messages, index)
            job_ids = [each.job_id for each in messages[index:stop]]  # type: ignore[attr-defined]  # acks, all of them
            small.append(encode_ack_train(type(message), message.upstairs_id, message.session_id, job_ids))
            index = stop
            continue
        index += 1
        for part in [message.buffer] if isinstance(message, ResponseFrames) else encode(message):
            if len(part) <= JOINED_BYTES_MAX:
                small.append(part)
            else:
                if small:
                    buffers.append(b"".join(small))
                    small = []
                buffers.append(part)
    if small:
        buffers.append(b"".join(small) if len(small) > 1 else small[0])
    return buffers


def _end_of_acks(messages: list[m.Message], first: int) -> int:
    """Where the run of good acks of one class that begins at ``first`` ends."""
    kind = type(messages[first])
    index = first + 1
    while index < len(messages):
        message = messages[index]
        if type(message) is not kind or message.result is not None:  # type: ignore[attr-defined]  # an ack
            break
        index += 1
    return index


def drop_sent(buffers: deque[Buffer], count: int) -> None:
    """Remove the first ``count`` bytes from ``buffers``."""
    while count:
        size = len(buffers[0])
        if count < size:
            buffers[0] = memoryview(buffers[0])[count:]
            return
        buffers.popleft()
        count -= size
