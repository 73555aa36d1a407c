"""A real process under write load, killed with SIGKILL again and again; after each time the region is checked.

What it is for: a power cut is simulated (:mod:`power_cut`), but a killed process is not: real system calls are cut off
in the middle, a 32 KiB block after its third page, a flush between two files. A child process writes and flushes a
region as fast as it can and announces on a pipe what it is about to write and what it knows to be flushed; the parent
kills it, opens the region and compares.

What must hold: the region opens, each block is one that was announced, whole, with its own context, and not older than
the last flush that was announced as done. The next child goes on with what is there.

    python -m crucible_emu.sim.process_kill --kills 100
    python -m crucible_emu.sim.process_kill --kills 20 --policy zfs --block-size 32768    # may find torn blocks
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import numpy as np

from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import BlockIndexes, RegionDefinition
from crucible_emu.integrity import BlockContexts, Rows, first_bad_block, hash_blocks
from crucible_emu.region import Region, SyncPolicy

UUID_OF_ALL = UUID("12345678-1111-2222-3333-123456789999")
EXTENTS = 3
EXTENT_BYTES = 256 * 1024
STEPS_BEFORE_KILL_MAX = 400
DELAY_S_MAX = 0.01
"""The kill comes up to this much after the step that was waited for, so that it may fall anywhere."""


def step_blocks(definition: RegionDefinition, seed: int, step: int) -> tuple[BlockIndexes, Rows]:
    """What the child with this seed writes in one step; parent and child agree on it without a word."""
    rng = np.random.default_rng([seed, step])
    total = definition.total_blocks
    count = int(rng.integers(1, min(24, total) + 1))
    if rng.random() < 0.5:
        start = int(rng.integers(0, total - count + 1))
        blocks = np.arange(start, start + count)
    else:
        blocks = rng.choice(total, count, replace=False)
    return blocks, rng.integers(0, 256, (count, definition.block_size), dtype=np.uint8)


def child(path: Path, seed: int, policy: SyncPolicy) -> None:
    """Write and flush until killed. Says ``w STEP`` before a write, ``f STEP`` when everything up to it is flushed."""

    def say(word: str, step: int) -> None:
        os.write(1, f"{word} {step}\n".encode())

    with Region.open(path, policy=policy) as region:
        flush_number = int(region.extent_versions()[1].max())
        step = 0
        while True:
            for _ in range(1 + step % 7):
                _write_step(region, seed, step, say)
                step += 1
            flush_number += 1
            covered = step - 1
            work = region.begin_flush(flush_number, 1, journal=flush_number % 4 != 0)
            thread = threading.Thread(target=work.run)
            thread.start()
            while thread.is_alive() and policy is SyncPolicy.STAGED and region.has_room(64):
                _write_step(region, seed, step, say)
                step += 1
            thread.join()
            region.finish_flush(work)
            say("f", covered)
            if step % 5 == 0:
                work = region.begin_destage()
                work.run()
                region.finish_flush(work)


def _write_step(region: Region, seed: int, step: int, say: object) -> None:
    blocks, rows = step_blocks(region.definition, seed, step)
    say("w", step)  # type: ignore[operator]
    region.write(blocks, rows, BlockContexts.plain(hash_blocks(rows)))


@dataclass
class KillReport:
    """What a run of kills found."""

    kills: int = 0
    steps: int = 0
    flushes: int = 0
    failures: list[str] = field(default_factory=list)


class Killing:
    """One region, and children that die on it."""

    def __init__(self, path: Path, block_size: int, policy: SyncPolicy, seed: int) -> None:
        self._path = path
        self._policy = policy
        self._rng = random.Random(seed)
        self._definition = RegionDefinition(block_size, EXTENT_BYTES // block_size, EXTENTS, UUID_OF_ALL)
        Region.create(path, self._definition, policy=policy).close()
        self._held = self._read()
        self.report = KillReport()

    def _read(self) -> list[int]:
        """XXH64 of every block. Raises a CrucibleError where the region does not open, ValueError at a bad block."""
        with Region.open(self._path, policy=self._policy) as region:
            out = bytearray(self._definition.size_bytes)
            contexts = region.read(0, self._definition.total_blocks, memoryview(out))
        rows = np.frombuffer(out, np.uint8).reshape(len(contexts), -1)
        bad = first_bad_block(rows, contexts)
        if bad is not None:
            raise ValueError(f"block {bad} is not what its context says")
        return hash_blocks(rows).tolist()  # type: ignore[no-any-return]

    def kill_once(self) -> None:
        """Start a child, kill it, and look at what it left."""
        seed = self._rng.randrange(2**32)
        announced, flushed = self._run_child(seed)
        self.report.kills += 1
        self.report.steps += announced + 1
        allowed = [[version] for version in self._held]
        for step in range(announced + 1):
            blocks, rows = step_blocks(self._definition, seed, step)
            for block, version in zip(blocks.tolist(), hash_blocks(rows).tolist()):
                if step <= flushed:
                    allowed[block] = [version]
                else:
                    allowed[block].append(version)
        try:
            held = self._read()
        except (CrucibleError, ValueError) as error:
            self.report.failures.append(f"kill {self.report.kills}: {error}")
            raise
        for block, version in enumerate(held):
            if version not in allowed[block]:
                self.report.failures.append(f"kill {self.report.kills}: block {block} is older than its flush")
        self._held = held

    def _run_child(self, seed: int) -> tuple[int, int]:
        """The last step that was announced, and the last that was flushed."""
        command = [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name, "--child"]
        arguments = [str(self._path), str(seed), self._policy.value]
        wanted = self._rng.randint(1, STEPS_BEFORE_KILL_MAX)
        announced = flushed = -1
        with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                announced, flushed = _heard(line, announced, flushed)
                if announced >= wanted:
                    break
            time.sleep(self._rng.random() * DELAY_S_MAX)
            process.kill()
            for line in process.stdout:
                announced, flushed = _heard(line, announced, flushed)
                self.report.flushes += line.startswith(b"f")
        if process.returncode != -9:
            raise RuntimeError(f"the writing process ended by itself, with {process.returncode}")
        return announced, flushed


def _heard(line: bytes, announced: int, flushed: int) -> tuple[int, int]:
    word, step = line.split()
    return (int(step), flushed) if word == b"w" else (announced, int(step))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m crucible_emu.sim.process_kill", description="Kill writers.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--policy", choices=[each.value for each in SyncPolicy], default=SyncPolicy.STAGED.value)
    parser.add_argument("--block-size", type=int, action="append", help="default: 512, 4096 and 32768 in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child is not None:
        child(Path(chosen.child[0]), int(chosen.child[1]), SyncPolicy(chosen.child[2]))
        return 0
    sizes = chosen.block_size or [512, 4096, 32768]
    failures = 0
    for index, size in enumerate(sizes):
        kills = chosen.kills * (index + 1) // len(sizes) - chosen.kills * index // len(sizes)
        with tempfile.TemporaryDirectory(prefix="crucible-kill-") as directory:
            killing = Killing(Path(directory, "region"), size, SyncPolicy(chosen.policy), chosen.seed + index)
            report = killing.report
            try:
                for _ in range(kills):
                    killing.kill_once()
            except (CrucibleError, ValueError) as error:
                print(f"  cannot go on: {error}")
        failures += len(report.failures)
        print(f"{size:>6} byte blocks: {report.kills} kills, {report.steps} writes, {len(report.failures)} failures")
        for failure in report.failures:
            print(f"  {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
