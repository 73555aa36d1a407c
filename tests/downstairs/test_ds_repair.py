"""Extents from one Downstairs to another over HTTP, and what keeps a bad one out (§8, §9, §10)."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import trio
from downstairs_rig import (
    BLOCK,
    S,
    ScriptedUpstairs,
    U,
    connected,
    contexts_of,
    definition,
    payload,
    read,
    serving,
    write,
)
from trio.testing import MockClock

from crucible_emu import errors
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.local import ProcessSources
from crucible_emu.downstairs.repair_client import REQUEST_S_MAX, HttpSources, fetch_extent
from crucible_emu.downstairs.repair_service import RepairService
from crucible_emu.region import Region
from crucible_emu.region.layout import ExtentLayout, extent_path
from crucible_emu.region.repair_files import FileType
from crucible_emu.wire import messages as m

OPENAPI = Path(__file__).resolve().parents[1] / "data/openapi/downstairs-repair-1.0.0.json"
EXTENT_BYTES = ExtentLayout(BLOCK, 8).file_bytes


def fill(region: Region, value: int, flush: bool = True) -> None:
    blocks = np.arange(16)
    region.write(blocks, np.full((16, BLOCK), value, np.uint8), contexts_of(payload(16, value)))
    if flush:
        region.flush(value, 1)


def stored(region: Region, extent_id: int) -> bytes:
    return extent_path(region.path, extent_id).read_bytes()


@pytest.fixture
def source(make_region: Callable[..., Region]) -> Region:
    made = make_region()
    fill(made, 7)
    return made


@pytest.fixture
def target(make_region: Callable[..., Region]) -> Region:
    made = make_region()
    fill(made, 3)
    return made


# The routes


async def ask(region: Region, path: str, method: str = "GET", **options: Any) -> httpx2.Response:
    async with serving(region) as server, httpx2.AsyncClient(base_url=f"http://{server.repair_address}") as client:
        return await client.request(method, path, **options)


async def test_routes(source: Region) -> None:
    source.close_extent(1)
    async with serving(source) as server, httpx2.AsyncClient(base_url=f"http://{server.repair_address}") as client:
        # All on one connection.
        for path, want in (
            ("/extent/0/files", ["000"]),
            ("/extent/3/files", ["003"]),
            ("/extent/0/repair-ready", False),
            ("/extent/1/repair-ready", True),
            ("/region-info", source.definition.as_json()),
            ("/region-mode", False),
            ("/work", True),
        ):
            response = await client.get(path, headers={"api-version": "1.0.0", "accept": "application/json"})
            assert response.status_code == 200
            assert response.json() == want
            assert response.headers["x-request-id"]
        response = await client.get("/newextent/0/data")
        assert response.content == stored(source, 0)
        assert response.headers["content-type"] == "application/octet-stream"
        assert int(response.headers["content-length"]) == EXTENT_BYTES


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/extent/4/files", 400, "no extent 4"),
        ("/extent/4/repair-ready", 400, "the last of this region is 3"),
        ("/extent/4294967296/files", 400, "no extent number"),
        ("/extent/-1/files", 400, "no extent number"),
        ("/extent/0x1/files", 400, "no extent number"),
        ("/newextent/4/data", 400, "no extent 4"),
        ("/newextent/0/db", 400, "000.db cannot be read"),
        ("/newextent/0/db_wal", 400, "000.db-wal"),
        ("/newextent/0/secret", 400, "'secret' is no file type"),
        ("/newextent/0/..%2f..%2fregion.json", 404, "Not Found"),
        ("/nothing", 404, "Not Found"),
    ],
)
async def test_errors_are_json(source: Region, path: str, status: int, words: str) -> None:
    response = await ask(source, path)
    assert response.status_code == status
    body = response.json()
    assert words in body["message"]
    assert body["request_id"] == response.headers["x-request-id"]


async def test_wrong_method(source: Region) -> None:
    response = await ask(source, "/region-info", "PUT")
    assert (response.status_code, response.json()["message"]) == (405, "Method Not Allowed")


async def test_body_beyond_the_limit(source: Region) -> None:
    response = await ask(source, "/region-info", content=b"x" * 2000)
    assert response.status_code == 400


async def test_what_is_no_http_ends_that_connection_only(source: Region) -> None:
    async with serving(source) as server:
        stream = await trio.open_tcp_stream(server.repair_address.host, server.repair_address.port)
        async with stream:
            await stream.send_all(b"\x00\x01\x02 nonsense\r\n\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 400")
        assert (await ask_again(server)).json() is False


async def ask_again(server: Any) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(f"http://{server.repair_address}/region-mode")


async def test_missing_data_file_symlink_and_directory(source: Region, tmp_path: Path) -> None:
    path = extent_path(source.path, 2)
    path.rename(tmp_path / "elsewhere")
    assert (await ask(source, "/extent/2/files")).json()["message"].startswith("EBADF")
    path.symlink_to(tmp_path / "elsewhere")
    assert (await ask(source, "/newextent/2/data")).status_code == 400
    path.unlink()
    path.mkdir()
    assert "no file" in (await ask(source, "/newextent/2/data")).json()["message"]


async def test_read_only_region_is_always_ready(source: Region) -> None:
    source.close()
    with Region.open(source.path, read_only=True) as region:
        assert (await ask(region, "/extent/0/repair-ready")).json() is True
        assert (await ask(region, "/region-mode")).json() is True


async def test_conforms_to_the_real_document(source: Region) -> None:
    document = json.loads(OPENAPI.read_text())
    samples = {"eid": "0", "file_type": "data"}
    wrong = {"eid": "99", "file_type": "none"}
    for path, methods in document["paths"].items():
        assert set(methods) == {"get"}
        response = await ask(source, path.format(**samples))
        assert response.status_code == 200
        content = methods["get"]["responses"].get("200", {}).get("content")
        if content is not None:
            (kind,) = content
            assert response.headers["content-type"] == kind
            check_schema(response.json(), content[kind]["schema"], document)
        if "{" in path:
            refused = await ask(source, path.format(**wrong))
            assert 400 <= refused.status_code < 500
            check_schema(refused.json(), document["components"]["schemas"]["Error"], document)


def check_schema(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """As much of JSON schema as the document uses."""
    if "$ref" in schema:
        check_schema(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
        return
    for part in schema.get("allOf", ()):
        check_schema(value, part, document)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]])
    if schema.get("type") == "integer":
        assert not isinstance(value, bool)
        assert value >= schema.get("minimum", value)
    for name in schema.get("required", ()):
        assert name in value
    for name, member in schema.get("properties", {}).items():
        if name in value:
            check_schema(value[name], member, document)
    for item in value if "items" in schema else ():
        check_schema(item, schema["items"], document)


# The dance


@asynccontextmanager
async def two(
    source: Region, target: Region, **options: Any
) -> AsyncIterator[tuple[Any, ScriptedUpstairs, ScriptedUpstairs]]:
    """Both regions served, an active Upstairs at each: the source's server, the talk with source and target."""
    async with (
        serving(source) as from_server,
        serving(target, **options) as to_server,
        connected(from_server) as from_talk,
        connected(to_server) as to_talk,
    ):
        await from_talk.activate(2)
        await to_talk.activate(2)
        yield from_server, from_talk, to_talk


