"""Old extents that keep their contexts in SQLite: reading them, and turning them into raw ones (on-disk-format.md §3).

An extent is an SQLite one as long as ``NNN.db`` stands beside ``NNN``. This program reads such extents and migrates
them on a read-write open; it never makes new ones.

What it guarantees: reading changes nothing. The database is opened as a copy in a temporary directory, because SQLite
would otherwise fold the write-ahead log into the original and delete it when the last connection closes. A migration
can be cut off anywhere and started again: until ``NNN.db`` is gone it remains the truth, the block data is never
moved, and everything after it in ``NNN`` is written anew; ``NNN.db`` goes only after that has been synced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, ENCRYPTED, NONCE_BYTES, PLAIN, TAG_BYTES, BlockContexts, Hashes, hash_blocks
from crucible_emu.region import layout
from crucible_emu.region.directory import read_file
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.storage import Storage

EXT_VERSION_SQLITE = 1
MIGRATION_CHUNK_BYTES = 4 << 20
METADATA_NAMES = ("ext_version", "gen_number", "flush_number", "dirty")


def database_path(extent: Path) -> Path:
    """``NNN.db`` of the data file ``NNN``; its presence is what marks the format."""
    return extent.with_name(extent.name + ".db")


def log_paths(extent: Path) -> tuple[Path, Path]:
    """``NNN.db-shm`` and ``NNN.db-wal``, in the order in which they are removed."""
    return extent.with_name(extent.name + ".db-shm"), extent.with_name(extent.name + ".db-wal")


@dataclass(frozen=True, slots=True, eq=False)
class SqliteTables:
    """What the database of one extent says: its metadata, and r context rows ordered by block.

    ``block`` int64[r]; ``kind`` uint8[r]; ``hash`` and ``on_disk_hash`` uint64[r]; ``nonce`` uint8[r, 12] and ``tag``
    uint8[r, 16], zeros where the row has none.
    """

    metadata: ExtentMetadata
    block: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    hash: Hashes
    nonce: npt.NDArray[np.uint8]
    tag: npt.NDArray[np.uint8]
    on_disk_hash: Hashes

    def contexts(self, first: int, hashes: Hashes, *, trust_single_rows: bool) -> BlockContexts:
        """Contexts of the blocks ``first .. first + len(hashes)``, whose stored bytes hash to ``hashes`` (§3.3).

        Of several rows the one that fits the bytes is taken, else none. A single row is taken unchecked with
        ``trust_single_rows``: a read does that, and a migration of a clean extent; the migration of a dirty one asks
        for a fit, as the real program prunes first.
        """
        count = len(hashes)
        low, high = np.searchsorted(self.block, [first, first + count])
        local = self.block[low:high] - first
        fits = self.on_disk_hash[low:high] == hashes[local]
        if trust_single_rows:
            fits |= np.bincount(local, minlength=count)[local] == 1
        rows, blocks = low + np.flatnonzero(fits), local[fits]
        found = BlockContexts(
            np.full(count, EMPTY, np.uint8),
            np.zeros(count, np.uint64),
            on_disk_hash=np.zeros(count, np.uint64),
        )
        assert found.on_disk_hash is not None
        found.kind[blocks] = self.kind[rows]
        found.hash[blocks] = self.hash[rows]
        found.on_disk_hash[blocks] = self.on_disk_hash[rows]
        if (self.kind == ENCRYPTED).any():
            found.nonce = np.zeros((count, NONCE_BYTES), np.uint8)
            found.tag = np.zeros((count, TAG_BYTES), np.uint8)
            found.nonce[blocks] = self.nonce[rows]
            found.tag[blocks] = self.tag[rows]
        return found


def read_tables(storage: Storage, extent: Path, blocks: int) -> SqliteTables:
    """Metadata and contexts of the SQLite extent whose data file is ``extent``, of ``blocks`` blocks.

    Raises :class:`errors.BadMetadata` or :class:`errors.BadContextSlot` where the database is not such a one.
    """
    import sqlite3  # *Optimisation*: a MiB for every disk, and few have such extents

    database = database_path(extent)
    with tempfile.TemporaryDirectory(prefix="crucible-extent-") as directory:
        copy = Path(directory) / database.name
        copy.write_bytes(read_file(storage, database))
        _, log = log_paths(extent)
        if storage.exists(log):
            copy.with_name(log.name).write_bytes(read_file(storage, log))
        try:
            with closing(sqlite3.connect(copy)) as connection:
                named = dict(connection.execute("SELECT name, value FROM metadata"))
                rows = connection.execute(
                    "SELECT block, hash, nonce, tag, on_disk_hash FROM block_context ORDER BY block"
                ).fetchall()
        except sqlite3.DatabaseError as error:
            raise errors.BadMetadata(f"{database} is not the database of an extent: {error}") from error
    return _tables(database, named, rows, blocks)


def _tables(database: Path, named: dict[str, Any], rows: Sequence[tuple[Any, ...]], blocks: int) -> SqliteTables:
    missing = [name for name in METADATA_NAMES if not isinstance(named.get(name), int)]
    if missing:
        raise errors.BadMetadata(f"{database} has no number {missing[0]!r} in its metadata")
    if named["ext_version"] != EXT_VERSION_SQLITE or named["dirty"] not in (0, 1):
        raise errors.BadMetadata(
            f"{database} has ext_version {named['ext_version']} and dirty {named['dirty']}, "
            f"expected {EXT_VERSION_SQLITE} and 0 or 1"
        )
    for row in rows:
        if not _is_context(row, blocks):
            raise errors.BadContextSlot(f"{database} holds a row for block {row[0]!r} that cannot be decoded")
    sealed = np.array([row[2] is not None and row[3] is not None for row in rows], np.bool_)
    metadata = ExtentMetadata(
        bool(named["dirty"]), _unsigned(named["gen_number"]), _unsigned(named["flush_number"]), EXT_VERSION_SQLITE
    )
    return SqliteTables(
        metadata,
        np.array([row[0] for row in rows], np.int64),
        np.where(sealed, ENCRYPTED, PLAIN).astype(np.uint8),
        np.array([row[1] for row in rows], np.int64).view(np.uint64),
        _bytes_of([row[2] if seal else bytes(NONCE_BYTES) for row, seal in zip(rows, sealed)], NONCE_BYTES),
        _bytes_of([row[3] if seal else bytes(TAG_BYTES) for row, seal in zip(rows, sealed)], TAG_BYTES),
        np.array([row[4] for row in rows], np.int64).view(np.uint64),
    )


def _is_context(row: tuple[Any, ...], blocks: int) -> bool:
    block, hash_, nonce, tag, on_disk = row
    if not all(isinstance(value, int) for value in (block, hash_, on_disk)) or not 0 <= block < blocks:
        return False
    parts = ((nonce, NONCE_BYTES), (tag, TAG_BYTES))
    return all(part is None or (isinstance(part, bytes) and len(part) == size) for part, size in parts)


def _unsigned(value: int) -> int:
    """u64 values are stored as two's-complement i64."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def _bytes_of(values: list[bytes], size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), size)


