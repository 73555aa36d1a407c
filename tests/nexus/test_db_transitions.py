"""Update and check: its four outcomes, in one transaction each, and two that want one row."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from db_rig import EPOCH, add_volume, uuid
from sqlalchemy import Connection, insert, select

from nexus.db import Conflict, Database, NotFound
from nexus.db.schema import inv_zpool, region_replacement, region_snapshot, volume
from nexus.db.transitions import Outcome, insert_if_absent, update_and_check

REQUEST, SAGA, OTHER_SAGA = uuid(1), uuid(2), uuid(3)
TAKE = {
    "expected": {"replacement_state": "requested", "operating_saga_id": None},
    "new": {"replacement_state": "allocating", "operating_saga_id": SAGA},
}
LET_GO = {
    "expected": {"replacement_state": "allocating", "operating_saga_id": SAGA},
    "new": {"replacement_state": "requested", "operating_saga_id": None},
}


def request(connection: Connection, number: int = 1, state: str = "requested", holder: str | None = None) -> None:
    row = {
        "id": uuid(number),
        "request_time": EPOCH,
        "old_region_id": uuid(100 + number),
        "volume_id": uuid(200),
        "replacement_state": state,
        "operating_saga_id": holder,
    }
    connection.execute(insert(region_replacement).values(row))


async def change(database: Database, how: dict[str, Any], key: str = REQUEST) -> Outcome:
    return await database.transact(lambda connection: update_and_check(connection, region_replacement, key, **how))


async def test_a_row_as_expected_is_changed_and_then_already_is_so(database: Database) -> None:
    await database.transact(request)
    assert await change(database, TAKE) is Outcome.UPDATED
    row = await database.read(lambda connection: connection.execute(select(region_replacement)).one())
    assert (row.replacement_state, row.operating_saga_id) == ("allocating", SAGA)
    assert await change(database, TAKE) is Outcome.ALREADY, "it recognises its own work"
    assert await change(database, LET_GO) is Outcome.UPDATED
    assert await change(database, LET_GO) is Outcome.ALREADY


async def test_another_sagas_row_is_a_conflict_that_names_state_and_holder(database: Database) -> None:
    await database.transact(lambda connection: request(connection, 1, "allocating", OTHER_SAGA))
    with pytest.raises(Conflict) as caught:
        await change(database, TAKE)
    assert str(caught.value) == (
        f"region_replacement {REQUEST} is allocating, held by saga {OTHER_SAGA}; expected requested held by nobody"
    )
    assert (caught.value.state, caught.value.operating_saga_id) == ("allocating", OTHER_SAGA)


async def test_no_such_row(database: Database) -> None:
    with pytest.raises(NotFound, match=f"there is no region_replacement {uuid(9)}"):
        await change(database, TAKE, uuid(9))


async def test_what_counts_as_already_done_may_be_wider_than_what_is_written(database: Database) -> None:
    """Edge 11 of a read-only replacement: any complete row will do."""
    await database.transact(lambda connection: request(connection, 1, "complete"))
    finish = {"expected": {"replacement_state": "completing", "operating_saga_id": SAGA}}
    with pytest.raises(Conflict):
        await change(database, {**finish, "new": {"replacement_state": "complete", "new_region_id": uuid(7)}})
    same = {"replacement_state": "complete"}
    assert await change(database, {**finish, "new": {"new_region_id": uuid(7)}, "same": same}) is Outcome.ALREADY


async def test_several_states_may_be_expected(database: Database) -> None:
    await database.transact(request)
    either = {"replacement_state": {"requested", "running"}}
    assert await change(database, {"expected": either, "new": TAKE["new"]}) is Outcome.UPDATED
    with pytest.raises(Conflict, match="expected requested or running"):
        await change(database, {"expected": either, "new": {"new_region_id": uuid(8)}})


async def test_a_row_with_several_key_columns(database: Database) -> None:
    key = {"dataset_id": uuid(1), "region_id": uuid(2), "snapshot_id": uuid(3)}

    def body(connection: Connection) -> list[Outcome]:
        connection.execute(insert(region_snapshot).values(**key, snapshot_addr="[fd00::1]:19000"))
        change = {"expected": {"deleting": False}, "new": {"deleting": True}}
        return [update_and_check(connection, region_snapshot, key, **change) for _ in range(2)]

    assert await database.transact(body) == [Outcome.UPDATED, Outcome.ALREADY]


async def test_a_conflict_of_a_volume_does_not_quote_its_request(database: Database) -> None:
    def body(connection: Connection) -> None:
        row = {"id": uuid(1), "time_created": EPOCH, "time_modified": EPOCH, "data": '{"key": "hunter2"}'}
        connection.execute(insert(volume).values(row))
        update_and_check(connection, volume, uuid(1), expected={"data": "hunter3"}, new={"data": "hunter4"})

    with pytest.raises(Conflict) as caught:
        await database.transact(body)
    assert "hunter" not in str(caught.value) and "hunter" not in repr(caught.value)


async def test_a_row_is_added_once(database: Database) -> None:
    row = {"id": uuid(1), "time_collected": EPOCH, "sled_id": uuid(2), "total_size": 1}
    for added in (True, False):
        assert await database.transact(lambda connection: insert_if_absent(connection, inv_zpool, row)) is added


async def test_of_two_that_want_one_row_one_gets_it(several: Any) -> None:
    """The race of every saga's first node: many Nexus start one for the same request."""
    first, second = several(), several()
    won: list[str] = []
    beaten_by: list[str | None] = []

    async def take(database: Database, saga_id: str) -> None:
        new = {"replacement_state": "allocating", "operating_saga_id": saga_id}
        try:
            await change(database, {**TAKE, "new": new}, key)
        except Conflict as lost:
            beaten_by.append(lost.operating_saga_id)
        else:
            won.append(saga_id)

    for number in range(20):
        key = uuid(1000 + number)
        await first.transact(lambda connection: request(connection, 1000 + number))  # noqa: B023 - awaited
        won.clear()
        beaten_by.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, first, SAGA)
            nursery.start_soon(take, second, OTHER_SAGA)
        assert len(won) == 1 and beaten_by == won
        await first.transact(
            lambda connection: update_and_check(
                connection,
                region_replacement,
                key,  # noqa: B023 - awaited
                expected={},
                new={"replacement_state": "complete", "operating_saga_id": None},
            )
        )


async def test_a_new_value_may_be_computed_from_the_old(database: Database) -> None:
    await database.transact(lambda connection: add_volume(connection, 1))
    up = {"rcgen": volume.c.rcgen + 1}
    for wanted in (2, 3):
        await database.transact(
            lambda connection: update_and_check(connection, volume, uuid(1), expected={}, new=up, same={})
        )
        assert await database.read(lambda connection: connection.scalar(select(volume.c.rcgen))) == wanted
