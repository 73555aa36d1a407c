"""Sizes as people write them, ``1GiB`` or ``512``, and back.

What it guarantees: one parser for the whole command line, exact to the byte. ``KiB``, ``MiB`` ... and the bare letters
``K``, ``M`` ... are powers of 1024, as ``dd``, ``fio`` and ``qemu-img`` have it; ``KB``, ``MB`` ... of 1000.
Case does not matter. A fraction is taken where it gives whole bytes (``1.5GiB``). Numbers never pass through a float,
so no size is rounded on the way. Everything else raises :class:`UsageError`, which quotes the input.
"""

from __future__ import annotations

import re
from fractions import Fraction

from crucible_emu.errors import UsageError

_LETTERS = "KMGTPE"
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<suffix>[A-Za-z]*)", re.ASCII)
SIZE_BYTES_MAX = 2**63 - 1


def _unit_bytes(suffix: str) -> int | None:
    """Bytes in one of ``suffix``; ``None`` where there is no such unit."""
    unit = suffix.upper()
    if unit in ("", "B"):
        return 1
    power = _LETTERS.find(unit[0]) + 1
    if power == 0 or unit[1:] not in ("", "B", "IB"):
        return None
    base = 1000 if unit[1:] == "B" else 1024
    return int(base**power)


def parse_size(text: str) -> int:
    """The size in bytes that ``text`` names."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _unit_bytes(match["suffix"])
    if match is None or unit is None:
        raise UsageError(f"{text!r} is not a size: write a number with a unit, such as 512, 64KiB, 100MB or 1GiB")
    size = Fraction(match["number"]) * unit
    if size.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of bytes: take a size that is")
    if size > SIZE_BYTES_MAX:
        raise UsageError(f"{text!r} is more than {SIZE_BYTES_MAX} bytes, the most a disk can have")
    return int(size)


def parse_extent_size(text: str, block_size: int) -> int:
    """Blocks per extent: a bare number counts blocks, a number with a unit is bytes and must be whole blocks."""
    if text.strip().isdecimal():
        return int(text)
    size_bytes = parse_size(text)
    blocks, rest = divmod(size_bytes, block_size)
    if rest:
        raise UsageError(f"extent size {text} is not a whole number of blocks of {block_size} bytes: take a multiple")
    return blocks


def format_size(size_bytes: int) -> str:
    """``size_bytes`` for a person: ``1 GiB``, ``1.5 MiB``, ``100 B``; at most two decimals."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min((size_bytes.bit_length() - 1) // 10, len(_LETTERS))
    scaled = f"{size_bytes / 1024**power:.2f}".rstrip("0").rstrip(".")
    return f"{scaled} {_LETTERS[power - 1]}iB"
