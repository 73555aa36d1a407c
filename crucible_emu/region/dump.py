"""What ``region dump`` shows: up to three directories of one region set, side by side (on-disk-format.md §8.2).

Three depths: every extent's numbers (:class:`Summary`), every block of one extent (:class:`ExtentComparison`), one
block (:class:`BlockComparison`). Each is read first, in one pass per directory, and can then be had as the text of the
real ``dump``, column for column and colour for colour, or as JSON. ``different`` is what decides the exit code.

What it guarantees: nothing is changed (see :mod:`crucible_emu.region.view`). Where the real program stops at an extent
that does not open, this one shows the rest and lists what it could not read in ``problems``, one sentence each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.errors import UsageError
from crucible_emu.integrity import ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.region.layout import ExtentMetadata
from crucible_emu.region.view import Blocks, RegionView, look_through

DIRECTORIES_MAX = 3
CLEAR, RED, GREEN, BLUE = 0, 31, 32, 34
LETTERS = "ABC"
LETTER_COLOURS = {"A": GREEN, "B": BLUE, "C": RED}
MARK = "<---"

Same = npt.NDArray[np.bool_]


def open_regions(paths: Sequence[Any]) -> list[RegionView]:
    """Views of the directories to compare. Raises :class:`UsageError` where they cannot be mirrors of one another."""
    if not 1 <= len(paths) <= DIRECTORIES_MAX:
        raise UsageError(f"{len(paths)} directories cannot be shown side by side: give one to {DIRECTORIES_MAX}")
    regions = [RegionView.open(path) for path in paths]
    first = regions[0]
    for other in regions[1:]:
        for name in ("block_size", "blocks_per_extent"):
            mine, its = getattr(first.definition, name), getattr(other.definition, name)
            if mine != its:
                raise UsageError(f"{first.path} and {other.path} are not of one region set: {name} is {mine} and {its}")
    return regions


def _colour(code: int, wanted: bool) -> str:
    return f"\x1b[{code}m" if wanted else ""


def _ranked(values: Sequence[int], wanted: bool) -> list[str]:
    """Colours of numbers that should agree: green for the highest, red for what lags behind."""
    return [_colour(GREEN if value == max(values) else RED, wanted) for value in values]


# --------------------------------------------------------------------------------------------------- every extent


@dataclass(frozen=True, slots=True)
class ExtentRow:
    """One extent's metadata in each directory, ``None`` where it is missing or cannot be read."""

    extent_id: int
    metadata: tuple[ExtentMetadata | None, ...]

    @property
    def readable(self) -> list[ExtentMetadata]:
        return [found for found in self.metadata if found is not None]

    @property
    def bad(self) -> bool:
        return None in self.metadata

    @property
    def different(self) -> bool:
        return len({(found.gen_number, found.flush_number, found.dirty) for found in self.readable}) > 1


