"""A Downstairs that is slow, lossy and wrong on purpose, for tests of what stands in front of it.

What it is for: the real program has ``--lossy``, ``--read-errors``, ``--write-errors`` and ``--flush-errors``, each of
which hits about a quarter of the operations of its kind. Here each is a probability, and all chance comes from one
seed, so that a run can be had again.

What it guarantees: a fault is one that a broken disk or a slow machine could cause as well. ``lossy`` holds ready work
back for a while, so that it is done in another order; what is handed out together is by definition work that nobody
ordered. An injected error replaces the operation: nothing of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from crucible_emu.downstairs.work import Kind, Work
from crucible_emu.errors import CrucibleError, IoError

REAL_ERROR_PROBABILITY = 0.25
"""How often the real program's switches hit."""

_READS = frozenset({Kind.READ})
_WRITES = frozenset({Kind.WRITE, Kind.WRITE_UNWRITTEN})
_FLUSHES = frozenset({Kind.FLUSH})
_DELAYED = _READS | _WRITES | _FLUSHES


@dataclass(frozen=True, slots=True)
class Faults:
    """What shall go wrong. Probabilities from 0 to 1, per operation (``drop``: per receive)."""

    lossy: float = 0.0
    read_errors: float = 0.0
    write_errors: float = 0.0
    flush_errors: float = 0.0
    drop: float = 0.0
    delay_s_max: float = 0.05
    seed: int = 0

    @property
    def any(self) -> bool:
        return bool(self.lossy or self.read_errors or self.write_errors or self.flush_errors or self.drop)


class FaultInjector:
    """Decides, operation by operation, with the chance of one seed."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._chance = Random(faults.seed)
        self.injected = 0
        """Errors, delays and drops so far."""

    def error(self, work: Work) -> CrucibleError | None:
        """The error with which ``work`` fails instead of being done, or ``None``."""
        faults = self.faults
        for kinds, probability in (
            (_READS, faults.read_errors),
            (_WRITES, faults.write_errors),
            (_FLUSHES, faults.flush_errors),
        ):
            if work.kind in kinds and self._hits(probability):
                return IoError(f"injected into a {work.kind.name.lower().replace('_', '-')}")
        return None

    def delay_s(self, work: Work) -> float:
        """How long ``work`` is held back; 0 for at once."""
        if work.kind in _DELAYED and self._hits(self.faults.lossy):
            return self._chance.uniform(0.0, self.faults.delay_s_max)
        return 0.0

    def drops(self) -> bool:
        """Whether the connection on which something was just received breaks now."""
        return self._hits(self.faults.drop)

    def _hits(self, probability: float) -> bool:
        hit = probability > 0 and self._chance.random() < probability
        self.injected += hit
        return hit
