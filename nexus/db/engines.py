"""The two databases: how each is opened, and what its errors mean.

SQLite, with nothing to install: write-ahead log, one connection that writes (``BEGIN IMMEDIATE``: who may write is
settled before anything is read, so no transaction is ever in vain), a few that read beside it. PostgreSQL, for several
Nexus processes: every transaction SERIALIZABLE, and so some are in vain and run again.

What it guarantees: neither prints the values of a statement in an error, for a value may be a secret; and what is
called a reason to try again left nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, QueuePool, StaticPool, create_engine, event, make_url

BUSY_SECONDS = 5.0
"""How long SQLite waits for another process before it says that the database is busy."""
READERS = 4
SQLITE_CACHE_KIBIBYTES = 65_536
CONNECT_SECONDS = 10
STATEMENT_MILLISECONDS_MAX = 60_000
LANE = "nexus_lane"

SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PRIMARY = 5, 6, 0xFF
SERIALIZATION_FAILURE, DEADLOCK, CANCELED, UNIQUE_VIOLATION = "40001", "40P01", "57014", "23505"
LINE_OF_LOSERS = 0x6C6F7365
"""PostgreSQL's advisory lock of those who try again."""


class Trouble(Enum):
    """What an error of the database means for the transaction."""

    LOST_RACE = "another transaction was first: try again"
    LOST_CONNECTION = "the database is gone"
    TAKEN = "a unique index refuses it: perhaps another transaction was first"
    MISTAKE = "the statement is wrong, or refused by a constraint"


@dataclass(slots=True)
class Tally:
    """What one attempt at a transaction did. ``trouble``: the first error that means more than a mistake."""

    statements: int = 0
    rows_written: int = 0
    trouble: Trouble | None = None


@dataclass(slots=True)
class Lane:
    """A connection, and the tally of the attempt that has it: for as long as a ``with`` lasts."""

    lanes: Lanes
    connection: Connection
    tally: Tally

    def __enter__(self) -> Lane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lanes.take_back(self)


class Lanes:
    """The connections to one engine, each lent to one attempt at a time. With ``keep`` one that came back is lent
    again: to take it out of SQLAlchemy's pool and put it back costs 17 µs, to begin and to commit on SQLite 6 µs."""

    def __init__(self, engine: Engine, *, keep: bool) -> None:
        self.engine = engine
        self._keep = keep
        self._idle: list[Lane] = []

    def lend(self, tally: Tally) -> Lane:
        """One that nobody has. There are as many as are asked for at a time."""
        try:
            lane = self._idle.pop()
            lane.tally = tally
        except IndexError:
            lane = Lane(self, self.engine.connect(), tally)
            lane.connection.execution_options(**{LANE: lane})
        return lane

    def take_back(self, lane: Lane) -> None:
        """*Safety*: what is lent again has nothing left of who had it."""
        connection = lane.connection
        if self._keep and not (connection.closed or connection.invalidated or connection.in_transaction()):
            self._idle.append(lane)
        else:
            connection.close()

    def close(self) -> None:
        """Nothing is lent."""
        while self._idle:
            self._idle.pop().connection.close()
        self.engine.dispose()


@dataclass(frozen=True, slots=True)
class Backend:
    """An opened database. ``writers`` and ``readers``: how many transactions may be under way at a time. ``shared``:
    readers have no connection of their own. ``in_memory``: what is in it is gone when it is closed."""

    writer: Lanes
    reader: Lanes
    writers: int
    readers: int
    shared: bool = False
    in_memory: bool = False

    @property
    def dialect(self) -> str:
        return self.writer.engine.dialect.name

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


def open_backend(url: str | URL, connections: int) -> Backend:
    """Prepare to talk to the database at ``url``. Raises :class:`ValueError` for a kind that is not known."""
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed.set(drivername="sqlite+pysqlite"))
        case "postgresql":
            return _postgresql(parsed.set(drivername="postgresql+psycopg"), connections)
        case other:
            raise ValueError(f"{other} is no database that Nexus knows: sqlite:///FILE or postgresql://HOST/NAME")


