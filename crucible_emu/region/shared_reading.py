"""Reading the blocks of a region that another process has open, by looking into its memory and its files.

What it is for: what :class:`~crucible_emu.region.reading.Reader` does for blocks that are at hand, without waking the
process whose region it is: a read costs what it costs there.

What it guarantees: :meth:`SharedReader.read_singles`, :meth:`SharedReader.read_sealed` and, for consecutive blocks,
:meth:`SharedReader.read_range` say what each block must be, and the caller, who verifies that, uses nothing that it is
not. Why a block that is what its entry says is the newest: an entry says what the newest write of the block said, or
nothing; whoever may not miss a write that is under way does not ask. Everything else may be caught in the middle of a
change, and is found out by the block's hash or tag:

* a row that is used again while it is copied, or a table that is given back meanwhile: the bytes are others, or what
  they must be is zero;
* a block that moves from its row into its file between two looks: the bytes are those of before;
* a file that is another by now: the region's *epoch* has changed (:mod:`sharing`), which :attr:`SharedReader.holds`
  tells; the caller looks at that behind each read.

*Safety*: what the other process writes into its tables decides where is looked, so every number from there is checked
against what is mapped, and what is mapped cannot shrink.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from crucible_emu.errors import CrucibleError, RemoteError
from crucible_emu.geometry import split_at_extents
from crucible_emu.integrity import NONCE_BYTES, SEAL_BYTES, BlockContexts, Rows
from crucible_emu.region.contexts import KNOWN_EMPTY, KNOWN_PLAIN, KNOWN_SEALED
from crucible_emu.region.extent import Descriptors, descriptors_per_region
from crucible_emu.region.reading import fill_from_rows
from crucible_emu.region.sharing import EPOCH_BYTES, SharedLayout
from crucible_emu.region.storage import OsStorage


class SharedReader:
    """Reads a region by its shared ``memory`` and its ``directory``, two descriptors that are closed here, whatever
    happens. ``epoch``: what it was when they were handed out. Raises :class:`RemoteError` where they are not what they
    should be."""

    def __init__(self, layout: SharedLayout, epoch: int, memory: int, directory: int) -> None:
        self._storage = _Directory(directory)
        self._views: list[memoryview] = []
        self._map: mmap.mmap | None = None
        self._extents = Descriptors(self._storage, Path(), os.O_RDONLY | os.O_NOFOLLOW, descriptors_per_region())
        try:
            self._map = _mapped(memory, layout.size_bytes)
            self._extents.get(0)  # who may not open files is better told now than at each read
        except (OSError, CrucibleError, RemoteError) as error:
            self.close()
            raise RemoteError(f"a grant that cannot be used: {error}") from error
        finally:
            os.close(memory)
        self._layout = layout
        self._granted = epoch
        total = layout.total_blocks
        self._epoch = self._view(layout.epoch, EPOCH_BYTES, "Q")
        self._kind_of_block = self._view(layout.kind, total, "B")
        self._hash_of_block = self._view(layout.hash, total * 8, "Q")
        self._seals = self._view(layout.seal, total * SEAL_BYTES, "B")
        self._row_of_block = self._view(layout.row_of_block, total * 4, "I")
        self._rows = self._view(layout.rows, layout.row_count * layout.block_size, "B")
        self._zeros = bytes(layout.block_size)
        self._zero_hash = xxhash.xxh64_intdigest(self._zeros)

    def _view(self, offset: int, length: int, kind: Literal["B", "I", "Q"]) -> memoryview:
        assert self._map is not None
        self._views.append(memoryview(self._map)[offset : offset + length].cast(kind))
        return self._views[-1]

    @property
    def holds(self) -> bool:
        """Whether what was read until now was read rightly, as far as the owner is concerned."""
        return bool(self._epoch[0] == self._granted)

    def read_singles(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[int] | None:
        """Many single blocks of the region, each into its own buffer of one block's length, where all are at hand and
        plain or known to be empty: the XXH64 that each must have. ``None``, and anything in ``outs``, where not."""
        if self._epoch[0] != self._granted:
            return None
        kinds, hashes, fill = self._kind_of_block, self._hash_of_block, self._fill
        expected = []
        for block, out in zip(blocks, outs):
            kind = kinds[block]
            if kind == KNOWN_PLAIN:
                expected.append(hashes[block])
                if not fill(block, out):
                    return None
            elif kind == KNOWN_EMPTY:
                expected.append(self._zero_hash)
                out[:] = self._zeros
            else:
                return None
        return expected

    def read_sealed(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[bytes | None] | None:
        """As :meth:`read_singles`, where all are encrypted or known to be empty: nonce and tag of each, ``None`` of the
        empty ones."""
        if self._epoch[0] != self._granted:
            return None
        kinds, all_seals, fill = self._kind_of_block, self._seals, self._fill
        seals: list[bytes | None] = []
        for block, out in zip(blocks, outs):
            kind = kinds[block]
            if kind == KNOWN_SEALED:
                seals.append(bytes(all_seals[block * SEAL_BYTES : (block + 1) * SEAL_BYTES]))
                if not fill(block, out):
                    return None
            elif kind == KNOWN_EMPTY:
                seals.append(None)
                out[:] = self._zeros
            else:
                return None
        return seals

    def read_range(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Consecutive blocks, where all are at hand: their contexts, which know no ``on_disk_hash`` of what is
        encrypted. ``None``, and anything in ``out``, where not."""
        if self._epoch[0] != self._granted:
            return None
        layout, stop = self._layout, start + count
        kinds = np.array(self._kind_of_block[start:stop])  # copies: what they are taken from may change
        rows = np.array(self._row_of_block[start:stop])
        if not kinds.all() or rows.max(initial=0) >= layout.row_count:
            return None
        contexts = BlockContexts(kinds - np.uint8(1), np.array(self._hash_of_block[start:stop]))
        if (kinds == KNOWN_SEALED).any():
            seals = np.array(self._seals[start * SEAL_BYTES : stop * SEAL_BYTES]).reshape(count, SEAL_BYTES)
            contexts.nonce, contexts.tag = seals[:, :NONCE_BYTES], seals[:, NONCE_BYTES:]
        for first, last in fill_from_rows(rows, kinds, self._staged(), out):
            part = out[first * layout.block_size : last * layout.block_size]
            if not self._fill_from_files(start + first, last - first, part):
                return None
        return contexts

    def _staged(self) -> Rows:
        """All rows. Nobody may keep them: what looks into memory keeps it from being given back."""
        return np.frombuffer(self._rows, np.uint8).reshape(self._layout.row_count, self._layout.block_size)

    def _fill_from_files(self, start: int, count: int, out: memoryview) -> bool:
        size, done = self._layout.block_size, 0
        for extent_id, first, length in split_at_extents(start, count, self._layout.blocks_per_extent):
            if not self._read_file(extent_id, first, out[done : done + length * size]):
                return False
            done += length * size
        return True

    def _fill(self, block: int, out: memoryview) -> bool:
        """The bytes of a block that was written, from its row or its file; whether they were at hand."""
        layout, row = self._layout, self._row_of_block[block]
        size = layout.block_size
        if row:
            if row >= layout.row_count:
                return False
            out[:] = self._rows[row * size : (row + 1) * size]
            return True
        return self._read_file(*divmod(block, layout.blocks_per_extent), out)

    def _read_file(self, extent_id: int, first: int, out: memoryview) -> bool:
        """The data of an extent's blocks from ``first`` on; whether they were at hand."""
        try:
            descriptor = self._extents.find(extent_id)
            if descriptor is None:
                descriptor = self._extents.get(extent_id)
            return self._storage.preadv_nowait(descriptor, (out,), first * self._layout.block_size) == len(out)
        except (OSError, CrucibleError):
            return False  # whose file it is finds out what it is, and says so

    def close(self) -> None:
        """Let go of memory and files. Nothing may be read any more."""
        self._extents.close()
        self._storage.close_directory()
        if self._map is not None:
            while self._views:
                self._views.pop().release()
            self._map.close()


class _Directory(OsStorage):
    """Files by their names in a directory that is known by its descriptor alone."""

    def __init__(self, directory: int) -> None:
        super().__init__()
        self._directory = directory

    def open(self, path: Path | str, flags: int, mode: int = 0o666) -> int:  # type: ignore[override]
        return os.open(path, flags, mode, dir_fd=self._directory)

    def close_directory(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def _mapped(memory: int, size_bytes: int) -> mmap.mmap:
    """The whole of a file of memory, to be read. Raises :class:`RemoteError`, OSError."""
    if os.fstat(memory).st_size < size_bytes:
        raise RemoteError("a grant whose memory is smaller than it says")
    # *Safety*: whoever looks at a page that is gone is killed. Asking fails for what is no file of memory.
    if not fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise RemoteError("a grant whose memory may shrink")
    return mmap.mmap(memory, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
