"""Cloning a region from the repair service of a Downstairs (on-disk-format.md §4.8).

What it is for: a copy of a read-only region, usually a running snapshot, on another machine. Every extent goes through
the same checked procedure as a repair (:func:`crucible_emu.region.clone.copy_extent`).

What it guarantees: nothing is copied from a source that may still change (its mode is asked first), or into a region of
another shape. Interrupted, it leaves some extents old and some new: doing it again finishes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.downstairs.repair_client import HttpSource, http_source
from crucible_emu.geometry import GeometryError, RegionDefinition
from crucible_emu.region.clone import check_compatible, copy_extent
from crucible_emu.region.view import RegionView
from crucible_emu.wire.messages import SocketAddress

# Bounds the first answers only; the real definition follows with them.
_ANY_REGION = RegionDefinition(512, 1, 1, UUID(int=0))


class CloneSource:
    """A read-only region behind a repair service: its definition and its extents."""

    def __init__(self, files: HttpSource, definition: RegionDefinition) -> None:
        self.files = files
        self.definition = definition


@asynccontextmanager
async def open_source(address: SocketAddress) -> AsyncIterator[CloneSource]:
    """The read-only region at ``address``. Raises :class:`errors.RepairRequestError`,
    :class:`errors.RegionIncompatible` where it is read-write or its definition is none."""
    async with http_source(address, _ANY_REGION) as asked:
        members: Any = await asked.json("/region-info")
        if await asked.json("/region-mode") is not True:
            raise errors.RegionIncompatible("the source is not read-only: run it with --mode ro, or run a snapshot")
    try:
        definition = RegionDefinition.from_json(members if isinstance(members, dict) else {})
    except GeometryError as error:
        raise errors.RegionIncompatible(f"the source says of itself: {error}") from None
    async with http_source(address, definition) as files:
        yield CloneSource(files, definition)


async def clone_from(source: CloneSource, target: Path, progress: Callable[[], None] = lambda: None) -> None:
    """Overwrite every extent of the region in ``target``, which nobody has open; ``progress`` after each.

    Raises what :func:`check_compatible` and :func:`copy_extent` raise.
    """
    view = RegionView.open(target)
    check_compatible(source.definition, view.definition)
    for extent_id in range(view.definition.extent_count):
        await copy_extent(
            view.storage,
            target,
            extent_id,
            view.layout,
            source.files,
            cloning=True,
            in_thread=trio.to_thread.run_sync,
        )
        progress()
