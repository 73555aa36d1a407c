"""What is done when a region is opened (on-disk-format.md §1.5), in this order.

1. What an interrupted repair left is settled, and old SQLite extents are migrated; a read-only open changes nothing
   and shows such extents as they are.
2. Blocks that were torn in the middle of a flush are put in place again (:mod:`redo`).
3. Every extent is synced, checked, and recovered if it is dirty (:meth:`Extents.load`).
4. Flushes that are in the journal are carried to the extents (:mod:`journaled`). A read-only open, which must not
   change anything, refuses such a region.

The first extent that cannot be opened fails the whole region, as in the real program.
"""

from __future__ import annotations

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.logs import get_logger
from crucible_emu.region import directory, journaled, layout, redo, repair_files
from crucible_emu.region.extent import Extents
from crucible_emu.region.reading import Reader
from crucible_emu.region.storage import explain
from crucible_emu.region.view import open_extent

log = get_logger(__name__)


def load(extents: Extents, reader: Reader, definition: RegionDefinition, *, marked: bool) -> None:
    """Bring the region's files into order and load all extents. ``marked``: its definition says that there may be a
    journal. Raises a CrucibleError, and :class:`directory.Unsettled` where a region is to be read that has one."""
    storage = extents.storage
    if extents.read_only:
        directory.refuse_unsettled(storage, extents.path)
    beside = directory.names_beside_extents(storage, extents.path, extents.count)
    try:
        for extent_id in beside:
            _settle(extents, extent_id)
        if not extents.read_only:
            redo.replay(extents)
    except OSError as error:
        raise explain(error, "opening the region", extents.path) from error
    databases = [each for each, names in beside.items() if any(name.endswith(".db") for name in names)]
    legacy = set(databases if extents.read_only else ())
    for extent_id in legacy:
        _open_legacy(extents, reader, extent_id)
    try:
        extents.load([each for each in range(extents.count) if each not in legacy])
    except errors.MissingContextSlot:
        if extents.read_only and storage.exists(extents.path / redo.REDO_NAME):
            log.warning("a flush was cut off: open the region read-write once", region=str(extents.path))
        raise
    if not extents.read_only:
        journaled.settle(extents, definition, marked=marked)


def _settle(extents: Extents, extent_id: int) -> None:
    geometry = extents.layout
    left = repair_files.settle_leftovers(extents.storage, extents.path, extent_id, geometry, extents.read_only)
    if extents.read_only and any(name.endswith(repair_files.REPLACE) for name in left):
        # It may even be half overwritten; a read-write open would finish that.
        log.warning("a repair is not finished; the extent is shown as it is", extent=extent_id)


def _open_legacy(extents: Extents, reader: Reader, extent_id: int) -> None:
    """An old SQLite extent, opened read-only: its contexts come from its database (§3)."""
    path = layout.extent_path(extents.path, extent_id)
    try:
        view = open_extent(extents.storage, path, extent_id, extents.layout)
    except OSError as error:
        raise explain(error, "opening the extent", path) from error
    reader.legacy[extent_id] = view
    extents.gen_number[extent_id] = view.metadata.gen_number
    extents.flush_number[extent_id] = view.metadata.flush_number
    extents.dirty[extent_id] = view.metadata.dirty
