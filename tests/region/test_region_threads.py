"""Reads in other threads, beside writes and flushes on the loop's: data and context always belong together."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from region_rig import definition, made_blocks, read_rows, write

from crucible_emu.integrity import PLAIN, BlockContexts, first_bad_block, hash_blocks
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.sim.disk import SimulatedDisk

ROUNDS = 60


class Readers:
    """Threads that read the whole region again and again and keep the first thing that is wrong."""

    def __init__(self, region: Region, count: int = 2) -> None:
        self._region = region
        self._stop = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._read) for _ in range(count)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        region, total = self._region, self._region.definition.total_blocks
        out = bytearray(region.definition.size_bytes)
        while not self._stop.is_set():
            try:
                contexts = region.read(0, total, memoryview(out))
            except Exception as error:  # noqa: BLE001 - a thread's failure must reach the test
                self.wrong.append(repr(error))
                return
            rows = np.frombuffer(out, np.uint8).reshape(total, -1)
            bad = first_bad_block(rows, contexts)
            if bad is not None:
                self.wrong.append(f"block {bad} is not what its context says")
            self.reads += 1


@pytest.mark.parametrize("policy", SyncPolicy)
def test_blocks_are_never_torn(policy: SyncPolicy, tmp_path: Path) -> None:
    with Region.create(tmp_path / "region", definition(4096, 50, 2), policy=policy) as region:
        rng = np.random.default_rng(1)
        expected: dict[int, bytes] = {}
        with Readers(region) as readers:
            rounds = 0
            while rounds < ROUNDS or (readers.reads < 20 and not readers.wrong):
                blocks = rng.choice(100, 30, replace=False)
                rows, contexts = made_blocks(30, 4096, rounds)
                region.write(blocks, rows, contexts)
                expected.update(zip(blocks.tolist(), map(bytes, rows)))
                work = region.begin_destage() if rounds % 5 == 4 else region.begin_flush(rounds + 1, 1)
                flusher = threading.Thread(target=work.run)
                flusher.start()
                if policy is SyncPolicy.STAGED:
                    rows, contexts = made_blocks(3, 4096, 1000 + rounds)
                    region.write(blocks[:3], rows, contexts)
                    expected.update(zip(blocks[:3].tolist(), map(bytes, rows)))
                flusher.join()
                region.finish_flush(work)
                rounds += 1
        assert readers.wrong == []
        held = read_rows(region, list(expected))
        assert [bytes(row) for row in held] == list(expected.values())


def test_a_read_that_a_flush_overtakes_starts_over() -> None:
    """In steps: the reader has looked up where the block is, then two flushes write both of its slots and its data."""
    disk = SimulatedDisk()
    region = Region.create("/region", definition(), storage=disk)
    write(region, [7], seed=1)
    region.flush(1, 1)
    overtaken = []

    def overtake(operation: str, path: str) -> None:
        if operation == "read" and len(overtaken) < 2:
            overtaken.append(operation)
            disk.before_read = None
            for seed in (2, 3):
                write(region, [7], seed=10 * len(overtaken) + seed)
                region.flush(10 * len(overtaken) + seed, 1)
            disk.before_read = overtake

    disk.before_read = overtake
    out = bytearray(512)
    contexts = region.read(7, 1, memoryview(out))
    disk.before_read = None
    rows, newest = made_blocks(1, seed=23)
    assert len(overtaken) == 2
    assert out == rows.tobytes() and contexts.hash == newest.hash
    region.close()


def test_a_read_in_the_middle_of_a_flush_starts_over() -> None:
    """The reader has looked up where the block is; a flush has written its data, but is not taken over yet."""
    disk = SimulatedDisk()
    region = Region.create("/region", definition(), storage=disk)
    write(region, [7], seed=1)
    region.flush(1, 1)
    works = []

    def overtake(operation: str, path: str) -> None:
        if operation == "read" and not works:
            disk.before_read = None
            write(region, [7], seed=2)
            works.append(region.begin_flush(2, 1))
            works[0].run()

    disk.before_read = overtake
    out = bytearray(512)
    contexts = region.read(7, 1, memoryview(out))
    rows, newest = made_blocks(1, seed=2)
    assert works and out == rows.tobytes() and contexts.hash == newest.hash
    region.finish_flush(works[0])
    region.close()


def test_a_read_beside_unrelated_flushes_does_not_start_over() -> None:
    disk = SimulatedDisk()
    region = Region.create("/region", definition(), storage=disk)
    write(region, [7, 8], seed=1)
    region.flush(1, 1)
    reads = []

    def count(operation: str, path: str) -> None:
        if operation == "read":
            reads.append(path)
            disk.before_read = None
            write(region, [8], seed=len(reads) + 5)
            region.flush(len(reads) + 5, 1)
            disk.before_read = count

    disk.before_read = count
    region.read(7, 1, memoryview(bytearray(512)))
    assert len(reads) == 1, "its data; the context is known"
    region.close()


def test_a_thread_learns_contexts_only_while_they_hold() -> None:
    """The table of contexts was trimmed, a reader fetched old contexts, a flush replaced them, the table was trimmed
    again: what the reader fetched must not enter the table."""
    disk = SimulatedDisk()
    region = Region.create("/region", definition(), storage=disk)
    write(region, [7], seed=1)
    region.flush(1, 1)
    region.close()
    region = Region.open("/region", storage=disk)
    reads = []

    def overtake(operation: str, path: str) -> None:
        reads.append(operation)
        if reads.count("read") == 2 and operation == "read":
            disk.before_read = None
            for seed in (2, 3):
                write(region, [7], seed)
                region.flush(seed, 1)
            region.close_extent(0)
            region.reopen_extent(0)

    disk.before_read = overtake
    out = bytearray(512)
    contexts = region.read(7, 1, memoryview(out))
    rows, newest = made_blocks(1, seed=3)
    assert out == rows.tobytes() and contexts.hash == newest.hash
    again = region.read_cached(7, 1, memoryview(out))
    assert again is not None and again.hash == newest.hash
    region.close()


def test_the_context_table_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible_emu.region.region.CONTEXT_BYTES_MAX", 30_000)
    monkeypatch.setattr("crucible_emu.region.reading.TRIM_EVERY", 3)
    disk = SimulatedDisk()
    region = Region.create("/region", definition(512, 4000, 5), storage=disk)
    staged = write(region, [19_999, 4_001], seed=9)
    for start in range(0, 20_000, 500):
        rows = np.full((100, 512), start % 251, np.uint8)
        region.write(np.arange(start, start + 100), rows, BlockContexts.plain(hash_blocks(rows)))
        region.flush(start + 1, 1)
        assert region.statistics().context_bytes <= 40_000
    staged[0] = write(region, [19_999], seed=10)[0]
    region.close()
    region = Region.open("/region", storage=disk)
    unflushed = write(region, [3], seed=11)
    out = bytearray(512)
    for block in range(0, 20_000, 7):
        contexts = region.read_cached(block, 1, memoryview(out))
        assert contexts is not None and (contexts.kind[0] == PLAIN) == (block % 500 < 100 or block in (3, 19_999))
    assert np.array_equal(read_rows(region, [3]), unflushed)
    # One batch that learns far more than the budget: nothing of it is forgotten before it is answered.
    blocks = list(range(0, 20_000, 100))
    contexts, late = region.read_blocks_cached(blocks, [memoryview(bytearray(512)) for _ in blocks])
    assert late == []
    assert (contexts.kind == PLAIN).tolist() == [block % 500 == 0 for block in blocks]
    assert region.read_cached(0, 20_000, memoryview(bytearray(20_000 * 512))) is not None
    assert region.read_cached(0, 1, memoryview(bytearray(512))) is not None
    assert region.statistics().context_bytes <= 200_000
    region.close()
