"""What an agent holds against what is recorded of it: a pure comparison, with neither database nor network.

What it guarantees: nothing is reported that is as it should be, and each difference once, with the ids of what differs.
A region that its agent has destroyed is as good as one that it never had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from crucible_emu.agent.documents import GetSnapshotResponse, Region, RunningSnapshot, State
from nexus.volumes.freed import Dataset
from nexus.volumes.invariants import Finding

INVARIANT = "agent"

Key = tuple[str, str]
"""The region, and the snapshot of it."""


@dataclass(frozen=True, slots=True)
class RegionRow:
    """A region as it is recorded."""

    id: str
    port: int | None
    block_size: int
    blocks_per_extent: int
    extent_count: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is recorded of one dataset. ``snapshots``: the port of each running snapshot; ``None`` while it is being
    deleted, and may be stopped already."""

    dataset: Dataset
    regions: Mapping[str, RegionRow] = field(default_factory=dict)
    snapshots: Mapping[Key, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What its agent answered; ``snapshots`` by region. ``silence``: why it did not."""

    regions: tuple[Region, ...] = ()
    snapshots: Mapping[str, GetSnapshotResponse] = field(default_factory=dict)
    silence: str | None = None


def differences(recorded: Recorded, held: Holdings) -> Iterator[Finding]:
    """In what they differ."""
    where = f"dataset {recorded.dataset.id}"
    if held.silence is not None:
        yield Finding(INVARIANT, f"the agent of {where} does not answer: {held.silence}", (recorded.dataset.id,))
        return
    there = {each.id: each for each in held.regions if each.state is not State.DESTROYED}
    for region_id in sorted(there.keys() - recorded.regions.keys()):
        state = there[region_id].state.value
        yield Finding(INVARIANT, f"{where} holds region {region_id}, {state}, of which there is no row", (region_id,))
    for region_id in sorted(recorded.regions.keys() - there.keys()):
        yield Finding(INVARIANT, f"region {region_id} has a row, but {where} does not hold it", (region_id,))
    for region_id in sorted(recorded.regions.keys() & there.keys()):
        for difference in _of_region(recorded.regions[region_id], there[region_id]):
            yield Finding(INVARIANT, f"region {region_id} on {where} {difference}", (region_id,))
    yield from _snapshots(recorded, held, where)


def _of_region(row: RegionRow, region: Region) -> Iterator[str]:
    if region.state is not State.CREATED:
        yield f"is {region.state.value} at its agent"
    if row.port is None:
        yield f"listens on port {region.port_number}, which is not recorded"
    elif row.port != region.port_number:
        yield f"listens on port {region.port_number}, and port {row.port} is recorded"
    recorded = (row.block_size, row.blocks_per_extent, row.extent_count)
    held = (region.block_size, region.extent_size, region.extent_count)
    if recorded != held:
        yield f"has the geometry {_geometry(held)}, and {_geometry(recorded)} is recorded"
    if row.read_only != region.read_only:
        kinds = {True: "read-only", False: "read/write"}
        yield f"is {kinds[region.read_only]}, and is recorded as {kinds[row.read_only]}"


def _geometry(sizes: tuple[int, int, int]) -> str:
    return " x ".join(map(str, sizes))


def _snapshots(recorded: Recorded, held: Holdings, where: str) -> Iterator[Finding]:
    there = {(region_id, each.name) for region_id, found in held.snapshots.items() for each in found.snapshots}
    running = {
        (region_id, name): each
        for region_id, found in held.snapshots.items()
        for name, each in found.running_snapshots.items()
        if each.state is not State.DESTROYED
    }
    for key in sorted(there - recorded.snapshots.keys()):
        yield _of_snapshot(key, f"is on {where}, and there is no row of it")
    for key in sorted(running.keys() - there - recorded.snapshots.keys()):
        yield _of_snapshot(key, f"runs on {where}, and there is neither a snapshot nor a row")
    for key in sorted(recorded.snapshots.keys() - there):
        yield _of_snapshot(key, f"has a row, but {where} does not hold it")
    for key in sorted(recorded.snapshots.keys() & there):
        port = recorded.snapshots[key]
        difference = None if port is None else _of_running(port, running.get(key))
        if difference is not None:
            yield _of_snapshot(key, f"on {where} {difference}")


def _of_running(port: int, running: RunningSnapshot | None) -> str | None:
    if running is None:
        return f"does not run, and port {port} is recorded"
    if running.state is not State.CREATED:
        return f"is {running.state.value} at its agent, and port {port} is recorded"
    if running.port_number != port:
        return f"listens on port {running.port_number}, and port {port} is recorded"
    return None


def _of_snapshot(key: Key, sentence: str) -> Finding:
    region_id, snapshot_id = key
    return Finding(INVARIANT, f"the snapshot {snapshot_id} of region {region_id} {sentence}", key)
