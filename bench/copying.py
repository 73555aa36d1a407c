"""``python -m bench copy``: a whole disk to a file and back, by our asyncio client and by nbdcopy.

What it is for: both copy the same random bytes over the same socket of the same server, one after the other, round by
round. The ratio of their times says what a program loses that copies from Python instead of calling nbdcopy.

What it guarantees: within a round both directions are done by both, in an order that alternates; a file that is
written is a new one for either, and its content is checked afterwards. Our side is a process of its own that stops
its time around connecting, copying and closing (the digest that it takes on the way is included); of nbdcopy the whole
process is measured, which starts in some 10 ms. Both flush what they wrote to the disk.
"""

from __future__ import annotations

import filecmp
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.lines import MIB
from bench.subjects import OURS, SUBJECTS, Absent, find_program, running

OURS_AIO, NBDCOPY = "aio", "nbdcopy"
WITHIN_S = 600.0

SCRIPT = """
import asyncio, json, sys, time
from crucible_emu.client import aio

async def main(direction, uri, path):
    began, cpu = time.perf_counter(), time.process_time()
    async with await aio.open(uri) as disk:
        await (disk.copy_in(path) if direction == "in" else disk.copy_out(path))
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]))

asyncio.run(main(*sys.argv[1:]))
"""


class CopyError(Exception):
    """The run could not be made; the message is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the whole disk; ``cpu_seconds`` of the client alone."""

    round: int
    direction: str
    program: str
    seconds: float
    cpu_seconds: float


def by_aio(direction: str, uri: str, path: Path) -> tuple[float, float]:
    seconds, cpu_seconds = json.loads(_run([sys.executable, "-c", SCRIPT, direction, uri, str(path)]))
    return seconds, cpu_seconds


def by_nbdcopy(direction: str, uri: str, path: Path) -> tuple[float, float]:
    words = ["--flush", str(path), uri] if direction == "in" else [uri, str(path)]
    began, cpu = time.perf_counter(), _cpu_of_children()
    _run([find_program("nbdcopy") or "nbdcopy", *words])
    return time.perf_counter() - began, _cpu_of_children() - cpu


def _cpu_of_children() -> float:
    """CPU time of all children that have ended; the server has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


PROGRAMS = {OURS_AIO: by_aio, NBDCOPY: by_nbdcopy}


def run(folder: Path, size_mib: int, rounds: int) -> list[Copy]:
    """All copies of all rounds. Raises :class:`CopyError`, also where a copy is not what was copied."""
    image, target = folder / "image", folder / "copy"
    _fill(image, size_mib)
    subject = next(subject for subject in SUBJECTS if subject.name == OURS)
    found: list[Copy] = []
    try:
        with running(subject, folder, size_mib * MIB) as server:
            for number in range(rounds):
                names = list(PROGRAMS) if number % 2 == 0 else list(reversed(PROGRAMS))
                for direction in ("in", "out"):
                    for name in names:
                        target.unlink(missing_ok=True)
                        path = image if direction == "in" else target
                        seconds, cpu_seconds = PROGRAMS[name](direction, server.uri, path)
                        if direction == "out" and not filecmp.cmp(image, target, shallow=False):
                            raise CopyError(f"{name} copied out something else than what was copied in")
                        found.append(Copy(number + 1, direction, name, seconds, cpu_seconds))
    except Absent as problem:
        raise CopyError(str(problem)) from None
    return found


def summary(copies: list[Copy], size_mib: int) -> list[str]:
    """One sentence for each direction, of medians over the rounds."""
    lines = []
    for direction in ("in", "out"):
        ours, theirs = (
            [copy for copy in copies if (copy.direction, copy.program) == (direction, name)]
            for name in (OURS_AIO, NBDCOPY)
        )
        ratio = statistics.median(mine.seconds / other.seconds for mine, other in zip(ours, theirs))
        words = [
            f"{name} {(median := statistics.median(copy.seconds for copy in found)):.2f} s "
            f"({size_mib / median:,.0f} MiB/s, {statistics.median(copy.cpu_seconds for copy in found):.2f} s of CPU)"
            for name, found in (("asyncio", ours), ("nbdcopy", theirs))
        ]
        lines.append(f"copy {direction}: {', '.join(words)}, median ratio of the rounds {ratio:.2f}")
    return lines


def records(copies: list[Copy]) -> list[dict[str, object]]:
    return [asdict(copy) for copy in copies]


def _fill(path: Path, size_mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=WITHIN_S)
    except subprocess.CalledProcessError as problem:
        raise CopyError(f"{words[0]} ended with {problem.returncode}: {problem.stderr.strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise CopyError(f"{words[0]} did not end within {WITHIN_S:.0f} s") from None
    return done.stdout
