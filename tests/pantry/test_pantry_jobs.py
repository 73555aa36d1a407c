"""Jobs: import from a URL, validate, scrub; their results, their progress, and who waits for whom."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from disk_rig import pattern, region_set, until
from image_server import ImageServer, image_server
from pantry_rig import BLOCK, CHUNK, SIZE, Caller, attach_body, replicas, request_of, running_pantry, volume_of
from trio.testing import MockClock

from crucible_emu import errors
from crucible_emu.pantry import fetching
from crucible_emu.pantry.fetching import Source
from crucible_emu.volume import scrub as scrub_module
from crucible_emu.volume.vcr import FileRequest, UrlRequest

ExpectLog = Callable[..., Any]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expected(data: bytes) -> dict[str, Any]:
    return {"expected_digest": {"sha256": sha256(data)}}


@asynccontextmanager
async def with_disk(folder: Path) -> AsyncIterator[Caller]:
    """A pantry that has the volume ``v`` of a mebibyte."""
    async with replicas(folder) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        yield caller


@asynccontextmanager
async def with_file(folder: Path) -> AsyncIterator[Caller]:
    """The same over a file, where replicas add nothing."""
    path = folder / "disk.raw"
    path.write_bytes(bytes(SIZE))
    async with running_pantry() as caller:
        await caller.attach(volume_of(FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))))
        yield caller


async def contents(caller: Caller) -> bytes:
    return b"".join([await caller.read(offset, CHUNK) for offset in range(0, SIZE, CHUNK)])


# -- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [str.lower, str.upper])
async def test_an_import_with_the_right_digest(tmp_path: Path, shown: Callable[[str], str]) -> None:
    data = pattern(SIZE)
    async with image_server(data) as image, with_disk(tmp_path) as caller:
        body = {"url": image.url, "expected_digest": {"sha256": shown(sha256(data))}}
        job = await caller.start("import-from-url", body)
        assert await caller.ok(job) and await caller.ok(job), "the result is kept"
        assert await caller.job(job) == {
            "kind": "import",
            "state": "ok",
            "done_bytes": SIZE,
            "total_bytes": SIZE,
            "error": None,
        }
        assert await contents(caller) == data
        assert image.requests == [("HEAD", "")] + [
            ("GET", f"bytes={first}-{first + CHUNK - 1}") for first in range(0, SIZE, CHUNK)
        ]
        assert (await caller.status())["num_job_handles"] == 2
        await caller.detach()
        await caller.refused(404, "GET", f"/job/{job}/ok")


async def test_an_import_with_the_wrong_digest_fails_and_leaves_what_it_wrote(tmp_path: Path) -> None:
    data = pattern(SIZE)
    async with image_server(data) as image, with_disk(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": image.url} | expected(b"other"))
        assert not await caller.ok(job)
        told = await caller.job(job)
        assert (told["state"], told["done_bytes"]) == ("failed", SIZE)
        assert sha256(data) in told["error"] and sha256(b"other") in told["error"]
        assert await contents(caller) == data


async def test_an_import_without_a_digest_takes_what_comes(tmp_path: Path) -> None:
    async with image_server(pattern(SIZE)) as image, with_disk(tmp_path) as caller:
        assert await caller.ok(await caller.start("import-from-url", {"url": image.url}))
        assert await caller.ok(await caller.start("import-from-url", {"url": image.url, "expected_digest": None}))
        assert await contents(caller) == pattern(SIZE)


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, CHUNK, CHUNK + 1, SIZE - 1])
async def test_an_import_of_any_length_is_followed_by_zeros_to_the_end_of_its_last_block(
    tmp_path: Path, length: int
) -> None:
    """The real one dies where the length is no whole number of blocks."""
    data = pattern(length)
    async with image_server(data) as image, with_file(tmp_path) as caller:
        for offset in range(0, SIZE, CHUNK):
            await caller.write(offset, b"\xff" * CHUNK)
        job = await caller.start("import-from-url", {"url": image.url} | expected(data))
        assert await caller.ok(job)
        assert (await caller.job(job))["done_bytes"] == length
        end = -(-length // BLOCK) * BLOCK
        assert await contents(caller) == data.ljust(end, b"\0") + b"\xff" * (SIZE - end)


async def test_an_import_tells_how_far_it_is(tmp_path: Path) -> None:
    """The server falls silent after the first piece."""
    server = OddServer(pattern(SIZE), 2, None)
    async with serving(server), with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": server.url})
        await until(lambda: server.asked == 3)
        assert await caller.job(job) == {
            "kind": "import",
            "state": "running",
            "done_bytes": CHUNK,
            "total_bytes": SIZE,
            "error": None,
        }
        await caller.detach()


async def test_what_is_longer_than_the_volume_is_not_begun(tmp_path: Path) -> None:
    async with image_server(bytes(SIZE + 1)) as image, with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": image.url})
        assert not await caller.ok(job)
        assert "more than the volume" in (await caller.job(job))["error"] and len(image.requests) == 1


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, "0x" + "0" * 62])
async def test_what_can_be_no_digest_is_found_before_anything_is_fetched(tmp_path: Path, digest: str) -> None:
    async with image_server(bytes(SIZE)) as image, with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": image.url, "expected_digest": {"sha256": digest}})
        assert not await caller.ok(job)
        assert "is no SHA-256" in (await caller.job(job))["error"] and image.requests == []


@pytest.mark.parametrize("url", ["", "ftp://x/y", "http://", "/etc/passwd", "file:///etc/passwd"])
async def test_what_can_be_no_url_fails_the_job(tmp_path: Path, url: str) -> None:
    async with with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": url})
        assert not await caller.ok(job)
        assert "the url is none" in (await caller.job(job))["error"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/",
        "http://[::1]:99999/",
        f"http://{'a' * 64}/",
        "http://a..b/",
        "http://127.0.0.1:1/%zz",
        "http://user:p@x@127.0.0.1:1/",
        "http://\u202e/",
        "http://\0/",
    ],
)
async def test_an_odd_url_fails_the_job_and_the_attach(tmp_path: Path, url: str) -> None:
    async with with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": url})
        assert not await caller.ok(job)
        vcr = volume_of(UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=url))
        assert "cannot be built" in await caller.refused(409, "POST", "/volume/w", attach_body(vcr))


async def test_secrets_of_a_url_are_not_told(tmp_path: Path) -> None:
    async with with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": "http://user:hidden1@127.0.0.1:1/image?token=hidden2"})
        assert not await caller.ok(job)
        error = (await caller.job(job))["error"]
        assert error.startswith("http://127.0.0.1:1/image") and "hidden" not in error


async def test_nobody_waits_for_a_job_of_others(tmp_path: Path) -> None:
    """In the real pantry every job route waits while one caller waits for a result."""
    async with trio.open_nursery() as nursery, with_file(tmp_path) as caller:
        asked = trio.Event()

        async def silent(_stream: trio.SocketStream) -> None:
            asked.set()
            await trio.sleep_forever()

        (listener,) = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/x"
        slow = await caller.start("import-from-url", {"url": url})
        results: list[bool] = []

        async def wait_for(job: str) -> None:
            answer = await caller.do("GET", f"/job/{job}/ok")
            results.append(answer["job_result_ok"])

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait_for, slow)
            await asked.wait()
            assert await caller.do("GET", f"/job/{slow}/is-finished") == {"job_is_finished": False}
            assert await caller.ok(await caller.start("validate", expected(bytes(SIZE))))
            assert (await caller.job(slow))["state"] == "running" and results == []
            job = caller.pantry.ledger.job(slow)
            await caller.detach()
        assert results == [False] and job.state.value == "cancelled", "the detach ended it"
        await caller.refused(404, "GET", f"/job/{slow}/ok")
        nursery.cancel_scope.cancel()


# -- servers that misbehave -------------------------------------------------------------------------------------------


class OddServer(ImageServer):
    """Answers the ``turn``-th request (from 0) with ``answer`` in place of the right one."""

    def __init__(self, content: bytes, turn: int, answer: bytes | None, times: int = 1) -> None:
        super().__init__(content)
        self.turn = turn
        self.answer = answer
        self.times = times
        self.asked = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # whoever asked does not want the answer any more
            await self._serve_one(stream)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = await stream.receive_some()
            if not part:
                return
            request += part
        turn, self.asked = self.asked, self.asked + 1
        if self.turn <= turn < self.turn + self.times:
            if self.answer is None:
                await trio.sleep_forever()
            await stream.send_all(self.answer or b"")
            return
        found = re.search(rb"bytes=(\d+)-(\d+)", request)
        body = self.content if found is None else self.content[int(found[1]) : int(found[2]) + 1]
        head = f"HTTP/1.1 {206 if found else 200} OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + (b"" if request.startswith(b"HEAD") else body))


@asynccontextmanager
async def serving(server: ImageServer) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.port = listener.socket.getsockname()[1]
        yield
        nursery.cancel_scope.cancel()


def answer(status: str, length: int | None, body: bytes = b"") -> bytes:
    announced = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {status}\r\n{announced}Connection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("turn", "given", "why"),
    [
        (0, answer("404 Not Found", 0), "answered 404"),
        (0, answer("200 OK", None), "does not say how long"),
        (0, answer("301 Moved", 0), "answered 301"),
        (0, b"", "disconnected"),
        (0, b"nonsense\r\n\r\n", "illegal"),
        (1, answer("200 OK", SIZE, bytes(SIZE)), "a range of 524288 bytes was answered with 1048576"),
        (1, answer("200 OK", CHUNK, bytes(CHUNK)), "does not serve ranges"),
        (1, answer("206 Partial Content", 5, b"12345"), "a range of 524288 bytes was answered with 5"),
        (2, answer("206 Partial Content", CHUNK, b"12345"), "peer closed connection"),
        (2, answer("416 Range Not Satisfiable", 0), "answered 416"),
        (2, answer("500 Oops", 0), "answered 500"),
    ],
)
async def test_a_server_that_answers_wrongly_ends_the_import(tmp_path: Path, turn: int, given: bytes, why: str) -> None:
    server = OddServer(pattern(SIZE), turn, given)
    async with serving(server), with_file(tmp_path) as caller:
        job = await caller.start("import-from-url", {"url": server.url})
        assert not await caller.ok(job)
        told = await caller.job(job)
        assert why in told["error"].lower() if why.islower() else why in told["error"]
        assert told["done_bytes"] in ((0,) if turn < 2 else (0, CHUNK)) and server.asked == turn + 1


@pytest.mark.parametrize("busy", ["503 Busy", "429 Too Many Requests"])
async def test_a_server_that_is_busy_is_asked_again(busy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_S", 0)
    server = OddServer(pattern(SIZE), 0, answer(busy, 0), times=fetching.ATTEMPTS_MAX - 1)
    async with serving(server), fetching.http_client() as client:
        assert await Source(client, server.url).length() == SIZE
        server.asked = 0
        server.times += 1
        with pytest.raises(errors.GenericError, match=r"answered (503|429) \(60 attempts\)"):
            await Source(client, server.url).length()
        assert server.asked == 60


async def test_a_server_that_says_nothing_is_asked_sixty_times(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """70 seconds each, a second apart."""

    class Silent:
        def stream(self, *_given: Any, **_settings: Any) -> Any:
            return self

        async def __aenter__(self) -> None:
            self.asked += 1
            await trio.sleep_forever()

        async def __aexit__(self, *_error: object) -> None:
            raise AssertionError("never entered")

        asked = 0

    silent = Silent()
    began = trio.current_time()
    with pytest.raises(errors.GenericError, match=r"took too long \(60 attempts\)"):
        await Source(silent, "http://x/y").length()  # type: ignore[arg-type]
    assert silent.asked == 60
    assert trio.current_time() - began == pytest.approx(60 * 70 + 59)


# -- validate ---------------------------------------------------------------------------------------------------------


async def test_validate_the_whole_a_part_and_a_failure(tmp_path: Path) -> None:
    async with with_disk(tmp_path) as caller:
        data = pattern(SIZE)
        for offset in range(0, SIZE, CHUNK):
            await caller.write(offset, data[offset : offset + CHUNK])
        job = await caller.start("validate", expected(data))
        assert await caller.ok(job)
        told = await caller.job(job)
        assert (told["kind"], told["done_bytes"], told["total_bytes"]) == ("validate", SIZE, SIZE)
        for size in (0, BLOCK, CHUNK - BLOCK, CHUNK + BLOCK, SIZE):
            assert await caller.ok(await caller.start("validate", expected(data[:size]) | {"size_to_validate": size}))
        job = await caller.start("validate", expected(b"other"))
        assert not await caller.ok(job)
        assert "expected was" in (await caller.job(job))["error"]


@pytest.mark.parametrize(
    ("size", "why"), [(1, "no multiple"), (SIZE + BLOCK, "more than the volume has"), (2**64 - BLOCK, "more than")]
)
async def test_a_size_that_cannot_be_validated_fails_the_job(tmp_path: Path, size: int, why: str) -> None:
    async with with_file(tmp_path) as caller:
        job = await caller.start("validate", expected(b"") | {"size_to_validate": size})
        assert not await caller.ok(job)
        assert why in (await caller.job(job))["error"]


async def test_documents_of_digests_are_strict() -> None:
    async with running_pantry() as caller:
        for digest in (None, {}, {"sha256": "0", "blake3": "0"}, {"blake3": "0"}, "0"):
            await caller.refused(400, "POST", "/volume/v/validate", {"expected_digest": digest})


async def test_a_damaged_disk_fails_its_validation(tmp_path: Path) -> None:
    """Short of blocks in the midst: the file behind the volume was cut."""
    async with with_file(tmp_path) as caller:
        with (tmp_path / "disk.raw").open("r+b") as file:
            file.truncate(CHUNK)
        job = await caller.start("validate", expected(bytes(SIZE)))
        assert not await caller.ok(job)
        assert (await caller.job(job))["error"] is not None


# -- scrub ------------------------------------------------------------------------------------------------------------


async def test_a_scrub_of_a_disk_without_a_parent_is_done_at_once(tmp_path: Path) -> None:
    async with with_disk(tmp_path) as caller:
        job = await caller.start("scrub")
        assert await caller.ok(job)
        told = await caller.job(job)
        assert (told["kind"], told["done_bytes"], told["total_bytes"]) == ("scrub", 0, 0)


async def test_a_scrub_tells_how_far_it_is_and_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent is an image behind HTTP, and gone afterwards."""
    data, reached, let = pattern(SIZE), trio.Event(), trio.Event()
    read = scrub_module.Scrub._read

    async def stops_halfway(self: scrub_module.Scrub, offset: int, length: int) -> memoryview:
        if offset >= CHUNK:
            reached.set()
            await let.wait()
        return await read(self, offset, length)

    monkeypatch.setattr(scrub_module.Scrub, "_read", stops_halfway)
    async with image_server(data) as image, replicas(tmp_path) as servers, running_pantry() as caller:
        parent = UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=image.url)
        await caller.attach(volume_of(request_of(servers), parent=parent))
        await caller.write(0, b"\x01" * BLOCK)
        job = await caller.start("scrub")
        await reached.wait()
        told = await caller.job(job)
        assert (told["state"], told["done_bytes"], told["total_bytes"]) == ("running", CHUNK, SIZE)
        await caller.write(SIZE - BLOCK, b"\x02" * BLOCK)
        let.set()
        assert await caller.ok(job)
        assert (await caller.job(job))["done_bytes"] == SIZE
        asked = len(image.requests)
        assert await contents(caller) == b"\x01" * BLOCK + data[BLOCK:-BLOCK] + b"\x02" * BLOCK
        assert len(image.requests) == asked, "the parent is not asked any more"


