"""Transactions: all or nothing, again after a lost race, never after an error of one's own, safe to cancel."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from threading import Barrier, Event, current_thread
from typing import Any

import pytest
import trio
from db_rig import EPOCH, PostgresServer, add_volume, open_database, uuid
from sqlalchemy import Connection, func, insert, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from nexus.db import Contention, Database, OutcomeUnknown, Unreachable, engines
from nexus.db import database as database_module
from nexus.db.schema import saga_lease, volume


def volumes(connection: Connection) -> int:
    found: int | None = connection.scalar(select(func.count()).select_from(volume))
    return found or 0


async def test_a_transaction_returns_what_its_body_returned(database: Database) -> None:
    made = await database.transact(lambda connection: add_volume(connection, 1))
    assert made == uuid(1)
    row = await database.read(lambda connection: connection.execute(select(volume)).one())
    assert (row.id, row.time_created, row.time_deleted) == (uuid(1), EPOCH, None)
    statistics = database.statistics()
    assert (statistics.transactions, statistics.reads, statistics.rows_written) == (1, 1, 1)


async def test_what_the_body_raises_undoes_it_and_is_not_tried_again(database: Database) -> None:
    runs = []

    def body(connection: Connection) -> None:
        runs.append(add_volume(connection, 1))
        raise LookupError("no such sled")

    with pytest.raises(LookupError, match="no such sled"):
        await database.transact(body)
    assert len(runs) == 1 and await database.read(volumes) == 0
    assert database.statistics().rolled_back == 1


async def test_a_transaction_that_may_not_happen_is_undone(database: Database) -> None:
    """Who may lose the right to change anything asks first, in the same transaction; others do not ask."""
    allowed = [True]

    def ask(connection: Connection) -> None:
        if not allowed[0]:
            raise PermissionError("not yours any more")

    guarded = database.guarded(ask)
    await guarded.transact(lambda connection: add_volume(connection, 1))
    allowed[0] = False
    with pytest.raises(PermissionError, match="not yours"):
        await guarded.transact(lambda connection: add_volume(connection, 2))
    await database.transact(lambda connection: add_volume(connection, 3))
    assert await guarded.read(volumes) == 2
    assert guarded.statistics() == database.statistics()


async def test_after_body_sees_the_transaction_and_may_undo_it(database: Database) -> None:
    def at_most_one(connection: Connection) -> None:
        if volumes(connection) > 1:
            raise AssertionError("two volumes")

    database.after_body = at_most_one
    await database.transact(lambda connection: add_volume(connection, 1))
    with pytest.raises(AssertionError, match="two volumes"):
        await database.transact(lambda connection: add_volume(connection, 2))
    assert await database.read(volumes) == 1


async def test_a_refused_row_is_an_error_that_quotes_no_value(database: Database) -> None:
    secret = '{"key": "hunter2"}'
    with pytest.raises(IntegrityError) as caught:
        await database.transact(lambda connection: add_volume(connection, 1, data=secret, resources_to_clean_up="{}"))
    assert "resources_are_of_a_deleted_volume" in str(caught.value)
    shown = "".join(map(str, (caught.value, caught.value.orig, repr(caught.value), repr(caught.value.orig))))
    assert "hunter2" not in shown and caught.value.hide_parameters


# -- races ------------------------------------------------------------------------------------------------------------


async def test_two_that_count_up_lose_no_update(several: Any) -> None:
    """Read, think, write: the race that SERIALIZABLE is for. Each of two Nexus processes does it 25 times."""
    first, second = several(), several()
    await first.transact(lambda connection: add_volume(connection, 1))

    def count_up(connection: Connection) -> None:
        seen = connection.execute(select(volume.c.rcgen)).scalar_one()
        connection.execute(update(volume).values(rcgen=seen + 1))

    async def often(database: Database) -> None:
        for _ in range(25):
            await with_patience(database, count_up)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(often, first)
        nursery.start_soon(often, second)
    assert await first.read(lambda connection: connection.scalar(select(volume.c.rcgen))) == 51


async def with_patience(database: Database, body: Any) -> Any:
    """As a background task would: what lost too often is tried again the next period."""
    while True:
        try:
            return await database.transact(body)
        except Contention:
            continue


async def test_look_then_insert_ends_with_one_row_and_no_error(several: Any) -> None:
    """The race of ``volume_create``: both look, neither sees it, both insert."""
    first, second = several(), several()

    def make(connection: Connection, number: int) -> bool:
        if connection.execute(select(volume.c.id).where(volume.c.id == uuid(number))).first() is not None:
            return False
        add_volume(connection, number)
        return True

    for number in range(1, 26):
        made = []

        async def one(database: Database) -> None:
            made.append(await database.transact(lambda connection: make(connection, number)))  # noqa: B023 - awaited

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, first)
            nursery.start_soon(one, second)
        assert sorted(made) == [False, True]


async def test_two_that_take_the_first_free_slot_at_once_get_two(postgres_url: str) -> None:
    """The race of two disks that are attached to one instance: each looks which slots are taken, and takes another. It
    is a unique index that tells the second, and not the rule that transactions seem to run alone."""
    with open_database(postgres_url) as database:
        together, runs = Barrier(2), Counter[int]()

        def take(connection: Connection, number: int) -> None:
            runs[number] += 1
            taken = set(connection.execute(select(saga_lease.c.holder_id)).scalars())
            if runs[number] == 1:
                together.wait(timeout=60)
            free = next(each for each in map(uuid, count(1)) if each not in taken)
            connection.execute(insert(saga_lease).values(holder_id=free, saga_id=uuid(number), time_taken=EPOCH))

        async with trio.open_nursery() as nursery:
            for number in (1, 2):
                nursery.start_soon(database.transact, partial(take, number=number))
        rows = await database.read(
            lambda connection: connection.execute(select(saga_lease.c.holder_id)).scalars().all()
        )
        assert sorted(rows) == [uuid(1), uuid(2)]


async def test_what_a_unique_index_refuses_every_time_is_refused(postgres_url: str) -> None:
    with open_database(postgres_url) as database:
        await database.transact(lambda connection: add_volume(connection, 1))
        with pytest.raises(IntegrityError):
            await database.transact(lambda connection: add_volume(connection, 1))
        assert database.statistics().retries == database_module.ATTEMPTS_BESIDE_OTHERS + 1


async def test_two_that_each_look_at_what_the_other_writes_cannot_both_win(postgres_url: str) -> None:
    """Write skew, which weaker isolation lets through: each marks one of two only if the other is not marked."""
    with open_database(postgres_url) as first, open_database(postgres_url) as second:

        def prepare(connection: Connection) -> None:
            add_volume(connection, 1)
            add_volume(connection, 2)

        await first.transact(prepare)
        barrier = Barrier(2)
        runs = []

        def mark(connection: Connection, own: int, other: int) -> bool:
            runs.append(own)
            taken = connection.execute(select(volume.c.time_deleted).where(volume.c.id == uuid(other))).scalar_one()
            if len(runs) <= 2:
                barrier.wait(timeout=60)  # both have looked before either writes
            if taken is None:
                connection.execute(update(volume).where(volume.c.id == uuid(own)).values(time_deleted=EPOCH))
            return taken is None

        won = []

        async def one(database: Database, own: int, other: int) -> None:
            won.append(await database.transact(lambda connection: mark(connection, own, other)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, first, 1, 2)
            nursery.start_soon(one, second, 2, 1)
        assert sorted(won) == [False, True]
        assert len(runs) == 3, "one of them ran again"
        assert first.statistics().retries + second.statistics().retries == 1


async def test_what_always_loses_gives_up_and_says_so(several: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is told each time that it lost: so many attempts, and nothing of it happened."""
    monkeypatch.setattr(database_module, "LONGEST_PAUSE_SECONDS_MAX", 0.05)
    database, runs = several(), []

    def lose(connection: Connection) -> None:
        runs.append(add_volume(connection, len(runs)))
        raise Lost

    with pytest.raises(Contention, match="20 times"):
        await database.transact(lose)
    assert len(runs) == database.statistics().retries == 20
    assert await database.read(volumes) == 0
    with pytest.raises(Contention):
        database.transact_blocking(lose)


