"""What a program asks a database of SQLite, statement by statement: the honest count behind a claim about cost.

What it is for: "no volume that is not affected is ever read" is a claim about rows that a program never sees. So all of
these are looked at: every id in a statement's values and in every row that comes back (:attr:`Asked.met`); how SQLite
looks for the rows of each statement, by its own plan (:meth:`Asked.scans`); and the steps of its machine, which grow
with the rows that it passes over without showing them (:attr:`Asked.steps`).

It costs time, so whoever measures seconds does that in another run. One thread and one connection: open the database
in memory and ``inline``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import event

from nexus.db import Database
from nexus.db.schema import METADATA

STEPS_AT_ONCE = 100
"""How often SQLite is asked to say that it is still at work: the grain of the count."""
_TABLES = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(\w+)")
_SCAN = re.compile(r"^SCAN (?P<what>(?!CONSTANT)\w+)(?: USING (?:COVERING )?INDEX (?P<index>\w+))?")
_PARTIAL = frozenset(
    index.name
    for table in METADATA.tables.values()
    for index in table.indexes
    if index.dialect_options["sqlite"]["where"] is not None
)
"""Indexes of a part of a table: to go through one costs what it finds."""
READS = "SELECT"


class Asked:
    """Counts while it is *on*. ``watched``: ids, of which it is told how often each was met.

    ``touches`` has, by id and by table, how often a statement on that table named the id: first reads, then writes.
    """

    def __init__(self, database: Database, watched: Collection[str]) -> None:
        assert database.dialect == "sqlite" and len(set(database.engines)) == 1
        self._database = database
        self._watched = frozenset(watched)
        self._shapes: dict[str, tuple[tuple[str, ...], bool]] = {}
        self._plans: dict[str, Any] = {}
        self.on = False
        self.steps = 0
        self.statements = 0
        self.met: Counter[str] = Counter()
        self.touches: dict[tuple[str, bool], Counter[str]] = {}
        for engine in database.engines:
            event.listen(engine, "before_cursor_execute", self._before)
        # One in memory has one connection, which is kept: to ask for it is to have it.
        database.transact_blocking(lambda connection: self._watch(connection.connection.driver_connection))
        self.on = True

    def _watch(self, driver: Any) -> None:
        driver.set_progress_handler(self._step, STEPS_AT_ONCE)
        driver.row_factory = self._row

    def _step(self) -> int:
        self.steps += STEPS_AT_ONCE * self.on
        return 0

    def _row(self, cursor: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.on:
            self.met.update(value for value in row if value in self._watched)
        return row

    def _before(self, connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
        if not self.on:
            return
        self.statements += 1
        flat = [value for each in values for value in each] if many else list(values)
        self._plans.setdefault(statement, values[0] if many else values)
        named = {value for value in flat if value in self._watched}
        self.met.update(named)
        tables, writes = self._shape(statement)
        for table in tables:
            self.touches.setdefault((table, writes), Counter()).update(named)

    def _shape(self, statement: str) -> tuple[tuple[str, ...], bool]:
        """Which tables it is about, and whether it writes."""
        found = self._shapes.get(statement)
        if found is None:
            tables = tuple(sorted(set(_TABLES.findall(statement))))
            found = self._shapes[statement] = (tables, not statement.startswith(READS))
        return found

    def of(self, table: str, volume_id: str) -> tuple[int, int]:
        """How often statements on the table named the id: reads, writes."""
        read, written = self.touches.get((table, False), Counter()), self.touches.get((table, True), Counter())
        return read[volume_id], written[volume_id]

    def named(self, volume_id: str) -> int:
        """How often statements named the id, on whatever table."""
        return sum(found[volume_id] for found in self.touches.values())

    def scans(self) -> dict[str, set[str]]:
        """The tables that some statement goes through from one end to the other, each with the statements. A part of a
        table that has an index of its own is named by both, as *table.index*."""
        found: dict[str, set[str]] = {}

        def body(connection: Any) -> None:
            driver = connection.connection.driver_connection
            for statement, values in self._plans.items():
                for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", values):
                    scan = _SCAN.match(row[3])
                    if scan is not None:
                        partial = scan["index"] in _PARTIAL
                        name = f"{scan['what']}.{scan['index']}" if partial else scan["what"]
                        found.setdefault(name, set()).add(statement)

        self.on = False
        self._database.transact_blocking(body)
        return found
