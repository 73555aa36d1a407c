"""Whether stored blocks are what their contexts say: a whole region, or one raw extent file on its own.

:func:`verify_region` is ``region verify`` (on-disk-format.md §2.10, §8.3): every block of every extent against its
active context, dirty extents by the recovery rule. It goes on after a failure and finds every bad block; an extent
that does not open at all is one failure of its own. :func:`verify_file` is ``region verify --raw`` (§8.4): it needs no
``region.json``, guesses the geometry from the length of the file, and judges both slots of every block.

What they check is ``on_disk_hash`` against the stored bytes, and that a block without a context is all zeros. That
needs no key. Nonce, tag and the Upstairs' hash are not checked; decryption is what proves those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BLOCK_SIZE_BYTES_MAX, BLOCK_SIZE_BYTES_MIN, runs
from crucible_emu.integrity import EMPTY, Hashes, hash_blocks
from crucible_emu.region import layout
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import Blocks, RawExtentView, RegionView, look_through

Progress = Callable[[int], None]
"""Called with the number of blocks done since the last call."""

WRONG_HASH = "has an active slot with mismatched hash"
STALE_DATA = "has an empty active slot, but contains non-zero data"
NO_CONTEXT = "has two slots, neither of which matches its data"


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with one extent. ``blocks``: half-open ranges of its bad blocks, counted inside the extent, empty
    where the extent did not open; ``reason`` speaks of the first."""

    extent_id: int
    path: Path
    reason: str
    blocks: tuple[tuple[int, int], ...] = ()

    @property
    def block_count(self) -> int:
        return sum(stop - start for start, stop in self.blocks)

    def __str__(self) -> str:
        more = f" (and {self.block_count - 1} more)" if self.block_count > 1 else ""
        return f"validation failed for extent {self.extent_id} (file {self.path}): {self.reason}{more}"

    def as_json(self) -> dict[str, Any]:
        return {
            "extent": self.extent_id,
            "file": str(self.path),
            "error": self.reason,
            "bad_blocks": self.block_count,
            "blocks": [{"first": start, "last": stop - 1} for start, stop in self.blocks],
        }


def verify_region(region: RegionView, progress: Progress | None = None) -> Iterator[Failure]:
    """Every extent that fails, in order. Nothing yielded means that the region is sound."""
    for extent_id in range(region.definition.extent_count):
        failure = verify_extent(region, extent_id, progress)
        if failure is not None:
            yield failure


def verify_extent(region: RegionView, extent_id: int, progress: Progress | None = None) -> Failure | None:
    """What is wrong with one extent, or ``None``."""
    path = layout.extent_path(region.path, extent_id)
    blocks = region.definition.blocks_per_extent
    bad: list[npt.NDArray[np.int64]] = []
    reason = ""
    try:
        with region.extent(extent_id) as extent:
            for seen in look_through(extent, 0, blocks, region.chunk_blocks):
                found = np.flatnonzero(bad_blocks(seen))
                if len(found) and not reason:
                    reason = f"block {seen.first + int(found[0])} {_complaint(seen, int(found[0]))}"
                bad.append(found + seen.first)
                if progress is not None:
                    progress(len(seen.rows))
    except errors.CrucibleError as error:
        return Failure(extent_id, path, str(error))
    except OSError as error:
        return Failure(extent_id, path, error.strerror or str(error))
    return Failure(extent_id, path, reason, tuple(runs(np.concatenate(bad)))) if reason else None


def bad_blocks(seen: Blocks) -> npt.NDArray[np.bool_]:
    """Which blocks are not what their active context says, bool[n]."""
    assert seen.contexts.on_disk_hash is not None
    empty = seen.contexts.kind == EMPTY
    if seen.hole and empty.all():
        return seen.lost
    bad = np.where(empty, seen.rows.any(axis=1), hash_blocks(seen.rows) != seen.contexts.on_disk_hash)
    return np.asarray(bad | seen.lost)


def _complaint(seen: Blocks, index: int) -> str:
    if seen.lost[index]:
        return NO_CONTEXT
    return STALE_DATA if seen.contexts.kind[index] == EMPTY else WRONG_HASH


# ------------------------------------------------------------------------------------------------ one file, no region

HASH_MATCH, BLOCK_EMPTY, HASH_MISMATCH, STALE_EMPTY = range(4)
RESULTS = ("HashMatch", "BlockEmpty", "SlotHashMismatch", "EmptySlotWithNonzeroData")
CSV_HEADER = (
    "file,block,dirty,status,slot_a_result,slot_a_flush_id,slot_a_hash,"
    "slot_b_result,slot_b_flush_id,slot_b_hash,selected_slot,data_hash,all_zeros"
)


