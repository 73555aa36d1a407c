"""What a block holds after so many writes: a rule that a read can be checked by.

What it is for: blocks are made and compared as rows of one array, as many as come together. The rule of the real
tester (§16.1): byte 0 is the block's number modulo 255, every other byte the low byte of its count of writes. It cannot
tell a block from the one 255 further on, nor count 1 from count 257. :attr:`Rule.STAMPED` can: bytes 1 to 8 are the
block's number (u64, little-endian) and bytes 9 to 12 its count (u32) besides.

What it guarantees: :func:`counts_in` only proposes a count; whether a row is what it should be is decided by comparing
all of its bytes.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint8]
"""Blocks as rows, uint8[blocks, block_size]."""
Blocks = npt.NDArray[np.int64]
Counts = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

INDEX_MODULUS = 255
COUNT_MODULUS = 256
_NUMBER = slice(1, 9)
_COUNT = slice(9, 13)


class Rule(StrEnum):
    """How the content of a block follows from its number and its count of writes."""

    CRUTEST = "crutest"
    STAMPED = "stamped"


def fill(rows: Rows, blocks: Blocks, counts: Counts, rule: Rule) -> None:
    """Put the content of ``blocks`` after ``counts`` writes into ``rows``. Count 0 stands for zeros."""
    rows[:] = (counts & 0xFF).astype(np.uint8)[:, None]
    rows[:, 0] = blocks % INDEX_MODULUS
    if rule is Rule.STAMPED:
        rows[:, _NUMBER] = blocks.astype("<u8").view(np.uint8).reshape(-1, 8)
        rows[:, _COUNT] = counts.astype("<u4").view(np.uint8).reshape(-1, 4)
    never = counts == 0
    if never.any():
        rows[never] = 0


def made(blocks: Blocks, counts: Counts, block_size: int, rule: Rule) -> Rows:
    """New rows with that content."""
    rows = np.empty((len(blocks), block_size), np.uint8)
    fill(rows, blocks, counts, rule)
    return rows


def equal_rows(left: Rows, right: Rows) -> Mask:
    """Which rows are equal in all bytes, bool[rows]."""
    # As words: eight bytes a comparison, and block sizes are multiples of 512.
    found: Mask = (left.view(np.uint64) == right.view(np.uint64)).all(axis=1)
    return found


def counts_in(rows: Rows, highest: Counts, rule: Rule) -> npt.NDArray[np.int64]:
    """The count that each row says it has, int64[rows]; with the real rule, which keeps the low byte only, the greatest
    such count that is not above ``highest`` (negative where there is none)."""
    top = highest.astype(np.int64)
    if rule is Rule.STAMPED:
        return np.ascontiguousarray(rows[:, _COUNT]).view("<u4")[:, 0].astype(np.int64)
    said: npt.NDArray[np.int64] = top - (top - rows[:, -1]) % COUNT_MODULUS
    return said
