"""What is asked of a disk: one fio line each, as literal data.

What it is for: the names here are those of the report, of ``--lines`` and of the records. A line says what it asks
and nothing about who is asked, so every subject gets the same one.

Random lines count operations (4 KiB each) and sequential ones bytes (1 MiB pieces). Depth 1 shows what one request
costs from end to end, 16 what an ordinary guest sees, 64 what batching yields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Line:
    """One fio line. ``rw`` is fio's word; ``flush_every`` asks for a flush after so many writes, 0 for never."""

    name: str
    rw: str
    block_bytes: int
    depth: int
    flush_every: int = 0

    @property
    def sequential(self) -> bool:
        """Whether the line is reported in MiB/s rather than in operations per second."""
        return not self.rw.startswith("rand")

    @property
    def writes(self) -> bool:
        """Whether the line leaves something to flush."""
        return self.rw.endswith("write")


QUICK = (
    Line("randwrite-4k-qd1", "randwrite", 4 * KIB, 1),
    Line("randwrite-4k-qd16", "randwrite", 4 * KIB, 16),
    Line("randwrite-4k-qd64", "randwrite", 4 * KIB, 64),
    Line("randread-4k-qd1", "randread", 4 * KIB, 1),
    Line("randread-4k-qd16", "randread", 4 * KIB, 16),
    Line("randread-4k-qd64", "randread", 4 * KIB, 64),
    Line("write-1m-qd4", "write", MIB, 4),
    Line("read-1m-qd4", "read", MIB, 4),
)
"""The lines of ``bench quick``."""

MORE = (Line("randwrite-4k-qd16-flush32", "randwrite", 4 * KIB, 16, flush_every=32),)
"""Lines that ``bench quick`` runs when asked for by name."""

RUN = QUICK + MORE
"""The lines of ``bench run``: those of the table of floors."""

SECTOR = (
    Line("randwrite-512-qd1", "randwrite", 512, 1),
    Line("randwrite-512-qd16", "randwrite", 512, 16),
    Line("randwrite-512-qd64", "randwrite", 512, 64),
    Line("randread-512-qd1", "randread", 512, 1),
    Line("randread-512-qd16", "randread", 512, 16),
    Line("randread-512-qd64", "randread", 512, 64),
)
"""Lines in blocks of 512 bytes, asked of those that serve such blocks."""

FILL = Line("fill", "write", 64 * KIB, 4)
"""How every disk is filled before it is measured: in pieces of 64 KiB. A file that was filled in larger pieces sits
in the page cache in larger folios, and each small overwrite then dirties, and writes back, many times its size."""

WARM = Line("warm", "read", MIB, 4)
"""How every disk is read, once and unmeasured, before a line that reads: what is measured is what is in memory. Some
machines take files out of memory within seconds, and then the rate says how long ago somebody was asked last."""


def verifying(block_bytes: int) -> Line:
    """How a disk that will be measured in blocks of this size is verified before."""
    return Line(f"verify-{block_bytes}", "randwrite", block_bytes, 16)


def choose(patterns: Sequence[str], usual: tuple[Line, ...] = QUICK, more: tuple[Line, ...] = MORE) -> tuple[Line, ...]:
    """The lines that ``patterns`` name (``randread-*`` and the like), in the table's order; the ``usual`` ones for no
    pattern, and ``more`` are there to be named.

    Raises :class:`ValueError`, whose text lists the names, where a pattern fits no line.
    """
    if not patterns:
        return usual
    table = usual + more
    for pattern in patterns:
        if not any(fnmatchcase(line.name, pattern) for line in table):
            known = ", ".join(line.name for line in table)
            raise ValueError(f"No line is called '{pattern}'; there are {known}.")
    return tuple(line for line in table if any(fnmatchcase(line.name, pattern) for pattern in patterns))
