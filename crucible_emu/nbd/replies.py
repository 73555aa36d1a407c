"""Answers into bytes: the transmission phase's outgoing half, without I/O.

What it is for: completed requests, refusals and block status are encoded into one list of buffers, which leaves in one
``sendmsg``. Replies to writes are 16 bytes each and are joined; data of a read is not copied.

What it guarantees: with structured replies agreed, a READ never gets a simple reply, a reply's DONE chunk is its last,
and an error carries its sentence. A read's data is complete in memory before its header is written, so its one data
chunk may be the last. Buffers and the count of requests stay with the bytes that answer them (:class:`Train`), so
both are given back when these have left and not earlier: a client that does not read its replies stays bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Request
from crucible_emu.nbd.buffers import PooledBuffer
from crucible_emu.nbd.protocol import (
    CHUNK_DONE,
    SIMPLE_REPLY_MAGIC,
    STATE_HOLE,
    STATE_ZERO,
    STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Context,
    Errno,
)
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.transmission import Refusal, StatusQuery

SIMPLE = struct.Struct(">IIQ")
"""A simple reply: magic, errno, cookie; the data of a READ follow."""
_CHUNK = struct.Struct(">IHHQI")
DATA_CHUNK = struct.Struct(">IHHQIQ")
"""The header of a structured reply to a READ: magic, flags, type, cookie, length of what follows it, offset."""
_ERROR = struct.Struct(">IH")
_DESCRIPTOR = struct.Struct(">II")

_READ, _OFFSET_DATA = int(Command.READ), int(Chunk.OFFSET_DATA)

DESCRIPTORS_MAX = 65536
"""Of one context in one BLOCK_STATUS reply: half a megabyte. The protocol allows 2^20; clients ask on from the end."""

ERRNOS: dict[type[errors.CrucibleError], Errno] = {
    errors.ModifyingReadOnlyRegion: Errno.EPERM,
    errors.OffsetUnaligned: Errno.EINVAL,
    errors.DataLenUnaligned: Errno.EINVAL,
    errors.BlockSizeMismatch: Errno.EINVAL,
    errors.InvalidNumberOfBlocks: Errno.EINVAL,
    errors.OffsetInvalid: Errno.EINVAL,
    errors.Unsupported: Errno.EINVAL,  # ENOTSUP belongs to fast zeroing alone
    errors.UpstairsInactive: Errno.ESHUTDOWN,
    errors.UpstairsDeactivating: Errno.ESHUTDOWN,
    errors.NoLongerActive: Errno.ESHUTDOWN,
    errors.RecvDisconnected: Errno.ESHUTDOWN,
}
"""What a client is told; every other error is EIO. The sentence says the rest."""


def errno_of(error: errors.CrucibleError) -> Errno:
    return ERRNOS.get(type(error), Errno.EIO)


@dataclass(slots=True)
class Train:
    """Bytes that leave together, and what their leaving sets free: ``requests`` answers, one release per entry of
    ``holders``."""

    buffers: list[bytes | memoryview]
    holders: list[PooledBuffer]
    requests: int


class Replies:
    """Answers of one connection that have not left yet."""

    __slots__ = ("_buffers", "_contexts", "_holders", "_requests", "_small", "_statistics", "_structured")

    def __init__(self, structured: bool, contexts: tuple[Context, ...], statistics: Statistics) -> None:
        self._statistics = statistics
        self._structured = structured
        self._contexts = contexts
        self._buffers: list[bytes | memoryview] = []
        self._small: list[bytes] = []  # headers since the last buffer of data
        self._holders: list[PooledBuffer] = []
        self._requests = 0

    def take(self) -> Train | None:
        """Everything that waits, ``None`` when nothing does."""
        if not self._requests:
            return None
        self._join()
        train = Train(self._buffers, self._holders, self._requests)
        self._buffers, self._holders, self._requests = [], [], 0
        return train

    def completed(self, requests: list[Request]) -> None:
        """Answer requests that the device is done with (each with a :data:`~.transmission.Cookie`)."""
        small, structured = self._small, self._structured
        counts = self._statistics.requests
        self._requests += len(requests)
        for request in requests:
            cookie, holder, command = request.cookie
            counts[command] += 1
            if holder is not None:
                self._holders.append(holder)
            if request.error is not None:
                self._error(cookie, command, errno_of(request.error), str(request.error))
                self._statistics.errors[type(request.error).__name__] += 1
            elif command == _READ:
                length = request.length
                if structured:
                    small.append(
                        DATA_CHUNK.pack(
                            STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _OFFSET_DATA, cookie, length + 8, request.offset
                        )
                    )
                else:
                    small.append(SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                self._join()
                self._buffers.append(request.buffer)  # type: ignore[arg-type]  # a READ has one
                self._statistics.read_bytes += length
            else:
                small.append(SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                if command == 1:
                    self._statistics.written_bytes += request.length

    def refused(self, refusals: Iterable[Refusal]) -> None:
        """Answer requests that the device never saw."""
        for refusal in refusals:
            self._requests += 1
            self._statistics.requests[refusal.command] += 1
            if refusal.errno:
                self._error(refusal.cookie, refusal.command, refusal.errno, refusal.sentence)
                self._statistics.errors[Errno(refusal.errno).name] += 1
            elif self._structured and refusal.command == _READ:
                self._small.append(_CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.NONE, refusal.cookie, 0))
            else:
                self._small.append(SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, refusal.cookie))

    def status(self, query: StatusQuery, allocations: list[Allocation]) -> None:
        """Answer a BLOCK_STATUS: ``allocations`` begin at the query's offset; one chunk for each agreed context."""
        self._requests += 1
        self._statistics.requests[Command.BLOCK_STATUS] += 1
        for index, context in enumerate(self._contexts):
            descriptors = _descriptors(context, query, allocations)
            last = CHUNK_DONE if index == len(self._contexts) - 1 else 0
            length = 4 + _DESCRIPTOR.size * len(descriptors)
            header = _CHUNK.pack(STRUCTURED_REPLY_MAGIC, last, Chunk.BLOCK_STATUS, query.cookie, length)
            self._small.append(header + struct.pack(">I", context))
            self._small.append(b"".join(_DESCRIPTOR.pack(length, flags) for length, flags in descriptors))

    def status_failed(self, query: StatusQuery, error: errors.CrucibleError) -> None:
        self._requests += 1
        self._statistics.requests[Command.BLOCK_STATUS] += 1
        self._statistics.errors[type(error).__name__] += 1
        self._error(query.cookie, Command.BLOCK_STATUS, errno_of(error), str(error))

    def _error(self, cookie: int, command: int, errno: int, sentence: str) -> None:
        if not self._structured:
            self._small.append(SIMPLE.pack(SIMPLE_REPLY_MAGIC, errno, cookie))
            return
        text = sentence.encode()[:STRING_BYTES_MAX].decode(errors="ignore").encode()  # no half character at the end
        header = _CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, _ERROR.size + len(text))
        self._small.append(header + _ERROR.pack(errno, len(text)) + text)

    def _join(self) -> None:
        small = self._small
        if small:
            self._buffers.append(small[0] if len(small) == 1 else b"".join(small))
            small.clear()


def _descriptors(context: Context, query: StatusQuery, allocations: list[Allocation]) -> list[tuple[int, int]]:
    """``(length, status)`` runs from the query's offset, none beyond its end, neighbours different."""
    found: list[tuple[int, int]] = []
    left = query.length
    for run in allocations:
        length = min(run.length, left)
        status = _status(context, run.depth)
        if found and found[-1][1] == status:
            found[-1] = (found[-1][0] + length, status)
        elif (query.one and found) or len(found) == DESCRIPTORS_MAX:
            break
        else:
            found.append((length, status))
        left -= length
        if not left:
            break
    return found


def _status(context: Context, depth: int) -> int:
    if context is Context.ALLOCATION_DEPTH:
        return depth
    return 0 if depth else STATE_HOLE | STATE_ZERO
