"""Which earlier jobs each job waits for: the cases of the real project, job by job, through the core.

The jobs of a case are numbered from 0, as they come. A write (W) and a write-unwritten (U) block, and so does a flush
(F); a read (R) does not. Blocks are given as first and last.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstairs_rig import Rig

from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs.dependencies import EVERY_BLOCK, DependencyTracker
from crucible_emu.upstairs.jobs import FIRST_JOB_ID, Job
from crucible_emu.upstairs.rules import JobKind

Wanted = list[set[int]]

CASES: dict[str, tuple[str, Wanted]] = {
    "a write waits for one on its block": ("W0 W0", [set(), {0}]),
    "writes of a block are a chain": ("W0 W0 W0", [set(), {0}, {1}]),
    "a flush stands between writes": ("W0 F W0", [set(), {0}, {1}]),
    "every write waits for the flush before it": (
        "W0 W1 W2 F W3 W4 W5",
        [set(), set(), set(), {0, 1, 2}, {3}, {3}, {3}],
    ),
    "small writes on a big one": ("W0-2 W0 W1 W2", [set(), {0}, {0}, {0}]),
    "small writes on a big one, a chain": (
        "W0-2 W0 W1 W2 W0 W1 W2",
        [set(), {0}, {0}, {0}, {1}, {2}, {3}],
    ),
    "a big write on small ones": ("W0 W1 W2 W0-2", [set(), set(), set(), {0, 1, 2}]),
    "reads of a block that was written": ("W0 R0 R0", [set(), {0}, {0}]),
    "a big read on small writes": ("W0 W1 W2 R0-1", [set(), set(), set(), {0, 1}]),
    "reads do not wait for reads": ("R0 R0", [set(), set()]),
    "a read waits for the flush": ("W0 F R0", [set(), {0}, {1}]),
    "flushes are a chain": ("F F F", [set(), {0}, {1}]),
    "a flush waits for what was written since, and for the last one elsewhere": (
        "F W0 W1 F W0 W1 W2 F",
        [set(), {0}, {0}, {0, 1, 2}, {3}, {3}, {3}, {3, 4, 5, 6}],
    ),
    "a write waits for a read": ("R0 W0", [set(), {0}]),
    "a write-unwritten waits for a read, and a read for it": ("R0 U0 R0", [set(), {0}, {1}]),
    "read, flush, write": ("R0 F W0", [set(), {0}, {1}]),
    "a ladder of pairs": ("R0 U0 R1-2 W1-2 R3-4 U3-4", [set(), {0}, set(), {2}, set(), {4}]),
    "a ladder of pairs that overlap, upwards": ("W0-1 W1-2 W2-3 U3-4", [set(), {0}, {1}, {2}]),
    "a ladder of pairs that overlap, downwards": ("W4-5 W3-4 U2-3 W1-2", [set(), {0}, {1}, {2}]),
    "one write over the ends of two": ("W0-1 W4-5 W1-4", [set(), set(), {0, 1}]),
    "writes over an extent border": ("W95-102 W99 W100 W99-100", [set(), {0}, {0}, {1, 2}]),
    "there and back over an extent border": (
        "W95-96 W96-102 W101 U99-101 R99",
        [set(), {0}, {1}, {1, 2}, {3}],
    ),
    "one write over the ends of two in two extents": ("W95-96 W103-104 W96-103", [set(), set(), {0, 1}]),
}
KINDS = {"W": JobKind.WRITE, "U": JobKind.WRITE_UNWRITTEN, "R": JobKind.READ}


def submit(rig: Rig, operation: str) -> Job:
    """One job of a case. Reads all go to one replica, so that it knows them."""
    kind, first, last = re.fullmatch(r"([WURF])(\d*)-?(\d*)", operation).groups()  # type: ignore[union-attr]
    if kind == "F":
        rig.flush(None)
        return rig.replicas[0].jobs[-1]
    start, length = int(first), int(last or first) - int(first) + 1
    job = rig.core.new_job(KINDS[kind], [start], [length], length * 512, None)
    if kind == "R":
        rig.core.read(job, 0)
    else:
        rig.core.write(job)
    rig.run()
    return job


@pytest.mark.parametrize("name", CASES)
def test_dependency_cases(name: str) -> None:
    text, wanted = CASES[name]
    rig = Rig(RegionDefinition(512, 100, 2, Rig().definition.uuid)).active()
    jobs = [submit(rig, operation) for operation in text.split()]
    found = [{job_id - FIRST_JOB_ID for job_id in rig.dependencies(job)} for job in jobs]
    assert found == wanted


def test_a_write_behind_reads_names_the_write_below_them_too() -> None:
    """More than the real one names: the reads went to one replica, and order nothing on the others."""
    rig = Rig().active()
    first, read, second = (submit(rig, operation) for operation in ("W0", "R0", "W0"))
    assert rig.dependencies(second, 0) == [first.first_id, read.first_id]
    assert rig.dependencies(second, 2) == [first.first_id]


inserts = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 20), st.booleans()), max_size=12)


@given(operations=inserts, ended=st.sets(st.integers(0, 11)))
def test_the_segments_of_the_tracker_are_sorted_disjoint_and_not_empty(
    operations: list[tuple[int, int, bool]], ended: set[int]
) -> None:
    """After each step; and what has ended is named by nobody, whichever ends first."""
    tracker = DependencyTracker()
    for job, (start, length, blocks) in enumerate(operations):
        record = tracker.block if blocks else tracker.read
        found = record(job, start, start + length, lambda other: other not in ended)
        assert not ended & set(found) and all(other < job for other in found) and found == sorted(found)
        starts, ends = tracker._starts, [segment.end for segment in tracker._segments]
        assert all(start < end for start, end in zip(starts, ends, strict=True))
        assert all(end <= start for end, start in zip(ends, starts[1:]))
    alive = set(range(len(operations))) - ended
    assert set(tracker.block_everything(100, lambda job: job in alive)) <= alive
    assert (len(tracker), tracker._segments[0].end) == (1, EVERY_BLOCK)