async def test_losers_that_meet_again_and_again_stand_in_line(postgres_url: str) -> None:
    """The race of many deletions: each reads what every other one writes, so of all that meet only one can win."""
    everybody = 8
    with open_database(postgres_url, connections=everybody) as database:
        await database.transact(lambda connection: [add_volume(connection, 1)])
        runs, inside, most = Counter[int](), [], []

        def count_up(connection: Connection, who: int) -> None:
            runs[who] += 1
            if runs[who] <= database_module.ATTEMPTS_BESIDE_OTHERS:
                raise Lost
            inside.append(who)
            most.append(len(inside))
            found = connection.scalar(select(volume.c.rcgen, func.pg_sleep(0.02)))
            connection.execute(update(volume).values(rcgen=found + 1))
            inside.remove(who)

        async with trio.open_nursery() as nursery:
            for who in range(everybody):
                nursery.start_soon(database.transact, partial(count_up, who=who))
        assert await database.read(lambda connection: connection.scalar(select(volume.c.rcgen))) == 1 + everybody
        assert set(runs.values()) == {database_module.ATTEMPTS_BESIDE_OTHERS + 1}, "in line nobody loses again"
        assert max(most) == 1


class Lost(Exception):
    """What PostgreSQL's driver raises for a serialization failure, as far as anybody looks."""

    sqlstate = "40001"


