"""Transactions: all or nothing, again after a lost race, never after an error of one's own, safe to cancel."""

from __future__ import annotations

import pytest
from db_rig import EPOCH, add_volume, uuid
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from nexus.db import Database
from nexus.db.schema import volume


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
