"""Which ports the agents of a rack hand out to Downstairs (apis-and-tools.md §1.5, §8.3).

What it is for: an agent gives a Downstairs a data port ``p`` out of its pool, and the repair service listens on
``p + 4000``. All agents of a rack share one address, so no agent's data or repair ports may be another's.

What it guarantees: of the pools that :func:`place` returns, and those it was told of, no two ports are equal, data or
repair. That is safe because every candidate is compared with every pool already placed, whole ranges at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crucible_emu.errors import UsageError

REPAIR_PORT_OFFSET = 4000
"""As in ``wire.constants`` (a test compares them); to import that takes longer than a command that asks a rack."""
LOW_PORT = 19000
"""As the real agent's service manifest has it."""
PORTS_MAX = 1000
"""The real agent's pool; four of them are all that fit below their own repair ports."""
PORTS_MIN = 50
PORT_MAX = 65535
SPARE_LOW_PORT = 10000
"""Where pools may begin when those above :data:`LOW_PORT` are given out."""
NONE = range(0)
CLAIM = 100
"""Racks keep out of each other's way by hundreds of ports."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The data ports ``low`` to ``low + count - 1``, and the repair ports above them."""

    low: int
    count: int

    @property
    def ranges(self) -> tuple[range, range]:
        """Data ports and repair ports."""
        data = range(self.low, self.low + self.count)
        return data, range(data.start + REPAIR_PORT_OFFSET, data.stop + REPAIR_PORT_OFFSET)

    def __contains__(self, port: int) -> bool:
        return any(port in each for each in self.ranges)

    def overlaps(self, other: Pool) -> bool:
        """Whether any port, data or repair, is in both."""
        return any(a.start < b.stop and b.start < a.stop for a in self.ranges for b in other.ranges)

    @property
    def hundreds(self) -> frozenset[int]:
        """The hundreds of ports that it reaches into, each by its number."""
        return frozenset(port // CLAIM for each in self.ranges for port in (*each[::CLAIM], each[-1]))


def ports_each(agents: int) -> int:
    """How many ports an agent gets where nobody says: 1000, or less so that all agents' pools fit side by side."""
    return max(PORTS_MIN, min(PORTS_MAX, REPAIR_PORT_OFFSET // max(1, agents)))


def place(
    wanted: int,
    count: int,
    taken: Iterable[Pool] = (),
    *,
    low: int = LOW_PORT,
    refused: frozenset[int] = frozenset(),
    system: range = NONE,
) -> list[Pool]:
    """``wanted`` pools of ``count`` ports from ``low`` on, apart from each other and from ``taken``, and outside the
    hundreds ``refused``. Raises :class:`UsageError` where they do not fit.

    *Liveness*: ports of ``system``, which are given to clients' connections, are taken when there are no others, some
    of which may be below :data:`LOW_PORT`: a Downstairs waits for its port as long as a connection has it.
    """
    if not 1 <= count <= REPAIR_PORT_OFFSET:
        raise UsageError(f"{count} ports for each agent cannot be had: take 1 to {REPAIR_PORT_OFFSET}")
    if not 1 <= low <= PORT_MAX:
        raise UsageError(f"{low} is no port to begin with: take one from 1 to {PORT_MAX}")
    found: list[Pool] = []
    placed = list(taken)
    for pool in _candidates(count, low, system):
        if len(found) == wanted:
            break
        if not any(pool.overlaps(other) for other in placed) and not pool.hundreds & refused:
            placed.append(pool)
            found.append(pool)
    if len(found) < wanted:
        raise UsageError(
            f"{wanted} agents with {count} ports each do not fit above port {low}: "
            "take fewer ports for each agent, or begin lower"
        )
    return found


def _candidates(count: int, low: int, system: range) -> Iterator[Pool]:
    """Pools in the order in which they are tried; one may come twice."""
    above = [Pool(start, count) for start in range(low, PORT_MAX - REPAIR_PORT_OFFSET - count + 2, count)]
    below = range(SPARE_LOW_PORT, LOW_PORT - count + 1, count) if low == LOW_PORT else NONE
    for pool in (*above, *(Pool(start, count) for start in below)):
        if not any(_meet(each, system) for each in pool.ranges):
            yield pool
    yield from above


def _meet(one: range, other: range) -> bool:
    return bool(one) and bool(other) and one.start < other.stop and other.start < one.stop