async def test_an_error_that_the_body_swallows_does_not_lose_the_transaction_silently(postgres_url: str) -> None:
    """PostgreSQL would answer COMMIT with a rollback, and nobody would know."""
    with open_database(postgres_url) as database:

        def body(connection: Connection) -> None:
            add_volume(connection, 1)
            with suppress(IntegrityError):
                add_volume(connection, 1)

        with pytest.raises(RuntimeError, match="swallowed"):
            await database.transact(body)
        assert await database.read(volumes) == 0


async def test_another_process_holds_sqlite_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(database_module, "LONGEST_PAUSE_SECONDS_MAX", 0.05)
    url = f"sqlite:///{tmp_path}/nexus.db"
    with open_database(url) as database, open_database(url) as other:
        held, let_go = Event(), Event()

        def hold(connection: Connection) -> None:
            add_volume(connection, 1)
            held.set()
            assert let_go.wait(timeout=60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.transact, hold)
            await trio.to_thread.run_sync(held.wait)
            assert await database.read(volumes) == 0, "who reads need not wait"
            with pytest.raises(Contention):
                await database.transact(lambda connection: add_volume(connection, 2))
            let_go.set()
        await database.transact(lambda connection: add_volume(connection, 2))
        assert await other.read(volumes) == 2


async def test_who_reads_cannot_write(several: Any) -> None:
    database = several()
    with pytest.raises(DBAPIError, match=r"readonly|read-only"):
        await database.read(lambda connection: add_volume(connection, 1))
    await database.transact(lambda connection: add_volume(connection, 1))


# -- cancellation and loss --------------------------------------------------------------------------------------------


async def test_who_is_cancelled_while_the_body_runs_still_gets_its_result(several: Any) -> None:
    database, running, go_on = several(), Event(), Event()
    found: list[str] = []

    def body(connection: Connection) -> str:
        running.set()
        assert go_on.wait(timeout=60)
        return add_volume(connection, 1)

    async with trio.open_nursery() as nursery:

        async def transact() -> None:
            found.append(await database.transact(body))

        nursery.start_soon(transact)
        await trio.to_thread.run_sync(running.wait)
        nursery.cancel_scope.cancel()
        go_on.set()
    assert found == [uuid(1)] and await database.read(volumes) == 1


