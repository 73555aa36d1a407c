"""An NBD export under asyncio.

What it is for: :func:`open_nbd` connects, negotiates and returns a :class:`NbdDisk`. The protocol is
:mod:`~crucible_emu.client.nbd_handshake` and :mod:`~crucible_emu.client.nbd_exchange`; here a request meets its future.

What it guarantees: at most :data:`IN_FLIGHT_MAX` requests are under way, further ones wait their turn. When the
connection ends for whatever reason, each request that waits gets that reason, and each later one as well: nothing
hangs. A cancelled read's memory is not written to any more when the call has ended, a cancelled write's not read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.aio.link import Link, SocketLink, TlsLink
from crucible_emu.client.failures import ConnectionLost
from crucible_emu.client.nbd_exchange import Answer, Exchange
from crucible_emu.client.nbd_handshake import ExportFacts, Handshake, Outcome
from crucible_emu.errors import RemoteError
from crucible_emu.nbd.protocol import Command, CommandFlag, TransmissionFlag
from crucible_emu.nbd.uri import NbdUri

IN_FLIGHT_MAX = 64
HANDSHAKE_BYTES = 4096
MAPPED_BYTES_MAX = 1 << 30
"""Of one BLOCK_STATUS: its length has 32 bits, and a long answer is of no use."""
ZEROED_BYTES_MAX = 1 << 30


class NbdDisk(Disk):
    """A connection in transmission. Made by :func:`open_nbd`."""

    def __init__(self, address: str, link: Link, export: ExportFacts) -> None:
        self.address = address
        self.export = export
        self.size_bytes = export.size_bytes
        self.block_size = export.block_size
        self.read_only = export.read_only
        self.can_flush = export.offers(TransmissionFlag.SEND_FLUSH)
        self.can_zero = export.offers(TransmissionFlag.SEND_WRITE_ZEROES)
        self.can_trim = export.offers(TransmissionFlag.SEND_TRIM)
        self.can_map = export.allocation is not None
        self._link = link
        self._exchange = Exchange(structured=export.structured, allocation=export.allocation)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._over: Exception | None = None
        link.receiver = self

    async def close(self) -> None:
        if self._over is None:
            self._end(ConnectionLost(f"the connection to {self.address} was closed here"))
            self._link.send(0, [memoryview(Exchange.farewell())])
        self._link.close()

    # --- what the link calls ---

    def target(self) -> memoryview:
        return self._exchange.target()

    def received(self, count: int) -> None:
        for answer in self._exchange.received(count):
            waiting = self._waiting.pop(answer.cookie, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def lost(self, error: Exception | None) -> None:
        if isinstance(error, RemoteError):
            self._end(error)
        elif error is not None:
            self._end(ConnectionLost(f"the connection to {self.address} was lost: {error}"))
        else:
            self._end(ConnectionLost(f"the server at {self.address} closed the connection"))

    def _end(self, reason: Exception) -> None:
        self._over = reason
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(reason)
        self._waiting.clear()

    # --- requests ---

    async def _ask(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: memoryview | None = None,
        into: memoryview | None = None,
    ) -> Answer:
        async with self._room:
            if self._over is not None:
                raise self._over
            cookie, header = self._exchange.request(command, offset, length, flags=flags, into=into)
            waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[cookie] = waiting
            self._link.send(cookie, [memoryview(header), data] if data is not None else [memoryview(header)])
            try:
                answer = await waiting
            except asyncio.CancelledError:
                self._give_up(cookie)
                raise
        if answer.error is not None:
            raise answer.error
        return answer

    def _give_up(self, cookie: int) -> None:
        """Nobody waits for this request any more, and its memory may be used for something else."""
        if self._waiting.pop(cookie, None) is None:
            return
        if self._link.withdraw(cookie):
            self._exchange.forget(cookie)
        else:
            self._exchange.abandon(cookie)

    async def _read_into(self, offset: int, memory: memoryview) -> None:
        most = self.export.payload_bytes_max
        for start in range(0, len(memory), most):
            piece = memory[start : start + most]
            await self._ask(Command.READ, offset + start, len(piece), into=piece)

    async def _write(self, offset: int, data: memoryview, fua: bool) -> None:
        can_fua = self.export.offers(TransmissionFlag.SEND_FUA)
        flags = CommandFlag.FUA if fua and can_fua else 0
        most = self.export.payload_bytes_max
        for start in range(0, len(data), most):
            piece = data[start : start + most]
            await self._ask(Command.WRITE, offset + start, len(piece), flags=flags, data=piece)
        if fua and not can_fua:
            await self.flush()

    async def _zero(self, offset: int, length: int) -> None:
        most = ZEROED_BYTES_MAX if self.can_zero else self.export.payload_bytes_max
        for start in range(offset, offset + length, most):
            count = min(most, offset + length - start)
            if self.can_zero:
                await self._ask(Command.WRITE_ZEROES, start, count)
            else:
                await self._ask(Command.WRITE, start, count, data=memoryview(bytes(count)))

    async def _trim(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, ZEROED_BYTES_MAX):
            await self._ask(Command.TRIM, start, min(ZEROED_BYTES_MAX, offset + length - start))

    async def _flush(self) -> None:
        await self._ask(Command.FLUSH)

    async def _zeros(self, offset: int, length: int) -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []
        start, end = self.whole_blocks(offset, length)
        at = start
        while at < end:
            answer = await self._ask(Command.BLOCK_STATUS, at, min(end - at, MAPPED_BYTES_MAX))
            for extent in answer.extents:
                first, last = max(at, offset), min(at + extent.length, offset + length)
                at += extent.length
                if last <= first:
                    continue
                if found and found[-1][1] == extent.zero:
                    found[-1] = (found[-1][0] + last - first, extent.zero)
                else:
                    found.append((last - first, extent.zero))
        return found


class _Negotiation:
    """The link's receiver during the handshake."""

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake
        self._memory = memoryview(bytearray(HANDSHAKE_BYTES))
        self.link: Link | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def target(self) -> memoryview:
        return self._memory

    def received(self, count: int) -> None:
        answer, outcome = self._handshake.receive(self._memory[:count])
        assert self.link is not None
        if answer:
            self.link.send(0, [memoryview(answer)])
        if outcome is not Outcome.READ_ON:
            if self.outcome.done():
                raise RemoteError("the server talks on although nothing was asked")
            self.outcome.set_result(outcome)

    def lost(self, error: Exception | None) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error or ConnectionLost("the server closed the connection in the handshake"))

    async def wait(self) -> Outcome:
        """What the driver has to do next; a failure of the link or of the protocol is raised."""
        found = await self.outcome
        self.outcome = asyncio.get_running_loop().create_future()
        return found


