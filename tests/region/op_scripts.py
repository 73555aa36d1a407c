"""Op scripts: random programs for one extent, in the little language of the reference model, and our runner for them.

A script is text, one operation per line: ``def BS N COUNT ENC``, ``create EID``, ``open EID RO``,
``write START COUNT SEED ENC ONLY_UNWRITTEN``, ``read START COUNT``, ``flush FLUSH GEN``, ``meta``, ``validate``. Data,
nonces and tags come from a 64-bit linear congruential generator, so that two programs that share nothing but this
description write the same bytes.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from uuid import UUID

import numpy as np
import xxhash

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import ENCRYPTED, BlockContexts, first_bad_block, hash_blocks, hash_sealed_blocks
from crucible_emu.region import Region, Storage, SyncPolicy
from crucible_emu.region.directory import DEFINITION_NAME
from crucible_emu.region.layout import ExtentMetadata, extent_path

REGION_UUID = UUID("12345678-1111-2222-3333-123456789999")
_MULTIPLIER, _INCREMENT, _MASK = 6364136223846793005, 1442695040888963407, 2**64 - 1


def generated_bytes(seed: int, count: int) -> tuple[bytes, int]:
    """``count`` bytes of the generator from ``seed`` on, and where it stands then.

    State i is ``_MULTIPLIER**i * seed`` plus a sum that does not depend on the seed: two tables give all at once.
    """
    factors, sums = _generator_tables(1 << (count - 1).bit_length() if count else 1)
    states = factors[:count] * np.uint64(seed) + sums[:count]
    return (states >> np.uint64(33)).astype(np.uint8).tobytes(), int(states[-1]) if count else seed


@cache
def _generator_tables(count: int) -> tuple[np.ndarray, np.ndarray]:
    factor, total = 1, 0
    factors, sums = [], []
    for _ in range(count):
        factor, total = factor * _MULTIPLIER & _MASK, (total * _MULTIPLIER + _INCREMENT) & _MASK
        factors.append(factor)
        sums.append(total)
    return np.array(factors, np.uint64), np.array(sums, np.uint64)


def random_script(seed: int) -> str:
    """A script of some 40 operations on a small extent: many overwrites, so that bonus syncs, both slots and
    defragmentation all happen."""
    rnd = random.Random(seed)
    block_size = rnd.choice([512, 512, 512, 1024, 4096])
    blocks = rnd.choice([1, 7, 24, 40, 100])
    lines = [f"def {block_size} {blocks} 1 {rnd.randrange(2)}", "create 0"]
    flush_number, generation, read_only = 0, 1, False
    # Some scripts write every other block and read all of them, which is what gets an extent defragmented.
    scattering = blocks >= 24 and rnd.random() < 0.5
    for _ in range(rnd.randrange(20, 60)):
        kind = rnd.choices(["write", "unwritten", "read", "flush", "open", "meta"], [40, 8, 20, 14, 5, 3])[0]
        start = rnd.randrange(blocks)
        # Mostly short, so that the active slots get scattered; sometimes a block too many.
        count = rnd.choice([1, 1, 2, 3, rnd.randrange(1, blocks + 1)])
        count = min(count, blocks - start + (rnd.random() < 0.03))
        if scattering and kind == "write":
            start, count = start // 2 * 2, 1
        elif scattering and kind == "read":
            lines += [f"read 0 {blocks}"] * 4
        if kind in ("write", "unwritten") and not read_only:
            lines.append(f"write {start} {count} {rnd.randrange(2**32)} {rnd.randrange(2)} {int(kind == 'unwritten')}")
        elif kind == "read":
            lines.append(f"read {start} {count}")
        elif kind == "flush" and not read_only:
            flush_number += rnd.choice([1, 1, 40_000])
            generation += rnd.random() < 0.1
            lines.append(f"flush {flush_number} {generation}")
        elif kind == "open":
            read_only = rnd.random() < 0.3
            lines.append(f"open 0 {int(read_only)}")
        elif kind == "meta":
            lines.append("meta")
    lines.append("validate")
    return "\n".join(lines) + "\n"


class ScriptRunner:
    """Runs a script against a region of ours; ``answers`` are worded as the reference model words them."""

    def __init__(self, path: Path, policy: SyncPolicy = SyncPolicy.ZFS, storage: Storage | None = None) -> None:
        self.path = path
        self.answers: list[str] = []
        self._policy = policy
        self._storage = storage
        self._region: Region | None = None
        self._definition: RegionDefinition | None = None

    @property
    def region(self) -> Region:
        assert self._region is not None
        return self._region

    def run(self, script: str) -> list[str]:
        for line in script.splitlines():
            name, *words = line.split()
            answer = getattr(self, f"_{name}")(*map(int, words))
            if answer is not None:
                self.answers.append(answer)
        self.region.close()
        return self.answers

    def files(self) -> dict[str, bytes]:
        """Contents of everything in the region's directory."""
        paths = [self.path / DEFINITION_NAME, extent_path(self.path, 0)]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in paths}

    def _def(self, block_size: int, blocks: int, count: int, encrypted: int) -> None:
        self._definition = RegionDefinition(block_size, blocks, count, REGION_UUID, bool(encrypted))

    def _create(self, _: int) -> None:
        assert self._definition is not None
        self._region = Region.create(self.path, self._definition, policy=self._policy, storage=self._storage)

    def _open(self, _: int, read_only: int) -> str:
        self.region.close()
        self._region = Region.open(self.path, read_only=bool(read_only), policy=self._policy, storage=self._storage)
        return f"open ok dirty={str(bool(self.region.extent_versions()[2][0])).lower()}"

    def _write(self, start: int, count: int, seed: int, encrypted: int, only_unwritten: int) -> str:
        rows, contexts = script_blocks(self.region.definition.block_size, count, seed, bool(encrypted))
        blocks = np.arange(start, start + count)
        try:
            (self.region.write_unwritten if only_unwritten else self.region.write)(blocks, rows, contexts)
        except errors.OffsetInvalid:
            return "write Err(OffsetInvalid)"
        return "write Ok(())"

    def _read(self, start: int, count: int) -> str:
        out = bytearray(count * self.region.definition.block_size)
        try:
            self.region.read(start, count, memoryview(out))
        except errors.OffsetInvalid:
            return "read err"
        return f"read {xxhash.xxh64_intdigest(bytes(out)):016x}"

    def _flush(self, flush_number: int, generation: int) -> str:
        work = self.region.begin_flush(flush_number, generation)
        skipped = work.is_empty
        work.run()
        self.region.finish_flush(work)
        return "flush skipped" if skipped else "flushed"

    def _meta(self) -> str:
        stored = ExtentMetadata.unpack(extent_path(self.path, 0).read_bytes()[-32:])
        dirty = str(bool(self.region.extent_versions()[2][0])).lower()
        return f"meta gen={stored.gen_number} flush={stored.flush_number} dirty={dirty}"

    def _validate(self) -> str:
        definition = self.region.definition
        out = bytearray(definition.size_bytes)
        contexts = self.region.read(0, definition.total_blocks, memoryview(out))
        rows = np.frombuffer(out, np.uint8).reshape(-1, definition.block_size)
        return "validate " + ("Ok(())" if first_bad_block(rows, contexts) is None else "Err")


def script_blocks(block_size: int, count: int, seed: int, encrypted: bool) -> tuple[np.ndarray, BlockContexts]:
    """Data and contexts of a ``write`` line."""
    data, seed = generated_bytes(seed, block_size * count)
    rows = np.frombuffer(data, np.uint8).reshape(count, block_size)
    if not encrypted:
        return rows, BlockContexts.plain(hash_blocks(rows))
    nonce, tag = np.empty((count, 12), np.uint8), np.empty((count, 16), np.uint8)
    for index in range(count):
        part, seed = generated_bytes(seed, 12)
        nonce[index] = np.frombuffer(part, np.uint8)
        part, seed = generated_bytes(seed, 16)
        tag[index] = np.frombuffer(part, np.uint8)
    kind = np.full(count, ENCRYPTED, np.uint8)
    return rows, BlockContexts(kind, hash_sealed_blocks(nonce, tag, rows), nonce, tag, hash_blocks(rows))
