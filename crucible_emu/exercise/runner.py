"""Submits a workload's requests with a queue depth, and checks every read against the write log.

What it is for: consecutive operations of one kind in a step become one :class:`_Group`: their blocks are made, and
compared, as rows of one array. No task or channel per request.

What it guarantees: the log knows of a write before the disk does. A read is checked against the counts at the time when
it was submitted: a block device admits in order, so earlier writes must show in it; later ones may. The
first wrong block ends the run with :class:`IntegrityError`; a request that fails ends it with its error, unless the
runner ``goes_on``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
import trio

from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.errors import UsageError
from crucible_emu.exercise.content import Blocks, Counts, Rows, fill
from crucible_emu.exercise.rates import Sample
from crucible_emu.exercise.workloads import Operation, Step
from crucible_emu.exercise.write_log import Expectation, Mark, WriteLog, WrongBlock

SAMPLES_MAX = 100_000
NO_BLOCKS: Blocks = np.zeros(0, np.int64)
NO_COUNTS: Counts = np.zeros(0, np.uint32)
NO_ROWS: Rows = np.zeros((0, 0), np.uint8)


class IntegrityError(Exception):
    """The disk gave back what was not written; ``wrong`` says where."""

    def __init__(self, wrong: WrongBlock) -> None:
        super().__init__(str(wrong))
        self.wrong = wrong


@dataclass(slots=True)
class RunnerStatistics:
    """What has been done."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    checked_blocks: int = 0
    """Those of them of which it is known what they must hold."""
    errors: int = 0

    @property
    def operations(self) -> int:
        return self.reads + self.writes + self.flushes

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(slots=True)
class _Group:
    """Requests of one kind that were submitted together; ``counts`` of ``blocks`` then, ``rows`` their data."""

    kind: Kind
    blocks: Blocks
    counts: Counts
    rows: Rows
    mark: list[Mark]
    requests: int
    pending: int
    expected: Expectation | None = None
    failed: list[Request] = field(default_factory=list)


def _without_overlap(kind: Kind, operations: list[Operation]) -> list[list[Operation]]:
    """The operations in lists of which each names no block twice, in order; reads may."""
    if kind is Kind.READ or len(operations) == 1:
        return [operations]
    ranges = sorted((each.first, each.first + each.blocks) for each in operations)
    if all(end <= first for (_, end), (first, _) in pairwise(ranges)):
        return [operations]
    return [[each] for each in operations]


