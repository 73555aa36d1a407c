"""What each block of the disk may hold, and what every answer must therefore have been.

What it is for: a block is a *register*. A read returns the last write that was acknowledged before it began, or one
that was under way beside it. After a crash of the Upstairs a write that was not flushed happened or not, block by
block, and whichever it was, stays. An acknowledged flush makes all before it permanent.

How: per block, the values that are possible since the last flush (``floor``) and what was asked since (``log``);
:func:`_fold` gives the values that are possible now. A read that returns narrows them to one.

It is exact where the history is: the guest of these histories tells each write by a number of its own, so a stale, a
torn or a misplaced block is recognised whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from crucible_emu.sim.upstairs.storage import NEVER_WRITTEN, Storage
from crucible_emu.sim.upstairs.world import World

Values = frozenset[int]


class Outcome(Enum):
    """What became of a write."""

    PENDING = "may have happened"
    DONE = "acknowledged"
    REFUSED = "did not happen"


class Op:
    """One write as all its blocks see it; ``number`` orders it among all requests."""

    __slots__ = ("number", "outcome", "unwritten")

    def __init__(self, number: int, outcome: Outcome, *, unwritten: bool = False) -> None:
        self.number = number
        self.outcome = outcome
        self.unwritten = unwritten


class _Register:
    """One block."""

    __slots__ = ("claimed", "ever", "floor", "log")

    def __init__(self) -> None:
        self.floor: Values = frozenset({NEVER_WRITTEN})
        self.log: list[tuple[Op | None, int]] = []
        """Writes, oldest first; without an op: a read found this value."""
        self.ever: set[int] = {NEVER_WRITTEN}
        self.claimed: Values | None = None

    def now(self) -> Values:
        return _fold(self.floor, self.log)

    def survivors(self) -> Values:
        """What may be left when all that was not flushed is in doubt."""
        found = set(self.floor)
        for op, value in self.log:
            if (
                op is not None
                and op.outcome is not Outcome.REFUSED
                and not (op.unwritten and NEVER_WRITTEN not in found)
            ):
                found.add(value)
        return frozenset(found)


def _fold(values: Values, log: Iterable[tuple[Op | None, int]]) -> Values:
    for op, value in log:
        if op is None:
            values = frozenset({value})
        elif op.outcome is Outcome.REFUSED:
            continue
        else:
            after = frozenset({value})
            if op.unwritten:
                after = frozenset(value if before == NEVER_WRITTEN else before for before in values)
            values = after if op.outcome is Outcome.DONE else values | after
    return values


class PendingRead:
    """What a read that is under way may return, block by block."""

    __slots__ = ("allowed", "epoch", "seen", "start")

    def __init__(self, start: int, allowed: list[set[int]], seen: list[int], epoch: int) -> None:
        self.start = start
        self.allowed = allowed
        self.seen = seen
        """How many writes each block had when the read began: none since means that it narrows the block down."""
        self.epoch = epoch


class Registers:
    """All blocks of one disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.epoch = 0
        """Rises whenever un-flushed writes come into doubt."""
        self.number = 0
        self.loss_to_report = False
        self._flushed_number = 0
        self.thin = False
        """Whether a flush was acknowledged that only one replica holds, beside one under repair."""
        self._blocks = [_Register() for _ in range(world.definition.total_blocks)]
        self._writes = [0] * len(self._blocks)
        self._reads: list[PendingRead] = []

    def next_number(self) -> int:
        self.number += 1
        return self.number

    # -- writes -------------------------------------------------------------------------------------------------------

    def write(self, op: Op, start: int, values: list[int]) -> None:
        """A write was submitted."""
        for block, value in enumerate(values, start):
            register = self._blocks[block]
            register.log.append((op, value))
            register.ever.add(value)
            self._writes[block] += 1
        for read in self._reads:
            for block, value in enumerate(values, start):
                if 0 <= block - read.start < len(read.allowed):
                    allowed = read.allowed[block - read.start]
                    if not op.unwritten or NEVER_WRITTEN in allowed:
                        allowed.add(value)

    def refused(self, op: Op) -> None:
        """A write did not happen; reads that counted on it may return what was there."""
        op.outcome = Outcome.REFUSED
        for read in self._reads:
            for index, allowed in enumerate(read.allowed):
                allowed |= self._blocks[read.start + index].now()

    # -- reads --------------------------------------------------------------------------------------------------------

    def begin_read(self, start: int, count: int) -> PendingRead:
        blocks = range(start, start + count)
        allowed = [set(self._blocks[block].now()) for block in blocks]
        read = PendingRead(start, allowed, [self._writes[block] for block in blocks], self.epoch)
        self._reads.append(read)
        return read

    def end_read(self, read: PendingRead, values: list[int] | None) -> None:
        """A read was answered, with ``values`` or with an error."""
        self._reads.remove(read)
        for index, value in enumerate(values or ()):
            block = read.start + index
            register = self._blocks[block]
            if value not in read.allowed[index]:
                self.world.violation(
                    f"block {block} reads as {value}; it may be {sorted(read.allowed[index])}"
                    f"{'' if value in register.ever else ', and it was never written so'}"
                )
            if read.epoch == self.epoch and read.seen[index] == self._writes[block] and len(register.now()) > 1:
                if register.log:
                    register.log.append((None, value))
                else:
                    register.floor = frozenset({value})

    # -- flushes and losses -------------------------------------------------------------------------------------------

    def flushed(self, number: int, epoch: int, replicas: list[Storage], need: int) -> None:
        """A flush that was submitted as request ``number`` was acknowledged: ``need`` replicas must hold it."""
        if epoch != self.epoch or number < self._flushed_number:
            return  # what it covers is in doubt, or covered by a later flush that was faster
        self._flushed_number = number
        acceptable: list[set[int]] = []
        for register in self._blocks:
            if self.loss_to_report and register.claimed is not None:
                register.floor = register.claimed
            covered = 0
            for op, _ in register.log:
                if op is not None and op.number > number:
                    break
                covered += 1
            register.floor = _fold(register.floor, register.log[:covered])
            del register.log[:covered]
            register.claimed = None  # what is durable now is what the next loss is measured against
            acceptable.append(set(register.survivors()))
        self.loss_to_report = False
        self._must_be_durable(acceptable, replicas, need)

    def _must_be_durable(self, acceptable: list[set[int]], replicas: list[Storage], need: int) -> None:
        missing = [
            [block for block, values in enumerate(acceptable) if replica.durable(block) not in values]
            for replica in replicas
        ]
        holders = sum(not blocks for blocks in missing)
        self.thin = holders < 2
        if holders < need:
            block = next(blocks[0] for blocks in missing if blocks)
            found = [replica.durable(block) for replica in replicas]
            self.world.violation(
                f"a flush is acknowledged that fewer than {need} replicas hold: block {block} is durably {found}, "
                f"it may be {sorted(acceptable[block])}"
            )

    def held_by(self, replicas: list[Storage]) -> int:
        """How many replicas hold durably what is on the disk now."""
        now = [register.now() for register in self._blocks]
        return sum(all(replica.durable(block) in values for block, values in enumerate(now)) for replica in replicas)

    def doubt(self, *, to_report: bool, unlimited: bool = False) -> None:
        """Un-flushed writes may be lost from here on, block by block. ``to_report``: the guest's next flush must say
        so. ``unlimited``: more replicas were lost than the disk can bear, anything that was ever written may come."""
        self.epoch += 1
        for register in self._blocks:
            if to_report and register.claimed is None:
                register.claimed = register.now()
            register.floor = frozenset(register.ever) if unlimited else register.survivors()
            register.log.clear()
            if not to_report:
                register.claimed = None
        if not to_report:
            self.loss_to_report = False
        elif any(register.claimed != register.floor for register in self._blocks):
            self.loss_to_report = True
        for read in self._reads:
            for index, allowed in enumerate(read.allowed):
                allowed |= self._blocks[read.start + index].floor

    def reported(self) -> None:
        """A flush failed: the guest knows."""
        self.loss_to_report = False
        for register in self._blocks:
            register.claimed = None
