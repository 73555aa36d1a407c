"""The charts of a report: throughput, operations, latency, CPU time, as PNGs.

What it guarantees: every bar is a median that stands in the report's tables, with the extremes of the rounds as a line
where the figure is a rate. A subject has a colour of its own, the same in every chart and report, and stands in the
legend of those charts only where it has a bar. matplotlib is imported when something is drawn and not before; where it
is missing, whoever wants charts can find that out first (:func:`is_installed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import cycle
from typing import Any

from bench.lines import Line
from bench.results import Results
from bench.rounds import Row
from bench.subjects import ALL, CIPHER

THROUGHPUT, OPERATIONS, LATENCY, CPU = "throughput.png", "operations.png", "latency.png", "cpu.png"
DOTS_PER_INCH = 90
BARS_WIDTH = 0.8
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5"),
)
"""matplotlib's ten, and behind them their pale sisters: it begins anew after ten by itself."""


def is_installed() -> bool:
    """Whether there is matplotlib to draw with."""
    return find_spec("matplotlib") is not None


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colour of every subject that there is, and of these ``names``, some of which an old report alone knows."""
    known = [*(subject.name for subject in ALL), CIPHER]
    return dict(zip(dict.fromkeys([*known, *names]), cycle(COLOURS)))


def draw(results: Results) -> dict[str, bytes]:
    """All charts that there are figures for, as PNGs by their files' names."""
    lines = results.asked.lines
    sequential, random = ([line for line in lines if line.sequential is wanted] for wanted in (True, False))
    drawn = {}
    if sequential:
        drawn[THROUGHPUT] = _chart(results, sequential, [("MiB/s", lambda row: row.mib_s, True)])
    if random:
        drawn[OPERATIONS] = _chart(results, random, [("operations a second", lambda row: row.iops, True)])
    of_latency: list[Panel] = [
        ("latency below which 50 % stay, µs", lambda row: row.latency_us_p50, False),
        ("latency below which 99 % stay, µs", lambda row: row.latency_us_p99, False),
    ]
    drawn[LATENCY] = _chart(results, lines, of_latency, logarithmic=True)
    of_cpu: list[Panel] = [("CPU time of the server per operation, µs", lambda row: row.cpu_us, False)]
    drawn[CPU] = _chart(results, lines, of_cpu, logarithmic=True)
    return drawn


Panel = tuple[str, Callable[[Row], float | None], bool]
"""What the axis says, the figure, and whether the extremes of the rate are drawn."""


def _chart(results: Results, lines: Sequence[Line], panels: Sequence[Panel], logarithmic: bool = False) -> bytes:
    """One picture: a panel below the other, in each a group of bars for each line."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    wanted = {line.name for line in lines}
    shown = [
        row for row in results.rows if row.line in wanted and any(value(row) is not None for _, value, _ in panels)
    ]
    rows = {(row.line, row.subject): row for row in shown}
    names = [name for name in results.measured if any(row.subject == name for row in shown)]
    colour = colours(results.measured)
    wide = min(16.0, max(8.0, 2 + len(lines) * max(0.9, 0.18 * len(names))))
    figure = Figure(figsize=(wide, 1 + 3.6 * len(panels)), dpi=DOTS_PER_INCH, layout="constrained")
    for axes, (label, value, extremes) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels):
        for number, name in enumerate(names):
            found = [(place, row) for place, line in enumerate(lines) if (row := rows.get((line.name, name)))]
            _bars(axes, colour[name], (number, len(names)), found, value, extremes)
        axes.set_xticks(range(len(lines)), [line.name for line in lines], rotation=20, ha="right", fontsize=8)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(bottom=1)  # the same ground under all bars: a microsecond
        axes.yaxis.set_major_formatter("{x:,.0f}")
    if names:
        # Patches, not the bars: a subject without a bar in the first panel has a colour too.
        patches = [Patch(color=colour[name], label=name) for name in names]
        figure.legend(handles=patches, loc="outside upper center", ncols=min(int(wide / 2), len(names)), fontsize=8)
    written = BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _bars(
    axes: Any,
    colour: str,
    position: tuple[int, int],
    found: Sequence[tuple[int, Row]],
    value: Callable[[Row], float | None],
    extremes: bool,
) -> None:
    """One subject's bars; ``position`` is its number among how many."""
    number, count = position
    known = [(place, row, height) for place, row in found if (height := value(row)) is not None]
    width = BARS_WIDTH / count
    offset = (number - (count - 1) / 2) * width
    heights = [height for _, _, height in known]
    reach = None
    if extremes:
        # The rate in MiB/s has the extremes of the operations, in proportion.
        below = [height * (1 - row.iops_low / row.iops) for _, row, height in known]
        above = [height * (row.iops_high / row.iops - 1) for _, row, height in known]
        reach = [below, above]
    axes.bar(
        [place + offset for place, _, _ in known],
        heights,
        width,
        color=colour,
        yerr=reach,
        error_kw={"elinewidth": 0.8, "alpha": 0.6},
    )
