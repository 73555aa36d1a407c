"""What the tests of whole disks share: short requests, regions, Downstairs on loopback, a damaged file."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import trio
from trio.testing import wait_all_tasks_blocked

from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.downstairs.server import DownstairsServer, ServerOptions
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.layout import ExtentLayout, extent_path
from crucible_emu.region.verify import Failure, verify_region
from crucible_emu.region.view import RegionView
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.construction import build
from crucible_emu.volume.in_service import in_service
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
DISK = UUID(int=0xD15C)

# -- requests ---------------------------------------------------------------------------------------------------------


def write_request(offset: int, data: bytes, **flags: bool) -> Request:
    return Request(Kind.WRITE, offset, len(data), memoryview(bytearray(data)), **flags)


def read_request(offset: int, length: int) -> Request:
    """A read into memory that is not zeros, so that what nobody fills shows."""
    return Request(Kind.READ, offset, length, memoryview(bytearray(b"\xee") * length))


def zeroes_request(offset: int, length: int, **flags: bool) -> Request:
    return Request(Kind.WRITE_ZEROES, offset, length, **flags)


def trim_request(offset: int, length: int, **flags: bool) -> Request:
    return Request(Kind.TRIM, offset, length, **flags)


class Batch:
    """Requests submitted in one call. A request that is reported twice fails the test at once."""

    def __init__(self, disk: BlockDevice, requests: list[Request]) -> None:
        self.requests = requests
        self.order: list[Request] = []
        self._pending = {id(request) for request in requests}
        self._all = trio.Event()
        disk.submit(requests, self._completed)
        if not requests:
            self._all.set()

    def _completed(self, done: list[Request]) -> None:
        for request in done:
            self._pending.remove(id(request))
            self.order.append(request)
        if not self._pending:
            self._all.set()

    @property
    def pending(self) -> int:
        return len(self._pending)

    async def wait(self) -> list[Request]:
        with trio.fail_after(60):
            await self._all.wait()
        return self.requests


async def do(disk: BlockDevice, *requests: Request) -> None:
    """Submit together and wait. Raises the first error."""
    for request in await Batch(disk, list(requests)).wait():
        if request.error is not None:
            raise request.error


async def write(disk: BlockDevice, offset: int, data: bytes, **flags: bool) -> None:
    await do(disk, write_request(offset, data, **flags))


async def read(disk: BlockDevice, offset: int, length: int) -> bytes:
    request = read_request(offset, length)
    await do(disk, request)
    assert request.buffer is not None
    return bytes(request.buffer)


async def everything(disk: BlockDevice) -> bytes:
    """All bytes of a small disk."""
    return await read(disk, 0, disk.size_bytes)


async def flush(disk: BlockDevice) -> None:
    await do(disk, Request(Kind.FLUSH))


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from block to block and from seed to seed, none of them a block of zeros."""
    unit = bytes((index * 7 + seed * 31) % 251 + 1 for index in range(509))
    return (unit * (length // len(unit) + 1))[:length]


# -- regions ----------------------------------------------------------------------------------------------------------


def make_regions(
    folder: Path,
    *,
    block_size: int = 512,
    blocks_per_extent: int = 8,
    extent_count: int = 4,
    encrypted: bool = False,
    count: int = 3,
) -> list[Path]:
    """Empty regions of one geometry below ``folder``."""
    paths = []
    for client in range(count):
        definition = RegionDefinition(block_size, blocks_per_extent, extent_count, uuid4(), encrypted)
        paths.append(folder / f"region-{client}")
        Region.create(paths[-1], definition).close()
    return paths


def digests(regions: list[Path]) -> set[str]:
    """The different contents among these regions: one where the mirror is whole."""
    return {region_digest(RegionView.open(region)).region for region in regions}


def failures(region: Path) -> list[Failure]:
    """What verify finds wrong with a region."""
    return list(verify_region(RegionView.open(region)))


def damage(region: Path, block: int, count: int = 1) -> None:
    """Flip bytes of the stored blocks, as a failing medium does; nobody may have the region open."""
    definition = RegionView.open(region).definition
    layout = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    for number in range(block, block + count):
        extent_id, inside = divmod(number, definition.blocks_per_extent)
        with open(extent_path(region, extent_id), "r+b") as file:
            assert inside < layout.blocks
            file.seek(inside * definition.block_size + 5)
            stored = file.read(3)
            file.seek(-3, 1)
            file.write(bytes(byte ^ 0x5A for byte in stored))


def spoil_contexts(region: Path, block: int) -> None:
    """Make both context slots of a block undecodable."""
    definition = RegionView.open(region).definition
    layout = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    extent_id, inside = divmod(block, definition.blocks_per_extent)
    with open(extent_path(region, extent_id), "r+b") as file:
        for which in (0, 1):
            file.seek(layout.slot_offset(which, inside))
            file.write(b"\x07")


# -- Downstairs on loopback -------------------------------------------------------------------------------------------


@dataclass
class Member:
    """A Downstairs of this process behind a TCP port, or a unix socket. :meth:`stop` is a machine that is switched
    off."""

    region: Region
    server: DownstairsServer
    port: int
    scope: trio.CancelScope
    ended: trio.Event

    @property
    def target(self) -> str:
        return self.server.options.unix_path or f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """End it; its region is closed, and what was not flushed stays in the files, dirty."""
        self.scope.cancel()
        await self.ended.wait()


class RegionSet:
    """Three regions and their Downstairs, each of which can be ended and started again at its port."""

    def __init__(self, nursery: trio.Nursery, paths: list[Path]) -> None:
        self._nursery = nursery
        self.paths = paths
        self.members: list[Member] = []

    async def start(self, client: int, *, port: int = 0, **options: Any) -> Member:
        member: Member = await self._nursery.start(self._serve, self.paths[client], port, options)
        if client < len(self.members):
            self.members[client] = member
        else:
            self.members.append(member)
        return member

    async def _serve(
        self, path: Path, port: int, options: dict[str, Any], *, task_status: trio.TaskStatus[Member]
    ) -> None:
        read_only = options.get("read_only", False)
        share = options.get("share", False)
        options = {name: value for name, value in options.items() if name not in ("read_only", "share")}
        settings = {"host": "127.0.0.1", "port": port, "repair_port": 0} | options
        ended = trio.Event()
        try:
            with Region.open(path, read_only=read_only, share=share) as region:
                server = DownstairsServer(region, ServerOptions(**settings))
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.run)
                    task_status.started(Member(region, server, server.address.port, nursery.cancel_scope, ended))
        finally:
            ended.set()

    def request(
        self, generation: int = 1, *, key: str | None = None, read_only: bool = False, **geometry: int
    ) -> RegionRequest:
        """The volume construction request of a disk over these Downstairs; ``geometry`` to lie about it."""
        found = self.members[0].region.definition
        members = {
            "block_size": found.block_size,
            "blocks_per_extent": found.blocks_per_extent,
            "extent_count": found.extent_count,
        } | geometry
        targets = tuple(member.target for member in self.members)
        opts = CrucibleOpts.model_validate(
            {"id": DISK, "target": targets, "key": key, "read_only": read_only, "lossy": False}
        )
        return RegionRequest(type="region", opts=opts, gen=generation, **members)

    def upstairs(self, generation: int = 1, *, reconnect_delay_s: float = 0.05, **settings: Any) -> Upstairs:
        """An Upstairs for :meth:`request`, not yet running."""
        return build(self.request(generation, **settings), reconnect_delay_s=reconnect_delay_s)

    @asynccontextmanager
    async def disk(self, generation: int = 1, **settings: Any) -> AsyncIterator[Guest]:
        """The disk over these Downstairs, in service; see :meth:`upstairs`."""
        async with in_service(self.upstairs(generation, **settings), timeout_s=30) as guest:
            yield guest


@asynccontextmanager
async def region_set(paths: list[Path], **options: dict[int, Any]) -> AsyncIterator[RegionSet]:
    """Serve three regions on loopback while the block runs; server options by client: ``faults={1: Faults(...)}``."""
    async with trio.open_nursery() as nursery:
        servers = RegionSet(nursery, paths)
        for client in range(len(paths)):
            await servers.start(client, **{name: by[client] for name, by in options.items() if client in by})
        yield servers
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served_on_sockets(
    paths: list[Path], sockets: Path, clients: Sequence[int] = (0, 1, 2), share: bool = True
) -> AsyncIterator[RegionSet]:
    """The same, these ``clients`` at unix sockets in the folder ``sockets``, where they ``share`` memory."""
    unix = {client: str(sockets / f"s{client}") for client in clients}
    async with region_set(paths, unix_path=unix, share=dict.fromkeys(unix, share)) as servers:
        yield servers


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for a state that other tasks bring about."""
    with trio.fail_after(timeout_s):
        while not condition():
            await wait_all_tasks_blocked(0.001)
