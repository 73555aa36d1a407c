"""Databases of both kinds for tests: SQLite in memory and in a file, and one PostgreSQL server per session.

The server is Debian's, started in a temporary directory with a Unix socket and no port, as a user who is not root, for
it refuses to be. It keeps nothing safe (no fsync): tests kill Nexus, not the database. Where it is missing the test
skips and says which package has it; in CI it fails.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from real_clients import missing
from sqlalchemy import Connection, Engine, create_engine, delete, insert, text
from sqlalchemy.pool import NullPool

from nexus.db import Database
from nexus.db.migrations import schema_version
from nexus.db.schema import METADATA, volume

PACKAGE = "postgresql"
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
DEBIAN_USER = "postgres"
SHARED = "nexus"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def uuid(number: int) -> str:
    """The same id for the same number."""
    return str(UUID(int=number))


def add_volume(connection: Connection, number: int, **values: Any) -> str:
    """A row of ``volume``; its id."""
    row = {"id": uuid(number), "time_created": EPOCH, "time_modified": EPOCH, "data": "{}", **values}
    connection.execute(insert(volume).values(row))
    return uuid(number)


class PostgresServer:
    """A running server."""

    def __init__(self, socket_directory: Path) -> None:
        self._socket_directory = socket_directory
        self._numbers = count()
        self._administrator: Engine = create_engine(
            self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self.create(SHARED)
        Database.open(self.url(SHARED)).close()

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://{DEBIAN_USER}@/{name}?host={self._socket_directory}"

    def create(self, name: str) -> None:
        self.command(f"CREATE DATABASE {name}")

    def command(self, statement: str) -> None:
        with self._administrator.connect() as connection:
            connection.execute(text(statement))

    def empty_url(self) -> str:
        """A new database with nothing in it."""
        name = f"test_{next(self._numbers)}"
        self.create(name)
        return self.url(name)

    @contextmanager
    def database_url(self) -> Iterator[str]:
        """A database with the schema and no rows: always the same one, swept, for to make one takes a second."""
        yield self.url(SHARED)
        sweeper = create_engine(self.url(SHARED), poolclass=NullPool)
        with sweeper.begin() as connection:
            for each in METADATA.sorted_tables:
                if each is not schema_version:
                    connection.execute(delete(each))


def _programs() -> Path:
    found = sorted(DEBIAN_PROGRAMS.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else missing("pg_ctl", PACKAGE)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg") if not os.environ.get("CI") else __import__("psycopg")
    programs = _programs()
    directory = Path(tempfile.mkdtemp(prefix="nexus-pg-"))
    as_user: dict[str, Any] = {"stdout": subprocess.DEVNULL, "check": True, "cwd": directory}
    if os.geteuid() == 0:
        user = pwd.getpwnam(DEBIAN_USER)
        os.chown(directory, user.pw_uid, user.pw_gid)
        as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = directory / "data"
    settings = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off -c max_connections=60"
    control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-s"]
    try:
        initialise = [str(programs / "initdb"), "-D", str(data), "-U", DEBIAN_USER, "-A", "trust"]
        subprocess.run([*initialise, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"], **as_user)
        subprocess.run([*control, "-l", str(directory / "log"), "-o", settings, "start"], **as_user)
        try:
            yield PostgresServer(directory)
        finally:
            with suppress(subprocess.CalledProcessError):
                subprocess.run([*control, "-m", "immediate", "stop"], **as_user)
    finally:
        shutil.rmtree(directory)


@contextmanager
def open_database(url: str, **options: Any) -> Iterator[Database]:
    with Database.open(url, random=Random(1), **options) as database:
        yield database
