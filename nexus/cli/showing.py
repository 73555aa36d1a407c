"""What commands print: a table, one thing member by member, or the documents themselves as JSON.

What it guarantees: with ``--json`` there is one JSON value on standard output and nothing else: a document as the API
has it, or ``{"items": [...]}``. A table is never cut to the width of a terminal, so that ids can be copied from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel

from crucible_emu.cli.sizes import format_size

T = TypeVar("T", bound=BaseModel)
Columns = Mapping[str, Callable[[T], object]]

SIZES = ("size", "size_bytes", "size_used", "bytes_read")
"""Members that are told in units."""


def show_many(documents: Iterable[T], columns: Columns[T], *, as_json: bool) -> None:
    """A listing."""
    if as_json:
        print_json({"items": [document.model_dump(mode="json") for document in documents]})
        return
    rows = [tuple(cell(make(document)) for make in columns.values()) for document in documents]
    print_table(tuple(columns), rows)


def show_one(document: BaseModel, *, as_json: bool, but: tuple[str, ...] = ()) -> None:
    """One thing; a person is not shown the members ``but``."""
    if as_json:
        print_json(document.model_dump(mode="json"))
        return
    members = {name: getattr(document, name) for name in type(document).model_fields if name not in but}
    width = max(map(len, members))
    for name, value in members.items():
        shown = format_size(value) if name in SIZES and isinstance(value, int) else cell(value)
        print(f"{name.replace('_', ' '):{width}}  {shown}".rstrip())
    sys.stdout.flush()


def print_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns side by side, as wide as they need."""
    widths = [max(len(row[index]) for row in [titles, *rows]) for index in range(len(titles))]
    for row in (tuple(title.upper() for title in titles), *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value), flush=True)


def done(sentence: str, facts: Mapping[str, object], *, as_json: bool) -> None:
    """What was done, where no document says it."""
    if as_json:
        print_json(dict(facts))
    else:
        print(sentence, flush=True)


def cell(value: object) -> str:
    """A value as text on one line."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(timespec="seconds")
        case BaseModel():
            return cell(getattr(value, "state", None) or getattr(value, "kind", None) or value.model_dump_json())
        case tuple() | list():
            return ", ".join(map(cell, value)) or "-"
        case _:
            return " ".join(str(value).split())
