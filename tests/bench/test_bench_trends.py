"""How growth is judged: by hand-made points."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.limits import GIB, LIMITS, MEMORY, NOISE, PER_EXTENT, PER_OPERATION, Ceiling, Growth
from bench.trends import Point, exponent, judge, last_to_first

CAUSES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)


def points(value: Callable[[float], float]) -> list[Point]:
    return [Point(cause, value(cause)) for cause in CAUSES]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_is_that_of_the_power(power: float) -> None:
    assert exponent(points(lambda cause: 3 * cause**power)) == pytest.approx(power)
    assert last_to_first(points(lambda cause: 3 * cause**power)) == (pytest.approx(1e4), pytest.approx(1e4**power))


def test_nothing_is_claimed_of_too_few_points() -> None:
    assert exponent([Point(1, 5)]) is None
    assert exponent([Point(1, 5), Point(1, 6)]) is None
    assert last_to_first([Point(1, 5), Point(2, 0)]) is None
    assert judge(PER_OPERATION, "write_cpu_us", [Point(1, 5)]).met is None
    assert judge(MEMORY, "idle_memory_mib", []).met is None


@pytest.mark.parametrize(
    ("limit", "value", "met"),
    [
        (PER_OPERATION, lambda cause: 20.0, True),
        (PER_OPERATION, lambda cause: 20.0 if cause < 100 else 20.0 * NOISE, True),
        (PER_OPERATION, lambda cause: 20.0 + cause / 100, False),
        (PER_EXTENT, lambda cause: 0.5 + 2e-5 * cause, True),
        (PER_EXTENT, lambda cause: 3 * cause, True),
        (PER_EXTENT, lambda cause: cause**1.3, False),
    ],
)
def test_growth_is_held_against_its_cause(limit: Growth, value: Callable[[float], float], met: bool) -> None:
    assert judge(limit, "figure_us", points(value)).met is met


def test_a_square_below_a_floor_is_found_at_the_end() -> None:
    """As a whole it rises by less than its cause."""
    steep = points(lambda cause: 0.5 + 1e-7 * cause**2)
    ratios = last_to_first(steep)
    assert ratios is not None
    assert ratios[1] < ratios[0]
    steep.append(Point(100_000, 0.5 + 1e-7 * 100_000**2))
    found = judge(PER_EXTENT, "opening_s", steep)
    assert found.met is False
    assert "last 3 points" in found.sentence


def test_memory_may_grow_with_the_disk_and_no_more() -> None:
    limit = Ceiling(64, 0.001)
    at_limit = 64 + 1.024 * 100
    assert judge(limit, "idle_memory_mib", [Point(100, at_limit, 100 * GIB)]).met is True
    beyond = judge(limit, "idle_memory_mib", [Point(1, 60, GIB), Point(100, at_limit + 1, 100 * GIB)])
    assert beyond.met is False
    assert beyond.sentence == "at most 166.4 MiB: 167.4 at the cause 100"


def test_every_limit_is_of_a_figure_with_a_unit() -> None:
    for series, figures in LIMITS.items():
        for figure, limits in figures.items():
            assert figure.endswith(("_s", "_us", "_mib")), f"{series}: {figure}"
            assert limits
