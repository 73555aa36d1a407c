"""Copies of files: the same bytes, the same holes, nothing shared but what the file system shares safely."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupted_storage import InterruptedStorage

from crucible_emu.region import file_copy
from crucible_emu.region.file_copy import FICLONE, PIECE_BYTES, copy_file, is_zero
from crucible_emu.region.storage import OsStorage


@pytest.fixture(params=[OsStorage, InterruptedStorage], ids=["files", "any storage"])
def storage(request):
    return request.param()


@given(
    parts=st.lists(st.tuples(st.booleans(), st.integers(1, 3 * PIECE_BYTES)), max_size=4),
    before=st.integers(0, 4 * PIECE_BYTES),
)
def test_target_becomes_the_source(tmp_path_factory, parts, before):
    """Whatever stood in the target, and wherever data and zeros meet."""
    directory = tmp_path_factory.mktemp("copy")
    content = b"".join((b"x" if data else b"\0") * length for data, length in parts)
    for storage in (OsStorage(), InterruptedStorage()):
        (directory / "source").write_bytes(content)
        (directory / "target").write_bytes(b"old" * before)
        copy_file(storage, directory / "source", directory / "target")
        assert (directory / "target").read_bytes() == content


def test_holes_and_zeros_become_holes(storage, tmp_path):
    with open(tmp_path / "source", "wb") as source:
        source.write(b"x" * PIECE_BYTES + bytes(PIECE_BYTES))
        source.truncate(64 << 20)
    copy_file(storage, tmp_path / "source", tmp_path / "target")
    found = os.stat(tmp_path / "target")
    assert found.st_size == 64 << 20
    assert found.st_blocks * 512 == PIECE_BYTES


def test_target_keeps_its_inode_and_has_no_other_name(storage, tmp_path):
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "target").write_bytes(b"older")
    inode = (tmp_path / "target").stat().st_ino
    copy_file(storage, tmp_path / "source", tmp_path / "target")
    found = (tmp_path / "target").stat()
    assert (found.st_ino, found.st_nlink) == (inode, 1)


def test_missing_source_makes_no_target(storage, tmp_path):
    with pytest.raises(FileNotFoundError):
        copy_file(storage, tmp_path / "source", tmp_path / "target")
    assert os.listdir(tmp_path) == []


class TestReflink:
    def test_where_there_are_reflinks_nothing_is_copied(self, tmp_path, monkeypatch):
        asked = []

        def ioctl(writer, request, reader):
            asked.append(request)
            os.pwrite(writer, os.pread(reader, 100, 0), 0)

        monkeypatch.setattr(file_copy.fcntl, "ioctl", ioctl)
        monkeypatch.setattr(OsStorage, "pwrite", None)
        (tmp_path / "source").write_bytes(b"shared")
        copy_file(OsStorage(), tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == b"shared"
        assert asked == [FICLONE]

    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL])
    def test_without_them_it_is_copied(self, tmp_path, monkeypatch, code):
        monkeypatch.setattr(file_copy.fcntl, "ioctl", failing(code))
        (tmp_path / "source").write_bytes(b"copied")
        copy_file(OsStorage(), tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == b"copied"

    def test_a_disk_that_fails_is_no_lack_of_reflinks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(file_copy.fcntl, "ioctl", failing(errno.EIO))
        (tmp_path / "source").write_bytes(b"x")
        with pytest.raises(OSError, match="Input/output error"):
            copy_file(OsStorage(), tmp_path / "source", tmp_path / "target")


def failing(code):
    def ioctl(*_):
        raise OSError(code, os.strerror(code))

    return ioctl


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES])
def test_zeros(size):
    assert is_zero(bytes(size))
    assert is_zero(memoryview(bytes(size)))
    if size:
        assert not is_zero(bytes(size - 1) + b"\1")
        assert not is_zero(memoryview(b"\1" + bytes(size - 1)))
