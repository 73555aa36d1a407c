"""What is charged: once, to everybody above, and given back once (nexus.md §1.3)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from db_rig import uuid
from sqlalchemy import insert

from nexus.db import Database, NotFound, schema
from nexus.objects.provisioning import FLEET_ID, charge_disk, charge_snapshot, provisioned_bytes, refund

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SILO, FIRST, SECOND = uuid(1), uuid(2), uuid(3)
Run = Callable[..., Any]


@pytest.fixture
def run(database: Database) -> Run:
    """A transaction on a database with two projects in one silo."""

    def transact(body: Callable[..., Any], *args: Any) -> Any:
        return database.transact_blocking(lambda connection: body(connection, *args))

    for project_id in (FIRST, SECOND):
        values: dict[str, Any] = {"id": project_id, "silo_id": SILO, "name": project_id, "description": ""}
        values |= {"time_created": NOW, "time_modified": NOW}
        transact(lambda c, values=values: c.execute(insert(schema.project).values(values)) and None)
    return transact


def charged(run: Run) -> list[int]:
    return [run(provisioned_bytes, each) for each in (FIRST, SECOND, SILO, FLEET_ID)]


def test_charges_add_up_and_are_made_once(run: Run) -> None:
    assert charged(run) == [0, 0, 0, 0]
    for _ in range(2):
        run(charge_disk, uuid(10), FIRST, 100, NOW)
        run(charge_snapshot, uuid(11), FIRST, 20, NOW)
        run(charge_disk, uuid(12), SECOND, 3, NOW)
        assert charged(run) == [120, 3, 123, 123]
    for _ in range(2):
        run(refund, uuid(10), NOW)
        assert charged(run) == [20, 3, 23, 23]
    run(refund, uuid(99), NOW)
    run(charge_disk, uuid(10), FIRST, 100, NOW)
    assert charged(run) == [120, 3, 123, 123]


def test_what_was_charged_is_refunded_whatever_is_said_later(run: Run) -> None:
    run(charge_disk, uuid(10), FIRST, 100, NOW)
    run(charge_disk, uuid(10), SECOND, 7, NOW)
    assert charged(run) == [100, 0, 100, 100]
    run(refund, uuid(10), NOW)
    assert charged(run) == [0, 0, 0, 0]


def test_nobody_is_charged_for_a_project_that_is_not_there(run: Run) -> None:
    with pytest.raises(NotFound):
        run(charge_disk, uuid(10), uuid(99), 100, NOW)
    run(charge_disk, uuid(10), FIRST, 100, NOW)
    assert charged(run) == [100, 0, 100, 100]
