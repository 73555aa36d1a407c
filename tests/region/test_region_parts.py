"""The parts of the region on their own: staging, contexts, scatter, storage, descriptors."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from region_rig import definition, made_blocks, read_rows, write

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, BlockContexts, hash_blocks
from crucible_emu.region import OsStorage, Region, layout
from crucible_emu.region.contexts import ContextTable
from crucible_emu.region.extent import Descriptors, raise_descriptor_limit
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.memory import HUGE_PAGES_BYTES_MAX, SharedFile, reserve
from crucible_emu.region.scatter import Plan, data_writes, slot_writes
from crucible_emu.region.staging import ROW_TABLE_BYTES_MAX, Staging
from crucible_emu.region.storage import DIRTY_BYTES_PER_FILE, FOREIGN_DIRTY_BYTES_MAX, explain
from crucible_emu.sim.disk import SimulatedDisk

ExpectLog = Callable[..., Any]

# --- memory


def test_reserved_memory_is_zero_and_can_be_given_back() -> None:
    reservation = reserve(HUGE_PAGES_BYTES_MAX, np.uint16)
    reservation.array[12345] = 7
    reservation.release()
    assert reservation.array[12345] == 0
    assert reserve((0, 512), np.uint8).array.shape == (0, 512)


def test_a_table_over_a_tebibyte_costs_next_to_nothing() -> None:
    before = _resident_bytes()
    tables = [reserve(1 << 28, dtype) for dtype in (np.uint8, np.uint32, np.uint64)]
    for table in tables:
        table.array[:: 1 << 20] = 1
    assert _resident_bytes() - before < 16 << 20


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# --- staging


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 29), min_size=1, max_size=16, unique=True),
            st.lists(st.integers(0, 29), min_size=1, max_size=16).map(tuple),
            st.sampled_from(["freeze", "thaw", "keep"]),
        ),
        max_size=40,
    ),
    st.sampled_from([0, ROW_TABLE_BYTES_MAX]),
    st.booleans(),
)
def test_staging_against_a_dictionary(
    program: list[list[int] | tuple[int, ...] | str], table_bytes_max: int, shared: bool
) -> None:
    """With a table that is given back after every flush, and with one that never is; with memory of its own, and with
    some that others look into. A tuple is of single blocks, some of them named twice."""
    file = SharedFile("test") if shared else None
    staging = Staging(30, 8, 25, table_bytes_max=table_bytes_max, within=file)
    model: dict[int, int] = {}
    frozen: tuple[list[tuple[int, int]], np.ndarray, np.ndarray] | None = None
    for number, step in enumerate(program):
        if isinstance(step, tuple):
            if len(step) > staging.free_rows:
                continue
            each = [(number * 16 + index) % 256 for index in range(len(step))]
            staging.put_singles(step, [memoryview(bytes([value] * 8)) for value in each])
            model.update(zip(step, each))
        elif isinstance(step, list):
            if len(step) > staging.free_rows:
                continue
            data = np.full((len(step), 8), number % 256, np.uint8)
            if len(step) == 1:
                staging.put_one(step[0], data)
            else:
                staging.put(np.array(step), data)
            model.update(dict.fromkeys(step, number % 256))
        elif step == "freeze" and frozen is None:
            rows, blocks = staging.live(staging.filled())
            frozen = (staging.freeze(), rows, blocks)
            frozen_data = staging.rows[rows].copy()
        elif step == "thaw" and frozen is not None:
            spans, rows, blocks = frozen
            for block in blocks[staging.row_of_block[blocks] == rows].tolist():
                del model[block]
            staging.drop(rows, blocks)
            staging.thaw(spans)
            frozen = None
        elif step == "keep" and frozen is not None:
            staging.keep(frozen[0])
            frozen = None
        if frozen is not None:
            assert np.array_equal(staging.rows[frozen[1]], frozen_data), "frozen rows do not change"
        rows, blocks = staging.live_all()
        assert dict(zip(blocks.tolist(), staging.rows[rows, 0].tolist())) == model
        assert not staging.rows[0].any()
        assert staging.used_rows + staging.free_rows == 25
    if frozen is not None:
        staging.keep(frozen[0])
    rows, blocks = staging.live(staging.filled())
    spans = staging.freeze()
    staging.drop(rows, blocks)
    staging.thaw(spans)
    assert staging.free_rows == 25, "no room is lost"
    assert not staging.row_of_block.any()
    if file is not None:
        file.close()


@pytest.mark.parametrize("singles", [False, True], ids=["together", "single blocks"])
def test_rows_that_the_file_does_not_take_are_filled_all_the_same(expect_log: ExpectLog, singles: bool) -> None:
    file = SharedFile("test")
    staging = Staging(3000, 8, 2500, within=file)
    file.close()
    expect_log("cannot write to shared memory")  # said once
    data = np.arange(2000 * 8, dtype=np.uint16).astype(np.uint8).reshape(2000, 8)
    for blocks in (np.arange(1500), np.arange(1400, 2000)):  # more of them than one call takes
        if singles:
            staging.put_singles(blocks.tolist(), [row.data for row in data[blocks]])
        else:
            staging.put(blocks, data[blocks])
    rows, found = staging.live_all()
    assert len(found) == 2000 and np.array_equal(staging.rows[rows], data[found])


def test_regions_of_a_process_share_what_is_the_same_for_all() -> None:
    """The numbers of 262,144 rows are a MiB; 200 disks have 600 regions."""
    before = _resident_bytes()
    kept = [Staging(1 << 20, 1, 1 << 18) for _ in range(40)]
    for staging in kept:
        staging.put(np.arange(5, 9), np.ones((4, 1), np.uint8))
        assert staging.live_all()[0].tolist() == [1, 2, 3, 4]
    assert _resident_bytes() - before < 20 << 20


def test_staging_keeps_to_its_first_rows_when_flushes_are_frequent() -> None:
    staging = Staging(100, 8, 90)
    for number in range(50):
        staging.put(np.arange(10), np.full((10, 8), number, np.uint8))
        rows, blocks = staging.live(staging.filled())
        spans = staging.freeze()
        staging.drop(rows, blocks)
        staging.thaw(spans)
        assert rows.max() <= 20


def test_blocks_all_over_a_tebibyte_do_not_leave_a_table_of_its_size_behind() -> None:
    """Each of these blocks has a page of the table for itself, and after its flush nothing to say there."""
    staging = Staging(1 << 28, 8, 4096)
    data = np.zeros((2048, 8), np.uint8)
    before = _resident_bytes()
    for number in range(16):
        staging.put(np.arange(2048) * 65_536 + number * 4096, data)
        rows, blocks = staging.live(staging.filled())
        spans = staging.freeze()
        staging.put_one(77, data[:1])  # while the flush is under way
        staging.drop(rows, blocks)
        staging.thaw(spans)
        assert staging.live_all()[1].tolist() == [77]
    assert _resident_bytes() - before < 4 * ROW_TABLE_BYTES_MAX, "32,768 pages were touched, that is 128 MiB"


@pytest.mark.parametrize("blocks", [np.arange(40), np.arange(40)[::-1], np.arange(0, 40, 2), np.array([5])])
def test_a_staged_block_that_is_written_again_takes_no_more_room(blocks: np.ndarray) -> None:
    staging = Staging(100, 8, 50)
    staging.put(np.arange(40), np.zeros((40, 8), np.uint8))
    data = np.arange(len(blocks) * 8, dtype=np.uint8).reshape(-1, 8)
    for _ in range(10):
        staging.put(blocks, data)
    assert staging.used_rows == 40
    assert np.array_equal(staging.rows[staging.row_of_block[blocks]], data)
    staging.freeze()
    staging.put(blocks[:10], data[:10])
    assert staging.used_rows == 40 + len(blocks[:10]), "frozen rows are left alone"


# --- contexts


def test_contexts_come_back_as_they_were_put() -> None:
    table = ContextTable(100, 1 << 30)
    _, plain = made_blocks(3)
    _, sealed = made_blocks(2, sealed=True)
    sealed.on_disk_hash = np.array([5, 6], np.uint64)
    nothing = BlockContexts.empty(1)
    nothing.on_disk_hash = nothing.hash
    table.learn(10, BlockContexts.concatenate([nothing, plain, sealed]))
    found = table.get(slice(10, 16))
    assert found.kind.tolist() == [EMPTY, 2, 2, 2, 1, 1]
    assert found.hash.tolist() == [0, *plain.hash.tolist(), *sealed.hash.tolist()]
    assert found.on_disk_hash is not None and found.nonce is not None and found.tag is not None
    assert sealed.nonce is not None and sealed.tag is not None
    assert found.on_disk_hash.tolist() == [0, *plain.hash.tolist(), 5, 6]
    assert np.array_equal(found.nonce[4:], sealed.nonce) and np.array_equal(found.tag[4:], sealed.tag)
    assert table.get(slice(11, 14)).nonce is None, "no block of these is encrypted"
    found.kind[:] = 9
    assert table.get(np.array([12])).kind.tolist() == [2], "what is returned is a copy"


def test_learning_does_not_overwrite_what_is_newer() -> None:
    table = ContextTable(10, 1 << 30)
    table.put_one(4, 2, 77)
    table.learn(3, BlockContexts.plain(np.array([1, 2, 3], np.uint64)))
    assert table.get(slice(3, 6)).hash.tolist() == [1, 77, 3]


# --- scatter


@given(
    st.sampled_from([(512, 24), (4096, 500)]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 499)), max_size=60, unique=True),
    st.randoms(use_true_random=False),
)
def test_scatter_writes_every_byte_where_it_belongs(
    shape: tuple[int, int], places: list[tuple[int, int]], rnd: object
) -> None:
    geometry = ExtentLayout(*shape)
    places = sorted({(index, inside % geometry.blocks) for index, inside in places})
    count = len(places)
    rows = np.array(rnd.sample(range(1, count + 5), count), np.uint32)  # type: ignore[attr-defined]
    slots = np.random.default_rng(count).integers(0, 256, (count, 48), dtype=np.uint8)
    target = np.array([rnd.random() < 0.5 for _ in places], np.bool_)  # type: ignore[attr-defined]
    columns = np.array(places, np.int64).reshape(count, 2)
    plan = Plan(columns[:, 0], columns[:, 1], rows, slots, target)

    stored = {index: np.full(geometry.file_bytes, 7, np.uint8) for index in range(3)}
    expected = {index: stored[index].copy() for index in range(3)}
    for position, (index, inside) in enumerate(places):
        offset = geometry.slot_offset(int(target[position]), inside)
        expected[index][offset : offset + 48] = slots[position]
    for write_ in slot_writes(plan, geometry):
        image = stored[write_.index]
        if write_.data is not None:
            assert len(write_.data) == 48 * write_.count
            image[write_.offset : write_.offset + len(write_.data)] = np.frombuffer(write_.data, np.uint8)
        else:
            assert write_.chosen is not None
            whole = image[write_.offset : write_.offset + 48 * write_.count].reshape(-1, 48)
            whole[plan.inside[write_.chosen] - write_.first] = slots[write_.chosen]
    assert all(np.array_equal(stored[index], expected[index]) for index in range(3))

    landed = {}
    writes = data_writes(plan, geometry.block_size)
    for index, offset, spans in writes:
        for start, stop in spans:
            for row in range(start, stop):
                landed[index, offset // geometry.block_size] = row
                offset += geometry.block_size
    assert landed == dict(zip(places, rows.tolist()))
    stretches = sum(a != (b[0], b[1] - 1) for a, b in zip([(-1, -1), *places], places))
    assert len(writes) == stretches, "one write per stretch of blocks"


def test_dense_slots_become_one_write() -> None:
    geometry = ExtentLayout(512, 1000)
    inside = np.arange(0, 400, 2)
    slots = np.zeros((200, 48), np.uint8)
    plan = Plan(np.zeros(200, np.int64), inside, np.arange(1, 201, dtype=np.uint32), slots, np.zeros(200, np.bool_))
    (only,) = slot_writes(plan, geometry)
    assert (only.data, only.count, only.first) == (None, 399, 0)


# --- storage


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pwritev = os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:100], offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: pwritev(fd, [b"".join(parts)[:150]], offset))
    storage, data = OsStorage(), np.random.default_rng(1).bytes(1000)
    descriptor = storage.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    storage.pwrite(descriptor, data, 0)
    storage.pwritev(descriptor, [data[:300], data[300:]], 1000)
    assert storage.pread(descriptor, 3000, 0) == data + data
    storage.close(descriptor)


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).bytes(1000)
    (tmp_path / "file").write_bytes(data)
    pread, preadv = os.pread, os.preadv
    storage = OsStorage()
    descriptor = storage.open(tmp_path / "file", os.O_RDONLY)

    def short(fd: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return preadv(fd, [parts[0][:70]], offset, flags)

    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 70), offset))
    monkeypatch.setattr(os, "preadv", short)
    assert storage.pread(descriptor, 2000, 100) == data[100:]
    parts = [memoryview(bytearray(size)) for size in (10, 300, 0, 900)]
    assert storage.preadv(descriptor, parts, 0) == 1000
    assert b"".join(parts)[:1000] == data
    storage.close(descriptor)


def test_reads_without_waiting_fall_back_where_they_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    storage, preadv = OsStorage(), os.preadv
    descriptor = storage.open(tmp_path / "file", os.O_RDONLY)
    answers = [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO]

    def refuse(fd: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(answers.pop(0), "refused")
        return preadv(fd, parts, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    out = memoryview(bytearray(100))
    assert storage.preadv_nowait(descriptor, [out], 0) == -1
    assert storage.preadv_nowait(descriptor, [out], 0) == 100 and out == b"x" * 100
    with pytest.raises(OSError, match="refused"):
        storage.preadv_nowait(descriptor, [out], 0)
    storage.close(descriptor)


class CountingLibrary:
    """In place of libc: counts calls of ``syncfs`` and answers as told."""

    def __init__(self, storage: OsStorage, answer: int) -> None:
        self._real = storage._libc
        self._answer = answer
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name == "syncfs":
            return lambda descriptor: self.calls.append(name) or self._answer
        return getattr(self._real, name)


@pytest.mark.parametrize(("answer", "synced_each"), [(0, 0), (-1, 6)])
def test_many_files_are_synced_at_once_and_one_by_one_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int, synced_each: int
) -> None:
    storage = OsStorage()
    library = CountingLibrary(storage, answer)
    monkeypatch.setattr(storage, "_libc", library)
    monkeypatch.setattr(storage, "_syncfs_durable", lambda descriptor: True)
    monkeypatch.setattr("crucible_emu.region.storage._dirty_bytes", lambda: 0)
    descriptors = [storage.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(6)]
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    storage.sync_files(descriptors)
    assert library.calls == ["syncfs"]
    assert synced == descriptors[:synced_each]
    storage.sync_files(descriptors[:2])
    assert library.calls == ["syncfs"] and synced[-2:] == descriptors[:2]
    for descriptor in descriptors:
        storage.close(descriptor)


@pytest.mark.parametrize(
    ("count", "dirty", "at_once"),
    [
        (2, 0, False),
        (3, 0, True),
        (3, FOREIGN_DIRTY_BYTES_MAX + 1, False),
        (16_384, FOREIGN_DIRTY_BYTES_MAX + 1, True),
        (16_384, 16_384 * DIRTY_BYTES_PER_FILE + 1, False),
    ],
)
def test_the_more_files_the_more_of_others_dirty_data_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, dirty: int, at_once: bool
) -> None:
    """16,384 files that are clean take two seconds one by one: a gigabyte can be written meanwhile."""
    storage = OsStorage()
    library = CountingLibrary(storage, 0)
    monkeypatch.setattr(storage, "_libc", library)
    monkeypatch.setattr(storage, "_syncfs_durable", lambda descriptor: True)
    monkeypatch.setattr("crucible_emu.region.storage._dirty_bytes", lambda: dirty)
    assert storage.sync_at_once(tmp_path, count) is at_once
    assert library.calls == ["syncfs"] * at_once
    monkeypatch.setattr(storage, "_syncfs_durable", lambda descriptor: False)
    assert not storage.sync_at_once(tmp_path, count)


def test_once_a_sync_of_all_has_failed_each_file_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system tells of a failure once: asked again, it would say that all is well."""
    storage = OsStorage()
    library = CountingLibrary(storage, -1)
    monkeypatch.setattr(storage, "_libc", library)
    monkeypatch.setattr(storage, "_syncfs_reports", True)
    monkeypatch.setattr(storage, "_durable_by_device", {tmp_path.stat().st_dev: True})
    monkeypatch.setattr("crucible_emu.region.storage._dirty_bytes", lambda: 0)
    assert not storage.sync_at_once(tmp_path, 6)
    descriptors = [storage.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(6)]
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    storage.sync_files(descriptors)
    assert library.calls == ["syncfs"]
    assert synced == descriptors
    for descriptor in descriptors:
        storage.close(descriptor)


