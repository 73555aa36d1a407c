"""Random volume trees against a model: every shape, every order of completion, scrubs at any moment."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from volume_rig import BLOCK, Kind, Node, Op, Outstanding, Turns, batches, build, shuffled, trees

from crucible_emu.volume import scrub as scrub_module
from crucible_emu.volume.volume import Volume

seeds = st.integers(0, 2**32)


@given(tree=trees, program=st.lists(st.tuples(batches, st.integers(0, 12)), max_size=8), seed=seeds)
def test_any_tree_is_its_layers_in_any_order_of_completion(
    tree: Node, program: list[tuple[list[Op], int]], seed: int
) -> None:
    """Batches are submitted while others are under way; completions and deferred work come in any order."""
    turns = Turns()
    disk = build(tree, turns, defer=turns.defer)
    outstanding = Outstanding(disk)
    random = Random(seed)
    for batch, steps in program:
        outstanding.submit(batch)
        for _ in range(min(steps, len(turns.waiting))):
            turns.run(random.randrange(len(turns.waiting)))
    for index in shuffled(turns, seed):
        turns.run(index)
    assert not outstanding.pending
    outstanding.submit([Op(Kind.READ, 0, disk.count, 0, owned) for owned in (False, True)])
    turns.run_all()
    assert not outstanding.pending


@given(tree=trees)
async def test_the_map_of_any_tree_is_that_of_its_layers(tree: Node) -> None:
    disk = build(tree)
    found, offset = [], 0
    while offset < disk.count * BLOCK:
        runs = await disk.device.allocation(offset, disk.count * BLOCK - offset)
        assert runs and all(before.depth != after.depth for before, after in pairwise(runs))
        found += [run.depth != 0 for run in runs for _ in range(run.length // BLOCK)]
        offset += sum(run.length for run in runs)
    assert found == [disk.view(block) != {None} for block in range(disk.count)]


@given(
    tree=trees,
    program=st.lists(batches, max_size=6),
    begin=st.integers(0, 6),
    step_blocks=st.integers(1, 4),
    seed=seeds,
)
async def test_a_scrub_at_any_moment_changes_nothing_that_is_read(
    tree: Node, program: list[list[Op]], begin: int, step_blocks: int, seed: int
) -> None:
    turns = Turns()
    disk = build(tree, turns)
    volume = disk.device
    assert isinstance(volume, Volume)
    outstanding = Outstanding(disk)
    random = Random(seed)
    done = trio.Event()

    async def scrub() -> None:
        await volume.scrub()
        done.set()

    async def some_turns(most: int) -> None:
        for _ in range(random.randrange(most)):
            await trio.lowlevel.checkpoint()
            if turns.waiting:
                turns.run(random.randrange(len(turns.waiting)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub_module, "STEP_BYTES", step_blocks * BLOCK)
        async with trio.open_nursery() as nursery:
            for number, batch in enumerate([*program, []]):
                if number == min(begin, len(program)):
                    disk.scrub_begins()
                    nursery.start_soon(scrub)
                if batch:
                    outstanding.submit(batch)
                await some_turns(20)
            while outstanding.pending or not done.is_set():
                await some_turns(5)
    assert volume.parent is None
    outstanding.submit([Op(Kind.READ, 0, disk.count, 0, owned) for owned in (False, True)])
    while outstanding.pending:
        await some_turns(5)
