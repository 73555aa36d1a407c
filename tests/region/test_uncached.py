"""Files around the page cache: the same bytes as through it, whatever the file system says to ``O_DIRECT``."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.region.repair_files import RUN_BYTES, Receiver
from crucible_emu.region.storage import OsStorage, Storage
from crucible_emu.region.uncached import ALIGNMENT, PIECE_BYTES, WORTH_IT_BYTES, UncachedStorage, uncached
from crucible_emu.sim.disk import SimulatedDisk


class Refusing(OsStorage):
    """A file system without ``O_DIRECT``: it refuses it at once, or when something is moved."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once
        self.refused = 0

    def _check(self, flags: int) -> None:
        if flags & os.O_DIRECT:
            self.refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")

    def open(self, path: Path | str, flags: int, mode: int = 0o666) -> int:  # type: ignore[override]
        if self.at_once:
            self._check(flags)
        return os.open(path, flags, mode)

    def pwrite(self, descriptor: int, data: object, offset: int) -> None:  # type: ignore[override]
        self._check(self._flags(descriptor))
        super().pwrite(descriptor, data, offset)  # type: ignore[arg-type]

    def preadv(self, descriptor: int, parts: list[memoryview], offset: int) -> int:  # type: ignore[override]
        self._check(self._flags(descriptor))
        return super().preadv(descriptor, parts, offset)

    @staticmethod
    def _flags(descriptor: int) -> int:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL)


STORAGES = {
    "direct": OsStorage,
    "refused when opening": lambda: Refusing(at_once=True),
    "refused when moving": lambda: Refusing(at_once=False),
}
part = st.tuples(st.booleans(), st.integers(1, RUN_BYTES + ALIGNMENT + 1))


@pytest.mark.parametrize("kind", STORAGES)
@given(parts=st.lists(part, max_size=4), ranges=st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, 1 << 21))))
def test_what_was_received_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    parts: list[tuple[bool, int]],
    ranges: list[tuple[int, int]],
) -> None:
    path = tmp_path_factory.mktemp("u") / "f"
    under = STORAGES[kind]()
    storage = UncachedStorage(under)
    sent = b"".join(bytes(length) if zero else os.urandom(length) for zero, length in parts)
    with Receiver(storage, path) as file:
        at = 0
        for _, length in parts:
            file.write(sent[at : at + length])
            at += length
        file.finish()
    assert path.read_bytes() == sent
    if isinstance(under, Refusing) and any(not zero for zero, _ in parts):
        assert under.refused
    descriptor = storage.open(path, os.O_RDONLY)
    try:
        for start, length in ranges:
            out = bytearray(length)
            got = storage.preadv(descriptor, [memoryview(out)], start)
            assert out[:got] == sent[start : start + length]
    finally:
        storage.close(descriptor)


def test_a_write_at_any_offset_arrives(tmp_path: Path) -> None:
    storage = UncachedStorage(OsStorage())
    descriptor = storage.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    first, second = os.urandom(PIECE_BYTES + ALIGNMENT), os.urandom(1000)
    storage.pwrite(descriptor, first, 0)
    storage.pwrite(descriptor, second, 12_345)
    storage.close(descriptor)
    wanted = bytearray(first)
    wanted[12_345:13_345] = second
    assert (tmp_path / "f").read_bytes() == wanted


@pytest.mark.parametrize(
    ("storage", "size", "is_uncached"),
    [
        (OsStorage(), WORTH_IT_BYTES, True),
        (OsStorage(), WORTH_IT_BYTES - 1, False),
        (SimulatedDisk(), WORTH_IT_BYTES, False),
    ],
    ids=["big", "small", "simulated"],
)
def test_only_big_files_of_the_operating_system_go_around_the_cache(
    storage: Storage, size: int, is_uncached: bool
) -> None:
    assert isinstance(uncached(storage, size), UncachedStorage) == is_uncached
