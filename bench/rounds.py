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
    """One run: rates, the server's CPU time per operation in µs, and the latency that 50, 99 and 99.9 percent of the
    operations stayed below, in µs (``None`` where it is not known)."""

    line: str
    subject: str
    round: int
    iops: float
    mib_s: float
    cpu_us: float | None = None
    latency_us_p50: float | None = None
    latency_us_p99: float | None = None
    latency_us_p999: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One run that has no figures, and why."""

    line: str
    subject: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """A subject's figure over another's: the median over the rounds, and the extremes."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the extremes are apart, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True, slots=True)
class Row:
    """One line of one subject: medians over all rounds, of the rate its extremes, too. ``ratios`` maps a reference's
    name to this subject's rate over that reference's; a reference that shares no successful round is absent."""

    line: str
    subject: str
    iops: float
    mib_s: float
    cpu_us: float | None
    rounds: int
    ratios: dict[str, Ratio]
    iops_low: float
    iops_high: float
    latency_us_p50: float | None = None
    latency_us_p99: float | None = None
    latency_us_p999: float | None = None


Measure = Callable[[Line, str, int], Sample | Failure | None]
"""Runs one line against one subject in one round; ``None`` where the subject is not asked this line."""
Figure = Callable[[Sample], float | None]
"""What of a sample is compared."""


def rate(sample: Sample) -> float:
    return sample.iops


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
                elif result is not None:
                    failures.append(result)
    return samples, failures


def ratio(own: Iterable[Sample], reference: Iterable[Sample], figure: Figure = rate) -> Ratio | None:
    """The ratio of two subjects' figures, from the rounds which both have; ``None`` where there is none."""
    by_round = {sample.round: figure(sample) for sample in reference}
    ratios = []
    for sample in own:
        mine, other = figure(sample), by_round.get(sample.round)
        if mine is not None and other:
            ratios.append(mine / other)
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None


def median_of(samples: Iterable[Sample], figure: Figure) -> float | None:
    """The median of a figure over the samples that have it; ``None`` where none has."""
    known = [value for value in map(figure, samples) if value is not None]
    return median(known) if known else None


def of(samples: Iterable[Sample], line: str, subject: str) -> list[Sample]:
    """The samples of one line and subject."""
    return [sample for sample in samples if (sample.line, sample.subject) == (line, subject)]


def summarise(
    lines: Sequence[Line], subjects: Sequence[str], samples: Sequence[Sample], references: Sequence[str]
) -> list[Row]:
    """One row for each line and subject that has a sample, in the order given."""
    rows = []
    for line in lines:
        by_name = {name: of(samples, line.name, name) for name in {*subjects, *references}}
        for subject in subjects:
            own = by_name[subject]
            if not own:
                continue
            rates = [sample.iops for sample in own]
            ratios = {name: ratio(own, by_name[name]) for name in references}
            rows.append(
                Row(
                    line=line.name,
                    subject=subject,
                    iops=median(rates),
                    mib_s=median(sample.mib_s for sample in own),
                    cpu_us=median_of(own, lambda sample: sample.cpu_us),
                    rounds=len(own),
                    ratios={name: found for name, found in ratios.items() if found is not None},
                    iops_low=min(rates),
                    iops_high=max(rates),
                    latency_us_p50=median_of(own, lambda sample: sample.latency_us_p50),
                    latency_us_p99=median_of(own, lambda sample: sample.latency_us_p99),
                    latency_us_p999=median_of(own, lambda sample: sample.latency_us_p999),
                )
            )
    return rows
