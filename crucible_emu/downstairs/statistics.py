"""What a Downstairs has done so far, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from crucible_emu.downstairs.work import Kind, Work
from crucible_emu.statistics import Snapshot, snapshot_of


@dataclass(slots=True)
class Statistics:
    """Counts since the start."""

    connections: int = 0
    promotions: int = 0
    refused_promotions: int = 0
    evictions: int = 0
    jobs: int = 0
    jobs_failed: int = 0
    reconciliation_steps: int = 0
    blocks_read: int = 0
    blocks_written: int = 0
    flushes: int = 0
    extents_repaired: int = 0
    destages: int = 0

    def count(self, work: Work) -> None:
        """``work`` succeeded."""
        kind = work.kind
        if kind is Kind.READ:
            self.blocks_read += work.count
        elif kind is Kind.WRITE or kind is Kind.WRITE_UNWRITTEN:
            self.blocks_written += work.count
        elif kind is Kind.FLUSH:
            self.flushes += 1
        elif kind is Kind.REPAIR:
            self.extents_repaired += 1

    def snapshot(self) -> Snapshot:
        return snapshot_of("downstairs", self)
