"""One volume, two hosts: by migration, and by plain boldness. The higher generation has it, and no write is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import trio
from disk_rig import digests, make_regions, pattern, region_set
from host_rig import BLOCK, DISK, INSTANCE, Plane, backend, flush, guest, plane, properties
from trio.testing import wait_all_tasks_blocked

from crucible_emu.host import Settings, api, hosting
from crucible_emu.nbd import protocol as p
from crucible_emu.service import Exposure, serving
from crucible_emu.volume.vcr import VolumeConstructionRequest

ExpectLog = Callable[..., Any]
SIZE = 4 * 8 * BLOCK
TAKEN = "another Upstairs with a higher generation took over this disk"
MIGRATION = uuid4()
NAMED = f"/hosts/0/instances/{UUID(int=0x77)}"


@pytest.fixture(autouse=True)
def _a_takeover_is_heard(expect_log: ExpectLog) -> None:
    for perhaps in ("another Upstairs took over", "disk disabled", "connection ended", "may be lost"):
        expect_log(perhaps, at_least=0)


@asynccontextmanager
async def served(directory: Path, prefix: str = "/instance") -> AsyncIterator[Plane]:
    """A host at an address, as a source of migrations must be."""
    settings = Settings(directory, scrub_delay_s=None, reconnect_delay_s=0.05)
    async with (
        hosting(settings) as host,
        serving(api(host), Exposure("[::1]:0")) as url,
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
    ):
        yield Plane(http, prefix)


async def migrate(target: Plane, source: Plane, request: VolumeConstructionRequest) -> httpx2.Response:
    address = str(source.http.base_url).removeprefix("http://").rstrip("/")
    changed = {DISK: {"component": "CrucibleStorageBackend", "spec": backend(request)["component"]}}
    value = {"migration_id": str(MIGRATION), "src_addr": address, "replace_components": changed}
    return await target.ask(
        "PUT", "", {"properties": properties(), "init": {"method": "MigrationTarget", "value": value}}
    )


@pytest.mark.parametrize("prefix", ["/instance", NAMED])
async def test_a_volume_moves_to_another_host_by_a_higher_generation(tmp_path: Path, prefix: str) -> None:
    """The target needs no Run; the source finds its disk taken, says so, and its guest gets errors."""
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, served(tmp_path / "a", prefix) as source, plane(tmp_path / "b") as target:
        target.prefix = "/instance" if prefix == "/instance" else f"/hosts/0/instances/{UUID(int=0x88)}"
        await source.boot(servers.request(1))
        async with guest((await source.disk())["uri"]) as left:
            await left.write(0, pattern(SIZE, 1))
            answer = await migrate(target, source, servers.request(2))
            assert (answer.status_code, answer.json()) == (201, {"migrate": {"migration_id": str(MIGRATION)}})
            await target.until("Running")
            seen = await target.seen(0)
            arrived = {"id": str(MIGRATION), "state": "Finish"}
            assert seen["migration"] == {"migration_in": arrived, "migration_out": None}
            assert (await target.get("/migration-status")) == seen["migration"]
            async with guest((await target.disk())["uri"]) as machine:
                assert await machine.read(0, SIZE) == pattern(SIZE, 1), "what was acknowledged is there"
                await machine.write(0, pattern(BLOCK, 2))
                await flush(machine)
                answer_to_loser = await left.call(p.Command.WRITE, 0, data=bytes(BLOCK))
                assert answer_to_loser.errno != 0
                assert await machine.read(0, BLOCK) == pattern(BLOCK, 2)
        found = await source.disk()
        assert (found["active"], found["problem"]) == (False, TAKEN)
        upstairs = (await source.status())["volume"]["sub_volumes"][0]["upstairs"]
        assert upstairs["state"] == "disabled"
        assert (await source.seen(0))["state"] == "Running"
        await source.stop()
        assert (await target.disk())["active"]
    assert len(digests(paths)) == 1


async def test_two_hosts_fight_and_what_a_flush_covered_is_never_lost(tmp_path: Path) -> None:
    """Race: a take-over with writes under way. A block holds what the last flush that was answered covers, or a write
    after it; and the same is true when the loser comes back."""
    paths = make_regions(tmp_path, extent_count=16)
    async with region_set(paths) as servers, plane(tmp_path / "a") as first, plane(tmp_path / "b") as second:
        await first.boot(servers.request(1))
        durable: dict[int, bytes] = {}
        attempted: dict[int, bytes] = {}
        busy, lost = trio.Event(), trio.Event()

        async def write_until_lost(uri: str) -> None:
            async with guest(uri) as machine:
                for number in range(1, 1_000_000):
                    block, data = number % 128, pattern(BLOCK, 1 + number % 200)
                    attempted[block] = data
                    answer = await machine.call(p.Command.WRITE, block * BLOCK, data=data)
                    if not answer.errno and number % 8 == 0:
                        answer = await machine.call(p.Command.FLUSH)
                        if not answer.errno:
                            durable.update(attempted)
                    if answer.errno:
                        lost.set()
                        return
                    if number == 40:
                        busy.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_until_lost, (await first.disk())["uri"])
            with trio.fail_after(60):
                await busy.wait()
                await second.boot(servers.request(2))
                await lost.wait()
        assert (await first.disk())["problem"] == TAKEN
        async with guest((await second.disk())["uri"]) as machine:
            whole = await machine.read(0, machine.size_bytes)
        assert len(durable) >= 40
        for block, data in durable.items():
            assert whole[block * BLOCK : (block + 1) * BLOCK] in (data, attempted[block])
        await first.stop()
        await first.boot(servers.request(3))
        async with guest((await first.disk())["uri"]) as machine:
            assert await machine.read(0, machine.size_bytes) == whole
        with trio.fail_after(30):
            while (await second.disk())["problem"] is None:
                await wait_all_tasks_blocked(0.001)
        assert (await second.disk())["problem"] == TAKEN
    assert len(digests(paths)) == 1


async def test_a_lower_generation_takes_nothing(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log("an instance failed.*refuse generation 1")
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "a") as first:
        await first.boot(servers.request(2))
        async with plane(tmp_path / "b") as second, guest((await first.disk())["uri"]) as machine:
            await second.ensure(servers.request(1))
            await second.put_state("Run")
            assert (await second.seen(2))["state"] == "Failed"
            await machine.write(0, pattern(BLOCK))
            assert (await first.disk())["problem"] is None


async def test_a_migration_from_nowhere_fails_and_says_why(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log("an instance failed.*the source answers 424 to /instance/spec")
    async with (
        region_set(make_regions(tmp_path)) as servers,
        served(tmp_path / "a") as source,
        plane(tmp_path / "b") as target,
    ):
        answer = await migrate(target, source, servers.request(2))
        assert answer.status_code == 201
        seen = await target.seen(1)
        assert (seen["state"], seen["migration"]["migration_in"]["state"]) == ("Failed", "Error")


async def test_a_vcr_for_a_migration_that_fails_meanwhile_is_gone(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Race: replacement with a migration that is given up. The request waited for the spec; there will be none."""
    async with region_set(make_regions(tmp_path)) as servers, plane(tmp_path / "b") as target:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            value = {
                "migration_id": str(MIGRATION),
                "src_addr": f"127.0.0.1:{listener.socket.getsockname()[1]}",
                "replace_components": {},
            }
            body = {"properties": properties(), "init": {"method": "MigrationTarget", "value": value}}
            assert (await target.ask("PUT", "", body)).status_code == 201
            assert (await target.get("/spec"))["spec"] == {"type": "WaitingForMigrationSource"}
            assert (await target.ask("GET", f"/disk/{DISK}/status")).status_code == 424
            statuses: list[int] = []

            async def replace() -> None:
                statuses.append((await target.replace(servers.request(2))).status_code)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace)
                await wait_all_tasks_blocked()
                assert statuses == []
                await target.put_state("Stop")
            assert statuses == [410]
            assert str(INSTANCE) in str(await target.get())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no JSON", "no spec of an instance"),
        (b"[]", "no spec of an instance"),
        (b"x" * 5_000_000, "with 5000000 bytes: at most"),
    ],
)
@pytest.mark.parametrize("prefix", ["/instance", NAMED])
async def test_a_source_that_talks_nonsense_costs_one_sentence(
    tmp_path: Path, expect_log: ExpectLog, body: bytes, reason: str, prefix: str
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def babble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with trio.open_nursery() as nursery, plane(tmp_path) as target:
        target.prefix = prefix
        nursery.start_soon(trio.serve_listeners, babble, [listener])
        expect_log(f"an instance failed.*{reason}")
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        value = {"migration_id": str(MIGRATION), "src_addr": address, "replace_components": {}}
        await target.ask("PUT", "", {"properties": properties(), "init": {"method": "MigrationTarget", "value": value}})
        assert (await target.seen(1))["state"] == "Failed"
        nursery.cancel_scope.cancel()


async def test_a_source_that_has_another_instance_is_left_alone(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Safety: its disk would be taken from a stranger."""
    async with region_set(make_regions(tmp_path)) as servers, served(tmp_path / "a") as source:
        body = {"init": {"method": "Spec", "value": {"spec": {"board": BOARD, "components": {}}}}}
        stranger = body | {"properties": properties(UUID(int=0xBAD))}
        assert (await source.ask("PUT", "", stranger)).status_code == 201
        async with plane(tmp_path / "b") as target:
            expect_log(f"an instance failed.*has the instance {UUID(int=0xBAD)}, not {INSTANCE}")
            await migrate(target, source, servers.request(2))
            assert (await target.seen(1))["state"] == "Failed"


BOARD = {"cpus": 1, "memory_mb": 1, "chipset": {"type": "i440_fx", "value": {"enable_pcie": True}}}
