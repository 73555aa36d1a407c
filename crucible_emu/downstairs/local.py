"""A Downstairs in the same process as its Upstairs: no sockets, no encoding, no task per request.

What it is for: the fastest way to a region. Messages are handed over as they are and go through the same sessions,
takeover rules and job order as over a socket. Two shortcuts go past even those: a train of writes
(:meth:`LocalConnection.write`) and a read of what is in memory (:meth:`LocalConnection.read_cached`) are plain calls.

Why the shortcuts are safe: the Upstairs relies on the order of its calls (``in_order``), and a shortcut is taken only
when nothing that must not be passed is under way; otherwise it says so and the same job goes as a message. Hashes are
not verified, because no trust changes hands: they were computed from the very memory that is written.

Repair works as between machines, but asks the other region directly. Its address is one that no network routes
(100::/64, the discard prefix); with ``repair_host`` a real HTTP service is offered beside, so that Downstairs of other
processes can fetch from this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count as count_from
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import trio

from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.faults import FaultInjector, Faults
from crucible_emu.downstairs.in_order import InOrderJobs
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.downstairs.listening import close_listener, listen_on_tcp
from crucible_emu.downstairs.runner import Runner
from crucible_emu.downstairs.statistics import Statistics
from crucible_emu.downstairs.together import FlushesTogether
from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import BlockIndexes, RegionDefinition
from crucible_emu.integrity import BlockContexts, Proofs, Rows
from crucible_emu.region import Region
from crucible_emu.region.clone import LocalSource, RepairSource
from crucible_emu.wire.messages import Message, SocketAddress

DISCARD_PREFIX = "100::"
_numbers = count_from(1)
_regions: dict[SocketAddress, Region] = {}
"""The regions of this process that can be asked for extents, by the address that stands for them."""

Deliver = Callable[[list[Message]], None]
Closed = Callable[[str], None]
Answer = TypeVar("Answer")


class LocalDownstairs:
    """Serves ``region``, which the caller opened and closes, to Upstairs of this process. :meth:`run` must run.

    ``together``: shared by those whose flushes may go together.
    """

    def __init__(
        self,
        region: Region,
        *,
        repair_host: str | None = None,
        faults: Faults | None = None,
        faithful: bool = False,
        limits: JobLimits | None = None,
        together: FlushesTogether | None = None,
    ) -> None:
        self.region = region
        self.core = Downstairs(region.definition, read_only=region.read_only, limits=limits, faithful=faithful)
        self.faulty = faults is not None and faults.any
        injector = FaultInjector(faults) if faults is not None and faults.any else None
        self.runner = Runner(region, self.core, sources=ProcessSources(), injector=injector, together=together)
        self._repair_host = repair_host
        self.repair_address = SocketAddress(f"{DISCARD_PREFIX}{next(_numbers):x}", 1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what takes time, until cancelled; staged blocks are the caller's to flush or to lose."""
        listener = None
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.runner.run)
                if self._repair_host is not None:
                    # *Optimisation*: HTTP is 0.4 MiB, and only disks whose machine may be lost need it.
                    from crucible_emu.downstairs.repair_http import serve_repair
                    from crucible_emu.downstairs.repair_service import RepairService

                    listener = listen_on_tcp(self._repair_host, 0, "the repair service")
                    host, port = listener.getsockname()[:2]
                    self.repair_address = SocketAddress(host, port)
                    await nursery.start(serve_repair, RepairService(self.region, self.core), listener)
                _regions[self.repair_address] = self.region
                task_status.started()
        finally:
            _regions.pop(self.repair_address, None)
            if listener is not None:
                close_listener(listener)

    def connect(self, deliver: Deliver, closed: Closed) -> LocalConnection:
        """A connection whose answers go to ``deliver``, in order, now or later; ``closed`` is called once with the
        reason when the Downstairs ends it. Neither may raise; both may use the connection."""
        return LocalConnection(self, deliver, closed)

    def statistics(self) -> Statistics:
        """Counts since the start."""
        return self.core.statistics


