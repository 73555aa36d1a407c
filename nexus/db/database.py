"""Transactions: the one way in which Nexus reads and changes what it remembers (nexus.md §0.3).

A transaction is a plain function of a connection, its *body*. It runs as if it were alone in the world, and either all
of it happened or nothing. Where it loses a race it is run again from scratch, up to ten times with a random pause; so
it must do nothing but ask and tell the database. What it raises undoes it and is passed on, never tried again.

The whole body runs in one thread, and the thread is changed once per transaction: a statement costs tens of
microseconds, a change of threads about as much. With ``inline`` it runs where the loop runs, and no thread exists:
that is for tests and the explorer, whose world has to be the same on every run. (To make a statement costs SQLAlchemy
about three times what running it does: 66 and 24 µs. What runs often is made once, with ``bindparam``.)

What it guarantees to somebody who is cancelled: Cancelled is raised only while nothing is committed. Once the body is
under way it is waited for, and its result is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import trio
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from crucible_emu.logs import get_logger
from nexus.db.engines import Backend, Lanes, Tally, Trouble, in_line, meaning_of, open_backend
from nexus.db.errors import Contention, OutcomeUnknown, Unreachable
from nexus.db.migrations import make_in_memory, migrate

ATTEMPTS_MAX = 20
CONNECTIONS_LOST_MAX = 10
PAUSE_SECONDS_MAX = 0.05
LONGEST_PAUSE_SECONDS_MAX = 0.8
"""The pauses grow from the one to the other. The real one tries ten times, and they do not grow (§0.3); but of twenty
that meet on one page of an index, one may lose ten times within 25 ms each."""
ATTEMPTS_BESIDE_OTHERS = 3
"""Who lost so often tries again one after the other; and what a unique index has refused so often is refused."""
CONNECTIONS = 8

T = TypeVar("T")
Body = Callable[[Connection], T]
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a database was asked since it was opened. ``transactions`` and ``reads`` are those that came to their end,
    ``retries`` the attempts that lost a race, ``rolled_back`` those undone by what their body raised."""

    transactions: int = 0
    reads: int = 0
    retries: int = 0
    rolled_back: int = 0
    statements: int = 0
    rows_written: int = 0


@dataclass(slots=True)
class Attempt(Generic[T]):
    """How one run of a body went: a value, an error to pass on, or a reason to try again."""

    tally: Tally
    value: T | None = None
    error: BaseException | None = None
    again: Trouble | None = None


