"""Requests and their answers: the client's transmission phase, without I/O.

What it is for: :meth:`Exchange.request` makes a request's header and remembers what it is for. Bytes of the server are
received *into* :meth:`Exchange.target` and counted by :meth:`Exchange.received`, which returns the answers that are
complete. The data of a read goes from the socket straight into the memory that the read named; only what came along
with a header, at most :data:`SCRATCH_BYTES`, is copied once.

What it guarantees: an answer is returned exactly once for each request, in any order, and a read that succeeds has
every byte of its range from the server: chunks that overlap, lie outside or leave a gap are a :class:`RemoteError`, as
is anything else that must not be sent. After one nothing here may be used any more. After :meth:`Exchange.abandon` a
request's memory is not touched again, whatever arrives: that is what makes a cancelled read safe. It holds because
nothing writes into that memory but a receive into :meth:`target`, which is asked for anew each time.
"""

from __future__ import annotations

import struct
from bisect import bisect
from dataclasses import dataclass

from crucible_emu.client.failures import RequestFailed, request_failed
from crucible_emu.errors import RemoteError
from crucible_emu.nbd.protocol import (
    CHUNK_DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
)

SCRATCH_BYTES = 512
"""Received at once while a header is awaited: 32 answers to writes. More would only copy more of a read's data."""
BODY_BYTES_MAX = 2 << 20
"""Of one chunk that is no data: more extents than our own door sends, which are the most of all known servers."""
CHUNKS_MAX = 65536
"""Of data in one reply: one for each 512 bytes of the longest read."""
ERROR_BIT = 1 << 15
STATE_HOLE, STATE_ZERO = 1, 2

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes of one kind. ``zero``: it reads as zeros; ``hole``: nothing is kept for it."""

    length: int
    hole: bool
    zero: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one request. ``extents`` answer a BLOCK_STATUS."""

    cookie: int
    error: RequestFailed | None = None
    extents: tuple[Extent, ...] = ()


class _Pending:
    """A request that was not answered: what it asked, where its data goes, what has come."""

    __slots__ = ("command", "covered", "error", "extents", "into", "length", "offset")

    def __init__(self, command: Command, offset: int, length: int, into: memoryview | None) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.into = into
        self.covered: list[tuple[int, int]] = []  # ranges that have come, sorted
        self.error: RequestFailed | None = None
        self.extents: tuple[Extent, ...] | None = None


class _Body:
    """Bytes that follow a header: where they go, and whose they are. ``chunk`` is ``None`` after a simple reply."""

    __slots__ = ("chunk", "cookie", "done", "filled", "memory")

    def __init__(self, memory: memoryview, cookie: int, chunk: int | None, done: bool) -> None:
        self.memory = memory
        self.cookie = cookie
        self.chunk = chunk
        self.done = done
        self.filled = 0


