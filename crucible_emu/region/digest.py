"""Names for content: the region digest and the volume digest.

The *region digest* says whether two replicas hold the same. Three healthy mirrors have equal ones although their files
differ: slot choice, flush ids, counters, generation and flush numbers, dirty flags and UUIDs do not enter. What enters
is what an Upstairs could read, plus the hashes that prove it:

* *records*: 45 bytes per block: kind (1 byte: 0 empty, 1 encrypted, 2 plain), hash (u64), nonce (12), tag (16),
  ``on_disk_hash`` (u64) of the active context; all zeros for a block that was never written, and nonce and tag zeros
  for a plain one;
* *extent digest* = BLAKE3 of: ``crucible-emu extent digest 1`` and a zero byte; block size (u32); blocks (u64);
  BLAKE3 (32 bytes) of the block data as stored; BLAKE3 (32 bytes) of the records;
* *region digest* = BLAKE3 of: ``crucible-emu region digest 1`` and a zero byte; block size (u32); blocks per extent
  (u64); extent count (u32); encrypted (1 byte); the extent digests (32 bytes each) in order.

Integers are little-endian. Block data of unwritten blocks is zeros in a sound region and is hashed as stored, so that
damage shows.

The *volume digest* is BLAKE3 of the disk's bytes: what ``b3sum`` says of an exported image.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts
from crucible_emu.region.view import RegionView, look_through, require_contexts

EXTENT_PREFIX = b"crucible-emu extent digest 1\0"
REGION_PREFIX = b"crucible-emu region digest 1\0"
RECORD = np.dtype(
    [("kind", "u1"), ("hash", "<u8"), ("nonce", "u1", (12,)), ("tag", "u1", (16,)), ("on_disk_hash", "<u8")]
)
assert RECORD.itemsize == 45

Progress = Callable[[int], None]
"""Called with the number of bytes of block data done since the last call."""


@dataclass(frozen=True, slots=True)
class RegionDigest:
    """Hex digests of a region and of each of its extents."""

    region: str
    extents: tuple[str, ...]


def region_digest(region: RegionView, progress: Progress | None = None) -> RegionDigest:
    """Digest of everything that is stored. Raises a CrucibleError at an extent that cannot be read."""
    extents = [extent_digest(region, extent_id, progress) for extent_id in range(region.definition.extent_count)]
    return RegionDigest(whole_digest(region.definition, extents), tuple(digest.hex() for digest in extents))


def whole_digest(definition: RegionDefinition, extents: Sequence[bytes]) -> str:
    """The region digest, in hex, of a region whose extents have these digests, in order."""
    head = struct.pack(
        "<IQIB", definition.block_size, definition.blocks_per_extent, definition.extent_count, definition.encrypted
    )
    return blake3(REGION_PREFIX + head + b"".join(extents)).hexdigest()


def extent_digest(region: RegionView, extent_id: int, progress: Progress | None = None) -> bytes:
    """Digest of one extent, 32 bytes. Raises :class:`errors.MissingContextSlot` where no context fits a block."""
    definition = region.definition
    # Several threads pay from about 128 KiB per update on; a chunk has 4 MiB.
    data, records = blake3(max_threads=blake3.AUTO), blake3()
    with region.extent(extent_id) as extent:
        for blocks in look_through(extent, 0, definition.blocks_per_extent, region.chunk_blocks):
            require_contexts(blocks, extent_id)
            data.update(blocks.rows.reshape(-1).data)
            records.update(context_records(blocks.contexts))
            if progress is not None:
                progress(blocks.rows.nbytes)
    head = struct.pack("<IQ", definition.block_size, definition.blocks_per_extent)
    return blake3(EXTENT_PREFIX + head + data.digest() + records.digest()).digest()


def context_records(contexts: BlockContexts) -> bytes:
    """The records of these contexts, 45 bytes each."""
    assert contexts.on_disk_hash is not None
    records = np.zeros(len(contexts), RECORD)
    records["kind"] = contexts.kind
    records["hash"] = contexts.hash
    records["on_disk_hash"] = contexts.on_disk_hash
    if contexts.nonce is not None and contexts.tag is not None:
        records["nonce"] = contexts.nonce
        records["tag"] = contexts.tag
    return records.tobytes()


def volume_digest(region: RegionView, progress: Progress | None = None) -> str:
    """BLAKE3 (hex) of the disk in a plain region, equal to ``b3sum`` of its export.

    Raises :class:`UsageError` for an encrypted region, whose stored bytes are not the disk's.
    """
    if region.definition.encrypted:
        raise UsageError(f"{region.path} is encrypted: the digest of its disk needs the key, take the region digest")
    hasher = blake3(max_threads=blake3.AUTO)
    for chunk in stored_bytes(region):
        hasher.update(chunk)
        if progress is not None:
            progress(len(chunk))
    return hasher.hexdigest()


def stored_bytes(region: RegionView) -> Iterator[memoryview]:
    """The block data of the whole region in order, in chunks."""
    for _, blocks in region.stream(0, region.definition.total_blocks):
        yield blocks.rows.reshape(-1).data
