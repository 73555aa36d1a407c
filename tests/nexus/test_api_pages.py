"""Listings: in every order, page by page, and at a cost that does not grow with the list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from api_rig import Asking, served, some_disk, some_things
from db_rig import open_database
from sqlalchemy import Connection, event, select

from nexus.db import Database, schema
from nexus.objects import lookups
from nexus.objects.disks import disks_selected
from nexus.objects.lookups import Order, Slice

FEW = {"sleds": 1, "checked": False}


@pytest.fixture
def in_memory() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


async def all_of(asking: Asking, path: str, limit: int, **query: Any) -> list[Any]:
    """Every item, page by page; a page is full but for the last."""
    found: list[Any] = []
    token: dict[str, str] = {}
    while True:
        page = await asking.ask("GET", path, limit=limit, **(query if not token else {}), **token)
        found += page["items"]
        if page["next_page"] is None:
            assert len(page["items"]) < limit
            return found
        assert len(page["items"]) == limit
        token = {"page_token": page["next_page"]}


async def test_disks_in_every_order_and_in_pages_of_every_size(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database, **FEW) as it:
        names = [f"{letter}{number}" for letter in "abz" for number in range(3)]
        for name in reversed(names):
            some_disk(it.rack, it.rack.project_id, name)
        some_disk(it.rack, it.other_project, "not-mine")
        gone = {"disk_state": "destroyed", "time_deleted": it.rack.now()}
        some_disk(it.rack, it.rack.project_id, "gone", **gone)
        for order, expected in (("name_ascending", names), ("name_descending", names[::-1])):
            for limit in (1, 2, 9, 10, 1000):
                found = await all_of(it.user, "/v1/disks", limit, sort_by=order)
                assert [each["name"] for each in found] == expected, (order, limit)
        by_id = [each["id"] for each in await all_of(it.user, "/v1/disks", 4, sort_by="id_ascending")]
        assert by_id == sorted(by_id) and len(by_id) == len(names)
        first = await it.user.ask("GET", "/v1/disks", limit=4)
        assert [each["name"] for each in first["items"]] == names[:4], "by name, where nothing is said"
        some_disk(it.rack, it.rack.project_id, "a3")
        it.rack.set(schema.disk, by_id[0], name="zz")
        rest = await it.user.ask("GET", "/v1/disks", limit=100, page_token=first["next_page"])
        seen = {each["name"] for each in first["items"]} & {each["name"] for each in rest["items"]}
        assert not seen, "what comes and goes between two pages makes nothing be seen twice"


async def test_every_listing_has_pages(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, sleds=3, checked=False) as it:
        for number in range(3):
            some_things(it.rack, it.rack.project_id, f"thing{number}")
            it.rack.add(schema.project, silo_id=it.rack.silo_id, name=f"p{number}", description="")
            params = {"id": it.rack.id(), "name": "gone-recipe", "params": "{}", "labels": "[]", "state": "done"}
            it.rack.add(schema.saga, **params, executor_id="x", fence=0, event_count=0)
        instance = it.rack.run(lambda c: c.execute(select(schema.instance.c.id)).scalars().first())
        for slot, disk in enumerate(it.rack.run(lambda c: list(c.execute(select(schema.disk.c.id)).scalars()))):
            it.rack.set(schema.disk, disk, disk_state="attached", attach_instance_id=instance, slot=slot)
        sled = next(iter(it.rack.sled_of.values()))
        for asking, path, least, query in (
            (it.user, "/v1/disks", 3, {}),
            (it.user, "/v1/snapshots", 3, {}),
            (it.user, "/v1/images", 3, {"project": "project"}),
            (it.user, "/v1/instances", 3, {}),
            (it.user, f"/v1/instances/{instance}/disks", 3, {}),
            (it.operator, "/v1/projects", 5, {}),
            (it.operator, "/v1/system/hardware/sleds", 3, {}),
            (it.operator, "/v1/system/hardware/disks", 3, {}),
            (it.operator, f"/v1/system/hardware/sleds/{sled}/disks", 1, {}),
            (it.lockstep, "/sagas", 3, {}),
            (it.lockstep, "/emulator/v1/sagas", 3, {}),
            (it.lockstep, "/emulator/v1/sleds", 3, {}),
            (it.lockstep, "/emulator/v1/physical-disks", 3, {}),
            (it.lockstep, "/emulator/v1/silos", 1, {}),
            (it.lockstep, "/emulator/v1/projects", 5, {}),
            (it.lockstep, "/emulator/v1/tokens", 2, {}),
        ):
            whole = (await asking.ask("GET", path, **query))["items"]
            assert len(whole) >= least, path
            scope = query
            page = await asking.ask("GET", path, limit=1, **scope)
            told = page["items"]
            while page["next_page"] is not None:
                page = await asking.ask("GET", path, limit=1, page_token=page["next_page"], **scope)
                told += page["items"]
            assert told == whole, path


NO_PAGES = (
    {"limit": "0"},
    {"limit": "-1"},
    {"limit": "x"},
    {"limit": "4294967296"},
    {"limit": ""},
    {"sort_by": "size"},
    {"page_token": "x"},
    {"page_token": ""},
    {"page_token": "e30="},
    {"page_token": "W10="},
    {"page_token": "eyJ2IjogMSwgImJ5IjogInNpemUiLCAibGFzdCI6ICJhIn0="},
    {"page_token": "eyJ2IjogMSwgImJ5IjogIm5hbWVfYXNjZW5kaW5nIiwgImxhc3QiOiAiXHUwMDAwIn0="},
    {"page_token": "A" * 600},
    {"project": "No Name"},
    {"project": ""},
)


async def test_a_page_that_is_none_is_a_bad_request(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        for query in NO_PAGES:
            assert (await it.user.ask("GET", "/v1/disks", status=400, **query))["error_code"] == "InvalidRequest"


# -- what it costs ----------------------------------------------------------------------------------------------------

PROJECT = "00000000-0000-4000-8000-00000000ffff"
LISTED = {
    "disks": (disks_selected(), schema.disk, lookups.in_project(schema.disk, PROJECT)),
    "snapshots": (select(schema.snapshot), schema.snapshot, lookups.in_project(schema.snapshot, PROJECT)),
    "images": (select(schema.image), schema.image, lookups.images_of_project(PROJECT, PROJECT)),
    "images of the silo": (select(schema.image), schema.image, lookups.images_of_silo(PROJECT)),
    "instances": (select(schema.instance), schema.instance, lookups.in_project(schema.instance, PROJECT)),
}


@pytest.mark.parametrize("what", LISTED)
def test_a_page_is_a_walk_along_an_index(what: str, in_memory: Database) -> None:
    """SQLite's plan, in every order: an index is searched, nothing is scanned, and nothing is sorted."""
    query, table, where = LISTED[what]
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        statements.append((statement, parameters))

    def body(connection: Connection, order: Order) -> list[str]:
        event.listen(connection.engine, "before_cursor_execute", note)
        lookups.page(connection, query.where(where), table, Slice(5, order, "m"))
        event.remove(connection.engine, "before_cursor_execute", note)
        statement, parameters = statements[-1]
        return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]

    for order in Order:
        for line in in_memory.transact_blocking(partial(body, order=order)):
            assert not line.startswith("SCAN") and "TEMP B-TREE" not in line, (line, statements[-1][0])


