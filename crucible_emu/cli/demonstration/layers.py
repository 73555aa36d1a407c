"""The second act of the demonstration: a disk on top of an image.

The regions that hold the image are served read-only and become the parent of a new, empty disk. The new disk shows the
image at once; what is written to it stays in it. A scrub copies the rest, the parent's processes end, and the disk must
still hold the image with the change.
"""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from crucible_emu.blockio import Kind, Request
from crucible_emu.cli.demonstration.processes import all_downstairs
from crucible_emu.cli.demonstration.regions import Tell, make_regions, request_for
from crucible_emu.cli.demonstration.source import Source
from crucible_emu.geometry import RegionDefinition
from crucible_emu.volume.attach import attach
from crucible_emu.volume.image import digest, submit

NOTE = b"written to the disk on top; the image below stays what it is. "
PIECE_BYTES = 1024 * 1024


async def tell_of_layers(
    source: Source, definition: RegionDefinition, image: list[Path], folder: Path, tell: Tell
) -> tuple[str, str]:
    """BLAKE3 of the image with one block changed: as it must be, and as the disk on top holds it at the end."""
    size = definition.block_size
    block = (NOTE * (size // len(NOTE) + 1))[:size]
    regions = make_regions(folder, ["top-0", "top-1", "top-2"], definition)
    async with all_downstairs(regions) as tops:
        async with all_downstairs(image, read_only=True) as bottoms:
            parent = request_for(definition, [bottom.target for bottom in bottoms], gen=2, read_only=True)
            request = request_for(definition, [top.target for top in tops], gen=1, parent=parent)
            async with attach(request, timeout_s=20) as volume:
                shown = await digest(volume, source.length)
                tell(f"An empty disk on top of the image shows it at once: BLAKE3 {shown[:16]}…")
                await submit(volume, Request(Kind.WRITE, 0, size, memoryview(bytearray(block))))
                await volume.scrub()
                tell("One block is written to it, a scrub copies the rest, and the parent is let go")
        tell("The image's Downstairs processes end; the disk on top stands by itself")
        request = request_for(definition, [top.target for top in tops], gen=2)
        async with attach(request, timeout_s=20) as alone:
            layered = await digest(alone, source.length)
    return changed(source, block), layered


def changed(source: Source, block: bytes) -> str:
    """BLAKE3 of the image whose first block is ``block``."""
    found, left = blake3(), source.length
    with source.path.open("rb") as file:
        found.update(block[:left])
        file.seek(len(block))
        left -= min(left, len(block))
        while left and (piece := file.read(min(left, PIECE_BYTES))):
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()
