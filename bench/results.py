"""Everything that a run found out, as one document: ``results.json``, written and read again.

What it guarantees: what was written can be read back and judged again, for every single sample is in it. A file that
is no such document is refused with one sentence that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from bench.floors import Verdict, judge
from bench.lines import Line
from bench.machine import Machine
from bench.report import Outcome
from bench.rounds import Failure, Row, Sample
from bench.subjects import CIPHER, PEER, Subject, is_ours

FILE = "results.json"
KIND: Literal["bench run"] = "bench run"
VERSION: Literal[1] = 1


class ResultsError(Exception):
    """A file holds no results; the message is the sentence that says so."""


@dataclass(frozen=True, slots=True)
class Described:
    """A subject in words: what it is and what it does not do. ``copies`` in files; ``block_bytes``: its smallest."""

    name: str
    what: str
    lacks: tuple[str, ...]
    copies: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run was asked to do."""

    rounds: int
    seconds: float
    size_mib: int
    lines: tuple[Line, ...]
    subjects: tuple[Described, ...]

    @property
    def command(self) -> str:
        """The command that asks the same again."""
        names = [subject.name for subject in self.subjects]
        own = ",".join(name for name in names if is_ours(name))
        others = ",".join(name for name in names if not is_ours(name) and name != CIPHER)
        return (
            f"python -m bench run --rounds {self.rounds} --seconds {self.seconds:g} --size-mib {self.size_mib} "
            f"--subjects {own} --against {others} --lines {','.join(line.name for line in self.lines)} --out DIR"
        )


@dataclass(frozen=True, slots=True)
class Noise:
    """How far apart the rounds were, as shares of the median (0.1: the best round was a tenth above the worst): the
    median over all lines and subjects, of the rates and of the ratios to the peer. ``None`` for a single round."""

    rate_spread: float | None
    ratio_spread: float | None


@dataclass(frozen=True, slots=True)
class Results:
    """A run. ``invalid`` are the samples of the disqualified, which are part of no figure; ``commit`` is that of this
    disk's program, ``changed`` whether its files differed from it."""

    kind: Literal["bench run"]
    version: Literal[1]
    date: str
    machine: Machine
    commit: str | None
    changed: bool
    programs: dict[str, str]
    asked: Asked
    noise: Noise
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    absent: dict[str, str]
    disqualified: dict[str, str]
    failures: tuple[Failure, ...]
    samples: tuple[Sample, ...]
    invalid: tuple[Sample, ...]

    @property
    def measured(self) -> list[str]:
        """The subjects that have figures, in their order."""
        found = {row.subject for row in self.rows}
        return [subject.name for subject in self.asked.subjects if subject.name in found]


DOCUMENT = TypeAdapter(Results)


def describe(subject: Subject) -> Described:
    return Described(subject.name, subject.what, subject.lacks, subject.copies, subject.block_bytes)


CIPHER_ALONE = Described(
    CIPHER,
    "AES-256-GCM-SIV by OpenSSL on all cores; the disk has BoringSSL's",
    ("anything else: no disk, no network, no hashes",),
    0,
    4096,
)
"""The ceiling of an encrypted disk, which takes part where one does."""


def spread(rows: Iterable[Row]) -> Noise:
    """The noise in these rows."""
    several = [row for row in rows if row.rounds > 1]
    rates = [(row.iops_high - row.iops_low) / row.iops for row in several]
    ratios = [row.ratios[PEER].spread for row in several if PEER in row.ratios and row.subject != PEER]
    return Noise(*(round(median(values), 3) if values else None for values in (rates, ratios)))


def gather(
    outcome: Outcome,
    asked: Asked,
    machine: Machine,
    commit: tuple[str | None, bool],
    programs: dict[str, str],
    date: str,
    clean: Callable[[str], str],
) -> Results:
    """The document of a run; ``clean`` takes out of complaints what is nobody's business."""
    return Results(
        kind=KIND,
        version=VERSION,
        date=date,
        machine=machine,
        commit=commit[0],
        changed=commit[1],
        programs={name: clean(said) for name, said in programs.items()},
        asked=asked,
        noise=spread(outcome.rows),
        rows=tuple(outcome.rows),
        verdicts=tuple(judge(outcome.samples)),
        absent={name: clean(reason) for name, reason in outcome.absent.items()},
        disqualified={name: clean(complaint) for name, complaint in outcome.disqualified.items()},
        failures=tuple(Failure(one.line, one.subject, one.round, clean(one.reason)) for one in outcome.failures),
        samples=tuple(outcome.samples),
        invalid=tuple(outcome.invalid),
    )


def write(results: Results, folder: Path) -> None:
    """Write ``results.json`` into ``folder``."""
    (folder / FILE).write_bytes(DOCUMENT.dump_json(results, indent=2) + b"\n")


def read(path: Path) -> Results:
    """The results in a file, or in the ``results.json`` of a folder. Raises :class:`ResultsError`."""
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_bytes()
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise ResultsError(f"{file} cannot be read ({reason}): give a {FILE} or the folder that has it") from None
    try:
        return DOCUMENT.validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise ResultsError(f"{file} holds no results of 'bench run' ({what}): give a {FILE} or its folder") from None