class Exchange:
    """One connection in transmission. ``allocation`` is the number of the context that BLOCK_STATUS answers for."""

    def __init__(self, *, structured: bool, allocation: int | None = None) -> None:
        self._structured = structured
        self._allocation = allocation
        self._pending: dict[int, _Pending] = {}
        self._cookie = 0
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._start = self._stop = 0  # what of the scratch is received and not understood
        self._body: _Body | None = None

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    # --- out ---

    def request(
        self, command: Command, offset: int = 0, length: int = 0, *, flags: int = 0, into: memoryview | None = None
    ) -> tuple[int, bytes]:
        """``(cookie, header)`` of a new request. A READ names the ``length`` bytes that its data goes ``into``."""
        self._cookie += 1
        cookie = self._cookie
        self._pending[cookie] = _Pending(command, offset, length, into)
        return cookie, _REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)

    def forget(self, cookie: int) -> None:
        """The request was never sent, so no answer comes."""
        del self._pending[cookie]

    def abandon(self, cookie: int) -> None:
        """Nobody waits for this answer any more: it is still understood, and its data goes nowhere."""
        pending = self._pending.get(cookie)
        if pending is None or pending.into is None:
            return
        pending.into = memoryview(bytearray(pending.length))
        body = self._body
        if body is not None and body.cookie == cookie:
            body.memory = memoryview(bytearray(len(body.memory)))

    @staticmethod
    def farewell() -> bytes:
        """The request that has no answer: the connection ends in order."""
        return _REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)

    # --- in ---

    def target(self) -> memoryview:
        """Where the next bytes are to be received; at least one byte long."""
        if self._body is not None:
            return self._body.memory[self._body.filled :]
        return self._scratch[self._stop :]

    def received(self, count: int) -> list[Answer]:
        """``count`` bytes are in :meth:`target`: the answers that are complete by them. Raises :class:`RemoteError`."""
        answers: list[Answer] = []
        body = self._body
        if body is not None:
            body.filled += count
            if body.filled == len(body.memory):
                self._finish(body, answers)
            return answers
        self._stop += count
        while self._understand(answers):
            pass
        left = self._stop - self._start
        if self._start and left:
            self._scratch[:left] = bytes(self._scratch[self._start : self._stop])
        self._start, self._stop = 0, left
        return answers

    def _understand(self, answers: list[Answer]) -> bool:
        """Take one header, and what of its body is here; whether there may be more."""
        here = self._stop - self._start
        if here < 4:
            return False
        magic = int.from_bytes(self._scratch[self._start : self._start + 4], "big")
        if magic == SIMPLE_REPLY_MAGIC:
            if here < _SIMPLE.size:
                return False
            body = self._simple(answers)
        elif magic == STRUCTURED_REPLY_MAGIC and self._structured:
            if here < _CHUNK.size:
                return False
            body = self._chunk(here, answers)
            if body is None and self._start + here == self._stop:
                return False  # a data chunk whose offset is not here yet
        else:
            raise RemoteError(f"an answer begins with {magic:#x}, which is the magic of none that was agreed on")
        if body is not None:
            first = min(len(body.memory), self._stop - self._start)
            body.memory[:first] = self._scratch[self._start : self._start + first]
            body.filled = first
            self._start += first
            self._body = body
            if body.filled == len(body.memory):
                self._finish(body, answers)
        return self._body is None

    def _simple(self, answers: list[Answer]) -> _Body | None:
        _, number, cookie = _SIMPLE.unpack_from(self._scratch, self._start)
        self._start += _SIMPLE.size
        pending = self._find(cookie)
        if self._structured and pending.command is Command.READ:
            raise RemoteError("a READ got a simple answer although structured ones were agreed on")
        if pending.command is Command.BLOCK_STATUS and not number:
            raise RemoteError("a BLOCK_STATUS got an answer without extents")
        if number:
            pending.error = request_failed(number, "", pending.command.name)
        elif pending.command is Command.READ:
            assert pending.into is not None
            pending.covered = [(pending.offset, pending.offset + pending.length)]
            return _Body(pending.into, cookie, None, done=True)
        self._complete(cookie, pending, answers)
        return None

    def _chunk(self, here: int, answers: list[Answer]) -> _Body | None:
        """The body of a chunk; ``None`` for one that has none, or (nothing taken) while its offset is missing."""
        _, flags, kind, cookie, length = _CHUNK.unpack_from(self._scratch, self._start)
        pending = self._find(cookie)
        done = bool(flags & CHUNK_DONE)
        if kind == Chunk.OFFSET_DATA:
            if pending.command is not Command.READ or length <= 8:
                raise RemoteError(f"a chunk of data with {length} bytes answers a {pending.command.name}")
            if here < _CHUNK.size + 8:
                return None
            at = self._start + _CHUNK.size
            offset = int.from_bytes(self._scratch[at : at + 8], "big")
            self._start = at + 8
            return _Body(self._cover(pending, offset, length - 8), cookie, kind, done)
        self._start += _CHUNK.size
        if kind == Chunk.NONE:
            if length or not done:
                raise RemoteError("a chunk without content has content or is not the last")
            self._complete(cookie, pending, answers)
            return None
        if not kind & ERROR_BIT and kind not in (Chunk.OFFSET_HOLE, Chunk.BLOCK_STATUS):
            raise RemoteError(f"a chunk is of the type {kind}, which nobody agreed on")
        if not 0 < length <= BODY_BYTES_MAX:
            raise RemoteError(f"a chunk of type {kind} announces {length} bytes: 1 to {BODY_BYTES_MAX}")
        return _Body(memoryview(bytearray(length)), cookie, kind, done)

    def _find(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise RemoteError(f"the server answers a request {cookie} that is not under way")
        return pending

    def _cover(self, pending: _Pending, offset: int, length: int) -> memoryview:
        """The memory of one range of a read, which no other chunk may fill."""
        end = offset + length
        if not length or offset < pending.offset or end > pending.offset + pending.length:
            raise RemoteError(
                f"a READ of {pending.length} bytes at {pending.offset} is answered with {length} bytes at {offset}"
            )
        index = bisect(pending.covered, (offset, end))
        before = pending.covered[index - 1] if index else (0, 0)
        if before[1] > offset or (index < len(pending.covered) and pending.covered[index][0] < end):
            raise RemoteError(f"two chunks of one answer overlap at {offset}")
        if len(pending.covered) >= CHUNKS_MAX:
            raise RemoteError(f"one answer has more than {CHUNKS_MAX} chunks of data")
        pending.covered.insert(index, (offset, end))
        assert pending.into is not None
        first = offset - pending.offset
        return pending.into[first : first + length]

    # --- bodies ---

    def _finish(self, body: _Body, answers: list[Answer]) -> None:
        """All of a body is here."""
        self._body = None
        pending = self._find(body.cookie)
        kind = body.chunk
        if kind is not None and kind & ERROR_BIT:
            self._error(pending, bytes(body.memory))
        elif kind == Chunk.OFFSET_HOLE:
            self._hole(pending, bytes(body.memory))
        elif kind == Chunk.BLOCK_STATUS:
            self._extents(pending, bytes(body.memory))
        if body.done:
            self._complete(body.cookie, pending, answers)

    def _error(self, pending: _Pending, data: bytes) -> None:
        if len(data) < _ERROR.size:
            raise RemoteError(f"an error of {len(data)} bytes: at least {_ERROR.size}")
        number, length = _ERROR.unpack_from(data)
        if _ERROR.size + length > len(data) or not number:
            raise RemoteError("an error has no number, or a sentence longer than itself")
        sentence = data[_ERROR.size : _ERROR.size + length].decode(errors="replace")
        pending.error = pending.error or request_failed(number, sentence, pending.command.name)

    def _hole(self, pending: _Pending, data: bytes) -> None:
        if pending.command is not Command.READ or len(data) != _HOLE.size:
            raise RemoteError(f"a hole in {len(data)} bytes answers a {pending.command.name}")
        offset, length = _HOLE.unpack(data)
        memory = self._cover(pending, offset, length)
        memory[:] = bytes(length)

    def _extents(self, pending: _Pending, data: bytes) -> None:
        if pending.command is not Command.BLOCK_STATUS or len(data) < 12 or (len(data) - 4) % 8:
            raise RemoteError(f"extents in {len(data)} bytes answer a {pending.command.name}")
        if int.from_bytes(data[:4], "big") != self._allocation:
            raise RemoteError("extents belong to a context that was not agreed on")
        if pending.extents is not None:
            raise RemoteError("extents of one context come twice")
        found, left = [], pending.length
        for length, status in struct.iter_unpack(">II", data[4:]):
            if not length or not left:
                raise RemoteError("an extent is empty, or begins beyond what was asked for")
            length = min(length, left)  # the last one may reach further
            left -= length
            found.append(Extent(length, bool(status & STATE_HOLE), bool(status & STATE_ZERO)))
        pending.extents = tuple(found)

    def _complete(self, cookie: int, pending: _Pending, answers: list[Answer]) -> None:
        if pending.error is None:
            if pending.command is Command.READ and sum(end - start for start, end in pending.covered) != pending.length:
                raise RemoteError(f"a READ of {pending.length} bytes is answered with a part of them")
            if pending.command is Command.BLOCK_STATUS and pending.extents is None:
                raise RemoteError("a BLOCK_STATUS got an answer without extents")
        del self._pending[cookie]
        answers.append(Answer(cookie, pending.error, pending.extents or ()))