async def test_reconciliation_of_one_extent(source: Region, target: Region) -> None:
    """Flush at the source, close everywhere, repair, reopen everywhere (§8.2)."""
    async with two(source, target) as (server, from_talk, to_talk):
        await from_talk.ask(write(1, 2, 1, 99), m.WriteAck)
        assert await from_talk.ask(m.ExtentFlush(0, 0, 0, 50, 60)) == m.RepairAckId(0)
        for talk in (from_talk, to_talk):
            assert await talk.ask(m.ExtentClose(1, 0)) == m.RepairAckId(1)
        assert await to_talk.ask(m.ExtentRepair(2, 0, 0, server.repair_address, (1,))) == m.RepairAckId(2)
        assert stored(target, 0) == stored(source, 0)
        for talk in (from_talk, to_talk):
            assert await talk.ask(m.ExtentReopen(3, 0)) == m.RepairAckId(3)
        response = await to_talk.ask(read(2, 0, 10), m.ReadResponse)
        assert [row[0] for row in np.frombuffer(response.data, np.uint8).reshape(10, -1)] == [7, 7, 99, *[7] * 5, 3, 3]
        gens, flushes, dirty = target.extent_versions()
        assert (gens[0], flushes[0], dirty[0]) == (60, 50, False)
        beside = sorted(entry.name for entry in extent_path(target.path, 0).parent.iterdir())
        assert beside == ["000", "001", "002", "003"]


