"""Reading a region by what it shares: after any steps it is what the region itself would read, or nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from region_rig import definition, made_blocks, write

from crucible_emu.integrity import BlockContexts
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.region.contexts import KNOWN_EMPTY, KNOWN_PLAIN, ContextTable
from crucible_emu.region.memory import SharedFile, reserve
from crucible_emu.region.shared_reading import SharedReader
from crucible_emu.region.sharing import SHARED_BLOCKS_MAX, SharedTables, shareable
from crucible_emu.region.staging import Staging

BLOCK, TOTAL = 512, 60


@contextmanager
def shared(path: Path, *, sealed: bool = False, staged_blocks: int = 64) -> Iterator[tuple[Region, SharedTables]]:
    if not path.exists():
        Region.create(path, definition(encrypted=sealed)).close()
    with Region.open(path, share=True, staged_bytes_max=staged_blocks * BLOCK) as region:
        assert region.shared is not None
        yield region, region.shared


def reader_of(region: Region) -> SharedReader:
    assert region.shared is not None
    with region.shared.descriptors(region.path) as (memory, directory):
        return SharedReader(region.shared.layout, region.shared.epoch, os.dup(memory), os.dup(directory))


def flush(region: Region, number: int, *, journal: bool) -> None:
    work = region.begin_flush(number, 1, journal=journal)
    work.run()
    region.finish_flush(work)


def destage(region: Region) -> None:
    work = region.begin_destage()
    work.run()
    region.finish_flush(work)


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("seed", range(4))
def test_it_reads_what_the_region_does(tmp_path: Path, seed: int, sealed: bool) -> None:
    """Writes, flushes to the journal and to the extents, destages, forgotten contexts, a table given back."""
    draw = random.Random(seed)
    content: dict[int, bytes] = {}
    with shared(tmp_path / "region", sealed=sealed) as (region, _):
        reader = reader_of(region)
        for number in range(120):
            step = draw.choice(["write", "write", "flush", "journal", "destage", "trim", "give back", "learn"])
            if step == "write":
                blocks = draw.sample(range(TOTAL), draw.randint(1, 12))
                rows = write(region, blocks, number, sealed)
                content |= {block: row.tobytes() for block, row in zip(blocks, rows)}
            elif step in ("flush", "journal"):
                flush(region, number + 1, journal=step == "journal")
            elif step == "destage":
                destage(region)
            elif step == "trim":
                region._contexts.trim(region._staging.live_all()[1])
            elif step == "give back":
                region._staging._give_table_back()
            else:
                region.read(0, TOTAL, memoryview(bytearray(TOTAL * BLOCK)))
            for block in range(TOTAL):
                out = memoryview(bytearray(BLOCK))
                found = (reader.read_sealed if sealed else reader.read_singles)([block], [out])
                if found is None:
                    assert region._contexts.kind[block] == 0, "it is known to the region"
                else:
                    assert out == content.get(block, bytes(BLOCK))
                    if not sealed:
                        assert found == [xxhash.xxh64_intdigest(out)]
            start = draw.randrange(TOTAL)
            count = draw.randint(1, TOTAL - start)
            out = memoryview(bytearray(count * BLOCK))
            contexts = reader.read_range(start, count, out)
            if contexts is None:
                assert not region._contexts.kind[start : start + count].all(), "all are known to the region"
            else:
                assert out == b"".join(content.get(start + index, bytes(BLOCK)) for index in range(count))
                assert contexts.same_reads(region._contexts.get(slice(start, start + count)))
        assert reader.holds
        reader.close()


def test_what_ends_it(tmp_path: Path) -> None:
    with shared(tmp_path / "region") as (region, _):
        write(region, list(range(TOTAL)), 1)
        flush(region, 1, journal=False)
        first = reader_of(region)
        out = memoryview(bytearray(BLOCK))
        assert first.read_singles([25], [out]) is not None and first.read_range(25, 1, out) is not None
        region.close_extent(1)
        assert not first.holds and first.read_singles([0], [out]) is None and first.read_range(0, 1, out) is None
        first.close()
        assert not region.all_open
        region.reopen_extent(1)
        assert region.all_open
        second = reader_of(region)
        assert second.read_singles([0], [out]) is not None
    assert not second.holds and second.read_singles([0], [out]) is None
    second.close()
    second.close()


def test_blocks_that_are_not_of_the_kind_asked_for(tmp_path: Path) -> None:
    with shared(tmp_path / "plain") as (region, _):
        write(region, [1], 1)
        region.read(0, TOTAL, memoryview(bytearray(TOTAL * BLOCK)))
        reader, outs = reader_of(region), [memoryview(bytearray(BLOCK))] * 2
        assert reader.read_sealed([0, 1], outs) is None
        assert reader.read_sealed([0, 2], outs) == [None, None]
        reader.close()
    with shared(tmp_path / "sealed", sealed=True) as (region, _):
        write(region, [1], 1, sealed=True)
        reader = reader_of(region)
        assert reader.read_singles([1], outs[:1]) is None
        (seal,) = reader.read_sealed([1], outs[:1]) or [None]
        assert seal == region._contexts.seal_of(1)
        reader.close()


def test_a_file_that_is_gone_is_not_at_hand(tmp_path: Path) -> None:
    with shared(tmp_path / "region") as (region, _):
        write(region, [20], 1)
        flush(region, 1, journal=False)
        reader, out = reader_of(region), memoryview(bytearray(BLOCK))
        path = tmp_path / "region" / "00" / "000" / "001"
        path.rename(path.with_name("elsewhere"))
        assert reader.read_singles([20], [out]) is None and reader.holds
        assert reader.read_range(20, 1, out) is None and reader.holds
        path.symlink_to(path.with_name("elsewhere"))
        assert reader.read_singles([20], [out]) is None, "a link may lead anywhere"
        path.unlink()
        path.with_name("elsewhere").rename(path)
        assert reader.read_singles([20], [out]) is not None
        reader.close()


def test_only_what_can_be_shared_is(tmp_path: Path) -> None:
    small = definition()
    assert shareable(small, SyncPolicy.STAGED, False)
    assert not shareable(small, SyncPolicy.STAGED, True)
    assert not any(shareable(small, policy, False) for policy in SyncPolicy if policy is not SyncPolicy.STAGED)
    assert not shareable(definition(blocks=1 << 20, extents=(SHARED_BLOCKS_MAX >> 20) + 1), SyncPolicy.STAGED, False)
    Region.create(tmp_path / "region", small).close()
    with Region.open(tmp_path / "region", share=True, read_only=True) as region:
        assert region.shared is None
    with Region.open(tmp_path / "region") as region:
        assert region.shared is None


def test_shared_memory_is_given_back_and_is_zero_again() -> None:
    file = SharedFile("test")
    numbers = reserve(1 << 20, np.uint32, within=file)
    others = reserve(16, np.uint8, within=file)
    file.seal()
    numbers.array[:] = 7
    others.array[:] = 9
    allocated = os.fstat(file.descriptor).st_blocks
    numbers.release()
    assert os.fstat(file.descriptor).st_blocks < allocated // 100
    assert not numbers.array.any() and (others.array == 9).all()
    with pytest.raises(OSError, match="Operation not permitted"):
        os.ftruncate(file.descriptor, 0)
    file.close()
    file.close()


def test_the_tables_of_a_region_are_where_the_layout_says() -> None:
    file = SharedFile("test")
    contexts, staging = ContextTable(8, 1 << 20, file), Staging(8, BLOCK, 4, within=file)
    rows, sealed = made_blocks(1, sealed=True)
    sealed.on_disk_hash = np.array([5], np.uint64)
    contexts.put(slice(3, 4), sealed)
    contexts.put(slice(4, 5), BlockContexts.plain(np.array([77], np.uint64)))
    staging.put(np.array([4]), rows)
    offsets = {**contexts.offsets, **staging.offsets}
    kinds = os.pread(file.descriptor, 8, offsets["kind"])
    assert (kinds[4], KNOWN_EMPTY in kinds) == (KNOWN_PLAIN, False)
    assert os.pread(file.descriptor, 8, offsets["hash"] + 4 * 8) == (77).to_bytes(8, "little")
    assert os.pread(file.descriptor, 28, offsets["seal"] + 3 * 28) == contexts.seal_of(3)
    assert os.pread(file.descriptor, 4, offsets["row_of_block"] + 4 * 4) == (1).to_bytes(4, "little")
    assert os.pread(file.descriptor, BLOCK, offsets["rows"] + BLOCK) == rows.tobytes()
    file.close()