async def open_nbd(uri: NbdUri, tls: ssl.SSLContext | None, timeout_s: float) -> NbdDisk:
    """Connect to an export. ``tls``: the context for ``nbds``. Raises :class:`OSError` (among them
    :class:`~crucible_emu.client.failures.ExportRefused` and ``TimeoutError``), :class:`RemoteError`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _negotiate(uri, await _connect(uri), tls)
    except TimeoutError:
        raise TimeoutError(f"{uri} did not agree on an export within {timeout_s} s") from None


async def _negotiate(uri: NbdUri, connected: socket.socket, tls: ssl.SSLContext | None) -> NbdDisk:
    handshake = Handshake(uri.export, tls=uri.tls)
    negotiation = _Negotiation(handshake)
    plain = SocketLink(asyncio.get_running_loop(), connected, negotiation)
    link: Link = plain
    try:
        negotiation.link = link
        outcome = await negotiation.wait()
        if outcome is Outcome.ENCRYPT:
            assert tls is not None
            link = negotiation.link = await TlsLink.over(plain.detach(), tls, uri.host or "localhost", negotiation)
            link.send(0, [memoryview(handshake.encrypted())])
            outcome = await negotiation.wait()
        if outcome is not Outcome.TRANSMIT or handshake.rest():
            raise RemoteError("the server talks on although nothing was asked")
    except BaseException:
        link.close()
        connected.close()
        raise
    return NbdDisk(str(uri), link, handshake.export)


async def _connect(uri: NbdUri) -> socket.socket:
    loop = asyncio.get_running_loop()
    if uri.socket is not None:
        return await _connected(loop, socket.AF_UNIX, uri.socket)
    failure: OSError | None = None
    for family, _, _, _, place in await loop.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM):
        try:
            connected = await _connected(loop, family, place)
        except OSError as error:
            failure = error
        else:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
    raise failure or ConnectionLost(f"{uri.host} has no address")


async def _connected(loop: asyncio.AbstractEventLoop, family: int, place: str | tuple[object, ...]) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        await loop.sock_connect(connected, place)
    except BaseException:
        connected.close()
        raise
    return connected