def meaning_of(error: BaseException) -> Trouble:
    """What the driver's ``error`` means."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & SQLITE_PRIMARY in (SQLITE_BUSY, SQLITE_LOCKED):
        return Trouble.LOST_RACE
    if getattr(error, "sqlstate", None) in (SERIALIZATION_FAILURE, DEADLOCK):
        return Trouble.LOST_RACE
    if getattr(error, "sqlstate", None) == UNIQUE_VIOLATION:
        # Of two that look, find nothing and insert at once, PostgreSQL tells the second this, for an index sees what a
        # transaction does not. It will see it when it runs again, and say what is to be said. (SQLite lets in one.)
        return Trouble.TAKEN
    return Trouble.MISTAKE


# -- SQLite -----------------------------------------------------------------------------------------------------------


def _sqlite(url: URL) -> Backend:
    in_memory = url.database in (None, "", ":memory:")
    arguments: dict[str, Any] = {"check_same_thread": False, "timeout": BUSY_SECONDS}
    writer = create_engine(url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True)
    _configure_sqlite(writer, "BEGIN IMMEDIATE")
    lanes = Lanes(writer, keep=True)
    if in_memory:
        return Backend(lanes, lanes, 1, 1, shared=True, in_memory=True)
    reader = create_engine(
        url, poolclass=QueuePool, pool_size=READERS, max_overflow=0, connect_args=arguments, hide_parameters=True
    )
    _configure_sqlite(reader, "BEGIN", "PRAGMA query_only = ON")
    return Backend(lanes, Lanes(reader, keep=True), 1, READERS)


def _configure_sqlite(engine: Engine, begin: str, *more: str) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # The driver opens no transactions of its own: ``begin`` below does.
        connection.isolation_level = None
        for pragma in (
            "PRAGMA journal_mode = WAL",
            # A saga's record counts once it cannot be lost, by a loss of power neither.
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = OFF",
            f"PRAGMA cache_size = -{SQLITE_CACHE_KIBIBYTES}",
            "PRAGMA temp_store = MEMORY",
            *more,
        ):
            connection.execute(pragma).close()

    def start(connection: Any) -> None:
        # Past SQLAlchemy, which takes five times as long for it as SQLite.
        connection.driver_connection.execute(begin).close()

    engine.dialect.do_begin = start  # type: ignore[assignment]  # a listener costs each statement: see _observe
    _observe(engine)


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def _postgresql(url: URL, connections: int) -> Backend:
    # *Liveness*: a Nexus that stands still in the middle of a transaction does not make the others wait for ever.
    settings = (
        f"-c timezone=UTC -c statement_timeout={STATEMENT_MILLISECONDS_MAX}"
        f" -c idle_in_transaction_session_timeout={STATEMENT_MILLISECONDS_MAX}"
        # *Optimisation*: who reads a whole table, and PostgreSQL does where it is small, loses against everybody who
        # changes anything in it. Each query here has its index.
        " -c enable_seqscan=off"
    )
    arguments: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "nexus"}
    if "options" not in url.query:
        arguments["options"] = settings
    engine = create_engine(
        url,
        isolation_level="SERIALIZABLE",
        pool_size=connections,
        max_overflow=0,
        connect_args=arguments,
        hide_parameters=True,
    )
    _observe(engine)
    readonly = engine.execution_options(postgresql_readonly=True)
    # Not kept: both are out of one pool, and beside a question over the network the way through it counts for nothing.
    return Backend(Lanes(engine, keep=False), Lanes(readonly, keep=False), connections, connections, shared=True)


@contextmanager
def in_line(connection: Connection) -> Iterator[None]:
    """Wait until no other transaction that lost tries again, in any Nexus. *Optimisation*: losers who meet again and
    again make each other lose; one after the other they meet only those who try for the first time.

    The lock is the session's, and taken before the transaction begins: what it reads is of the moment after."""
    waited = _ask_outside(connection, f"SELECT pg_advisory_lock({LINE_OF_LOSERS})")
    try:
        yield
    finally:
        if waited and not connection.invalidated:
            _ask_outside(connection, f"SELECT pg_advisory_unlock({LINE_OF_LOSERS})")


def _ask_outside(connection: Connection, statement: str) -> bool:
    """Ask outside of any transaction; ``False`` where the server gave up waiting, or is gone: the transaction itself
    will hear of that."""
    driver: Any = connection.connection.driver_connection
    try:
        driver.autocommit = True
        driver.execute(statement).close()
        driver.autocommit = False
    except connection.dialect.loaded_dbapi.Error as error:
        if getattr(error, "sqlstate", None) == CANCELED:
            driver.autocommit = False
        return False
    return True


# -- both -------------------------------------------------------------------------------------------------------------


def _observe(engine: Engine) -> None:
    """Tell the attempt that is under way what its statements did, even where its body swallows an error.

    Listeners of the dialect, none of the engine: as soon as an engine has a listener of its own, each statement looks
    for those of six kinds (17.5 µs for a short one, else 13.7)."""

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, values: Any, context: Any) -> bool:
        context.dialect.do_execute(cursor, statement, values, context)
        _count(cursor, statement, context)
        return True

    @event.listens_for(engine, "do_executemany")
    def execute_many(cursor: Any, statement: str, values: Any, context: Any) -> bool:
        context.dialect.do_executemany(cursor, statement, values, context)
        _count(cursor, statement, context)
        return True

    @event.listens_for(engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        _withhold_values(context)
        if context.connection is None:
            return
        lane: Lane | None = context.connection.get_execution_options().get(LANE)
        if lane is not None and lane.tally.trouble is None:
            found = Trouble.LOST_CONNECTION if context.is_disconnect else meaning_of(context.original_exception)
            lane.tally.trouble = found if found in (Trouble.LOST_RACE, Trouble.LOST_CONNECTION) else None


def _count(cursor: Any, statement: str, context: Any) -> None:
    lane: Lane | None = context.execution_options.get(LANE)
    if lane is not None:
        lane.tally.statements += 1
        if cursor.rowcount > 0 and not statement.startswith("SELECT"):
            lane.tally.rows_written += cursor.rowcount


def _withhold_values(context: ExceptionContext) -> None:
    """*Safety*: PostgreSQL quotes the whole row that it refuses, keys of data included. Keep its first sentence only,
    which names the table and the constraint."""
    first_sentence = getattr(getattr(context.original_exception, "diag", None), "message_primary", None)
    if first_sentence is not None:
        context.original_exception.args = (first_sentence,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (first_sentence,)
