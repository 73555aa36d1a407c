"""The simulated disk: what a sync promises, and what each model may keep without one."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from crucible_emu.sim.disk import PAGE_BYTES, SECTOR_BYTES, Persistence, SimulatedDisk

PATH = Path("/file")
CREATE = os.O_RDWR | os.O_CREAT


def content(disk: SimulatedDisk) -> bytes:
    descriptor = disk.open(PATH, os.O_RDONLY)
    data = disk.pread(descriptor, 1 << 20, 0)
    disk.close(descriptor)
    return data


def synced_disk(size: int) -> tuple[SimulatedDisk, int]:
    disk = SimulatedDisk()
    descriptor = disk.open(PATH, CREATE)
    disk.pwrite(descriptor, bytes(size), 0)
    disk.fdatasync(descriptor)
    disk.sync_directory(Path("/"))
    return disk, descriptor


def outcomes(disk: SimulatedDisk, model: Persistence, tries: int = 300) -> set[bytes]:
    rng = random.Random(1)
    return {content(disk.power_cut(rng, model)) for _ in range(tries)}


@pytest.mark.parametrize("model", Persistence)
def test_what_is_synced_stays(model: Persistence) -> None:
    disk, descriptor = synced_disk(10_000)
    disk.pwrite(descriptor, b"durable", 5_000)
    disk.sync_files([descriptor])
    assert outcomes(disk, model, 20) == {content(disk)}
    assert b"durable" in content(disk)


def test_ordered_keeps_a_prefix() -> None:
    disk, descriptor = synced_disk(3)
    for index in range(3):
        disk.pwrite(descriptor, b"x", index)
    assert outcomes(disk, Persistence.ORDERED) == {b"\0\0\0", b"x\0\0", b"xx\0", b"xxx"}


def test_order_holds_across_files() -> None:
    disk, descriptor = synced_disk(1)
    other = disk.open("/other", CREATE)
    disk.pwrite(other, b"\0", 0)
    disk.fdatasync(other)
    disk.sync_directory(Path("/"))
    disk.pwrite(descriptor, b"1", 0)
    disk.pwrite(other, b"2", 0)
    rng = random.Random(1)
    found = set()
    for _ in range(100):
        survivor = disk.power_cut(rng, Persistence.ORDERED)
        found.add((content(survivor), survivor.pread(survivor.open("/other", 0), 1, 0)))
    assert found == {(b"\0", b"\0"), (b"1", b"\0"), (b"1", b"2")}


def test_coalesced_lets_an_early_write_carry_newer_bytes() -> None:
    disk, descriptor = synced_disk(2)
    disk.pwrite(descriptor, b"a", 0)
    disk.pwrite(descriptor, b"b", 1)
    disk.pwrite(descriptor, b"c", 0)
    assert outcomes(disk, Persistence.COALESCED) == {b"\0\0", b"c\0", b"cb"}


@pytest.mark.parametrize(("model", "unit"), [(Persistence.PAGES, PAGE_BYTES), (Persistence.SECTORS, SECTOR_BYTES)])
def test_units_land_on_their_own_in_any_version(model: Persistence, unit: int) -> None:
    disk, descriptor = synced_disk(2 * unit)
    disk.pwrite(descriptor, b"1" * (2 * unit), 0)
    disk.pwrite(descriptor, b"2" * unit, 0)
    found = {(data[:unit], data[unit:]) for data in outcomes(disk, model)}
    versions = {bytes(unit), b"1" * unit}
    assert found == {(first, second) for first in {*versions, b"2" * unit} for second in versions}


def test_a_new_length_may_be_lost() -> None:
    disk, descriptor = synced_disk(100)
    disk.ftruncate(descriptor, 50)
    assert {len(data) for data in outcomes(disk, Persistence.PAGES)} == {50, 100}
    disk.ftruncate(descriptor, 200)
    assert content(disk)[50:] == bytes(150)


def test_names_become_durable_in_order() -> None:
    disk = SimulatedDisk()
    disk.make_directories(Path("/a/b"))
    disk.close(disk.open("/a/b/c", CREATE))
    disk.rename(Path("/a"), Path("/z"))
    rng = random.Random(1)
    found = set()
    for _ in range(100):
        survivor = disk.power_cut(rng, Persistence.PAGES)
        found.add(tuple(name for name in ("/a/b", "/a/b/c", "/z/b/c") if survivor.exists(Path(name))))
    assert found == {(), ("/a/b",), ("/a/b", "/a/b/c"), ("/z/b/c",)}
    disk.sync_tree(Path("/z"))
    survivor = disk.power_cut(rng, Persistence.PAGES)
    assert survivor.names(Path("/z/b")) == ["c"]
    disk.remove_tree(Path("/z"))
    assert disk.names(Path("/")) == []


def test_a_failed_sync_forgets_what_it_should_have_written() -> None:
    disk, descriptor = synced_disk(1)
    disk.pwrite(descriptor, b"x", 0)

    def fail(operation: str, path: str) -> None:
        raise OSError(errno.EIO, "simulated failure")

    disk.before_change = fail
    with pytest.raises(OSError, match="simulated"):
        disk.fdatasync(descriptor)
    disk.before_change = None
    disk.fdatasync(descriptor)
    assert content(disk) == b"x"
    assert outcomes(disk, Persistence.ORDERED, 20) == {b"\0"}


def test_it_fails_as_files_do() -> None:
    disk, descriptor = synced_disk(1)
    for code, operation in (
        (errno.ENOENT, lambda: disk.open("/nowhere", 0)),
        (errno.ENOENT, lambda: disk.open("/nowhere/file", CREATE)),
        (errno.EEXIST, lambda: disk.open(PATH, CREATE | os.O_EXCL)),
        (errno.EISDIR, lambda: disk.open("/", os.O_RDWR)),
        (errno.EBADF, lambda: disk.pwrite(disk.open(PATH, os.O_RDONLY), b"x", 0)),
        (errno.EBADF, lambda: disk.close(999)),
        (errno.ENOENT, lambda: disk.unlink(Path("/nowhere"))),
        (errno.ENOENT, lambda: disk.rename(Path("/nowhere"), PATH)),
        (errno.ENOTDIR, lambda: disk.names(PATH)),
    ):
        with pytest.raises(OSError) as caught:
            operation()
        assert caught.value.errno == code
    first = disk.lock(Path("/"))
    assert first is not None and disk.lock(Path("/")) is None
    disk.close(first)
    assert disk.lock(Path("/")) is not None
    disk.unlink(PATH)
    disk.pwrite(descriptor, b"still there for those who have it open", 0)
    assert not disk.exists(PATH)
