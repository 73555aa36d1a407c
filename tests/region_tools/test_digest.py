"""Digests: equal for replicas that hold the same, different as soon as they do not."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from blake3 import blake3
from region_builder import NONCE, TAG, UUIDS, ExtentFile, definition, patterned, save_region

from crucible_emu.errors import MissingContextSlot, UsageError
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region, layout
from crucible_emu.region.digest import region_digest, volume_digest
from crucible_emu.region.view import RegionView


def digest(path):
    return region_digest(RegionView.open(path)).region


def written(*writes, flush=(1, 1)):
    extent = ExtentFile(512, 10)
    for block, data, *seal in writes:
        extent.write(block, data, *seal)
    if flush:
        extent.flush(*flush)
    return extent


ONE, TWO, THREE = (patterned(512, seed) for seed in (1, 2, 3))


def test_history_does_not_matter(tmp_path):
    """Slots A and B, flush ids, numbers, dirty flags and UUIDs differ; what can be read does not."""
    direct = written((0, ONE), (5, TWO), flush=(1, 1))
    detour = written((5, THREE), (0, TWO), (0, ONE), flush=(7, 2))
    detour.write(5, TWO)
    detour.flush(9, 3)
    unflushed = written((0, THREE), (0, ONE), (5, TWO), flush=None)
    assert len({extent.content() for extent in (direct, detour, unflushed)}) == 3
    digests = set()
    for index, extent in enumerate((direct, detour, unflushed)):
        digests.add(digest(save_region(tmp_path / f"r{index}", definition(512, 10, 2, UUIDS[index]), [extent])))
    assert len(digests) == 1


def test_regions_written_in_different_ways_agree(tmp_path):
    """The same disk through two open regions: block by block with a flush after each, and all at once."""
    rows = np.frombuffer(patterned(30 * 512, 5), np.uint8).reshape(30, 512)
    contexts = BlockContexts.plain(hash_blocks(rows))
    with closing(Region.create(tmp_path / "slow", definition(512, 10, 3, UUIDS[0]))) as region:
        for number in range(4):
            for block in range(0, 30, 1 + number):
                some = slice(block, block + 1)
                data = rows[some] if number == 3 or block % 4 == 0 else rows[(block + 1) % 30][None, :]
                region.write(np.array([block]), data, BlockContexts.plain(hash_blocks(data)))
            region.flush(number + 1, 1)
        region.write(np.arange(30), rows, contexts)
        region.flush(9, 1)
    with closing(Region.create(tmp_path / "quick", definition(512, 10, 3, UUIDS[1]))) as region:
        region.write(np.arange(30), rows, contexts)
        region.flush(1, 1)
    assert digest(tmp_path / "slow") == digest(tmp_path / "quick")


@pytest.mark.parametrize(
    "other",
    [
        written((0, ONE), (5, THREE)),
        written((0, ONE), (6, TWO)),
        written((0, ONE)),
        written((0, ONE), (5, TWO, (NONCE, TAG))),
        written((0, ONE), (5, TWO), (9, bytes(512))),
    ],
    ids=["other data", "other block", "less", "sealed", "zeros instead of nothing"],
)
def test_what_can_be_read_matters(tmp_path, other):
    first = save_region(tmp_path / "a", definition(512, 10, 1), [written((0, ONE), (5, TWO))])
    second = save_region(tmp_path / "b", definition(512, 10, 1), [other])
    assert digest(first) != digest(second)


def test_every_field_of_a_sealed_context_matters(tmp_path):
    seals = [(NONCE, TAG), (NONCE[::-1], TAG), (NONCE, TAG[::-1])]
    digests = {
        digest(save_region(tmp_path / f"r{index}", definition(512, 10, 1), [written((0, ONE, seal))]))
        for index, seal in enumerate(seals)
    }
    assert len(digests) == 3


def test_damage_shows(tmp_path):
    path = save_region(tmp_path / "r", definition(512, 10, 1), [written((0, ONE))])
    before = digest(path)
    file = layout.extent_path(path, 0)
    content = bytearray(file.read_bytes())
    content[9 * 512] = 1  # a block that was never written
    file.write_bytes(content)
    assert digest(path) != before


def test_construction_is_the_documented_one(tmp_path):
    """Built here by hand from the module's description: anybody can."""
    extent = written((0, ONE), (1, TWO, (NONCE, TAG)))
    found = definition(512, 10, 2, encrypted=True)
    path = save_region(tmp_path / "r", found, [extent])
    whole = blake3(NONCE + TAG + TWO)  # not used by the digest: the hash below is XXH64
    assert whole.hexdigest()
    sealed_hash = extent.slots[1][1, 1:9].tobytes()
    records = b"".join(
        [
            struct.pack("<B", 2) + hash_of(ONE) + bytes(12) + bytes(16) + hash_of(ONE),
            struct.pack("<B", 1) + sealed_hash + NONCE + TAG + hash_of(TWO),
            bytes(45 * 8),
        ]
    )
    data = ONE + TWO + bytes(8 * 512)

    def extent_digest(data, records):
        parts = [b"crucible-emu extent digest 1\0", struct.pack("<IQ", 512, 10)]
        return blake3(b"".join([*parts, blake3(data).digest(), blake3(records).digest()])).digest()

    extents = [extent_digest(data, records), extent_digest(bytes(5120), bytes(450))]
    head = b"crucible-emu region digest 1\0" + struct.pack("<IQIB", 512, 10, 2, 1)
    seen = region_digest(RegionView.open(path))
    assert seen.extents == tuple(part.hex() for part in extents)
    assert seen.region == blake3(head + b"".join(extents)).hexdigest()


def hash_of(data: bytes) -> bytes:
    return hash_blocks(np.frombuffer(data, np.uint8)[None, :]).tobytes()


def test_block_without_a_fitting_context_has_no_digest(tmp_path):
    extent = written((0, ONE), (0, TWO), flush=None)
    extent.rows[0] = np.frombuffer(THREE, np.uint8)
    path = save_region(tmp_path / "r", definition(512, 10, 1), [extent])
    with pytest.raises(MissingContextSlot) as caught:
        digest(path)
    assert (caught.value.block, caught.value.extent) == (0, 0)


def test_progress_counts_all_bytes(tmp_path):
    path = save_region(tmp_path / "r", definition(512, 10, 3))
    done = []
    region_digest(RegionView.open(path), done.append)
    volume_digest(RegionView.open(path), done.append)
    assert sum(done) == 2 * 3 * 5120


def test_volume_digest_is_blake3_of_the_disk(tmp_path):
    path = save_region(tmp_path / "r", definition(512, 10, 2), [written((3, ONE))])
    disk = bytes(3 * 512) + ONE + bytes(16 * 512)
    assert volume_digest(RegionView.open(path)) == blake3(disk).hexdigest()


def test_an_encrypted_disk_has_no_volume_digest_without_its_key(tmp_path):
    path = save_region(tmp_path / "r", definition(512, 10, 1, encrypted=True))
    with pytest.raises(UsageError, match="needs the key"):
        volume_digest(RegionView.open(path))


def test_memory_is_bounded(tmp_path):
    """A sparse region of 512 MiB in one extent is digested with a few MiB."""
    with closing(Region.create(tmp_path / "big", definition(32768, 16384, 1))):
        pass
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from crucible_emu.region.view import RegionView\n"
        "from crucible_emu.region.digest import volume_digest\n"
        "view = RegionView.open(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "volume_digest(view)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) < 40 * 1024, "KiB"
