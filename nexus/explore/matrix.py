"""What was explored, as a picture: saga nodes by operations, green, or red with the story behind it.

HTML needs nothing; a picture needs matplotlib, which is not installed with the program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from crucible_emu.errors import UsageError
from nexus.explore.cases import parse
from nexus.explore.results import Result

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } td, th { border: 1px solid #ddd; padding: 1px 4px; font-size: 11px }
th.o { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left } td.n { white-space: nowrap }
td.g { background: #b7e1b0 } td.r { background: #e8786d } td.r a { color: #000 }
pre { background: #f6f6f6; padding: 1em }
"""


@dataclass
class Cell:
    """The cases of one node and one operation."""

    runs: int = 0
    bad: list[Result] = field(default_factory=list)


def cells_of(results: Iterable[Result]) -> dict[str, dict[str, Cell]]:
    """By node (``saga#NODE``) and operation, in the order in which they came."""
    found: dict[str, dict[str, Cell]] = defaultdict(dict)
    for result in results:
        for each in parse(result.case).interferences:
            cell = found[f"{each.moment.saga}#{each.moment.label}"].setdefault(each.operation, Cell())
            cell.runs += 1
            if result.violations:
                cell.bad.append(result)
    return dict(found)


def _columns(cells: dict[str, dict[str, Cell]]) -> list[str]:
    return sorted({operation for row in cells.values() for operation in row})


def as_html(results: list[Result]) -> str:
    """The matrix, and below it the stories of red cells."""
    cells = cells_of(results)
    columns = _columns(cells)
    bad = {each.case: number for number, each in enumerate((each for each in results if each.violations), 1)}
    head = "".join(f'<th class="o">{escape(each)}</th>' for each in columns)
    rows = []
    for node, row in cells.items():
        tds = "".join(_cell(row.get(each), bad) for each in columns)
        rows.append(f'<tr><td class="n">{escape(node)}</td>{tds}</tr>')
    stories = "".join(_story(each, bad[each.case]) for each in results if each.violations)
    return (
        f"<!doctype html><meta charset='utf-8'><title>nexus explore</title><style>{STYLE}</style>"
        f"<h1>{len(results)} runs, {len(bad)} with findings</h1>"
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>{stories}\n"
    )


def _cell(cell: Cell | None, bad: dict[str, int]) -> str:
    if cell is None:
        return "<td></td>"
    if not cell.bad:
        return f'<td class="g">{cell.runs}</td>'
    return f'<td class="r"><a href="#f{bad[cell.bad[0].case]}">{len(cell.bad)}/{cell.runs}</a></td>'


def _story(result: Result, number: int) -> str:
    lines = "\n".join([*result.story, *(f"FOUND {each}" for each in result.violations)])
    return f'<h3 id="f{number}">{escape(result.case)}</h3><pre>{escape(lines)}</pre>'


def require_matplotlib() -> Any:
    """The library that pictures are drawn with. Raises :class:`UsageError` where it is not installed."""
    try:
        import matplotlib as library
    except ImportError:
        raise UsageError("a picture needs matplotlib: install the extra [bench], or write --html") from None
    return library


def draw(results: list[Result], path: Path) -> None:
    """The matrix as a picture (PNG, whatever the file is called). Raises :class:`UsageError` where matplotlib is not
    installed."""
    library = require_matplotlib()
    library.use("Agg")
    from matplotlib import pyplot

    cells = cells_of(results)
    columns = _columns(cells)
    shades = [[_shade(row.get(each)) for each in columns] for row in cells.values()]
    figure: Any
    figure, axes = pyplot.subplots(figsize=(3 + 0.22 * len(columns), 1.5 + 0.16 * len(cells)))
    colours = library.colors.ListedColormap(["#ffffff", "#b7e1b0", "#e8786d"])
    axes.imshow(shades or [[0]], cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    axes.set_yticks(range(len(cells)), list(cells), fontsize=5)
    axes.set_title(f"{len(results)} runs, {sum(bool(each.violations) for each in results)} with findings", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def _shade(cell: Cell | None) -> int:
    if cell is None:
        return 0
    return 2 if cell.bad else 1
