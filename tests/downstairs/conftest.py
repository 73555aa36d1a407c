"""Regions on disk for the tests of the Downstairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from downstairs_rig import definition

from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region, SyncPolicy


@pytest.fixture
def make_region(tmp_path: Path) -> Iterator[Callable[..., Region]]:
    """Makes regions, each with a uuid of its own, and closes them at the end."""
    made: list[Region] = []

    def make(region: RegionDefinition | None = None, **options: Any) -> Region:
        number = len(made)
        region = region or definition()
        fields = {
            name: getattr(region, name) for name in ("block_size", "blocks_per_extent", "extent_count", "encrypted")
        }
        own = RegionDefinition(**fields, uuid=UUID(int=1000 + number))
        made.append(Region.create(tmp_path / f"region{number}", own, **options))
        return made[-1]

    yield make
    for region in made:
        region.close()


@pytest.fixture(params=[SyncPolicy.STAGED, SyncPolicy.ZFS], ids=lambda policy: policy.value)
def region(request: pytest.FixtureRequest, make_region: Callable[..., Region]) -> Region:
    """A region of four extents of eight blocks of 512 bytes, under both kinds of policy."""
    return make_region(policy=request.param)


@pytest.fixture
def shared(make_region: Callable[..., Region]) -> Iterator[Region]:
    """A region that lets others look into its memory."""
    made = make_region()
    made.close()
    with Region.open(made.path, share=True) as region:
        yield region
