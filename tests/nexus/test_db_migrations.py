"""Versions of the schema: made or migrated it is the same, newer is refused, interrupted is not half-done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from db_rig import EPOCH, PostgresServer, add_volume
from freeze_schema import DIALECTS, path_of, statements
from sqlalchemy import Connection, Engine, func, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from nexus.db import Database, SchemaUnknown, migrations
from nexus.db.engines import open_backend
from nexus.db.migrations import FIRST_VERSION, MIGRATIONS, Migration, migrate, newest, schema_version, version_of
from nexus.db.schema import METADATA, volume


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database is that has nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/nexus.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty_url()


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    backend = open_backend(empty_url, 2)
    yield backend.writer.engine
    backend.close()


def add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE sled ADD COLUMN nickname TEXT"))


def forget_names(connection: Connection) -> None:
    connection.execute(text("DROP INDEX volume_resource_usage_by_volume"))


NEXT = Migration(newest() + 1, "sleds have nicknames", add_column)
AFTER_NEXT = Migration(newest() + 2, "an index less", forget_names)


def schema_of(engine: Engine) -> dict[str, Any]:
    """Everything that the database says about its schema, in no order."""
    found = inspect(engine)
    schema: dict[str, Any] = {}
    for name in found.get_table_names():
        columns = {
            each["name"]: (str(each["type"]), each["nullable"], str(each["default"]))
            for each in found.get_columns(name)
        }
        checks = sorted((str(each["name"]), each["sqltext"]) for each in found.get_check_constraints(name))
        indexes = {
            each["name"]: (tuple(each["column_names"]), bool(each["unique"]), _conditions(each))
            for each in found.get_indexes(name)
        }
        key = found.get_pk_constraint(name)["constrained_columns"]
        schema[name] = {"columns": columns, "checks": checks, "indexes": indexes, "key": key}
    return schema


def _conditions(index: Any) -> list[tuple[str, str]]:
    return sorted((name, str(value)) for name, value in index.get("dialect_options", {}).items())


def make_version(engine: Engine, version: int) -> None:
    """The schema as it was in ``version``."""
    with engine.begin() as connection:
        for statement in path_of(version, engine.dialect.name).read_text(encoding="utf-8").split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        for number in range(FIRST_VERSION, version + 1):
            row = {"version": number, "name": "old", "time_applied": "2026-01-01T00:00:00.000000Z"}
            connection.exec_driver_sql(
                "INSERT INTO schema_version (version, name, time_applied) VALUES ({version}, '{name}',"
                " '{time_applied}')".format(**row)
            )


# -- the schema of today ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_newest_version_is_written_down(dialect: str) -> None:
    """A change of the schema is a migration and a new version; see ``freeze_schema.py``."""
    assert path_of(newest(), dialect).read_text(encoding="utf-8") == statements(dialect)


def test_versions_follow_each_other() -> None:
    assert [each.version for each in MIGRATIONS] == list(range(FIRST_VERSION + 1, newest() + 1))


def test_a_new_database_has_all_tables_and_says_its_version(engine: Engine) -> None:
    assert migrate(engine) == 0
    assert set(schema_of(engine)) == set(METADATA.tables)
    with engine.connect() as connection:
        assert version_of(connection) == newest()
    assert migrate(engine) == newest(), "it is up to date"


@pytest.mark.parametrize("version", range(FIRST_VERSION, newest()))
def test_every_old_version_becomes_the_same_as_a_new_database(
    engine: Engine, version: int, request: pytest.FixtureRequest
) -> None:
    in_memory = engine.dialect.name == "sqlite"
    other = open_backend("sqlite://" if in_memory else request.getfixturevalue("postgres").empty_url(), 2)
    migrate(other.writer.engine)
    make_version(engine, version)
    assert migrate(engine) == version
    assert schema_of(engine) == schema_of(other.writer.engine)
    other.close()


# -- from one to the next ---------------------------------------------------------------------------------------------


def test_what_is_missing_is_done_in_order_and_recorded(engine: Engine) -> None:
    migrate(engine)
    assert migrate(engine, (*MIGRATIONS, NEXT, AFTER_NEXT)) == newest()
    with engine.connect() as connection:
        rows = connection.execute(select(schema_version.c.version, schema_version.c.name)).all()
    assert rows[0] == (1, "made")
    assert rows[newest() :] == [(newest() + 1, "sleds have nicknames"), (newest() + 2, "an index less")]
    found = schema_of(engine)
    assert "nickname" in found["sled"]["columns"]
    assert "volume_resource_usage_by_volume" not in found["volume_resource_usage"]["indexes"]
    assert migrate(engine, (*MIGRATIONS, NEXT, AFTER_NEXT)) == newest() + 2


def test_rows_survive_a_migration(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        add_volume(connection, 1)
    migrate(engine, (*MIGRATIONS, NEXT))
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(volume)) == 1


def test_a_newer_database_is_refused_and_not_touched(empty_url: str) -> None:
    with Database.open(empty_url) as database:
        newer = {"version": newest() + 1, "name": "from the future", "time_applied": EPOCH}
        database.transact_blocking(lambda connection: connection.execute(insert(schema_version).values(newer)))
    with pytest.raises(SchemaUnknown) as caught:
        Database.open(empty_url)
    assert str(caught.value) == (
        f"the database has schema version {newest() + 1}, which a newer Nexus made; "
        f"this one knows versions up to {newest()}"
    )


def test_a_migration_that_is_interrupted_did_not_happen(engine: Engine) -> None:
    migrate(engine)
    before = schema_of(engine)

    def half(connection: Connection) -> None:
        add_column(connection)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(engine, (*MIGRATIONS, Migration(newest() + 1, "half", half)))
    assert schema_of(engine) == before
    with engine.connect() as connection:
        assert version_of(connection) == newest()
    assert migrate(engine, (*MIGRATIONS, NEXT)) == newest()


def test_a_database_that_could_not_be_made_is_empty(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: Connection, version: int, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "_record", fail)
        with pytest.raises(KeyboardInterrupt):
            migrate(engine)
    assert schema_of(engine) == {}
    assert migrate(engine) == 0


async def test_several_that_open_a_new_database_at_once_make_it_once(empty_url: str) -> None:
    opened: list[Database] = []

    def open_it() -> None:
        opened.append(Database.open(empty_url))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(trio.to_thread.run_sync, open_it)
    count = select(func.count()).select_from(schema_version)
    assert await opened[0].read(lambda connection: connection.scalar(count)) == newest()
    for database in opened:
        database.close()


def test_a_table_refuses_a_column_of_another_kind(engine: Engine) -> None:
    """STRICT: SQLite of itself keeps a text in a column of numbers."""
    migrate(engine)
    with engine.begin() as connection:
        add_volume(connection, 1)
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.exec_driver_sql("UPDATE volume SET rcgen = 'seven'")
