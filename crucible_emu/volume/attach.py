"""A disk from a volume construction request, in service while a block runs.

What it is for: :func:`attach` builds what a request describes, brings it into service, and takes it out again when the
block ends, also when that is cancelled: with a last flush, so that nothing acknowledged is only in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import trio

from crucible_emu.errors import CrucibleError
from crucible_emu.upstairs.driver import RECONNECT_DELAY_S, Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.construction import Observe, build, construct
from crucible_emu.volume.kept_running import kept_running
from crucible_emu.volume.region_set import RegionSet
from crucible_emu.volume.vcr import VolumeConstructionRequest
from crucible_emu.volume.volume import Volume

__all__ = ["active", "attach", "build", "in_service"]

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


@asynccontextmanager
async def attach(
    request: VolumeConstructionRequest,
    *,
    generation: int | None = None,
    timeout_s: float | None = None,
    reconnect_delay_s: float = RECONNECT_DELAY_S,
    observe: Observe | None = None,
) -> AsyncIterator[Volume]:
    """The disk that ``request`` describes, active inside the block: each region set with the generation that it is
    given there, or all with ``generation``. ``observe`` is told of each Upstairs before it runs. Raises
    :class:`~crucible_emu.errors.UsageError`, :class:`~crucible_emu.errors.CrucibleError`."""
    async with AsyncExitStack() as stack:
        volume = await construct(request, stack, reconnect_delay_s=reconnect_delay_s, observe=observe)
        async with active(volume, generation=generation, timeout_s=timeout_s):
            yield volume
