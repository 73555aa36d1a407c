"""No two Downstairs of a rack ever share a port, data or repair, however the rack grew."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.rack import plan, ports
from crucible_emu.rack.document import RackFile, Sled
from crucible_emu.rack.ports import SPARE_LOW_PORT, Pool, place, ports_each
from crucible_emu.rack.state import RackState
from crucible_emu.wire.constants import REPAIR_PORT_OFFSET


def test_offset_is_that_of_the_wire() -> None:
    assert ports.REPAIR_PORT_OFFSET == REPAIR_PORT_OFFSET


def all_apart(pools: list[Pool]) -> bool:
    """Port by port, so that the arithmetic of the pools is not checked with itself."""
    seen = [port for pool in pools for each in pool.ranges for port in each]
    return len(seen) == len(set(seen))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 1500)), min_size=1, max_size=4), st.integers(1024, 30000))
def test_pools_never_overlap_however_they_were_added(rounds: list[tuple[int, int]], low: int) -> None:
    placed: list[Pool] = []
    for wanted, count in rounds:
        with suppress(UsageError):  # where no room is left
            placed += place(wanted, count, placed, low=low)
    assert all_apart(placed)
    assert all(not a.overlaps(b) for a, b in combinations(placed, 2))
    assert all(port <= ports.PORT_MAX for pool in placed for each in pool.ranges for port in (each[0], each[-1]))


@given(st.integers(1, 128))
def test_any_number_of_agents_fits(agents: int) -> None:
    pools = place(agents, ports_each(agents))
    assert all_apart(pools)
    if agents <= 80:  # below the ports that the system gives to clients
        assert max(pool.ranges[1].stop for pool in pools) <= 32768


def test_real_defaults_allow_four_agents() -> None:
    assert [pool.low for pool in place(5, 1000)] == [19000, 20000, 21000, 22000, 27000]
    assert ports_each(1) == ports_each(4) == 1000
    assert [pool.low for pool in place(5, ports_each(5))] == [19000, 19800, 20600, 21400, 22200]


def test_overlap_is_seen_between_data_and_repair_ports() -> None:
    assert Pool(19000, 1000).overlaps(Pool(23999, 1))
    assert Pool(23000, 1).overlaps(Pool(19000, 1))
    assert not Pool(19000, 1000).overlaps(Pool(20000, 1000))
    assert 23500 in Pool(19000, 1000) and 20000 not in Pool(19000, 1000)
    assert Pool(19050, 100).hundreds == {190, 191, 230, 231}


def test_hundreds_of_another_rack_are_passed_over() -> None:
    assert [pool.low for pool in place(2, 100, refused=frozenset({190, 191}))] == [19200, 19300]


@pytest.mark.parametrize(
    ("count", "low", "words"),
    [
        (0, 19000, "0 ports for each agent"),
        (4001, 19000, "take 1 to 4000"),
        (10, 0, "0 is no port"),
        (10, 65000, "fit"),
    ],
)
def test_what_cannot_be_placed_is_one_sentence(count: int, low: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        place(1, count, low=low)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 5))
def test_a_rack_that_grows_keeps_its_pools(disks: list[int], more: int) -> None:
    """The pool of an agent is in its records and in those of the control plane: it may not move."""
    from pathlib import Path

    def rack(counts: list[int]) -> RackFile:
        return RackFile(tuple(Sled(f"sled{index}", count) for index, count in enumerate(counts)))

    state, root = RackState(), Path("rack")
    before = plan.wanted_pools(rack(disks), plan.services(rack(disks), root), state)
    state.pools.update(before)
    grown = rack([*disks, more])
    after = plan.wanted_pools(grown, plan.services(grown, root), state)
    assert {name: after[name] for name in before} == before
    assert all_apart(list(after.values()))
    assert len(after) == sum(disks) + more


def test_what_the_system_gives_to_clients_is_taken_last() -> None:
    """A Downstairs that may be started at any time does not find its port taken by somebody's connection."""
    system = range(32768, 61000)
    first = place(5, 800, system=system)
    assert [pool.low for pool in first] == [19000, 19800, 20600, 21400, 22200]
    second = place(5, 800, first, system=system)
    assert not any(pool.overlaps(other) for pool in second for other in first)
    assert all(each.stop <= system.start for pool in second for each in pool.ranges)
    assert all(pool.low >= SPARE_LOW_PORT for pool in second)
    assert [pool.low for pool in place(1, 100, low=40000, system=system)] == [61000], "who says where means it"
    assert [pool.low for pool in place(1, 4000, low=40000, system=range(1, 65536))] == [40000], "rather than none"
