"""Whole files in and out: odd sizes, holes, failures in the middle, cancellation."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from nbd_door import Running
from nbd_scripts import INFO, data_chunk, request_of, scripted
from test_client_aio import run

from crucible_emu.blockio import Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.client import aio
from crucible_emu.client.copying import FILE_BLOCK_BYTES, HOLE_BYTES_MIN, Pace, data_runs
from crucible_emu.client.failures import ConnectionLost, RequestFailed
from crucible_emu.errors import IoError, UsageError

Serve = Callable[..., Running]
BLOCK = 4096
SIZE = 4 << 20
SMALL = Pace(piece_bytes=HOLE_BYTES_MIN, in_flight=3)
MIB = 1 << 20


class Recording(MemoryDevice):
    """A memory device that counts what is done to it; ``fail`` may refuse a request."""

    def __init__(self, size_bytes: int = SIZE, block_size: int = BLOCK) -> None:
        super().__init__(size_bytes, block_size)
        self.bytes_by_kind: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.fail: Callable[[Request], bool] = lambda _: False

    def submit(self, requests: list[Request], completed: Any) -> None:
        for request in requests:
            self.bytes_by_kind[request.kind] += request.length
            if self.fail(request):
                request.error = IoError("this block is worn")
                completed([request])
            else:
                super().submit([request], completed)


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> bytes:
    """A file of that size with ``data`` at its offsets and holes elsewhere; its content."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    return path.read_bytes()


def scattered(seed: int, size: int) -> dict[int, bytes]:
    rng = random.Random(seed)
    return {
        rng.randrange(0, size - 9000): rng.choice([rng.randbytes(rng.randint(1, 9000)), bytes(8192)]) for _ in range(8)
    }


@pytest.mark.parametrize("size", [0, 1, 511, 4096, 65536, 65537, 100_001, MIB - 1, 3 * MIB + 4097])
@pytest.mark.parametrize("pace", [SMALL, None])
def test_any_file_goes_in_and_comes_out(serve: Serve, tmp_path: Path, size: int, pace: Pace | None) -> None:
    content = random.Random(size).randbytes(size)
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(content)
    device = Recording()
    device.data[:] = b"\xee" * SIZE
    device.depths[:] = 1
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            told: list[tuple[int, int]] = []
            copied = await disk.copy_in(image, offset=BLOCK, pace=pace, progress=lambda *done: told.append(done))
            assert (copied.size_bytes, copied.blake3) == (size, blake3(content).hexdigest())
            assert told == sorted(told) and (not size or told[-1] == (size, size))
            again = await disk.copy_out(back, offset=BLOCK, length=size, pace=pace)
            assert again.blake3 == copied.blake3

    run(main())
    assert back.read_bytes() == content
    assert bytes(device.data) == b"\xee" * BLOCK + content + b"\xee" * (SIZE - BLOCK - size)
    assert device.flushes >= 1


@pytest.mark.parametrize("seed", range(6))
def test_holes_are_not_sent_and_zeros_not_written(serve: Serve, tmp_path: Path, seed: int) -> None:
    size = 4 * MIB - (777 if seed % 2 else 0)
    image, back = tmp_path / "image", tmp_path / "back"
    content = sparse_file(image, size, scattered(seed, size))
    device = Recording()
    device.data[:] = b"\xee" * SIZE
    device.depths[:] = 1
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            copied = await disk.copy_in(image)
            assert copied.blake3 == blake3(content).hexdigest()
            assert copied.data_bytes <= 17 * HOLE_BYTES_MIN
            assert device.bytes_by_kind[Kind.WRITE] <= 17 * HOLE_BYTES_MIN
            out = await disk.copy_out(back, length=size)
            assert out.blake3 == copied.blake3
            assert out.data_bytes <= 8 * (9000 + 2 * FILE_BLOCK_BYTES)

    run(main())
    assert back.read_bytes() == content
    assert bytes(device.data[:size]) == content
    assert os.stat(back).st_blocks * 512 < size // 2


def test_a_disk_that_is_known_to_be_empty_is_not_read(serve: Serve, tmp_path: Path) -> None:
    device = Recording(64 * MIB)
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            copied = await disk.copy_out(tmp_path / "out")
            assert (copied.data_bytes, copied.blake3) == (0, blake3(bytes(64 * MIB)).hexdigest())

    run(main())
    assert device.bytes_by_kind[Kind.READ] == 0
    assert os.stat(tmp_path / "out").st_size == 64 * MIB


def test_a_file_that_does_not_fit_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * (SIZE + 1))
    device = Recording()
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            with pytest.raises(UsageError, match="do not fit at 0"):
                await disk.copy_in(image)
            with pytest.raises(UsageError, match="align it"):
                await disk.copy_in(image, offset=5)
            with pytest.raises(FileNotFoundError):
                await disk.copy_in(tmp_path / "missing")
            with pytest.raises(UsageError, match="no regular file"):
                await disk.copy_out(tmp_path)

    run(main())
    assert device.bytes_by_kind[Kind.WRITE] == 0


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".sock", "image")))


