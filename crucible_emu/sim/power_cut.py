"""A region under power cuts: at every operation, under every idea of what a disk keeps.

What it is for: :class:`PowerCuts` drives one region on a simulated disk with writes, flushes, destages and reopens,
and before each operation of the disk may ask: what if the power went now? It takes the disk that would be left,
opens it, and checks. Now and then it goes on with that disk, so that recovered extents are written again.

What must hold after each cut (on-disk-format.md §6; :class:`Verdict` names what did not):

* the region opens, and each block's data fits one of its contexts, here and by the rules of the format alone;
* each block is as new as the last flush whose end was reported, or newer, and comes with its own context; so are the
  extents' flush numbers;
* an extent that says "clean, flush number f" holds exactly what it held when flush f began.

The full run, about a minute per 10,000 cuts::

    python -m crucible_emu.sim.power_cut --cuts 10000
    python -m crucible_emu.sim.power_cut --cuts 2000 --policy zfs --model pages      # must find something
"""

from __future__ import annotations

import argparse
import errno
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt

from crucible_emu.errors import CrucibleError, IoError
from crucible_emu.geometry import BlockIndexes, RegionDefinition
from crucible_emu.integrity import EMPTY, ENCRYPTED, BlockContexts, Rows, hash_blocks, hash_sealed_blocks
from crucible_emu.region import FlushWork, Region, SyncPolicy
from crucible_emu.region.layout import ExtentLayout, extent_path
from crucible_emu.region.redo import needs_redo
from crucible_emu.region.verify import bad_blocks
from crucible_emu.region.view import open_extent
from crucible_emu.sim.disk import PAGE_BYTES, SECTOR_BYTES, Persistence, SimulatedDisk

REGION = Path("/region")
UUID_OF_ALL = UUID("12345678-1111-2222-3333-123456789999")

GEOMETRIES = (
    # block size, blocks per extent, extents, how often
    (512, 24, 3, 6),
    (512, 200, 2, 4),
    (1024, 90, 2, 3),
    (4096, 40, 2, 4),
    (4096, 130, 1, 2),
    (512, 8192, 1, 1),  # a bitmap of more than one sector
    (8192, 24, 2, 2),
    (32768, 10, 2, 2),
)


class Verdict(Enum):
    """What a cut showed."""

    FINE = "fine"
    DOES_NOT_OPEN = "does not open"
    BAD_BLOCKS_DIRTY = "bad blocks, extent dirty"
    CLEAN_BUT_WRONG = "extent clean but wrong"
    LOST = "flushed block lost"


Version = tuple[int, int]
"""What identifies a block's content: XXH64 of its data, and the hash in its context (0: never written)."""


BAD_CONTEXT = np.uint64(1)
"""In place of a context that does not fit: no real one, but for a chance of one in 2**64."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A cut after which something did not hold."""

    verdict: Verdict
    seed: int
    operation: int
    detail: str


