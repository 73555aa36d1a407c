"""Versions of the schema, and the ways from each to the next.

A database carries the list of what was done to it in ``schema_version``. Opening one makes the whole schema if there is
none, else does what is missing, each migration with its row in one transaction: interrupted, it is as before and done
again the next time. Several processes may open one database at once; the first does it, the others wait.

What it guarantees: a database that was migrated has the same schema as one that was made today (a test compares them),
and one from a newer Nexus is refused and not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, inspect, select, text

from nexus.db.errors import SchemaUnknown
from nexus.db.schema.columns import METADATA, moment, number, table
from nexus.db.schema.columns import text as text_column

MIGRATION_LOCK = 0x6E65787573
"""PostgreSQL's advisory lock under which a schema is made or changed."""

schema_version = table(
    "schema_version",
    "What was done to the schema, in order.",
    number("version", "Which version of the schema that made.", key=True, least=1),
    text_column("name", "What it was for."),
    moment("time_applied", "When."),
)


@dataclass(frozen=True, slots=True)
class Migration:
    """The way to ``version`` from the one before it."""

    version: int
    name: str
    apply: Callable[[Connection], None]


def _make_everything(connection: Connection) -> None:
    METADATA.create_all(connection, checkfirst=False)


def _make_room_for_replacements(connection: Connection) -> None:
    """The queue of locks had no user yet. (Tables are made as they are declared: whoever changes one of these writes
    down here what it was.)"""
    made = ("volume_at_rest", "replacement_waiting", "clone_source_refusal", "survivor_decision")
    queue = METADATA.tables["volume_repair_queue"]
    queue.drop(connection)
    METADATA.create_all(connection, [queue, *(METADATA.tables[name] for name in made)], checkfirst=False)


def _index_only_what_is_destroyed(connection: Connection) -> None:
    """The index of all region snapshots by whether they are being destroyed made SQLite go through all that are not."""
    connection.execute(text("DROP INDEX region_snapshot_by_deleting"))
    indexes = METADATA.tables["region_snapshot"].indexes
    next(each for each in indexes if each.name == "region_snapshot_deleting").create(connection)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(2, "room for replacements", _make_room_for_replacements),
    Migration(3, "an index of the region snapshots that are being destroyed alone", _index_only_what_is_destroyed),
)
"""From version 1, the first, on: ``Migration(2, "what for", function of a connection)``, and so on."""

FIRST_VERSION = 1


def newest(migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """The version that this Nexus works with."""
    return migrations[-1].version if migrations else FIRST_VERSION


def version_of(connection: Connection) -> int:
    """The version of the schema that is there; 0 for none."""
    if not inspect(connection).has_table(schema_version.name):
        return 0
    found: int | None = connection.scalar(select(func.max(schema_version.c.version)))
    return found or 0


def migrate(engine: Engine, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the database to the newest version; the version it had. Raises
    :class:`~nexus.db.errors.SchemaUnknown`."""
    found: int | None = None
    while True:
        with engine.connect() as plain:
            # Not SERIALIZABLE: who waited for the lock must see what the one before it did.
            on_postgresql = engine.dialect.name == "postgresql"
            connection = plain.execution_options(isolation_level="READ COMMITTED") if on_postgresql else plain
            with connection.begin():
                if on_postgresql:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
                version = version_of(connection)
                found = version if found is None else found
                if version > newest(migrations):
                    raise SchemaUnknown(
                        f"the database has schema version {version}, which a newer Nexus made; "
                        f"this one knows versions up to {newest(migrations)}"
                    )
                if version == newest(migrations):
                    return found
                _next_step(connection, version, migrations)


_image: bytes | None = None
"""A new database in memory, once one was made."""


def make_in_memory(engine: Engine) -> None:
    """Make the schema in SQLite's memory: a copy of the one made first, for that takes 0.2 ms and not 100 ms. The
    explorer opens thousands."""
    global _image
    pooled = engine.raw_connection()
    try:
        connection: Any = pooled.driver_connection
        if _image is not None:
            connection.deserialize(_image)
            return
        migrate(engine)
        _image = connection.serialize()
    finally:
        pooled.close()


def _next_step(connection: Connection, version: int, migrations: Sequence[Migration]) -> None:
    if version == 0:
        _make_everything(connection)
        for number_, name in [(FIRST_VERSION, "made"), *((each.version, each.name) for each in migrations)]:
            _record(connection, number_, name)
        return
    step = next(each for each in migrations if each.version == version + 1)
    step.apply(connection)
    _record(connection, step.version, step.name)


def _record(connection: Connection, version: int, name: str) -> None:
    connection.execute(insert(schema_version).values(version=version, name=name, time_applied=datetime.now(UTC)))
