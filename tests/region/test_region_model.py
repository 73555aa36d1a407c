"""A region against a plain model: a dictionary of blocks.

The machine writes, writes unwritten, reads in all three ways, flushes (with writes in the middle), destages, closes and
reopens extents and the whole region, under every policy. The model knows two things of each block: what a read must
return, and what is in the files, which is what remains after the process died.
"""

from __future__ import annotations

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from region_rig import SIMULATED_REGION, definition, made_blocks

from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, first_bad_block
from crucible_emu.region import FlushWork, Region, SyncPolicy
from crucible_emu.sim.disk import SimulatedDisk

Content = tuple[bytes, int]
"""Data of a block and the hash in its context."""

GEOMETRIES = [(512, 20, 3), (4096, 9, 2), (512, 1, 5), (1024, 300, 1), (8192, 5, 2)]


class RegionMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(SyncPolicy),
        geometry=st.sampled_from(GEOMETRIES),
        staged_blocks=st.sampled_from([3, 40, 10_000]),
    )
    def create(self, policy: SyncPolicy, geometry: tuple[int, int, int], staged_blocks: int) -> None:
        self.policy = policy
        self.definition = definition(*geometry)
        self.disk = SimulatedDisk()
        self.options = {
            "policy": policy,
            "storage": self.disk,
            "staged_bytes_max": staged_blocks * self.definition.block_size,
        }
        self.region = Region.create(SIMULATED_REGION, self.definition, **self.options)
        self.now: dict[int, Content] = {}
        self.stored: dict[int, Content] = {}
        self.flush_number = self.writes = 0
        self.work: FlushWork | None = None
        self.covered: dict[int, Content] = {}
        self.closed: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "region"):
            self.region.close()
            assert not self.disk.open_files(), "every file is closed again"

    # --- writes

    def _blocks(self, data: st.DataObject) -> np.ndarray:
        total = self.definition.total_blocks
        if data.draw(st.booleans(), "scattered"):
            blocks = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=12, unique=True), "blocks")
        else:
            start = data.draw(st.integers(0, total - 1), "start")
            blocks = list(range(start, min(total, start + data.draw(st.integers(1, 30), "count"))))
        size = self.definition.blocks_per_extent
        return np.array([block for block in blocks if block // size not in self.closed], np.int64)

    @rule(data=st.data(), sealed=st.booleans(), only_unwritten=st.booleans())
    def write(self, data: st.DataObject, sealed: bool, only_unwritten: bool) -> None:
        blocks = self._blocks(data)
        # New data each time: of two slots with the same data, recovery may take either (§2.9).
        self.writes += 1
        rows, contexts = made_blocks(len(blocks), self.definition.block_size, self.writes, sealed)
        has_room = self.region.has_room(len(blocks))
        if self.work is not None and not has_room:
            return
        (self.region.write_unwritten if only_unwritten else self.region.write)(blocks, rows, contexts)
        for block, row, context in zip(blocks.tolist(), rows, contexts.hash.tolist()):
            if not (only_unwritten and block in self.now):
                self.now[block] = (row.tobytes(), context)
        if not has_room:
            # It made room as it went, so some of it is in the files and some is not: destage, to know again.
            work = self.region.begin_destage()
            work.run()
            self.region.finish_flush(work)
        if self.policy is not SyncPolicy.STAGED or not has_room:
            self.stored = dict(self.now)

    # --- flushes

    @precondition(lambda self: self.work is None and not self.closed)
    @rule(limit=st.none() | st.integers(0, 4), destage=st.booleans())
    def begin(self, limit: int | None, destage: bool) -> None:
        if destage:
            self.work, last = self.region.begin_destage(), self.definition.extent_count
        else:
            self.flush_number += 1
            limit = None if limit is None else min(limit, self.definition.extent_count)
            self.work = self.region.begin_flush(self.flush_number, 1, limit)
            last = self.definition.extent_count if limit is None else limit
        size = self.definition.blocks_per_extent
        self.covered = {block: content for block, content in self.now.items() if block // size <= last}

    @precondition(lambda self: self.work is not None)
    @rule()
    def run_and_finish(self) -> None:
        assert self.work is not None
        self.work.run()
        self.region.finish_flush(self.work)
        if self.policy is SyncPolicy.STAGED:
            self.stored.update(self.covered)
        self.work = None

    # --- extents and processes

    @precondition(lambda self: self.work is None)
    @rule(data=st.data())
    def close_extent(self, data: st.DataObject) -> None:
        extent_id = data.draw(st.integers(0, self.definition.extent_count - 1), "extent")
        if extent_id in self.closed:
            return
        self.region.close_extent(extent_id)
        self.closed.add(extent_id)
        size = self.definition.blocks_per_extent
        self.stored.update({block: content for block, content in self.now.items() if block // size == extent_id})

    @precondition(lambda self: self.closed)
    @rule()
    def reopen_extents(self) -> None:
        self.region.reopen_all_extents()
        self.closed.clear()

    @precondition(lambda self: self.work is None)
    @rule(read_only_first=st.booleans())
    def reopen(self, read_only_first: bool) -> None:
        self.region.close()
        self.closed.clear()
        self.now = dict(self.stored)
        if read_only_first:
            with Region.open(SIMULATED_REGION, read_only=True, storage=self.disk) as region:
                self._check(region, 0, self.definition.total_blocks, "read")
        self.region = Region.open(SIMULATED_REGION, **self.options)

    # --- reads

    @rule(data=st.data(), way=st.sampled_from(["read", "read_cached", "read_blocks_cached"]))
    def read(self, data: st.DataObject, way: str) -> None:
        total = self.definition.total_blocks
        start = data.draw(st.integers(0, total - 1), "start")
        count = data.draw(st.integers(1, total - start), "count")
        size = self.definition.blocks_per_extent
        if not self.closed & set(range(start // size, (start + count - 1) // size + 1)):
            self._check(self.region, start, count, way)

    def _check(self, region: Region, start: int, count: int, way: str) -> None:
        size = self.definition.block_size
        out = bytearray(b"\xaa" * (count * size))
        view = memoryview(out)
        if way == "read_blocks_cached":
            outs = [view[index * size : (index + 1) * size] for index in range(count)]
            contexts, late = region.read_blocks_cached(range(start, start + count), outs)
            assert late == []
        else:
            found = getattr(region, way)(start, count, view)
            assert found is not None
            contexts = found
        rows = np.frombuffer(out, np.uint8).reshape(count, size)
        assert first_bad_block(rows, contexts) is None
        for index in range(count):
            content = self.now.get(start + index)
            if content is None:
                assert contexts.kind[index] == EMPTY and not rows[index].any()
            else:
                assert rows[index].tobytes() == content[0]
                assert contexts.hash[index] == content[1] and contexts.kind[index] in (PLAIN, ENCRYPTED)

    @invariant()
    def written_is_known(self) -> None:
        if hasattr(self, "region") and not self.closed:
            expected = np.zeros(self.definition.total_blocks, np.bool_)
            expected[list(self.now)] = True
            assert np.array_equal(self.region.written(0, self.definition.total_blocks), expected)


TestRegionModel = RegionMachine.TestCase
TestRegionModel.settings = settings(
    # Explaining traces every line of a region, which takes minutes; the shrunk program says enough.
    max_examples=60,
    stateful_step_count=30,
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
