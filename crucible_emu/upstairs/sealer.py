"""Encryption of one disk: at once where there is little of it, by the crew where there is much.

What it is for: the cipher takes 10 µs per 4 KiB, as much as everything else that a block costs together. From
:data:`DEFERRED_BYTES_MIN` on a train of writes is encrypted, and a read decrypted, by :mod:`crucible_emu.upstairs.crew`
on all cores, while the loop's thread receives what comes next and stores what came before (upstairs-volume.md §5.4 and
§6.15). What is smaller stays on the loop, where it is done sooner than a thread wakes up.

What it guarantees: nothing of its own about order. A deferred write keeps its place in the line of the guest
(:class:`~crucible_emu.upstairs.guest.Guest`), and so does whatever comes behind it; a deferred read has its bytes and
their contexts already, so that no later write can change what it answers.

Why memory is used again: 1 MiB that was never touched costs 256 page faults, which is 0.3 ms beside 2.6 of encryption.
Replicas in this process have copied what they are given when a call returns; those elsewhere keep it until they have
answered, and get a copy, which is in one piece as they want it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.integrity import BlockContexts, Cipher, Opening, Rows, Sealing, Slab, misfit
from crucible_emu.upstairs.crew import Crew, crew
from crucible_emu.upstairs.trains import Trains

DEFERRED_BYTES_MIN = 128 * 1024
"""From so much on encryption goes to the crew: 0.17 ms of it for each core."""
SHARE_BYTES = 128 * 1024
"""What a thread takes at a time at most, 0.35 ms of work: a turn of the loop costs 15 µs, the arrays of a share 4."""
WAITING_BYTES_MAX = 4 * 1024 * 1024
"""So much of writes may be on its way to ciphertext before doors are told to stop reading."""
WAITING_BATCHES_MAX = 64
"""And so many batches may wait behind them."""
SPARE_BYTES_MAX = 8 * 1024 * 1024
"""Memory that is kept to be used again."""
SLAB_BLOCKS_MIN = 16

Opened = Callable[[list[int]], None]
"""Told which blocks could not be decrypted."""


class Sealed:
    """The ciphertext of a train of writes, once it is ``ready``; ``error``: there is none."""

    __slots__ = ("error", "ready", "sealing", "slab")

    def __init__(self, sealing: Sealing, slab: Slab) -> None:
        self.sealing = sealing
        self.slab = slab
        self.ready = False
        self.error: errors.CrucibleError | None = None


class Sealer:
    """Encrypts for a disk in blocks of ``block_size``. ``keeps_copies``: whether replicas keep what they are given past
    the call that gives it."""

    def __init__(self, cipher: Cipher, block_size: int, *, keeps_copies: bool) -> None:
        self._cipher = cipher
        self._block_size = block_size
        self._keeps_copies = keeps_copies
        self._spare: dict[int, list[Slab]] = {}
        self._spare_bytes = 0
        self.waiting_bytes = 0
        """Of writes that are deferred and whose ciphertext is not there yet."""

    # -- writes -------------------------------------------------------------------------------------------------------

    def defers(self, requests: list[Request]) -> bool:
        """Whether :meth:`parts` is the way for these requests."""
        write = Kind.WRITE
        size = sum(request.length for request in requests if request.kind is write)
        return size >= DEFERRED_BYTES_MIN and crew() is not None

    def takes_more(self, waiting_batches: int) -> bool:
        """Whether more may come, although so many batches wait for encryption that is under way."""
        return self.waiting_bytes < WAITING_BYTES_MAX and waiting_batches < WAITING_BATCHES_MAX

    def parts(
        self, requests: list[Request], trains: Trains, ready: Callable[[], None]
    ) -> Iterator[tuple[list[Request], Sealed | None]]:
        """``requests`` in their order, cut: a train of writes that the crew encrypts stands by itself. ``ready`` is
        called, later, when the ciphertext of one is there."""
        index = rest = 0
        total = len(requests)
        while index < total:
            stop = max(trains.end(requests, index), index + 1)
            train = requests[index:stop]
            if train[0].kind is Kind.WRITE and trains.in_range(train[0]) and _bytes(train) >= DEFERRED_BYTES_MIN:
                if rest < index:
                    yield requests[rest:index], None
                yield train, self._seal_later(train, ready)
                rest = stop
            index = stop
        if rest < total:
            yield requests[rest:], None

    def seal(self, requests: list[Request]) -> Sealed:
        """Encrypt the payloads of writes now."""
        sealed = self._begin(requests)
        sealed.sealing.run(0, sealed.sealing.count)
        return sealed

    def _seal_later(self, requests: list[Request], ready: Callable[[], None]) -> Sealed:
        sealed, size_bytes = self._begin(requests), _bytes(requests)
        self.waiting_bytes += size_bytes

        def done(problem: BaseException | None) -> None:
            self.waiting_bytes -= size_bytes
            sealed.error = _failure(problem)
            sealed.ready = True
            ready()

        found = crew()
        assert found is not None
        found.start(sealed.sealing, self._share(sealed.sealing.count, found), done)
        return sealed

    def _share(self, block_count: int, found: Crew) -> int:
        """How many blocks a thread takes at a time, so that each has something to do."""
        return min(-(-block_count // found.width), max(1, SHARE_BYTES // self._block_size))

    def _begin(self, requests: list[Request]) -> Sealed:
        size = self._block_size
        blocks: list[memoryview] = []
        for request in requests:
            payload = request.buffer
            if payload is None:
                raise errors.IoError(f"{request!r} came without a buffer")
            if request.length == size:
                blocks.append(payload)
            else:
                blocks += [payload[at : at + size] for at in range(0, request.length, size)]
        slab = self._slab(len(blocks))
        return Sealed(Sealing(self._cipher, blocks, slab), slab)

    def take(self, sealed: Sealed) -> tuple[Rows, BlockContexts]:
        """The ciphertext, as replicas want it, and its contexts. :meth:`give_back` when they have been given it."""
        rows = sealed.sealing.rows
        # Not ascontiguousarray: one row is contiguous as it is, and would not be copied.
        return rows.copy() if self._keeps_copies else rows, sealed.sealing.contexts()

    def give_back(self, sealed: Sealed) -> None:
        """What was sealed is not looked at any more."""
        slab = sealed.slab
        if self._spare_bytes + slab.rows.nbytes <= SPARE_BYTES_MAX:
            self._spare_bytes += slab.rows.nbytes
            self._spare.setdefault(slab.count, []).append(slab)

    def _slab(self, block_count: int) -> Slab:
        count = max(SLAB_BLOCKS_MIN, 1 << (block_count - 1).bit_length())
        spare = self._spare.get(count)
        if not spare:
            return Slab(count, self._block_size)
        slab = spare.pop()
        self._spare_bytes -= slab.rows.nbytes
        return slab

    # -- reads --------------------------------------------------------------------------------------------------------

    def open_later(self, buffers: Sequence[memoryview], contexts: BlockContexts, opened: Opened) -> bool:
        """Have blocks that a replica gave, and that :func:`~crucible_emu.integrity.misfit` finds nothing wrong with,
        decrypted in place, if there are enough of them. ``False``: too few, do it now."""
        found = crew() if len(buffers) * self._block_size >= DEFERRED_BYTES_MIN else None
        if found is None:
            return False
        opening = Opening(self._cipher, buffers, contexts)
        if not opening.count:
            return False

        def done(problem: BaseException | None) -> None:
            # What the cipher has not looked at is not known to be right.
            opened(sorted(opening.bad) if problem is None else list(range(len(buffers))))

        found.start(opening, self._share(opening.count, found), done)
        return True

    def open_one_later(self, out: memoryview, contexts: BlockContexts, opened: Opened) -> bool:
        """The same for consecutive blocks in one buffer, which are looked at first."""
        if len(out) < DEFERRED_BYTES_MIN:
            return False
        size = self._block_size
        if misfit(np.frombuffer(out, np.uint8).reshape(-1, size), contexts) is not None:
            return False
        return self.open_later([out[at : at + size] for at in range(0, len(out), size)], contexts, opened)


def _bytes(requests: list[Request]) -> int:
    return sum(request.length for request in requests)


def _failure(problem: BaseException | None) -> errors.CrucibleError | None:
    return None if problem is None else errors.IoError(f"the cipher failed: {problem!r}")