async def test_who_is_cancelled_before_the_body_runs_has_done_nothing(database: Database) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.transact(lambda connection: add_volume(connection, 1))
    assert scope.cancelled_caught and await database.read(volumes) == 0


async def test_cancelling_often_leaks_no_connection(several: Any) -> None:
    """More often than there are connections, at every moment."""
    database = several(connections=2)
    for number in range(40):
        with trio.move_on_after(0.0003 * number):
            await database.transact(lambda connection: add_volume(connection, number))  # noqa: B023 - awaited
    before = await database.read(volumes)
    async with trio.open_nursery() as nursery:
        for number in range(100, 110):
            nursery.start_soon(database.transact, lambda connection, number=number: add_volume(connection, number))
    assert await database.read(volumes) == before + 10


def end_own_connection(postgres: PostgresServer, connection: Connection) -> None:
    postgres.command(f"SELECT pg_terminate_backend({connection.exec_driver_sql('SELECT pg_backend_pid()').scalar()})")


async def test_a_lost_connection_is_replaced_and_the_body_run_again(
    postgres: PostgresServer, postgres_url: str
) -> None:
    runs = []

    def body(connection: Connection) -> None:
        runs.append(add_volume(connection, 1))
        if len(runs) == 1:
            end_own_connection(postgres, connection)
        add_volume(connection, 2)

    with open_database(postgres_url) as database:
        await database.transact(body)
        assert len(runs) == 2 and await database.read(volumes) == 2


async def test_a_connection_lost_at_commit_is_not_tried_again(postgres: PostgresServer, postgres_url: str) -> None:
    runs = []

    def body(connection: Connection) -> None:
        runs.append(add_volume(connection, 1))
        end_own_connection(postgres, connection)

    with open_database(postgres_url) as database:
        with pytest.raises(OutcomeUnknown):
            await database.transact(body)
        assert len(runs) == 1 and await database.read(volumes) == 0


async def test_a_database_that_is_gone_is_tried_ten_times_and_said_so(postgres: PostgresServer) -> None:
    url = postgres.empty_url()
    with open_database(url) as database:
        postgres.command(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")
        with pytest.raises(Unreachable, match="does not answer"):
            await database.transact(lambda connection: add_volume(connection, 1))
        assert database.statistics().retries == 10


async def test_a_database_that_is_not_there_is_said_so(tmp_path: Path, postgres: PostgresServer) -> None:
    for url in (f"sqlite:///{tmp_path}/no/such/directory/nexus.db", postgres.url("no_such_database")):
        with pytest.raises(Unreachable, match="cannot be opened"):
            Database.open(url)
    with pytest.raises(ValueError, match="mysql"):
        Database.open("mysql://host/name")


# -- a world that is the same on every run ----------------------------------------------------------------------------


async def test_inline_runs_in_the_loops_own_thread() -> None:
    with open_database("sqlite://", inline=True) as database:
        assert await database.transact(lambda _: current_thread()) is current_thread()
    with open_database("sqlite://") as database:
        assert await database.transact(lambda _: current_thread()) is not current_thread()


async def test_a_database_in_memory_is_empty_whatever_the_one_before_it_held() -> None:
    for _ in range(3):
        with open_database("sqlite://", inline=True) as database:
            assert await database.read(volumes) == 0
            await database.transact(lambda connection: add_volume(connection, 1))


def test_without_a_loop(database: Database) -> None:
    database.transact_blocking(lambda connection: add_volume(connection, 1))
    assert database.transact_blocking(volumes) == 1
    with pytest.raises(LookupError):
        database.transact_blocking(lambda _: (_ for _ in ()).throw(LookupError()))
