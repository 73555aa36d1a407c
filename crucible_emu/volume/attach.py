"""A disk from a volume construction request, in service while a block runs.

What it is for: :func:`attach` builds what a request describes, brings it into service, and takes it out again when the
block ends, also when that is cancelled: with a last flush, so that nothing acknowledged is only in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from crucible_emu.upstairs.driver import RECONNECT_DELAY_S
from crucible_emu.volume.construction import construct
from crucible_emu.volume.in_service import Observe, active
from crucible_emu.volume.vcr import VolumeConstructionRequest
from crucible_emu.volume.volume import Volume


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
