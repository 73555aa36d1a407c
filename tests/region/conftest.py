"""Regions on disks in memory for the tests of the region."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from region_rig import SIMULATED_REGION, MakeRegion, definition

from crucible_emu.region import Region, SyncPolicy
from crucible_emu.sim.disk import SimulatedDisk


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk()


@pytest.fixture
def make_region(disk: SimulatedDisk) -> Iterator[MakeRegion]:
    """``make_region(block_size=…, blocks=…, extents=…, policy=…)``: a new region on ``disk``, closed at the end."""
    made: list[Region] = []

    def make(policy: SyncPolicy = SyncPolicy.STAGED, staged_bytes_max: int = 1 << 24, **geometry: int) -> Region:
        path = SIMULATED_REGION.with_name(f"region{len(made)}")
        region = Region.create(
            path, definition(**geometry), policy=policy, storage=disk, staged_bytes_max=staged_bytes_max
        )
        made.append(region)
        return region

    yield make
    for region in made:
        region.close()
