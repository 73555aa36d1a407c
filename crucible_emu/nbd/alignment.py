"""A block device that takes any byte range.

What it is for: a door advertises its block size, and not every client looks. A read that is not aligned is widened; a
write or a zeroing becomes up to three requests: the whole blocks in the middle as they are, and the block at each
ragged edge read, patched and written back. A trim shrinks to its whole blocks, as the protocol allows.

What it guarantees: no neighbour is corrupted. From the moment an edge is read until the patched blocks stand in the
queue to the device, the update's blocks are *locked*: a change that touches them waits here, and every later change
waits behind it, whatever connection it came from (one line, so that a flood of such changes costs little to sort).
While the queue is not empty, everything goes through it. Reads and flushes do not wait. That is safe because a device
admits requests in order: a write before the lock is seen by the edge's read, a write after it is admitted behind the
patched blocks. So the bytes end up as if all changes had been made one after the other in the order in which they
came. (It covers the connections that share this object; a second door onto the same device must send whole blocks.)

Aligned batches pass by with one test as long as nothing is locked or queued. The device is never called from inside
its own completion: what follows a read is handed in by ``defer`` (the loop's next turn), or by the
:meth:`ByteDevice.submit` under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from crucible_emu.blockio import BlockDevice, Completed, Kind, Request, SinglesDevice

CHANGES = frozenset({Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM})

LOCKED_MAX = 64
"""Updates between their reads and their writes at once; it bounds what one more change costs to check."""

Defer = Callable[[Callable[[], None]], None]
"""Run a function soon, on the same thread, from outside of any completion."""


class _Part:
    """One device request on behalf of an unaligned one; it rides in the device request's cookie."""

    __slots__ = ("done",)

    def __init__(self, done: Callable[[Request], None]) -> None:
        self.done = done


class _Update:
    """An unaligned write or zeroing: locked from admission until its parts are handed to the device."""

    __slots__ = ("completed", "edges", "end", "first_error", "missing", "request", "start")

    def __init__(self, request: Request, completed: Completed, start: int, end: int) -> None:
        self.request = request
        self.completed = completed
        self.start = start  # of the blocks that it touches, in bytes
        self.end = end
        self.edges: list[Request] = []
        self.missing = 0  # device requests that are not done
        self.first_error = request.error


