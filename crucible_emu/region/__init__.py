"""Extents on disk, byte for byte as the real program keeps them (``docs/decisions.md``, on-disk-format.md).

``region``      :class:`Region`: the one thing that others use
``extent``      numbers, active bitmaps and files of all extents of a region
``layout``      the extent file, byte by byte (pure)
``staging``, ``contexts``, ``memory``   un-flushed blocks and newest contexts, as arrays
``flush``, ``redo``   the phases of a flush; blocks bigger than a page
``journal``, ``journaled``   flushes in quick succession: the file, and what is in it and not in the extents
``together``    flushes of several regions, with one sync for all
``bounds``      what may be asked of a region
``inplace``     the policies that write at once, the real program's order of system calls among them
``policy``      which policy does what
``directory``, ``opening``   making a region, and what is done when one is opened
``reading``, ``writing``    the two halves of :class:`Region`
``scatter``     scattered blocks into few writes (pure)
``storage``     the disk as a parameter
``statistics``  what a region says of itself

Around it: ``view`` (looking without opening), ``verify``, ``dump``, ``digest``, ``extent_info``, ``transfer`` (images
in and out), ``snapshot``, ``clone`` and ``repair_files`` (whole extents from another replica), ``file_copy``,
``sqlite_extent``.
"""

from crucible_emu.region.flush import FlushWork
from crucible_emu.region.policy import SyncPolicy
from crucible_emu.region.region import STAGED_BYTES_MAX, Region
from crucible_emu.region.statistics import RegionStatistics
from crucible_emu.region.storage import OsStorage, Storage

__all__ = ["STAGED_BYTES_MAX", "FlushWork", "OsStorage", "Region", "RegionStatistics", "Storage", "SyncPolicy"]