async def test_a_detach_in_the_midst_of_a_scrub_keeps_the_disk_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Race: the scrub is cancelled while it copies; the next one begins again and changes nothing that is there."""
    reached = trio.Event()
    read = scrub_module.Scrub._read

    async def hangs(self: scrub_module.Scrub, offset: int, length: int) -> memoryview:
        if offset >= CHUNK:
            reached.set()
            await trio.sleep_forever()
        return await read(self, offset, length)

    async with replicas(tmp_path / "below") as writable, running_pantry() as caller:
        await caller.attach(volume_of(request_of(writable)))
        await caller.write(0, pattern(CHUNK))
        await caller.write(CHUNK, pattern(CHUNK, 2))
        await caller.detach()
    async with (
        replicas(tmp_path / "top") as top,
        region_set(writable.paths, read_only=dict.fromkeys(range(3), True)) as snapshot,
        running_pantry() as caller,
    ):
        parent = volume_of(request_of(snapshot, 2, number=1, read_only=True))
        with monkeypatch.context() as patched:
            patched.setattr(scrub_module.Scrub, "_read", hangs)
            await caller.attach(volume_of(request_of(top), parent=parent))
            await caller.start("scrub")
            await reached.wait()
            await caller.detach()
        await caller.attach(volume_of(request_of(top, 2), parent=parent))
        assert await contents(caller) == pattern(CHUNK) + pattern(CHUNK, 2)
        assert await caller.ok(await caller.start("scrub"))
        assert await contents(caller) == pattern(CHUNK) + pattern(CHUNK, 2)