@dataclass(slots=True)
class Summary:
    """Generation, flush number and dirty flag of every extent."""

    directories: list[str]
    extent_count: int
    blocks_per_extent: int
    rows: list[ExtentRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def different(self) -> bool:
        return any(row.different for row in self.rows if not row.bad)

    def lines(self, *, only_differences: bool = False, colour: bool = False) -> Iterator[str]:
        """The text of the real summary. Column widths are fixed by what was seen up to the first row printed."""
        extent_width = max(3, len(str(self.extent_count)))
        max_gen = max_flush = gen_width = flush_width = 0
        for row in self.rows:
            max_gen = max([max_gen, *(found.gen_number for found in row.readable)])
            max_flush = max([max_flush, *(found.flush_number for found in row.readable)])
            for column, found in enumerate(row.metadata):
                if found is None:
                    yield f"{row.extent_id:>{extent_width}} column {column} bad "
            if row.bad or (only_differences and not row.different):
                continue
            if not gen_width:
                gen_width, flush_width = max(4, len(str(max_gen)) + 1), max(3, len(str(max_flush)) + 1)
                yield self._header(extent_width, gen_width, flush_width, colour)
            yield self._line(row, (extent_width, gen_width, flush_width), colour)
        yield f"Max gen: {max_gen},  Max flush: {max_flush}"

    @property
    def _block_width(self) -> int:
        return max(3, len(str(self.extent_count * self.blocks_per_extent)))

    def _header(self, extent_width: int, gen_width: int, flush_width: int, colour: bool) -> str:
        columns = range(len(self.directories))
        return "".join(
            [
                f"{'EXT':>{extent_width}} {'BLOCKS':>{max(7, 2 * self._block_width + 1)}}",
                *(f" {'GEN':>{gen_width - 1}}{column}" for column in columns),
                " ",
                *(f" {'FL':>{flush_width - 1}}{column}" for column in columns),
                " ",
                *(f" D{column}" for column in columns),
                "" if colour else " DIFF",
            ]
        )

    def _line(self, row: ExtentRow, widths: tuple[int, int, int], colour: bool) -> str:
        extent_width, gen_width, flush_width = widths
        first = row.extent_id * self.blocks_per_extent
        last = first + self.blocks_per_extent - 1
        clear = _colour(CLEAR, colour)
        gens = [found.gen_number for found in row.readable]
        flushes = [found.flush_number for found in row.readable]
        dirty = [found.dirty for found in row.readable]
        return "".join(
            [
                f"{row.extent_id:>{extent_width}} {first:0{self._block_width}}-{last:0{self._block_width}}",
                *(f" {code}{value:>{gen_width}}" for code, value in zip(_ranked(gens, colour), gens)),
                f"{clear} ",
                *(f" {code}{value:>{flush_width}}" for code, value in zip(_ranked(flushes, colour), flushes)),
                f"{clear} ",
                *(f"  {_colour(RED if value else GREEN, colour)}{'T' if value else 'F'}" for value in dirty),
                clear if colour else f" {MARK}" if row.different else "",
            ]
        )

    def as_json(self, *, only_differences: bool = False) -> dict[str, Any]:
        return {
            "directories": self.directories,
            "different": self.different,
            "problems": self.problems,
            "extents": [
                {
                    "extent": row.extent_id,
                    "first_block": row.extent_id * self.blocks_per_extent,
                    "last_block": (row.extent_id + 1) * self.blocks_per_extent - 1,
                    "different": row.different,
                    "metadata": [None if found is None else _metadata_json(found) for found in row.metadata],
                }
                for row in self.rows
                if row.bad or row.different or not only_differences
            ],
        }


def _metadata_json(found: ExtentMetadata) -> dict[str, Any]:
    return {"gen_number": found.gen_number, "flush_number": found.flush_number, "dirty": found.dirty}


def summarise(regions: Sequence[RegionView]) -> Summary:
    """Read every extent's metadata in every directory."""
    count = max(region.definition.extent_count for region in regions)
    found = Summary([str(region.path) for region in regions], count, regions[0].definition.blocks_per_extent)
    for extent_id in range(count):
        found.rows.append(ExtentRow(extent_id, tuple(_metadata(region, extent_id, found) for region in regions)))
    return found


def _metadata(region: RegionView, extent_id: int, summary: Summary) -> ExtentMetadata | None:
    try:
        with region.extent(extent_id) as extent:
            return extent.metadata
    except (errors.CrucibleError, OSError) as error:
        summary.problems.append(f"extent {extent_id} of {region.path} cannot be read: {error}")
        return None


# ------------------------------------------------------------------------------------------ every block of an extent


def _letters(same: Sequence[Same | bool]) -> list[Any]:
    """Letters of each directory from ``same`` = (0 = 1) or (0 = 1, 0 = 2, 1 = 2); equal values share a letter."""
    first = np.asarray(same[0])
    columns = [np.full(first.shape, "A"), np.where(first, "A", "B")]
    if len(same) == 3:
        columns.append(np.where(same[1], "A", np.where(np.asarray(same[2]) & ~first, "B", "C")))
    return columns


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(0, 1)] if count == 2 else [(0, 1), (0, 2), (1, 2)]


def same_contexts(left: BlockContexts, right: BlockContexts) -> Same:
    """Which blocks two replicas would answer alike: kind, and the hash of plain or nonce and tag of sealed ones."""
    same: Same = left.kind == right.kind
    plain = left.kind == PLAIN
    same &= ~plain | (left.hash == right.hash)
    if left.nonce is not None and right.nonce is not None and left.tag is not None and right.tag is not None:
        sealed = left.kind == ENCRYPTED
        same &= ~sealed | ((left.nonce == right.nonce).all(axis=1) & (left.tag == right.tag).all(axis=1))
    return same


def _compare(views: Sequence[Blocks]) -> tuple[list[Any], list[Any]]:
    """Letters of the data and of the contexts, per directory an array with one letter per block."""
    pairs = _pairs(len(views))
    data = _letters([(views[a].rows == views[b].rows).all(axis=1) for a, b in pairs])
    contexts = _letters([same_contexts(views[a].contexts, views[b].contexts) for a, b in pairs])
    return data, contexts


