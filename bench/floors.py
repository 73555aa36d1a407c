"""What this disk must reach and what it aims at, as literal data, and the judgement (pure).

What it is for: a rate is judged by its ratio to somebody else's in the same round, so the same figures hold on any
machine. A *floor* must be met; a *goal* says where to go on from there.

What it guarantees: a bound is judged by the median of the rounds' ratios, and what was not measured is called so: it is
neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.rounds import Figure, Ratio, Sample, of, rate, ratio
from bench.subjects import CIPHER, ENCRYPTED, MEMORY, OURS, PEER

FLOOR, GOAL = "floor", "goal"


@dataclass(frozen=True, slots=True)
class Aim:
    """One line of the table: at least ``floor`` times the peer's rate, and the goal against one copy in memory.
    ``prototype`` is the best that a prototype without a job table and without crash safety reached over the peer."""

    line: str
    floor: float
    prototype: float
    goal: float | None


AIMS = (
    Aim("randwrite-4k-qd1", floor=1.0, prototype=1.8, goal=1.0),
    Aim("randwrite-4k-qd16", floor=3.0, prototype=5.6, goal=1.1),
    Aim("randwrite-4k-qd64", floor=3.5, prototype=6.3, goal=1.1),
    Aim("randread-4k-qd1", floor=1.0, prototype=1.1, goal=0.9),
    Aim("randread-4k-qd16", floor=1.3, prototype=2.2, goal=1.5),
    Aim("randread-4k-qd64", floor=1.4, prototype=2.1, goal=1.5),
    Aim("write-1m-qd4", floor=1.2, prototype=1.6, goal=0.75),
    Aim("read-1m-qd4", floor=1.8, prototype=2.9, goal=1.5),
    Aim("randwrite-4k-qd16-flush32", floor=1.0, prototype=2.2, goal=None),
)

LATENCY_LINES = ("randwrite-4k-qd16", "randread-4k-qd16", "randwrite-4k-qd16-flush32")
LATENCY_MOST = 1.0
"""The 99th percentile of the latency at depth 16, at most so many times the peer's."""
ENCRYPTED_LINES = ("write-1m-qd4", "read-1m-qd4")
ENCRYPTED_LEAST = 1.0
"""Encrypted, over the peer that does not encrypt."""
ENCRYPTED_LEAST_OF_CIPHER = 0.8
"""Encrypted, over what OpenSSL's cipher alone does on the cores (:mod:`bench.cipher`)."""
SECTOR_LINES = {
    "randwrite-512-qd1": "randwrite-4k-qd1",
    "randwrite-512-qd16": "randwrite-4k-qd16",
    "randwrite-512-qd64": "randwrite-4k-qd64",
    "randread-512-qd1": "randread-4k-qd1",
    "randread-512-qd16": "randread-4k-qd16",
    "randread-512-qd64": "randread-4k-qd64",
}
SECTOR_LEAST = 0.6
"""Operations a second in blocks of 512 bytes, over those in blocks of 4 KiB."""
PROCESSES_LEAST = 1.0
"""Over a process for each replica, on every line."""


@dataclass(frozen=True, slots=True)
class Bound:
    """``subject``'s figure on ``line`` over ``over``'s on ``over_line``: at least ``bound`` for a rate, at most for a
    latency (``figure`` is ``rate`` or ``p99``)."""

    kind: str
    subject: str
    line: str
    over: str
    over_line: str
    bound: float
    figure: str = "rate"


def latency_p99(sample: Sample) -> float | None:
    return sample.latency_us_p99


FIGURES: dict[str, Figure] = {"rate": rate, "p99": latency_p99}
AT_MOST = frozenset({"p99"})

BOUNDS = (
    *(Bound(FLOOR, OURS, aim.line, PEER, aim.line, aim.floor) for aim in AIMS),
    *(Bound(GOAL, OURS, aim.line, MEMORY, aim.line, aim.goal) for aim in AIMS if aim.goal is not None),
    *(Bound(FLOOR, OURS, line, PEER, line, LATENCY_MOST, "p99") for line in LATENCY_LINES),
    *(Bound(FLOOR, ENCRYPTED, line, PEER, line, ENCRYPTED_LEAST) for line in ENCRYPTED_LINES),
    *(Bound(FLOOR, ENCRYPTED, line, CIPHER, line, ENCRYPTED_LEAST_OF_CIPHER) for line in ENCRYPTED_LINES),
    *(Bound(FLOOR, f"{OURS}-512", line, OURS, wide, SECTOR_LEAST) for line, wide in SECTOR_LINES.items()),
    *(Bound(FLOOR, f"{OURS}-processes", aim.line, PEER, aim.line, PROCESSES_LEAST) for aim in AIMS),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bound and what was measured of it; ``met`` is ``None`` where nothing was."""

    bound: Bound
    ratio: Ratio | None
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "not met", None: "not measured"}[self.met]


def judge(samples: Sequence[Sample], bounds: Sequence[Bound] = BOUNDS) -> list[Verdict]:
    """A verdict on each bound, in their order; ``samples`` are the valid ones."""
    verdicts = []
    for bound in bounds:
        own, other = of(samples, bound.line, bound.subject), of(samples, bound.over_line, bound.over)
        found = ratio(own, other, FIGURES[bound.figure])
        verdicts.append(Verdict(bound, found, None if found is None else _is_met(bound, found)))
    return verdicts


def _is_met(bound: Bound, found: Ratio) -> bool:
    return found.median <= bound.bound if bound.figure in AT_MOST else found.median >= bound.bound


def of_kind(verdicts: Sequence[Verdict], which: Callable[[Bound], bool]) -> dict[str, Verdict]:
    """The verdicts on the bounds that ``which`` picks, by their lines."""
    return {verdict.bound.line: verdict for verdict in verdicts if which(verdict.bound)}