def guess_geometry(file_bytes: int, block_size: int | None = None) -> list[ExtentLayout]:
    """Every geometry whose extent file has exactly this length; only those of ``block_size`` where one is given."""
    sizes = [block_size] if block_size is not None else _block_sizes()
    found = []
    for size in sizes:
        blocks = (file_bytes - layout.METADATA_BYTES) * 8 // ((size + 2 * layout.SLOT_BYTES) * 8 + 1)
        # The bitmap's round-up can cost one block against the estimate, never more.
        for candidate in (ExtentLayout(size, blocks), ExtentLayout(size, blocks - 1)):
            if candidate.blocks > 0 and candidate.file_bytes == file_bytes:
                found.append(candidate)
    return found


def _block_sizes() -> list[int]:
    return [1 << shift for shift in range(BLOCK_SIZE_BYTES_MIN.bit_length() - 1, BLOCK_SIZE_BYTES_MAX.bit_length())]


@dataclass(frozen=True, slots=True, eq=False)
class FileBlocks:
    """The verdict on some consecutive blocks of a file, arrays of length n.

    ``results``: per slot array (A, B) indexes into :data:`RESULTS`; ``hashes`` and ``flush_ids``: per slot array what
    the slot says, meaningless where ``present`` is not set; ``data_hash`` XXH64 of the stored bytes; ``selects_a``:
    what the bitmap says; ``bad``: whether the block fails.
    """

    first: int
    results: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
    present: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
    hashes: tuple[Hashes, Hashes]
    flush_ids: tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]
    data_hash: Hashes
    zeros: npt.NDArray[np.bool_]
    selects_a: npt.NDArray[np.bool_]
    bad: npt.NDArray[np.bool_]


@dataclass(slots=True)
class RawFile:
    """One raw extent file and what its metadata says."""

    path: Path
    layout: ExtentLayout
    metadata: ExtentMetadata

    def summary(self) -> str:
        """The line that the real program prints first (§8.4)."""
        found = self.metadata
        return (
            f"bs:{self.layout.block_size} bytes  bc:{self.layout.blocks:>6}"
            f"  dirty:{str(found.dirty).lower():>5} gen:{found.gen_number} flush_number:{found.flush_number:>6}"
            f" ext_ver:{found.ext_version} bonus_sync:{found.bonus_sync_count} defrag:{found.defrag_count}"
        )

    def as_json(self) -> dict[str, Any]:
        """Geometry and metadata for a program."""
        found = self.metadata
        return {
            "block_size": self.layout.block_size,
            "blocks": self.layout.blocks,
            "dirty": found.dirty,
            "gen_number": found.gen_number,
            "flush_number": found.flush_number,
            "ext_version": found.ext_version,
            "bonus_sync_count": found.bonus_sync_count,
            "defrag_count": found.defrag_count,
        }

    def csv_head(self) -> Iterator[str]:
        """The comment line and the header of the CSV form."""
        found = self.metadata
        yield (
            f"# file:{self.path} bs:{self.layout.block_size} bytes  bc:{self.layout.blocks}"
            f"  dirty:{str(found.dirty).lower()} gen:{found.gen_number} flush_number:{found.flush_number}"
            f" ext_ver:{found.ext_version} bonus_sync:{found.bonus_sync_count} defrag:{found.defrag_count}"
        )
        yield CSV_HEADER

    def csv_rows(self, seen: FileBlocks) -> Iterator[str]:
        """One row per block; ``selected_slot`` is true for A and comes from the bitmap even where that is stale."""
        name, dirty = _csv_quoted(str(self.path)), str(self.metadata.dirty).lower()
        for index in range(len(seen.data_hash)):
            slots = ",".join(self._csv_slot(seen, which, index) for which in (layout.SLOT_A, layout.SLOT_B))
            yield (
                f"{name},{seen.first + index},{dirty},{'error' if seen.bad[index] else 'ok'},{slots},"
                f"{str(bool(seen.selects_a[index])).lower()},{int(seen.data_hash[index])},"
                f"{str(bool(seen.zeros[index])).lower()}"
            )

    @staticmethod
    def _csv_slot(seen: FileBlocks, which: int, index: int) -> str:
        result = RESULTS[seen.results[which][index]]
        if not seen.present[which][index]:
            return f"{result},,"
        return f"{result},{int(seen.flush_ids[which][index])},{int(seen.hashes[which][index])}"

    def describe(self, seen: FileBlocks, index: int) -> str:
        """One line about a block, in the words of the real program."""
        number, dirty, bad = seen.first + index, self.metadata.dirty, bool(seen.bad[index])
        chosen = layout.SLOT_A if seen.selects_a[index] else layout.SLOT_B
        # A failure of a clean file names the slot that the bitmap selects first; everything else goes A, B.
        order = (chosen, 1 - chosen) if bad and not dirty else (layout.SLOT_A, layout.SLOT_B)
        parts = []
        for which in order:
            result = seen.results[which][index]
            verdict = RESULTS[result]
            if not (bad and dirty):
                verdict = f"Err({verdict})" if result >= HASH_MISMATCH else f"Ok({verdict})"
            mark = "" if dirty else " [selected]" if which == chosen else " [deselected]"
            flush = f", flush id: {int(seen.flush_ids[which][index])}" if seen.present[which][index] else ""
            parts.append(f"slot {'AB'[which]}{mark}: {verdict}{flush}")
        head = f"Error at block {number:>{1 if dirty else 6}}" if bad else f"Success at block {number}"
        return f"{head}:  {' | '.join(parts)}{'  Block is all zeros' if seen.zeros[index] else ''}"


