"""An NBD export under Trio.

What it is for: tests and programs of this project that stand on Trio: the same protocol as
:mod:`crucible_emu.client.aio`, for requests that are whole blocks, without files.

What it guarantees: any number of tasks may ask at once. When the connection ends, each request that waits, and each
later one, gets the reason. A task of the connection sends, so a cancelled request never leaves in half: it is taken
back before it has begun, and sent to its end after; then its answer goes nowhere.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from crucible_emu.client.failures import ConnectionLost
from crucible_emu.client.nbd_exchange import Answer, Exchange, Extent
from crucible_emu.client.nbd_handshake import ExportFacts, Handshake, Outcome
from crucible_emu.errors import RemoteError, UsageError
from crucible_emu.nbd.protocol import Command, CommandFlag
from crucible_emu.nbd.uri import NbdUri, parse

HANDSHAKE_BYTES = 4096
OPEN_TIMEOUT_S = 30.0
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class NbdDisk:
    """A connection in transmission; :func:`opened` makes one. Offsets and lengths in bytes."""

    def __init__(self, address: str, stream: Stream, export: ExportFacts) -> None:
        self.address = address
        self.export = export
        self._stream = stream
        self._exchange = Exchange(structured=export.structured, allocation=export.allocation)
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, Answer] = {}
        self._outgoing: dict[int, bytes] = {}  # by cookie, in order; what is being sent is not among them
        self._to_send = trio.Event()
        self._over: Exception | None = None

    async def read(self, offset: int, length: int) -> bytes:
        memory = bytearray(length)
        if length:
            await self._ask(Command.READ, offset, length, into=memoryview(memory))
        return bytes(memory)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        await self._ask(Command.WRITE, offset, len(data), flags=CommandFlag.FUA if fua else 0, data=data)

    async def zero(self, offset: int, length: int) -> None:
        await self._ask(Command.WRITE_ZEROES, offset, length)

    async def trim(self, offset: int, length: int) -> None:
        await self._ask(Command.TRIM, offset, length)

    async def flush(self) -> None:
        await self._ask(Command.FLUSH)

    async def extents(self, offset: int, length: int) -> tuple[Extent, ...]:
        """What is known of the beginning of the range, or of all of it. Raises :class:`UsageError` where the server
        does not tell."""
        if self.export.allocation is None:
            raise UsageError(f"{self.address} tells nothing of holes")
        return (await self._ask(Command.BLOCK_STATUS, offset, length)).extents

    async def _ask(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        into: memoryview | None = None,
    ) -> Answer:
        if self._over is not None:
            raise self._over
        cookie, header = self._exchange.request(command, offset, length, flags=flags, into=into)
        here = self._waiting[cookie] = trio.Event()
        self._outgoing[cookie] = header + data
        self._to_send.set()
        try:
            await here.wait()
        except trio.Cancelled:
            self._waiting.pop(cookie, None)
            if self._outgoing.pop(cookie, None) is not None:
                self._exchange.forget(cookie)
            else:
                self._exchange.abandon(cookie)
            raise
        answer = self._answers.pop(cookie, None)
        if answer is None:
            assert self._over is not None
            raise self._over
        if answer.error is not None:
            raise answer.error
        return answer

    async def send(self) -> None:
        """Send what is asked, in order, until the connection ends."""
        while self._over is None:
            await self._to_send.wait()
            self._to_send = trio.Event()
            while self._outgoing:
                request = self._outgoing.pop(next(iter(self._outgoing)))
                try:
                    await self._stream.send_all(request)
                except GONE as error:
                    self._end(ConnectionLost(f"the connection to {self.address} was lost: {error}"))

    async def receive(self) -> None:
        """Take answers until the connection ends."""
        exchange = self._exchange
        while self._over is None:
            target = exchange.target()
            try:
                data = await self._stream.receive_some(len(target))
                if not data:
                    raise ConnectionLost(f"the server at {self.address} closed the connection")
                target[: len(data)] = data
                answers = exchange.received(len(data))
            except ConnectionLost as error:
                self._end(error)
            except GONE as error:
                self._end(ConnectionLost(f"the connection to {self.address} was lost: {error}"))
            except RemoteError as error:
                self._end(error)
            else:
                for answer in answers:
                    here = self._waiting.pop(answer.cookie, None)
                    if here is not None:
                        self._answers[answer.cookie] = answer
                        here.set()

    async def say_goodbye(self) -> None:
        """End in order, where the server still listens and nothing is half sent."""
        if self._over is None and not self._exchange.outstanding:
            self._end(ConnectionLost(f"the connection to {self.address} was closed here"))
            with trio.move_on_after(1):
                try:
                    await self._stream.send_all(Exchange.farewell())
                except GONE:
                    return  # it is gone already

    def _end(self, reason: Exception) -> None:
        self._over = self._over or reason
        for here in self._waiting.values():
            here.set()
        self._waiting.clear()
        self._outgoing.clear()


@asynccontextmanager
async def opened(
    address: str, *, tls: ssl.SSLContext | None = None, timeout_s: float = OPEN_TIMEOUT_S
) -> AsyncIterator[NbdDisk]:
    """The export at ``address`` while the block lasts. Raises :class:`UsageError`, :class:`OSError` (among them
    :class:`~crucible_emu.client.failures.ExportRefused`), :class:`RemoteError`, ``trio.TooSlowError``."""
    uri = parse(address)
    if uri.tls and tls is None:
        raise UsageError(f"'{address}' needs TLS: give a context")
    stream: Stream
    with trio.fail_after(timeout_s):
        if uri.socket is not None:
            stream = await trio.open_unix_socket(uri.socket)
        else:
            stream = await trio.open_tcp_stream(uri.host, uri.port)
    try:
        with trio.fail_after(timeout_s):
            stream, export = await _negotiate(uri, stream, tls)
        disk = NbdDisk(address, stream, export)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.receive)
            nursery.start_soon(disk.send)
            try:
                yield disk
            except Exception as error:  # noqa: BLE001 — raised below, where no nursery puts it into a group
                failure = error
            nursery.cancel_scope.cancel()
        await disk.say_goodbye()
        if failure is not None:
            raise failure
    finally:
        await trio.aclose_forcefully(stream)


async def _negotiate(uri: NbdUri, plain: trio.SocketStream, tls: ssl.SSLContext | None) -> tuple[Stream, ExportFacts]:
    handshake = Handshake(uri.export, tls=uri.tls)
    stream: Stream = plain
    while True:
        try:
            data = await stream.receive_some(HANDSHAKE_BYTES)
            if not data:
                raise ConnectionLost(f"the server at {uri} closed the connection in the handshake")
            answer, outcome = handshake.receive(data)
            await stream.send_all(answer)
            if outcome is Outcome.ENCRYPT:
                assert tls is not None
                stream = trio.SSLStream(plain, tls, server_hostname=uri.host or "localhost", https_compatible=True)
                await stream.do_handshake()
                await stream.send_all(handshake.encrypted())
        except trio.BrokenResourceError as error:
            raise ConnectionLost(f"the connection to {uri} was lost: {error}") from error
        if outcome is Outcome.TRANSMIT:
            if handshake.rest():
                raise RemoteError("the server talks on although nothing was asked")
            return stream, handshake.export
