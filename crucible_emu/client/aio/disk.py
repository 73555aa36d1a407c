"""A disk for asyncio: ranges of bytes, and whole files in and out.

What it is for: :class:`Disk` is what :func:`crucible_emu.client.aio.open` returns, whatever kind it is.
"""

from __future__ import annotations

import os

from crucible_emu.client.aio.copying import copy_in, copy_out
from crucible_emu.client.aio.device import Device
from crucible_emu.client.copying import Copied, Pace, Progress


class Disk(Device):
    """See :class:`~crucible_emu.client.aio.device.Device` for reading, writing and the rest."""

    async def copy_in(
        self,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        progress: Progress | None = None,
        pace: Pace | None = None,
    ) -> Copied:
        """Write the local file ``path`` to the disk from ``offset`` on, and flush where that is offered.

        Holes of the file and long zeros are not sent where the disk can zero. Raises :class:`UsageError` where the
        file does not fit, :class:`OSError` from either side. A copy that fails or is cancelled has changed a part.
        """
        return await copy_in(self, path, offset, progress, pace or Pace())

    async def copy_out(
        self,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        pace: Pace | None = None,
    ) -> Copied:
        """Read ``length`` bytes (to the end by default) from ``offset`` on into the new local file ``path``.

        Zeros are left out of the file as holes. The file appears, or replaces an older one, when it is complete; a
        copy that fails or is cancelled leaves nothing. Raises :class:`OSError` from either side.
        """
        length = self.size_bytes - offset if length is None else length
        self.check_range("copy", offset, length)
        return await copy_out(self, path, offset, length, progress, pace or Pace())
