"""The raw extent file, byte by byte (on-disk-format.md §2).

    block data | context slots A | context slots B | active bitmap | metadata (32 bytes)

Nothing is aligned but the data: slots straddle pages, the metadata is always the last 32 bytes. Bit k of the bitmap
names block k's active slot (0 = A, 1 = B) and means something only while the extent is clean. This module knows
offsets and encodings; it does no I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts, Hashes, Rows, hash_sealed_blocks

SLOT_BYTES = 48
METADATA_BYTES = 32
EXT_VERSION_RAW = 2
SLOT_A, SLOT_B = 0, 1

Slots = npt.NDArray[np.uint8]
"""Context slots as stored: dtype uint8, shape (n, 48)."""

# One 48-byte record, two shapes: which one holds is decided by its `sealed` byte (§2.2).
PLAIN_SLOT = np.dtype(
    [
        ("present", "u1"),
        ("hash", "<u8"),
        ("sealed", "u1"),
        ("on_disk", "<u8"),
        ("flush", "<u2"),
        ("pad", "V28"),
    ]
)
SEALED_SLOT = np.dtype(
    [
        ("present", "u1"),
        ("hash", "<u8"),
        ("sealed", "u1"),
        ("nonce", "u1", (12,)),
        ("tag", "u1", (16,)),
        ("on_disk", "<u8"),
        ("flush", "<u2"),
    ]
)
assert PLAIN_SLOT.itemsize == SEALED_SLOT.itemsize == SLOT_BYTES

_METADATA = struct.Struct("<BQQIII")
METADATA = np.dtype(
    [
        ("dirty", "u1"),
        ("gen_number", "<u8"),
        ("flush_number", "<u8"),
        ("ext_version", "<u4"),
        ("bonus_sync_count", "<u4"),
        ("defrag_count", "<u4"),
        ("pad", "V3"),
    ]
)
"""The same 32 bytes for many extents at once (§2.4)."""
assert METADATA.itemsize == METADATA_BYTES


def extent_path(region: Path, extent_id: int) -> Path:
    """Path of an extent's data file: 8, 12 and 12 bits in upper-case hex (§1.3)."""
    return Path(extent_name(str(region), extent_id))


def extent_name(region: str, extent_id: int) -> str:
    """The same as text, for those who open many: 0.6 µs, a :class:`Path` takes 8."""
    return f"{region}/{extent_id >> 24:02X}/{extent_id >> 12 & 0xFFF:03X}/{extent_id & 0xFFF:03X}"


@dataclass(frozen=True, slots=True)
class ExtentLayout:
    """Offsets in bytes inside the file of an extent of ``blocks`` blocks of ``block_size`` bytes (§2.1)."""

    block_size: int
    blocks: int

    @property
    def data_bytes(self) -> int:
        return self.block_size * self.blocks

    def slots_offset(self, which: int) -> int:
        """Start of context slot array A (0) or B (1)."""
        return self.data_bytes + which * SLOT_BYTES * self.blocks

    def slot_offset(self, which: int, block: int) -> int:
        return self.slots_offset(which) + SLOT_BYTES * block

    @property
    def bitmap_offset(self) -> int:
        return self.data_bytes + 2 * SLOT_BYTES * self.blocks

    @property
    def bitmap_bytes(self) -> int:
        return (self.blocks + 7) // 8

    @property
    def metadata_offset(self) -> int:
        return self.bitmap_offset + self.bitmap_bytes

    @property
    def file_bytes(self) -> int:
        return self.metadata_offset + METADATA_BYTES


