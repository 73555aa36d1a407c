"""What the demonstration does, step by step, and the proof at its end.

Three Downstairs processes, one Upstairs, a real NBD client. While the client writes the image, one Downstairs is killed
with SIGKILL; the disk goes on with two. The killed one returns and gets what it missed; another is replaced for good by
an empty region. Then everything is read back and compared with BLAKE3, and the three region digests must be equal. At
last a disk is layered on top of the image (``layers``). The verdict is computed from these digests, never assumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from blake3 import blake3

from crucible_emu import nbd
from crucible_emu.blockio import Allocation, BlockDevice, Completed, Kind, Request
from crucible_emu.cli.demonstration.healing import Healing
from crucible_emu.cli.demonstration.layers import tell_of_layers
from crucible_emu.cli.demonstration.processes import (
    Client,
    DownstairsProcess,
    all_downstairs,
    installed_client,
    keep_downstairs,
    run_client,
)
from crucible_emu.cli.demonstration.regions import Tell, definition_for, make_regions, request_for
from crucible_emu.cli.demonstration.source import Source
from crucible_emu.cli.sizes import format_size
from crucible_emu.errors import IoError
from crucible_emu.geometry import BLOCK_SIZE_DEFAULT
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView
from crucible_emu.volume import vcr
from crucible_emu.volume.attach import attach
from crucible_emu.volume.image import copy_in, digest

VICTIM, REPLACED = 1, 2
RECONNECT_DELAY_S = 0.2
"""The real ten seconds between two attempts would be most of the story."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, and whether it proves what was promised.

    ``region_digests``: of the three replicas at the end. ``layered_blake3``: of the disk on top of the image, which was
    written to at one place; ``expected_blake3``: of a copy of the image with the same change.
    """

    source_blake3: str
    read_back_blake3: str
    region_digests: tuple[str, str, str]
    expected_blake3: str
    layered_blake3: str

    @property
    def replicas_equal(self) -> bool:
        return len(set(self.region_digests)) == 1

    @property
    def ok(self) -> bool:
        return (
            self.source_blake3 == self.read_back_blake3
            and self.replicas_equal
            and self.expected_blake3 == self.layered_blake3
        )


async def tell_story(source: Source, folder: Path, tell: Tell) -> Verdict:
    """Everything but the image; ``folder`` holds regions and copies."""
    definition = definition_for(source.length)
    regions = make_regions(folder, ["region-0", "region-1", "region-2"], definition)
    extents = "1 extent" if definition.extent_count == 1 else f"{definition.extent_count} extents"
    tell(f"Three regions of {extents}, {format_size(definition.size_bytes)} each, every block with its hash")
    client = installed_client()
    out = folder / "read-back.raw"
    # The processes that come later must outlive the disk, so they are tasks of a nursery around it.
    async with trio.open_nursery() as processes, AsyncExitStack() as stack:
        stack.callback(processes.cancel_scope.cancel)
        mirrors = await stack.enter_async_context(all_downstairs(regions))
        tell(f"Three Downstairs processes: {', '.join(mirror.target for mirror in mirrors)}")
        request = request_for(definition, [mirror.target for mirror in mirrors], gen=1)
        volume = await stack.enter_async_context(attach(request, timeout_s=20, reconnect_delay_s=RECONNECT_DELAY_S))
        half = source.data_bytes // 2

        def kill() -> None:
            mirrors[VICTIM].kill()
            tell(f"... SIGKILL to Downstairs {VICTIM} after {format_size(half)}: the disk goes on with two")

        device = Tripwire(volume, half, kill)
        uri = await _serve(stack, device, folder)
        tell(f"One disk over all three, at {uri}")
        await _write(whole_blocks(source, folder), device, client, uri, tell)
        healing = Healing(volume, tell)
        await processes.start(keep_downstairs, regions[VICTIM], mirrors[VICTIM].port)
        await healing.returned(VICTIM)
        (spare,) = make_regions(folder, ["region-3"], definition)
        new: DownstairsProcess = await processes.start(keep_downstairs, spare)
        await healing.replaced(REPLACED, mirrors[REPLACED].target, new.target)
        mirrors[REPLACED].kill()
        regions[REPLACED] = spare
        targets = [new.target if client == REPLACED else mirror.target for client, mirror in enumerate(mirrors)]
        (folder / "vcr.json").write_text(vcr.dumps(request_for(definition, targets, gen=2)), encoding="utf-8")
        read_back = await _read_back(source, device, client, uri, out, tell)
    first, second, third = (region_digest(RegionView.open(region)).region for region in regions)
    expected, layered = await tell_of_layers(source, definition, regions, folder, tell)
    return Verdict(source.blake3, read_back, (first, second, third), expected, layered)


def whole_blocks(source: Source, folder: Path) -> Source:
    """``source``, or a copy of it that is padded with zeros to whole blocks: clients write nothing less."""
    length = -(-source.length // BLOCK_SIZE_DEFAULT) * BLOCK_SIZE_DEFAULT
    if length == source.length:
        return source
    padded = folder / "padded.raw"
    shutil.copyfile(source.path, padded)
    with padded.open("r+b") as file:
        file.truncate(length)
    return replace(source, path=padded)


class Tripwire:
    """A block device that calls ``action`` once, in the middle of the work: when ``after_bytes`` were written."""

    def __init__(self, device: BlockDevice, after_bytes: int, action: Callable[[], None]) -> None:
        self._device = device
        self._left = after_bytes
        self._action: Callable[[], None] | None = action

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def block_size(self) -> int:
        return self._device.block_size

    @property
    def read_only(self) -> bool:
        return self._device.read_only

    def submit(self, requests: list[Request], completed: Completed) -> None:
        self._device.submit(requests, completed)
        self._left -= sum(request.length for request in requests if request.kind is Kind.WRITE)
        if self._left <= 0 and self._action is not None:
            action, self._action = self._action, None
            action()

    async def wait_for_room(self) -> None:
        await self._device.wait_for_room()

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        return await self._device.allocation(offset, length)

    @property
    def tripped(self) -> bool:
        return self._action is None


async def _serve(stack: AsyncExitStack, device: BlockDevice, folder: Path) -> str:
    listener = nbd.listen_on_unix(folder / "disk.sock")
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    server = nbd.Server({"": nbd.Export(device)})
    await nursery.start(server.serve, [listener])
    return str(listener.uri())


async def _write(source: Source, device: Tripwire, client: Client | None, uri: str, tell: Tell) -> None:
    """Write the image and flush; one Downstairs is killed on the way."""
    who = client.name if client else "the disk itself (no NBD client is installed)"
    tell(f"{who} writes {format_size(source.data_bytes)} of data through the mirror ...")
    if client is None:
        await copy_in(device, source.path, lambda _: None)
    else:
        await run_client(client.copy_in(source.path, uri))
    if not device.tripped:
        raise IoError("the image was through before a Downstairs could be killed: take a larger one")
    tell("... written and flushed; two replicas hold it durably")


async def _read_back(
    source: Source, device: BlockDevice, client: Client | None, uri: str, out: Path, tell: Tell
) -> str:
    """BLAKE3 of what the disk gives back, the length of the image."""
    if client is None:
        tell("Reading everything back through the mirror ...")
        return await digest(device, source.length)
    tell(f"{client.name} reads everything back ...")
    await run_client(client.copy_out(uri, out))
    found = blake3()
    left = source.length
    with out.open("rb") as file:
        while left and (piece := file.read(min(left, 1024 * 1024))):
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()
