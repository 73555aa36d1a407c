"""The life of a volume: activation in order and undone, deactivation, scrub, what it says about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from disk_rig import do, flush, read, write
from trio.testing import MockClock, wait_all_tasks_blocked
from volume_rig import BLOCK, SlowDevice, Turns

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume import scrub as scrub_module
from crucible_emu.volume.backend import Backend, ExtentInfo, WorkCounts
from crucible_emu.volume.in_service import active
from crucible_emu.volume.info import UpstairsNode, VolumeNode
from crucible_emu.volume.volume import Volume

ExpectLog = Callable[..., Any]


class Scripted(Backend):
    """A part that writes down what happens to it in a list shared by all, and refuses what it is told to."""

    def __init__(self, name: str, story: list[str], blocks: int = 4) -> None:
        self.memory = MemoryDevice(blocks * BLOCK, BLOCK)
        super().__init__(self.memory)
        self.name = name
        self.story = story
        self.in_service = False
        self.refuses: dict[str, errors.CrucibleError] = {}
        self.extents: ExtentInfo | None = ExtentInfo(BLOCK, blocks, 1)
        self.target = f"127.0.0.1:{ord(name)}"

    @property
    def active(self) -> bool:
        return self.in_service

    def _tell(self, what: str, shown: str = "") -> None:
        self.story.append(f"{what} {self.name}{shown}")
        if what in self.refuses:
            raise self.refuses[what]

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._tell("activate", "" if generation is None else f" {generation}")
        self.in_service = True

    async def deactivate(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.in_service:
            raise errors.UpstairsInactive()
        self.in_service = False
        self._tell("deactivate")

    async def snapshot(self, name: str) -> None:
        self._tell("snapshot", f" {name}")

    def work_counts(self) -> WorkCounts:
        return WorkCounts(1, 2, 3)

    def extent_info(self) -> ExtentInfo | None:
        return self.extents

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        self._tell("replace")
        return ReplaceResult.STARTED if old == self.target else ReplaceResult.MISSING


class Tree:
    """A volume of A and B over P."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.a, self.b, self.p = (Scripted(name, self.story) for name in "ABP")
        self.volume = Volume(BLOCK, [self.a, self.b], self.p)


# -- activation and deactivation --------------------------------------------------------------------------------------


async def test_parts_are_activated_in_order_and_the_parent_last() -> None:
    tree = Tree()
    assert not tree.volume.active
    await tree.volume.activate()
    assert tree.volume.active
    await tree.volume.deactivate()
    assert tree.story == ["activate A", "activate B", "activate P", "deactivate A", "deactivate B", "deactivate P"]


async def test_one_generation_for_all_parts_at_any_depth() -> None:
    tree = Tree()
    await Volume(BLOCK, [tree.volume], Scripted("Q", tree.story)).activate(7)
    assert tree.story == ["activate A 7", "activate B 7", "activate P 7", "activate Q 7"]


@pytest.mark.parametrize("refusing", ["A", "B", "P"])
async def test_an_activation_that_fails_leaves_nothing_active(refusing: str) -> None:
    """The real one leaves the parts active that came before."""
    tree = Tree()
    error = errors.GenerationNumberInvalid()
    {"A": tree.a, "B": tree.b, "P": tree.p}[refusing].refuses["activate"] = error
    with pytest.raises(errors.GenerationNumberInvalid):
        await tree.volume.activate()
    assert not (tree.a.active or tree.b.active or tree.p.active)


async def test_an_activation_that_fails_keeps_what_was_active_before() -> None:
    tree = Tree()
    tree.a.in_service = True
    tree.b.refuses["activate"] = errors.UpstairsDeactivating()
    with pytest.raises(errors.UpstairsDeactivating):
        await tree.volume.activate()
    assert tree.a.active