@dataclass(frozen=True, slots=True)
class ExtentMetadata:
    """The last 32 bytes of an extent file (§2.4)."""

    dirty: bool
    gen_number: int
    flush_number: int
    ext_version: int = EXT_VERSION_RAW
    bonus_sync_count: int = 0
    defrag_count: int = 0

    def pack(self) -> bytes:
        return _METADATA.pack(
            self.dirty,
            self.gen_number,
            self.flush_number,
            self.ext_version,
            self.bonus_sync_count & 0xFFFFFFFF,
            self.defrag_count & 0xFFFFFFFF,
        ).ljust(METADATA_BYTES, b"\0")

    @classmethod
    def unpack(cls, record: bytes) -> ExtentMetadata:
        """Raises :class:`errors.BadMetadata` for a dirty byte that is neither 0 nor 1."""
        dirty, gen, flush, version, bonus, defrag = _METADATA.unpack_from(record)
        if dirty > 1:
            raise errors.BadMetadata(f"invalid u8 while decoding bool, expected 0 or 1, found {dirty}")
        return cls(bool(dirty), gen, flush, version, bonus, defrag)


def pack_bitmap(active: npt.NDArray[np.bool_]) -> bytes:
    return np.packbits(active, bitorder="little").tobytes()


def unpack_bitmap(stored: bytes, blocks: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(stored, np.uint8), count=blocks, bitorder="little").astype(np.bool_)


def pack_slots(contexts: BlockContexts, on_disk: Hashes, flush_number: int = 0) -> Slots:
    """Slots for these contexts, uint8[n, 48]; an :data:`EMPTY` context gives a zero slot."""
    count = len(contexts)
    slots = np.zeros((count, SLOT_BYTES), np.uint8)
    flush_id = flush_number & 0xFFFF
    if contexts.nonce is None and contexts.kind.all():
        plain = slots.view(PLAIN_SLOT)[:, 0]
        plain["present"] = 1
        plain["hash"] = contexts.hash
        plain["on_disk"] = on_disk
        if flush_id:
            plain["flush"] = flush_id
        return slots
    rows = np.flatnonzero(contexts.kind == PLAIN)
    plain = slots.view(PLAIN_SLOT)[:, 0]
    plain["present"][rows] = 1
    plain["hash"][rows] = contexts.hash[rows]
    plain["on_disk"][rows] = on_disk[rows]
    plain["flush"][rows] = flush_id
    if contexts.nonce is not None and contexts.tag is not None:
        rows = np.flatnonzero(contexts.kind == ENCRYPTED)
        sealed = slots.view(SEALED_SLOT)[:, 0]
        sealed["present"][rows] = 1
        sealed["sealed"][rows] = 1
        sealed["hash"][rows] = contexts.hash[rows]
        sealed["nonce"][rows] = contexts.nonce[rows]
        sealed["tag"][rows] = contexts.tag[rows]
        sealed["on_disk"][rows] = on_disk[rows]
        sealed["flush"][rows] = flush_id
    return slots


def check_slots(slots: Slots) -> None:
    """Raises :class:`errors.BadContextSlot` when a tag byte is neither 0 nor 1 (§2.2)."""
    present = slots[:, 0]
    bad = present > 1
    if bad.any():
        raise errors.BadContextSlot(f"tag for enum is not valid, found {int(present[bad][0])}")
    bad = (present == 1) & (slots[:, 9] > 1)
    if bad.any():
        raise errors.BadContextSlot(f"tag for enum is not valid, found {int(slots[:, 9][bad][0])}")


def slot_hashes(slots: Slots) -> Hashes:
    """``on_disk_hash`` of each slot, uint64[n]; meaningless where the slot is empty."""
    records = np.ascontiguousarray(slots)
    sealed = records[:, 9] == 1
    plain_hashes: Hashes = records.view(PLAIN_SLOT)[:, 0]["on_disk"]
    if not sealed.any():
        return plain_hashes.copy()
    return np.where(sealed, records.view(SEALED_SLOT)[:, 0]["on_disk"], plain_hashes)