async def test_live_repair_of_one_extent_while_others_are_used(source: Region, target: Region) -> None:
    """The reopen first, then close, repair and no-op; guest I/O of the extent depends on the reopen (§9.2)."""
    async with two(source, target) as (server, from_talk, to_talk):
        await from_talk.say(m.ExtentLiveReopen(U, S, 103, (102,), 0), m.ExtentLiveFlushClose(U, S, 100, (), 0, 8, 9))
        await to_talk.say(m.ExtentLiveReopen(U, S, 103, (102,), 0), m.ExtentLiveClose(U, S, 100, (), 0))
        assert (await from_talk.hear(m.ExtentLiveCloseAck)).result == (1, 7, False)  # clean: its numbers stay
        assert (await to_talk.hear(m.ExtentLiveCloseAck)).result == (1, 3, False)
        await to_talk.say(write(200, 1, 1, 55, (103,)), write(201, 12, 1, 56), read(202, 12, 1, (201,)))
        assert (await to_talk.hear(m.WriteAck)).job_id == 201
        assert (await to_talk.hear(m.ReadResponse)).data == payload(1, 56)
        await from_talk.ask(m.ExtentLiveNoOp(U, S, 101, (100,)), m.ExtentLiveAckId)
        repaired = await to_talk.ask(m.ExtentLiveRepair(U, S, 101, (100,), 0, 0, server.repair_address))
        assert repaired == m.ExtentLiveRepairAckId(U, S, 101, None)
        for talk in (from_talk, to_talk):
            await talk.say(m.ExtentLiveNoOp(U, S, 102, (101,)))
            assert (await talk.hear(m.ExtentLiveAckId)).job_id == 102
            assert (await talk.hear(m.ExtentLiveAckId)).job_id == 103
        assert (await to_talk.hear(m.WriteAck)).job_id == 200
        response = await to_talk.ask(read(203, 0, 2, (200,)), m.ReadResponse)
        assert [row[0] for row in np.frombuffer(response.data, np.uint8).reshape(2, -1)] == [7, 55]


async def test_repair_of_an_open_extent_is_refused(source: Region, target: Region) -> None:
    async with two(source, target) as (server, _, to_talk):
        reply = await to_talk.ask(m.ExtentRepair(0, 0, 0, server.repair_address, ()), m.ExtentError)
        assert "open" in str(reply.error)


async def test_source_that_is_not_closed_spoils_the_repair(source: Region, target: Region, expect_log: Any) -> None:
    before = stored(target, 0)
    async with two(source, target) as (server, _, to_talk):
        await to_talk.ask(m.ExtentClose(0, 0), m.RepairAckId)
        with expect_log("opened at the source"):
            reply = await to_talk.ask(m.ExtentRepair(1, 0, 0, server.repair_address, ()), m.ExtentError)
        assert isinstance(reply.error, errors.RepairRequestError)
        assert await to_talk.ask(m.ExtentReopen(2, 0)) == m.RepairAckId(2)
    assert stored(target, 0) == before


async def test_source_that_is_not_there(source: Region, target: Region, expect_log: Any) -> None:
    async with two(source, target) as (_, _, to_talk):
        await to_talk.ask(m.ExtentClose(0, 0), m.RepairAckId)
        with expect_log("work failed"):
            address = m.SocketAddress("127.0.0.1", 1)
            reply = await to_talk.ask(m.ExtentRepair(1, 0, 0, address, ()), m.ExtentError)
        assert isinstance(reply.error, errors.RepairRequestError)


async def test_failed_live_repair_in_faithful_mode_costs_the_connection(
    source: Region, target: Region, expect_log: Any
) -> None:
    async with two(source, target, faithful=True) as (_, _, to_talk):
        await to_talk.ask(m.ExtentLiveClose(U, S, 1, (), 0), m.ExtentLiveCloseAck)
        with expect_log("work failed"):
            await to_talk.say(m.ExtentLiveRepair(U, S, 2, (1,), 0, 0, m.SocketAddress("127.0.0.1", 1)))
            (report,) = await to_talk.hear_end()
        assert isinstance(report, m.ErrorReport)
        assert isinstance(report.error, errors.RepairRequestError)


