"""The rules of placement without a database: who is eligible, that copies share no fate, and how even it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.placement.choice import Candidate, InsufficientCapacity, Occupied, Shortage, choose
from nexus.placement.geometry import (
    DISK_BYTES_MAX,
    EXTENT_BYTES,
    GIB_BYTES,
    Geometry,
    InvalidSize,
    Sizes,
    reserved,
)

ROOM = 1000


def rack(sleds: int, pools: int = 1, **facts: int | bool | None) -> list[Candidate]:
    found = [
        Candidate(f"dataset {sled}.{pool}", f"pool {sled}.{pool}", f"sled {sled}", ROOM, 0)
        for sled in range(sleds)
        for pool in range(pools)
    ]
    return [replace(each, **facts) for each in found]  # type: ignore[arg-type]


def places(
    candidates: list[Candidate],
    new: int = 3,
    *,
    old: tuple[str, ...] = (),
    occupied: Occupied | None = None,
    distinct_sleds: bool = True,
    seed: str = "seed",
    size: int = 100,
) -> list[Candidate]:
    taken = occupied or Occupied(frozenset(old))
    return choose(candidates, taken, list(old), new=new, reserved_bytes=size, distinct_sleds=distinct_sleds, seed=seed)


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_extent_count() -> None:
    assert Geometry.of_disk(GIB_BYTES, 512) == Geometry(512, 131072, 16)
    for size, wanted in ((0, 0), (1, 1), (EXTENT_BYTES - 1, 1), (EXTENT_BYTES, 1), (EXTENT_BYTES + 1, 2)):
        assert Geometry.of_disk(size, 4096).extent_count == wanted


@given(st.integers(0, DISK_BYTES_MAX), st.sampled_from([512, 2048, 4096]))
def test_a_disk_fits_and_costs_a_quarter_more(size: int, block_size: int) -> None:
    geometry = Geometry.of_disk(size, block_size)
    assert size <= geometry.requested_bytes < size + EXTENT_BYTES
    assert geometry.reserved_bytes * 4 == geometry.requested_bytes * 5


def test_sizes_that_no_disk_may_have() -> None:
    for size in (0, GIB_BYTES - 1, GIB_BYTES + 1, DISK_BYTES_MAX + GIB_BYTES, -GIB_BYTES):
        with pytest.raises(InvalidSize, match="whole GiB"):
            Sizes().check(size)
    assert Sizes().check(DISK_BYTES_MAX) == DISK_BYTES_MAX
    for bad in ((GIB_BYTES, 1000, EXTENT_BYTES), (-1, 512, EXTENT_BYTES), (GIB_BYTES, 4096, 100)):
        with pytest.raises(InvalidSize):
            Geometry.of_disk(*bad)
    with pytest.raises(InvalidSize, match="divisible by 4"):
        reserved(6)


# -- who is eligible --------------------------------------------------------------------------------------------------


def test_copies_are_on_distinct_sleds() -> None:
    for seed in map(str, range(50)):
        chosen = places(rack(4, 3), seed=seed)
        assert len({each.sled_id for each in chosen}) == 3


def test_without_distinct_sleds_copies_are_on_distinct_pools() -> None:
    for seed in map(str, range(50)):
        assert len({each.pool_id for each in places(rack(1, 3), distinct_sleds=False, seed=seed)}) == 3


@pytest.mark.parametrize(
    "facts",
    [
        {"sled_in_service": False},
        {"disk_in_service": False},
        {"no_provision": True},
        {"free_bytes": None},
        {"free_bytes": 99},
    ],
    ids=str,
)
def test_what_may_not_be_used_is_not_used(facts: dict[str, int | bool | None]) -> None:
    """Also ``only_considers_disks_in_service`` and ``only_operates_on_zpools_in_inventory``."""
    unfit = [replace(each, dataset_id=f"un{each.dataset_id}", sled_id=f"un{each.sled_id}") for each in rack(9, **facts)]
    unfit = [replace(each, pool_id=f"un{each.pool_id}") for each in unfit]
    for seed in map(str, range(20)):
        assert {each.dataset_id for each in places([*unfit, *rack(3)], seed=seed)} == {
            f"dataset {number}.0" for number in range(3)
        }
    with pytest.raises(InsufficientCapacity) as caught:
        places(unfit)
    assert caught.value.shortage is Shortage.SPACE


def test_barely_enough_is_enough() -> None:
    assert len(places(rack(3, free_bytes=100))) == 3


def test_every_shortage_says_which() -> None:
    for candidates, shortage in ((rack(2), Shortage.SPACE), (rack(3, free_bytes=99), Shortage.SPACE)):
        with pytest.raises(InsufficientCapacity, match=r"^Not enough space: ") as caught:
            places(candidates)
        assert caught.value.shortage is shortage
    with pytest.raises(InsufficientCapacity, match=r"^Not enough datasets: "):
        places([], 1, occupied=Occupied(frozenset({"a", "b", "c"})))
    with pytest.raises(InsufficientCapacity, match=r"^Not enough unique zpools selected: "):
        places(rack(3), 1, old=("pool x", "pool x"))
    assert (InsufficientCapacity.STATUS, InsufficientCapacity.EXTERNAL) == (507, "Not enough storage")


def test_a_new_copy_keeps_clear_of_the_old_ones() -> None:
    """A replacement must not land on a sled that has a copy (#7382)."""
    old = ("pool 0.0", "pool 1.0", "pool 2.0")
    taken = Occupied(frozenset(old), frozenset({"sled 0", "sled 1", "sled 2"}))
    for seed in map(str, range(20)):
        (chosen,) = places(rack(4, 3), 1, old=old, occupied=taken, seed=seed)
        assert chosen.sled_id == "sled 3"
        (loose,) = places(rack(3, 2), 1, old=old, occupied=taken, distinct_sleds=False, seed=seed)
        assert loose.pool_id not in old
    with pytest.raises(InsufficientCapacity):
        places(rack(3, 3), 1, old=old, occupied=taken)


@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(1, 3), st.booleans())
def test_the_same_facts_and_seed_give_the_same_places(seed: int, sleds: int, pools: int, distinct: bool) -> None:
    facts = rack(sleds, pools)
    mixed = Random(seed).sample(facts, len(facts))
    chosen = places(facts, distinct_sleds=distinct, seed=str(seed))
    assert places(mixed, distinct_sleds=distinct, seed=str(seed)) == chosen
    assert len({each.pool_id for each in chosen}) == 3


# -- how even ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sleds", "pools", "least", "most"), [(10, 3, 98, 102), (32, 10, 6, 12)])
def test_a_thousand_disks_are_placed_evenly(sleds: int, pools: int, least: int, most: int) -> None:
    """The figures: of 3,000 regions each of 30 datasets gets 98 to 101, and each of 320 gets 6 to 11. By hash alone, as
    the real one draws, it was 80 to 118, and 2 to 18."""
    facts = {each.dataset_id: replace(each, free_bytes=10**9) for each in rack(sleds, pools)}
    regions: Counter[str] = Counter(dict.fromkeys(facts, 0))
    for number in range(1000):
        for each in places(list(facts.values()), seed=f"disk {number}"):
            regions[each.dataset_id] += 1
            facts[each.dataset_id] = replace(each, used_bytes=each.used_bytes + 100)
    assert least <= min(regions.values()) <= max(regions.values()) <= most
