"""The seam between an Upstairs and the way to one Downstairs.

What it is for: the pure core says ``Connect``, ``Send`` and ``Hangup``; a :class:`Connector` knows how to do that over
TCP or inside this process, and tells a :class:`Port` what happened. Nothing above this seam knows which it is, but for
one hint: a link that runs jobs at once, in order, in this process may say so by answering ``True``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from crucible_emu.integrity import BlockContexts, Proofs
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.row_memory import RowMemory
from crucible_emu.upstairs.statistics import UpstairsStatistics
from crucible_emu.wire import messages as m


class Link(Protocol):
    """An open connection to one Downstairs."""

    def send(self, message: m.Message) -> None:
        """Send one message; never blocks (what cannot go out at once is queued, bounded by admission)."""
        ...

    def send_job(self, job: Job, dependencies: list[list[int]]) -> bool:
        """Send every operation of ``job``. ``True``: all of it is done already, no acknowledgement will come.

        ``job.rows`` may be the guest's memory: a link that keeps it past this call copies it.
        """
        ...

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Read at once into ``out`` if the replica is on this machine and has it at hand, else ``None``. Of a replica
        in another process only where that has acknowledged every write of these blocks."""
        ...

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> tuple[BlockContexts, list[int]] | None:
        """The same for single blocks, each into its own buffer; with the positions that were not at hand."""
        ...

    def written(self, start: int, count: int) -> Any | None:
        """Which blocks have ever been written, bool[count], if the replica is in this process, else ``None``."""
        ...


@runtime_checkable
class SingleReadsLink(Protocol):
    """A link to a replica on this machine whose single blocks can be read without a job, as long as it is *open* to
    that. The caller verifies what was read."""

    @property
    def reads_at_hand(self) -> bool:
        """Whether it is worth trying now."""
        ...

    def read_singles(self, blocks: list[int], outs: list[memoryview]) -> list[int] | None:
        """Read blocks that are all at hand, each into its own buffer: the XXH64 that each must have. ``None``: this is
        not the way, as where one is encrypted."""
        ...

    def read_sealed(self, blocks: list[int], outs: list[memoryview]) -> list[bytes | None] | None:
        """The same where all are encrypted, or were never written: nonce and tag of each, ``None`` of those."""
        ...


@runtime_checkable
class SingleWritesLink(Protocol):
    """A link to a replica in this process that takes single blocks without a job."""

    def admits_singles(self, blocks: list[int]) -> bool:
        """Whether writes of these blocks would be done at once now."""
        ...

    def write_singles(self, first_job_id: int, blocks: list[int], data: list[memoryview], proofs: Proofs) -> bool:
        """Do what :meth:`admits_singles` has just allowed, under consecutive ids; of a block that is named twice, the
        last counts. ``proofs`` are of each of ``data``. ``False``: not all of it was done."""
        ...


Wanted = TypeVar("Wanted")


class LinksThat(Generic[Wanted]):
    """Which links are of the ``wanted`` kind, in client order. *Optimisation*: to ask one costs a microsecond, so that
    is done when a link has changed."""

    def __init__(self, wanted: type[Wanted]) -> None:
        self._wanted = wanted
        self._seen: list[object] = []
        self._found: list[Wanted | None] = []

    def among(self, links: Sequence[object]) -> list[Wanted | None]:
        """For each of ``links`` it or ``None``."""
        if links != self._seen:
            self._seen = list(links)
            self._found = [link if isinstance(link, self._wanted) else None for link in self._seen]
        return self._found


@runtime_checkable
class PacedLink(Protocol):
    """A link that can be slowed down."""

    delay_us: int
    """How long to sleep before each message but a write, microseconds (§6.14). Order is kept."""


@runtime_checkable
class GatheringLink(Protocol):
    """A link on which what is sent together can leave together."""

    gathers: bool
    """Whether what is sent waits for :meth:`send_off`."""

    def send_off(self) -> bool:
        """Send what waits, unless that is a few writes, for which nobody does. Whether such were held back: they leave
        with what comes on top, or by :meth:`hurry`, which is due soon."""
        ...

    def hurry(self) -> None:
        """Send what was held back."""
        ...

    def holds(self, size_bytes: int) -> bool:
        """Whether so many bytes of writes, were they sent now, would be held back."""
        ...

    def may_refer_to(self, memory: RowMemory, statistics: UpstairsStatistics) -> None:
        """The data of large writes lie in ``memory``, which a replica on this machine may be let look into; those that
        it does are counted."""
        ...


class Port(Protocol):
    """Where a connector reports what happens on its connection."""

    def opened(self, link: Link) -> None: ...

    def received(self, messages: list[m.Message]) -> None: ...


class Connector(Protocol):
    """Makes connections to one Downstairs."""

    in_process: bool
    """Whether jobs run in order of arrival in this process, so that no dependencies and no copies are needed."""

    target: str
    """The address as a volume construction request writes it: how a replacement names this Downstairs."""

    async def run(self, port: Port) -> str:
        """Connect, report ``opened``, then messages, until the connection ends or the caller cancels; say why."""
        ...
