"""NBD servers that do as they are told, for clients on asyncio; and a conversation of two handshakes in memory."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from crucible_emu.client import nbd_handshake as client
from crucible_emu.nbd import handshake as server
from crucible_emu.nbd import protocol as p

SIZE = 1 << 20
INFO = server.ExportInfo("", SIZE, 512)


def server_side(info: server.ExportInfo = INFO, tls: server.Tls = server.Tls.NONE) -> server.Handshake:
    return server.Handshake(lambda: [info.name], lambda name: info if name == info.name else None, tls)


def in_pieces(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """``data`` cut into pieces of these sizes, and what is left."""
    pieces, at = [], 0
    for size in sizes:
        if at >= len(data):
            break
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]] if at < len(data) else pieces


def converse(ours: client.Handshake, theirs: server.Handshake, sizes: list[int]) -> client.Outcome:
    """Let both talk, the server's bytes cut into pieces of ``sizes``, until this side has something to do."""
    to_client = theirs.greeting()
    while True:
        answer, outcome = b"", client.Outcome.READ_ON
        for piece in in_pieces(to_client, sizes):
            said, outcome = ours.receive(piece)
            answer += said
        if answer:
            to_client, _ = theirs.receive(answer)
        if outcome is not client.Outcome.READ_ON:
            return outcome
        assert answer, "both sides wait for each other"


def simple(cookie: int, errno: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", p.SIMPLE_REPLY_MAGIC, errno, cookie) + data


def chunk(cookie: int, kind: int, data: bytes = b"", *, done: bool = True) -> bytes:
    return struct.pack(">IHHQI", p.STRUCTURED_REPLY_MAGIC, int(done), kind, cookie, len(data)) + data


def data_chunk(cookie: int, offset: int, data: bytes, *, done: bool = True) -> bytes:
    return chunk(cookie, p.Chunk.OFFSET_DATA, struct.pack(">Q", offset) + data, done=done)


def error_chunk(cookie: int, errno: int, sentence: str = "") -> bytes:
    text = sentence.encode()
    return chunk(cookie, p.Chunk.ERROR, struct.pack(">IH", errno, len(text)) + text)


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def request_of(reader: asyncio.StreamReader) -> tuple[int, int, int, int]:
    """``(command, cookie, offset, length)`` of the next request, without its payload."""
    _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", await reader.readexactly(p.REQUEST_BYTES))
    return command, cookie, offset, length


@asynccontextmanager
async def scripted(path: Path, behave: Behaviour, info: server.ExportInfo = INFO) -> AsyncIterator[str]:
    """A server at ``path`` that agrees on the export and then behaves; its address."""

    attending = []

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attending.append(asyncio.current_task())
        handshake = server_side(info)
        writer.write(handshake.greeting())
        try:
            while True:
                answer, outcome = handshake.receive(await reader.read(4096))
                writer.write(answer)
                if outcome is server.Outcome.ENTERED:
                    break
            await behave(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(attend, str(path))
    async with listening:
        yield f"nbd+unix:///?socket={path}"
    await asyncio.gather(*(task for task in attending if task is not None))