@dataclass(slots=True)
class ExtentComparison:
    """One extent, block by block. ``data`` and ``contexts``: dtype ``<U1``, shape (directories, blocks), letters."""

    directories: list[str]
    extent_id: int
    metadata: list[ExtentMetadata]
    data: npt.NDArray[np.str_]
    contexts: npt.NDArray[np.str_]
    problems: list[str] = field(default_factory=list)

    @property
    def different_blocks(self) -> Same:
        found: Same = ((self.data != "A") | (self.contexts != "A")).any(axis=0)
        return found

    @property
    def different(self) -> bool:
        return bool(self.different_blocks.any())

    def lines(self, *, only_differences: bool = False, colour: bool = False) -> Iterator[str]:
        yield f"           Extent {self.extent_id}"
        yield "GEN      " + "".join(f"{found.gen_number:8} " for found in self.metadata)
        yield "FLUSH_ID " + "".join(f"{found.flush_number:8} " for found in self.metadata)
        yield "DIRTY    " + "".join(f"{'D' if found.dirty else ' ':>8} " for found in self.metadata)
        yield ""
        columns, blocks = self.data.shape
        first = self.extent_id * blocks
        width = max(3, len(str(first + blocks - 1)))
        header = "".join(f" D{column}" for column in range(columns)) + " "
        header += "".join(f" C{column}" for column in range(columns))
        yield f"{'BLOCK':>{width}} {header}" + ("" if only_differences else f" {'DIFF':^5}")
        painted = {letter: _paint(letter, colour) for letter in LETTERS}
        different = self.different_blocks
        shown = np.flatnonzero(different) if only_differences else np.arange(blocks)
        for block in shown.tolist():
            data = "".join(f"  {painted[letter]}" for letter in self.data[:, block].tolist())
            contexts = "".join(f"  {painted[letter]}" for letter in self.contexts[:, block].tolist())
            mark = "" if only_differences else f" {MARK if different[block] else '':^4}"
            yield f"{first + block:0{width}} {data} {contexts}{mark}"

    def as_json(self, *, only_differences: bool = False) -> dict[str, Any]:
        different = self.different_blocks
        blocks = self.data.shape[1]
        shown = np.flatnonzero(different) if only_differences else np.arange(blocks)
        return {
            "directories": self.directories,
            "extent": self.extent_id,
            "different": self.different,
            "problems": self.problems,
            "metadata": [_metadata_json(found) for found in self.metadata],
            "blocks": [
                {
                    "block": self.extent_id * blocks + block,
                    "different": bool(different[block]),
                    "data": "".join(self.data[:, block].tolist()),
                    "contexts": "".join(self.contexts[:, block].tolist()),
                }
                for block in shown.tolist()
            ],
        }


def _paint(letter: str, colour: bool) -> str:
    return f"{_colour(LETTER_COLOURS[letter], colour)}{letter}{_colour(CLEAR, colour)}"


def _require_several(regions: Sequence[RegionView]) -> None:
    if len(regions) < 2:
        raise UsageError("Need more than one region directory to compare data")


def compare_extent(regions: Sequence[RegionView], extent_id: int) -> ExtentComparison:
    """Compare all blocks of an extent. Raises :class:`UsageError` for fewer than two directories or a bad number."""
    _require_several(regions)
    count = min(region.definition.extent_count for region in regions)
    if not 0 <= extent_id < count:
        raise UsageError(f"Requested extent {extent_id} is a higher index than valid ({count})")
    data, contexts = [], []
    problems: list[str] = []
    metadata: list[ExtentMetadata] = []
    streams = []
    for region in regions:
        with region.extent(extent_id) as extent:
            metadata.append(extent.metadata)
        streams.append(_blocks_of(region, extent_id, problems))
    for views in zip(*streams):
        found = _compare(views)
        data.append(np.stack(found[0]))
        contexts.append(np.stack(found[1]))
    return ExtentComparison(
        [str(region.path) for region in regions],
        extent_id,
        metadata,
        np.concatenate(data, axis=1),
        np.concatenate(contexts, axis=1),
        problems,
    )


def _blocks_of(region: RegionView, extent_id: int, problems: list[str]) -> Iterator[Blocks]:
    with region.extent(extent_id) as extent:
        for blocks in look_through(extent, 0, region.definition.blocks_per_extent, region.chunk_blocks):
            for block in (blocks.first + np.flatnonzero(blocks.lost)).tolist():
                problems.append(f"{region.path}: {errors.MissingContextSlot(block, extent_id)}")
            yield blocks


