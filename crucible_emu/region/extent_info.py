"""What ``region info`` says: the definition, the layout of an extent file, and where some blocks lie in it.

It reads ``region.json`` and nothing else (on-disk-format.md §8.3); the text is byte for byte that of the real
``extent-info``, the last section included, whose block numbers count inside one extent. Ends are inclusive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_emu.errors import UsageError
from crucible_emu.geometry import DATABASE_VERSION, RegionDefinition
from crucible_emu.region.layout import METADATA_BYTES, SLOT_A, SLOT_B, SLOT_BYTES, ExtentLayout

MIB = 1 << 20
TABLE_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the extent file: ``start`` and ``length`` in bytes; ``end`` is its last byte."""

    name: str
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length - 1


def sections(extent: ExtentLayout) -> list[Section]:
    """The five sections of an extent file in file order (§2.1)."""
    slots = SLOT_BYTES * extent.blocks
    return [
        Section("Block Data", 0, extent.data_bytes),
        Section("Context Slot A", extent.slots_offset(SLOT_A), slots),
        Section("Context Slot B", extent.slots_offset(SLOT_B), slots),
        Section("Active Context Array", extent.bitmap_offset, extent.bitmap_bytes),
        Section("Metadata", extent.metadata_offset, METADATA_BYTES),
    ]


def parse_blocks(text: str, extent: ExtentLayout) -> tuple[int, int]:
    """``"7"`` or ``"5-17"``: first and last block, both inside one extent. Raises :class:`UsageError`."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is not a block or a range of blocks: write N or N-M")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if first > last:
        raise UsageError(f"the range {text} ends before it starts: write the smaller block first")
    if last >= extent.blocks:
        raise UsageError(f"block {last} is outside the extent, whose blocks are 0 to {extent.blocks - 1}")
    return first, last


def as_text(region: Path, definition: RegionDefinition, blocks: tuple[int, int] | None = None) -> str:
    """The whole text, with the file offsets of the blocks ``(first, last)`` of an extent where they are asked for."""
    extent = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    lines = [*_definition_lines(region, definition), "", *_layout_lines(extent)]
    if blocks is not None:
        lines += ["", *_block_lines(extent, *blocks)]
    return "\n".join(lines) + "\n"


def _definition_lines(region: Path, definition: RegionDefinition) -> list[str]:
    size = definition.size_bytes
    facts = [
        ("Region directory", region),
        ("UUID", definition.uuid),
        ("Encrypted", str(definition.encrypted).lower()),
        ("Block size", f"{definition.block_size} bytes"),
        ("Extent size", f"{definition.blocks_per_extent} blocks"),
        ("Extent count", definition.extent_count),
        ("Total size", f"{size} bytes ({size / MIB:.2f} MiB)"),
        ("DB read version", DATABASE_VERSION),
        ("DB write version", DATABASE_VERSION),
    ]
    return ["=== Region Information ===", *(f"{name + ':':<20} {value}" for name, value in facts)]


def _layout_lines(extent: ExtentLayout) -> list[str]:
    rule = "-" * TABLE_WIDTH
    return [
        "=== Extent File Layout ===",
        f"Each extent file contains {extent.blocks} blocks of {extent.block_size} bytes each",
        f"Total extent file size: {extent.file_bytes} bytes ({extent.file_bytes / MIB:.2f} MiB)",
        "",
        "Offset Breakdown:",
        f"{'Section':<30} {'Start Offset':>15} {'Size (bytes)':>15} {'End Offset':>15}",
        rule,
        *(
            f"{part.name:<30} {_offset(part.start):>15} {part.length:>15} {_offset(part.end):>15}"
            for part in sections(extent)
        ),
        rule,
        f"{'Total':<30} {'':>15} {extent.file_bytes:>15}",
    ]


def _block_lines(extent: ExtentLayout, first: int, last: int) -> list[str]:
    count = last - first + 1
    title = f"Block {first}" if first == last else f"Blocks {first}-{last}"
    lines = [f"=== {title} File Offsets ===", f"{'Section':<20}  {'Start':>10}   {'End':>10}"]
    for name, start, unit_bytes, unit in (
        ("Block Data", first * extent.block_size, extent.block_size, "blocks"),
        ("Context Slot A", extent.slot_offset(SLOT_A, first), SLOT_BYTES, "slots"),
        ("Context Slot B", extent.slot_offset(SLOT_B, first), SLOT_BYTES, "slots"),
    ):
        length = count * unit_bytes
        lines.append(f"{name + ':':<21} {_span(start, length)} ({length} bytes, {count} {unit})")
    low, high = extent.bitmap_offset + first // 8, extent.bitmap_offset + last // 8
    bits = f"bits {first % 8}-{last % 8}" if low == high else f"bit {first % 8} - {_offset(high)} bit {last % 8}"
    lines.append(f"{'Active Context Bits:':<21} {_offset(low)} {bits} (0 = Slot A, 1 = Slot B)")
    lines.append(f"{'Extent Metadata:':<21} {_span(extent.metadata_offset, METADATA_BYTES)} (shared by all blocks)")
    return lines


def as_json(region: Path, definition: RegionDefinition, blocks: tuple[int, int] | None = None) -> dict[str, Any]:
    """The same facts for a program; offsets and lengths in bytes, ``end`` being the last byte."""
    extent = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    found: dict[str, Any] = {
        "directory": str(region),
        "definition": definition.as_json(),
        "size_bytes": definition.size_bytes,
        "extent_file_bytes": extent.file_bytes,
        "sections": [
            {"name": part.name, "start": part.start, "length": part.length, "end": part.end}
            for part in sections(extent)
        ],
    }
    if blocks is not None:
        first, last = blocks
        found["blocks"] = {
            "first": first,
            "last": last,
            "data_start": first * extent.block_size,
            "data_end": (last + 1) * extent.block_size - 1,
            "slot_a_start": extent.slot_offset(SLOT_A, first),
            "slot_a_end": extent.slot_offset(SLOT_A, last + 1) - 1,
            "slot_b_start": extent.slot_offset(SLOT_B, first),
            "slot_b_end": extent.slot_offset(SLOT_B, last + 1) - 1,
            "bitmap_start": extent.bitmap_offset + first // 8,
            "bitmap_start_bit": first % 8,
            "bitmap_end": extent.bitmap_offset + last // 8,
            "bitmap_end_bit": last % 8,
        }
    return found


def _offset(value: int) -> str:
    return f"0x{value:08x}"


def _span(start: int, length: int) -> str:
    return f"{_offset(start)} - {_offset(start + length - 1)}"
