"""An NBD client that keeps a number of requests under way, on as many exports as there are.

What it is for: the growth series ask for exact numbers of operations at exact places, on 200 disks in turn, which no
fio line does. What is measured is the server's processor time; so this client need not be fast, only steady.

What it guarantees: requests go out in batches of the asked depth and every one is answered before the next batch, so
the server sees that depth and no other. An answer with an error, or none, raises :class:`LoadError`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.flush import (
    DISCONNECT,
    EXPORT_NAME,
    FIXED_NEWSTYLE,
    FLUSH,
    MAGIC,
    NO_ZEROES,
    REPLY_MAGIC,
    REQUEST_MAGIC,
    FlushError,
    exactly,
)

READ, WRITE = 0, 1
BLOCK_BYTES = 4096
TIMEOUT_S = 600.0
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


class LoadError(Exception):
    """The disk did not do what it was asked; the message is the sentence that says why."""


class Connection:
    """One export at the unix socket ``path``. Raises :class:`LoadError`."""

    def __init__(self, path: Path, export: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._data = Random(export).randbytes(BLOCK_BYTES)
        try:
            self._socket.connect(str(path))
            if not self._exactly(18).startswith(MAGIC):
                raise LoadError("The server does not speak NBD.")
            name = export.encode()
            options = struct.pack(">I8sII", FIXED_NEWSTYLE | NO_ZEROES, MAGIC[8:], EXPORT_NAME, len(name))
            self._socket.sendall(options + name)
            self.size_bytes, _flags = struct.unpack(">QH", self._exactly(10))
        except OSError as problem:
            self._socket.close()
            raise LoadError(f"No connection to the disk: {problem}.") from problem
        except BaseException:
            self._socket.close()
            raise

    def _exactly(self, count: int) -> bytes:
        try:
            return exactly(self._socket, count)
        except (OSError, FlushError) as problem:
            raise LoadError(f"The server did not answer: {problem}") from problem

    def send(self, kind: int, blocks: Sequence[int]) -> None:
        """One request for each of ``blocks``, all at once."""
        data = self._data if kind == WRITE else b""
        parts = []
        for cookie, block in enumerate(blocks):
            parts.append(REQUEST.pack(REQUEST_MAGIC, 0, kind, cookie, block * BLOCK_BYTES, BLOCK_BYTES))
            parts.append(data)
        self._send(b"".join(parts))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as problem:
            raise LoadError(f"The server takes no more requests: {problem}.") from problem

    def take(self, kind: int, count: int) -> None:
        """The replies to ``count`` requests of one kind, in any order."""
        length = REPLY.size + (BLOCK_BYTES if kind == READ else 0)
        replies = self._exactly(length * count)
        for start in range(0, len(replies), length):
            magic, error, _cookie = REPLY.unpack_from(replies, start)
            if magic != REPLY_MAGIC:
                raise LoadError("The server's reply is no NBD reply.")
            if error:
                raise LoadError(f"The server answered with error {error}.")

    def flush(self) -> None:
        """Flush the disk, and wait for it."""
        self._send(REQUEST.pack(REQUEST_MAGIC, 0, FLUSH, 0, 0, 0))
        self.take(FLUSH, 1)

    def close(self) -> None:
        """Say good-bye, as far as the server still listens."""
        try:
            self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass  # a server that is gone needs no good-bye
        self._socket.close()


@contextmanager
def connected(path: Path, *exports: str) -> Iterator[list[Connection]]:
    """A connection to each of ``exports`` (the default one without), closed at the end."""
    open_ones: list[Connection] = []
    try:
        for export in exports or ("",):
            open_ones.append(Connection(path, export))
        yield open_ones
    finally:
        for each in open_ones:
            each.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of each disk: ``count`` operations of one kind at random among the first ``blocks`` blocks."""

    kind: int
    count: int
    depth: int
    blocks: int


def apply(load: Load, connections: Sequence[Connection], seed: int = 1) -> float:
    """Put ``load`` on every connection, a batch on each in turn; the seconds that it took."""
    random = Random(seed)
    began = time.monotonic()
    for done in range(0, load.count, load.depth):
        batch = min(load.depth, load.count - done)
        for connection in connections:
            connection.send(load.kind, [random.randrange(load.blocks) for _ in range(batch)])
        for connection in connections:
            connection.take(load.kind, batch)
    return time.monotonic() - began