def open_file(path: Path, block_size: int | None = None) -> RawFile:
    """Find the geometry of a raw extent file.

    Raises :class:`errors.BadMetadata` for a foreign file, :class:`errors.UsageError` where its length fits several
    geometries and ``block_size`` does not choose one.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < layout.METADATA_BYTES:
            raise errors.BadMetadata(f"{path} is too short to be an extent file: {size} bytes")
        file.seek(size - layout.METADATA_BYTES)
        try:
            metadata = ExtentMetadata.unpack(file.read(layout.METADATA_BYTES))
        except errors.BadMetadata as error:
            raise errors.BadMetadata(f"{path} is no raw extent file: {error.detail}") from error
    if metadata.ext_version != layout.EXT_VERSION_RAW:
        raise errors.BadMetadata(
            f"{path} is no raw extent file: expected extent version {layout.EXT_VERSION_RAW}, "
            f"got {metadata.ext_version}"
        )
    found = guess_geometry(size, block_size)
    if not found:
        blocks = "any block size" if block_size is None else f"blocks of {block_size} bytes"
        raise errors.BadMetadata(f"{path} is no raw extent file: no extent of {blocks} has {size} bytes")
    if len(found) > 1:
        pairs = ", ".join(f"{extent.blocks} blocks of {extent.block_size}" for extent in found)
        raise errors.UsageError(f"{path} can be read in several ways ({pairs}): say which with --block-size")
    return RawFile(path, found[0], metadata)


def verify_file(file: RawFile, chunk_blocks: int = 1024) -> Iterator[FileBlocks]:
    """The verdict on every block of ``file``. Raises :class:`errors.BadContextSlot` at a slot that does not decode."""
    with closing(RawExtentView(OsStorage(), file.path, 0, file.layout)) as extent:
        for first in range(0, file.layout.blocks, chunk_blocks):
            yield _judge(extent, first, min(chunk_blocks, file.layout.blocks - first))


def _judge(extent: RawExtentView, first: int, count: int) -> FileBlocks:
    rows, active = extent.rows(first, count), extent.bitmap(first, count)
    slots = [extent.slots(which, first, count) for which in (layout.SLOT_A, layout.SLOT_B)]
    hashes = hash_blocks(rows)
    zeros: npt.NDArray[np.bool_] = ~np.asarray(rows.any(axis=1))
    present, results, stated, flush_ids = [], [], [], []
    for which, table in enumerate(slots):
        try:
            layout.check_slots(table)
        except errors.BadContextSlot as error:
            blocks = f"blocks {first} to {first + count - 1}"
            raise errors.BadContextSlot(
                f"{error.detail}, in slot {'AB'[which]} of {blocks} of {extent.path}"
            ) from error
        there = table[:, 0] == 1
        claimed = layout.slot_hashes(table)
        judged = np.where(
            there,
            np.where(claimed == hashes, HASH_MATCH, HASH_MISMATCH),
            np.where(zeros, BLOCK_EMPTY, STALE_EMPTY),
        )
        present.append(there)
        results.append(judged.astype(np.uint8))
        stated.append(claimed)
        flush_ids.append(layout.slot_flush_ids(table))
    bad_a, bad_b = (result >= HASH_MISMATCH for result in results)
    bad: npt.NDArray[np.bool_] = bad_a & bad_b if extent.metadata.dirty else np.where(active, bad_b, bad_a)
    return FileBlocks(
        first,
        (results[0], results[1]),
        (present[0], present[1]),
        (stated[0], stated[1]),
        (flush_ids[0], flush_ids[1]),
        hashes,
        zeros,
        ~active,
        bad,
    )


def _csv_quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n') else text
