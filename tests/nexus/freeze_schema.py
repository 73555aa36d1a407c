"""Write down the schema that a new database has: ``python tests/nexus/freeze_schema.py``.

Each version of the schema stands in ``tests/nexus/schemas``, as the statements that make it. A version that was given
to anybody is never written again: what changes after that is a migration, and a new version. The tests migrate each old
version and compare what comes out with a new database.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from nexus.db.migrations import newest
from nexus.db.schema import METADATA

SCHEMAS = Path(__file__).parent / "schemas"
DIALECTS = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}


def path_of(version: int, dialect: str) -> Path:
    return SCHEMAS / f"version-{version}-{dialect}.sql"


def statements(dialect: str) -> str:
    """What makes the schema of today, without its explanations."""
    found: list[str] = []
    for table in sorted(METADATA.tables.values(), key=lambda each: each.name):
        indexes = sorted(table.indexes, key=lambda each: str(each.name))
        for part in (CreateTable(table), *map(CreateIndex, indexes)):
            text = str(part.compile(dialect=DIALECTS[dialect]()))
            found.append("\n".join(line.rstrip() for line in text.strip().splitlines()).replace("\t", "    "))
    return ";\n\n".join(found) + ";\n"


if __name__ == "__main__":
    for each in DIALECTS:
        path_of(newest(), each).write_text(statements(each), encoding="utf-8")
