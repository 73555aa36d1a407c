"""volume-verify on real bytes, sound and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from frozen_rig import regions_below, take, written
from guests_rig import make_instance
from nexus_rig import EXTENT_BYTES, Plant, plant
from users_rig import SIZE_BYTES, make_disk, run

from nexus.db import Database
from nexus.placement import AllocatedRegion
from nexus.saga import SagaFailed
from nexus.sagas import volume_verify
from nexus.sagas.volume_verify import VOLUME_VERIFY
from nexus.verification import Report

SOMETHING = b"something" * 100 + bytes(124)
UNWRITTEN_BYTE = EXTENT_BYTES - 100
"""In a block of the first extent that nobody writes in these tests."""


async def verified(rack: Plant, volume_id: str) -> Report:
    return Report(**(await run(rack, VOLUME_VERIFY, volume_verify.Params(volume_id=volume_id)))["COMPARE"])


def flip(path: Path, offset: int) -> None:
    """Let a byte of a file rot, behind the back of whoever has it open."""
    with path.open("r+b") as file:
        file.seek(offset)
        found = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([found ^ 1]))


def first_extent(rack: Plant, region: AllocatedRegion, snapshot_id: str | None = None) -> Path:
    datasets = rack.agents[region.dataset_id].datasets
    path = datasets.path(region.region_id)
    if snapshot_id is not None:
        path = datasets.snapshot_path(region.region_id, snapshot_id)
    assert path is not None
    return path / "00" / "000" / "000"


async def test_sound_volumes_are_sound(tmp_path: Path, database: Database) -> None:
    """A disk, its snapshot and the empty volume beside that; a disk in use is looked at as far as it may be."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        holds = SOMETHING + bytes(SIZE_BYTES - len(SOMETHING))
        for volume_id, ledgers in ((disk.volume_id, []), (snapshot.volume_id, [snapshot.id])):
            report = await verified(rack, volume_id)
            assert report.sound and report.ledgers == ledgers, report
            assert (report.copies_compared, report.bytes_read) == (3, SIZE_BYTES)
            assert report.digest == blake3(holds).hexdigest()
        report = await verified(rack, snapshot.destination_volume_id)
        assert report.sound and report.digest == blake3(bytes(SIZE_BYTES)).hexdigest()
        instance = await make_instance(rack, disk)
        report = await verified(rack, disk.volume_id)
        assert not report.findings and len(report.not_looked_at) == 3
        assert "attached" in report.not_looked_at[0]
        with pytest.raises(SagaFailed, match="no volume"):
            await verified(rack, instance)


async def test_rot_is_named_by_extent_and_region(tmp_path: Path, in_memory: Database) -> None:
    """One copy of a disk, then one of a snapshot: nobody who reads through an Upstairs would notice."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        rotten = regions_below(rack, disk)[1]
        flip(first_extent(rack, rotten, snapshot.id), UNWRITTEN_BYTE)
        report = await verified(rack, snapshot.volume_id)
        named = f"extent 0 of snapshot {snapshot.id} of region {rotten.region_id}"
        assert report.findings == [f"{named} differs from the ledger of snapshot {snapshot.id}"]
        assert report.bytes_read == SIZE_BYTES
        flip(first_extent(rack, rotten), UNWRITTEN_BYTE)
        report = await verified(rack, disk.volume_id)
        assert report.findings == [f"extent 0 of region {rotten.region_id} differs from what most copies hold"]
