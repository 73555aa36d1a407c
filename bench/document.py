"""A document of headings, paragraphs, tables and pictures, as Markdown and as one HTML file (pure).

What it is for: a report is written once, as blocks, and read in two places: beside the code, where Markdown is shown,
and by itself, where a browser is all that there is.

What it guarantees: text is text. Whatever stands in it, a server's complaint for instance, is escaped and never becomes
markup. The HTML needs nothing beside it: pictures and styles are in it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

MARKUP = re.compile(r"([\\`*_<>\[\]|])")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto;margin:1em 0}"
    "th,td{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}"
    "td.figure{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "th{background:#f3f3f3}img{max-width:100%}pre{background:#f3f3f3;padding:1em;overflow-x:auto}"
)


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """``words`` are the columns that hold words; the others hold figures and stand to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True, slots=True)
class Picture:
    """``file`` is the picture's name beside the Markdown."""

    file: str
    caption: str


@dataclass(frozen=True, slots=True)
class Code:
    text: str


Block = Heading | Paragraph | Bullets | Table | Picture | Code


def markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _plain(text: str) -> str:
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(head, rows, words):
            marks = ["---" if column in words else "---:" for column in range(len(head))]
            lines = [map(_plain, head), marks, *(map(_plain, row) for row in rows)]
            return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        case Picture(file, caption):
            return f"![{_plain(caption)}]({file})"
        case Code(text):
            return f"```sh\n{text}\n```"


def html(title: str, blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """The document as one HTML page; ``pictures`` are PNGs by their files' names."""
    body = "\n".join(_html(block, pictures) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Table(head, rows, words):
            return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{_rows(rows, words)}</table>"
        case Picture(file, caption):
            data = b64encode(pictures[file]).decode()
            return f'<p><img alt="{escape(caption)}" src="data:image/png;base64,{data}"></p>'
        case Code(text):
            return f"<pre>{escape(text)}</pre>"


def _rows(rows: Sequence[Sequence[str]], words: frozenset[int]) -> str:
    return "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(cell)}</td>" if column in words else f'<td class="figure">{escape(cell)}</td>'
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