class Runner:
    """Drives ``device`` with at most ``depth`` requests in flight (a step that is larger goes alone).

    ``in_range``: accept any count from the last flush on, for every block. ``progress`` is called with bytes done.
    """

    def __init__(
        self,
        device: BlockDevice,
        log: WriteLog,
        *,
        depth: int = 8,
        in_range: bool = False,
        goes_on: bool = False,
        progress: Callable[[int], None] = lambda done_bytes: None,
    ) -> None:
        if device.size_bytes != log.block_count * device.block_size:
            raise UsageError(
                f"the disk has {device.size_bytes} bytes, the write log is of {log.block_count} blocks of "
                f"{device.block_size}: they do not belong together"
            )
        self.device = device
        self.log = log
        self.depth = depth
        self.in_range = in_range
        self.goes_on = goes_on
        self.statistics = RunnerStatistics()
        self.samples: list[Sample] = []
        self.progress: Callable[[int], None] = progress
        self._block_size = device.block_size
        self._in_flight = 0
        self._moved = trio.Event()
        self._error: Exception | None = None

    async def run(self, steps: Iterable[Step], *, time_s: float | None = None, finish: bool = True) -> None:
        """Carry out ``steps``, for ``time_s`` at most; with ``finish``, until the last request is done.

        Raises :class:`IntegrityError`, or the error of a request.
        """
        end = None if time_s is None else trio.current_time() + time_s
        ahead = iter(steps)
        step = next(ahead, None)
        while step is not None:
            if not step:
                await self.drain()
                step = next(ahead, None)
                continue
            while self._in_flight and self._in_flight + len(step) > self.depth:
                await self._wait()
            await self.device.wait_for_room()
            self._raise()
            # All that fits now goes together: *optimisation*, the disk makes one train of it.
            together = list(step)
            step = next(ahead, None)
            while step and self._in_flight + len(together) + len(step) <= self.depth:
                together += step
                step = next(ahead, None)
            self._submit(together)
            # A device that answers at once would keep the loop from everybody else.
            await trio.lowlevel.checkpoint()
            if end is not None and trio.current_time() >= end:
                break
        if finish:
            await self.drain()

    async def drain(self) -> None:
        """Wait for everything in flight."""
        while self._in_flight:
            await self._wait()
        self._raise()

    async def sample(self, every_s: float) -> None:
        """Note what is done in each ``every_s``, until cancelled; then what was done since."""
        last, done, moved = trio.current_time(), self.statistics.operations, self.statistics.bytes
        while len(self.samples) < SAMPLES_MAX:
            try:
                await trio.sleep(every_s)
            finally:
                now, operations, all_bytes = trio.current_time(), self.statistics.operations, self.statistics.bytes
                self.samples.append(Sample(now - last, operations - done, all_bytes - moved))
                last, done, moved = now, operations, all_bytes

    # -----------------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._raise()
        if self._moved.is_set():
            self._moved = trio.Event()
        await self._moved.wait()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _submit(self, step: Step) -> None:
        for kind, operations in groupby(step, lambda operation: operation.kind):
            if kind is Kind.FLUSH:
                for _ in operations:
                    group = _Group(kind, NO_BLOCKS, NO_COUNTS, NO_ROWS, self.log.flush_begins(), 1, 1)
                    self._hand_over([Request(kind, cookie=group)])
            else:
                for together in _without_overlap(kind, list(operations)):
                    self._submit_blocks(kind, together)

    def _submit_blocks(self, kind: Kind, operations: list[Operation]) -> None:
        """Requests for blocks of which no two are the same."""
        blocks: Blocks = np.concatenate([np.arange(each.first, each.first + each.blocks) for each in operations])
        rows = np.empty((len(blocks), self._block_size), np.uint8)
        expected: Expectation | None = None
        if kind is Kind.WRITE:
            counts = self.log.issue(blocks)
            fill(rows, blocks, counts, self.log.rule)
        elif kind is Kind.WRITE_UNWRITTEN:
            if not self.log.blank:
                raise UsageError("only on a disk that was blank is it known what was never written: say --blank")
            fresh = self.log.cur[blocks] == 0
            certain = ~(fresh | self.log.doubtful[blocks])
            self.log.issue(blocks[fresh])
            counts = self.log.cur[blocks]
            # Other bytes than those that are there already, which must stay.
            fill(rows, blocks, counts + certain.astype(np.uint32), self.log.rule)
            blocks, counts = blocks[fresh], counts[fresh]
        else:
            expected = self.log.expect(blocks, in_range=self.in_range)
            counts = expected.cur
        group = _Group(kind, blocks, counts, rows, [], len(operations), len(operations), expected=expected)
        flat = rows.reshape(-1).data
        requests, at = [], 0
        for each in operations:
            size = each.blocks * self._block_size
            offset = each.first * self._block_size
            requests.append(Request(kind, offset, size, flat[at : at + size], cookie=group))
            at += size
        self._hand_over(requests)

    def _hand_over(self, requests: list[Request]) -> None:
        self._in_flight += len(requests)
        self.device.submit(requests, self._completed)

    def _completed(self, requests: list[Request]) -> None:
        self._in_flight -= len(requests)
        done_bytes = 0
        for request in requests:
            group: _Group = request.cookie
            group.pending -= 1
            done_bytes += request.length
            if request.error is not None:
                group.failed.append(request)
            if not group.pending:
                self._finish(group)
        if done_bytes:
            self.progress(done_bytes)
        self._moved.set()

    def _finish(self, group: _Group) -> None:
        good = self._count(group)
        if group.failed:
            self.statistics.errors += len(group.failed)
            if not self.goes_on and self._error is None:
                self._error = group.failed[0].error
        if group.kind is Kind.FLUSH:
            if group.failed:
                self.log.flush_failed(group.mark)
            else:
                self.log.commit(group.mark)
        elif group.kind is Kind.READ:
            self.statistics.checked_blocks += int(good.sum()) if self.log.blank else int((group.counts[good] > 0).sum())
            assert group.expected is not None
            expected = Expectation(group.expected.low[good], group.expected.cur[good])
            wrong = self.log.check(group.blocks[good], group.rows[good], expected)
            if wrong is not None and not isinstance(self._error, IntegrityError):
                self._error = IntegrityError(wrong)
        else:
            self.log.failed(group.blocks[~good])
            self.log.succeeded(group.blocks[good], group.counts[good])

    def _count(self, group: _Group) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Add the group to the statistics; which of its blocks were read or written."""
        good = np.ones(len(group.blocks), np.bool_)
        for request in group.failed:
            first = request.offset // self._block_size
            last = first + request.length // self._block_size
            good &= (group.blocks < first) | (group.blocks >= last)
        done_bytes = int(good.sum()) * self._block_size
        if group.kind is Kind.FLUSH:
            self.statistics.flushes += not group.failed
        elif group.kind is Kind.READ:
            self.statistics.reads += group.requests - len(group.failed)
            self.statistics.read_bytes += done_bytes
        else:
            self.statistics.writes += group.requests - len(group.failed)
            self.statistics.written_bytes += done_bytes
        return good
