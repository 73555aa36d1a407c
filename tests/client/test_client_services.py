"""The typed clients against our own services: pantry, host and repair service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
import trio
from agent_rig import serving_agent
from disk_rig import make_regions, region_set
from test_client_aio import run

from crucible_emu.agent import agent_api
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.client import aio
from crucible_emu.client.agent import AgentClient
from crucible_emu.client.failures import ServiceError
from crucible_emu.client.host import HostClient
from crucible_emu.client.nbd import opened
from crucible_emu.client.pantry import BASE, PantryClient
from crucible_emu.client.repair import FileType, RepairClient
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.repair_http import serve_repair
from crucible_emu.downstairs.repair_service import RepairService
from crucible_emu.errors import UsageError
from crucible_emu.host import Settings, hosting
from crucible_emu.host import api as host_api
from crucible_emu.host.documents import InstanceEnsureRequest
from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.operations import api as pantry_api
from crucible_emu.region import Region
from crucible_emu.service import application
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume import vcr

BLOCK = 512
SNAPSHOT = UUID(int=0x5A)
SOMEBODY = str(UUID(int=1))


@asynccontextmanager
async def disk_of(folder: Path) -> AsyncIterator[vcr.RegionRequest]:
    paths = make_regions(folder, block_size=BLOCK, blocks_per_extent=16, extent_count=16)
    async with region_set(paths) as servers:
        yield servers.request(1)


@asynccontextmanager
async def pantry_client() -> AsyncIterator[PantryClient]:
    pantry = Pantry(reconnect_delay_s=0.05)
    async with trio.open_nursery() as nursery:
        await nursery.start(pantry.run)
        transport = httpx2.ASGITransport(app=application(pantry_api(pantry)))
        async with PantryClient("http://pantry", transport=transport) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_a_volume_in_a_pantry(tmp_path: Path, expect_log: Callable[..., object]) -> None:
    expect_log("another Upstairs", at_least=0)
    async with disk_of(tmp_path) as region, pantry_client() as pantry:
        assert (await pantry.pantry_status()).volumes == ()
        await pantry.attach_activate_background("v", "j", region)
        assert await pantry.job_result_ok("j")
        assert await pantry.is_job_finished("j")
        assert (await pantry.attach("w", region.model_copy(update={"gen": 2}))).id == "w"
        with pytest.raises(ServiceError) as refused:
            await pantry.bulk_read("v", 0, BLOCK)
        assert refused.value.status in (410, 503)
        await pantry.bulk_write("w", BLOCK, b"x" * BLOCK)
        assert await pantry.bulk_read("w", 0, 2 * BLOCK) == bytes(BLOCK) + b"x" * BLOCK
        digest = hashlib.sha256(bytes(BLOCK) + b"x" * BLOCK).hexdigest()
        assert await pantry.job_result_ok(await pantry.validate("w", digest, 2 * BLOCK))
        assert await pantry.job_result_ok(await pantry.scrub("w"))
        assert (await pantry.job_status(await pantry.validate("w", digest))).kind.value == "validate"
        assert (await pantry.volume_status("w")).active
        await pantry.snapshot("w", str(SNAPSHOT))
        with pytest.raises(ServiceError, match="400"):
            await pantry.replace("w", region.model_copy(update={"gen": 2}))
        await pantry.detach("w")
        await pantry.detach("v")


def ensure_request(region: vcr.RegionRequest) -> InstanceEnsureRequest:
    metadata = {"project_id": SOMEBODY, "silo_id": SOMEBODY, "sled_id": SOMEBODY}
    sled = {"sled_model": "a model", "sled_revision": 1, "sled_serial": "a serial"}
    backend = {"readonly": False, "request_json": vcr.dumps(region)}
    path = {"bus": 0, "device": 16, "function": 0}
    components = {
        "disk": {"type": "crucible_storage_backend", "component": backend},
        "disk:device": {"type": "virtio_disk", "component": {"backend_id": "disk", "pci_path": path}},
    }
    board = {"cpus": 2, "memory_mb": 1024, "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}}
    spec = {"board": board, "components": components}
    properties = {"id": SOMEBODY, "name": "i", "description": "for a test", "metadata": metadata | sled}
    return InstanceEnsureRequest.model_validate(
        {"properties": properties, "init": {"method": "Spec", "value": {"spec": spec}}}
    )


@pytest.mark.parametrize("many", [False, True])
async def test_an_instance_on_a_host(tmp_path: Path, many: bool) -> None:
    (tmp_path / "regions").mkdir()
    async with (
        disk_of(tmp_path / "regions") as region,
        hosting(Settings(tmp_path / "host", reconnect_delay_s=0.05, scrub_delay_s=None)) as host,
        HostClient("http://host", transport=httpx2.ASGITransport(app=application(host_api(host)))) as client,
    ):
        instance = client.instance(SOMEBODY) if many else client
        await instance.instance_ensure(ensure_request(region))
        await instance.instance_state_put("Run")
        seen = await instance.instance_state_monitor(0)
        while seen.state != "Running":
            seen = await instance.instance_state_monitor(seen.gen + 1)
        assert (await instance.instance_get()).instance.state == "Running"
        assert (await instance.instance_spec_get()).spec.type == "Present"
        (disk,) = await instance.instance_disks_list()
        assert disk.uri is not None and disk.active
        async with opened(disk.uri) as guest:
            await guest.write(0, b"g" * BLOCK)
            await guest.flush()
        await instance.instance_issue_crucible_snapshot_request("disk", SNAPSHOT)
        assert (await instance.disk_volume_status("disk")).volume_info is not None
        newer = region.model_copy(update={"gen": 2})
        assert await instance.instance_issue_crucible_vcr_request("disk", newer) is ReplaceResult.VCR_MATCHES
        assert (await instance.instance_migrate_status()).migration_in is None
        listed = (await client.hosted_instances_list()).instances
        assert [str(each.id) for each in listed] == [SOMEBODY]
        await instance.instance_state_put("Stop")


async def test_a_repair_service(tmp_path: Path) -> None:
    (path,) = make_regions(tmp_path, count=1, block_size=BLOCK, blocks_per_extent=16, extent_count=16)
    region = Region.open(path, read_only=True)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_repair, RepairService(region, Downstairs(region.definition)), listener)
        async with RepairClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as repair:
            info = await repair.get_region_info()
            assert (info.block_size, info.extent_size.value, info.extent_count) == (BLOCK, 16, 16)
            assert await repair.get_region_mode()
            assert await repair.extent_repair_ready(3)
            assert await repair.get_files_for_extent(3) == ["003"]
            async with repair.get_extent_file(3, FileType.DATA) as pieces:
                content = b"".join([piece async for piece in pieces])
            assert content == (path / "00" / "000" / "003").read_bytes()
            with pytest.raises(ServiceError, match="400"):
                async with repair.get_extent_file(3, FileType.DB):
                    pass
        nursery.cancel_scope.cancel()
    listener.close()
    region.close()


async def test_every_operation_of_a_service_is_a_method_of_its_client(tmp_path: Path) -> None:
    async with (
        hosting(Settings(tmp_path / "host")) as host,
        serving_agent(tmp_path / "agent") as served,
    ):
        for client, api in (
            (AgentClient, agent_api(served.agent)),
            (PantryClient, pantry_api(Pantry())),
            (HostClient, host_api(host)),
        ):
            ids = {operation.operation_id for operation in api.operations}
            # An instance of many has the methods of the one.
            wanted = {name.removeprefix("hosted_") if name.removeprefix("hosted_") in ids else name for name in ids}
            assert wanted - set(dir(client)) == set()
            assert api.versions is not None and client.VERSION in api.versions.supported


# --- a pantry's volume as a disk of asyncio ---


def memory_pantry(device: MemoryDevice, *, tells_block_size: bool) -> httpx2.MockTransport:
    """A pantry that has one volume ``v`` in memory, as far as its bytes go."""
    upstairs = {
        "state": "active",
        "block_size": device.block_size if tells_block_size else None,
        "upstairs_id": SOMEBODY,
        "session_id": SOMEBODY,
        "generation": 1,
        "read_only": False,
        "encrypted": False,
        "reconcile_in_progress": False,
        "live_repair_in_progress": False,
        "targets": [],
    }

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            info = {"volume": {"sub_volumes": [{"upstairs": upstairs}], "read_only_parent": None}}
            status = {"active": True, "seen_active": True, "num_job_handles": 1, "info": info}
            return httpx2.Response(200, json=status)
        body = json.loads(request.content)
        data = base64.b64decode(body.get("base64_encoded_data", ""))
        end = body["offset"] + (body.get("size") or len(data))
        if end > device.size_bytes or (body["offset"] | end) % device.block_size or end - body["offset"] > 512 << 10:
            return httpx2.Response(400, json={"message": "no such range", "request_id": "1"})
        if request.url.path.endswith("bulk-write"):
            device.data[body["offset"] : end] = data
            return httpx2.Response(204)
        return httpx2.Response(
            200, json={"base64_encoded_data": base64.b64encode(device.data[body["offset"] : end]).decode()}
        )

    return httpx2.MockTransport(answer)


@pytest.mark.parametrize(("size_bytes", "known"), [(1 << 20, True), (1 << 20, False), (3 * 4096, False), (4096, False)])
def test_a_pantrys_volume_is_a_disk(tmp_path: Path, size_bytes: int, known: bool) -> None:
    device = MemoryDevice(size_bytes, 4096)
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(b"pantry" * (size_bytes // 8))

    async def main() -> None:
        address = f"http://pantry{BASE}/volume/v"
        transport = memory_pantry(device, tells_block_size=known)
        async with await aio.open(address, transport=transport, size_bytes=size_bytes if known else None) as disk:
            assert (disk.size_bytes, disk.block_size) == (size_bytes, 4096)
            assert not (disk.can_flush or disk.can_zero or disk.can_trim)
            with pytest.raises(UsageError, match="does not offer a flush"):
                await disk.flush()
            copied = await disk.copy_in(image)
            out = await disk.copy_out(back, length=len(image.read_bytes()))
            assert copied.blake3 == out.blake3
            await disk.zero(0, 4096)
            assert await asyncio.gather(disk.read(0, 10), disk.read(4095, 1)) == [bytes(10), bytes(1)]

    run(main())
    assert back.read_bytes() == image.read_bytes()
