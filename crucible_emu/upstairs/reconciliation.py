"""Reconciliation: make three replicas equal before the disk is used (upstairs-volume.md §7).

What it is for: at activation each replica reports, per extent, the generation and flush number of its last flush and
whether writes came after it. :func:`collate` compares them and chooses a source for every extent that needs mending;
:class:`Reconciliation` then walks the extents through four steps, one step at a time over all three.

Why the result is right: every flush that was acknowledged is durable on two replicas with its number, so the replica
with the greatest (generation, flush, dirty) holds every acknowledged flush. A dirty extent may hold any un-flushed
writes; whichever source is chosen, all three hold the same afterwards, so what a guest reads once stays what it was.
Stopping half-way is harmless: a mended extent compares equal the next time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.upstairs.rules import CLIENTS


@dataclass(frozen=True, slots=True, eq=False)
class ExtentVersions:
    """What one replica reports of its extents: generation uint64[n], flush number uint64[n], dirty bool[n]."""

    gen_numbers: npt.NDArray[np.uint64]
    flush_numbers: npt.NDArray[np.uint64]
    dirty_bits: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mend:
    """One extent to be mended: ``destinations`` get a copy of what ``source`` has."""

    extent_id: int
    source: int
    destinations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Collation:
    """Numbers that lie above everything stored, and the extents that differ."""

    max_gen: int
    max_flush: int
    mends: tuple[Mend, ...]


def collate(versions: list[ExtentVersions]) -> Collation:
    """Compare the replicas' extents (§4.2, §7.1). Raises :class:`errors.RemoteError` where the lists do not fit."""
    if len({len(v.gen_numbers) for v in versions} | {len(v.dirty_bits) for v in versions}) != 1:
        raise errors.RemoteError("the replicas report different numbers of extents")
    gen = np.stack([v.gen_numbers for v in versions])
    flush = np.stack([v.flush_numbers for v in versions])
    dirty = np.stack([v.dirty_bits for v in versions])
    differs = dirty.any(axis=0) | (gen != gen[0]).any(axis=0) | (flush != flush[0]).any(axis=0)
    mends = tuple(_mend(int(eid), gen[:, eid], flush[:, eid], dirty[:, eid]) for eid in np.flatnonzero(differs))
    return Collation(int(gen.max(initial=0)) + 1, int(flush.max(initial=0)) + 1, mends)


def _mend(
    extent_id: int, gen: npt.NDArray[np.uint64], flush: npt.NDArray[np.uint64], dirty: npt.NDArray[np.bool_]
) -> Mend:
    triples = [(int(g), int(f), bool(d)) for g, f, d in zip(gen, flush, dirty)]
    best = max(triples)
    source = triples.index(best)
    destinations = tuple(
        client for client, triple in enumerate(triples) if client != source and (best[2] or triple != best)
    )
    return Mend(extent_id, source, destinations)


class Step(Enum):
    """The four steps of mending one extent (§7.2)."""

    FLUSH = "ExtentFlush"
    CLOSE = "ExtentClose"
    REPAIR = "ExtentRepair"
    REOPEN = "ExtentReopen"


STEP_CLIENTS: dict[Step, Callable[[Mend], tuple[int, ...]]] = {
    Step.FLUSH: lambda mend: (mend.source,),
    Step.CLOSE: lambda mend: CLIENTS,
    Step.REPAIR: lambda mend: mend.destinations,
    Step.REOPEN: lambda mend: CLIENTS,
}
"""Who is sent each step."""


class Reconciliation:
    """The work list, one step in flight. ``needed`` and ``done`` count steps, four per extent (§7.3)."""

    def __init__(self, mends: tuple[Mend, ...]) -> None:
        self._steps = deque((mend, step) for mend in mends for step in Step)
        self.needed = len(self._steps)
        self.done = 0
        self.repair_id = -1
        self.mend: Mend | None = None
        self.step = Step.FLUSH
        self._waiting: set[int] = set()

    def advance(self) -> tuple[int, ...] | None:
        """Take the next step; the clients that must be sent it. ``None``: everything is mended."""
        if not self._steps:
            self.mend = None
            return None
        self.mend, self.step = self._steps.popleft()
        self.repair_id += 1
        clients = STEP_CLIENTS[self.step](self.mend)
        self._waiting = set(clients)
        return clients

    def acknowledged(self, client: int, repair_id: int) -> bool:
        """A client finished the step; whether all have. Raises :class:`errors.RemoteError` for a wrong answer."""
        if repair_id != self.repair_id or client not in self._waiting:
            raise errors.RemoteError(f"acknowledges repair step {repair_id}, which it was not sent")
        self._waiting.discard(client)
        if self._waiting:
            return False
        self.done += 1
        return True
