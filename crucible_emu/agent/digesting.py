"""Digests in the background: what the digest routes answer from.

What it is for: a control plane asks whether replicas hold the same, and asks again until the answer is there. The first
question starts the work, those after it are told how far it is.

What it guarantees: an answer *done* is of contents that the region had after the question came, or, where nothing ever
changes (snapshots and read-only regions), of all its life; :mod:`crucible_emu.agent.digest_book` says why. A region
that is written all the time is hashed again and again, only those extents that changed, and may never be done: ask for
the digest of a snapshot then. Hashing leaves the loop alone and takes at most :data:`THREADS` of the machine's cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from crucible_emu.agent.digest_book import DigestBook, Stamp
from crucible_emu.agent.documents import DigestStatus
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.region import layout
from crucible_emu.region.digest import extent_digest
from crucible_emu.region.directory import Unsettled
from crucible_emu.region.view import RegionView

THREADS = 2
LOOK_AGAIN_S = 0.1
"""How soon a region with a flush under way, or unflushed writes in its files, is looked at again."""

Key = tuple[str, str | None]
"""A region's id, and a snapshot's name or ``None``."""


@dataclass(slots=True, eq=False)
class _Job:
    """The digest of one region or snapshot."""

    view: RegionView
    book: DigestBook
    flushing: Callable[[], bool]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    working: bool = False
    error: str | None = None


class Digests:
    """Digests of an agent's regions; their work runs in ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[Key, _Job] = {}
        self._threads = trio.CapacityLimiter(THREADS)

    async def ask(
        self, key: Key, path: Path, *, immutable: bool, flushing: Callable[[], bool] = lambda: False
    ) -> DigestStatus:
        """How far the digest of the region in ``path`` is; begins it where nobody has asked before.

        ``flushing``: whether a flush is under way this instant. Raises :class:`UsageError` where there is no region.
        """
        job = self._jobs.get(key)
        if job is None:
            view = await trio.to_thread.run_sync(RegionView.open, path)
            job = self._jobs.setdefault(key, _Job(view, DigestBook(view.definition, immutable=immutable), flushing))
        if job.error is not None:  # told once; who asks again wants another try
            status, job.error = _status(job), None
            return status
        if not job.working and await self._is_outdated(job) and self._jobs.get(key) is job and not job.working:
            job.working, job.scope = True, trio.CancelScope()
            self._nursery.start_soon(self._work, job)
        return _status(job)

    def forget(self, region_id: str, name: str | None = None) -> None:
        """The snapshot ``name``, or without it the region and all its snapshots, is about to go."""
        for key in [key for key in self._jobs if key[0] == region_id and name in (None, key[1])]:
            self._jobs.pop(key).scope.cancel()

    def forget_one(self, key: Key) -> None:
        """The next question begins from nothing. For who looks for damage: bytes that rot change no stamp."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.scope.cancel()

    async def _is_outdated(self, job: _Job) -> bool:
        """Whether there is anything to do."""
        if job.book.immutable and job.book.known_count == job.book.definition.extent_count:
            return False
        return not await self._holds(job)

    async def _holds(self, job: _Job) -> bool:
        """Whether the digests are of this moment; what is to be hashed is found out on the way."""
        flushing = job.flushing()
        try:
            stamps = await trio.to_thread.run_sync(_stamps, job.view, limiter=self._threads)
        except (CrucibleError, Unsettled, OSError):
            return False
        return not job.book.look(stamps) and not job.book.waiting and not flushing

    async def _work(self, job: _Job) -> None:
        try:
            with job.scope:
                await self._hash_until_it_holds(job)
        except (CrucibleError, UsageError, OSError) as error:
            job.error = str(error)
        finally:
            job.working = False

    async def _hash_until_it_holds(self, job: _Job) -> None:
        while True:
            try:
                if await self._look_and_hash(job):
                    return
            except Unsettled:  # while flushes follow upon each other, the extents lag behind
                await trio.sleep(LOOK_AGAIN_S)

    async def _look_and_hash(self, job: _Job) -> bool:
        """Hash what is outdated; whether nothing was, and nothing is on its way."""
        view, book = job.view, job.book
        flushing = job.flushing()
        stamps = await trio.to_thread.run_sync(_stamps, view, limiter=self._threads)
        outdated = book.look(stamps)
        if not outdated and not book.waiting and not flushing:
            return True
        for extent_id in outdated:
            before, digest, after = await trio.to_thread.run_sync(_hash, view, extent_id, limiter=self._threads)
            book.hashed(extent_id, before, digest, after)
        if not outdated:
            await trio.sleep(LOOK_AGAIN_S)
        return False


def _status(job: _Job) -> DigestStatus:
    book = job.book
    generation, flush_number = book.numbers()
    whole = None if job.working or job.error is not None else book.whole()
    return DigestStatus(
        state="failed" if job.error is not None else "done" if whole is not None else "computing",
        extents_done=book.known_count,
        extent_count=book.definition.extent_count,
        extents_waiting=len(book.waiting),
        extents=[None if digest is None else digest.hex() for digest in book.known],
        digest=whole,
        immutable=book.immutable,
        generation=None if whole is None else generation,
        flush_number=None if whole is None else flush_number,
        error=job.error,
    )


def _stamps(view: RegionView) -> list[Stamp]:
    return [_stamp(view, extent_id) for extent_id in range(view.definition.extent_count)]


def _stamp(view: RegionView, extent_id: int) -> Stamp:
    """An extent's stamp. Raises a CrucibleError or :class:`OSError`."""
    with view.extent(extent_id) as extent:
        numbers = extent.metadata
        # After the metadata was read from the open file: a replacement in between shows as another inode.
        found = os.stat(layout.extent_path(view.path, extent_id))
    return Stamp(found.st_ino, found.st_mtime_ns, numbers.gen_number, numbers.flush_number, numbers.dirty)


def _hash(view: RegionView, extent_id: int) -> tuple[Stamp, bytes, Stamp]:
    before = _stamp(view, extent_id)
    return before, extent_digest(view, extent_id), _stamp(view, extent_id)
