"""The schema in words: what ``docs/nexus-database.md`` says, made of the explanations at the tables and columns."""

from __future__ import annotations

from types import ModuleType

from sqlalchemy import CheckConstraint, Column, Index, Table

from nexus.db import migrations
from nexus.db.schema import crucible, hardware, notifications, replacement, sagas, user_visible
from nexus.db.schema.columns import METADATA, Enumeration, Flag, Moment

SUBJECTS: tuple[ModuleType, ...] = (hardware, crucible, user_visible, replacement, notifications, sagas, migrations)


def describe() -> str:
    """The whole document."""
    lines = [
        "# The database of Nexus",
        "",
        "Made by `python docs/generate.py` from the schema in `nexus/db/schema`; edit that.",
        "",
        "There are no foreign keys and no cascades. A column is required unless it says *may be NULL*; a *secret* is"
        " never shown, logged or handed on. *Unique* indexes over part of the rows say which.",
        "",
    ]
    for module in SUBJECTS:
        tables = [each for each in METADATA.tables.values() if vars(module).get(each.name) is each]
        title, _, essay = (module.__doc__ or "").partition("\n")
        lines += [f"## {title.rstrip('.')}", "", " ".join(essay.split()) or "", ""] if essay else [f"## {title}", ""]
        for each in tables:
            lines += _table(each)
    return "\n".join(lines).replace("``", "`")


def _table(table: Table) -> list[str]:
    lines = [f"### `{table.name}`", "", table.comment or "", "", "| column | kind | meaning |", "|---|---|---|"]
    lines += [f"| `{column.name}` | {_kind(column)} | {column.comment} |" for column in table.columns]
    lines += [""]
    rules = [
        f"- `{check.name}`: `{' '.join(str(check.sqltext).split())}`"
        for check in sorted(table.constraints, key=lambda each: str(each.name))
        if isinstance(check, CheckConstraint) and not str(check.name).endswith(("_is_known", "_is_an_id", "_or_no"))
    ]
    if rules:
        lines += ["Checked in every row:", "", *rules, ""]
    found = [_index(each) for each in sorted(table.indexes, key=lambda each: (not each.unique, str(each.name)))]
    return [*lines, "Indexes:", "", *found, ""] if found else lines


def _kind(column: Column[object]) -> str:
    match column.type:
        case Enumeration() as enumeration:
            kind = " / ".join(member.value for member in enumeration.members)
        case Moment():
            kind = "moment"
        case Flag():
            kind = "yes or no"
        case other:
            kind = "number" if other.python_type is int else "text"
    notes = ["key"] * column.primary_key + ["may be NULL"] * bool(column.nullable)
    notes += ["secret"] * bool(column.info.get("secret"))
    return ", ".join([kind, *notes])


def _index(index: Index) -> str:
    columns = ", ".join(column.name for column in index.columns)
    condition = index.dialect_options["postgresql"]["where"]
    where = "" if condition is None else f", where `{condition.text}`"
    return f"- {'unique' if index.unique else 'plain'} ({columns}){where}"
