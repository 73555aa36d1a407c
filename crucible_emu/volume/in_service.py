"""Disks in service while a block runs.

What it is for: whoever has built a disk, from whatever document, brings it into service here, and out of it again when
the block ends.

What it guarantees: leaving takes place also where the block is cancelled, with a last flush, so that nothing
acknowledged is only in memory. *Optimisation*: nothing here needs the model of volume documents, whose library is 4
MiB.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from crucible_emu.errors import CrucibleError
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.kept_running import kept_running
from crucible_emu.volume.region_set import RegionSet

Observe = Callable[[Upstairs, str | None], None]
"""Told of each Upstairs that was built, before it runs, and of the control address that its request names."""

B = TypeVar("B", bound=Backend)


@asynccontextmanager
async def active(backend: B, *, generation: int | None = None, timeout_s: float | None = None) -> AsyncIterator[B]:
    """``backend``, running and active inside the block. Leaving it flushes and deactivates, also when cancelled; a
    flush that fails then is raised, unless the block failed with an error of the disk itself, which says more."""
    async with kept_running(backend.run):
        await backend.activate(generation, timeout_s)
        failed = False
        try:
            yield backend
        except CrucibleError:
            failed = True
            raise
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await backend.leave_service()
                except CrucibleError:
                    if not failed:
                        raise


@asynccontextmanager
async def in_service(
    upstairs: Upstairs, *, generation: int | None = None, timeout_s: float | None = None
) -> AsyncIterator[Guest]:
    """The disk of ``upstairs``, active inside the block; see :func:`active`."""
    async with active(RegionSet(upstairs), generation=generation, timeout_s=timeout_s) as region_set:
        yield region_set.guest
