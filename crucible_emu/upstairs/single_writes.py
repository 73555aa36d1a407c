"""Writes of one block each: the other half of what a busy disk does.

What it is for: one pass over the writes that arrived together finds their blocks and hashes their data where it
arrived. Each replica in this process takes them in one call; there is no job, no message and no copy but those that the
replicas keep. For replicas in other processes they become one job, in one copy, whose frames are the same for all.

Why it is safe: nothing is different from a job that begins, is acknowledged and ends within one call, which is what
such a train is: it gets its ids, it counts as unflushed, and it is refused where a job would be. It is the way only
while all three replicas are in service, in this process, and nothing stands in any one's way; each is asked before the
first is written to. Should one fail nevertheless, the same train goes to all three as a job: to write it again changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_

import numpy as np
import xxhash

from crucible_emu.blockio import Kind, Request
from crucible_emu.integrity import BlockContexts, Proofs, Rows
from crucible_emu.upstairs import trains
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.jobs import Gathered, Job
from crucible_emu.upstairs.links import LinksThat, SingleWritesLink
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.sealer import Sealer
from crucible_emu.upstairs.states import UpstairsState


class SingleWrites:
    """Single-block writes to the disk of ``upstairs``, whose definition is known. ``sealer`` where it is encrypted.
    ``watched`` says whether somebody has to be told of each write."""

    def __init__(self, upstairs: Upstairs, sealer: Sealer | None, watched: Callable[[], bool]) -> None:
        definition = upstairs.core.definition
        assert definition is not None
        self._upstairs = upstairs
        self._core = upstairs.core
        self._sealer = sealer
        self._watched = watched
        self._block_size = definition.block_size
        self._shift = definition.shift
        self._size_bytes = definition.size_bytes
        self._blocks_per_extent = definition.blocks_per_extent
        self._links = LinksThat(SingleWritesLink)  # type: ignore[type-abstract]  # asked whether it is one

    def submit(self, requests: list[Request], index: int, done: list[Request]) -> int:
        """Writes of one block each, from ``index`` on, are done. Returns where they end; ``index`` itself where this is
        not the way."""
        links = self._way()
        if links is None:
            return index
        blocks, data = self._singles(requests, index)
        if not blocks or not self._write(links, blocks, data):
            return index
        stop = index + len(blocks)
        done.extend(requests if stop - index == len(requests) else requests[index:stop])
        return stop

    def write_now(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        """Write single blocks (offsets in bytes), each with its own data; ``False`` where this is not the way."""
        if reduce(or_, offsets) & (self._block_size - 1) or max(offsets) >= self._size_bytes:
            return False
        if len(offsets) > trains.TRAIN_BYTES_MAX >> self._shift:
            return False
        links = self._way()
        return links is not None and self._write(links, [offset >> self._shift for offset in offsets], list(data))

    def _way(self) -> list[SingleWritesLink] | None:
        """The three replicas in this process, or none of them where replicas are elsewhere and would take a job which
        is all there is to do; ``None`` where single blocks have no way of their own now."""
        core = self._core
        if core.state is not UpstairsState.ACTIVE or self._watched():
            return None
        if self._upstairs.in_process:
            return None if core.repair is not None else self._passable() or None
        return [] if core.admission_error(JobKind.WRITE) is None else None

    def _write(self, links: list[SingleWritesLink], blocks: list[int], data: list[memoryview]) -> bool:
        """Write to what :meth:`_way` gave; ``False`` where this is not the way for these blocks."""
        if links:
            if not self._store(links, blocks, data):
                return False
        elif len(set(blocks)) < len(blocks):
            return False
        else:
            self._send(blocks, data)
        statistics = self._upstairs.statistics
        statistics.writes += len(blocks)
        statistics.written_bytes += len(blocks) << self._shift
        return True

    def _singles(self, requests: list[Request], index: int) -> tuple[list[int], list[memoryview]]:
        """Blocks and data of the writes of one block each that stand at ``index`` and behind it."""
        size, shift, mask, end = self._block_size, self._shift, self._block_size - 1, self._size_bytes
        blocks: list[int] = []
        data: list[memoryview] = []
        stop, total = index, min(len(requests), index + (trains.TRAIN_BYTES_MAX >> shift))
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
        return blocks, data

    def _store(self, links: list[SingleWritesLink], blocks: list[int], data: list[memoryview]) -> bool:
        """Have replicas in this process write them; ``False`` where this is not the way."""
        for link in links:
            if not link.admits_singles(blocks):
                return False
        proofs: Proofs
        if self._sealer is None:
            proofs = list(map(xxhash.xxh64_intdigest, data))
        else:
            data, proofs = self._sealer.seal_singles(data)
        first_job_id = self._core.written_at_once(len(blocks))
        return all(link.write_singles(first_job_id, blocks, data, proofs) for link in links)

    def _send(self, blocks: list[int], data: list[memoryview]) -> None:
        """Have replicas in other processes write them: as a job, with a copy of the data, for the guest's memory is
        only lent until the write is acknowledged, which it is at admission. *Optimisation*: where such a job would only
        be held back, it stays open to what comes next; what somebody waits for has it sent, or the driver's clock."""
        core, upstairs = self._core, self._upstairs
        size_bytes = len(blocks) << self._shift
        if core.repair is not None:
            for part in self._split(core.repair, blocks):
                self._write_job([blocks[at] for at in part], [data[at] for at in part])
        elif upstairs.holds_writes(core.open_bytes + size_bytes):
            copies = list(map(bytes, data))
            if not core.grow(blocks, copies):
                job = self._new_job(blocks)
                job.gathered = Gathered(self._proven)
                job.gathered.take(blocks, copies)
                core.write_open(job)
            return
        else:
            self._write_job(blocks, data)
        upstairs.perform()

    def _split(self, repair: LiveRepair, blocks: list[int]) -> list[list[int]]:
        """Positions in ``blocks``: those in extents that a live repair has begun, and those beyond, which the replicas
        under repair are not sent."""
        limit = (repair.extent_id + 1) * self._blocks_per_extent
        near = [at for at, block in enumerate(blocks) if block < limit]
        beyond = [at for at, block in enumerate(blocks) if block >= limit]
        return [part for part in (near, beyond) if part]

    def _write_job(self, blocks: list[int], data: Sequence[memoryview]) -> None:
        job = self._new_job(blocks)
        job.rows, job.contexts = self._proven(data)
        self._core.write(job)

    def _new_job(self, blocks: list[int]) -> Job:
        count = len(blocks)
        return self._core.new_job(JobKind.WRITE, blocks, [1] * count, count << self._shift, None)

    def _proven(self, data: Sequence[memoryview | bytes]) -> tuple[Rows, BlockContexts]:
        """A copy of the data, encrypted where the disk is, and what proves each block."""
        if self._sealer is not None:
            return self._sealer.seal([memoryview(each) for each in data])
        rows = np.frombuffer(b"".join(data), np.uint8).reshape(len(data), self._block_size)
        return rows, BlockContexts.plain(np.array(list(map(xxhash.xxh64_intdigest, data)), np.uint64))

    def _passable(self) -> list[SingleWritesLink]:
        """The three replicas, if all are in service and take single blocks; else none."""
        core, upstairs = self._core, self._upstairs
        if len(core.readers) != len(CLIENTS) or core.identity.read_only:
            return []
        links = [link for link in self._links.among(upstairs.links) if link is not None]
        return links if len(links) == len(CLIENTS) else []
