"""How a figure grows with its cause, and whether that is within its limits. Pure.

What it is for: a series is a handful of points (cause, figure). :func:`exponent` says how steep they are as a whole,
:func:`judge` holds them against a limit of :mod:`bench.limits`.

What it guarantees: a growth is judged twice, from the first point to the last and over the last three. For a cost of
half a second and a hundredth of a microsecond times the square of the cause rises hardly at all as a whole, and yet
ends faster than its cause; the last points show it. A limit that no point can answer is "not measured", never "met".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.limits import MIB, NOISE, Ceiling, Growth, Limit

TAIL_POINTS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: the cause, what was found, and how large the disk was (0 where that says nothing)."""

    cause: float
    value: float
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit of one figure. ``met`` is ``None`` where nothing was measured that could say so."""

    sentence: str
    met: bool | None


def usable(points: Sequence[Point]) -> list[Point]:
    """Points that a logarithm can be taken of, by cause."""
    return sorted((each for each in points if each.cause > 0 and each.value > 0), key=lambda each: each.cause)


def exponent(points: Sequence[Point]) -> float | None:
    """The slope of the line of best fit through the logarithms: 0 = does not grow, 1 = grows as its cause. ``None``
    for fewer than two causes."""
    kept = usable(points)
    across = [math.log(each.cause) for each in kept]
    up = [math.log(each.value) for each in kept]
    if len(set(across)) < 2:
        return None
    middle, height = sum(across) / len(across), sum(up) / len(up)
    slope = sum((x - middle) * (y - height) for x, y in zip(across, up))
    return slope / sum((x - middle) ** 2 for x in across)


def last_to_first(points: Sequence[Point]) -> tuple[float, float] | None:
    """How many times the cause and the figure of the first point those of the last are."""
    kept = usable(points)
    if len(kept) < 2 or kept[0].cause == kept[-1].cause:
        return None
    return kept[-1].cause / kept[0].cause, kept[-1].value / kept[0].value


def in_unit(figure: str, size_bytes: float) -> float:
    """A number of bytes in the unit that ends the figure's name: MiB, or bytes."""
    return size_bytes / MIB if figure.endswith("_mib") else size_bytes


def judge(limit: Limit, figure: str, points: Sequence[Point]) -> Verdict:
    """Whether a figure's points keep a limit, with the numbers that say so."""
    if isinstance(limit, Growth):
        return _judge_growth(limit, points)
    return _judge_ceiling(limit, figure, points)


def _judge_growth(limit: Growth, points: Sequence[Point]) -> Verdict:
    kept = usable(points)
    said = "does not grow" if limit.exponent == 0 else "grows at most as its cause"
    steps = [kept, kept[-TAIL_POINTS:]] if len(kept) > TAIL_POINTS else [kept]
    excess = 0.0
    found = ""
    for part in steps:
        ratios = last_to_first(part)
        if ratios is None:
            return Verdict(f"{said}: not measured, it takes two points", None)
        cause, value = ratios
        # How much faster than allowed: 1 is exactly as its cause.
        times: float = value / cause**limit.exponent
        if times > excess:
            excess = times
            found = f"{value:,.3g} times at {cause:,.3g} times the cause"
            found += "" if part is kept else f" (last {TAIL_POINTS} points)"
    return Verdict(f"{said}: {found}; up to {NOISE:g} times as much is noise", excess <= NOISE)


def _judge_ceiling(limit: Ceiling, figure: str, points: Sequence[Point]) -> Verdict:
    if not points:
        return Verdict("not measured", None)

    def over(point: Point) -> float:
        return point.value / limit.at(in_unit(figure, point.disk_bytes))

    worst = max(points, key=over)
    allowed = limit.at(in_unit(figure, worst.disk_bytes))
    unit = figure.rpartition("_")[2].replace("mib", "MiB")
    found = f"{worst.value:,.4g} at the cause {worst.cause:,.0f}"
    return Verdict(f"at most {allowed:,.4g} {unit}: {found}", over(worst) <= 1)
