"""Regions placed in one transaction: again, beside others, within capacity, on what is in service, and evenly."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from volumes_rig import SMALL, Rack

from nexus.db import Conflict, Database, schema
from nexus.placement import (
    Allocation,
    Geometry,
    InsufficientCapacity,
    Shortage,
    regions_allocate,
    regions_hard_delete,
    regions_of,
)
from nexus.placement.allocation import AllocatedRegion
from nexus.placement.geometry import GIB_BYTES
from nexus.volumes.resolution import RegionSnapshot

ONE_GIB = Geometry.of_disk(GIB_BYTES, 512)


@pytest.fixture
def rack(database: Database) -> Rack:
    return Rack(database)


def wanted(rack: Rack, number: int = 3, **changes: Any) -> Allocation:
    values = {"volume_id": rack.id(), "geometry": SMALL, "seed": "seed", **changes}
    return Allocation(region_ids=tuple(rack.id() for _ in range(number)), **values)


def allocate(rack: Rack, allocation: Allocation) -> list[AllocatedRegion]:
    return rack.run(regions_allocate, allocation, rack.now())


def used(rack: Rack, dataset_id: str) -> int:
    dataset = schema.crucible_dataset
    return rack.run(lambda c: c.execute(select(dataset.c.size_used).where(dataset.c.id == dataset_id)).scalar_one())


def pool_of(rack: Rack, dataset_id: str) -> Any:
    dataset, pool = schema.crucible_dataset, schema.zpool
    query = select(pool).join(dataset, dataset.c.pool_id == pool.c.id).where(dataset.c.id == dataset_id)
    return rack.run(lambda c: c.execute(query).one())


# -- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distinct_sleds", [False, True])
def test_region_allocation_strategy_random_is_idempotent(rack: Rack, distinct_sleds: bool) -> None:
    """Also ``test_region_allocation_strat_random`` and ``…_with_distinct_sleds_is_idempotent``."""
    for _ in range(4):
        rack.add_sled(pools=2)
    allocation = wanted(rack, distinct_sleds=distinct_sleds)
    made = allocate(rack, allocation)
    assert sorted(allocation.region_ids) == [each.region_id for each in made]
    assert len({each.sled_id if distinct_sleds else each.pool_id for each in made}) == 3
    assert allocate(rack, allocation) == made == rack.run(regions_of, allocation.volume_id)
    assert sum(used(rack, each.dataset_id) for each in made) == 3 * SMALL.reserved_bytes, "charged once"


def test_an_undo_takes_its_regions_and_no_others(rack: Rack) -> None:
    """W35: between allocation and undo somebody records a port and frees another region of the volume."""
    for _ in range(5):
        rack.add_sled()
    first = allocate(rack, wanted(rack))
    volume_id = rack.run(lambda c: c.execute(select(schema.region.c.volume_id)).scalars().first())
    fourth = wanted(rack, 1, volume_id=volume_id)
    allocate(rack, fourth)
    rack.set(schema.region, first[0].region_id, port=19000)
    rack.run(regions_hard_delete, [first[1].region_id], rack.now())
    rack.run(regions_hard_delete, fourth.region_ids, rack.now())
    left = [each.region_id for each in rack.run(regions_of, volume_id)]
    assert left == [first[0].region_id, first[2].region_id]
    assert allocate(rack, fourth)[-1].region_id in fourth.region_ids, "and it can be done again"


def test_two_that_allocate_for_one_volume_get_a_region_each(rack: Rack) -> None:
    """R3: with counts, both would compute four, and share one."""
    for _ in range(5):
        rack.add_sled()
    volume_id = rack.id()
    for number in (3, 1, 1):
        allocate(rack, wanted(rack, number, volume_id=volume_id))
    assert len(rack.run(regions_of, volume_id)) == 5


def test_the_id_of_another_volumes_region_is_refused(rack: Rack) -> None:
    for _ in range(3):
        rack.add_sled()
    taken = wanted(rack)
    allocate(rack, taken)
    with pytest.raises(Conflict, match="does not belong to volume"):
        allocate(rack, Allocation(rack.id(), taken.region_ids, SMALL, "seed"))


def test_single_region_allocate(rack: Rack) -> None:
    rack.add_sled()
    (made,) = allocate(rack, wanted(rack, 1))
    assert used(rack, made.dataset_id) == SMALL.reserved_bytes == 10240


# -- beside what is there ---------------------------------------------------------------------------------------------


def test_single_region_allocate_for_replace(rack: Rack) -> None:
    for _ in range(4):
        rack.add_sled()
    first = wanted(rack)
    old = allocate(rack, first)
    more = allocate(rack, wanted(rack, 1, volume_id=first.volume_id))
    assert len(more) == 4 and set(old) < set(more)
    assert len({each.dataset_id for each in more}) == 4


def test_single_region_allocate_for_replace_not_enough_zpools(rack: Rack) -> None:
    for _ in range(3):
        rack.add_sled()
    first = wanted(rack)
    old = allocate(rack, first)
    with pytest.raises(InsufficientCapacity) as caught:
        allocate(rack, wanted(rack, 1, volume_id=first.volume_id))
    assert caught.value.shortage is Shortage.SPACE
    assert rack.run(regions_of, first.volume_id) == old


def test_proper_region_sled_redundancy(rack: Rack) -> None:
    for _ in range(4):
        rack.add_sled(pools=3)
    first = wanted(rack)
    allocate(rack, first)
    assert len({each.sled_id for each in allocate(rack, wanted(rack, 1, volume_id=first.volume_id))}) == 4


def test_region_allocation_strat_random_with_distinct_sleds_fails(rack: Rack) -> None:
    for _ in range(2):
        rack.add_sled(pools=3)
    with pytest.raises(InsufficientCapacity, match="Not enough space"):
        allocate(rack, wanted(rack))
    assert len(allocate(rack, wanted(rack, distinct_sleds=False))) == 3


def test_region_allocation_for_snapshot(rack: Rack) -> None:
    """A clone lands on none of the pools that hold the snapshot; the same again is the same; another is another."""
    for _ in range(5):
        rack.add_sled()
    snapshot = rack.snapshot(rack.disk())
    held = {member.resource.dataset_id for member in snapshot.members if isinstance(member.resource, RegionSnapshot)}
    first = wanted(rack, 1, volume_id=snapshot.volume_id, snapshot_id=snapshot.id)
    (clone,) = allocate(rack, first)
    assert clone.read_only and clone.dataset_id not in held
    assert allocate(rack, first) == [clone]
    both = allocate(rack, wanted(rack, 1, volume_id=snapshot.volume_id, snapshot_id=snapshot.id))
    assert len({each.dataset_id for each in both} | held) == 5


# -- what may be used -------------------------------------------------------------------------------------------------


def unfit(rack: Rack, how: str) -> None:
    """A fourth sled that must not be chosen."""
    (dataset_id,) = rack.add_sled(size_bytes=0 if how == "not in inventory" else 16 * GIB_BYTES)
    pool = pool_of(rack, dataset_id)
    match how:
        case "no_provision on the dataset":
            rack.set(schema.crucible_dataset, dataset_id, no_provision=True)
        case "no_provision on the sled":
            rack.set(schema.sled, pool.sled_id, sled_policy="no_provision")
        case "sled expunged":
            rack.set(schema.sled, pool.sled_id, sled_policy="expunged")
        case "disk expunged":
            rack.set(schema.physical_disk, pool.physical_disk_id, disk_policy="expunged")
        case "dataset forgotten":
            rack.set(schema.crucible_dataset, dataset_id, time_deleted=rack.now())
        case "control plane buffer":
            rack.set(schema.zpool, pool.id, control_plane_storage_buffer=16 * GIB_BYTES)
        case "newest inventory":
            rack.add(schema.inv_zpool, id=pool.id, time_collected=rack.now(), sled_id=pool.sled_id, total_size=100)


@pytest.mark.parametrize(
    "how",
    [
        "not in inventory",
        "no_provision on the dataset",
        "no_provision on the sled",
        "sled expunged",
        "disk expunged",
        "dataset forgotten",
        "control plane buffer",
        "newest inventory",
    ],
)
def test_do_not_provision_on_what_may_not_be_used(rack: Rack, how: str) -> None:
    """``test_do_not_provision_on_dataset``, ``…_not_enough``, ``…_only_considers_disks_in_service``,
    ``…_only_operates_on_zpools_in_inventory``, ``…_fail_control_plane_storage_buffer``."""
    good = [rack.add_sled()[0] for _ in range(2)]
    unfit(rack, how)
    with pytest.raises(InsufficientCapacity):
        allocate(rack, wanted(rack))
    good += rack.add_sled()
    assert sorted(each.dataset_id for each in allocate(rack, wanted(rack))) == sorted(good)


def test_region_allocation_out_of_space_fails(rack: Rack) -> None:
    """Exactly as many as fit; then one goes and one fits again."""
    for _ in range(3):
        rack.add_sled(size_bytes=3 * ONE_GIB.reserved_bytes + ONE_GIB.reserved_bytes - 1)
    made = [allocate(rack, wanted(rack, geometry=ONE_GIB)) for _ in range(3)]
    with pytest.raises(InsufficientCapacity, match="Not enough space"):
        allocate(rack, wanted(rack, geometry=ONE_GIB))
    rack.run(regions_hard_delete, [each.region_id for each in made[0]], rack.now())
    assert used(rack, made[0][0].dataset_id) == 2 * ONE_GIB.reserved_bytes
    assert len(allocate(rack, wanted(rack, geometry=ONE_GIB))) == 3


def test_disk_size_accounting(rack: Rack) -> None:
    datasets = [rack.add_sled()[0] for _ in range(3)]
    disks = [rack.disk() for _ in range(2)]
    for number, left in ((None, 2), (0, 1), (1, 0)):
        if number is not None:
            rack.delete(disks[number].volume_id)
        assert [used(rack, each) for each in datasets] == [left * SMALL.reserved_bytes] * 3
    rack.assert_nothing_left()


def test_snapshot_prevents_other_disk(rack: Rack) -> None:
    """The space of a deleted disk is taken until its snapshot is deleted."""
    for _ in range(3):
        rack.add_sled(size_bytes=SMALL.reserved_bytes)
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    rack.delete(disk.volume_id)
    with pytest.raises(InsufficientCapacity):
        allocate(rack, wanted(rack))
    rack.delete(snapshot.volume_id)
    assert len(allocate(rack, wanted(rack))) == 3
