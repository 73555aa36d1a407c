"""A host in this process, a control plane that talks to its API, and guests that knock at its doors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import trio
from nbd_plain_client import PlainClient

from crucible_emu.host import Host, Settings, api, hosting
from crucible_emu.nbd import parse_uri
from crucible_emu.nbd import protocol as p
from crucible_emu.service import application
from crucible_emu.volume import vcr
from crucible_emu.volume.vcr import VolumeConstructionRequest

INSTANCE = UUID(int=0x1257)
DISK = "disk-of-the-guest"
NEWEST = {"api-version": "5.0.0"}
BLOCK = 512


def properties(instance_id: UUID = INSTANCE) -> dict[str, Any]:
    somebody = str(UUID(int=1))
    metadata = {"project_id": somebody, "silo_id": somebody, "sled_id": somebody}
    sled = {"sled_model": "a model", "sled_revision": 1, "sled_serial": "a serial"}
    return {
        "id": str(instance_id),
        "name": "an instance",
        "description": "for a test",
        "metadata": metadata | sled,
    }


def backend(request: VolumeConstructionRequest | str, *, readonly: bool = False) -> dict[str, Any]:
    text = request if isinstance(request, str) else vcr.dumps(request)
    return {"type": "crucible_storage_backend", "component": {"readonly": readonly, "request_json": text}}


def spec(**components: dict[str, Any]) -> dict[str, Any]:
    chipset = {"type": "i440_fx", "value": {"enable_pcie": False}}
    return {"board": {"cpus": 2, "memory_mb": 1024, "chipset": chipset}, "components": components}


def ensure_body(
    request: VolumeConstructionRequest | str | None, *, disk: str = DISK, readonly: bool = False
) -> dict[str, Any]:
    """An instance with one disk, as Nexus asks for it; without disks where ``request`` is ``None``."""
    components = {}
    if request is not None:
        path = {"bus": 0, "device": 16, "function": 0}
        device = {"type": "virtio_disk", "component": {"backend_id": disk, "pci_path": path}}
        components = {disk: backend(request, readonly=readonly), f"{disk}:device": device}
    return {"properties": properties(), "init": {"method": "Spec", "value": {"spec": spec(**components)}}}


class Plane:
    """What a control plane does to the instance at ``prefix``."""

    def __init__(self, http: httpx2.AsyncClient, prefix: str = "/instance") -> None:
        self.http = http
        self.prefix = prefix

    async def ask(self, method: str, path: str = "", body: Any = None, **headers: str) -> httpx2.Response:
        with trio.fail_after(60):
            return await self.http.request(method, self.prefix + path, json=body, headers=NEWEST | headers)

    async def get(self, path: str = "") -> Any:
        response = await self.ask("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    async def ensure(self, request: VolumeConstructionRequest | str | None, **settings: Any) -> None:
        response = await self.ask("PUT", "", ensure_body(request, **settings))
        assert response.status_code == 201, response.text
        assert response.json() == {"migrate": None}

    async def put_state(self, wanted: str) -> None:
        response = await self.ask("PUT", "/state", wanted)
        assert (response.status_code, response.content) == (204, b""), response.text

    async def seen(self, generation: int) -> dict[str, Any]:
        response = await self.ask("GET", "/state-monitor", {"gen": generation})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def until(self, state: str) -> None:
        """Watch the state until it is ``state``, as a sled agent does."""
        generation = 0
        while True:
            found = await self.seen(generation)
            if found["state"] == state:
                return
            assert found["state"] not in ("Failed", "Destroyed"), found
            generation = found["gen"] + 1

    async def boot(self, request: VolumeConstructionRequest, **settings: Any) -> None:
        await self.ensure(request, **settings)
        await self.put_state("Run")
        await self.until("Running")

    async def stop(self) -> None:
        await self.put_state("Stop")
        await self.until("Destroyed")

    async def replace(self, request: VolumeConstructionRequest | str, disk: str = DISK) -> httpx2.Response:
        text = request if isinstance(request, str) else vcr.dumps(request)
        return await self.ask("PUT", f"/disk/{disk}/vcr", {"vcr_json": text})

    async def status(self, disk: str = DISK) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get(f"/disk/{disk}/status"))["volume_info"]
        return found

    async def disk(self) -> dict[str, Any]:
        """What the host tells about the door of the only disk."""
        (found,) = (await self.get("/disks"))["disks"]
        return dict(found)


@asynccontextmanager
async def client(host: Host, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=application(api(host, **settings)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as http:
        yield http


@asynccontextmanager
async def plane(directory: Path, *, faithful: bool = False, **settings: Any) -> AsyncIterator[Plane]:
    """A control plane with a host of its own in ``directory``."""
    settings = {"reconnect_delay_s": 0.05, "scrub_delay_s": None, "faithful": faithful} | settings
    async with hosting(Settings(directory, **settings)) as host, client(host, faithful=faithful) as http:
        yield Plane(http)


@asynccontextmanager
async def guest(uri: str) -> AsyncIterator[PlainClient]:
    """A guest in front of the disk at ``uri``."""
    where = parse_uri(uri)
    assert where.socket is not None
    with trio.fail_after(60):
        async with await trio.open_unix_socket(where.socket) as stream:
            yield await PlainClient(stream).enter(where.export)


async def flush(disk: PlainClient) -> None:
    answer = await disk.call(p.Command.FLUSH)
    assert answer.errno == 0, answer


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address that takes connections and never says a word."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
