"""Requests out of bytes: the transmission phase's incoming half, without I/O.

What it is for: all requests that arrived together become one :class:`Batch` for the device. One ``recv`` fills what
:meth:`Intake.targets` offers, :meth:`Intake.received` says how much came, :meth:`Intake.parse` takes every complete
request out of it. A small payload stays where it arrived and the device reads it there; a payload of
:data:`LARGE_BYTES` or more is received into the device's own memory, where it has such, or into a page-aligned buffer
(performance.md, rule 8: a large write out of the middle of a page is five to eight times as slow).

What it guarantees: a request that breaks a rule of the protocol is answered with the errno that the protocol asks
for, and the next one is understood; a refused WRITE's payload is passed over first. A stream that is out of step
(a wrong magic, a payload beyond :data:`SKIPPED_BYTES_MAX`) raises :class:`RemoteError`. Memory under a payload is not
used again before its request was answered: buffers count their holders. The connection's :class:`Allowance` bounds
them all; where it is used up, parsing stops and goes on when answers have left. The device bounds what is its own by
how much it admits; of one payload more than that a part has arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from crucible_emu.blockio import Kind, Request
from crucible_emu.errors import RemoteError
from crucible_emu.nbd.buffers import Allowance, PooledBuffer
from crucible_emu.nbd.handshake import Agreement
from crucible_emu.nbd.protocol import (
    PAYLOAD_BYTES_MAX,
    REQUEST_BYTES,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
)

LARGE_BYTES = 64 * 1024
RECEIVE_BYTES = 512 * 1024
"""One receive buffer: a batch of 64 requests of 4 KiB twice over."""
SLAB_BYTES = 512 * 1024
"""Destinations of small reads are cut from one buffer of this size."""
SKIPPED_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX

_HEADER = struct.Struct(">IHHQQI")

# Plain integers for the loop: comparing enum members takes twice as long.
_READ, _WRITE, _FUA = int(Command.READ), int(Command.WRITE), int(CommandFlag.FUA)
_NOT_OF_READ = ~int(CommandFlag.FUA | CommandFlag.DF)

Cookie = tuple[int, PooledBuffer | None, int]
"""What a device request carries for its reply: the client's cookie, the buffer that it holds, the command."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the protocol says of a command: the device's request; the flags that are valid with it (FUA always is);
    whether it changes the export; whether its length is of data that is held in memory; the error of a range that
    ends beyond the export."""

    kind: Kind
    flags: int = CommandFlag.FUA
    changes: bool = False
    data: bool = False
    beyond: Errno = Errno.EINVAL


RULES: dict[int, Rule] = {
    Command.READ: Rule(Kind.READ, CommandFlag.FUA | CommandFlag.DF, data=True),
    Command.WRITE: Rule(Kind.WRITE, changes=True, data=True, beyond=Errno.ENOSPC),
    Command.FLUSH: Rule(Kind.FLUSH),
    Command.TRIM: Rule(Kind.TRIM, changes=True),
    Command.CACHE: Rule(Kind.READ, data=True),
    Command.WRITE_ZEROES: Rule(
        Kind.WRITE_ZEROES,
        CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        changes=True,
        beyond=Errno.ENOSPC,
    ),
    Command.BLOCK_STATUS: Rule(Kind.READ, CommandFlag.FUA | CommandFlag.REQ_ONE),
}
"""Every command but DISC."""


@dataclass(slots=True)
class Refusal:
    """An answer that needs no device: an error with its sentence, or success where there is nothing to do
    (``errno`` 0)."""

    cookie: int
    command: int
    errno: int
    sentence: str = ""


@dataclass(slots=True)
class StatusQuery:
    """A BLOCK_STATUS request; ``length`` in bytes, at least 1."""

    cookie: int
    offset: int
    length: int
    one: bool


@dataclass(slots=True)
class Batch:
    """What was understood at once.

    ``requests`` in the order of arrival, each with a :data:`Cookie`; ``bits`` is the OR of their offsets and lengths
    (so one test tells whether all are aligned). ``blocked``: the allowance is used up, parse again after answers
    left. ``disconnect``: the client says goodbye.
    """

    requests: list[Request] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    queries: list[StatusQuery] = field(default_factory=list)
    bits: int = 0
    blocked: bool = False
    disconnect: bool = False


class _Payload:
    """A payload that is still arriving: into a buffer of its own (``request``), or to nowhere (``refusal``)."""

    __slots__ = ("into", "missing_bytes", "refusal", "request")

    def __init__(
        self, missing_bytes: int, into: memoryview | None, request: Request | None, refusal: Refusal | None
    ) -> None:
        self.missing_bytes = missing_bytes
        self.into = into
        self.request = request
        self.refusal = refusal


class Intake:
    """The incoming half of one connection in transmission."""

    def __init__(
        self,
        agreement: Agreement,
        allowance: Allowance,
        *,
        fast_zero: bool = False,
        payload_memory: Callable[[int], memoryview | None] | None = None,
    ) -> None:
        export = agreement.export
        self.size_bytes = export.size_bytes
        self._read_only = export.read_only
        self._structured = agreement.structured
        self._contexts = agreement.contexts
        self._fast_zero = fast_zero
        self._allowance = allowance
        self._payload_memory = payload_memory
        self._buffer = self._take_first(RECEIVE_BYTES)
        self._slab = self._take_first(SLAB_BYTES)
        self._slab_used = 0
        self._start = 0  # of what is not parsed yet
        self._stop = 0
        self._payload: _Payload | None = None

    def close(self) -> None:
        """Give the buffers back; those that requests still hold follow when these are answered."""
        self._buffer.release()
        self._slab.release()

    def preload(self, data: bytes) -> None:
        """Take bytes that came with the handshake."""
        if len(data) > RECEIVE_BYTES:
            raise RemoteError(f"{len(data)} bytes came before the handshake's end")
        self._buffer.memory[: len(data)] = data
        self._stop = len(data)

    @property
    def midway(self) -> bool:
        """Whether a request is incomplete: a stream that ends here was cut off."""
        return self._stop > self._start or self._payload is not None

    # --- where bytes go ---

    def targets(self) -> list[memoryview] | None:
        """Memory for the next bytes, in order; ``None`` when there is none before answers have left."""
        payload = self._payload
        if payload is None:
            # A small request must fit behind what is there.
            return [self._buffer.memory[self._stop :]] if self._make_room(REQUEST_BYTES + LARGE_BYTES) else None
        if not self._make_room(REQUEST_BYTES if payload.into is not None else LARGE_BYTES):
            return None
        behind = self._buffer.memory[self._stop :]
        if payload.into is None:
            return [behind]
        # One header behind the payload and no more: the next large payload can then start on its own page.
        return [payload.into[len(payload.into) - payload.missing_bytes :], behind[:REQUEST_BYTES]]

    def received(self, count: int) -> None:
        """``count`` bytes arrived in what :meth:`targets` offered."""
        payload = self._payload
        if payload is None or not payload.missing_bytes:
            self._stop += count
            return
        taken = min(count, payload.missing_bytes)
        payload.missing_bytes -= taken
        if payload.into is None:
            self._start += taken
            self._stop += count
        else:
            self._stop += count - taken

    def _make_room(self, wanted_bytes: int) -> bool:
        left = self._stop - self._start
        alone = self._buffer.holders == 1
        if not left and alone:
            self._start = self._stop = 0
        elif RECEIVE_BYTES - self._stop < wanted_bytes:
            buffer = self._buffer
            if not alone:
                fresh = self._allowance.take(RECEIVE_BYTES)
                if fresh is None:
                    return False
                self._buffer = fresh
            self._buffer.memory[:left] = buffer.memory[self._start : self._stop]
            if not alone:
                buffer.release()
            self._start, self._stop = 0, left
        return True

    def _take_first(self, length: int) -> PooledBuffer:
        buffer = self._allowance.take(length)
        if buffer is None:
            raise RuntimeError("the allowance does not cover the first buffers of a connection")
        return buffer

    # --- what they mean ---

    def waiting(self) -> memoryview:
        """What has not been understood yet, from the beginning of a request on; nothing within a large payload."""
        return self._buffer.memory[self._start : self._stop if self._payload is None else self._start]

    def pass_over(self, size_bytes: int) -> None:
        """So much of :meth:`waiting` is done with, and nobody has any use for its memory."""
        self._start += size_bytes

    def parse(self, requests_max: int) -> Batch:
        """Take every complete request, at most ``requests_max``. Raises :class:`RemoteError`.

        The loop knows small reads and writes; whatever else there is goes through :meth:`_other`.
        """
        batch = Batch()
        if self._payload is not None and not self._finish_payload(batch):
            return batch
        if self._slab.holders == 1:
            self._slab_used = 0
        buffer, requests = self._buffer, batch.requests
        memory, start, stop = buffer.memory, self._start, self._stop
        size_bytes, writable = self.size_bytes, not self._read_only
        bits = 0
        while stop - start >= REQUEST_BYTES:
            magic, flags, command, cookie, offset, length = _HEADER.unpack_from(memory, start)
            if magic != REQUEST_MAGIC:
                raise RemoteError(f"a request begins with {magic:#010x} and not with its magic {REQUEST_MAGIC:#010x}")
            if not requests_max:
                batch.blocked = True
                break
            following = start + REQUEST_BYTES
            small = 0 < length < LARGE_BYTES and offset + length <= size_bytes
            if small and command == _WRITE and flags <= _FUA and writable:
                data, following = following, following + length
                if following > stop:
                    break
                buffer.holders += 1
                cookies = (cookie, buffer, _WRITE)
                requests.append(
                    Request(Kind.WRITE, offset, length, memory[data:following], fua=flags == _FUA, cookie=cookies)
                )
                bits |= offset | length
            elif small and command == _READ and not flags & _NOT_OF_READ and self._slab_used + length <= SLAB_BYTES:
                data, slab = self._slab_used, self._slab
                self._slab_used = used = data + length
                slab.holders += 1
                requests.append(
                    Request(Kind.READ, offset, length, slab.memory[data:used], cookie=(cookie, slab, _READ))
                )
                bits |= offset | length
            else:
                other = self._other(batch, following, flags, command, cookie, offset, length)
                if other is None:
                    break
                following = other
            start = following
            requests_max -= 1
        self._start = start
        batch.bits |= bits
        return batch

    def _other(
        self, batch: Batch, data: int, flags: int, command: int, cookie: int, offset: int, length: int
    ) -> int | None:
        """Take one request of any kind, whose payload would begin at ``data``: where the next one begins, or ``None``
        when parsing must stop before this one."""
        if command == Command.DISC:
            batch.disconnect = True
            return None
        refusal = self._verdict(flags, command, cookie, offset, length)
        if refusal is not None:
            if command != Command.WRITE:
                batch.refusals.append(refusal)
                return data
            return self._receive_payload(batch, data, length, None, None, refusal)
        rule = RULES[command]
        if command == Command.BLOCK_STATUS:
            batch.queries.append(StatusQuery(cookie, offset, length, bool(flags & CommandFlag.REQ_ONE)))
            return data
        if command == Command.FLUSH:
            offset = length = 0  # reserved; a client that fills them in means nothing by it
        holder: PooledBuffer | None = None
        memory: memoryview | None = None
        if command == Command.WRITE and length >= LARGE_BYTES and self._payload_memory is not None:
            memory = self._payload_memory(length)
        if rule.data and memory is None:
            found = self._destination(length)
            if found is None:
                batch.blocked = True
                return None
            holder, memory = found
        request = Request(
            rule.kind,
            offset,
            length,
            memory,
            fua=bool(flags & CommandFlag.FUA),
            no_hole=bool(flags & CommandFlag.NO_HOLE),
            cookie=(cookie, holder, command),
        )
        if command == Command.WRITE:
            return self._receive_payload(batch, data, length, memory, request, None)
        batch.bits |= offset | length
        batch.requests.append(request)
        return data

    def _verdict(self, flags: int, command: int, cookie: int, offset: int, length: int) -> Refusal | None:
        """Why this request needs no device; ``None`` when it does. Raises :class:`RemoteError`."""
        rule = RULES.get(command)
        if rule is None:
            return Refusal(cookie, command, Errno.EINVAL, f"command {command} is not known here")
        name = Command(command).name
        if command == Command.WRITE and length > SKIPPED_BYTES_MAX:
            raise RemoteError(f"a WRITE announces {length} bytes: at most {PAYLOAD_BYTES_MAX}")

        def refused(errno: Errno, sentence: str) -> Refusal:
            return Refusal(cookie, command, errno, f"{name} {sentence}")

        unknown = flags & ~int(rule.flags)  # int: the complement of an enum's flags has no bits but known ones
        if unknown:
            return refused(Errno.EINVAL, f"does not know the flags {unknown:#x}")
        if rule.changes and self._read_only:
            return refused(Errno.EPERM, "is not permitted: the export is read-only")
        if command == Command.FLUSH:
            return None
        if offset + length > self.size_bytes:
            return refused(
                rule.beyond,
                f"of {length} bytes at {offset} ends beyond the export's {self.size_bytes} bytes: ask for less",
            )
        if rule.data and length > PAYLOAD_BYTES_MAX:
            fragmentable = command == Command.CACHE or (command == Command.READ and self._structured)
            errno = Errno.EOVERFLOW if fragmentable else Errno.EINVAL
            return refused(errno, f"of {length} bytes is too long: at most {PAYLOAD_BYTES_MAX} at once")
        if command == Command.BLOCK_STATUS:
            if not self._contexts:
                return refused(Errno.EINVAL, "needs a metadata context: agree on one in the handshake")
            return None if length else refused(Errno.EINVAL, "of 0 bytes has no answer: ask for at least 1")
        if flags & CommandFlag.FAST_ZERO and (not self._fast_zero or flags & CommandFlag.NO_HOLE):
            return refused(Errno.ENOTSUP, "is no faster here than writing zeros")
        return None if length else Refusal(cookie, command, 0)

    def _destination(self, length: int) -> tuple[PooledBuffer, memoryview] | None:
        """Memory for ``length`` bytes and who holds it; ``None`` while the allowance is used up."""
        if length >= LARGE_BYTES:
            large = self._allowance.take(length)
            return None if large is None else (large, large.memory[:length])
        if self._slab_used + length > SLAB_BYTES:
            fresh = self._allowance.take(SLAB_BYTES)
            if fresh is None:
                return None
            self._slab.release()
            self._slab, self._slab_used = fresh, 0
        data = self._slab_used
        self._slab_used += length
        self._slab.holders += 1
        return self._slab, self._slab.memory[data : data + length]

    def _receive_payload(
        self,
        batch: Batch,
        data: int,
        length: int,
        into: memoryview | None,
        request: Request | None,
        refusal: Refusal | None,
    ) -> int:
        """Move the part of a payload that is here, wait for the rest: where what follows it begins."""
        here = min(length, self._stop - data)
        if into is not None:
            into[:here] = self._buffer.memory[data : data + here]
        self._payload = _Payload(length - here, into, request, refusal)
        self._finish_payload(batch)
        return data + here

    def _finish_payload(self, batch: Batch) -> bool:
        """Put the request whose payload has arrived into the batch; whether it has."""
        payload = self._payload
        if payload is None or payload.missing_bytes:
            return False
        self._payload = None
        if payload.request is not None:
            batch.requests.append(payload.request)
            batch.bits |= payload.request.offset | payload.request.length
        if payload.refusal is not None:
            batch.refusals.append(payload.refusal)
        return True
