"""An Upstairs in the same process: the same Downstairs without sockets, and two shortcuts past the messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio
from downstairs_rig import (
    BLOCK,
    OTHER_S,
    OTHER_U,
    S,
    U,
    connected,
    contexts_of,
    definition,
    flush,
    hello,
    payload,
    promote,
    read,
    serving,
    write,
)
from trio.testing import MockClock

from crucible_emu import errors
from crucible_emu.downstairs.faults import Faults
from crucible_emu.downstairs.flushes import JOURNALED_WITHIN_S
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.downstairs.local import LocalConnection, LocalDownstairs
from crucible_emu.region import Region
from crucible_emu.region.snapshot import snapshot_path
from crucible_emu.wire import messages as m


class Talk:
    """One end of a local connection: what was delivered, and why it ended."""

    def __init__(self, downstairs: LocalDownstairs, ids: Any = (U, S)) -> None:
        self.ids = ids
        self.inbox: list[m.Message] = []
        self.ended: list[str] = []
        self.on_delivery: Callable[[list[m.Message]], None] | None = None
        self._more = trio.Event()
        self.connection: LocalConnection = downstairs.connect(self._deliver, self.ended.append)

    def _deliver(self, messages: list[m.Message]) -> None:
        self.inbox += messages
        self._more.set()
        if self.on_delivery is not None:
            self.on_delivery(messages)

    def send(self, *messages: m.Message) -> list[m.Message]:
        """What is delivered before ``send`` returns."""
        before = len(self.inbox)
        self.connection.send(list(messages))
        return self.inbox[before:]

    async def wait_for(self, count: int) -> list[m.Message]:
        while len(self.inbox) < count:
            self._more = trio.Event()
            await self._more.wait()
        return self.inbox

    async def wait_for_kind(self, kind: type[m.Message]) -> m.Message:
        """The first message of this kind."""
        while True:
            for message in self.inbox:
                if isinstance(message, kind):
                    return message
            self._more = trio.Event()
            await self._more.wait()

    async def write_and_flush(self, number: int, *, snapshot: str | None = None) -> None:
        """Write a block, and have flush ``number`` done."""
        self.inbox.clear()
        self.send(write(1000 + 2 * number, number), flush(1001 + 2 * number, number=number, snapshot=snapshot))
        assert await self.wait_for_kind(m.FlushAck)

    def activate(self, generation: int = 1, **changes: Any) -> None:
        self.send(hello(*self.ids, generation=generation, **changes))
        self.send(promote(*self.ids, generation), m.RegionInfoPlease(), m.ExtentVersionsPlease())
        assert [type(each) for each in self.inbox] == [m.YesItsMe, m.YouAreNowActive, m.RegionInfo, m.ExtentVersions]
        self.inbox.clear()

    def train(self, first_job_id: int, *blocks: int, fill: int = 1) -> bool:
        """Write these blocks through the shortcut, one job each."""
        count = len(blocks)
        rows = np.frombuffer(payload(count, fill), np.uint8).reshape(count, BLOCK)
        numbers = np.array(blocks, np.int64)
        return self.connection.write(
            first_job_id, list(blocks), [1] * count, numbers, rows, contexts_of(payload(count, fill))
        )

    def read_now(self, start: int, count: int = 1) -> bytes | None:
        out = bytearray(count * BLOCK)
        contexts = self.connection.read_cached(start, count, memoryview(out))
        return None if contexts is None else bytes(out)


@asynccontextmanager
async def local(region: Region, **options: Any) -> AsyncIterator[LocalDownstairs]:
    async with trio.open_nursery() as nursery:
        downstairs = LocalDownstairs(region, **options)
        await nursery.start(downstairs.run)
        yield downstairs
        nursery.cancel_scope.cancel()


async def test_what_can_be_done_at_once_is_answered_at_once(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        answers = talk.send(write(1000, 3, 2, 5), read(1001, 3, 2))
        assert answers[0] == m.WriteAck(U, S, 1000, None)
        assert isinstance(answers[1], m.ReadResponse)
        assert answers[1].data == payload(2, 5)
        assert talk.send(m.Ruok()) == [m.Imok()]
        assert talk.send(flush(1002)) == []
        assert await talk.wait_for(4)
        assert talk.inbox[3] == m.FlushAck(U, S, 1002, None)


async def test_shortcuts(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        assert not talk.train(1000, 1)  # not active yet
        assert talk.read_now(1) is None
        talk.activate()
        assert talk.train(1000, 1, 5, 9, fill=7)
        assert talk.read_now(5) == payload(1, 7)
        assert talk.inbox == [], "what was done at once gets no acknowledgement"
        assert talk.connection.written(4, 2).tolist() == [False, True]
        # The train's jobs count as complete for those that name them.
        assert talk.send(m.ExtentLiveNoOp(U, S, 1003, (1000, 1002))) == [m.ExtentLiveAckId(U, S, 1003, None)]
        assert downstairs.statistics().blocks_written == 3


async def test_shortcuts_stand_back_for_what_must_not_be_passed(make_region: Callable[..., Region]) -> None:
    async with local(make_region()) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        downstairs.runner.stall()
        assert talk.send(write(1, 0)) == []
        assert not talk.train(2, 3)
        assert talk.read_now(0) is None
        downstairs.runner.unstall()
        assert talk.train(2, 3)


async def test_write_passes_a_flush_under_way_and_is_not_in_it(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        assert talk.train(1, 0, fill=1)
        assert talk.send(flush(2)) == []  # its I/O goes on in a thread
        assert talk.train(3, 0, 9, fill=2)
        assert talk.read_now(0) == payload(1, 2)
        await talk.wait_for(1)
        dirty = region.extent_versions()[2].tolist()
        assert dirty[1], "the later write came after what the flush covers"
        talk.send(flush(4, number=2))
        await talk.wait_for(2)
        assert not region.extent_versions()[2].any()


async def test_shortcut_that_fails_falls_back_to_messages(make_region: Callable[..., Region]) -> None:
    region = make_region()
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        talk.send(m.ExtentLiveClose(U, S, 1, (), 0))
        await talk.wait_for(1)
        assert not talk.train(2, 3)
        assert talk.read_now(3) is None
        (ack,) = talk.send(write(2, 3))
        assert isinstance(ack, m.WriteAck)
        assert isinstance(ack.result, errors.GenericError)


async def test_no_room_means_no_shortcut_and_messages_in_order(make_region: Callable[..., Region]) -> None:
    region = make_region(definition(blocks=64), staged_bytes_max=8 * BLOCK)
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        jobs = [write(1000 + block, block, 1, block) for block in range(100)]
        for job in jobs:
            if not talk.train(job.job_id, job.start, fill=job.start):
                talk.send(job)
        talk.send(flush(5000), read(5001, 0, 100))
        response = await talk.wait_for_kind(m.ReadResponse)
        assert await talk.wait_for_kind(m.FlushAck) == m.FlushAck(U, S, 5000, None)
        assert isinstance(response, m.ReadResponse)
        assert [row[0] for row in np.frombuffer(response.data, np.uint8).reshape(100, -1)] == list(range(100))


async def test_faults_switch_the_shortcuts_off(make_region: Callable[..., Region], expect_log: Any) -> None:
    expect_log("injected", at_least=0)
    async with local(make_region(), faults=Faults(write_errors=0.5, seed=2)) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        assert not talk.train(1, 0)
        answers = talk.send(*[write(block, block) for block in range(32)])
        failed = [each.job_id for each in answers if isinstance(each.result, errors.IoError)]  # type: ignore[attr-defined]
        assert 8 < len(failed) < 24
        # What would have to come after a failed write waits: the Upstairs throws this replica out now.
        assert talk.send(write(100, failed[0]), read(101, failed[0])) == []


async def test_message_sent_from_inside_a_delivery(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        todo = list(range(1001, 1050))

        def one_more(_messages: list[m.Message]) -> None:
            if todo:
                job = todo.pop(0)
                assert talk.send(write(job, job % 8)) == [], "answers come after this delivery, not inside it"

        talk.on_delivery = one_more
        talk.send(write(1000, 0))
        assert [each.job_id for each in talk.inbox] == list(range(1000, 1050))  # type: ignore[attr-defined]


async def test_order_is_kept_when_deliveries_send_while_messages_have_no_room(
    make_region: Callable[..., Region],
) -> None:
    async with local(make_region(), limits=JobLimits(jobs_max=4)) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        late = [write(2000, 0, 1, 200)]

        def one_more(_messages: list[m.Message]) -> None:
            if late:
                talk.send(late.pop())

        talk.on_delivery = one_more
        talk.send(
            *[write(1000 + index, 0, 1, index) for index in range(20)],
            flush(1020),
            *[write(1021 + i, 0) for i in range(9)],
        )
        await talk.wait_for(31)
        talk.send(read(3000, 0))
        assert talk.inbox[-1].data == payload(1, 200)  # type: ignore[attr-defined]
        guest = [each.job_id for each in talk.inbox if isinstance(each, m.WriteAck)]
        assert guest == [*range(1000, 1020), *range(1021, 1030), 2000]


async def test_takeover_closes_the_older_connection(region: Region) -> None:
    async with local(region) as downstairs:
        old, new = Talk(downstairs), Talk(downstairs, (OTHER_U, OTHER_S))
        old.activate(1)
        new.activate(2)
        assert old.inbox == [m.YouAreNoLongerActive(OTHER_U, OTHER_S, 2)]
        assert old.ended == ["another Upstairs took over"]
        assert not old.train(5, 0)
        assert old.send(m.Ruok()) == []
        assert new.train(5, 0)


async def test_closed_connection_hears_nothing_more(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        talk.send(write(1, 0), flush(2))
        talk.inbox.clear()
        talk.connection.close()
        with trio.fail_after(30):
            while not downstairs.core.lane.idle:  # noqa: ASYNC110 - the flush goes on, and tells nobody
                await trio.sleep(0.001)
        assert (talk.inbox, talk.ended) == ([], [])
        again = Talk(downstairs)
        again.activate()
        assert again.read_now(0) == payload()


async def test_broken_protocol_ends_with_a_reason(region: Region) -> None:
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.send(m.RegionInfoPlease())
        assert talk.ended == ["RegionInfoPlease has no place in state Open"]


async def test_reads_that_miss_the_cache_come_later_and_in_the_right_version(
    make_region: Callable[..., Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    region = make_region()
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        assert talk.train(1, 0, 1, 2, fill=1)
        monkeypatch.setattr(region, "read_cached", lambda *_: None)
        assert talk.send(read(10, 0)) == []
        assert not talk.train(11, 0, fill=2), "a write of the same block must not pass the read"
        assert talk.send(write(11, 0, 1, 2), read(12, 0)) == []
        await talk.wait_for(3)
        first, ack, second = talk.inbox
        assert [each.job_id for each in talk.inbox] == [10, 11, 12]  # type: ignore[attr-defined]
        assert first.data == payload(1, 1)  # type: ignore[attr-defined]
        assert second.data == payload(1, 2)  # type: ignore[attr-defined]
        assert ack == m.WriteAck(U, S, 11, None)


# Repair


def fill(region: Region, value: int) -> None:
    region.write(np.arange(8), np.full((8, BLOCK), value, np.uint8), contexts_of(payload(8, value)))
    region.flush(value, 1)


async def test_repair_inside_one_process(make_region: Callable[..., Region]) -> None:
    source, target = make_region(), make_region()
    fill(source, 7)
    fill(target, 3)
    async with local(source) as one, local(target) as two:
        from_talk, to_talk = Talk(one), Talk(two)
        from_talk.activate(2)
        to_talk.activate(2)
        for talk in (from_talk, to_talk):
            talk.send(m.ExtentClose(0, 0))
            await talk.wait_for(1)
        to_talk.send(m.ExtentRepair(1, 0, 0, one.repair_address, (1,)))
        await to_talk.wait_for(2)
        to_talk.send(m.ExtentReopen(2, 0))
        assert to_talk.inbox == [m.RepairAckId(0), m.RepairAckId(1), m.RepairAckId(2)]
        assert to_talk.read_now(0) == payload(1, 7)


async def test_another_process_can_repair_from_a_local_one(make_region: Callable[..., Region]) -> None:
    source, target = make_region(), make_region()
    fill(source, 7)
    source.close_extent(0)
    async with local(source, repair_host="127.0.0.1") as one, serving(target) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(m.ExtentClose(0, 0), m.RepairAckId)
        assert await upstairs.ask(m.ExtentRepair(1, 0, 0, one.repair_address, (1,))) == m.RepairAckId(1)
        assert await upstairs.ask(m.ExtentReopen(2, 0)) == m.RepairAckId(2)
        assert (await upstairs.ask(read(1, 0), m.ReadResponse)).data == payload(1, 7)


async def test_address_of_a_region_that_left_is_nobodys(make_region: Callable[..., Region], expect_log: Any) -> None:
    target = make_region()
    async with local(make_region()) as gone:
        address = gone.repair_address
    async with local(target) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        talk.send(m.ExtentClose(0, 0))
        await talk.wait_for(1)
        with expect_log("work failed"):
            talk.send(m.ExtentRepair(1, 0, 0, address, ()))
            await talk.wait_for(2)
        assert isinstance(talk.inbox[1], m.ExtentError)


@asynccontextmanager
async def flushed_twice(region: Region) -> AsyncIterator[None]:
    """A Downstairs that was told to flush twice in quick succession."""
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        for number in (1, 2):
            await talk.write_and_flush(number)
        yield


async def test_flush_that_follows_hard_upon_another_goes_to_the_journal(
    make_region: Callable[..., Region], mock_clock: MockClock
) -> None:
    region = make_region()
    async with flushed_twice(region):
        assert not region.is_settled


async def test_flush_after_a_pause_goes_to_the_extents(
    make_region: Callable[..., Region], mock_clock: MockClock
) -> None:
    region = make_region()
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        for number in (1, 2):
            await talk.write_and_flush(number)
            assert region.is_settled
            mock_clock.jump(JOURNALED_WITHIN_S)


async def test_journal_is_settled_when_the_flushes_have_stopped(
    make_region: Callable[..., Region], autojump_clock: MockClock
) -> None:
    region = make_region()
    async with flushed_twice(region):
        while not region.is_settled:  # noqa: ASYNC110 - a region tells nobody
            await trio.sleep(0.1)
        assert region.extent_versions()[1].max() == 2
        assert "1001" not in (region.path / "region.json").read_text()


async def test_who_leaves_leaves_an_ordinary_directory(
    make_region: Callable[..., Region], mock_clock: MockClock
) -> None:
    region = make_region()
    async with flushed_twice(region):
        assert not region.is_settled
    assert region.is_settled


async def test_snapshot_holds_what_was_in_the_journal(
    make_region: Callable[..., Region], mock_clock: MockClock
) -> None:
    region = make_region()
    async with local(region) as downstairs:
        talk = Talk(downstairs)
        talk.activate()
        for number, snapshot in ((1, None), (2, None), (3, "three")):
            await talk.write_and_flush(number, snapshot=snapshot)
    with Region.open(snapshot_path(region.path, "three"), read_only=True) as copy:
        out = bytearray(4 * BLOCK)
        copy.read(0, 4, memoryview(out))
    assert out == bytes(BLOCK) + 3 * bytes(payload())