class ByteDevice:
    """``device``, for requests of any offset and length inside it. One for all connections to the device."""

    def __init__(self, device: BlockDevice, defer: Defer) -> None:
        self.device = device
        self._singles = device if isinstance(device, SinglesDevice) else None
        self._defer = defer
        self._mask = device.block_size - 1
        self._locked: list[_Update] = []
        self._waiting: deque[tuple[Request, Completed]] = deque()
        self._ready: list[Request] = []  # device requests to hand in
        self._submitting = False
        self._deferred = False

    def submit(self, requests: list[Request], completed: Completed, bits: int) -> None:
        """As :meth:`BlockDevice.submit`; ``bits`` is the OR of all offsets and lengths."""
        if not bits & self._mask and not self._locked and not self._ready:
            self.device.submit(requests, completed)
            return
        for request in requests:
            self._admit(request, completed)
        self._hand_in()

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """As :meth:`~crucible_emu.blockio.SinglesDevice.read_singles`; ``False`` where the device is none of those."""
        device = self._at_once()
        return device is not None and device.read_singles(offsets, outs)

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        """As :meth:`~crucible_emu.blockio.SinglesDevice.write_singles`, past no change that is under way here."""
        device = self._at_once()
        return device is not None and device.write_singles(offsets, data)

    def _at_once(self) -> SinglesDevice | None:
        """The device, if it does single blocks at once and that would pass nothing here."""
        return None if self._locked or self._ready else self._singles

    @property
    def locked(self) -> bool:
        """Whether an update is between its read and its write."""
        return bool(self._locked)

    # --- admission, in order ---

    def _admit(self, request: Request, completed: Completed) -> None:
        if request.kind in CHANGES and (self._waiting or self._must_wait(request)):
            self._waiting.append((request, completed))
        else:
            self._start(request, completed)

    def _start(self, request: Request, completed: Completed) -> None:
        if not (request.offset | request.length) & self._mask or request.kind is Kind.FLUSH:
            self._forward(request, completed)
        elif request.kind is Kind.READ:
            self._widen(request, completed)
        elif request.kind is Kind.TRIM:
            self._shrink(request, completed)
        else:
            self._begin_update(request, completed)

    def _must_wait(self, request: Request) -> bool:
        start, end = self._blocks(request)
        return len(self._locked) >= LOCKED_MAX or any(
            start < update.end and update.start < end for update in self._locked
        )

    def _blocks(self, request: Request) -> tuple[int, int]:
        """The bytes of all blocks that the request touches."""
        return request.offset & ~self._mask, (request.offset + request.length + self._mask) & ~self._mask

    def _forward(self, request: Request, completed: Completed) -> None:
        """The request as it is, under a cookie that knows whom to tell."""
        self._stand_in(request, completed, request.offset, request.length, request.buffer)

    def _stand_in(
        self, request: Request, completed: Completed, offset: int, length: int, buffer: memoryview | None
    ) -> None:
        def done(part: Request) -> None:
            request.error = part.error
            if request.kind is Kind.READ and part.error is None and part.length != request.length:
                assert request.buffer is not None and part.buffer is not None
                skipped = request.offset - part.offset
                request.buffer[:] = part.buffer[skipped : skipped + request.length]
            completed([request])

        self._ready.append(
            Request(request.kind, offset, length, buffer, fua=request.fua, no_hole=request.no_hole, cookie=_Part(done))
        )

    def _widen(self, request: Request, completed: Completed) -> None:
        start, end = self._blocks(request)
        self._stand_in(request, completed, start, end - start, memoryview(bytearray(end - start)))

    def _shrink(self, request: Request, completed: Completed) -> None:
        start = (request.offset + self._mask) & ~self._mask
        end = (request.offset + request.length) & ~self._mask
        if start < end:
            self._stand_in(request, completed, start, end - start, None)
        else:
            completed([request])

    # --- read, patch, write ---

    def _begin_update(self, request: Request, completed: Completed) -> None:
        start, end = self._blocks(request)
        update = _Update(request, completed, start, end)
        self._locked.append(update)
        block_size = self._mask + 1
        offsets = []
        if request.offset & self._mask:
            offsets.append(start)
        if (request.offset + request.length) & self._mask and end - block_size not in offsets:
            offsets.append(end - block_size)

        def read(part: Request) -> None:
            update.missing -= 1
            update.first_error = update.first_error or part.error
            if not update.missing:
                self._patch(update)

        for offset in offsets:
            edge = Request(Kind.READ, offset, block_size, memoryview(bytearray(block_size)), cookie=_Part(read))
            update.edges.append(edge)
        update.missing = len(offsets)
        self._ready += update.edges

    def _patch(self, update: _Update) -> None:
        """All edges are read: queue the writes, unlock, and let those in that waited for these blocks."""
        self._locked.remove(update)
        request = update.request
        if update.first_error is not None:
            request.error = update.first_error
            update.completed([request])
        else:
            self._ready += self._parts(update)
        while self._waiting and not self._must_wait(self._waiting[0][0]):
            self._start(*self._waiting.popleft())
        self._continue()

    def _parts(self, update: _Update) -> list[Request]:
        request, block_size = update.request, self._mask + 1
        end = request.offset + request.length

        def written(part: Request) -> None:
            update.missing -= 1
            update.first_error = update.first_error or part.error
            if not update.missing:
                request.error = update.first_error
                update.completed([request])

        parts = []
        whole_start, whole_end = update.start, update.end
        for edge in update.edges:
            first, last = max(edge.offset, request.offset), min(edge.offset + block_size, end)
            assert edge.buffer is not None
            edge.buffer[first - edge.offset : last - edge.offset] = (
                bytes(last - first)
                if request.buffer is None
                else request.buffer[first - request.offset : last - request.offset]
            )
            parts.append(
                Request(Kind.WRITE, edge.offset, block_size, edge.buffer, fua=request.fua, cookie=_Part(written))
            )
            if edge.offset == whole_start:
                whole_start += block_size
            else:
                whole_end -= block_size
        if whole_start < whole_end:
            middle = (
                None
                if request.buffer is None
                else request.buffer[whole_start - request.offset : whole_end - request.offset]
            )
            parts.append(
                Request(
                    request.kind,
                    whole_start,
                    whole_end - whole_start,
                    middle,
                    fua=request.fua,
                    no_hole=request.no_hole,
                    cookie=_Part(written),
                )
            )
        update.missing = len(parts)
        return parts

    # --- handing in ---

    def _continue(self) -> None:
        """Something became ready inside a completion: it follows when the device's own call is over."""
        if self._ready and not self._submitting and not self._deferred:
            self._deferred = True
            self._defer(self._hand_in)

    def _hand_in(self) -> None:
        self._deferred = False
        if self._submitting:
            return
        self._submitting = True
        try:
            while self._ready:
                ready, self._ready = self._ready, []
                self.device.submit(ready, _parts_done)
        finally:
            self._submitting = False


def _parts_done(parts: list[Request]) -> None:
    for part in parts:
        cookie: _Part = part.cookie
        cookie.done(part)