class History:
    """What each block may hold: all its versions since the one that is surely flushed."""

    def __init__(self, definition: RegionDefinition) -> None:
        zeros = np.zeros((1, definition.block_size), np.uint8)
        unwritten = (int(hash_blocks(zeros)[0]), 0)
        total, self._blocks_per_extent = definition.total_blocks, definition.blocks_per_extent
        self.versions: list[list[Version]] = [[unwritten] for _ in range(total)]
        self.floor = [0] * total
        self.flush_floor = [0] * definition.extent_count
        self.clean: dict[tuple[int, int], list[Version]] = {
            (extent_id, 0): [unwritten] * self._blocks_per_extent for extent_id in range(definition.extent_count)
        }

    def issued(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        data = hash_blocks(rows).tolist()
        for block, data_hash, context in zip(blocks.tolist(), data, contexts.hash.tolist()):
            self.versions[block].append((data_hash, context))

    def newest(self, extent_id: int) -> list[int]:
        """Index of the newest version of each block of an extent."""
        first = extent_id * self._blocks_per_extent
        return [len(each) - 1 for each in self.versions[first : first + self._blocks_per_extent]]

    def flush_begins(self, extent_id: int, flush_number: int) -> None:
        """An extent that says it is clean with this number holds what it holds now."""
        first = extent_id * self._blocks_per_extent
        self.clean[extent_id, flush_number] = [
            self.versions[first + inside][newest] for inside, newest in enumerate(self.newest(extent_id))
        ]

    def flushed(self, extent_id: int, flush_number: int, newest: list[int]) -> None:
        """The flush that began when these were the newest versions was reported done."""
        self.flush_floor[extent_id] = flush_number
        first = extent_id * self._blocks_per_extent
        self.floor[first : first + len(newest)] = map(max, self.floor[first : first + len(newest)], newest)

    def found(self, held: list[Version], flush_numbers: npt.NDArray[np.uint64]) -> None:
        """The region came back with these blocks: they are the truth from now on."""
        self.flush_floor = flush_numbers.tolist()
        for block, version in enumerate(held):
            self.versions[block] = [version]
        self.floor = [0] * len(held)


class PowerCuts:
    """One run: a region, its history, and cuts. Everything follows from ``seed``."""

    def __init__(
        self,
        seed: int,
        policy: SyncPolicy = SyncPolicy.STAGED,
        model: Persistence | None = None,
        geometry: tuple[int, int, int] | None = None,
        cuts_max: int = 1_000_000,
        disk: SimulatedDisk | None = None,
    ) -> None:
        self._rng = rng = random.Random(seed)
        self._data = np.random.default_rng(seed)
        self._seed = seed
        self._policy = policy
        self._models = [model] if model is not None else list(Persistence)
        if model is None and rng.random() < 0.7:
            # Every model but torn sectors, so that bigger blocks get their turn.
            self._models.remove(Persistence.SECTORS)
        # What may be torn is no block of a policy that does not write it twice.
        whole_bytes_max = SECTOR_BYTES if Persistence.SECTORS in self._models else PAGE_BYTES
        twice = policy is SyncPolicy.STAGED
        weighted = [each for each in GEOMETRIES if each[0] <= whole_bytes_max or (twice and needs_redo(each[0]))]
        chosen = rng.choices(weighted, [each[3] for each in weighted])[0]
        block_size, blocks, extents = geometry or chosen[:3]
        self._definition = RegionDefinition(block_size, blocks, extents, UUID_OF_ALL)
        self._history = History(self._definition)
        self._disk = disk or SimulatedDisk()
        self._disk.make_directories(REGION.parent)
        self._region = self._open(Region.create(REGION, self._definition, policy=policy, storage=self._disk))
        self._earlier: list[tuple[BlockIndexes, Rows, BlockContexts]] = []
        self._flush_number = 0
        self._operations = 0
        self._cut_probability = 0.02 if blocks > 1000 else 0.3
        self._cuts_max = cuts_max
        self._flushing = False
        # A disk that fails now and then, in some of the runs: then the next flush has to make up for the failed one.
        self._failure_probability = 0.02 if policy is SyncPolicy.STAGED and rng.random() < 0.3 else 0.0
        self._disk.partial_writes = rng
        self._journal_probability = rng.choice([0.0, 0.5, 0.9])
        self._failed_since_flush = False
        self.failures = 0
        self.verdicts: Counter[Verdict] = Counter()
        self.findings: list[Finding] = []

    @property
    def cuts(self) -> int:
        return self.verdicts.total()

    def _open(self, region: Region) -> Region:
        self._disk.before_change = self._before_change
        return region

    def run(self, steps: int = 30) -> None:
        """Do so many random things, with cuts in between and inside."""
        for _ in range(steps):
            if self.cuts >= self._cuts_max:
                return
            choice = self._rng.random()
            if choice < 0.45:
                self._write()
            elif choice < 0.55:
                self._repeat()
            elif choice < 0.80:
                self._flush()
            elif choice < 0.90:
                self._destage()
            elif choice < 0.95 and not self._failed_since_flush:
                self._reopen()
            else:
                self._crash()

    # --- what happens

    def _write(self) -> None:
        total = self._definition.total_blocks
        if self._rng.random() < 0.5:
            start = self._rng.randrange(total)
            blocks = np.arange(start, min(total, start + self._rng.randint(1, 20)))
        else:
            blocks = np.array(self._rng.sample(range(total), self._rng.randint(1, min(12, total))))
        count = len(blocks)
        rows = self._data.integers(0, 256, (count, self._definition.block_size), dtype=np.uint8)
        contexts = BlockContexts.plain(hash_blocks(rows))
        if self._rng.random() < 0.3:
            nonce = self._data.integers(0, 256, (count, 12), dtype=np.uint8)
            tag = self._data.integers(0, 256, (count, 16), dtype=np.uint8)
            sealed = hash_sealed_blocks(nonce, tag, rows)
            contexts = BlockContexts(np.full(count, ENCRYPTED, np.uint8), sealed, nonce, tag)
        self._issue(blocks, rows, contexts)

    def _repeat(self) -> None:
        """Some earlier write again, as after a reconnection: both slots may then hold the same context."""
        if self._earlier:
            self._issue(*self._rng.choice(self._earlier))

    def _issue(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        self._history.issued(blocks, rows, contexts)
        self._region.write(blocks, rows, contexts)
        self._earlier = [*self._earlier[-3:], (blocks, rows, contexts)]

    def _flush(self) -> None:
        self._flush_number += self._rng.choice([1, 1, 1, 70_000])
        limit = self._rng.randrange(self._definition.extent_count) if self._rng.random() < 0.15 else None
        dirty = np.flatnonzero(self._region.extent_versions()[2]).tolist()
        newest = {each: self._history.newest(each) for each in dirty if limit is None or each <= limit}
        for extent_id in newest:
            self._history.flush_begins(extent_id, self._flush_number)
        journal = self._rng.random() < self._journal_probability
        if self._complete(self._region.begin_flush(self._flush_number, 1, limit, journal=journal)):
            self._failed_since_flush = self._failed_since_flush and limit is not None
            for extent_id, versions in newest.items():
                self._history.flushed(extent_id, self._flush_number, versions)
            self._cut("after the flush")

    def _destage(self) -> None:
        self._complete(self._region.begin_destage())

    def _complete(self, work: FlushWork) -> bool:
        self._flushing = True
        try:
            work.run()
        except IoError:
            self._region.abandon_flush(work)
            return False
        finally:
            self._flushing = False
        self._region.finish_flush(work)
        return True

    def _reopen(self) -> None:
        """The process dies and comes back; the machine stays up.

        Not after a failed sync: what the kernel then only pretends to have written, nobody else can tell.
        """
        self._region.close()
        self._region = Region.open(REGION, policy=self._policy, storage=self._disk)
        self._history.found(self._held(self._region), self._region.extent_versions()[1])

    def _crash(self) -> None:
        """The machine goes down, and comes back with what its disk kept."""
        survivor = self._disk.power_cut(self._rng, self._rng.choice(self._models))
        if self._judge(survivor)[0] is not Verdict.FINE:
            return  # counted where every cut is: damage is looked for, not built upon
        region = Region.open(REGION, policy=self._policy, storage=survivor)
        self._region.close()
        self._region, self._disk = region, survivor
        self._disk.before_change, self._disk.partial_writes = self._before_change, self._rng
        self._failed_since_flush = False
        self._history.found(self._held(region), region.extent_versions()[1])

    def _before_change(self, operation: str, path: str) -> None:
        self._operations += 1
        if self._rng.random() < self._cut_probability:
            self._cut(f"before {operation} {path}")
        if not self._flushing:
            return
        if self._policy is SyncPolicy.STAGED and self._rng.random() < 0.05 and self._region.has_room(64):
            self._write()  # the loop goes on while a flush runs
        # Failing syncs are the ones that matter: what they leave behind looks as if it were written.
        if self._rng.random() < self._failure_probability * (4 if operation == "sync" else 1):
            self.failures += 1
            self._failed_since_flush = True
            raise OSError(self._rng.choice([errno.EIO, errno.ENOSPC]), "simulated failure")

    # --- what must hold

    def _cut(self, where: str) -> None:
        if self.cuts >= self._cuts_max:
            return
        model = self._rng.choice(self._models)
        survivor = self._disk.power_cut(self._rng, model)
        verdict, detail = self._judge(survivor)
        self.verdicts[verdict] += 1
        if verdict is not Verdict.FINE:
            geometry = f"{self._definition.block_size} x {self._definition.blocks_per_extent}"
            text = f"{where}, {model.value}, {geometry}: {detail}"
            self.findings.append(Finding(verdict, self._seed, self._operations, text))

    def _judge(self, survivor: SimulatedDisk) -> tuple[Verdict, str]:
        try:
            region = Region.open(REGION, policy=self._policy, storage=survivor)
        except CrucibleError as error:
            return Verdict.DOES_NOT_OPEN, str(error)
        with region:
            _, flush_numbers, dirty = region.extent_versions()
            wrong = self._bad_extents(survivor)
            for extent_id, block in wrong:
                if not dirty[extent_id]:
                    return Verdict.CLEAN_BUT_WRONG, f"block {block} of extent {extent_id} is bad"
            if wrong:
                return Verdict.BAD_BLOCKS_DIRTY, f"extent and block {wrong[0]}"
            held = self._held(region)
        size = self._definition.blocks_per_extent
        for extent_id in np.flatnonzero(~dirty).tolist():
            expected = self._history.clean.get((extent_id, int(flush_numbers[extent_id])))
            if expected != held[extent_id * size : (extent_id + 1) * size]:
                return Verdict.CLEAN_BUT_WRONG, f"extent {extent_id}, flush {flush_numbers[extent_id]}"
        for extent_id, number in enumerate(flush_numbers.tolist()):
            if number < self._history.flush_floor[extent_id]:
                return Verdict.LOST, f"extent {extent_id} is back at flush {number}"
        for block, version in enumerate(held):
            if version not in self._history.versions[block][self._history.floor[block] :]:
                return Verdict.LOST, f"block {block}"
        return Verdict.FINE, ""

    def _held(self, region: Region) -> list[Version]:
        """What every block of a region holds; no version at all where data and context do not belong together."""
        out = bytearray(self._definition.size_bytes)
        contexts = region.read(0, self._definition.total_blocks, memoryview(out))
        rows = np.frombuffer(out, np.uint8).reshape(len(contexts), -1)
        hashes, stored = hash_blocks(rows), contexts.on_disk_hash
        assert stored is not None
        fits = (contexts.kind == EMPTY) | (hashes == stored)
        return list(zip(hashes.tolist(), np.where(fits, contexts.hash, BAD_CONTEXT).tolist()))

    def _bad_extents(self, disk: SimulatedDisk) -> list[tuple[int, int]]:
        """Extent and block wherever the stored bytes break the rules of the format (§2.9, §2.10)."""
        found = []
        for extent_id in range(self._definition.extent_count):
            for block in _bad_in_extent(disk, extent_id, self._definition):
                found.append((extent_id, block))
        return found


def _bad_in_extent(disk: SimulatedDisk, extent_id: int, definition: RegionDefinition) -> Iterator[int]:
    geometry = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    view = open_extent(disk, extent_path(REGION, extent_id), extent_id, geometry)
    try:
        yield from np.flatnonzero(bad_blocks(view.look(0, geometry.blocks))).tolist()
    finally:
        view.close()


def explore(cuts: int, policy: SyncPolicy, model: Persistence | None, first_seed: int = 0) -> PowerCutSummary:
    """Run seed after seed until so many cuts were made."""
    summary = PowerCutSummary()
    seed = first_seed
    while summary.verdicts.total() < cuts:
        run = PowerCuts(seed, policy, model, cuts_max=cuts - summary.verdicts.total())
        run.run()
        summary.add(run)
        seed += 1
    return summary


class PowerCutSummary:
    """Verdicts of many runs, and the first findings."""

    def __init__(self) -> None:
        self.runs = 0
        self._failed_since_flush = False
        self.failures = 0
        self.verdicts: Counter[Verdict] = Counter()
        self.findings: list[Finding] = []

    def add(self, run: PowerCuts) -> None:
        self.runs += 1
        self.verdicts += run.verdicts
        self.failures += run.failures
        self.findings += run.findings[: max(0, 20 - len(self.findings))]

    @property
    def all_fine(self) -> bool:
        return set(self.verdicts) <= {Verdict.FINE}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m crucible_emu.sim.power_cut", description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=10_000)
    parser.add_argument("--policy", choices=[each.value for each in SyncPolicy], default=SyncPolicy.STAGED.value)
    parser.add_argument("--model", choices=[each.value for each in Persistence], help="default: all of them in turn")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    model = None if chosen.model is None else Persistence(chosen.model)
    summary = explore(chosen.cuts, SyncPolicy(chosen.policy), model, chosen.seed)
    print(
        f"{summary.verdicts.total()} cuts in {summary.runs} runs, policy {chosen.policy}, "
        f"{chosen.model or 'all models'}; {summary.failures} operations failed in between"
    )
    for verdict in Verdict:
        print(f"  {verdict.value:<28} {summary.verdicts[verdict]}")
    for finding in summary.findings:
        print(f"  seed {finding.seed}, operation {finding.operation}: {finding.verdict.value}: {finding.detail}")
    return 0 if summary.all_fine else 1


if __name__ == "__main__":
    sys.exit(main())