def migrate(storage: Storage, extent: Path, geometry: ExtentLayout) -> None:
    """Turn the SQLite extent whose data file is ``extent`` into a raw one (§3.4); idempotent.

    Raises :class:`errors.BadMetadata`, :class:`errors.BadContextSlot` or :class:`OSError`; the database then stands.
    """
    tables = read_tables(storage, extent, geometry.blocks)
    descriptor = storage.open(extent, os.O_RDWR)
    try:
        storage.ftruncate(descriptor, geometry.data_bytes)  # undoes what an earlier attempt added
        if tables.metadata.dirty:
            storage.fsync(descriptor)
        storage.ftruncate(descriptor, geometry.file_bytes)  # slots and bitmap are zeros: nothing active but A
        _write_contexts(storage, descriptor, geometry, tables)
        metadata = ExtentMetadata(tables.metadata.dirty, tables.metadata.gen_number, tables.metadata.flush_number)
        storage.pwrite(descriptor, metadata.pack(), geometry.metadata_offset)
        storage.fsync(descriptor)
    finally:
        storage.close(descriptor)
    storage.unlink(database_path(extent))
    storage.sync_directory(extent.parent)
    remove_logs(storage, extent)


def _write_contexts(storage: Storage, descriptor: int, geometry: ExtentLayout, tables: SqliteTables) -> None:
    step = max(1, MIGRATION_CHUNK_BYTES // geometry.block_size)
    rows = np.empty((step, geometry.block_size), np.uint8)
    for first in range(0, geometry.blocks, step):
        part = rows[: min(step, geometry.blocks - first)]
        storage.preadv(descriptor, [part.data.cast("B")], first * geometry.block_size)
        contexts = tables.contexts(first, hash_blocks(part), trust_single_rows=not tables.metadata.dirty)
        assert contexts.on_disk_hash is not None
        slots = layout.pack_slots(contexts, contexts.on_disk_hash)
        storage.pwrite(descriptor, slots.data.cast("B"), geometry.slot_offset(layout.SLOT_A, first))


def remove_logs(storage: Storage, extent: Path) -> None:
    """Remove ``NNN.db-shm`` and ``NNN.db-wal``, which mean nothing without ``NNN.db``."""
    for path in log_paths(extent):
        storage.remove_tree(path)
