"""What the pantry's tests share: a pantry in this process with a client at its HTTP API, and requests for disks."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import trio
from disk_rig import RegionSet, make_regions, region_set

from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.operations import BASE, api
from crucible_emu.service import application
from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest

BLOCK = 4096
SIZE = 1 << 20
CHUNK = 512 * 1024
NEWEST = "2.0.0"
PATIENCE_S = 60


class Answered:
    """An answer: ``status``, and what its JSON says."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.json: Any = json.loads(response.content) if response.content else None
        self.request_id = response.headers.get("x-request-id")
        if self.status >= 400:
            assert set(self.json) in ({"request_id", "message"}, {"request_id", "message", "error_code"})
            assert self.json["request_id"] == self.request_id

    @property
    def message(self) -> str:
        found: str = self.json["message"]
        return found


class Caller:
    """A client at the API of ``pantry``."""

    def __init__(self, pantry: Pantry, http: httpx2.AsyncClient) -> None:
        self.pantry = pantry
        self._http = http

    async def call(self, method: str, path: str, body: Any = None, version: str | None = NEWEST) -> Answered:
        headers = {} if version is None else {"api-version": version}
        with trio.fail_after(PATIENCE_S):
            return Answered(await self._http.request(method, BASE + path, json=body, headers=headers))

    async def do(self, method: str, path: str, body: Any = None) -> Any:
        """What the answer says; it must be one of success."""
        answer = await self.call(method, path, body)
        assert answer.status in (200, 204), answer.json
        return answer.json

    async def refused(self, status: int, method: str, path: str, body: Any = None) -> str:
        """Why it is refused, which it must be, with ``status``."""
        answer = await self.call(method, path, body)
        assert answer.status == status, answer.json
        return answer.message

    # -- by operation --

    async def attach(self, vcr: VolumeConstructionRequest, volume: str = "v") -> Any:
        return await self.do("POST", f"/volume/{volume}", attach_body(vcr))

    async def attach_in_background(self, vcr: VolumeConstructionRequest, job: str = "j", volume: str = "v") -> None:
        await self.do("POST", f"/volume/{volume}/background", attach_body(vcr, job))

    async def status(self, volume: str = "v") -> Any:
        return await self.do("GET", f"/volume/{volume}")

    async def detach(self, volume: str = "v") -> None:
        await self.do("DELETE", f"/volume/{volume}")

    async def write(self, offset: int, data: bytes, volume: str = "v") -> None:
        await self.do("POST", f"/volume/{volume}/bulk-write", write_body(offset, data))

    async def read(self, offset: int, size: int, volume: str = "v") -> bytes:
        answer = await self.do("POST", f"/volume/{volume}/bulk-read", {"offset": offset, "size": size})
        return base64.b64decode(answer["base64_encoded_data"])

    async def start(self, what: str, body: Any = None, volume: str = "v") -> str:
        """Begin a job; its id."""
        answer = await self.do("POST", f"/volume/{volume}/{what}", body)
        assert list(answer) == ["job_id"]
        job: str = answer["job_id"]
        return job

    async def ok(self, job: str) -> bool:
        answer = await self.do("GET", f"/job/{job}/ok")
        assert (await self.do("GET", f"/job/{job}/is-finished")) == {"job_is_finished": True}
        result: bool = answer["job_result_ok"]
        return result

    async def job(self, job: str) -> Any:
        return await self.do("GET", f"/job/{job}")


@asynccontextmanager
async def running_pantry(*, faithful: bool = False, lenient: bool = False, **settings: Any) -> AsyncIterator[Caller]:
    """A pantry, while the block runs; leaving the block takes its volumes out of service."""
    pantry = Pantry(**{"reconnect_delay_s": 0.05} | settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(pantry.run)
        transport = httpx2.ASGITransport(app=application(api(pantry, faithful=faithful, lenient=lenient)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://pantry") as http:
            yield Caller(pantry, http)
        nursery.cancel_scope.cancel()


def attach_body(vcr: VolumeConstructionRequest, job: str | None = None) -> dict[str, Any]:
    body = {"volume_construction_request": vcr.model_dump(mode="json")}
    return body if job is None else {"job_id": job, **body}


def write_body(offset: int, data: bytes) -> dict[str, Any]:
    return {"offset": offset, "base64_encoded_data": base64.b64encode(data).decode()}


@asynccontextmanager
async def replicas(
    folder: Path, *, count: int = 3, encrypted: bool = False, **options: Any
) -> AsyncIterator[RegionSet]:
    """``count`` Downstairs of a mebibyte in 16 extents below ``folder``, the first three of them a region set."""
    geometry = {"block_size": BLOCK, "blocks_per_extent": 16, "extent_count": 16}
    paths = make_regions(folder, count=count, encrypted=encrypted, **geometry)
    async with region_set(paths, **options) as servers:
        yield servers


def request_of(servers: RegionSet, gen: int = 1, *, number: int = 0, **settings: Any) -> RegionRequest:
    """The request of the region set of the first three; ``number`` tells the Upstairs of several apart."""
    request = servers.request(gen, **settings) if len(servers.members) == 3 else _of_three(servers, gen, settings)
    return request.model_copy(update={"opts": request.opts.model_copy(update={"id": UUID(int=number + 1)})})


def _of_three(servers: RegionSet, gen: int, settings: dict[str, Any]) -> RegionRequest:
    members, servers.members = servers.members, servers.members[:3]
    try:
        return servers.request(gen, **settings)
    finally:
        servers.members = members


def volume_of(
    *parts: VolumeConstructionRequest, parent: VolumeConstructionRequest | None = None, volume_id: UUID | None = None
) -> VolumeRequest:
    return VolumeRequest(
        type="volume", id=volume_id or uuid4(), block_size=BLOCK, sub_volumes=parts, read_only_parent=parent
    )


def raised(vcr: VolumeRequest, gen: int) -> VolumeRequest:
    """The request with another generation in its sub-volumes."""
    parts = tuple(part.model_copy(update={"gen": gen}) for part in vcr.sub_volumes)
    return vcr.model_copy(update={"sub_volumes": parts})


def moved(request: RegionRequest, client: int, target: str, gen: int | None = None) -> RegionRequest:
    """The request with another target."""
    targets = list(request.opts.target)
    targets[client] = target
    opts = request.opts.model_copy(update={"target": tuple(targets)})
    return request.model_copy(update={"opts": opts, "gen": request.gen if gen is None else gen})
