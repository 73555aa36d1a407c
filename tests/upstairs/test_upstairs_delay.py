"""The delay that keeps replicas in step: its numbers, who is given it, and the order in which messages leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_upstairs_driver import DEFINITION, RecordingPort, Set, hear
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from upstairs_rig import SESSION, UPSTAIRS

from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.upstairs.delay import (
    DELAY_US_MAX,
    GAP_BYTES_FREE,
    GAP_JOBS_FREE,
    NO_DELAYS,
    delays_us,
    matters,
)
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.tcp_link import TcpLink
from crucible_emu.wire import messages as m

MIB = 1 << 20

TABLE = [
    # jobs                 MiB              active      delays
    ((0, 0, 0), (0, 0, 0), (0, 1, 2), (0, 0, 0)),
    ((100, 0, 0), (0, 0, 0), (0, 1, 2), (0, 0, 0)),
    ((1000, 100, 100), (0, 0, 0), (0, 1, 2), (0, 1024, 1024)),  # "about 1 ms at a gap of 900 jobs"
    ((0, 0, 0), (100, 0, 100), (0, 1, 2), (0, 1546, 0)),  # "1.5 ms at 100 MiB"
    ((1000, 100, 100), (100, 100, 0), (0, 1, 2), (0, 1024, 1546)),  # the greater of the two
    ((1000, 500, 100), (0, 0, 0), (0, 1, 2), (0, 256, 1024)),
    ((1000, 500, 100), (0, 0, 0), (1, 2), (0, 0, 144)),  # one that is not active counts for nothing
    ((1000, 0, 0), (0, 0, 0), (1, 2), (0, 0, 0)),
    ((1000, 0, 0), (0, 0, 0), (1,), (0, 0, 0)),
    ((1000, 0, 0), (0, 0, 0), (), (0, 0, 0)),
    ((100_000, 0, 0), (0, 0, 0), (0, 1, 2), (0, DELAY_US_MAX, DELAY_US_MAX)),
]


@pytest.mark.parametrize(("jobs", "mib", "active", "expected"), TABLE)
def test_the_numbers_of_the_table(
    jobs: tuple[int, ...], mib: tuple[int, ...], active: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert delays_us(jobs, [count * MIB for count in mib], active) == expected


@given(
    st.lists(st.integers(0, 2_000), min_size=3, max_size=3),
    st.lists(st.integers(0, 80 * MIB), min_size=3, max_size=3),
    st.sets(st.sampled_from(CLIENTS)),
)
def test_the_slowest_is_never_slowed_down_and_nobody_where_it_does_not_matter(
    jobs: list[int], size_bytes: list[int], active: set[int]
) -> None:
    delays = delays_us(jobs, size_bytes, sorted(active))
    assert all(0 <= delay <= DELAY_US_MAX for delay in delays)
    assert all(not delays[client] for client in CLIENTS if client not in active)
    if active:
        assert min(delays[client] for client in active) == 0
    if not matters(jobs, size_bytes):
        assert delays == NO_DELAYS


def test_what_makes_it_matter() -> None:
    assert not matters((GAP_JOBS_FREE,) * 3, (GAP_BYTES_FREE,) * 3)
    assert matters((0, GAP_JOBS_FREE + 1, 0), (0, 0, 0))
    assert matters((0, 0, 0), (0, 0, GAP_BYTES_FREE + 1))


# -- the driver: who is given a delay ---------------------------------------------------------------------------------


def burden(upstairs: Upstairs, count: int) -> Job:
    """A train of writes."""
    core = upstairs.core
    job = core.new_job(JobKind.WRITE, [0] * count, [1] * count, count * DEFINITION.block_size, None)
    core.write(job)
    upstairs.perform()
    return job


async def test_the_faster_replicas_are_slowed_down_until_the_slowest_has_caught_up(nursery: trio.Nursery) -> None:
    rig = Set()
    for connector in rig.connectors:
        connector.replica.reachable = False  # jobs wait for the test
    await nursery.start(rig.upstairs.run)
    await rig.upstairs.activate()
    links: list[Any] = list(rig.upstairs.links)
    for link in links:
        link.delay_us = 0
    upstairs, core = rig.upstairs, rig.upstairs.core
    job = burden(upstairs, 1000)
    assert upstairs.delays_us is NO_DELAYS, "none is ahead of the others"
    for client in (1, 2):
        core.done(job, client, (1 << 900) - 1)
        upstairs.perform()
    assert [link.delay_us for link in links] == [0, 1024, 1024]
    core.done(job, 0, (1 << 900) - 1)
    upstairs.perform()
    assert [link.delay_us for link in links] == [0, 0, 0]
    assert upstairs.delays_us is NO_DELAYS


async def test_a_lost_connection_slows_nobody_down(nursery: trio.Nursery, expect_log: Any) -> None:
    rig = Set()
    for connector in rig.connectors:
        connector.replica.reachable = False
    await nursery.start(rig.upstairs.run)
    await rig.upstairs.activate()
    upstairs, core = rig.upstairs, rig.upstairs.core
    job = burden(upstairs, 1000)
    for client in (1, 2):
        core.done(job, client, job.full)
    upstairs.perform()
    assert any(upstairs.delays_us)
    with expect_log("connection ended"):
        core.stopped(0, core.clients[0].connection_id, "cut off")
        upstairs.perform()
    assert upstairs.delays_us is NO_DELAYS


# -- the link: what a delay does --------------------------------------------------------------------------------------


def one_write(number: int) -> Job:
    rows = np.zeros((1, 512), np.uint8)
    job = Job(JobKind.WRITE, number, [0], [1], rows.size)
    job.rows, job.contexts = rows, BlockContexts.plain(hash_blocks(rows))
    return job


def one_read(number: int) -> Job:
    return Job(JobKind.READ, number, [0], [1], 512)


async def test_messages_but_writes_wait_and_all_keep_their_order(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    heard: list[tuple[float, Any]] = []
    link, begun = TcpLink(ours, UPSTAIRS, SESSION), trio.current_time()
    nursery.start_soon(hear, theirs, heard)
    nursery.start_soon(link.run, RecordingPort())
    await wait_all_tasks_blocked()
    link.delay_us = 2_000
    for job in (one_write(1), one_read(2), one_read(3), one_write(4)):
        link.send_job(job, [[]])
    await trio.sleep(1)
    link.delay_us = 0
    link.send_job(one_read(5), [[]])
    await trio.sleep(1)
    times = [(message.job_id, round((when - begun) * 1000)) for when, message in heard]
    assert times == [(1, 0), (2, 2), (3, 4), (4, 4), (5, 1000)]
    nursery.cancel_scope.cancel()


async def test_without_a_delay_nothing_is_held(nursery: trio.Nursery) -> None:
    ours, _ = memory_stream_pair()
    link = TcpLink(ours, UPSTAIRS, SESSION)
    link.send(m.Ruok())
    assert not link._held and len(link._queue) > 0