# ------------------------------------------------------------------------------------------------------- one block


@dataclass(slots=True)
class BlockComparison:
    """One block: per directory its SHA-256, and what its context holds (``None`` where it holds no such thing)."""

    directories: list[str]
    block: int
    extent_id: int
    block_in_extent: int
    sha256: list[str]
    data: str
    contexts: str
    nonces: list[str | None]
    tags: list[str | None]
    hashes: list[str | None]

    @property
    def different(self) -> bool:
        return {*self.data, *self.contexts} != {"A"}

    def lines(self, *, only_differences: bool = False, colour: bool = False) -> Iterator[str]:
        """Four tables; with ``only_differences`` those in which the directories differ. The hash of a plain block is
        shown as the hex of its little-endian bytes."""
        yield f"Extent {self.extent_id} Block in extent {self.block_in_extent}  Actual block {self.block}"
        yield ""
        if not only_differences or set(self.data) != {"A"}:
            yield f"{'DATA':>6}  {'SHA256':<64}  {'VER':3}"
            yield f"{'-' * 6}  {'-' * 64}  {'-' * 3}"
            for column, (digest, letter) in enumerate(zip(self.sha256, self.data)):
                yield f"{column:>6}  {digest:64}  {_paint(letter, colour):^3}"
            yield ""
        if not only_differences or set(self.contexts) != {"A"}:
            yield from _table("NONCES", self.nonces, 24, only_differences)
            yield from _table("TAGS", self.tags, 32, only_differences)
        if not only_differences or len(set(self.hashes)) > 1:
            yield from _table("HASHES", self.hashes, 16, only_differences)

    def as_json(self, *, only_differences: bool = False) -> dict[str, Any]:
        """The same for a program; ``only_differences`` leaves nothing out here."""
        return {
            "directories": self.directories,
            "block": self.block,
            "extent": self.extent_id,
            "block_in_extent": self.block_in_extent,
            "different": self.different,
            "problems": [],
            "data": self.data,
            "contexts": self.contexts,
            "sha256": self.sha256,
            "nonces": self.nonces,
            "tags": self.tags,
            "hashes": self.hashes,
        }


def _table(title: str, values: list[str | None], width: int, only_differences: bool) -> Iterator[str]:
    columns = "".join(f"{column:^{width}} " for column in range(len(values)))
    rules = f"{'-' * width} " * len(values)
    yield f"{title:>6}  {columns}" + ("" if only_differences else f" {'DIFF':<5}")
    yield f"{'-' * 6}  {rules}" + ("" if only_differences else f"{'-' * 5} ")
    if any(value is not None for value in values):
        cells = "".join(f"{value or '':^{width}} " for value in values)
        yield f"{0:>6}  {cells}" + (f" {MARK:<5}" if len(set(values)) > 1 else "")
    yield ""


def compare_block(regions: Sequence[RegionView], block: int) -> BlockComparison:
    """Compare the region's block ``block``. Raises :class:`UsageError` for fewer than two directories or no such
    block, :class:`errors.MissingContextSlot` where no context fits it."""
    _require_several(regions)
    total = min(region.definition.total_blocks for region in regions)
    if not 0 <= block < total:
        raise UsageError(f"Requested block {block} > max block {total - 1}")
    extent_id, inside = divmod(block, regions[0].definition.blocks_per_extent)
    views = [next(found for _, found in region.stream(block, 1)) for region in regions]
    data, contexts = _compare(views)
    return BlockComparison(
        [str(region.path) for region in regions],
        block,
        extent_id,
        inside,
        [hashlib.sha256(view.rows.tobytes()).hexdigest() for view in views],
        "".join(str(letter[0]) for letter in data),
        "".join(str(letter[0]) for letter in contexts),
        [_hex(view.contexts, ENCRYPTED, view.contexts.nonce) for view in views],
        [_hex(view.contexts, ENCRYPTED, view.contexts.tag) for view in views],
        [_hex(view.contexts, PLAIN, view.contexts.hash.astype("<u8")) for view in views],
    )


def _hex(contexts: BlockContexts, kind: int, values: npt.NDArray[Any] | None) -> str | None:
    """Hex of the first block's value, where its context is of ``kind``."""
    return values[0].tobytes().hex() if values is not None and contexts.kind[0] == kind else None
