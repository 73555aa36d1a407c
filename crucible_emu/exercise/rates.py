"""Operations per second: samples, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """What was done in ``seconds``."""

    seconds: float
    operations: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Statistics over samples: operations per second (``iops``) and bytes per second."""

    samples: int
    iops_mean: float
    iops_stddev: float
    iops_min: float
    iops_max: float
    bytes_per_s_mean: float

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def rates(samples: Sequence[Sample]) -> Rates | None:
    """What the samples come to; ``None`` without any. The mean weighs each by its length."""
    whole = [each for each in samples if each.seconds > 0]
    if not whole:
        return None
    each_s = np.array([each.operations / each.seconds for each in whole])
    seconds = sum(each.seconds for each in whole)
    return Rates(
        samples=len(whole),
        iops_mean=sum(each.operations for each in whole) / seconds,
        iops_stddev=float(each_s.std()),
        iops_min=float(each_s.min()),
        iops_max=float(each_s.max()),
        bytes_per_s_mean=sum(each.bytes for each in whole) / seconds,
    )
