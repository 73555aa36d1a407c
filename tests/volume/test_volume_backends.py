"""What a volume can be made of besides region sets: files and URLs, their order, their errors, their bounds."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import trio
from blake3 import blake3
from disk_rig import Batch, do, flush, pattern, read, read_request, trim_request, write, write_request, zeroes_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_server import image_server
from trio.testing import MockClock

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import UsageError
from crucible_emu.volume import local_file as local_file_module
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.in_service import active
from crucible_emu.volume.local_file import LocalFile
from crucible_emu.volume.url import ATTEMPTS_MAX, Url, http_client, open_url
from crucible_emu.volume.volume import Volume

BLOCK, BLOCKS = 512, 16
SIZE = BLOCK * BLOCKS


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(pattern(SIZE))
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[LocalFile]:
    file = LocalFile(path, BLOCK, **settings)
    try:
        async with active(file):
            yield file
    finally:
        file.close()


@pytest.fixture(params=["what can be is done at once", "everything waits for its device"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of a file's requests: at once, and through the queue."""
    if request.param.startswith("everything"):
        monkeypatch.setattr(LocalFile, "_at_once", lambda self, request: False)


# -- a file -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ways")
async def test_a_file_is_a_disk(image: Path) -> None:
    expected = bytearray(content_of(image))
    async with opened(image) as file:
        assert (file.size_bytes, file.block_size, file.read_only, file.active) == (SIZE, BLOCK, False, True)
        assert await read(file, 0, SIZE) == expected
        await write(file, BLOCK, pattern(BLOCK, 2))
        await write(file, 4 * BLOCK, pattern(BLOCK, 3), fua=True)
        await do(file, zeroes_request(2 * BLOCK, 2 * BLOCK), trim_request(0, BLOCK))
        await flush(file)
        expected[BLOCK : 5 * BLOCK] = pattern(BLOCK, 2) + bytes(2 * BLOCK) + pattern(BLOCK, 3)
        assert content_of(image) == expected
        request = read_request(0, SIZE)
        request.owned = np.zeros(BLOCKS, np.bool_)
        await do(file, request)
        assert request.buffer == expected and request.owned.all()
        assert await file.allocation(0, SIZE) == [Allocation(SIZE, 1)]


steps = st.tuples(
    st.sampled_from([Kind.READ, Kind.WRITE, Kind.WRITE_ZEROES, Kind.FLUSH]),
    st.integers(0, BLOCKS - 1),
    st.integers(0, BLOCKS),
    st.integers(1, 255),
)


