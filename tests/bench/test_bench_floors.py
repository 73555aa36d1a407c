"""Floors and goals: the data against the lines and subjects there are, and the judgement by hand."""

from __future__ import annotations

import pytest

from bench import cipher
from bench.floors import AIMS, BOUNDS, FLOOR, Bound, judge, of_kind
from bench.lines import RUN, SECTOR
from bench.rounds import Ratio, Sample
from bench.subjects import ALL, CIPHER, OURS, PEER

LINE = RUN[1].name


def samples(subject: str, *rates: float, line: str = LINE, p99: float | None = None) -> list[Sample]:
    return [Sample(line, subject, turn, rate, rate / 256, None, None, p99) for turn, rate in enumerate(rates)]


def test_the_table_has_every_line_of_run() -> None:
    assert [aim.line for aim in AIMS] == [line.name for line in RUN]


def test_every_bound_is_about_something_that_can_be_measured() -> None:
    by_name = {subject.name: subject for subject in ALL}
    lines = {line.name: line for line in RUN + SECTOR}
    for bound in BOUNDS:
        assert by_name[bound.subject].serves(lines[bound.line])
        if bound.over == CIPHER:
            assert cipher.measure(lines[bound.over_line], 0.001) is not None
        else:
            assert by_name[bound.over].serves(lines[bound.over_line])


@pytest.mark.parametrize(("own", "met"), [((30, 45, 33), True), ((29, 29, 50), False)])
def test_the_median_of_ratios_decides(own: tuple[float, ...], met: bool) -> None:
    (verdict,) = judge([*samples(OURS, *own), *samples(PEER, 10, 10, 10)], [Bound(FLOOR, OURS, LINE, PEER, LINE, 3.0)])
    assert verdict.met is met
    assert verdict.word == ("met" if met else "not met")
    assert verdict.ratio == Ratio(sorted(own)[1] / 10, min(own) / 10, max(own) / 10)


def test_a_latency_must_not_be_above_its_bound() -> None:
    bound = Bound(FLOOR, OURS, LINE, PEER, LINE, 1.0, "p99")
    assert [
        judge([*samples(OURS, 1, p99=own), *samples(PEER, 1, p99=100)], [bound])[0].met for own in (99, 100, 101)
    ] == [True, True, False]


def test_small_blocks_are_judged_by_the_larger_ones_of_the_same_round() -> None:
    bound = next(bound for bound in BOUNDS if bound.subject == f"{OURS}-512" and bound.line == "randread-512-qd16")
    found = [*samples(bound.subject, 5, 70, line=bound.line), *samples(OURS, 10, 100, line="randread-4k-qd16")]
    (verdict,) = judge(found, [bound])
    assert verdict.ratio == Ratio(0.6, 0.5, 0.7)
    assert verdict.met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    for found in ([], samples(OURS, 5), samples(PEER, 5), [*samples(OURS, 5), *samples(PEER, 5, line=RUN[0].name)]):
        (verdict,) = judge(found, [Bound(FLOOR, OURS, LINE, PEER, LINE, 1.0)])
        assert (verdict.met, verdict.ratio, verdict.word) == (None, None, "not measured")


def test_verdicts_are_found_by_their_lines() -> None:
    verdicts = judge([])
    assert set(of_kind(verdicts, lambda bound: bound.kind == FLOOR and bound.over == PEER)) == {
        aim.line for aim in AIMS
    }
