"""What a person is told of a volume that was verified."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    """``findings``: what is not as it must be, a sentence each; none is good news. ``not_looked_at``: what nobody could
    say anything about, and why. ``copies_compared``: regions and snapshots whose agents told their digests;
    ``ledgers``: the snapshots whose ledgers they were compared with. ``bytes_read`` through an Upstairs, and BLAKE3 of
    them if that was all (what ``b3sum`` says of an exported image)."""

    model_config = ConfigDict(frozen=True)

    volume_id: str
    findings: list[str]
    not_looked_at: list[str]
    copies_compared: int
    ledgers: list[str]
    bytes_read: int
    digest: str | None

    @property
    def sound(self) -> bool:
        """Everything was looked at, and is as it must be."""
        return not self.findings and not self.not_looked_at