async def test_an_activation_that_is_cancelled_leaves_nothing_active() -> None:
    tree = Tree()
    waiting = trio.Event()

    async def never(generation: int | None = None, timeout_s: float | None = None) -> None:
        waiting.set()
        await trio.sleep_forever()

    tree.p.activate = never  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.volume.activate)
        await waiting.wait()
        nursery.cancel_scope.cancel()
    assert tree.story[2:] == ["deactivate B", "deactivate A"]


async def test_undoing_an_activation_tells_the_first_error(expect_log: ExpectLog) -> None:
    expect_log("cannot leave service after a failed activation error=.*second")
    tree = Tree()
    tree.a.refuses["deactivate"] = errors.IoError("the second")
    tree.b.refuses["activate"] = errors.IoError("the first")
    with pytest.raises(errors.IoError, match="the first"):
        await tree.volume.activate()


async def test_all_parts_share_the_time_for_an_activation(autojump_clock: MockClock) -> None:
    given: list[float | None] = []

    async def slow(generation: int | None = None, timeout_s: float | None = None) -> None:
        given.append(timeout_s)
        await trio.sleep(2)

    tree = Tree()
    for part in (tree.a, tree.b, tree.p):
        part.activate = slow  # type: ignore[method-assign]
    await tree.volume.activate(timeout_s=3)
    assert given == [3, 1, 0]
    await tree.volume.activate()
    assert given[3:] == [None] * 3


async def test_a_part_that_changed_its_size_is_refused() -> None:
    tree = Tree()

    async def grow(generation: int | None = None, timeout_s: float | None = None) -> None:
        tree.b.device = MemoryDevice(5 * BLOCK, BLOCK)

    tree.b.activate = grow  # type: ignore[method-assign]
    with pytest.raises(errors.SubvolumeSizeMismatch):
        await tree.volume.activate()
    assert not tree.a.active


async def test_deactivation_goes_on_after_an_error_and_raises_the_first() -> None:
    tree = Tree()
    await tree.volume.activate()
    tree.a.refuses["deactivate"], tree.p.refuses["deactivate"] = errors.IoError("first"), errors.IoError("second")
    with pytest.raises(errors.IoError, match="first"):
        await tree.volume.deactivate()
    assert not (tree.a.active or tree.b.active or tree.p.active)
    with pytest.raises(errors.UpstairsInactive):
        await tree.volume.deactivate()


async def test_leaving_service_passes_by_what_is_not_in_it() -> None:
    tree = Tree()
    await tree.volume.activate()
    tree.b.in_service = False
    await Volume(BLOCK, [tree.volume]).leave_service()
    assert tree.story[3:] == ["deactivate A", "deactivate P"]


async def test_a_cancelled_user_still_leaves_in_order() -> None:
    tree = Tree()
    with trio.move_on_after(0):
        async with active(tree.volume):
            await trio.sleep_forever()
    assert not tree.volume.active and tree.story.count("deactivate A") == tree.story.count("activate A")


# -- what it says about itself ----------------------------------------------------------------------------------------


def test_work_counts_are_summed_over_all_parts() -> None:
    tree = Tree()
    assert tree.volume.work_counts() == WorkCounts(3, 6, 9)
    assert Volume(BLOCK, [tree.volume, Scripted("C", [])]).work_counts() == WorkCounts(4, 8, 12)
    assert Volume(BLOCK, [MemoryDevice(BLOCK, BLOCK)]).work_counts() == WorkCounts()


def test_extent_info_is_that_of_the_direct_sub_volumes() -> None:
    tree = Tree()
    assert tree.volume.extent_info() is None
    assert tree.volume.volume_extent_info() == [ExtentInfo(BLOCK, 4, 1)] * 2
    assert Volume(BLOCK, [tree.volume]).volume_extent_info() == []
    for part in (tree.a, tree.b):
        part.extents = None
        with pytest.raises(errors.SubvolumeTypeMismatch):
            tree.volume.volume_extent_info()
        part.extents = ExtentInfo(BLOCK, 4, 1)


