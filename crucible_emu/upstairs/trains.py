"""Which requests may travel together (pure).

What it is for: writes that arrive together become one job, a *train*, as long as none touches what another does. So
their order within it does not matter, and all of it is stored in one go.
"""

from __future__ import annotations

from itertools import pairwise

from crucible_emu.blockio import Kind, Request

TRAIN_BYTES_MAX = 4 * 1024 * 1024
"""Most that is written by one job, unless one request is larger."""


class Trains:
    """Trains of a disk of ``size_bytes`` in blocks of ``block_size``."""

    def __init__(self, block_size: int, size_bytes: int) -> None:
        self._mask = block_size - 1
        self._size_bytes = size_bytes

    def in_range(self, request: Request) -> bool:
        """Whether a request is of whole blocks of this disk."""
        return not (
            (request.offset | request.length) & self._mask
            or request.offset < 0
            or request.offset + request.length > self._size_bytes
        )

    def end(self, requests: list[Request], index: int) -> int:
        """End of the run of writes from ``index`` that may travel as one job: in range, disjoint, not too large."""
        stop, size = index, 0
        total = len(requests)
        while stop < total and requests[stop].kind is Kind.WRITE and self.in_range(requests[stop]):
            size += requests[stop].length
            if size > TRAIN_BYTES_MAX and stop > index:
                break
            stop += 1
        if stop - index > 1 and not _disjoint(requests[index:stop]):
            return index + 1
        return stop


def _disjoint(requests: list[Request]) -> bool:
    """Whether no two requests touch the same block."""
    offsets = [request.offset for request in requests]
    if len(set(offsets)) != len(offsets):
        return False
    first = requests[0].length
    if first and all(request.length == first and request.offset % first == 0 for request in requests):
        return True
    spans = sorted((request.offset, request.offset + request.length) for request in requests)
    return all(before[1] <= after[0] for before, after in pairwise(spans))
