"""The disk under test: activated as often as a scenario wants, each time with a generation that is due.

What it guarantees: a generation that is too low is raised to one above what the replicas say, once they say it, and no
two activations of one :class:`Subject` have the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import trio

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume import construction, vcr
from crucible_emu.volume.attach import attach
from crucible_emu.volume.in_service import in_service

RECONNECT_DELAY_S = 1.0
REPAIR_S_MAX = 600.0
POLL_S = 0.02
TRIES_MAX = 5


class Interrupted(Exception):
    """The run was ended from outside; the disk was left in order."""


class Subject:
    """The disk of a volume construction request. ``timeout_s``: how long an activation may take."""

    def __init__(
        self, request: vcr.VolumeConstructionRequest, *, generation: int | None = None, timeout_s: float | None = None
    ) -> None:
        self.request = request
        self.generation = generation_of(request) if generation is None else generation
        self.timeout_s = timeout_s
        self.remember: Callable[[int], None] = lambda generation: None
        """Called with each generation before it is used."""
        self._scopes: set[trio.CancelScope] = set()

    def interrupt(self) -> bool:
        """End every use of the disk that is in service, whose blocks then raise :class:`Interrupted`; whether there was
        one. The block is cancelled and not the disk, whose connections are needed for its last flush."""
        for scope in self._scopes:
            scope.cancel()
        return bool(self._scopes)

    @contextmanager
    def _interruptible(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def next_request(self) -> vcr.VolumeConstructionRequest:
        """The request with a generation that no activation of this object had."""
        self.remember(self.generation)
        self.generation += 1
        return with_generation(self.request, self.generation - 1)

    @asynccontextmanager
    async def active(self) -> AsyncIterator[BlockDevice]:
        """The disk, in service inside the block."""
        for _ in range(TRIES_MAX):
            entered = False
            try:
                async with self._in_service() as device:
                    entered = True
                    with self._interruptible() as scope:
                        yield device
                if scope.cancelled_caught:
                    raise Interrupted
                return
            except (errors.NegotiationError, BaseExceptionGroup) as error:
                actual = None if entered else generation_in_use(error)
                if actual is None:
                    raise
                self.generation = max(self.generation, actual + 1)
        raise errors.IoError(f"others raised the generation {TRIES_MAX} times meanwhile: the disk is in use")

    def _in_service(self) -> AbstractAsyncContextManager[BlockDevice]:
        # A tester stops replicas and starts them again, and need not wait ten seconds for each.
        return attach(self.next_request(), timeout_s=self.timeout_s, reconnect_delay_s=RECONNECT_DELAY_S)

    # -- a single region set, whose replicas can be looked at and replaced ------------------------------------------

    def region(self) -> vcr.RegionRequest:
        """Raises :class:`errors.UsageError` where the disk is more than one region set."""
        return single_region(self.request)

    def upstairs(self) -> Upstairs:
        """An Upstairs that is not running yet."""
        return construction.build(single_region(self.next_request()), reconnect_delay_s=RECONNECT_DELAY_S)

    @asynccontextmanager
    async def serve(self, upstairs: Upstairs) -> AsyncIterator[Guest]:
        """The disk of ``upstairs``, in service inside the block."""
        async with in_service(upstairs, timeout_s=self.timeout_s) as guest:
            with self._interruptible() as scope:
                yield guest
        if scope.cancelled_caught:
            raise Interrupted

    def replaced(self, old: str, new: str) -> None:
        """From now on the request names ``new`` instead of ``old``."""
        region = self.region()
        target = tuple(new if each == old else each for each in region.opts.target)
        self.request = region.model_copy(update={"opts": region.opts.model_copy(update={"target": target})})


def single_region(request: vcr.VolumeConstructionRequest) -> vcr.RegionRequest:
    """The one region set of ``request``. Raises :class:`errors.UsageError` where the disk is more than that."""
    if isinstance(request, vcr.RegionRequest):
        return request
    if isinstance(request, vcr.VolumeRequest) and request.read_only_parent is None and len(request.sub_volumes) == 1:
        return single_region(request.sub_volumes[0])
    raise errors.UsageError("this works on a disk of one region set only: name a VCR of that shape")


def generation_of(request: vcr.VolumeConstructionRequest) -> int:
    """The highest generation in ``request``, at least 1."""
    if isinstance(request, vcr.RegionRequest):
        return max(1, request.gen)
    if isinstance(request, vcr.VolumeRequest):
        return max((generation_of(each) for each in request.sub_volumes), default=1)
    return 1


def with_generation(request: vcr.VolumeConstructionRequest, generation: int) -> vcr.VolumeConstructionRequest:
    """``request`` with that generation in every region set that is written to."""
    if isinstance(request, vcr.RegionRequest):
        return request.model_copy(update={"gen": generation})
    if isinstance(request, vcr.VolumeRequest):
        parts = tuple(with_generation(each, generation) for each in request.sub_volumes)
        return request.model_copy(update={"sub_volumes": parts})
    return request


def generation_in_use(error: BaseException) -> int | None:
    """The generation that replicas hold, where that is what an activation failed with."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, errors.NegotiationError) and isinstance(error.detail, errors.GenerationNumberTooLow):
        _requested, actual = error.detail.payload
        return int(str(actual))
    return None


def phases(upstairs: Upstairs) -> list[Phase]:
    """Where the three replicas are."""
    return [client.state.phase for client in upstairs.core.clients]


def all_active(upstairs: Upstairs) -> bool:
    return all(phase is Phase.ACTIVE for phase in phases(upstairs))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state of an Upstairs; it has no events for states, and a tester has time."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(POLL_S)


async def until_all_active(upstairs: Upstairs) -> None:
    """Wait until all three replicas take part. Raises :class:`errors.IoError` after :data:`REPAIR_S_MAX`."""
    with trio.move_on_after(REPAIR_S_MAX):
        await until(lambda: all_active(upstairs))
        return
    states = ", ".join(str(client.state) for client in upstairs.core.clients)
    raise errors.IoError(f"the replicas are not all active after {REPAIR_S_MAX:g} s: {states}")