async def test_a_snapshot_goes_to_every_sub_volume_and_not_to_the_parent() -> None:
    tree = Tree()
    await Volume(BLOCK, [tree.volume]).snapshot("now")
    assert tree.story == ["snapshot A now", "snapshot B now"]


def test_the_shape_of_volume_info() -> None:
    target = {"region_id": None, "target_addr": "127.0.0.1:1", "repair_addr": None}
    region_set = {
        "upstairs": {
            "state": "go_active",
            "block_size": None,
            "upstairs_id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001",
            "session_id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f002",
            "generation": 3,
            "read_only": False,
            "encrypted": True,
            "reconcile_in_progress": False,
            "live_repair_in_progress": False,
            "targets": [
                {**target, "state": {"type": "connecting", "state": "wait_quorum", "mode": "new"}},
                {**target, "state": {"type": "live_repair"}},
                {**target, "state": {"type": "stopping"}},
            ],
        }
    }
    tree = {
        "volume": {
            "sub_volumes": [region_set],
            "read_only_parent": {"volume": {"sub_volumes": [], "read_only_parent": None}},
        }
    }
    assert VolumeNode.model_validate(tree).model_dump(mode="json") == tree
    assert UpstairsNode.model_validate(region_set).model_dump(mode="json") == region_set


# -- replacement ------------------------------------------------------------------------------------------------------


def test_the_first_part_that_knows_the_target_replaces_it() -> None:
    tree = Tree()
    nested = Volume(BLOCK, [tree.volume], Scripted("Q", tree.story))
    assert nested.replace_downstairs(tree.b.target, "127.0.0.1:1") is ReplaceResult.STARTED
    assert tree.story == ["replace A", "replace B"]
    assert nested.replace_downstairs("127.0.0.1:2", "127.0.0.1:1") is ReplaceResult.MISSING
    assert tree.story[2:] == ["replace A", "replace B", "replace P", "replace Q"]
    tree.a.refuses["replace"] = errors.ReplaceRequestInvalid("no")
    with pytest.raises(errors.ReplaceRequestInvalid):
        nested.replace_downstairs(tree.b.target, "127.0.0.1:1")


# -- scrub ------------------------------------------------------------------------------------------------------------


def over(split: tuple[int, ...], written: dict[int, int], parent_blocks: int) -> tuple[Volume, MemoryDevice]:
    """Sub-volumes with some blocks written, over a parent of nines."""
    parts = [MemoryDevice(size * BLOCK, BLOCK) for size in split]
    parent = MemoryDevice(parent_blocks * BLOCK, BLOCK)
    parent.data[:] = b"\x09" * (parent_blocks * BLOCK)
    parent.depths[:] = 1
    volume = Volume(BLOCK, parts, parent)
    for block, fill in written.items():
        request = Request(Kind.WRITE, block * BLOCK, BLOCK, memoryview(bytes([fill]) * BLOCK))
        volume.submit([request], lambda _: None)
    return volume, parent


async def fills(volume: Volume) -> list[int]:
    return list((await read(volume, 0, volume.size_bytes))[::BLOCK])