async def test_a_page_costs_the_same_in_a_long_list(tmp_path: Path, in_memory: Database) -> None:
    """Counted in what SQLite does for it: steps of its machine, of which each row takes some."""
    async with served(tmp_path, in_memory, **FEW) as it:

        def steps_of(wanted: Slice) -> int:
            def body(connection: Connection) -> int:
                count = 0

                def step() -> int:
                    nonlocal count
                    count += 1
                    return 0

                raw: Any = connection.connection.dbapi_connection
                raw.set_progress_handler(step, 1)
                inside = lookups.in_project(schema.disk, it.rack.project_id)
                assert len(lookups.page(connection, disks_selected().where(inside), schema.disk, wanted)) == 5
                raw.set_progress_handler(None, 1)
                return count

            return in_memory.transact_blocking(body)

        def measured() -> list[int]:
            return [steps_of(Slice(5, order, middle)) for order, middle in MIDDLES]

        for number in range(20):
            some_disk(it.rack, it.rack.project_id, f"d{number:04}")
        few = measured()
        for number in range(20, 400):
            some_disk(it.rack, it.rack.project_id, f"d{number:04}")
        assert all(many <= 1.1 * before for many, before in zip(measured(), few, strict=True)), (few, measured())


MIDDLES = (
    (Order.NAME_ASCENDING, "d0009"),
    (Order.NAME_DESCENDING, "d0009"),
    (Order.ID_ASCENDING, "00000000-0000-0000-0000-000000000000"),
)
