"""The interleaving, the medians and the ratios: pure, so that the bench's honesty can be tested with fakes.

What it guarantees: in a round every subject runs every line, one right after the other, and who goes first changes
from round to round, so that no subject always runs on a machine that the one before it has just tired. A ratio is
taken between two runs of the same round and line, and only then is the median taken: a machine that slows down to
half from one round to the next moves every rate and no ratio.

A run that fails is a :class:`Failure` beside the figures. It is never counted as zero, never repeated until it
succeeds, and never left out of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.lines import Line


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: rates, and the server's CPU time per operation in µs (``None`` where it is not known)."""

    line: str
    subject: str
    round: int
    iops: float
    mib_s: float
    cpu_us: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One run that has no figures, and why."""

    line: str
    subject: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """A subject's rate over another's: the median over the rounds, and the extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of one subject over all rounds. ``ratios`` maps a reference's name to this subject's rate over that
    reference's; a reference that shares no successful round is absent."""

    line: str
    subject: str
    iops: float
    mib_s: float
    cpu_us: float | None
    rounds: int
    ratios: dict[str, Ratio]


Measure = Callable[[Line, str, int], Sample | Failure]
"""Runs one line against one subject in one round."""


def rotated(subjects: Sequence[str], turn: int) -> list[str]:
    """The order of a round: ``subjects``, begun ``turn`` places later."""
    start = turn % len(subjects) if subjects else 0
    return [*subjects[start:], *subjects[:start]]


def interleave(
    lines: Sequence[Line], subjects: Sequence[str], rounds: int, measure: Measure
) -> tuple[list[Sample], list[Failure]]:
    """Run everything; see the module for the order."""
    samples: list[Sample] = []
    failures: list[Failure] = []
    for turn in range(rounds):
        for line in lines:
            for subject in rotated(subjects, turn):
                result = measure(line, subject, turn)
                if isinstance(result, Sample):
                    samples.append(result)
                else:
                    failures.append(result)
    return samples, failures


def ratio(own: Iterable[Sample], reference: Iterable[Sample]) -> Ratio | None:
    """The ratio of two subjects in one line, from the rounds which both have; ``None`` where there is none."""
    by_round = {sample.round: sample.iops for sample in reference}
    ratios = [sample.iops / by_round[sample.round] for sample in own if sample.round in by_round]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None


def summarise(
    lines: Sequence[Line], subjects: Sequence[str], samples: Sequence[Sample], references: Sequence[str]
) -> list[Row]:
    """One row for each line and subject that has a sample, in the order given."""
    rows = []
    for line in lines:
        of = {
            name: [sample for sample in samples if sample.line == line.name and sample.subject == name]
            for name in {*subjects, *references}
        }
        for subject in subjects:
            own = of[subject]
            if not own:
                continue
            cpu = [sample.cpu_us for sample in own if sample.cpu_us is not None]
            ratios = {name: ratio(own, of[name]) for name in references}
            rows.append(
                Row(
                    line=line.name,
                    subject=subject,
                    iops=median(sample.iops for sample in own),
                    mib_s=median(sample.mib_s for sample in own),
                    cpu_us=median(cpu) if cpu else None,
                    rounds=len(own),
                    ratios={name: found for name, found in ratios.items() if found is not None},
                )
            )
    return rows
