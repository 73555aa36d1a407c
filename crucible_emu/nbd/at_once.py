"""Reads and writes of one block each that arrived together, done and answered at once.

What it is for: most of what a busy disk is asked. :func:`single_reads` and :func:`single_writes` take such requests
apart in one call, into columns. Writes are handed to the device where they arrived, and answered with one piece of
bytes. :class:`ReadReplies` is memory in which a reply's header stands before each block: the device reads the blocks
into their places, cookies and offsets are filled in, and all replies leave as one piece. No request object, no list of
buffers: 2 to 3 µs for each less than the ordinary way (docs/decisions.md).

Why it is safe: it is a shorter way for what is the commonest and nothing else. A batch with anything else in it, a
request that is not of one aligned block of the export, a device that cannot do all of it now: then nothing has been
answered, and all of it goes the ordinary way. To write once more what was written already changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import reduce
from operator import or_

from crucible_emu.nbd.alignment import ByteDevice
from crucible_emu.nbd.buffers import Allowance, PooledBuffer
from crucible_emu.nbd.eagerness import Eagerness
from crucible_emu.nbd.protocol import (
    CHUNK_DONE,
    REQUEST_BYTES,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
)
from crucible_emu.nbd.replies import DATA_CHUNK, SIMPLE, Train
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.transmission import Intake

READ_REPLIES_BYTES = 512 * 1024
"""Memory of one connection for replies to reads: of 127 blocks of 4 KiB."""

_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_PLAIN_READ = REQUEST_MAGIC << 32 | _READ  # without flags
_PLAIN_WRITE = REQUEST_MAGIC << 32 | _WRITE
_FIRST = struct.Struct(">Q")
_READ_COLUMNS = struct.Struct(">QQQI")  # magic, flags and command in one; cookie, offset, length
_WRITE_COLUMNS = "Q8sQI"  # the cookie as it is, for it goes back as it came

_OF_CHUNK = struct.Struct(">QIQ")  # what differs from reply to reply, from byte 8 on
_OF_SIMPLE = struct.Struct(">Q")
_DIFFERS_FROM = 8
_DONE = SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, 0)[:_DIFFERS_FROM]

Reads = tuple[Sequence[int], Sequence[int]]
"""Cookies and offsets."""
Writes = tuple[Sequence[bytes], Sequence[int], list[memoryview]]
"""Cookies, offsets and data."""


def single_reads(memory: memoryview, block_size: int, size_bytes: int) -> Reads | None:
    """The reads in ``memory``, which is whole requests without payloads; ``None`` where one of them is anything else
    than a read, without flags, of one aligned block below ``size_bytes``."""
    words, cookies, offsets, lengths = zip(*_READ_COLUMNS.iter_unpack(memory))
    fit = _are(_PLAIN_READ, words, lengths, block_size) and _fit(offsets, block_size, size_bytes)
    return (cookies, offsets) if fit else None


def single_writes(memory: memoryview, block_size: int, size_bytes: int) -> Writes | None:
    """The same of writes with their payloads; ``memory`` is as long as a number of such requests."""
    stride = REQUEST_BYTES + block_size
    columns = struct.iter_unpack(f">{_WRITE_COLUMNS}{block_size}x", memory)
    words, cookies, offsets, lengths = zip(*columns)
    if not (_are(_PLAIN_WRITE, words, lengths, block_size) and _fit(offsets, block_size, size_bytes)):
        return None
    return cookies, offsets, [memory[at - block_size : at] for at in range(stride, len(memory) + 1, stride)]


def _are(wanted: int, words: Sequence[int], lengths: Sequence[int], block_size: int) -> bool:
    return words.count(wanted) == len(words) and lengths.count(block_size) == len(words)


def _fit(offsets: Sequence[int], block_size: int, size_bytes: int) -> bool:
    return not reduce(or_, offsets) & (block_size - 1) and max(offsets) + block_size <= size_bytes


class ReadReplies:
    """Memory for the replies to reads of one block of ``block_size`` bytes, of one connection. It is taken from
    ``allowance`` when it is needed first."""

    def __init__(self, structured: bool, block_size: int, allowance: Allowance) -> None:
        self._structured = structured
        self.block_size = block_size
        self._allowance = allowance
        self._header_bytes = DATA_CHUNK.size if structured else SIMPLE.size
        self._stride = self._header_bytes + block_size
        self._memory: PooledBuffer | None = None
        self._blocks: list[memoryview] = []
        self.reads_max = READ_REPLIES_BYTES // self._stride
        """So many reads are answered in one piece."""

    def blocks(self, count: int) -> list[memoryview] | None:
        """Where the blocks of the next ``count`` replies go, at most :attr:`reads_max`; ``None`` while earlier replies
        are still on their way, or there is no memory."""
        if self._memory is None:
            self._memory = self._allowance.take(READ_REPLIES_BYTES)
            if self._memory is None:
                return None
            self._lay_out(self._memory.memory)
        return self._blocks[:count] if self._memory.holders == 1 else None

    def _lay_out(self, memory: memoryview) -> None:
        """Write what all headers have in common."""
        for at in range(0, self.reads_max * self._stride, self._stride):
            if self._structured:
                DATA_CHUNK.pack_into(memory, at, STRUCTURED_REPLY_MAGIC, CHUNK_DONE, int(Chunk.OFFSET_DATA), 0, 0, 0)
            else:
                SIMPLE.pack_into(memory, at, SIMPLE_REPLY_MAGIC, 0, 0)
            self._blocks.append(memory[at + self._header_bytes : at + self._stride])

    def take(self, cookies: Sequence[int], offsets: Sequence[int]) -> tuple[memoryview, PooledBuffer]:
        """The replies whose blocks are in their places now, and who has to be released when they have left."""
        held = self._memory
        if held is None:
            raise RuntimeError("replies are taken before anybody asked for their blocks")
        memory, stride = held.memory, self._stride
        if self._structured:
            fill, length = _OF_CHUNK.pack_into, self.block_size + 8
            for at, cookie, offset in zip(range(_DIFFERS_FROM, len(memory), stride), cookies, offsets):
                fill(memory, at, cookie, length, offset)
        else:
            for at, cookie in zip(range(_DIFFERS_FROM, len(memory), stride), cookies):
                _OF_SIMPLE.pack_into(memory, at, cookie)
        held.holders += 1
        return memory[: len(cookies) * stride], held

    def close(self) -> None:
        """Give the memory back; what is still on its way follows."""
        if self._memory is not None:
            self._memory.release()
            self._memory = None


class AtOnce:
    """What one connection does at once, out of what :class:`Intake` holds.

    ``read_only``: writes are to be refused, which the ordinary way does.
    """

    def __init__(
        self, intake: Intake, device: ByteDevice, replies: ReadReplies, statistics: Statistics, *, read_only: bool
    ) -> None:
        self._intake = intake
        self._device = device
        self._replies = replies
        self._statistics = statistics
        self._read_only = read_only
        self._block_size = replies.block_size
        self._size_bytes = intake.size_bytes
        self._stride = REQUEST_BYTES + self._block_size
        self._reads_pay, self._writes_pay = Eagerness(), Eagerness()

    def answer(self, requests_max: int) -> Train | None:
        """The answers to requests that stand first, at most ``requests_max``, which are done now; ``None`` where the
        ordinary way is the way."""
        waiting = self._intake.waiting()
        if len(waiting) < REQUEST_BYTES:
            return None
        (first,) = _FIRST.unpack_from(waiting)
        # *Optimisation*: what begins with a read and has payloads in it is hardly ever as long as a number of headers.
        if first == _PLAIN_READ and not len(waiting) % REQUEST_BYTES and self._reads_pay.willing():
            train = self._read(waiting[: min(requests_max, self._replies.reads_max) * REQUEST_BYTES])
            self._reads_pay.asked(found=train is not None)
            return train
        if first == _PLAIN_WRITE and len(waiting) >= self._stride and self._writes_pay.willing():
            train = self._write(waiting[: min(requests_max, len(waiting) // self._stride) * self._stride])
            self._writes_pay.asked(found=train is not None)
            return train
        return None

    def _read(self, memory: memoryview) -> Train | None:
        found = single_reads(memory, self._block_size, self._size_bytes)
        if found is None:
            return None
        cookies, offsets = found
        count = len(cookies)
        blocks = self._replies.blocks(count)
        if blocks is None or not self._device.read_singles(offsets, blocks):
            return None
        self._count(count, _READ, len(memory))
        self._statistics.read_bytes += count * self._block_size
        data, holder = self._replies.take(cookies, offsets)
        return Train([data], [holder], count)

    def _write(self, memory: memoryview) -> Train | None:
        found = None if self._read_only else single_writes(memory, self._block_size, self._size_bytes)
        if found is None:
            return None
        cookies, offsets, data = found
        if not self._device.write_singles(offsets, data):
            return None
        count = len(cookies)
        self._count(count, _WRITE, len(memory))
        self._statistics.written_bytes += count * self._block_size
        return Train([_DONE + _DONE.join(cookies)], [], count)

    def _count(self, count: int, command: int, size_bytes: int) -> None:
        self._intake.pass_over(size_bytes)
        self._statistics.batches[count.bit_length()] += 1
        self._statistics.requests[command] += count

    def close(self) -> None:
        """Give memory back."""
        self._replies.close()
