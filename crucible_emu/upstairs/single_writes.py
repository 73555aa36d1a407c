"""Writes of one block each to three replicas in this process: the other half of what a busy disk does.

What it is for: one pass over the writes that arrived together finds their blocks and hashes their data where it
arrived; each replica takes them in one call. There is no job, no message and no copy but those that the replicas keep.

Why it is safe: nothing is different from a job that begins, is acknowledged and ends within one call, which is what
such a train is: it gets its ids, it counts as unflushed, and it is refused where a job would be. It is the way only
while all three replicas are in service, in this process, and nothing stands in any one's way; each is asked before the
first is written to. Should one fail nevertheless, the same train goes to all three as a job: to write it again changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from crucible_emu.blockio import Kind, Request
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.links import SinglesLink, SinglesLinks
from crucible_emu.upstairs.rules import CLIENTS
from crucible_emu.upstairs.states import UpstairsState


class SingleWrites:
    """Single-block writes to the disk of ``upstairs``, whose definition is known. ``watched`` says whether somebody has
    to be told of each write."""

    def __init__(self, upstairs: Upstairs, watched: Callable[[], bool]) -> None:
        definition = upstairs.core.definition
        assert definition is not None
        self._upstairs = upstairs
        self._core = upstairs.core
        self._watched = watched
        self._block_size = definition.block_size
        self._shift = definition.shift
        self._size_bytes = definition.size_bytes
        self._links = SinglesLinks()

    def submit(self, requests: list[Request], index: int, done: list[Request]) -> int:
        """Writes of one block each, from ``index`` on, are done. Returns where they end; ``index`` itself where this is
        not the way."""
        core = self._core
        links = self._passable()
        if not links or core.state is not UpstairsState.ACTIVE or core.repair is not None:
            return index
        size, shift, mask, end = self._block_size, self._shift, self._block_size - 1, self._size_bytes
        blocks: list[int] = []
        data: list[memoryview] = []
        stop, total = index, len(requests)
        while stop < total:
            request = requests[stop]
            offset, payload = request.offset, request.buffer
            if request.kind is not Kind.WRITE or request.length != size or payload is None or request.fua:
                break
            if offset & mask or not 0 <= offset < end:
                break
            blocks.append(offset >> shift)
            data.append(payload)
            stop += 1
        if not blocks:
            return index
        for link in links:
            if not link.admits_singles(blocks):
                return index
        hashes = list(map(xxhash.xxh64_intdigest, data))
        first_job_id = core.written_at_once(len(blocks))
        for link in links:
            if not link.write_singles(first_job_id, blocks, data, hashes):
                return index
        done.extend(requests if stop - index == total else requests[index:stop])
        statistics = self._upstairs.statistics
        statistics.writes += len(blocks)
        statistics.written_bytes += len(blocks) << shift
        return stop

    def _passable(self) -> list[SinglesLink]:
        """The three replicas, if all are in service and take single blocks and nobody has to be told; else none."""
        core, upstairs = self._core, self._upstairs
        if len(core.readers) != len(CLIENTS) or upstairs.cipher is not None or core.identity.read_only:
            return []
        if self._watched():
            return []
        links = [link for link in self._links.among(upstairs.links) if link is not None]
        return links if len(links) == len(CLIENTS) else []
