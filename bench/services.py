"""``python -m bench services``: the rates of what happens around a disk rather than in it.

``snapshots``  snapshots and clones of a region beside a plain copy (:mod:`bench.region_rates`)
``repair``     the replacement of a Downstairs under load (:mod:`bench.repair`)
``sagas``      sagas of Nexus on SQLite in memory and in a file (:mod:`bench.saga_rate`)
``explore``    cases that the explorer tries, by its own command

What it guarantees: each rate is measured or is a failure with its sentence; one that fails keeps no other from being
measured. Where there is a limit, it was measured in the same run.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import fio, repair
from bench.rate import Rate, RateError
from bench.subjects import find_program

EXPLORER = "nexus"
SCENARIO = "create-image"
EXPLORING_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. ``every``: each so many-th case of the explorer."""

    size_mib: int
    rounds: int
    sagas: int
    every: int
    seconds: float


FULL = Extent(size_mib=512, rounds=3, sagas=50, every=5, seconds=3.0)
QUICK = Extent(size_mib=64, rounds=1, sagas=5, every=30, seconds=0.5)

Measure = Callable[[Extent, Path], list[Rate]]


def snapshots(extent: Extent, folder: Path) -> list[Rate]:
    """See :mod:`bench.region_rates`."""
    from bench import region_rates

    return region_rates.rates(folder, extent.size_mib, extent.rounds)


def sagas(extent: Extent, folder: Path) -> list[Rate]:
    """See :mod:`bench.saga_rate`."""
    from bench import saga_rate

    return saga_rate.rates(folder, extent.sagas, extent.rounds)


def replacement(extent: Extent, folder: Path) -> list[Rate]:
    """See :mod:`bench.repair`: each round on a new disk."""
    found = []
    for number in range(extent.rounds):
        home = folder / str(number)
        home.mkdir()
        try:
            found.append(repair.run(home, extent.size_mib, extent.seconds))
        except (repair.RepairError, fio.FioError, OSError) as problem:
            raise RateError(f"The replacement failed: {problem}") from problem
    return [
        Rate(
            "live repair under load",
            "MiB/s",
            median(each.repair_mib_s for each in found),
            "a plain copy",
            median(each.copy_mib_s for each in found),
            median(each.repair_ratio for each in found),
        ),
        Rate(
            "random writes of the guest beside it",
            "a second",
            median(each.write_iops_beside for each in found),
            "without the repair",
            median(each.write_iops for each in found),
            median(each.write_ratio for each in found),
        ),
    ]


def explore(extent: Extent, folder: Path) -> list[Rate]:
    """Cases a second, in one process, so that the figure does not depend on the number of cores."""
    program = find_program(EXPLORER)
    if program is None:
        raise RateError(f"{EXPLORER} is not installed (pip install -e .).")
    command = [program, "explore", "--scenario", SCENARIO, "--every", str(extent.every), "--processes", "1", "--json"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=EXPLORING_S_MAX)
    except subprocess.TimeoutExpired as problem:
        raise RateError(f"The explorer did not end within {problem.timeout:.0f} s.") from problem
    return [parse_explored(done.stdout, done.stderr)]


def parse_explored(output: str, errors: str) -> Rate:
    """The rate in the document of ``nexus explore --json``. Raises :class:`RateError` where there is none."""
    try:
        found = json.loads(output)
        runs, seconds = int(found["runs"]), float(found["seconds"])
    except (ValueError, LookupError, TypeError) as problem:
        words = " ".join(errors.split())[-300:] or "it wrote nothing"
        raise RateError(f"The explorer's answer cannot be read: {words}") from problem
    if runs == 0 or seconds <= 0:
        raise RateError("The explorer tried no case.")
    return Rate(f"cases of the explorer ({SCENARIO}, one process)", "a second", runs / seconds)


MEASURES: dict[str, Measure] = {
    "snapshots": snapshots,
    "repair": replacement,
    "sagas": sagas,
    "explore": explore,
}
NEEDS_FIO = {"repair"}


@dataclass(slots=True)
class Outcome:
    """Rates, and a sentence for each group that has none."""

    rates: list[Rate] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The groups of these names, in the table's order; all for none. Raises :class:`ValueError`."""
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"--only does not know '{name}'; there are {', '.join(MEASURES)}.")
    return tuple(name for name in MEASURES if not names or name in names)


def run(
    names: Sequence[str], extent: Extent, folder: Path | None, tell: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Measure these groups one after the other, each in a temporary directory in ``folder``."""
    outcome = Outcome()
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=folder) as home:
            try:
                found = MEASURES[name](extent, Path(home))
            except RateError as problem:
                outcome.failures.append(f"{name}: {problem}")
                continue
        outcome.rates += found
        tell(f"{name} is measured")
    return outcome
