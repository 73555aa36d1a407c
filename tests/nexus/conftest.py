"""Databases for every test of Nexus. A test that asks for ``database`` runs once on each kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from db_rig import PostgresServer, open_database, postgres_server

from nexus.db import Database

sys.path.append(str(Path(__file__).parent.parent / "nbd"))

KINDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's server."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A database of its own with the schema in it."""
    with postgres.database_url() as url:
        yield url


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database is that several may open: SQLite in a file, or PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/nexus.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def several(database_url: str) -> Iterator[Any]:
    """``several()`` opens the test's database once more, as another Nexus would."""
    opened: list[Any] = []

    def another(**options: Any) -> Database:
        opening = open_database(database_url, **options)
        opened.append(opening)
        return opening.__enter__()

    yield another
    for opening in opened:
        opening.__exit__(None, None, None)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An open database: SQLite in memory and in the loop's thread, or PostgreSQL."""
    in_memory = request.param == "sqlite"
    url = "sqlite://" if in_memory else request.getfixturevalue("postgres_url")
    with open_database(url, inline=in_memory) as opened:
        yield opened


@pytest.fixture
def in_memory() -> Iterator[Database]:
    """The quickest database, for tests of many runs."""
    with open_database("sqlite://", inline=True) as opened:
        yield opened
