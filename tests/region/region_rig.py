"""What the tests of the region build from: small regions, blocks with contexts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np

from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import ENCRYPTED, BlockContexts, Rows, hash_blocks, hash_sealed_blocks
from crucible_emu.region import Region

SIMULATED_REGION = Path("/region")
MakeRegion = Callable[..., Region]


def definition(block_size: int = 512, blocks: int = 20, extents: int = 3, encrypted: bool = False) -> RegionDefinition:
    return RegionDefinition(block_size, blocks, extents, UUID("12345678-1111-2222-3333-123456789999"), encrypted)


def made_blocks(count: int, block_size: int = 512, seed: int = 0, sealed: bool = False) -> tuple[Rows, BlockContexts]:
    """Random data, and contexts that fit it."""
    rng = np.random.default_rng([seed, sealed])
    rows = rng.integers(0, 256, (count, block_size), dtype=np.uint8)
    if not sealed:
        return rows, BlockContexts.plain(hash_blocks(rows))
    nonce = rng.integers(0, 256, (count, 12), dtype=np.uint8)
    tag = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    kind = np.full(count, ENCRYPTED, np.uint8)
    return rows, BlockContexts(kind, hash_sealed_blocks(nonce, tag, rows), nonce, tag)


def write(region: Region, blocks: list[int], seed: int, sealed: bool = False) -> Rows:
    """Write new data into ``blocks``; the data."""
    rows, contexts = made_blocks(len(blocks), region.definition.block_size, seed, sealed)
    region.write(np.array(blocks, np.int64), rows, contexts)
    return rows


def read_all(region: Region) -> tuple[Rows, BlockContexts]:
    out = bytearray(region.definition.size_bytes)
    contexts = region.read(0, region.definition.total_blocks, memoryview(out))
    return np.frombuffer(out, np.uint8).reshape(-1, region.definition.block_size), contexts


def read_rows(region: Region, blocks: list[int]) -> Rows:
    return read_all(region)[0][blocks]
