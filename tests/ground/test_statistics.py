"""The one shape of what components count, and every component that has it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields

import pytest

from crucible_emu.downstairs.statistics import Statistics as DownstairsStatistics
from crucible_emu.nbd.statistics import Statistics as NbdStatistics
from crucible_emu.region.statistics import LEVELS, RegionStatistics
from crucible_emu.statistics import Snapshot, snapshot_of
from crucible_emu.upstairs.statistics import UpstairsStatistics


@dataclass
class Counted:
    """Something that counts."""

    done: int = 3
    waiting: int = 2
    name: str = "not a number"


def test_numbers_are_told_apart_and_what_is_none_is_left_out() -> None:
    counted = Counted()
    found = snapshot_of("thing", counted, levels=frozenset({"waiting"}), tables={("errors", "error"): {"EIO": 1}})
    assert (found.component, found.counters, found.levels) == ("thing", {"done": 3}, {"waiting": 2})
    assert found.as_dict() == {"done": 3, "waiting": 2, "errors": {"EIO": 1}}
    counted.done = 99
    assert found.counters["done"] == 3, "a moment, not a view"
    with pytest.raises(FrozenInstanceError):
        found.component = "other"  # type: ignore[misc]


def test_every_component_has_the_shape() -> None:
    region = RegionStatistics(*range(len(fields(RegionStatistics))))
    taken = [
        UpstairsStatistics(writes=1).snapshot(),
        DownstairsStatistics(jobs=1).snapshot(),
        NbdStatistics(connections=1).snapshot(),
        region.snapshot(),
    ]
    assert all(isinstance(snapshot, Snapshot) for snapshot in taken)
    assert [snapshot.component for snapshot in taken] == ["upstairs", "downstairs", "nbd", "region"]
    assert taken[3].levels.keys() == LEVELS
    for snapshot in taken:
        assert not snapshot.counters.keys() & snapshot.levels.keys()
        assert snapshot.as_dict().keys() >= snapshot.counters.keys()