class Crooked:
    """A source that lies in one way, otherwise a good one."""

    def __init__(self, region: Region, **lies: Any) -> None:
        self._data = stored(region, 0)
        self.lies = lies

    @asynccontextmanager
    async def open(self, _address: Any, _definition: Any) -> AsyncIterator[Crooked]:
        yield self

    async def files(self, _extent_id: int) -> Any:
        return self.lies.get("files", ["000"])

    async def ready(self, _extent_id: int) -> bool:
        return bool(self.lies.get("ready", True))

    async def stream(self, _extent_id: int, kind: FileType) -> Any:
        assert kind is FileType.DATA
        data = self.lies.get("data", lambda good: good)(self._data)
        for start in range(0, len(data), 1000):
            await trio.lowlevel.checkpoint()
            yield data[start : start + 1000]
        if "then" in self.lies:
            raise self.lies["then"]


def changed(offset: int, value: int) -> Callable[[bytes], bytes]:
    return lambda good: good[:offset] + bytes([value]) + good[offset + 1 :]


LIES = [
    ({"files": []}, errors.RepairFilesInvalid),
    ({"files": ["000", "000.db"]}, errors.RepairFilesInvalid),
    ({"files": ["001"]}, errors.RepairFilesInvalid),
    ({"ready": False}, errors.RepairRequestError),
    ({"data": lambda good: good[:-1]}, errors.RepairFilesInvalid),
    ({"data": lambda good: good + b"\0"}, errors.RepairFilesInvalid),
    ({"data": lambda good: b""}, errors.RepairFilesInvalid),
    ({"data": changed(100, 0xFF)}, errors.RepairFilesInvalid),  # block data
    ({"data": changed(EXTENT_BYTES - 32, 9)}, errors.RepairFilesInvalid),  # the dirty byte
    ({"data": changed(EXTENT_BYTES - 15, 1)}, errors.RepairFilesInvalid),  # the version
    ({"then": errors.RepairStreamError("broke off")}, errors.RepairStreamError),
]


@pytest.mark.parametrize(("lies", "error"), LIES)
async def test_bad_download_leaves_the_extent_as_it_was(source: Region, target: Region, lies: Any, error: Any) -> None:
    before = stored(target, 0)
    target.close_extent(0)
    with pytest.raises(error):
        await fetch_extent(target, 0, m.SocketAddress("::1", 1), Crooked(source, **lies))
    assert stored(target, 0) == before
    assert [entry.name for entry in extent_path(target.path, 0).parent.iterdir() if entry.is_dir()] == []
    # Another attempt may follow at once.
    await fetch_extent(target, 0, m.SocketAddress("::1", 1), Crooked(source))
    target.reopen_extent(0)
    assert stored(target, 0) == stored(source, 0)


# What a server on the network can do wrong


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[m.SocketAddress]:
    """A server that gives these answers to the requests that come, whatever they ask; then it is silent."""
    left = list(answers)

    async def handle(stream: trio.SocketStream) -> None:
        while True:
            request = b""
            while b"\r\n\r\n" not in request:
                data = await stream.receive_some()
                if not data:
                    return
                request += data
            if not left:
                await trio.sleep_forever()
            await stream.send_all(left.pop(0))
            if not left and answers[-1].endswith(b"CUT"):
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield m.SocketAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def http(body: bytes, status: int = 200, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, size, body)


def chunked(*pieces: bytes) -> bytes:
    """As the real service probably answers: without a length."""
    parts = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


FILES = http(b'["000"]')
NETWORK_LIES = [
    ((http(b"{}", 500),), errors.RepairRequestError),
    ((http(b"no json"),), errors.RepairRequestError),
    ((http(b'{"a": 1}'),), errors.RepairFilesInvalid),
    ((http(b"[1]"),), errors.RepairFilesInvalid),
    ((b"garbage\r\n\r\nCUT",), errors.RepairRequestError),
    ((FILES, http(b"{}", 400)), errors.RepairRequestError),
    ((FILES, http(b"CUT", length=5000)), errors.RepairStreamError),
    ((FILES, http(bytes(100_000))), errors.RepairStreamError),
    ((FILES, http(bytes(EXTENT_BYTES)), http(b'"true"')), errors.RepairRequestError),
    ((FILES, http(bytes(EXTENT_BYTES)), http(b"{}", 503)), errors.RepairRequestError),
]


