"""Random histories of one Upstairs over three model Downstairs, thousands of them, each repeatable by its seed.

What it is for: connections that drop, processes that stall, crash and lose, answers that are errors, activations,
deactivations, take-overs and replacements, in any order and at any moment, while a guest works. Each block is checked
as a register, each message against the protocol, and after the healing everything must come to rest
(:mod:`crucible_emu.sim.upstairs`). No file, no socket, no real time: some 30 ms a history.

A failure names the command that repeats it; ``-v`` prints a line per step and message, ``--steps`` cuts the history
short.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from crucible_emu.sim.trio_seed import seeded_scheduling
from crucible_emu.sim.upstairs.history import History
from crucible_emu.sim.upstairs.world import Violation

COMMAND = "python -m crucible_emu.sim.random_upstairs"
CHUNK = 50
SHOWN_MAX = 20


@dataclass(slots=True)
class Verdict:
    """What came of one seed. ``failure`` is ``None`` where everything held."""

    seed: int
    failure: str | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.failure}\n  again: {COMMAND} --seed {self.seed} -v"


def run_seed(seed: int, steps: int | None = None, trace: Callable[[str], None] | None = None) -> Verdict:
    """Run the history of ``seed``, at most ``steps`` long; ``trace`` receives what happens, line by line."""
    history = History(seed, steps, trace)
    world = history.world
    try:
        with _quiet(), seeded_scheduling(seed):
            trio.run(history.run, clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        others = group.split(Violation)[1]
        if world.failure is None or others is not None:
            if others is not None and others.split(KeyboardInterrupt)[0] is not None:
                raise
            world.failure = _where(group)
    return Verdict(seed, world.failure, world.counts)


def _where(group: BaseExceptionGroup[BaseException]) -> str:
    """The innermost exception and its place: the Upstairs itself broke."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"


def run_seeds(first: int, count: int, processes: int) -> Iterator[Verdict]:
    """The verdicts of ``count`` seeds, in order."""
    seeds = range(first, first + count)
    if processes == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=CHUNK)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without logs: most of what they would say is what the histories are made of."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--steps", type=int, help="with --seed: at most so many steps")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: print what happens")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        verdict = run_seed(chosen.seed, chosen.steps, print if chosen.verbose else None)
        print(f"seed {chosen.seed}: {verdict.failure or 'all held'}")
        return 1 if verdict.failure else 0
    began, failures, counts = time.monotonic(), 0, Counter[str]()
    for verdict in run_seeds(chosen.first, chosen.seeds, chosen.processes):
        counts.update(verdict.counts)
        if verdict.failure is not None:
            failures += 1
            if failures <= SHOWN_MAX:
                print(verdict, flush=True)
    elapsed_s = time.monotonic() - began
    print(f"{chosen.seeds} histories in {elapsed_s:.0f} s ({elapsed_s / chosen.seeds * 1000:.1f} ms each), ", end="")
    print(f"{failures} failures")
    print("  " + ", ".join(f"{what} {number}" for what, number in sorted(counts.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
