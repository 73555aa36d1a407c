"""Reads of one block each that a replica on this machine has at hand: most of what a busy disk does.

What it is for: one pass over the requests that arrived together sorts them by replica; each replica gives its blocks
in one call, and one call verifies them. No job, no message, no handle per request.

Why it is safe: a read that is not at hand, or not whole, goes the ordinary way, as does every request that is not of
one aligned block. Past another process reads only go where that has acknowledged every write of the blocks; why what
is there is the newest then, :mod:`reads_at_hand` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_

import numpy as np
import xxhash

from crucible_emu.blockio import Completed, Kind, Request
from crucible_emu.integrity import EMPTY, BlockContexts, open_scattered
from crucible_emu.upstairs.driver import Damage, Upstairs
from crucible_emu.upstairs.links import LinksThat, SingleReadsLink
from crucible_emu.upstairs.read_train import ReadTrain
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.states import UpstairsState

_NONE: set[int] = set()
Group = tuple[list[Request], list[int], list[memoryview]]
"""Requests, their blocks, and where the data go."""
Groups = dict[int, Group]
"""By client."""
READS_TOGETHER = 32
"""So many reads that arrive together go to one replica in another process before the next one is asked, too. To wake a
process costs more than a read does."""
ReadLater = Callable[[Request, int, int, Completed], None]


class SingleReads:
    """Single-block reads of the disk of ``upstairs``, whose definition is known. ``read_later``: the ordinary
    way, for a request with its first block and number of blocks."""

    def __init__(self, upstairs: Upstairs, read_later: ReadLater) -> None:
        definition = upstairs.core.definition
        assert definition is not None
        self._upstairs = upstairs
        self._core = upstairs.core
        self._read_later = read_later
        self._links = LinksThat(SingleReadsLink)  # type: ignore[type-abstract]  # asked whether it is one
        self._block_size = definition.block_size
        self._shift = definition.shift
        self._size_bytes = definition.size_bytes
        self._per_extent = definition.blocks_per_extent

    def submit(self, requests: list[Request], index: int, done: list[Request], completed: Completed) -> int:
        """Reads of one block each, from ``index`` on: what replicas on this machine have at hand is read and verified
        together, the rest becomes jobs. Returns where they end; ``index`` itself where this is not the way.

        Most requests of a busy disk come through here, so the one pass over them does all that each needs.
        """
        readers = self._core.readers
        if not readers or self._core.state is not UpstairsState.ACTIVE:
            return index
        size, shift, mask, end = self._block_size, self._shift, self._block_size - 1, self._size_bytes
        per_extent, width = self._per_extent, len(readers)
        groups: Groups = {}
        group: Group | None = None
        at_hand = self._upstairs.in_process or self._any_at_hand()
        together = 0 if at_hand else READS_TOGETHER
        stop, total = index, len(requests)
        while stop < total:
            request = requests[stop]
            offset, out = request.offset, request.buffer
            if request.kind is not Kind.READ or request.length != size or out is None:
                break
            if offset & mask or not 0 <= offset < end:
                break
            block = offset >> shift
            if group is None or len(group[0]) >= together:
                client = readers[block // per_extent % width]
                group = groups.get(client)
                if group is None:
                    group = groups[client] = ([], [], [])
            group[0].append(request)
            group[1].append(block)
            group[2].append(out)
            stop += 1
        statistics = self._upstairs.statistics
        statistics.reads += stop - index
        statistics.read_bytes += (stop - index) << shift
        if not self._upstairs.in_process:
            self._send(self._not_at_hand(groups, done) if at_hand else groups, completed)
            return stop
        for client, (group_requests, blocks, outs) in groups.items():
            late = self._read_group(client, blocks, outs, group_requests)
            if late:
                done.extend(request for position, request in enumerate(group_requests) if position not in late)
                for position in sorted(late):
                    self._read_later(group_requests[position], blocks[position], 1, completed)
            else:
                done.extend(group_requests)
        return stop

    def read_now(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """Read one block from each of ``offsets`` (bytes), where replicas have all of them at hand and all are right.
        ``False``, and anything in ``outs``, where that is not so: it will come out in the ordinary way, why."""
        readers, past_processes = self._core.readers, not self._upstairs.in_process
        if not readers or self._core.state is not UpstairsState.ACTIVE or (past_processes and not self._any_at_hand()):
            return False
        if reduce(or_, offsets) & (self._block_size - 1) or max(offsets) >= self._size_bytes:
            return False
        shift, per_extent, width = self._shift, self._per_extent, len(readers)
        chosen: list[tuple[list[int], list[memoryview]]] = [([], []) for _ in self._core.clients]
        for offset, out in zip(offsets, outs):
            block = offset >> shift
            blocks, its_outs = chosen[readers[block // per_extent % width]]
            blocks.append(block)
            its_outs.append(out)
        for client, (blocks, its_outs) in enumerate(chosen):
            if blocks and not self._all_right(client, blocks, its_outs, ()):
                return False
        statistics = self._upstairs.statistics
        statistics.reads += len(offsets)
        statistics.read_bytes += len(offsets) << shift
        statistics.reads_at_hand += len(offsets) * past_processes
        return True

    def _any_at_hand(self) -> bool:
        """Whether some replica in another process can be read past that."""
        return any(link is not None and link.reads_at_hand for link in self._links.among(self._upstairs.links))

    def _not_at_hand(self, groups: Groups, done: list[Request]) -> Groups:
        """Read past other processes; what is left of ``groups``, as few of them as before there were any."""
        left: list[Group] = []
        for client, group in groups.items():
            requests, blocks, outs = group
            if self._all_right(client, blocks, outs, requests):
                done.extend(requests)
                self._upstairs.statistics.reads_at_hand += len(requests)
            else:
                left.append(group)
        readers = self._core.readers
        joined: Groups = {}
        last: Group | None = None
        for requests, blocks, outs in left:
            if last is None or len(last[0]) >= READS_TOGETHER:
                client = readers[blocks[0] // self._per_extent % len(readers)]
                last = joined.setdefault(client, ([], [], []))
            last[0].extend(requests)
            last[1].extend(blocks)
            last[2].extend(outs)
        return joined

    def _send(self, groups: Groups, completed: Completed) -> None:
        """One job for each replica in another process."""
        core, shift = self._core, self._shift
        for client, (requests, blocks, _outs) in groups.items():
            handle = ReadTrain(requests, completed)
            count = len(blocks)
            core.read(core.new_job(JobKind.READ, blocks, [1] * count, count << shift, handle), client)
        if groups:
            self._upstairs.perform()

    def _read_group(self, client: int, blocks: list[int], outs: list[memoryview], requests: list[Request]) -> set[int]:
        """Read from one replica; the positions that it did not answer at once, or not rightly."""
        if self._all_right(client, blocks, outs, requests):
            return _NONE
        link = self._upstairs.links[client]
        found = None if link is None else link.read_blocks_cached(blocks, outs)
        if found is None:
            return set(range(len(blocks)))
        contexts, positions = found
        if not positions:
            _tell_owned(requests, contexts)
            return self._damaged_positions(client, blocks, range(len(blocks)), outs, contexts)
        at_hand = sorted(set(range(len(blocks))).difference(positions))
        read = [outs[position] for position in at_hand]
        contexts = contexts[np.array(at_hand, np.int64)]
        _tell_owned([requests[position] for position in at_hand], contexts)
        return self._damaged_positions(client, blocks, at_hand, read, contexts).union(positions)

    def _all_right(self, client: int, blocks: list[int], outs: list[memoryview], requests: Sequence[Request]) -> bool:
        """Whether all was at hand, of the disk's kind, and what it should be. *Optimisation*: no array is made, which
        is most of what a small batch costs; what is not right is read again by those who find out what is wrong."""
        link, cipher = self._links.among(self._upstairs.links)[client], self._upstairs.cipher
        if link is None or any(request.owned is not None for request in requests):
            return False
        # *Safety*: who looks into another process must not miss a write that is on its way there.
        if not self._upstairs.in_process and not self._core.settled(client, blocks):
            return False
        if cipher is not None:
            seals = link.read_sealed(blocks, outs)
            return seals is not None and cipher.open_singles(outs, seals)
        expected = link.read_singles(blocks, outs)
        return expected is not None and list(map(xxhash.xxh64_intdigest, outs)) == expected

    def _damaged_positions(
        self, client: int, blocks: list[int], at_hand: Sequence[int], outs: list[memoryview], contexts: BlockContexts
    ) -> set[int]:
        damaged = set()
        for index, error in open_scattered(outs, contexts, self._upstairs.cipher):
            damaged.add(at_hand[index])
            self._upstairs.damaged(Damage(client, blocks[at_hand[index]], 1, error))
        return damaged


def _tell_owned(requests: list[Request], contexts: BlockContexts) -> None:
    """Say of reads of one block each which were ever written, where somebody asks."""
    for request, kind in zip(requests, contexts.kind.tolist()):
        if request.owned is not None:
            request.owned[0] = kind != EMPTY
