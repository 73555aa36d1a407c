"""The bench's arithmetic: interleaved rounds, medians, ratios, and what it must never hide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lines import MORE, QUICK, choose
from bench.rounds import Failure, Ratio, Sample, interleave, ratio, rotated, summarise

NAMES = ("ours", "peer", "memory")
LINES = QUICK[:2]


def sample(subject: str, turn: int, iops: float, line: str = LINES[0].name, cpu_us: float | None = None) -> Sample:
    return Sample(line, subject, turn, iops, iops / 256, cpu_us)


def test_each_round_runs_each_line_with_each_subject_once() -> None:
    asked: list[tuple[int, str, str]] = []

    def measure(line, name, turn):
        asked.append((turn, line.name, name))
        return sample(name, turn, 1, line.name)

    interleave(LINES, NAMES, 3, measure)
    assert sorted(asked) == sorted((turn, line.name, name) for turn in range(3) for line in LINES for name in NAMES)
    # Subjects alternate within a line: no subject runs twice before the others ran once.
    for start in range(0, len(asked), len(NAMES)):
        block = asked[start : start + len(NAMES)]
        assert len({(turn, line) for turn, line, _ in block}) == 1
        assert {name for *_, name in block} == set(NAMES)
    # And in each round another one goes first.
    assert [asked[turn * 6][2] for turn in range(3)] == list(NAMES)


@given(count=st.integers(1, 6), turn=st.integers(0, 20))
def test_rotation_keeps_everybody(count: int, turn: int) -> None:
    names = [str(number) for number in range(count)]
    assert sorted(rotated(names, turn)) == sorted(names)
    assert rotated(names, turn)[0] == names[turn % count]


def test_slow_subject_shows_however_the_machine_drifts() -> None:
    """A subject slowed to a third shows as a third, though every round runs on a machine half as fast as the last."""
    machine = 1000.0
    speed = {"ours": 1 / 3, "peer": 1.0, "memory": 4.0}

    def measure(line, name, turn):
        return sample(name, turn, machine / 2**turn * speed[name], line.name)

    samples, failures = interleave(LINES, NAMES, 5, measure)
    rows = summarise(LINES, NAMES, samples, ("peer", "memory"))
    assert failures == []
    ours = [row for row in rows if row.subject == "ours"]
    assert [row.line for row in ours] == [line.name for line in LINES]
    for row in ours:
        assert row.ratios["peer"].median == pytest.approx(1 / 3)
        assert row.ratios["memory"].median == pytest.approx(1 / 12)
        assert row.iops == pytest.approx(1000 / 4 / 3)


def test_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    own = [sample("ours", 0, 10), sample("ours", 1, 60), sample("ours", 2, 30)]
    peer = [sample("peer", 0, 10), sample("peer", 1, 20), sample("peer", 2, 15)]
    assert ratio(own, peer) == Ratio(median=2.0, low=1.0, high=3.0)


def test_ratio_uses_common_rounds_only() -> None:
    own = [sample("ours", 0, 10), sample("ours", 1, 1)]
    assert ratio(own, [sample("peer", 0, 5)]) == Ratio(2.0, 2.0, 2.0)
    assert ratio(own, [sample("peer", 7, 5)]) is None


def test_failure_is_kept_and_never_counted_as_zero() -> None:
    def measure(line, name, turn):
        if name == "ours" and turn == 1:
            return Failure(line.name, name, turn, "it fell over")
        return sample(name, turn, 100, line.name)

    samples, failures = interleave(LINES[:1], NAMES, 3, measure)
    assert [(one.subject, one.round) for one in failures] == [("ours", 1)]
    row = next(row for row in summarise(LINES, NAMES, samples, ("peer",)) if row.subject == "ours")
    assert (row.iops, row.rounds, row.ratios["peer"].median) == (100, 2, 1.0)


def test_reference_that_did_not_run_gives_no_ratio() -> None:
    rows = summarise(LINES, ["ours"], [sample("ours", 0, 5, cpu_us=7.0)], ("peer",))
    assert [(row.ratios, row.cpu_us) for row in rows] == [({}, 7.0)]


def test_lines_are_chosen_by_name_and_pattern() -> None:
    assert choose([]) == QUICK
    assert [line.name for line in choose(["read-1m-qd4", "randread-*"])] == [
        "randread-4k-qd1",
        "randread-4k-qd16",
        "randread-4k-qd64",
        "read-1m-qd4",
    ]
    assert choose(["*flush32"]) == MORE
    with pytest.raises(ValueError, match=r"No line is called 'randwrite'; there are randwrite-4k-qd1, "):
        choose(["randwrite"])