class LocalConnection:
    """One connection; made by :meth:`LocalDownstairs.connect`."""

    def __init__(self, downstairs: LocalDownstairs, deliver: Deliver, closed: Closed) -> None:
        self._runner = downstairs.runner
        self._core = downstairs.core
        self._region = downstairs.region
        self._faulty = downstairs.faulty
        self._waiting: list[Message] = []
        self._offering = False
        outlet = _LocalOutlet(deliver, self._ended(closed), self._offer)
        self.id = self._runner.connect(outlet, downstairs.repair_address, in_order=True)

    def send(self, messages: list[Message]) -> None:
        """Hand over messages. Answers to what is done at once are delivered before this returns, unless it is called
        from inside a delivery. Data must not change until they are answered."""
        self._waiting += messages
        self._offer()

    def _offer(self) -> None:
        """Hand over what waits, as far as there is room: there is no socket to hold it back in, so what has no room
        stays here. It is bounded by what the Upstairs lets be under way."""
        if self._offering:
            return  # called from a delivery: the call further out goes on with what came now
        self._offering = True
        try:
            taken = 1
            while self._waiting and taken:
                waiting, self._waiting = self._waiting, []
                taken = self._runner.receive(self.id, waiting)
                self._waiting = waiting[taken:] + self._waiting
        finally:
            self._offering = False

    def _jobs_to_pass_by(self) -> InOrderJobs | None:
        """The connection's jobs, if a shortcut taken now would pass nothing but flushes and reads."""
        if self._waiting or self._offering or self._faulty or self._runner.stalled:
            return None
        jobs = self._core.running_in_order(self.id)
        return jobs if jobs is not None and jobs.reads_pass else None

    def write(
        self,
        first_job_id: int,
        starts: list[int],
        counts: list[int],
        blocks: BlockIndexes,
        rows: Rows,
        contexts: BlockContexts,
    ) -> bool:
        """Do the writes with job ids ``first_job_id``, ... at once; ``False``: nothing was done, send messages.

        ``blocks`` int64[n] are all their blocks, job after job, without duplicates; ``rows`` uint8[n, block size].
        """
        jobs = self._jobs_to_pass_by()
        if jobs is None or not jobs.writes_pass(starts, counts):
            return False
        if self._region.read_only or not self._region.has_room(len(blocks)):
            return False
        try:
            self._region.write(blocks, rows, contexts)
        except (CrucibleError, OSError):
            return False  # the messages find out which of them fails, and answer it
        self._core.train_done(jobs, first_job_id, len(starts), len(blocks))
        if self._region.wants_destage():
            self._runner.relieve()
        return True

    def admits_singles(self, blocks: list[int]) -> bool:
        """Whether :meth:`write_singles` of these blocks would pass nothing that must not be passed, and has room."""
        jobs = self._jobs_to_pass_by()
        return jobs is not None and jobs.writes_pass(blocks, repeat(1)) and self._region.admits_singles(len(blocks))

    def write_singles(self, first_job_id: int, blocks: list[int], data: list[memoryview], proofs: Proofs) -> bool:
        """Write single blocks with job ids ``first_job_id``, ..., which :meth:`admits_singles` has just allowed.
        ``False``: not all of it was done."""
        jobs, region = self._core.running_in_order(self.id), self._region
        if jobs is None:
            return False
        try:
            region.write_singles(blocks, data, proofs)
        except (CrucibleError, OSError):
            return False  # the messages find out which of them fails, and answer it
        self._core.train_done(jobs, first_job_id, len(blocks), len(blocks))
        if region.wants_destage():
            self._runner.relieve()
        return True

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Read blocks into ``out`` at once, if no job that must not be passed is under way and no device has to be
        waited for; else ``None``, and a ReadRequest is the way."""
        return self._now(self._region.read_cached, start, count, out)

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> tuple[BlockContexts, list[int]] | None:
        """The same for single blocks, each into its own buffer; with the positions in ``blocks`` that a device would
        have to be waited for. ``None``: ReadRequests are the way for all of them."""
        return self._now(self._region.read_blocks_cached, blocks, outs)

    def read_singles(self, blocks: list[int], outs: list[memoryview]) -> list[int] | None:
        """The same for blocks that are plain, and all at hand: the hash that each must have. ``None``: ask for them by
        :meth:`read_blocks_cached`."""
        return self._now(self._region.read_singles, blocks, outs)

    def read_sealed(self, blocks: list[int], outs: list[memoryview]) -> list[bytes | None] | None:
        """The same for blocks that are encrypted or were never written: nonce and tag of each, ``None`` of those."""
        return self._now(self._region.read_sealed, blocks, outs)

    def written(self, start: int, count: int) -> npt.NDArray[np.bool_] | None:
        """Which blocks were ever written, bool[count]; ``None`` while writes are under way that may change it, or where
        the region cannot say. May wait for the device."""
        return self._now(self._region.written, start, count)

    def _now(self, ask: Callable[..., Answer | None], *arguments: Any) -> Answer | None:
        """What the region says, if no job that must not be passed is under way; ``None`` where it fails, too: whoever
        asks in turn is answered with the error."""
        if self._jobs_to_pass_by() is None:
            return None
        try:
            return ask(*arguments)
        except (CrucibleError, OSError):
            return None

    def close(self) -> None:
        """End the connection; nothing is delivered any more, and ``closed`` is not called."""
        self._waiting = []
        self._runner.disconnect(self.id)

    def _ended(self, closed: Closed) -> Closed:
        def ended(reason: str) -> None:
            self._waiting = []
            closed(reason)

        return ended


class _LocalOutlet:
    """What the runner sees of a local connection."""

    trusted = True

    def __init__(self, deliver: Deliver, close: Closed, resume: Callable[[], None]) -> None:
        self.deliver = deliver
        self.close = close
        self.resume = resume


class ProcessSources:
    """Regions of this process are asked directly, all others over HTTP."""

    @asynccontextmanager
    async def open(self, address: SocketAddress, definition: RegionDefinition) -> AsyncIterator[RepairSource]:
        region = _regions.get(address)
        if region is not None:
            yield RegionSource(region)
        else:
            from crucible_emu.downstairs.repair_client import HttpSources

            async with HttpSources().open(address, definition) as source:
                yield source


class RegionSource(LocalSource):
    """An open region of this process, as a :class:`RepairSource`."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.storage, region.path)
        self._open_region = region

    async def ready(self, extent_id: int) -> bool:
        return self._open_region.read_only or self._open_region.extent_is_closed(extent_id)
