"""What an open region says of itself, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from crucible_emu.statistics import Snapshot, snapshot_of

LEVELS = frozenset(
    {
        *("extents", "extents_dirty", "extents_closed", "descriptors_open"),
        *("staged_bytes", "staged_bytes_max", "context_bytes"),
    }
)
"""The numbers that may fall."""


@dataclass(frozen=True, slots=True)
class RegionStatistics:
    """What a region is doing, for logs and metrics. Sizes in bytes, the rest are counts."""

    extents: int
    extents_dirty: int
    extents_closed: int
    descriptors_open: int
    staged_bytes: int
    staged_bytes_max: int
    context_bytes: int
    blocks_written: int
    blocks_flushed: int
    flushes: int
    flushes_failed: int
    destages: int

    def snapshot(self) -> Snapshot:
        return snapshot_of("region", self, levels=LEVELS)