def slot_flush_ids(slots: Slots) -> npt.NDArray[np.uint16]:
    """``flush_id`` of each slot, uint16[n]: the low 16 bits of a flush number; meaningless where the slot is empty."""
    records = np.ascontiguousarray(slots)
    sealed = records[:, 9] == 1
    found: npt.NDArray[np.uint16] = np.where(
        sealed, records.view(SEALED_SLOT)[:, 0]["flush"], records.view(PLAIN_SLOT)[:, 0]["flush"]
    )
    return found


def set_flush_ids(slots: Slots, flush_number: int) -> None:
    """Stamp the low 16 bits of ``flush_number`` into every present slot, in place (contiguous ``slots``)."""
    present = slots[:, 0] == 1
    sealed = slots[:, 9] == 1
    flush_id = flush_number & 0xFFFF
    slots.view(PLAIN_SLOT)[:, 0]["flush"][present & ~sealed] = flush_id
    slots.view(SEALED_SLOT)[:, 0]["flush"][present & sealed] = flush_id


def unpack_slots(slots: Slots) -> BlockContexts:
    """The contexts in these slots. Raises :class:`errors.BadContextSlot`."""
    check_slots(slots)
    records = np.ascontiguousarray(slots)
    present = records[:, 0] == 1
    sealed = present & (records[:, 9] == 1)
    plain_view = records.view(PLAIN_SLOT)[:, 0]
    kind = np.where(sealed, ENCRYPTED, np.where(present, PLAIN, EMPTY)).astype(np.uint8)
    hashes = np.where(present, plain_view["hash"], 0).astype(np.uint64)
    if not sealed.any():
        return BlockContexts(kind, hashes, on_disk_hash=np.where(present, plain_view["on_disk"], 0).astype(np.uint64))
    sealed_view = records.view(SEALED_SLOT)[:, 0]
    nonce = np.where(sealed[:, None], sealed_view["nonce"], 0).astype(np.uint8)
    tag = np.where(sealed[:, None], sealed_view["tag"], 0).astype(np.uint8)
    on_disk = np.where(present, slot_hashes(records), 0).astype(np.uint64)
    return BlockContexts(kind, hashes, nonce, tag, on_disk)


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredSlots:
    """Which slot holds each block's context after a crash (§2.9): ``active`` bool[n] (True = B), ``lost`` bool[n]."""

    active: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]


def recover_active(slots_a: Slots, slots_b: Slots, hashes: Hashes, rows: Rows | None = None) -> RecoveredSlots:
    """Choose each block's active slot from the hash of its stored bytes, by the table of §2.9.

    *Safety*, beyond the table: a slot that a power cut tore may still carry the ``on_disk_hash`` of the block (§6.4),
    so a plain slot matches only when its two hashes agree, and an encrypted one, given the stored ``rows``, only when
    nonce, tag and data give its hash. A slot that was written whole always does.
    """
    match_a, match_b = _matches(slots_a, hashes, rows), _matches(slots_b, hashes, rows)
    empty_a, empty_b = slots_a[:, 0] == 0, slots_b[:, 0] == 0
    lost = ~(match_a | match_b | empty_a | empty_b)
    active = (match_b | (~match_a & ~empty_a)) & ~(empty_a & empty_b)
    return RecoveredSlots(active, lost)


def _matches(slots: Slots, hashes: Hashes, rows: Rows | None) -> npt.NDArray[np.bool_]:
    records = np.ascontiguousarray(slots)
    plain, sealed = records.view(PLAIN_SLOT)[:, 0], records.view(SEALED_SLOT)[:, 0]
    is_sealed = records[:, 9] == 1
    matching: npt.NDArray[np.bool_] = (records[:, 0] == 1) & (slot_hashes(records) == hashes)
    matching &= is_sealed | (plain["hash"] == plain["on_disk"])
    check = np.flatnonzero(matching & is_sealed)
    if rows is not None and len(check):
        nonce, tag, wanted = sealed["nonce"][check], sealed["tag"][check], sealed["hash"][check]
        matching[check] = hash_sealed_blocks(nonce, tag, rows[check]) == wanted
    return matching
