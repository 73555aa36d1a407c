"""Region definitions and runs of blocks."""

from __future__ import annotations

import itertools
import json
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.geometry import (
    GeometryError,
    RegionDefinition,
    equal_runs,
    runs,
    spans_to_blocks,
    split_at_extents,
)

EXAMPLE = RegionDefinition(512, 100, 3, UUID("12345678-1111-2222-3333-123456789999"))
EXAMPLE_JSON = """{
  "block_size": 512,
  "extent_size": {
    "value": 100,
    "shift": 9
  },
  "extent_count": 3,
  "uuid": "12345678-1111-2222-3333-123456789999",
  "encrypted": false,
  "database_read_version": 1,
  "database_write_version": 1
}
"""


def test_region_json_is_the_real_programs_byte_for_byte() -> None:
    assert EXAMPLE.dumps() == EXAMPLE_JSON
    assert RegionDefinition.from_json(json.loads(EXAMPLE_JSON)) == EXAMPLE


def test_sizes_follow_from_the_definition() -> None:
    assert (EXAMPLE.shift, EXAMPLE.total_blocks, EXAMPLE.extent_bytes, EXAMPLE.size_bytes) == (9, 300, 51200, 153600)


@pytest.mark.parametrize(
    ("block_size", "blocks_per_extent", "extent_count", "said"),
    [
        (256, 10, 1, "block size 256"),
        (1000, 10, 1, "power of two"),
        (65536, 10, 1, "32768"),
        (512, 0, 1, "at least 1 block"),
        (4096, 131073, 1, "at most 131072"),
        (512, 1, 2**32, "extent count"),
        (512, 1, -1, "extent count"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(
    block_size: int, blocks_per_extent: int, extent_count: int, said: str
) -> None:
    with pytest.raises(GeometryError, match=said):
        RegionDefinition(block_size, blocks_per_extent, extent_count, UUID(int=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_size": "512"}, "block_size"),
        ({"block_size": True}, "block_size"),
        ({"extent_size": 100}, "extent_size"),
        ({"extent_size": {"value": 100, "shift": 12}}, "disagree"),
        ({"database_read_version": 2}, "database_read_version is 2"),
        ({"uuid": "nonsense"}, "not a UUID"),
        ({"encrypted": 1}, "encrypted"),
    ],
)
def test_a_foreign_region_json_is_refused_with_the_member(change: dict[str, object], said: str) -> None:
    with pytest.raises(GeometryError, match=said):
        RegionDefinition.from_json({**json.loads(EXAMPLE_JSON), **change})


def test_unknown_members_are_ignored_and_missing_ones_are_not() -> None:
    members = json.loads(EXAMPLE_JSON)
    assert RegionDefinition.from_json({**members, "colour": "blue"}) == EXAMPLE
    for name in members:
        with pytest.raises(GeometryError):
            RegionDefinition.from_json({key: value for key, value in members.items() if key != name})


@given(start=st.integers(0, 500), count=st.integers(0, 500), per_extent=st.integers(1, 50))
def test_pieces_at_extent_borders_cover_the_range_once(start: int, count: int, per_extent: int) -> None:
    pieces = list(split_at_extents(start, count, per_extent))
    covered = [eid * per_extent + first + i for eid, first, length in pieces for i in range(length)]
    assert covered == list(range(start, start + count))
    assert all(first + length <= per_extent and length for _, first, length in pieces)


@given(values=st.sets(st.integers(0, 60)))
def test_runs_cover_exactly_the_indexes(values: set[int]) -> None:
    indexes = np.array(sorted(values), np.int64)
    found = runs(indexes)
    assert [index for start, stop in found for index in range(start, stop)] == sorted(values)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


@given(values=st.lists(st.integers(0, 2)), start=st.integers(0, 9))
def test_equal_runs_rebuild_the_array(values: list[int], start: int) -> None:
    found = equal_runs(np.array(values, np.int64), start)
    assert [value for begin, stop, value in found for _ in range(begin, stop)] == values
    assert all(before[1] == after[0] and before[2] != after[2] for before, after in itertools.pairwise(found))


@given(spans=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 9)), min_size=1, max_size=12))
def test_spans_become_their_blocks_in_order(spans: list[tuple[int, int]]) -> None:
    starts, counts = [s for s, _ in spans], [c for _, c in spans]
    assert spans_to_blocks(starts, counts).tolist() == [block for s, c in spans for block in range(s, s + c)]