class Database:
    """What Nexus remembers. Made by :meth:`open`; use it as a context manager, or :meth:`close` it.

    ``after_body``: run at the end of each transaction that may write, before it is committed; what it raises undoes
    the transaction. Tests check the invariants there.
    """

    def __init__(self, backend: Backend, *, inline: bool, random: Random) -> None:
        self._backend = backend
        self._inline = inline
        self._random = random
        self._writers = trio.CapacityLimiter(backend.writers)
        self._readers = self._writers if backend.shared else trio.CapacityLimiter(backend.readers)
        self._counts: dict[str, int] = dict.fromkeys(Statistics.__dataclass_fields__, 0)
        self.after_body: Body[None] | None = None
        self._ask: Body[None] | None = None

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        inline: bool = False,
        random: Random | None = None,
        connections: int = CONNECTIONS,
    ) -> Self:
        """Open the database at ``url`` (``sqlite:///FILE``, ``sqlite://`` for one in memory, ``postgresql://…``), and
        make or bring up to date its schema. Blocks: it is done once, before the loop has anything else to do.

        ``random`` draws the pauses. Raises :class:`~nexus.db.errors.SchemaUnknown`,
        :class:`~nexus.db.errors.Unreachable`.
        """
        backend = open_backend(url, connections)
        try:
            (make_in_memory if backend.in_memory else migrate)(backend.writer.engine)
        except (OperationalError, InterfaceError) as error:
            backend.close()
            raise Unreachable(f"the database cannot be opened: {error.orig}") from error
        except BaseException:
            backend.close()
            raise
        return cls(backend, inline=inline, random=random or SystemRandom())

    def close(self) -> None:
        """Let go of all connections; nothing may be under way."""
        self._backend.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._backend.dialect

    @property
    def engines(self) -> tuple[Engine, ...]:
        """For who watches: the writers', and the readers' where they have one of their own."""
        return tuple(dict.fromkeys((self._backend.writer.engine, self._backend.reader.engine)))

    def image(self) -> bytes:
        """All that is in a database in memory."""
        return self.transact_blocking(lambda connection: bytes(_driver(connection).serialize()))

    def fill(self, image: bytes) -> None:
        """Put ``image`` in the place of all that is in a database in memory."""
        # Into a new connection: one that was used has statements in store that know where tables were.
        self._backend.close()
        with self._backend.writer.lend(Tally()) as lane:
            _driver(lane.connection).deserialize(image)

    def statistics(self) -> Statistics:
        return Statistics(**self._counts)

    def guarded(self, ask: Body[None]) -> Database:
        """The same database for somebody whose transactions run ``ask`` before their bodies; what it raises undoes
        them. It is neither closed nor counted by itself."""
        view = copy(self)
        view._ask = ask
        return view

    async def transact(self, body: Body[T]) -> T:
        """Run ``body`` as one transaction; what it returned. Raises what it raised, and
        :class:`~nexus.db.errors.Contention`, :class:`~nexus.db.errors.Unreachable`,
        :class:`~nexus.db.errors.OutcomeUnknown`."""
        return await self._run(self._write, self._asking(body), self._writers, "transactions")

    async def read(self, body: Body[T]) -> T:
        """As :meth:`transact`, for a body that only reads: it sees one moment, and need not wait for who writes."""
        return await self._run(self._read, body, self._readers, "reads")

    def transact_blocking(self, body: Body[T]) -> T:
        """As :meth:`transact`, without a loop: for tools and tests, while nobody else uses this database object."""
        for number in range(1, ATTEMPTS_MAX + 1):
            attempt = self._write(self._asking(body), number)
            if self._is_over(attempt, number, "transactions"):
                break
            time.sleep(self._pause_seconds(number))
        return attempt.value  # type: ignore[return-value]  # the body's own value

    def _asking(self, body: Body[T]) -> Body[T]:
        ask = self._ask
        if ask is None:
            return body

        def both(connection: Connection) -> T:
            ask(connection)
            return body(connection)

        return both

    # -- attempts -----------------------------------------------------------------------------------------------------

    async def _run(
        self, run: Callable[[Body[T], int], Attempt[T]], body: Body[T], limiter: trio.CapacityLimiter, counted: str
    ) -> T:
        for number in range(1, ATTEMPTS_MAX + 1):
            if self._inline:
                await trio.lowlevel.checkpoint()
                attempt = run(body, number)
            else:
                # Not abandoned on cancel: what is under way ends, and its connection goes back.
                attempt = await trio.to_thread.run_sync(run, body, number, limiter=limiter)
            if self._is_over(attempt, number, counted):
                break
            await trio.sleep(self._pause_seconds(number))
        return attempt.value  # type: ignore[return-value]  # the body's own value

    def _pause_seconds(self, number: int) -> float:
        """How long to wait after attempt ``number`` lost."""
        most: float = min(PAUSE_SECONDS_MAX * 2 ** (number - 1), LONGEST_PAUSE_SECONDS_MAX)
        return self._random.uniform(0, most)

    def _is_over(self, attempt: Attempt[Any], number: int, counted: str) -> bool:
        """Whether there is a value; if there is not, whether to try again. Raises what is to be passed on."""
        counts = self._counts
        counts["statements"] += attempt.tally.statements
        if attempt.again is not None:
            counts["retries"] += 1
            most = CONNECTIONS_LOST_MAX if attempt.again is Trouble.LOST_CONNECTION else ATTEMPTS_MAX
            if attempt.again is Trouble.TAKEN and number > ATTEMPTS_BESIDE_OTHERS:
                counts["rolled_back"] += 1
                raise attempt.error or AssertionError("what was refused has an error")
            if number < most:
                log.debug("transaction runs again", attempt=number, reason=attempt.again.value)
                return False
            if attempt.again is Trouble.LOST_CONNECTION:
                raise Unreachable("the database does not answer") from attempt.error
            said = getattr(attempt.error, "orig", None) or attempt.error
            raise Contention(f"the transaction lost against others {ATTEMPTS_MAX} times: {said}") from attempt.error
        if attempt.error is not None:
            counts["rolled_back"] += 1
            raise attempt.error
        counts[counted] += 1
        counts["rows_written"] += attempt.tally.rows_written
        return True

    def _write(self, body: Body[T], number: int) -> Attempt[T]:
        return self.attempt(self._backend.writer, body, self.after_body, number)

    def _read(self, body: Body[T], number: int) -> Attempt[T]:
        return self.attempt(self._backend.reader, body, None, number)

    def attempt(self, lanes: Lanes, body: Body[T], after_body: Body[None] | None, number: int) -> Attempt[T]:
        """Run ``body`` for the ``number``-th time; this is what happens in the thread. (The explorer's world is the
        same on every run, and it knows of some bodies already what comes of them.)"""
        attempt: Attempt[T] = Attempt(Tally())
        lost_often = number > ATTEMPTS_BESIDE_OTHERS and self.dialect == "postgresql"
        committing = False
        try:
            with (
                lanes.lend(attempt.tally) as lane,
                in_line(lane.connection) if lost_often else nullcontext(),
                lane.connection.begin() as begun,
            ):
                connection = lane.connection
                attempt.value = body(connection)
                if after_body is not None:
                    after_body(connection)
                _refuse_doomed(connection, attempt.tally)
                committing = True
                begun.commit()
        except BaseException as error:  # noqa: BLE001 - passed on, or a reason to try again
            attempt.error = error
            attempt.again = _reason_to_try_again(error, attempt.tally)
            if committing and attempt.again is Trouble.LOST_CONNECTION:
                attempt.again = None
                attempt.error = OutcomeUnknown("the database was lost while it committed")
                attempt.error.__cause__ = error
        return attempt


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