@pytest.mark.usefixtures("ways")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(program=st.lists(st.lists(steps, min_size=1, max_size=8), max_size=4), short=st.sampled_from([BLOCK, SIZE]))
async def test_batches_that_overlap_take_effect_in_their_order(
    image: Path, program: list[list[tuple[Kind, int, int, int]]], short: int
) -> None:
    """Short writes are done at once, long ones in a thread; a read sees all that came before it."""
    put(image, bytes(SIZE))
    expected = bytearray(SIZE)
    reads: list[tuple[Request, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_file_module, "SHORT_BYTES", short)
        async with opened(image) as file:
            batches = []
            for batch in program:
                requests = []
                for kind, start, count, fill in batch:
                    count = min(count, BLOCKS - start)
                    at, end = start * BLOCK, (start + count) * BLOCK
                    data = memoryview(bytearray(bytes([fill]) * (end - at)))
                    requests.append(Request(kind, at, end - at, data))
                    if kind is Kind.READ:
                        reads.append((requests[-1], bytes(expected[at:end])))
                    elif kind is not Kind.FLUSH:
                        expected[at:end] = data if kind is Kind.WRITE else bytes(end - at)
                batches.append(Batch(file, requests))
            for each in batches:
                assert all(request.error is None for request in await each.wait())
    assert all(request.buffer == found for request, found in reads)
    assert content_of(image) == expected


@pytest.mark.usefixtures("ways")
async def test_what_a_file_cannot_do_is_refused(image: Path) -> None:
    async with opened(image) as file:
        for request, error in (
            (Request(Kind.WRITE_UNWRITTEN, 0, BLOCK, memoryview(bytearray(BLOCK))), errors.Unsupported),
            (read_request(SIZE, BLOCK), errors.OffsetInvalid),
            (write_request(SIZE - BLOCK, bytes(2 * BLOCK)), errors.OffsetInvalid),
            (read_request(1, BLOCK), errors.OffsetUnaligned),
            (read_request(0, 1), errors.DataLenUnaligned),
        ):
            with pytest.raises(error):
                await do(file, request)
        with pytest.raises(errors.Unsupported):
            file.volume_info()
    assert content_of(image) == pattern(SIZE)


async def test_a_parent_file_is_opened_for_reading_only(image: Path) -> None:
    async with opened(image, read_only=True) as file:
        assert file.read_only
        with pytest.raises(errors.ModifyingReadOnlyRegion):
            await write(file, 0, pattern(BLOCK))


async def test_a_file_that_may_not_be_written_is_read_only(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "permission denied", str(path))
        return real(path, flags)

    monkeypatch.setattr(local_file_module.os, "open", refuse)
    async with opened(image) as file:
        assert file.read_only and await read(file, 0, SIZE) == pattern(SIZE)


async def test_a_file_that_became_shorter_fails_its_reads(image: Path) -> None:
    async with opened(image) as file:
        os.truncate(image, SIZE // 2)
        with pytest.raises(errors.IoError, match="shorter"):
            await read(file, 0, SIZE)
        assert await read(file, 0, BLOCK) == pattern(SIZE)[:BLOCK]


async def test_no_flush_succeeds_after_one_that_failed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops what it could not write, and the next sync would know nothing of it."""
    file = LocalFile(image, BLOCK)
    failing = [OSError(errno.EIO, "input/output error")]

    def sync(descriptor: int) -> None:
        if failing:
            raise failing.pop()

    monkeypatch.setattr(local_file_module.os, "fdatasync", sync)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.run)
            await write(file, 0, pattern(BLOCK))
            for request in (Request(Kind.FLUSH), Request(Kind.FLUSH), write_request(0, pattern(BLOCK), fua=True)):
                with pytest.raises(errors.IoError, match=r"image\.raw: input/output error"):
                    await do(file, request)
            with pytest.raises(errors.IoError):
                await file.deactivate()
            nursery.cancel_scope.cancel()
    finally:
        file.close()


async def test_a_file_that_changed_its_size_is_noticed_by_the_volume(image: Path) -> None:
    file = LocalFile(image, BLOCK)
    try:
        volume = Volume(BLOCK, [MemoryDevice(BLOCK, BLOCK), file])
        os.truncate(image, SIZE * 2)
        with pytest.raises(errors.SubvolumeSizeMismatch):
            await volume.activate()
    finally:
        file.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "neither a file nor a block device"),
        (os.mkfifo, "neither a file nor a block device"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(bytes(BLOCK + 1)), "has 513 bytes, which is not made of whole blocks"),
    ],
)
def test_what_is_no_file_of_blocks_is_refused(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    make(tmp_path / "image")
    with pytest.raises(UsageError, match=words):
        LocalFile(tmp_path / "image", BLOCK)


async def test_a_file_takes_no_more_than_its_queue(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file_module, "QUEUED_REQUESTS_MAX", 4)
    monkeypatch.setattr(LocalFile, "_at_once", lambda self, request: False)
    async with opened(image) as file:
        batch = Batch(file, [read_request(0, BLOCK) for _ in range(20)])
        with trio.fail_after(30):
            await file.wait_for_room()
        assert batch.pending < 20
        await batch.wait()


# -- a URL ------------------------------------------------------------------------------------------------------------

Handler = Callable[[httpx2.Request], httpx2.Response]


@asynccontextmanager
async def served(handler: Handler, **settings: Any) -> AsyncIterator[Url]:
    """A URL whose server is ``handler``."""
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler), **settings) as client:
        url = await open_url(client, "http://user:secret@images.example/alpine.raw?token=secret", BLOCK)
        async with active(url):
            yield url


def streamed(status: int, body: bytes, announced: int | None = None) -> httpx2.Response:
    """An answer whose body is still to come, as on a network; ``announced`` is its length, if that is not true."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        yield body[len(body) // 2 :]

    length = len(body) if announced is None else announced
    return httpx2.Response(status, headers={"Content-Length": str(length)}, content=pieces())


def ranged(request: httpx2.Request) -> httpx2.Response:
    """A server as it should be."""
    content = pattern(SIZE)
    if request.method == "HEAD":
        return httpx2.Response(200, headers={"Content-Length": str(len(content))})
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    return streamed(206, content[int(first) : int(last) + 1])


async def test_a_url_over_a_real_server() -> None:
    async with image_server(pattern(SIZE)) as server, http_client() as client:
        url = await open_url(client, server.url, BLOCK)
        async with active(url):
            assert (url.size_bytes, url.block_size, url.read_only) == (SIZE, BLOCK, True)
            request = read_request(2 * BLOCK, 3 * BLOCK)
            request.owned = np.zeros(3, np.bool_)
            await do(url, request)
            assert request.buffer == pattern(SIZE)[2 * BLOCK : 5 * BLOCK] and request.owned.all()
            await do(url, *(read_request(block * BLOCK, BLOCK) for block in range(BLOCKS)), Request(Kind.FLUSH))
            await url.check_content(blake3(pattern(SIZE)).hexdigest())
            with pytest.raises(errors.HashMismatch):
                await url.check_content(blake3(b"").hexdigest())
            assert await url.allocation(0, SIZE) == [Allocation(SIZE, 1)]
        assert server.requests[:2] == [("HEAD", ""), ("GET", f"bytes={2 * BLOCK}-{5 * BLOCK - 1}")]


async def test_what_a_url_cannot_do_is_refused() -> None:
    async with served(ranged) as url:
        for kind in (Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_ZEROES, Kind.TRIM):
            with pytest.raises(errors.Unsupported):
                await do(url, Request(kind, 0, BLOCK, memoryview(bytearray(BLOCK))))
        with pytest.raises(errors.OffsetInvalid):
            await read(url, SIZE, BLOCK)
        with pytest.raises(errors.OffsetUnaligned):
            await read(url, 1, BLOCK)
        with pytest.raises(errors.DataLenUnaligned):
            await read(url, 0, 1)


def answer_of(response: Callable[[], httpx2.Response]) -> Handler:
    return lambda request: ranged(request) if request.method == "HEAD" else response()


BAD_ANSWERS: dict[str, tuple[Callable[[], httpx2.Response], type[errors.CrucibleError], str]] = {
    "too short": (lambda: httpx2.Response(206, content=bytes(BLOCK - 1)), errors.IoError, "a range of 512 bytes"),
    "everything": (lambda: httpx2.Response(200, content=bytes(SIZE)), errors.IoError, "a range of 512 bytes"),
    "no range": (lambda: httpx2.Response(200, content=bytes(BLOCK)), errors.IoError, "does not serve ranges"),
    "more than announced": (lambda: streamed(206, bytes(BLOCK + 1), BLOCK), errors.IoError, "more than it announced"),
    "of no length": (lambda: httpx2.Response(206, content=iter_bytes()), errors.IoError, "with None"),
    "gone": (lambda: httpx2.Response(404), errors.GenericError, "the server answered 404"),
    "a range that is none": (lambda: httpx2.Response(416), errors.GenericError, "the server answered 416"),
}


async def iter_bytes() -> AsyncIterator[bytes]:
    yield bytes(BLOCK)


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_is_not_the_range_costs_that_read(name: str) -> None:
    response, kind, words = BAD_ANSWERS[name]
    async with served(answer_of(response)) as url:
        with pytest.raises(kind, match=words) as refused:
            await read(url, 0, BLOCK)
        assert "secret" not in str(refused.value) and "http://images.example/alpine.raw" in str(refused.value)


def broken_off(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError("broken off", request=request)


PASSING: dict[str, Callable[[httpx2.Request], httpx2.Response]] = {
    "busy": lambda request: httpx2.Response(503),
    "too many": lambda request: httpx2.Response(429),
    "broken off": broken_off,
    "cut short": lambda request: streamed(206, bytes(BLOCK - 1), BLOCK),
}


@pytest.mark.parametrize(
    ("method", "name"), [(m, n) for m in ("HEAD", "GET") for n in PASSING if (m, n) != ("HEAD", "cut short")]
)
@pytest.mark.parametrize("attempts", [ATTEMPTS_MAX - 1, ATTEMPTS_MAX])
async def test_trouble_that_may_pass_is_tried_again_so_often(
    name: str, method: str, attempts: int, autojump_clock: MockClock
) -> None:
    """One attempt less than the maximum fails: the last works. One more: the error names what was met."""
    failures = attempts

    def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal failures
        if request.method == method and failures:
            failures -= 1
            return PASSING[name](request)
        return ranged(request)

    async def use() -> bytes:
        async with served(handler) as url:
            return await read(url, BLOCK, BLOCK)

    started = trio.current_time()
    if attempts < ATTEMPTS_MAX:
        assert await use() == pattern(SIZE)[BLOCK : 2 * BLOCK]
    else:
        with pytest.RaisesGroup(
            pytest.RaisesExc(errors.GenericError, match=rf"\({ATTEMPTS_MAX} attempts\)"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ):
            await use()
    assert 1.4 < trio.current_time() - started < 1.6, "0.1, 0.2, 0.4 and 0.8 seconds between the attempts"


@pytest.mark.parametrize(
    ("text", "response", "kind", "words"),
    [
        ("ftp://images.example/x", httpx2.Response(200), UsageError, "http or https"),
        ("/alpine.raw", httpx2.Response(200), UsageError, "http or https"),
        ("http://[::1", httpx2.Response(200), UsageError, "a url of the VCR is none"),
        ("http://x/", httpx2.Response(200, headers={"Content-Length": "513"}), UsageError, "has 513 bytes"),
        ("http://x/", httpx2.Response(200, headers={"Content-Length": "0"}), UsageError, "has 0 bytes"),
        ("http://x/", httpx2.Response(200, headers={"Transfer-Encoding": "chunked"}), errors.GenericError, "how long"),
        ("http://x/", httpx2.Response(403), errors.GenericError, "the server answered 403"),
    ],
)
async def test_what_is_no_url_of_blocks_is_refused(
    text: str, response: httpx2.Response, kind: type[Exception], words: str
) -> None:
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(lambda request: response)) as client:
        with pytest.raises(kind, match=words):
            await open_url(client, text, BLOCK)


async def test_a_url_is_asked_for_a_bounded_number_of_ranges_at_a_time() -> None:
    running, most = 0, 0
    go_on = trio.Event()

    async def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        if request.method == "GET":
            running += 1
            most = max(most, running)
            await go_on.wait()
            running -= 1
        return ranged(request)

    slow: Callable[[httpx2.Request], Awaitable[httpx2.Response]] = handler
    async with served(slow) as url:  # type: ignore[arg-type]  # it may be async
        batch = Batch(url, [read_request(0, BLOCK) for _ in range(30)])
        await trio.testing.wait_all_tasks_blocked()
        assert most == 8
        go_on.set()
        assert all(request.error is None for request in await batch.wait())


# -- any device -------------------------------------------------------------------------------------------------------


async def test_a_device_without_a_life_is_always_active_and_has_nothing_to_tell() -> None:
    part = Backend(MemoryDevice(BLOCK, BLOCK))
    async with active(part):
        assert part.active and part.extent_info() is None and part.work_counts().active_count == 0
        assert part.replace_downstairs("127.0.0.1:1", "127.0.0.1:2") == "missing"
        for ask in (part.volume_info, Volume(BLOCK, [part]).volume_info):
            with pytest.raises(errors.Unsupported):
                ask()
        with pytest.raises(errors.Unsupported):
            await part.snapshot("now")