@pytest.mark.parametrize(("answers", "error"), NETWORK_LIES)
async def test_bad_server_is_one_of_the_repair_errors(target: Region, answers: Any, error: Any) -> None:
    before = stored(target, 0)
    target.close_extent(0)
    async with answering(*answers) as address:
        with pytest.raises(error):
            await fetch_extent(target, 0, address, HttpSources())
    assert stored(target, 0) == before


async def test_chunked_answer_is_as_good(source: Region, target: Region) -> None:
    data = stored(source, 0)
    target.close_extent(0)
    async with answering(FILES, chunked(data[:1000], data[1000:]), http(b"true")) as address:
        await fetch_extent(target, 0, address, HttpSources())
    assert stored(target, 0) == data


@pytest.mark.parametrize(("answers", "error"), [((), errors.RepairRequestError), ((FILES,), errors.RepairRequestError)])
async def test_silent_server_is_given_15_seconds(target: Region, answers: Any, error: Any) -> None:
    target.close_extent(0)
    clock = MockClock()
    outcome: list[BaseException] = []

    async def main() -> None:
        async with answering(*answers) as address, trio.open_nursery() as nursery:

            async def fetch() -> None:
                with pytest.raises(error) as caught:
                    await fetch_extent(target, 0, address, HttpSources())
                outcome.append(caught.value)

            nursery.start_soon(fetch)
            while not outcome:
                await trio.testing.wait_all_tasks_blocked(0.05)
                clock.jump(REQUEST_S_MAX / 3)

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))
    assert outcome


async def test_full_disk_ends_the_download_cleanly(
    source: Region, target: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    source.close_extent(0)
    target.close_extent(0)
    async with serving(source) as server:
        monkeypatch.setattr(target.storage, "pwrite", no_space, raising=False)
        with pytest.raises(OSError, match="No space"):
            await fetch_extent(target, 0, server.repair_address, HttpSources())
        monkeypatch.undo()
        await fetch_extent(target, 0, server.repair_address, HttpSources())


async def test_eviction_ends_a_repair_that_hangs(target: Region) -> None:
    """The region is handed over as soon as nothing touches it any more, not when the source gives up."""
    async with answering() as address, serving(target) as server, connected(server) as old:
        await old.activate(2)
        await old.ask(m.ExtentClose(0, 0), m.RepairAckId)
        await old.say(m.ExtentRepair(1, 0, 0, address, ()), m.Ruok())
        await old.hear(m.Imok)
        async with connected(server) as new:
            await new.activate(3)
            assert not target.extent_is_closed(0)
            assert (await new.ask(read(1, 0), m.ReadResponse)).data == payload(1, 3)


async def test_regions_of_one_process_need_no_network(source: Region, target: Region) -> None:
    target.close_extent(0)
    with pytest.raises(errors.RepairRequestError):
        await fetch_extent(target, 0, m.SocketAddress("100::ffff", 1), ProcessSources())


async def test_big_extent_streams(make_region: Callable[..., Region]) -> None:
    big = definition(block_size=4096, blocks=4096, extents=1)
    one, two_ = make_region(big), make_region(big)
    blocks = np.arange(4096)
    rows = np.frombuffer(os.urandom(4096 * 4096), np.uint8).reshape(4096, 4096)
    one.write(blocks, rows, contexts_of(memoryview(rows).cast("B"), 4096))
    one.flush(1, 1)
    one.close_extent(0)
    two_.close_extent(0)
    async with serving(one) as server:
        await fetch_extent(two_, 0, server.repair_address, HttpSources())
    assert stored(one, 0) == stored(two_, 0)


def test_answers_name_the_file_once(source: Region) -> None:
    service = RepairService(source, Downstairs(source.definition))
    answer = service.answer("GET", "/newextent/0/data")
    assert answer.descriptor is not None
    os.close(answer.descriptor)
    assert dict(answer.headers)["content-length"] == str(EXTENT_BYTES)
