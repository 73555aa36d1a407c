"""A minimal NBD client for tests: it says exactly what it is told to, right or wrong.

The encoders and :class:`ReplyDecoder` are pure; :class:`PlainClient` drives them over a Trio stream.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from crucible_emu.nbd import protocol as p

GO_EVERYTHING = (p.Info.EXPORT, p.Info.NAME, p.Info.DESCRIPTION, p.Info.BLOCK_SIZE)
BASE, DEPTH = "base:allocation", "qemu:allocation-depth"


def client_flags(flags: int = p.HandshakeFlag.FIXED_NEWSTYLE | p.HandshakeFlag.NO_ZEROES) -> bytes:
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", p.OPTION_MAGIC, number, len(data)) + data


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">I", len(encoded)) + encoded


def go(name: str, infos: Sequence[int] = (), number: int = p.Option.GO) -> bytes:
    return option(number, text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def contexts(name: str, queries: Sequence[str], number: int = p.Option.SET_META_CONTEXT) -> bytes:
    return option(number, text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries)))


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """``(option, reply type, data)`` of every reply in ``data``, which must be whole."""
    found, at = [], 0
    while at < len(data):
        magic, number, kind, length = struct.unpack_from(">QIII", data, at)
        assert magic == p.OPTION_REPLY_MAGIC
        found.append((number, kind, data[at + 20 : at + 20 + length]))
        at += 20 + length
    assert at == len(data)
    return found


def request(command: int, offset: int = 0, length: int = 0, *, cookie: int, flags: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", p.REQUEST_MAGIC, flags, command, cookie, offset, length) + data


@dataclass
class Answer:
    """Everything that came back for one cookie."""

    errno: int = 0
    text: str = ""
    data: bytearray = field(default_factory=bytearray)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)
    structured: bool = False


class ReplyDecoder:
    """Replies out of bytes. ``reads`` maps the cookie of a read under way to its ``(offset, length)``."""

    def __init__(self) -> None:
        self.reads: dict[int, tuple[int, int]] = {}
        self._received = bytearray()
        self._partial: dict[int, Answer] = {}

    def receive(self, data: bytes) -> list[tuple[int, Answer]]:
        self._received += data
        done = []
        while (found := self._one()) is not None:
            cookie, answer, last = found
            if last:
                self._partial.pop(cookie, None)
                self.reads.pop(cookie, None)
                done.append((cookie, answer))
        return done

    def _one(self) -> tuple[int, Answer, bool] | None:
        received = self._received
        if len(received) < 16:
            return None
        (magic,) = struct.unpack_from(">I", received)
        if magic == p.SIMPLE_REPLY_MAGIC:
            _, errno, cookie = struct.unpack_from(">IIQ", received)
            length = self.reads.get(cookie, (0, 0))[1] if not errno else 0
            if len(received) < 16 + length:
                return None
            answer = Answer(errno, data=bytearray(received[16 : 16 + length]))
            del received[: 16 + length]
            return cookie, answer, True
        assert magic == p.STRUCTURED_REPLY_MAGIC, hex(magic)
        if len(received) < 20:
            return None
        _, flags, kind, cookie, length = struct.unpack_from(">IHHQI", received)
        if len(received) < 20 + length:
            return None
        payload = bytes(received[20 : 20 + length])
        del received[: 20 + length]
        answer = self._partial.setdefault(cookie, Answer(structured=True))
        self._chunk(cookie, answer, kind, payload)
        return cookie, answer, bool(flags & p.CHUNK_DONE)

    def _chunk(self, cookie: int, answer: Answer, kind: int, payload: bytes) -> None:
        answer.chunks.append(kind)
        if kind == p.Chunk.OFFSET_DATA:
            start, length = self.reads[cookie]
            (offset,) = struct.unpack_from(">Q", payload)
            answer.data = answer.data or bytearray(length)
            assert start <= offset and offset + len(payload) - 8 <= start + length
            answer.data[offset - start : offset - start + len(payload) - 8] = payload[8:]
        elif kind == p.Chunk.ERROR:
            answer.errno, length = struct.unpack_from(">IH", payload)
            answer.text = payload[6 : 6 + length].decode()
        elif kind == p.Chunk.BLOCK_STATUS:
            (context,) = struct.unpack_from(">I", payload)
            assert context not in answer.extents
            answer.extents[context] = list(struct.iter_unpack(">II", payload[4:]))
        else:
            assert kind == p.Chunk.NONE and not payload


class PlainClient:
    """A client over a Trio stream; requests are sent one by one and may be answered in any order."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.decoder = ReplyDecoder()
        self.answers: dict[int, Answer] = {}
        self.size_bytes = 0
        self.flags = 0
        self._cookies = itertools.count(1)

    async def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self.stream.receive_some(count - len(data))
            if not more:
                raise EOFError(f"the server closed after {len(data)} of {count} bytes")
            data += more
        return data

    async def greet(self) -> None:
        magic, options, _ = struct.unpack(">QQH", await self.read_exactly(18))
        assert (magic, options) == (p.GREETING_MAGIC, p.OPTION_MAGIC)
        await self.stream.send_all(client_flags())

    async def ask(self, message: bytes) -> list[tuple[int, bytes]]:
        """Send one option; all its replies as ``(type, data)``, the last being the final one."""
        await self.stream.send_all(message)
        found = []
        while True:
            magic, _, kind, length = struct.unpack(">QIII", await self.read_exactly(20))
            assert magic == p.OPTION_REPLY_MAGIC
            found.append((kind, await self.read_exactly(length)))
            if kind == p.Reply.ACK or kind & 0x80000000:
                return found

    async def enter(self, name: str = "", *, structured: bool = True, queries: Sequence[str] = ()) -> PlainClient:
        """The whole handshake."""
        await self.greet()
        if structured:
            assert (await self.ask(option(p.Option.STRUCTURED_REPLY)))[-1][0] == p.Reply.ACK
        if queries:
            assert (await self.ask(contexts(name, queries)))[-1][0] == p.Reply.ACK
        replies = await self.ask(go(name, [p.Info.BLOCK_SIZE]))
        assert replies[-1][0] == p.Reply.ACK, replies
        for kind, data in replies:
            if kind == p.Reply.INFO and data[:2] == b"\0\0":
                self.size_bytes, self.flags = struct.unpack(">QH", data[2:])
        return self

    def encode(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> bytes:
        """A request with a new cookie, to be sent by hand; ``length`` is that of ``data`` where there is some."""
        self.last_cookie = next(self._cookies)
        length = length or len(data)
        if command == p.Command.READ:
            self.decoder.reads[self.last_cookie] = (offset, length)
        return request(command, offset, length, cookie=self.last_cookie, flags=flags, data=data)

    async def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> int:
        """Send a request without waiting; its cookie."""
        message = self.encode(command, offset, length, flags=flags, data=data)
        cookie = self.last_cookie
        await self.stream.send_all(message)
        return cookie

    async def answer(self, cookie: int) -> Answer:
        """Wait for the answer to ``cookie``; others are kept."""
        while cookie not in self.answers:
            data = await self.stream.receive_some(1 << 18)
            if not data:
                raise EOFError("the server closed the connection")
            self.answers.update(self.decoder.receive(data))
        return self.answers.pop(cookie)

    async def call(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Answer:
        return await self.answer(await self.send(command, offset, length, flags=flags, data=data))

    async def read(self, offset: int, length: int) -> bytes:
        answer = await self.call(p.Command.READ, offset, length)
        assert answer.errno == 0, answer
        return bytes(answer.data)

    async def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        answer = await self.call(p.Command.WRITE, offset, data=data, flags=flags)
        assert answer.errno == 0, answer