def test_after_one_region_saw_a_sync_of_all_fail_no_other_believes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """*Safety*: the failure may be that of the other's file, and the file system has told of it by now."""
    monkeypatch.setattr(OsStorage, "_durable_by_device", {tmp_path.stat().st_dev: True}, raising=False)
    monkeypatch.setattr("crucible_emu.region.storage._dirty_bytes", lambda: 0)
    first, second = OsStorage(), OsStorage()
    for storage in (first, second):
        monkeypatch.setattr(storage, "_syncfs_reports", True)
    monkeypatch.setattr(first, "_libc", CountingLibrary(first, -1))
    library = CountingLibrary(second, 0)
    monkeypatch.setattr(second, "_libc", library)
    assert not first.sync_at_once(tmp_path, 6)
    descriptors = [second.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(6)]
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert second.sync_groups([descriptors[:3], descriptors[3:]]) == [None, None]
    assert "syncfs" not in library.calls
    assert synced == descriptors
    for descriptor in descriptors:
        second.close(descriptor)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_open_believes_nothing_that_is_not_synced(tmp_path: Path, at_once: bool) -> None:
    """All extents at once, or file by file: but before the first of them is read."""
    Region.create(tmp_path / "region", definition(extents=5)).close()
    calls: list[str] = []

    class Recording(OsStorage):
        def sync_at_once(self, directory: Path, count: int) -> bool:
            calls.append(f"{count} at once")
            return at_once

        def sync_files(self, descriptors: Sequence[int]) -> None:
            calls.append(f"{len(descriptors)} files")

        @staticmethod
        def preadv(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
            calls.append("read")
            return OsStorage.preadv(descriptor, parts, offset)

    Region.open(tmp_path / "region", storage=Recording()).close()
    count = len([call for call in calls if call == "read"])
    assert calls[: 1 if at_once else 2] == [f"{count} at once", f"{count} files"][: 1 if at_once else 2]
    assert set(calls[1 if at_once else 2 :]) == {"read"}
    calls.clear()
    Region.open(tmp_path / "region", storage=Recording(), read_only=True).close()
    assert set(calls) == {"read"}, "who reads only changes nothing, and syncs nothing"


def test_others_dirty_data_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = OsStorage()
    library = CountingLibrary(storage, 0)
    monkeypatch.setattr(storage, "_libc", library)
    monkeypatch.setattr(storage, "_syncfs_durable", lambda descriptor: True)
    monkeypatch.setattr("crucible_emu.region.storage._dirty_bytes", lambda: 1 << 30)
    descriptors = [storage.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(6)]
    storage.sync_files(descriptors)
    assert library.calls == []
    for descriptor in descriptors:
        storage.close(descriptor)


def test_a_tree_is_synced_file_by_file_where_syncfs_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = OsStorage()
    monkeypatch.setattr(storage, "_syncfs_durable", lambda descriptor: False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"x")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    storage.sync_tree(tmp_path)
    assert set(synced) == {os.stat(tmp_path / name).st_ino for name in ("", "a", "a/b")}


def test_errors_name_the_remedy() -> None:
    for code, remedy in ((errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EMFILE, "ulimit -n")):
        error = explain(OSError(code, os.strerror(code)), "writing", "/some/where")
        assert "writing /some/where failed" in str(error) and remedy in str(error)
    assert str(explain(OSError("odd"), "writing", "/x")).endswith("writing /x failed: odd")


# --- descriptors


def test_descriptors_are_bounded_and_reopened() -> None:
    disk = SimulatedDisk()
    region = Region.create("/region", definition(extents=60), storage=disk)
    region._extents.descriptors.limit = 16
    rows = write(region, list(range(0, 1200, 20)), seed=1)
    region.flush(1, 1)
    for block in range(0, 1200, 20):
        assert region.read_cached(block, 1, memoryview(bytearray(512))) is not None
        assert region.statistics().descriptors_open <= 16
    assert np.array_equal(read_rows(region, list(range(0, 1200, 20))), rows)
    region.close()
    assert not disk.open_files()


def test_when_the_process_runs_out_of_descriptors_the_region_makes_do_with_fewer() -> None:
    disk = SimulatedDisk()
    Region.create("/region", definition(extents=9), storage=disk).close()
    descriptors = Descriptors(disk, Path("/region"), os.O_RDWR, 100)
    for extent_id in range(8):
        descriptors.get(extent_id)

    def refuse(operation: str, path: str) -> None:
        if len(disk.open_files()) >= 8:
            raise OSError(errno.EMFILE, "Too many open files")

    disk.before_read = refuse
    descriptors.get(8)
    assert len(descriptors) == 5
    descriptors.close()
    with pytest.raises(errors.IoError, match="ulimit"):
        _refused_open(disk)


def _refused_open(disk: SimulatedDisk) -> None:
    def refuse(operation: str, path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    disk.before_read = refuse
    Descriptors(disk, Path("/region"), os.O_RDWR, 100).get(0)


@pytest.mark.parametrize(
    ("limits", "refuses", "expected"),
    [((100, 400), False, 400), ((100, 400), True, 100), ((resource.RLIM_INFINITY,) * 2, False, 1 << 20)],
)
def test_the_limit_of_open_files_is_raised(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], refuses: bool, expected: int
) -> None:
    def setrlimit(which: int, wanted: tuple[int, int]) -> None:
        if refuses:
            raise ValueError("not allowed to raise maximum limit")
        assert wanted == (limits[1], limits[1])

    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert raise_descriptor_limit() == expected


def test_three_regions_of_many_extents_open_in_one_process(tmp_path: Path) -> None:
    """With far fewer descriptors than extents; the full size (10,000 each) is the same code."""
    program = (
        "import resource, sys, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 400))\n"
        "from crucible_emu.region import Region\n"
        "regions = [Region.open(path) for path in sys.argv[1:]]\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (400, 400)\n"
        "out = memoryview(bytearray(512))\n"
        "for block in range(0, 600, 2):\n"
        "    for region in regions:\n"
        "        assert region.read_cached(block, 1, out) is not None and out[0] == 1 + block % 200\n"
    )
    paths = [str(tmp_path / name) for name in "abc"]
    blocks = np.arange(0, 600, 2)
    rows = np.repeat((1 + blocks % 200).astype(np.uint8)[:, None], 512, axis=1)
    for path in paths:
        with Region.create(path, definition(blocks=2, extents=300)) as region:
            region.write(blocks, rows, BlockContexts.plain(hash_blocks(rows)))
            region.flush(1, 1)
    subprocess.run([sys.executable, "-c", program, *paths], check=True)


# --- recovery beyond the table of the format


def test_a_torn_encrypted_slot_is_no_match() -> None:
    """Two slots with the same block; one was then overwritten in part: new nonce, old hashes behind it (§6.4)."""
    rows, contexts = made_blocks(1, sealed=True)
    stored = hash_blocks(rows)
    slot_a = layout.pack_slots(contexts, stored)
    slot_b = slot_a.copy()
    slot_b[0, 10:14] ^= 0xFF
    assert layout.recover_active(slot_a, slot_b, stored).active.tolist() == [True], "by the table of the format alone"
    assert layout.recover_active(slot_a, slot_b, stored, rows).active.tolist() == [False]
    assert layout.recover_active(slot_a, slot_a, stored, rows).active.tolist() == [True]
