"""A disk of sub-volumes over a read-only parent, as a block device (upstairs-volume.md §11.5 to §11.7).

What it is for: :class:`LayeredDevice` cuts requests at the borders of its sub-volumes, gives each sub-volume its parts
in one call, and completes a request when all its parts are. A block that was never written in its sub-volume is read
from the parent. It is synchronous: what follows a completion is handed in by ``defer`` (the loop's next turn), or by
the :meth:`LayeredDevice.submit` under way, because no device may be entered from inside a completion.

What it guarantees:

* A write is visible to every read that is submitted after it. That is safe because every part of a request is handed
  to its sub-volume before :meth:`LayeredDevice.submit` returns, in the order of the requests; a read learns together
  with the data which blocks its sub-volume owns; and only those that it does not are fetched later, from a parent that
  nobody writes to.
* The parent is never written. Zeroing over it stores zeros, so that it does not show through; trimming over it does
  nothing, as a trim may.
* A range that is not inside the volume is refused before anything is done. A request is reported once, with the first
  error of its parts, when none of them is under way any more: until then its buffer is in use.

A volume of one sub-volume without a parent hands its batches on untouched, and so does one of several for a batch in
the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.blockio import Allocation, BlockDevice, Completed, Kind, PayloadDevice, Request, SinglesDevice
from crucible_emu.volume.layout import Layout, Piece, holes

Defer = Callable[[Callable[[], None]], None]
"""Run a function soon, on the same thread, from outside of any completion."""

WRITES = frozenset({Kind.WRITE, Kind.WRITE_UNWRITTEN})
PLAIN = WRITES | {Kind.READ}
"""What a sub-volume gets as it came, also over a parent."""


class _Whole:
    """A request that travels in parts."""

    __slots__ = ("completed", "missing", "request")

    def __init__(self, request: Request, completed: Completed) -> None:
        self.request = request
        self.completed = completed
        self.missing = 0


class _Part:
    """What the request of a read that may have to look below carries in its cookie; that of any other part carries its
    :class:`_Whole`. ``position``: byte of the volume where it begins."""

    __slots__ = ("position", "whole")

    def __init__(self, whole: _Whole, position: int) -> None:
        self.whole = whole
        self.position = position


class _Below:
    """A part that is read from the parent, for the blocks ``wanted`` (bool[blocks]; ``None``: all) of a read's
    ``buffer`` and ``owned``; where some are not wanted, it is read beside them and laid in."""

    __slots__ = ("buffer", "owned", "wanted", "whole")

    def __init__(
        self,
        whole: _Whole,
        buffer: memoryview,
        owned: npt.NDArray[np.bool_] | None,
        wanted: npt.NDArray[np.bool_] | None,
    ) -> None:
        self.whole = whole
        self.buffer = buffer
        self.owned = owned
        self.wanted = wanted


class LayeredDevice:
    """``children`` end to end, ``parent`` below their beginning; implements :class:`~crucible_emu.blockio.BlockDevice`.

    Raises :class:`~crucible_emu.errors.BlockSizeMismatch` where a child's block size is another. A parent that is
    longer than the sub-volumes shows only as far as they reach; without sub-volumes it is the disk, and cannot be
    written.
    """

    def __init__(
        self, block_size: int, children: Sequence[BlockDevice], parent: BlockDevice | None, defer: Defer
    ) -> None:
        everybody = [*children] if parent is None else [*children, parent]
        if any(child.block_size != block_size for child in everybody):
            raise errors.BlockSizeMismatch()
        self._block_size = block_size
        self._mask = block_size - 1
        self._children = list(children)
        self._layout = Layout([child.size_bytes for child in children])
        self._parent = parent
        self._size_bytes = self._layout.size_bytes
        if not children and parent is not None:
            self._size_bytes = parent.size_bytes
        self._parent_end = 0 if parent is None else min(parent.size_bytes, self._size_bytes)
        self._defer = defer
        self._alone: BlockDevice | None = None
        self._singles: SinglesDevice | None = None  # the same, where it is one
        self._payloads: PayloadDevice | None = None
        if len(self._children) == 1 and parent is None:
            self._leave_to(self._children[0])
        self._below: list[Request] = []
        self._finished: list[_Whole] = []
        self._inside = False
        self._deferred = False
        self._reads_over_parent = 0
        self._when_released: Callable[[], None] | None = None
        self.failed_flushes = 0
        """How many flushes failed while there was a parent: after one, what was written before it may be gone."""

    # -- what a door asks ---------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def read_only(self) -> bool:
        """Whether no part can be written."""
        return all(child.read_only for child in self._children)

    @property
    def parent_end(self) -> int:
        """Where the parent ends that reads may still need, in bytes; 0 where there is none."""
        return self._parent_end

    def submit(self, requests: list[Request], completed: Completed) -> None:
        """Admit ``requests`` in order; see :class:`~crucible_emu.blockio.BlockDevice`."""
        if self._alone is not None:
            self._alone.submit(requests, completed)
        elif not self._children:
            self._submit_without_children(requests, completed)
        elif self._first_only(requests):
            self._children[0].submit(requests, completed)
        else:
            self._submit_in_parts(requests, completed)

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """See :class:`~crucible_emu.blockio.SinglesDevice`: of a volume that is one sub-volume."""
        return self._singles is not None and self._singles.read_singles(offsets, outs)

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        """The same of writes."""
        return self._singles is not None and self._singles.write_singles(offsets, data)

    def payload_memory(self, length: int) -> memoryview | None:
        """See :class:`~crucible_emu.blockio.PayloadDevice`: of a volume that is one sub-volume."""
        return None if self._payloads is None else self._payloads.payload_memory(length)

    def _leave_to(self, child: BlockDevice) -> None:
        """From now on all there is to this volume is ``child``."""
        self._alone = child
        self._singles = child if isinstance(child, SinglesDevice) else None
        self._payloads = child if isinstance(child, PayloadDevice) else None

    async def wait_for_room(self) -> None:
        """Return when every part has said that it would take more."""
        for child in self._children:
            await child.wait_for_room()
        if self._parent is not None:
            await self._parent.wait_for_room()

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        """Runs by origin: what comes from the parent is one deeper than it is there. Ends where a sub-volume does."""
        if not self._children:
            if self._parent is None:
                raise errors.CannotServeBlocks("No read only parent, no sub volumes!")
            return _deeper(await self._parent.allocation(offset, length))
        index = self._layout.at(offset)
        child, length = self._children[index], min(length, self._layout.ends[index] - offset)
        # *Safety*: it counts as a read, so the parent cannot be let go in between; else a hole of the sub-volume that a
        # scrub has filled meanwhile would be called one of the disk.
        parent_end = self._parent_end
        self._reads_over_parent += 1
        try:
            found: list[Allocation] = []
            for run in await child.allocation(offset - self._layout.starts[index], length):
                _extend(found, *await self._origins(offset, run, parent_end))
                offset += run.length
            return found
        finally:
            self._reads_over_parent -= 1
            self._go_on()

    async def _origins(self, offset: int, run: Allocation, parent_end: int) -> list[Allocation]:
        """A run of the sub-volume at ``offset``, with the parent seen through its holes."""
        found: list[Allocation] = []
        end = offset + run.length
        while run.depth == 0 and offset < min(end, parent_end):
            assert self._parent is not None
            below = _deeper(await self._parent.allocation(offset, min(end, parent_end) - offset))
            _extend(found, *below)
            offset += sum(each.length for each in below)
        if offset < end:
            _extend(found, Allocation(end - offset, run.depth))
        return found

    # -- batches ------------------------------------------------------------------------------------------------------

    def _first_only(self, requests: list[Request]) -> bool:
        """Whether the first sub-volume can have this batch as it is. *Optimisation*."""
        end, over_parent = self._layout.ends[0], self._parent_end > 0
        for request in requests:
            kind = request.kind
            if kind is Kind.FLUSH or (over_parent and (kind not in WRITES or request.fua)):
                return False
            if (request.offset | request.length) & self._mask or not 0 <= request.offset <= end - request.length:
                return False
        return True

    def _submit_without_children(self, requests: list[Request], completed: Completed) -> None:
        """The parent is the disk, if there is one: it is read, and never written."""
        reads, others = [], []
        for request in requests:
            if request.kind is Kind.READ and self._parent is not None:
                reads.append(request)
                continue
            if request.kind is Kind.READ:
                request.error = errors.CannotServeBlocks("No read only parent, no sub volumes!")
            elif request.kind is not Kind.FLUSH:
                request.error = errors.CannotReceiveBlocks("No sub volumes!")
            others.append(request)
        if others:
            completed(others)
        if reads and self._parent is not None:
            self._parent.submit(reads, completed)

    def _submit_in_parts(self, requests: list[Request], completed: Completed) -> None:
        parts: list[list[Request]] = [[] for _ in self._children]
        for request in requests:
            whole = _Whole(request, completed)
            if request.kind is Kind.FLUSH:
                request.error = None
                for wanted in parts:
                    wanted.append(self._part(whole, Piece(0, 0, 0, 0)))
            else:
                request.error = self._refusal(request)
                if request.error is None:
                    self._cut(whole, parts)
            if not whole.missing:
                self._finished.append(whole)
        inside, self._inside = self._inside, True
        try:
            for child, wanted in zip(self._children, parts):
                if wanted:
                    child.submit(wanted, self._parts_done)
            self._hand_in()  # what sub-volumes answered at once
        finally:
            self._inside = inside
        self._go_on()

    def _refusal(self, request: Request) -> errors.CrucibleError | None:
        if request.offset & self._mask:
            return errors.OffsetUnaligned()
        if request.length & self._mask:
            return errors.DataLenUnaligned()
        if request.offset < 0 or request.length < 0 or request.offset + request.length > self._size_bytes:
            return errors.OffsetInvalid()
        return None

    def _cut(self, whole: _Whole, parts: list[list[Request]]) -> None:
        request, parent_end, layout = whole.request, self._parent_end, self._layout
        offset, end = request.offset, request.offset + request.length
        plain = offset >= parent_end or request.kind in PLAIN
        if plain and offset < end <= layout.ends[child := layout.at(offset)]:
            # Most requests lie in one sub-volume. *Optimisation*: what is below would do the same.
            whole.missing = 1
            part = Request(request.kind, offset - layout.starts[child], request.length, request.buffer, cookie=whole)
            part.fua, part.no_hole, part.owned = request.fua, request.no_hole, request.owned
            if request.kind is Kind.READ and offset < parent_end:
                if part.owned is None:
                    part.owned = np.empty(request.length // self._block_size, np.bool_)
                part.cookie = _Part(whole, offset)
                self._reads_over_parent += 1
            parts[child].append(part)
            return
        if request.kind is Kind.TRIM:
            offset = max(offset, parent_end)
        elif request.kind is Kind.WRITE_ZEROES and offset < parent_end < end:
            self._cut_range(whole, parts, offset, parent_end)
            offset = parent_end
        if offset < end:
            self._cut_range(whole, parts, offset, end)

    def _cut_range(self, whole: _Whole, parts: list[list[Request]], offset: int, end: int) -> None:
        owned = whole.request.owned
        if owned is None and whole.request.kind is Kind.READ and offset < self._parent_end:
            owned = np.empty((end - offset) // self._block_size, np.bool_)
        for piece in self._layout.cut(offset, end - offset):
            parts[piece.child].append(self._part(whole, piece, owned))

    def _part(self, whole: _Whole, piece: Piece, owned: npt.NDArray[np.bool_] | None = None) -> Request:
        """The request for one sub-volume; a read over the parent has its flags in ``owned``."""
        request = whole.request
        whole.missing += 1
        first = piece.position - request.offset
        part = Request(request.kind, piece.offset, piece.length, fua=request.fua, no_hole=request.no_hole)
        over_parent = piece.position < self._parent_end
        if request.buffer is not None:
            part.buffer = request.buffer[first : first + piece.length]
        if request.kind is Kind.READ:
            if owned is not None:
                part.owned = owned[first // self._block_size : (first + piece.length) // self._block_size]
            self._reads_over_parent += over_parent
        elif request.kind is Kind.WRITE_ZEROES and over_parent:
            part.no_hole = True  # *Safety*: a hole would show the parent's blocks
        part.cookie = _Part(whole, piece.position) if request.kind is Kind.READ and over_parent else whole
        return part

    # -- completion ---------------------------------------------------------------------------------------------------

    def _parts_done(self, parts: list[Request]) -> None:
        """Parts of a sub-volume are done."""
        for part in parts:
            cookie: _Whole | _Part = part.cookie
            if isinstance(cookie, _Part):
                if part.error is None:
                    self._look_below(part, cookie)
                self._reads_over_parent -= 1
                self._settle(cookie.whole, part.error)
                continue
            if part.error is not None and (part.kind is Kind.FLUSH or part.fua):
                self.failed_flushes += 1
            self._settle(cookie, part.error)
        self._go_on()

    def _look_below(self, part: Request, cookie: _Part) -> None:
        """Ask the parent for what the sub-volume never wrote."""
        parent, owned, size = self._parent, part.owned, self._block_size
        assert parent is not None and owned is not None and part.buffer is not None
        blocks = min(len(owned), (parent.size_bytes - cookie.position) // size)
        found = owned.tobytes()[:blocks]
        reported = cookie.whole.request.owned is not None
        for start, stop in holes(found):
            buffer = part.buffer[start * size : stop * size]
            flags = owned[start:stop] if reported else None
            if found.find(1, start, stop) < 0:
                below = Request(Kind.READ, cookie.position + start * size, len(buffer), buffer, owned=flags)
                below.cookie = _Below(cookie.whole, buffer, flags, None)
            else:
                wanted = ~owned[start:stop]
                beside = np.zeros(stop - start, np.bool_) if reported else None
                below = Request(Kind.READ, cookie.position + start * size, len(buffer), owned=beside)
                below.buffer = memoryview(bytearray(len(buffer)))
                below.cookie = _Below(cookie.whole, buffer, flags, wanted)
            cookie.whole.missing += 1
            self._reads_over_parent += 1
            self._below.append(below)

    def _parent_done(self, parts: list[Request]) -> None:
        """Parts of the parent are done."""
        for part in parts:
            below: _Below = part.cookie
            if below.wanted is not None and part.error is None:
                assert part.buffer is not None
                rows = np.frombuffer(below.buffer, np.uint8).reshape(-1, self._block_size)
                found = np.frombuffer(part.buffer, np.uint8).reshape(-1, self._block_size)
                rows[below.wanted] = found[below.wanted]
                if below.owned is not None and part.owned is not None:
                    below.owned[below.wanted] = part.owned[below.wanted]
            self._reads_over_parent -= 1
            self._settle(below.whole, part.error)
        self._go_on()

    def _settle(self, whole: _Whole, error: errors.CrucibleError | None) -> None:
        if whole.request.error is None:
            whole.request.error = error
        whole.missing -= 1
        if not whole.missing:
            self._finished.append(whole)

    def _go_on(self) -> None:
        """Hand in what follows, if no device is being left or entered just now, and report what is finished."""
        if self._inside:
            return  # the call of submit under way does it
        self._report()
        if self._below and not self._deferred:
            self._deferred = True
            self._defer(self._hand_in)
        elif not self._reads_over_parent and self._when_released is not None:
            released, self._when_released = self._when_released, None
            released()

    def _hand_in(self) -> None:
        """Give the parent what waits for it."""
        self._deferred = False
        below, self._below = self._below, []
        if below and self._parent is not None:
            self._parent.submit(below, self._parent_done)

    def _report(self) -> None:
        """Report together what finished together: a door answers it with one system call."""
        finished, self._finished = self._finished, []
        by_door: dict[Completed, list[Request]] = {}
        for whole in finished:
            by_door.setdefault(whole.completed, []).append(whole.request)
        for completed, requests in by_door.items():
            completed(requests)

    # -- letting go of the parent -------------------------------------------------------------------------------------

    def release_parent(self, released: Callable[[], None]) -> None:
        """Read no more from the parent: everything that it holds is in the sub-volumes. ``released`` is called when the
        reads under way are done with it; until then it must stay in service."""
        self._parent_end = 0
        if len(self._children) == 1:
            self._leave_to(self._children[0])
        if self._reads_over_parent:
            self._when_released = released
        else:
            released()

    def forget_parent(self) -> None:
        """The parent is out of service."""
        self._parent = None


def _deeper(runs: list[Allocation]) -> list[Allocation]:
    return [Allocation(run.length, run.depth + 1 if run.depth else 0) for run in runs]


def _extend(found: list[Allocation], *runs: Allocation) -> None:
    """Append ``runs``, joined where the origin does not change."""
    for run in runs:
        if found and found[-1].depth == run.depth:
            found[-1] = Allocation(found[-1].length + run.length, run.depth)
        else:
            found.append(run)
