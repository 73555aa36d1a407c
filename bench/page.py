"""What stands in the report of ``bench run``: from the results to a document (pure).

What it guarantees: the floors come first, met or not; each ratio has its range over the rounds beside it. Whoever is
missing or disqualified and every run that failed is named in the report, and what each subject does not do stands in
the same table as what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import charts, report
from bench.document import Block, Bullets, Code, Heading, Paragraph, Picture, Table
from bench.floors import AIMS, FLOOR, GOAL, Verdict, of_kind
from bench.lines import Line
from bench.results import Results
from bench.rounds import Row
from bench.subjects import MEMORY, OURS, PEER

TITLE = "This disk and its peers under the same load"
NOTHING = report.NOTHING


def page(results: Results) -> list[Block]:
    """The report."""
    return [
        Heading(TITLE, 1),
        *introduction(results),
        *floors(results),
        *rates(results),
        *latencies(results),
        *cpu_times(results),
        *who(results),
        *what_is_missing(results),
        *where(results),
    ]


def introduction(results: Results) -> list[Block]:
    asked = results.asked
    return [
        Paragraph(
            f"Every subject got the same fio lines over a unix socket, {asked.rounds} rounds of {asked.seconds:g} s "
            f"each, on disks of {asked.size_mib} MiB, in turns. A rate is the median of the rounds; a ratio is taken "
            "within a round, where the machine's mood is the same for both, and then the median of the rounds: ratios "
            "may be compared with those of another machine, rates may not. Before and after, every disk was verified."
        ),
        Paragraph(noise(results)),
    ]


def noise(results: Results) -> str:
    """How noisy the machine was, in a sentence."""
    machine, found = results.machine, results.noise
    said = report.conditions(machine.load_before, machine.cores, f"{machine.system} {machine.kernel}")
    if found.rate_spread is None:
        return f"{said}. One round shows no noise."
    sentence = f"{said}. From the worst round to the best, rates differ by {found.rate_spread:.0%} of their median"
    if found.ratio_spread is None:
        return f"{sentence}."
    return f"{sentence}, ratios to {PEER} by {found.ratio_spread:.0%} (half of the lines by more, half by less)."


def measured(verdict: Verdict | None) -> str:
    """A ratio with its range."""
    if verdict is None or verdict.ratio is None:
        return NOTHING
    return f"{verdict.ratio.median:.2f} ({verdict.ratio.low:.2f}–{verdict.ratio.high:.2f})"


def tally(kind: str, verdicts: Sequence[Verdict]) -> str:
    """How many bounds of a kind are met."""
    of_it = [verdict for verdict in verdicts if verdict.bound.kind == kind and verdict.met is not None]
    return f"{sum(verdict.met is True for verdict in of_it)} of {len(of_it)} {kind}s that were measured are met"


def floors(results: Results) -> list[Block]:
    """The table of floors, then the bounds that are not in it and were measured."""
    floor = of_kind(results.verdicts, lambda b: (b.kind, b.subject, b.figure) == (FLOOR, OURS, "rate"))
    goal = of_kind(results.verdicts, lambda b: (b.kind, b.subject) == (GOAL, OURS))
    rows = []
    for aim in AIMS:
        own, further = floor.get(aim.line), goal.get(aim.line)
        rows.append(
            [
                aim.line,
                f"{aim.floor:g}",
                measured(own),
                NOTHING if own is None else own.word,
                f"{aim.prototype:g}",
                NOTHING if aim.goal is None else f"{aim.goal:g}",
                measured(further),
                NOTHING if further is None else further.word,
            ]
        )
    in_table = {id(verdict) for verdict in (*floor.values(), *goal.values())}
    others = [each for each in results.verdicts if id(each) not in in_table and each.met is not None]
    head = ["line", f"floor × {PEER}", "measured", "", "best prototype", f"goal × {MEMORY}", "measured", ""]
    blocks: list[Block] = [
        Heading("Floors and goals"),
        Paragraph(
            f"{OURS} over {PEER}, which mirrors to three files as well, and over {MEMORY}, which keeps one copy in "
            f"memory; in brackets the range over the rounds. {tally(FLOOR, results.verdicts)}, "
            f"{tally(GOAL, results.verdicts)}. The prototypes had no job table and no crash safety."
        ),
        Table(head, rows, words=frozenset({0, 3, 7})),
    ]
    if others:
        blocks.append(Table(["bound", "measured", ""], [further_bound(each) for each in others], frozenset({0, 2})))
    return blocks


def further_bound(verdict: Verdict) -> list[str]:
    """A bound in words, what was measured, and whether it is met."""
    bound = verdict.bound
    side, what = ("at most", "99th percentile of latency") if bound.figure == "p99" else ("at least", "rate")
    over = bound.over if bound.over_line == bound.line else f"{bound.over} in {bound.over_line}"
    words = f"{bound.subject}, {bound.line}: {what} {side} {bound.bound:g} × that of {over}"
    return [words, measured(verdict), verdict.word]


def by_line(results: Results, cell: Callable[[Line, Row], str]) -> Table:
    """A row for each line, a column for each subject."""
    rows = {(row.line, row.subject): row for row in results.rows}
    names = results.measured
    cells = [
        [line.name, *(NOTHING if (row := rows.get((line.name, name))) is None else cell(line, row) for name in names)]
        for line in results.asked.lines
    ]
    return Table(["line", *names], cells)


def pictures(results: Results, files: Sequence[tuple[str, str, bool]]) -> list[Block]:
    """Pictures (file, caption) as far as there are lines for them."""
    return [Picture(file, caption) for file, caption, wanted in files if wanted and results.rows]


def rates(results: Results) -> list[Block]:
    kinds = {line.sequential for line in results.asked.lines}
    return [
        Heading("Rates"),
        Paragraph("Operations a second, or MiB where the line is sequential."),
        by_line(results, report.rate),
        *pictures(
            results,
            [
                (charts.OPERATIONS, "operations a second", False in kinds),
                (charts.THROUGHPUT, "throughput in MiB a second", True in kinds),
            ],
        ),
    ]


def microseconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def latencies(results: Results) -> list[Block]:
    def cell(_line: Line, row: Row) -> str:
        known = (row.latency_us_p50, row.latency_us_p99, row.latency_us_p999)
        return " / ".join(map(microseconds, known)) if any(known) else NOTHING

    return [
        Heading("Latency"),
        Paragraph("50th / 99th / 99.9th percentile in µs, as fio sees it; each is the median of the rounds."),
        by_line(results, cell),
        *pictures(results, [(charts.LATENCY, "50th and 99th percentile of the latency", True)]),
    ]


def cpu_times(results: Results) -> list[Block]:
    return [
        Heading("CPU time"),
        Paragraph(
            "Of all processes of the server, in µs per operation; the flush after a line that writes counts to it, and "
            "the kernel's work in other processes' names does not."
        ),
        by_line(results, lambda _line, row: microseconds(row.cpu_us)),
        *pictures(results, [(charts.CPU, "CPU time of the server per operation", True)]),
    ]


def who(results: Results) -> list[Block]:
    """The subjects, and what they do not do."""
    rows = [
        [subject.name, subject.what, str(subject.copies) if subject.copies else "none", "; ".join(subject.lacks)]
        for subject in results.asked.subjects
    ]
    head = ["subject", "what it is", "copies in files", "what it does not do"]
    return [Heading("Who was asked, and what they do not do"), Table(head, rows, frozenset({0, 1, 3}))]


def what_is_missing(results: Results) -> list[Block]:
    said = report.complaints(results.absent, results.disqualified, results.failures)
    heading = Heading("What is missing")
    return [heading, Bullets(said) if said else Paragraph("Nothing: all took part, and no run failed.")]


def where(results: Results) -> list[Block]:
    machine = results.machine
    commit = "not from a checkout" if results.commit is None else f"commit {results.commit}"
    changed = ", with changes that are not committed" if results.changed else ""
    return [
        Heading("Where and with what"),
        Bullets(
            [
                f"{results.date}, {OURS}: {commit}{changed}",
                f"{machine.system} {machine.kernel}, {machine.cores} cores of {machine.processor}, "
                f"{machine.memory_mib:,} MiB of memory, files on {machine.file_system}, "
                f"load {machine.load_before:.1f} before the run",
                "; ".join(f"{name}: {said}" for name, said in results.programs.items()),
            ]
        ),
        Paragraph("Every sample is in results.json. The same again:"),
        Code(results.asked.command),
    ]


def verdict_lines(results: Results) -> list[str]:
    """The verdicts for a terminal, a line each."""
    told = []
    for verdict in results.verdicts:
        bound = verdict.bound
        figure = "" if bound.figure == "rate" else ", p99"
        if verdict.met is not None:
            words = f"{measured(verdict)} × {bound.over}, {bound.kind} {bound.bound:g}: {verdict.word}"
            told.append(f"{bound.subject}, {bound.line}{figure}: {words}")
    return told
