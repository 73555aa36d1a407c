"""What one process has used: processor time to the nanosecond, memory as the kernel counts it.

What it guarantees: the CPU time is that of all threads, ended ones included, read from the process's own clock, so
that an operation of some microseconds can be told from none (the counters in ``/proc/PID/stat`` move in steps of 10
ms). Memory is the proportional set size: pages that several processes share (the interpreter's) are divided among
them, so that it falls where others run the same program; the resident set beside it does not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.limits import MIB

_SCHEDULED = 2
"""The kind of a process's clock that counts time on a processor, user's and system's (Linux, ``CPUCLOCK_SCHED``)."""


class GoneError(Exception):
    """The process is not there any more, or may not be looked at; the message says which."""


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB: resident set, and proportional set."""

    resident_mib: float
    proportional_mib: float


def cpu_clock(process: int) -> int:
    """The number of the clock that counts a process's CPU time, for :func:`time.clock_gettime`."""
    return (~process << 3) | _SCHEDULED


def cpu_seconds(process: int) -> float:
    """CPU time that a process has used so far. Raises :class:`GoneError`."""
    try:
        return time.clock_gettime(cpu_clock(process))
    except OSError as problem:
        raise GoneError(f"process {process} has no clock: {problem.strerror}.") from problem


def parse_memory(text: str) -> Memory:
    """Read ``/proc/PID/smaps_rollup``. Raises :class:`GoneError` where it does not hold both numbers."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = int(rest.split()[0]) * 1024 / MIB
    if len(found) < 2:
        raise GoneError("The kernel does not say how much memory the process has.")
    return Memory(found["Rss"], found["Pss"])


def memory(process: int, proc: Path = Path("/proc")) -> Memory:
    """The memory of a process now. Raises :class:`GoneError`."""
    try:
        return parse_memory((proc / str(process) / "smaps_rollup").read_text())
    except OSError as problem:
        raise GoneError(f"The memory of process {process} cannot be read: {problem.strerror}.") from problem
