"""Region directories for tests of the tools, written byte by byte from the layout alone.

An :class:`ExtentFile` keeps the rules of the format (the inactive slot is written, the bitmap changes with a flush)
without any of the code that serves regions, so that a tool is never checked against what it shares with its subject.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import xxhash

from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.region import layout
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata

UUIDS = [UUID(f"12345678-1111-2222-3333-12345678999{digit}") for digit in range(10)]
NONCE = bytes(range(0x10, 0x1C))
TAG = bytes(range(0xA0, 0xB0))


def definition(block_size=512, blocks=10, extents=3, uuid=UUIDS[9], encrypted=False) -> RegionDefinition:
    return RegionDefinition(block_size, blocks, extents, uuid, encrypted)


def patterned(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def lcg_bytes(seed: int, count: int) -> tuple[bytes, int]:
    """The generator from which the examples of the format's description take their data."""
    out = bytearray(count)
    for index in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        out[index] = seed >> 33 & 0xFF
    return bytes(out), seed


def context_of(data: bytes, seal: tuple[bytes, bytes] | None = None) -> BlockContexts:
    """The context of one block."""
    on_disk = np.array([xxhash.xxh64_intdigest(data)], np.uint64)
    if seal is None:
        return BlockContexts(np.array([PLAIN], np.uint8), on_disk, on_disk_hash=on_disk)
    nonce, tag = seal
    whole = np.array([xxhash.xxh64_intdigest(nonce + tag + data)], np.uint64)
    rows = (np.frombuffer(part, np.uint8)[None, :] for part in seal)
    return BlockContexts(np.array([ENCRYPTED], np.uint8), whole, *rows, on_disk)


class ExtentFile:
    """One raw extent file in memory."""

    def __init__(self, block_size: int, blocks: int) -> None:
        self.layout = ExtentLayout(block_size, blocks)
        self.rows = np.zeros((blocks, block_size), np.uint8)
        self.slots = [np.zeros((blocks, layout.SLOT_BYTES), np.uint8) for _ in "AB"]
        self.active = np.zeros(blocks, np.bool_)
        self.bitmap = self.active.copy()
        self.metadata = ExtentMetadata(False, 0, 0)

    def write(self, block: int, data: bytes, seal: tuple[bytes, bytes] | None = None) -> None:
        context = context_of(data, seal)
        which = int(not self.active[block])
        slot = layout.pack_slots(context, context.on_disk_hash, self.metadata.flush_number)
        self.slots[which][block] = slot[0]
        self.rows[block] = np.frombuffer(data, np.uint8)
        self.active[block] = bool(which)
        self.metadata = replace(self.metadata, dirty=True)

    def flush(self, flush_number: int, gen_number: int) -> None:
        self.bitmap = self.active.copy()
        self.metadata = ExtentMetadata(False, gen_number, flush_number)

    def content(self) -> bytes:
        parts = [self.rows.tobytes(), *(slots.tobytes() for slots in self.slots)]
        return b"".join([*parts, layout.pack_bitmap(self.bitmap), self.metadata.pack()])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content())


def save_region(path: Path, found: RegionDefinition, extents: Iterable[ExtentFile] = ()) -> Path:
    """``region.json`` and every extent; those that are not given are fresh."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "region.json").write_text(found.dumps())
    given = list(extents)
    for extent_id in range(found.extent_count):
        fresh = ExtentFile(found.block_size, found.blocks_per_extent)
        extent = given[extent_id] if extent_id < len(given) else fresh
        extent.save(layout.extent_path(path, extent_id))
    return path


def save_sqlite_extent(path: Path, rows: np.ndarray, contexts, metadata: ExtentMetadata, *, log: bool = False) -> None:
    """An old extent: data file and database. ``contexts``: (block, data, seal) per row.

    With ``log`` the rows stand in the write-ahead log alone, as after a crash of the old program.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rows.tobytes())
    database = path.with_name(path.name + ".db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE metadata (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")
        connection.execute(
            "CREATE TABLE block_context (block INTEGER, hash INTEGER, nonce BLOB, tag BLOB, on_disk_hash INTEGER,"
            " PRIMARY KEY (block, on_disk_hash)) WITHOUT ROWID"
        )
        connection.commit()
        if log:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        numbers = {
            "ext_version": 1,
            "gen_number": metadata.gen_number,
            "flush_number": metadata.flush_number,
            "dirty": int(metadata.dirty),
        }
        connection.executemany("INSERT INTO metadata VALUES (?, ?)", numbers.items())
        for block, data, seal in contexts:
            context = context_of(data, seal)
            nonce, tag = seal or (None, None)
            signed = [int(value.view(np.int64)[0]) for value in (context.hash, context.on_disk_hash)]
            connection.execute(
                "INSERT INTO block_context VALUES (?, ?, ?, ?, ?)", (block, signed[0], nonce, tag, signed[1])
            )
        connection.commit()
        if log:
            kept = {part: part.read_bytes() for part in path.parent.glob(f"{path.name}.db*")}
    if log:
        for part, content in kept.items():
            part.write_bytes(content)