class _Doomed(Exception):
    """The body swallowed an error after which the database commits nothing."""


def _refuse_doomed(connection: Connection, tally: Tally) -> None:
    """*Safety*: PostgreSQL answers a COMMIT after a failed statement with a silent ROLLBACK."""
    if tally.trouble is not None:
        raise _Doomed
    if connection.dialect.name == "postgresql":
        status = _driver(connection).info.transaction_status.name
        if status == "INERROR":
            raise RuntimeError("a transaction's body swallowed an error of the database: nothing can be committed")


def _reason_to_try_again(error: BaseException, tally: Tally) -> Trouble | None:
    if tally.trouble is not None:
        return tally.trouble
    # Raised outside of a statement: connecting, beginning, committing.
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _is_connecting(error)):
        return Trouble.LOST_CONNECTION
    cause = error.orig if isinstance(error, DBAPIError) else error
    meaning = Trouble.MISTAKE if cause is None else meaning_of(cause)
    return meaning if meaning in (Trouble.LOST_RACE, Trouble.TAKEN) else None


def _is_connecting(error: DBAPIError) -> bool:
    """Errors of connecting belong to no statement, and PostgreSQL's driver gives them no code."""
    return isinstance(error, OperationalError) and error.statement is None and _has_no_code(error.orig)


def _has_no_code(error: BaseException | None) -> bool:
    return getattr(error, "sqlstate", "") is None
