"""The growth series for a person, for a program and as pictures.

What it guarantees: every figure that has a limit is printed with "met", "NOT met" or "not measured"; a point that could
not be measured is named below the tables and in the document. The document holds every point, so that a table, a
verdict or a chart can be made from it again without measuring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.growth import Outcome
from bench.limits import LIMITS
from bench.trends import Point, Verdict, exponent, judge, last_to_first

NOTHING = "–"
WORDS = {True: "met", False: "NOT met", None: "not measured"}
WITHOUT_MATPLOTLIB = "no charts: matplotlib is missing (pip install '.[bench]')."


def verdicts(series: str, figure: str, points: Sequence[Point]) -> list[Verdict]:
    """What each limit of a figure says of its points."""
    return [judge(limit, figure, points) for limit in LIMITS.get(series, {}).get(figure, ())]


def document(outcomes: Sequence[Outcome], machine: str) -> dict[str, object]:
    """Everything that was found, as JSON."""
    return {
        "machine": machine,
        "series": [
            {
                "name": outcome.series.name,
                "cause": outcome.series.cause,
                "figures": [_figure(outcome.series.name, name, points) for name, points in outcome.points.items()],
                "failures": outcome.failures,
            }
            for outcome in outcomes
        ],
    }


def _figure(series: str, figure: str, points: Sequence[Point]) -> dict[str, object]:
    ratios = last_to_first(points)
    return {
        "figure": figure,
        "points": [[point.cause, point.value, point.disk_bytes] for point in points],
        "exponent": exponent(points),
        "last_to_first": None if ratios is None else ratios[1],
        "limits": [{"sentence": each.sentence, "met": each.met} for each in verdicts(series, figure, points)],
    }


def lines(outcomes: Sequence[Outcome], machine: str) -> list[str]:
    """The report in Markdown: a table for each series, its limits below it."""
    said = ["# Growth", "", f"{machine}.", ""]
    for outcome in outcomes:
        said += [f"## {outcome.series.name}: {outcome.series.cause}", ""]
        said += _table(outcome)
        for figure, points in outcome.points.items():
            said += [
                f"- {WORDS[each.met]}: {figure} {each.sentence}"
                for each in verdicts(outcome.series.name, figure, points)
            ]
        said += [f"- failed: {sentence}" for sentence in outcome.failures]
        said.append("")
    return said


def _table(outcome: Outcome) -> list[str]:
    causes = sorted({point.cause for points in outcome.points.values() for point in points})
    if not causes:
        return []
    head = ["figure", *(f"{cause:,.0f}" for cause in causes), "exponent", "last / first"]
    rows = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for figure, points in outcome.points.items():
        by_cause = {point.cause: point.value for point in points}
        slope, ratios = exponent(points), last_to_first(points)
        cells = [figure, *(number(by_cause.get(cause)) for cause in causes)]
        cells += [NOTHING if slope is None else f"{slope:.2f}", NOTHING if ratios is None else f"{ratios[1]:,.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return [*rows, ""]


def number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def closing(outcomes: Sequence[Outcome]) -> str:
    """How many limits are met, not met, and not measured, in a sentence."""
    met = [
        each.met
        for outcome in outcomes
        for figure, points in outcome.points.items()
        for each in verdicts(outcome.series.name, figure, points)
    ]
    return ", ".join(f"{met.count(which)} limits {word}" for which, word in WORDS.items()) + "."


def write(folder: Path, outcomes: Sequence[Outcome], machine: str) -> None:
    """Write ``growth.json``, ``growth.md`` and, where matplotlib is there, a chart of each series into ``folder``."""
    (folder / "growth.json").write_text(json.dumps(document(outcomes, machine), indent=2) + "\n")
    (folder / "growth.md").write_text("\n".join(lines(outcomes, machine)) + "\n")
    draw(folder, outcomes)


def draw(folder: Path, outcomes: Sequence[Outcome]) -> bool:
    """A chart of each series, with an axis for each unit, of the figures that have a limit; whether there is a
    program to draw with."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for outcome in outcomes:
        limited = [name for name in outcome.points if name in LIMITS.get(outcome.series.name, {})]
        groups = [
            ("CPU of the server per operation, µs", [name for name in limited if name.endswith("_cpu_us")]),
            ("seconds", [name for name in limited if name.endswith("_s") and not name.endswith("_cpu_us")]),
            ("MiB", [name for name in limited if name.endswith("_mib")]),
        ]
        groups = [(unit, names) for unit, names in groups if names]
        if not groups:
            continue
        picture, axes = pyplot.subplots(1, len(groups), figsize=(5 * len(groups), 4), squeeze=False)
        for (unit, names), axis in zip(groups, axes[0]):
            for name in names:
                points = outcome.points[name]
                axis.plot([each.cause for each in points], [each.value for each in points], marker="o", label=name)
            axis.set(xscale="log", yscale="log", xlabel=outcome.series.cause, ylabel=unit)
            axis.grid(True, which="both", alpha=0.3)
            axis.legend(fontsize="small")
        picture.tight_layout()
        picture.savefig(folder / f"growth-{outcome.series.name}.png", dpi=100)
        pyplot.close(picture)
    return True
