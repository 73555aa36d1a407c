"""What an Upstairs counts of what a guest asks for and gets."""

from __future__ import annotations

from dataclasses import dataclass

from crucible_emu.statistics import Snapshot, snapshot_of


@dataclass(slots=True)
class UpstairsStatistics:
    """What has happened since the start."""

    writes: int = 0
    written_bytes: int = 0
    writes_unwritten: int = 0
    reads: int = 0
    read_bytes: int = 0
    reads_at_hand: int = 0
    """Of ``reads``, those that were read past the process of a replica."""
    writes_by_reference: int = 0
    """Writes whose data a replica looked for in our memory, counted for each replica."""
    flushes: int = 0
    damaged_reads: int = 0
    healed_blocks: int = 0

    def snapshot(self) -> Snapshot:
        return snapshot_of("upstairs", self)
