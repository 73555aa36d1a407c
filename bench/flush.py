"""A flush, and nothing else, as the smallest possible NBD client.

What it is for: a disk that answered a write still has work left: staged blocks, dirty pages. Whatever runs next would
pay for it. So after every line that writes, the bench flushes that disk outside the measured time, and counts the
CPU time of the flush to the line that caused it.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

MAGIC = b"NBDMAGICIHAVEOPT"
FIXED_NEWSTYLE = 1 << 0
NO_ZEROES = 1 << 1
EXPORT_NAME = 1
HAS_FLUSH = 1 << 2
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
DISCONNECT, FLUSH = 2, 3

TIMEOUT_S = 60.0


class FlushError(Exception):
    """The disk was not flushed; the message is the sentence that says why."""


def exactly(connection: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes."""
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise FlushError("flush: the server closed the connection.")
        data += piece
    return data


def request(kind: int, cookie: int) -> bytes:
    return struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, cookie, 0, 0)


def flush(path: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Flush the default export at the unix socket ``path``. Raises :class:`FlushError`.

    A disk that does not offer flushing has nothing to flush, and returns at once.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            greeting = exactly(connection, 18)
            if not greeting.startswith(MAGIC):
                raise FlushError("flush: the server does not speak NBD.")
            connection.sendall(struct.pack(">I8sII", FIXED_NEWSTYLE | NO_ZEROES, MAGIC[8:], EXPORT_NAME, 0))
            _size, offered = struct.unpack(">QH", exactly(connection, 10))
            if offered & HAS_FLUSH:
                connection.sendall(request(FLUSH, 1))
                magic, error, cookie = struct.unpack(">IIQ", exactly(connection, 16))
                if (magic, cookie) != (REPLY_MAGIC, 1):
                    raise FlushError("flush: the server sent no reply to it.")
                if error:
                    raise FlushError(f"flush: the server answered with error {error}.")
            connection.sendall(request(DISCONNECT, 2))
        except TimeoutError as problem:
            raise FlushError(f"flush: it took longer than {timeout_s:.0f} s.") from problem
        except OSError as problem:
            raise FlushError(f"flush: {problem}.") from problem
