"""How fast a region is snapshotted and cloned, beside a plain copy of the same files on the same file system.

What it is for: a snapshot without ZFS, and a clone on the same machine, are copies of all extents that must be durable
and checked before anybody may use them. What they cost beyond a copy is what this shows.

What it guarantees: the region is full, so that there are no holes to skip; in each round snapshot, clone and copy take
turns on the same files, and a ratio is taken within the round. What was made is removed outside the measured time, so
that every round finds the same room.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median
from uuid import uuid4

import numpy as np

from bench.limits import MIB
from bench.plain_copy import copy_seconds
from bench.rate import Rate, RateError
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.region.clone import clone_definition, clone_new
from crucible_emu.region.snapshot import delete_snapshot, snapshot_path
from crucible_emu.region.view import RegionView

BLOCK_BYTES = 4096
EXTENT_MIB = 16
CHUNK_BLOCKS = 4096
SNAPSHOT = "measured"


def full_region(path: Path, size_mib: int) -> Region:
    """A new region of random blocks, flushed. Raises :class:`RateError` for a size that is no whole extents."""
    extents, rest = divmod(size_mib, EXTENT_MIB)
    if rest or not extents:
        raise RateError(f"A region of {size_mib} MiB cannot be cut into extents of {EXTENT_MIB}: take a multiple.")
    definition = RegionDefinition(BLOCK_BYTES, EXTENT_MIB * MIB // BLOCK_BYTES, extents, uuid4())
    region = Region.create(path, definition)
    random = np.random.default_rng(1)
    for first in range(0, definition.total_blocks, CHUNK_BLOCKS):
        blocks = np.arange(first, min(first + CHUNK_BLOCKS, definition.total_blocks), dtype=np.int64)
        rows = random.integers(0, 256, (len(blocks), BLOCK_BYTES), dtype=np.uint8)
        hashes = hash_blocks(rows)
        kinds = np.ones(len(blocks), np.uint8)
        region.write(blocks, rows, BlockContexts(kinds, hashes, on_disk_hash=hashes))
    region.flush(1, 1)
    return region


def one_round(region: Region, folder: Path) -> tuple[float, float, float]:
    """Seconds of a snapshot, of a clone of that snapshot, and of a plain copy."""
    began = time.monotonic()
    region.snapshot(SNAPSHOT)
    snapshot_s = time.monotonic() - began
    source = RegionView.open(snapshot_path(region.path, SNAPSHOT))
    clone = folder / "clone"
    clone.mkdir()
    began = time.monotonic()
    clone_new(source, clone, clone_definition(source.definition, uuid4()))
    clone_s = time.monotonic() - began
    shutil.rmtree(clone)
    delete_snapshot(region.path, SNAPSHOT)
    return snapshot_s, clone_s, copy_seconds(region.path, folder / "copy")


def rates(folder: Path, size_mib: int, rounds: int) -> list[Rate]:
    """Snapshots per second and MiB/s of a clone, medians over the rounds. Raises :class:`RateError`."""
    try:
        with full_region(folder / "region", size_mib) as region:
            found = [one_round(region, folder) for _ in range(rounds)]
    except (CrucibleError, UsageError, OSError) as problem:
        raise RateError(f"A region of {size_mib} MiB could not be copied: {problem}") from problem
    snapshots, clones, copies = zip(*found)
    plain = "a plain copy"
    return [
        Rate(
            f"snapshots of a full region of {size_mib} MiB",
            "a second",
            1 / median(snapshots),
            plain,
            1 / median(copies),
            median(copy / snapshot for snapshot, copy in zip(snapshots, copies)),
        ),
        Rate(
            "clone of a snapshot",
            "MiB/s",
            size_mib / median(clones),
            plain,
            size_mib / median(copies),
            median(copy / clone for clone, copy in zip(clones, copies)),
        ),
    ]