@pytest.mark.parametrize(
    ("split", "written", "parent_blocks", "found"),
    [
        ((6,), {}, 6, [9] * 6),
        ((6,), {}, 3, [9, 9, 9, 0, 0, 0]),
        ((6,), {1: 5, 4: 5}, 3, [9, 5, 9, 0, 5, 0]),
        ((6,), dict.fromkeys(range(6), 5), 6, [5] * 6),
        ((3, 3), {0: 5, 5: 5}, 3, [5, 9, 9, 0, 0, 5]),
        ((4, 4), {1: 5, 6: 5}, 6, [9, 5, 9, 9, 9, 9, 5, 0]),
        ((2, 2), {}, 9, [9] * 4),
    ],
)
@pytest.mark.parametrize("step_blocks", [1, 2, 256])
async def test_a_scrub_copies_what_is_not_written_and_lets_the_parent_go(
    split: tuple[int, ...],
    written: dict[int, int],
    parent_blocks: int,
    found: list[int],
    step_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole, short, sparse, useless, over two sub-volumes, and a parent that is longer than the disk."""
    monkeypatch.setattr(scrub_module, "STEP_BYTES", step_blocks * BLOCK)
    volume, parent = over(split, written, parent_blocks)
    assert await fills(volume) == found
    await volume.scrub()
    assert volume.scrub_point == min(parent_blocks, sum(split)) * BLOCK and volume.parent is None
    parent.data[:] = bytes(len(parent.data))
    assert await fills(volume) == found
    await do(volume, Request(Kind.WRITE_UNWRITTEN, 0, BLOCK, memoryview(b"\x07" * BLOCK)))
    assert await fills(volume) == found, "all that the parent had counts as written"


async def test_a_scrub_without_a_parent_does_nothing() -> None:
    volume = Volume(BLOCK, [MemoryDevice(4 * BLOCK, BLOCK)])
    await write(volume, 0, b"\x05" * BLOCK)
    await volume.scrub(start_delay_s=100)
    assert await fills(volume) == [5, 0, 0, 0]


async def test_a_scrub_waits_and_rests(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "STEP_BYTES", BLOCK)
    volume, _ = over((4,), {}, 4)
    points: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.scrub, 120, 0.5)
        for after_s in (119, 1.25, 0.5, 0.5):
            await trio.sleep(after_s)
            points.append(volume.scrub_point // BLOCK)
    assert points == [0, 1, 2, 3]
    assert volume.parent is None


async def test_a_scrub_goes_in_steps_of_128_kib(autojump_clock: MockClock) -> None:
    volume = Volume(4096, [MemoryDevice(96 * 4096)], MemoryDevice(70 * 4096))
    points: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.scrub, None, 1)
        for _ in range(3):
            await trio.sleep(0.9)
            points.append(volume.scrub_point)
            await trio.sleep(0.1)
    assert points == [131072, 2 * 131072, 70 * 4096]


@pytest.mark.parametrize(
    ("split", "parent_blocks"),
    [((10,), 10), ((10,), 5), ((10, 5), 5), ((5, 5), 5), ((5, 5), 8), ((5, 5), 10)],
)
async def test_every_range_at_every_scrub_point(
    split: tuple[int, ...], parent_blocks: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "STEP_BYTES", BLOCK)
    volume, _ = over(split, {3: 5, 6: 6}, parent_blocks)
    blocks = sum(split)
    expected = [9] * parent_blocks + [0] * (blocks - parent_blocks)
    expected[3], expected[6] = 5, 6
    points = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.scrub, None, 1)
        while volume.parent is not None:
            await trio.sleep(0.5)
            points.add(volume.scrub_point // BLOCK)
            for start in range(blocks):
                for stop in range(start + 1, blocks + 1):
                    found = await read(volume, start * BLOCK, (stop - start) * BLOCK)
                    assert list(found[::BLOCK]) == expected[start:stop]
    assert points == set(range(1, parent_blocks + 1))


async def test_after_a_scrub_the_parent_counts_as_absent() -> None:
    """In the real one the volume is not active any more, and cannot be deactivated."""
    tree = Tree()
    async with active(tree.volume):
        await tree.volume.scrub()
        assert not tree.p.active and tree.volume.active
        assert [part.name for part in tree.volume.parts if isinstance(part, Scripted)] == ["A", "B"]
        assert tree.volume.replace_downstairs(tree.p.target, "127.0.0.1:1") is ReplaceResult.MISSING
        assert tree.volume.work_counts() == WorkCounts(2, 4, 6)
    assert tree.story[3:] == ["deactivate P", "replace A", "replace B", "deactivate A", "deactivate B"]


async def test_a_parent_that_does_not_leave_is_only_logged(expect_log: ExpectLog) -> None:
    expect_log("the parent did not leave service after the scrub")
    tree = Tree()
    await tree.volume.activate()
    tree.p.refuses["deactivate"] = errors.IoError("stuck")
    await tree.volume.scrub()
    assert tree.volume.active and tree.volume.parent is None


class Flaky:
    """Fails some requests, as a function for :class:`SlowDevice`; those of ``kind``, so often."""

    def __init__(self, kind: Kind, times: int, offset: int = 0) -> None:
        self.kind = kind
        self.times = times
        self.offset = offset

    def __call__(self, request: Request) -> errors.CrucibleError | None:
        if request.kind is self.kind and self.times and request.offset == self.offset:
            self.times -= 1
            return errors.IoError("flaky")
        return None


async def scrub(volume: Volume, turns: Turns) -> None:
    """Scrub while the devices complete."""
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            while True:
                await wait_all_tasks_blocked()
                turns.run_all()

        nursery.start_soon(run)
        try:
            await volume.scrub()
        finally:
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("failures", [5, 6])
async def test_a_read_of_the_parent_is_tried_six_times(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "STEP_BYTES", BLOCK)
    turns, flaky = Turns(), Flaky(Kind.READ, failures, offset=2 * BLOCK)
    parent = MemoryDevice(4 * BLOCK, BLOCK)
    parent.data[:] = b"\x09" * (4 * BLOCK)
    child = MemoryDevice(4 * BLOCK, BLOCK)
    volume = Volume(BLOCK, [child], SlowDevice(parent, turns, flaky))
    if failures == 5:
        await scrub(volume, turns)
    else:
        with pytest.RaisesGroup(pytest.RaisesExc(errors.IoError, match="Scrub failed to read at offset 2$")):
            await scrub(volume, turns)
        assert volume.scrub_point == 2 * BLOCK and volume.parent is not None
        child.depths[0] = 0  # to see that it does not begin anew
        await scrub(volume, turns)
        assert child.depths.tolist() == [0, 1, 1, 1]
    assert volume.parent is None


async def test_race_of_a_failed_flush_with_a_scrub() -> None:
    """What was copied before a flush failed may be gone: it is copied again before the parent is let go."""
    turns, flaky = Turns(), Flaky(Kind.FLUSH, 0)
    child, parent = MemoryDevice(4 * BLOCK, BLOCK), MemoryDevice(4 * BLOCK, BLOCK)
    parent.data[:] = b"\x09" * (4 * BLOCK)
    volume = Volume(BLOCK, [SlowDevice(child, turns, flaky)], parent)
    lost: list[int] = []

    def lose() -> None:
        """All replicas go away and come back without what was not flushed; the guest's flush says so."""
        child.data[: 2 * BLOCK] = bytes(2 * BLOCK)
        child.depths[:2] = 0
        flaky.times = 1
        request = Request(Kind.FLUSH)
        volume.submit([request], lambda _: lost.append(1))

    real = volume.flush

    async def flush_later() -> None:
        if not lost:
            lose()
        await real()

    volume.flush = flush_later  # type: ignore[method-assign]
    await scrub(volume, turns)
    assert volume.parent is None and lost == [1]
    assert bytes(child.data) == b"\x09" * (4 * BLOCK)


async def test_a_scrub_whose_own_flush_fails_keeps_the_parent_and_begins_again() -> None:
    turns, flaky = Turns(), Flaky(Kind.FLUSH, 1)
    child, parent = MemoryDevice(4 * BLOCK, BLOCK), MemoryDevice(4 * BLOCK, BLOCK)
    volume = Volume(BLOCK, [SlowDevice(child, turns, flaky)], parent)
    with pytest.RaisesGroup(pytest.RaisesExc(errors.IoError, match="flaky")):
        await scrub(volume, turns)
    assert volume.parent is not None and volume.scrub_point == 0
    await scrub(volume, turns)
    assert volume.parent is None


async def test_race_of_a_read_below_with_the_end_of_a_scrub() -> None:
    """A read that looks below holds the parent in service until it has its answer."""
    turns, story = Turns(), list[str]()
    memory = MemoryDevice(2 * BLOCK, BLOCK)
    memory.data[:] = b"\x09" * (2 * BLOCK)
    child = SlowDevice(MemoryDevice(2 * BLOCK, BLOCK), turns)
    parent = Scripted("P", story, 2)
    parent.device = memory
    volume = Volume(BLOCK, [child], parent)
    await volume.activate()
    found = Request(Kind.READ, 0, BLOCK, memoryview(bytearray(BLOCK)))
    volume.submit([found], lambda _: story.append("read"))
    slow_read = turns.waiting.pop()
    await scrub_until_stuck(volume, turns)
    assert story == ["activate P"]
    slow_read()
    await wait_all_tasks_blocked()
    assert story == ["activate P", "read"] and bytes(found.buffer or b"") == b"\x09" * BLOCK
    await scrub(volume, turns)
    assert story == ["activate P", "read", "deactivate P"]


async def test_race_of_a_map_with_the_end_of_a_scrub() -> None:
    """The sub-volume has said "never written", then a scrub fills it: the parent is still there to be asked."""
    child, parent = MemoryDevice(2 * BLOCK, BLOCK), MemoryDevice(2 * BLOCK, BLOCK)
    await write(parent, 0, b"\x09" * (2 * BLOCK))
    asked, go_on, real = trio.Event(), trio.Event(), parent.allocation

    async def slow(offset: int, length: int) -> list[Allocation]:
        asked.set()
        await go_on.wait()
        return await real(offset, length)

    parent.allocation = slow  # type: ignore[method-assign]
    volume = Volume(BLOCK, [child], parent)
    found: list[Allocation] = []

    async def look() -> None:
        found.extend(await volume.allocation(0, 2 * BLOCK))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await asked.wait()
        nursery.start_soon(volume.scrub)
        await wait_all_tasks_blocked()
        assert child.depths.all() and volume.parent is not None
        go_on.set()
    assert found == [Allocation(2 * BLOCK, 2)] and volume.parent is None
    assert await volume.allocation(0, 2 * BLOCK) == [Allocation(2 * BLOCK, 1)]


async def scrub_until_stuck(volume: Volume, turns: Turns) -> None:
    """Scrub as far as it gets while a read is held back, then cancel it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.scrub)
        for _ in range(20):
            await wait_all_tasks_blocked()
            turns.run_all()
        assert not volume.parent_end and volume.parent is not None
        nursery.cancel_scope.cancel()


async def test_scrubs_come_one_after_the_other() -> None:
    volume, _ = over((4,), {}, 4)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(volume.scrub)
    await flush(volume)
    assert volume.parent is None


async def test_a_scrub_of_a_sub_volume_that_has_a_parent_itself_keeps_what_shows() -> None:
    """What shows through from the inner parent hides the outer one, and must after the scrub."""
    inner = MemoryDevice(2 * BLOCK, BLOCK)
    await write(inner, 0, b"\x05" * BLOCK)
    outer = MemoryDevice(2 * BLOCK, BLOCK)
    await write(outer, 0, b"\x09" * (2 * BLOCK))
    volume = Volume(BLOCK, [Volume(BLOCK, [MemoryDevice(2 * BLOCK, BLOCK)], inner)], outer)
    assert await fills(volume) == [5, 9]
    await volume.scrub()
    assert await fills(volume) == [5, 9]


async def test_a_volume_of_a_parent_alone_cannot_be_scrubbed() -> None:
    volume = Volume(BLOCK, [], MemoryDevice(BLOCK, BLOCK))
    with pytest.raises(errors.CannotReceiveBlocks):
        await volume.scrub()
