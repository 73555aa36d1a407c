"""Open files that are handed to another process with the bytes of a unix socket.

What it is for: two processes on one machine that let each other look into memory or files. A line says what it is
about, and the descriptors come along with it.

What it guarantees: a descriptor that arrives is somebody's to close: what is returned is the caller's, and what was
taken before a failure is closed here. None is inherited by programs that are started later.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping, Sequence

import trio

DESCRIPTORS_MAX = 8
"""So many are taken, of which one or two are right; the kernel closes what comes on top."""


async def send_line(
    peer: trio.socket.SocketType, members: Mapping[str, object], descriptors: Sequence[int] = ()
) -> None:
    """Send ``members``, which are few, as one line of JSON, and ``descriptors`` with it. Raises OSError."""
    line = json.dumps(members).encode() + b"\n"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    await peer.sendmsg([line], rights)


async def receive_line(peer: trio.socket.SocketType, size_bytes_max: int) -> tuple[bytes, list[int]]:
    """What is sent up to the end of a line, or as much as a line can have, or as there is; and the descriptors that
    came with it, which are the caller's to close. Raises OSError."""
    line = b""
    descriptors: list[int] = []
    room = socket.CMSG_LEN(DESCRIPTORS_MAX * array.array("i").itemsize)
    try:
        while b"\n" not in line and len(line) < size_bytes_max:
            more, ancillary, _flags, _address = await peer.recvmsg(
                size_bytes_max - len(line), room, socket.MSG_CMSG_CLOEXEC
            )
            descriptors += _descriptors_in(ancillary)
            if not more:
                break
            line += more
    except BaseException:
        close_all(descriptors)
        raise
    return line, descriptors


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found += numbers
    return found


def close_all(descriptors: Sequence[int]) -> None:
    """Close them."""
    for descriptor in descriptors:
        os.close(descriptor)