def test_a_copy_out_that_fails_leaves_the_old_file(serve: Serve, tmp_path: Path) -> None:
    device = Recording()
    device.depths[:] = 1
    device.fail = lambda request: request.kind is Kind.READ and request.offset >= SIZE // 2
    uri = str(serve(device).uri)
    (tmp_path / "out").write_bytes(b"old")

    async def main() -> None:
        async with await aio.open(uri) as disk:
            with pytest.raises(RequestFailed, match="this block is worn"):
                await disk.copy_out(tmp_path / "out", pace=SMALL)
            assert await disk.read(0, 4) == bytes(4)

    run(main())
    assert left_over(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_copy_in_that_fails_says_why(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE)
    device = Recording()
    device.fail = lambda request: request.kind is Kind.WRITE and request.offset == SIZE // 2
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            with pytest.raises(RequestFailed, match="this block is worn"):
                await disk.copy_in(image, pace=SMALL)

    run(main())


@pytest.mark.parametrize("out", [True, False])
def test_a_connection_that_is_lost_midway_ends_the_copy(tmp_path: Path, out: bool) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * INFO.size_bytes)

    async def main() -> None:
        async def two_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                _, cookie, offset, length = await request_of(reader)
                if not out:
                    return
                writer.write(data_chunk(cookie, offset, b"y" * length))

        async with scripted(tmp_path / "s.sock", two_answers) as uri, await aio.open(uri) as disk:
            disk.can_map = False
            with pytest.raises((ConnectionLost, ConnectionError)):
                await (disk.copy_out(tmp_path / "out", pace=SMALL) if out else disk.copy_in(image, pace=SMALL))

    run(main())
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_a_cancelled_copy_out_leaves_nothing(serve: Serve, tmp_path: Path, after: int) -> None:
    """Races of a cancellation with every step of a copy: opening, reading, storing, renaming."""
    device = Recording()
    device.data[:] = b"\xee" * SIZE
    device.depths[:] = 1
    uri = str(serve(device).uri)

    async def main() -> bool:
        async with await aio.open(uri) as disk:
            copy = asyncio.create_task(disk.copy_out(tmp_path / "out", pace=SMALL))
            for _ in range(after):
                await asyncio.sleep(0)
            copy.cancel()
            try:
                await copy
            except asyncio.CancelledError:
                assert await disk.read(0, 1) == b"\xee"
                return False
            return True

    whole = run(main())
    assert left_over(tmp_path) == (["out"] if whole else [])


@pytest.mark.parametrize("pieces", [0, 1, 5, 20, 63])
def test_a_copy_out_that_is_cancelled_by_its_progress_leaves_nothing(serve: Serve, tmp_path: Path, pieces: int) -> None:
    device = Recording()
    device.depths[:] = 1
    device.data[:] = b"\xee" * SIZE
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            copy: asyncio.Task[Any]

            def stop(done_bytes: int, _: int) -> None:
                if done_bytes > pieces * SMALL.piece_bytes:
                    copy.cancel()

            copy = asyncio.create_task(disk.copy_out(tmp_path / "out", pace=SMALL, progress=stop))
            with pytest.raises(asyncio.CancelledError):
                await copy

    run(main())
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_a_cancelled_copy_in_leaves_the_connection_sound(serve: Serve, tmp_path: Path, after: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE)
    uri = str(serve(Recording()).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            copy = asyncio.create_task(disk.copy_in(image, pace=SMALL))
            for _ in range(after):
                await asyncio.sleep(0)
            copy.cancel()
            await asyncio.gather(copy, return_exceptions=True)
            await disk.write(0, b"z" * BLOCK)
            assert await disk.read(0, BLOCK) == b"z" * BLOCK

    run(main())


@pytest.mark.parametrize("out", [True, False])
def test_a_progress_that_fails_ends_the_copy(serve: Serve, tmp_path: Path, out: bool) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE)
    device = Recording()
    device.depths[:] = 1
    uri = str(serve(device).uri)

    def fail(done_bytes: int, size_bytes: int) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with await aio.open(uri) as disk:
            with pytest.raises(ZeroDivisionError):
                await (
                    disk.copy_out(tmp_path / "out", pace=SMALL, progress=fail)
                    if out
                    else disk.copy_in(image, pace=SMALL, progress=fail)
                )

    run(main())
    assert left_over(tmp_path) == []


def test_a_file_that_shrinks_is_noticed(serve: Serve, tmp_path: Path) -> None:
    """The race: somebody truncates the file while it is copied."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE)
    uri = str(serve(Recording()).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            with pytest.raises(OSError, match="became shorter"):
                await disk.copy_in(image, pace=SMALL, progress=lambda *_: os.truncate(image, BLOCK))

    run(main())


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=12), st.integers(0, 63), st.sampled_from([8, 64])
)
def test_data_runs_are_everything_but_zeros(parts: list[tuple[int, bool]], odd: int, granule: int) -> None:
    content = b"".join((b"\0" * 7 + b"x" if full else bytes(8)) * count for count, full in parts) + bytes(odd)
    runs = data_runs(memoryview(content), granule)
    rebuilt = bytearray(len(content))
    for start, end in runs:
        rebuilt[start:end] = content[start:end]
        assert start % granule == 0 and start < end
    assert rebuilt == content
    expected = sum(
        len(content[at : at + granule]) for at in range(0, len(content), granule) if any(content[at : at + granule])
    )
    assert sum(end - start for start, end in runs) == expected
    assert all(before[1] < after[0] for before, after in itertools.pairwise(runs))
