"""What it costs to replace a copy of a snapshot that many disks were made of: counts, not times (W20).

The bench does the same with a thousand disks beside ten thousand volumes: ``python -m bench replacement``.
"""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import trio
from sqlalchemy import Connection, select

from bench.asked import Asked
from bench.crowd import Crowd
from bench.replacement import Counted, build, counted, nexus_over, summary
from nexus.db import Database, schema
from nexus.replacement import affected
from nexus.replacement.read_only import target_of
from nexus.volumes import walks
from nexus.volumes.resolution import Resource, drop_usage, resources_used_by
from nexus.volumes.search import every_volume

FEW, MANY, CROWD = 8, 32, 160
PLENTY = (
    schema.disk,
    schema.disk_type_crucible,
    schema.image,
    schema.region,
    schema.region_replacement,
    schema.region_snapshot,
    schema.region_snapshot_replacement,
    schema.region_snapshot_replacement_step,
    schema.saga_event,
    schema.snapshot,
    schema.virtual_provisioning_resource,
    schema.volume,
    schema.volume_resource_usage,
)
"""Tables that grow with what users have, or with what was done since the beginning."""


@cache
def of(dependents: int, unrelated: int = 0) -> Counted:
    """Each once: the counts are the same on every run."""
    return counted(dependents=dependents, unrelated=unrelated)


def test_each_affected_volume_is_touched_the_same_number_of_times_however_many_there_are() -> None:
    """Its document is read by the swap, and by who looks whether somebody has to be told and whether it is deleted; it
    is written once."""
    few, many = of(FEW), of(MANY)
    for each in (few, many):
        assert (each.reads, each.writes) == ((3, 3), (1, 1))
        assert each.named[0] == each.named[1] == few.named[0]
    assert few.steps > 10 * few.statements, "the machine's steps are counted at all"
    more = MANY - FEW
    assert (many.steps - few.steps) / more <= 1.05 * few.steps / FEW, "one more costs no more than each of a few"
    assert (many.statements - few.statements) / more <= few.statements / FEW


def test_a_volume_that_is_not_affected_is_never_read() -> None:
    """Not as a row, not by a plan that goes through a table, and not by passing over it: the steps are the same."""
    alone, beside = of(FEW), of(FEW, CROWD)
    assert beside.strangers == alone.strangers == 0
    assert beside.scans == alone.scans == {}
    assert (beside.reads, beside.writes, beside.named) == (alone.reads, alone.writes, alone.named)
    assert beside.steps <= 1.05 * alone.steps
    assert beside.activations == alone.activations


def test_no_background_task_goes_through_what_users_have() -> None:
    """Each is activated again and again while a replacement is under way, and most of the time when there is none. A
    disk in the hand of a saga has no index (the lease reaper)."""

    async def main(database: Database) -> None:
        async with nexus_over(database) as place:
            for task in place.tasks.values():
                await task.activate()

    with Database.open("sqlite://", inline=True, random=Random(1)) as database:
        build(database, 2, 20)
        asked = Asked(database, ())
        trio.run(main, database)
        found = asked.scans()
    assert {each.name for each in PLENTY} & set(found) <= {"disk"}
    assert len(found.get("disk", ())) <= 1


def test_figures_are_told_to_a_person() -> None:
    found = {"counted": [of(FEW).figures()], "rounds": 1}
    found |= {"per_volume": {"seconds": [0.1, 0.1], "cpu_seconds": [0.1, 0.1]}}
    lines = summary(found | {"ratio": {"seconds": 1.0, "cpu_seconds": 1.0, "steps": 1.0}})
    assert "each row read 3 times and written 1," in lines[0] and "gone through: nothing" in lines[0]


# -- the counts count -------------------------------------------------------------------------------------------------


def test_who_looked_through_all_volumes_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real one does it (W20): by documents, a page at a time, which no plan calls a scan."""

    def scanned(connection: Connection, resource: Resource) -> list[str]:
        target = target_of(connection, resource)
        assert target is not None
        return [
            volume_id
            for volume_id, deleted, request in every_volume(connection)
            if not deleted and walks.contains_read_only_target(request, target.address)
        ]

    monkeypatch.setattr(affected, "volumes_using", scanned)
    found = counted(dependents=2, unrelated=20)
    assert found.strangers > 0 and found.reads == (3, 3), "a page names no volume that it reads"


def test_a_row_that_comes_back_is_met_though_no_statement_named_it() -> None:
    with Database.open("sqlite://", inline=True, random=Random(1)) as database:
        family = build(database, 2, 0)
        asked = Asked(database, family.volume_ids)
        volumes = database.transact_blocking(lambda c: c.execute(select(schema.volume.c.id)).scalars().all())
        assert set(family.volume_ids) <= set(volumes)
        assert {asked.met[each] for each in family.volume_ids} == {1}
        assert not any(asked.named(each) for each in family.volume_ids)


def test_a_statement_that_goes_through_a_table_is_found_out() -> None:
    with Database.open("sqlite://", inline=True, random=Random(1)) as database:
        asked = Asked(database, ())
        through = select(schema.volume.c.id).where(schema.volume.c.rcgen == 2)
        found = select(schema.disk).where(schema.disk.c.id == "1")
        for query in (through, found):
            database.transact_blocking(lambda c, asks=query: c.execute(asks).all())  # type: ignore[misc]
        assert set(asked.scans()) == {"volume"}


@pytest.mark.parametrize("dependents", [20, 400])
def test_to_let_go_of_a_reference_costs_the_same_however_many_there_are(dependents: int) -> None:
    """Or the stashes of a request would be the slower to delete, the more of them there are."""
    with Database.open("sqlite://", inline=True, random=Random(1)) as database:
        family = Crowd(database).build(disks=0, snapshots=0, dependents=dependents)
        assert family is not None
        volume_id = family.volume_ids[0]
        resource = database.transact_blocking(lambda c: resources_used_by(c, volume_id))[0]
        asked = Asked(database, ())
        assert not database.transact_blocking(lambda c: drop_usage(c, volume_id, resource))
        assert asked.steps <= 300
