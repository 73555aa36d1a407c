"""When the digests of a region's extents belong together: one moment, whatever is written meanwhile.

What it is for: hashing a region takes seconds, and its Downstairs flushes meanwhile. The digest that is answered must
be that of contents which the region had at one moment, else two healthy mirrors would seem to differ.

How: each extent is hashed under a :class:`Stamp`, which says which file it was and which flush it carries. The stamps
of all extents are then read again. Let t be the time when that reading begins: an extent whose stamp is still that
under which it was hashed was the same from before t until after t, so if all are, the digests together are the region
as it was at t. Those that are not are hashed again. An extent that is *dirty* holds writes which no flush has covered;
it has no digest until a flush has.

That moment is one between flushes, and not in the midst of one, when no flush is under way at t. A Downstairs in this
process is asked. For one in a process of its own it holds as long as a flush takes all its extents through its phases
together (1,024 of them, fewer where descriptors are scarce: :mod:`crucible_emu.region.flush`): every extent that a
flush changes is dirty on disk before the first is clean again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crucible_emu.geometry import RegionDefinition
from crucible_emu.region.digest import whole_digest


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells whether an extent has changed: its file, when that was written, and its numbers."""

    inode: int
    written_ns: int
    generation: int
    flush_number: int
    dirty: bool


class DigestBook:
    """Digests of the extents of one region or snapshot. ``immutable``: nothing in it ever changes."""

    def __init__(self, definition: RegionDefinition, *, immutable: bool) -> None:
        self.definition = definition
        self.immutable = immutable
        self._stamps: list[Stamp | None] = [None] * definition.extent_count
        self._digests: list[bytes | None] = [None] * definition.extent_count
        self.waiting: frozenset[int] = frozenset()
        """Extents that were dirty when somebody last looked."""

    @property
    def known(self) -> list[bytes | None]:
        """Digest of each extent, as far as known."""
        return self._digests

    @property
    def known_count(self) -> int:
        return self.definition.extent_count - self._digests.count(None)

    def look(self, stamps: Sequence[Stamp]) -> list[int]:
        """Take the stamps of all extents, as they are now; the extents that have to be hashed, which may be hashed.

        Digests that no longer hold are forgotten. With none in the result and none :attr:`waiting`, the digests are
        the region as it was when the reading of ``stamps`` began.
        """
        for extent_id, stamp in enumerate(stamps):
            if self._stamps[extent_id] != stamp and not (self.immutable and self._digests[extent_id] is not None):
                self._stamps[extent_id] = self._digests[extent_id] = None
        if not self.immutable:
            self.waiting = frozenset(extent_id for extent_id, stamp in enumerate(stamps) if stamp.dirty)
        return [
            extent_id
            for extent_id, digest in enumerate(self._digests)
            if digest is None and extent_id not in self.waiting
        ]

    def hashed(self, extent_id: int, before: Stamp, digest: bytes, after: Stamp) -> None:
        """Take the digest of an extent, whose stamp was read before and after. One that changed meanwhile is not."""
        if before == after and (self.immutable or not after.dirty):
            self._stamps[extent_id], self._digests[extent_id] = after, digest

    def numbers(self) -> tuple[int, int]:
        """The newest generation, and the newest flush in it, that any extent carries."""
        return max(((s.generation, s.flush_number) for s in self._stamps if s is not None), default=(0, 0))

    def whole(self) -> str | None:
        """The digest of the whole, where all extents' are known."""
        digests = [digest for digest in self._digests if digest is not None]
        return whole_digest(self.definition, digests) if len(digests) == len(self._digests) else None
