"""Every job over a real socket, and everything else that a peer can do to a server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from downstairs_rig import (
    BLOCK,
    OTHER_S,
    OTHER_U,
    S,
    ScriptedUpstairs,
    U,
    barrier,
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
from crucible_emu.downstairs.connection import UNSENT_BYTES_MAX
from crucible_emu.downstairs.faults import Faults
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import EMPTY, PLAIN, BlockContexts
from crucible_emu.region import Region
from crucible_emu.wire import encode
from crucible_emu.wire import messages as m


async def test_write_read_flush(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        versions = await upstairs.activate()
        assert versions is not None and not versions.dirty_bits.any()
        # Two extents in one write; what was never written reads as zeros with an empty context.
        await upstairs.say(write(1000, 6, 4, 7), read(1001, 5, 6, (1000,)), flush(1002, (1000, 1001), 3, 5))
        assert await upstairs.hear() == m.WriteAck(U, S, 1000, None)
        response = await upstairs.hear(m.ReadResponse)
        assert response.blocks.kind.tolist() == [EMPTY, *[PLAIN] * 4, EMPTY]
        assert bytes(response.data) == bytes(BLOCK) + payload(4, 7) + bytes(BLOCK)
        assert await upstairs.hear() == m.FlushAck(U, S, 1002, None)
        gens, flushes, dirty = region.extent_versions()
        assert gens.tolist() == [5, 5, 0, 0]
        assert flushes.tolist() == [3, 3, 0, 0]
        assert not dirty.any()


async def test_write_unwritten_skips_block_by_block(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 1, 1, 9), write(2, 0, 3, 4, (1,), kind=m.WriteUnwritten), read(3, 0, 3, (2,)))
        await upstairs.hear(m.WriteAck)
        assert await upstairs.hear() == m.WriteUnwrittenAck(U, S, 2, None)
        response = await upstairs.hear(m.ReadResponse)
        assert [row[0] for row in np.frombuffer(response.data, np.uint8).reshape(3, -1)] == [4, 9, 4]


async def test_encrypted_blocks_come_back_as_they_went(make_region: Any) -> None:
    region = make_region(definition(encrypted=True))
    rows = np.arange(2 * BLOCK, dtype=np.uint8).reshape(2, BLOCK)
    sealed, contexts = Cipher(bytes(range(32))).encrypt_blocks(rows)
    message = m.Write(U, S, 1, (), 3, contexts, sealed.data.cast("B"))
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate(encrypted=True)
        await upstairs.say(message, read(2, 3, 2, (1,)))
        await upstairs.hear(m.WriteAck)
        response = await upstairs.hear(m.ReadResponse)
        assert bytes(response.data) == sealed.tobytes()
        assert response.blocks.same_reads(contexts)


async def test_train_of_writes_is_one_and_keeps_its_order(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        train = [write(100 + index, index, 1, index + 1) for index in range(20)]
        overlapping = [write(200 + index, index // 2, 1, 50 + index) for index in range(10)]
        await upstairs.say(*train, *overlapping, barrier(300, (100, 119, 209)), read(301, 0, 20, (300,)))
        for index in [*range(100, 120), *range(200, 210)]:
            assert await upstairs.hear() == m.WriteAck(U, S, index, None)
        await upstairs.hear(m.BarrierAck)
        response = await upstairs.hear(m.ReadResponse)
        # Jobs that nobody ordered run in order of arrival.
        want = [51, 53, 55, 57, 59, *range(6, 21)]
        assert [row[0] for row in np.frombuffer(response.data, np.uint8).reshape(20, -1)] == want


async def test_wrong_hash_writes_nothing_and_is_named(region: Region) -> None:
    good, bad = write(2, 1, 1, 5), write(1, 0)
    bad = m.Write(U, S, 1, (), 0, BlockContexts.plain(np.array([1], np.uint64)), bad.data)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(bad, good, read(3, 0, 2))
        assert await upstairs.hear() == m.WriteAck(U, S, 1, errors.HashMismatch())
        assert await upstairs.hear() == m.WriteAck(U, S, 2, None)
        response = await upstairs.hear(m.ReadResponse)
        assert response.blocks.kind.tolist() == [EMPTY, PLAIN]


async def test_faithful_mode_reports_a_wrong_hash_again_and_again(make_region: Any) -> None:
    data = payload()
    bad = m.Write(U, S, 1, (), 0, BlockContexts.plain(np.array([1], np.uint64)), data)
    clock = MockClock()
    clock.autojump_threshold = 0.05  # jumps over the pauses; sockets answer sooner
    report = m.ErrorReport(U, S, 1, errors.HashMismatch())

    async def main() -> None:
        region = make_region()
        async with serving(region, faithful=True) as server, connected(server) as upstairs:
            await upstairs.activate()
            assert await upstairs.ask(bad) == report
            for _ in range(3):
                assert await upstairs.hear() == report

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


async def test_snapshot_with_a_flush(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 0, 1, 3), flush(2, (1,), snapshot="before"), write(3, 0, 1, 4, (2,)))
        await upstairs.hear(m.WriteAck)
        assert await upstairs.hear() == m.FlushAck(U, S, 2, None)
        await upstairs.hear(m.WriteAck)
    with Region.open(region.path / ".zfs" / "snapshot" / "before", read_only=True) as snapshot:
        async with serving(snapshot) as server, connected(server) as upstairs:
            await upstairs.activate(read_only=True)
            response = await upstairs.ask(read(1, 0), m.ReadResponse)
            assert response.data == payload(1, 3)
            failed = await upstairs.ask(flush(2, snapshot="again"), m.FlushAck)
            assert failed.result == errors.ModifyingReadOnlyRegion()


async def test_flush_with_a_limit_leaves_the_others_dirty(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 0, 32), flush(2, (1,), limit=1))
        await upstairs.hear(m.WriteAck)
        await upstairs.hear(m.FlushAck)
        assert region.extent_versions()[2].tolist() == [False, False, True, True]


async def test_live_close_and_reopen(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 0), write(2, 8), barrier(3, (1, 2)))
        for _ in range(3):
            await upstairs.hear()
        closed = await upstairs.ask(m.ExtentLiveClose(U, S, 10, (), 0), m.ExtentLiveCloseAck)
        assert closed.result == (0, 0, True)
        flushed = await upstairs.ask(m.ExtentLiveFlushClose(U, S, 11, (), 1, 7, 9), m.ExtentLiveCloseAck)
        assert flushed.result == (9, 7, False)
        assert (await upstairs.ask(read(12, 8), m.ReadResponse)).blocks.TAG == errors.GenericError.TAG
        again = await upstairs.ask(m.ExtentLiveClose(U, S, 13, (), 1), m.ExtentLiveCloseAck)
        assert isinstance(again.result, errors.CrucibleError)
        for job, extent in ((14, 0), (15, 1)):
            assert (await upstairs.ask(m.ExtentLiveReopen(U, S, job, (), extent), m.ExtentLiveAckId)).result is None
        assert isinstance((await upstairs.ask(m.ExtentLiveReopen(U, S, 16, (), 1))).result, errors.CrucibleError)
        assert (await upstairs.ask(read(17, 8), m.ReadResponse)).data == payload()
        assert (await upstairs.ask(m.ExtentLiveNoOp(U, S, 18, ()), m.ExtentLiveAckId)).result is None


async def test_reconciliation_steps_but_the_repair(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(write(1, 0), m.WriteAck)
        for number, step in enumerate(
            (m.ExtentFlush(0, 0, 0, 7, 9), m.ExtentClose(1, 0), m.ExtentReopen(2, 0), m.ExtentFlush(3, 1, 0, 7, 9))
        ):
            assert await upstairs.ask(step) == m.RepairAckId(number)
        assert region.extent_versions()[0].tolist() == [9, 0, 0, 0]
        error = await upstairs.ask(m.ExtentReopen(4, 0), m.ExtentError)
        assert (error.repair_id, error.extent_id) == (4, 0)


async def test_extents_left_closed_are_reopened_by_the_next_promotion(region: Region) -> None:
    async with serving(region) as server:
        async with connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.ask(m.ExtentClose(0, 2), m.RepairAckId)
        async with connected(server) as upstairs:
            await upstairs.activate(2)
            assert not region.extent_is_closed(2)


# Connections


async def test_ping_in_every_state(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        assert await upstairs.ask(m.Ruok()) == m.Imok()
        await upstairs.activate()
        assert await upstairs.ask(m.Ruok()) == m.Imok()


async def test_repair_address_is_the_bound_one(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        yes = await upstairs.ask(hello(), m.YesItsMe)
        assert yes.repair_addr == server.repair_address
        assert yes.repair_addr.port != 0


async def test_repair_address_of_a_server_that_listens_everywhere(make_region: Any) -> None:
    async with serving(make_region(), host="0.0.0.0") as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.address.port)
        async with stream:
            yes = await ScriptedUpstairs(stream).ask(hello(), m.YesItsMe)
            assert yes.repair_addr == m.SocketAddress("127.0.0.1", server.repair_address.port)


async def test_mismatch_is_heard_before_the_connection_closes(region: Region) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        # More than one frame, so that something is left unread at the other end when it closes.
        await upstairs.say(hello(version=12), *[m.Ruok()] * 1000)
        assert await upstairs.hear_end() == [m.VersionMismatch(13)]


async def test_takeover_over_the_wire(region: Region) -> None:
    async with serving(region) as server, connected(server) as old, connected(server, OTHER_U, OTHER_S) as new:
        await old.activate(1)
        await new.activate(2)
        assert await old.hear_end() == [m.YouAreNoLongerActive(OTHER_U, OTHER_S, 2)]
        assert await new.ask(barrier_of(new, 5)) == m.BarrierAck(OTHER_U, OTHER_S, 5, None)
        async with connected(server) as late:
            await late.ask(hello(), m.YesItsMe)
            await late.say(promote(generation=1))
            assert await late.hear_end() == []
        assert await new.ask(m.Ruok()) == m.Imok()


def barrier_of(upstairs: ScriptedUpstairs, job: int) -> m.Barrier:
    return m.Barrier(*upstairs.ids, job, ())


async def test_read_only_region_serves_many(make_region: Any) -> None:
    made = make_region()
    made.write(np.arange(2), np.full((2, BLOCK), 6, np.uint8), contexts_of(payload(2, 6)))
    made.flush(1, 1)
    made.close()
    with Region.open(made.path, read_only=True) as region:
        async with serving(region) as server, connected(server) as one, connected(server, OTHER_U, OTHER_S) as two:
            await one.activate(0, read_only=True)
            await two.activate(0, read_only=True)
            assert (await one.ask(read(1, 0), m.ReadResponse)).data == payload(1, 6)
            reply = await two.ask(m.ReadRequest(OTHER_U, OTHER_S, 1, (), 1, 1), m.ReadResponse)
            assert reply.data == payload(1, 6)
            await one.say(write(2, 0))
            assert await one.hear_end() == []
            assert await two.ask(m.Ruok()) == m.Imok()


async def test_replay_after_a_lost_connection(region: Region) -> None:
    async with serving(region) as server:
        async with connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.say(write(1, 0), flush(2, (1,)), write(3, 0, 1, 2, (2,)))
            for _ in range(3):
                await upstairs.hear()
        async with connected(server) as upstairs:
            await upstairs.activate(last_flush=2)
            await upstairs.say(write(3, 0, 1, 2, (2,)), read(4, 0, 1, (3,)))
            assert await upstairs.hear() == m.WriteAck(U, S, 3, None)
            assert (await upstairs.hear(m.ReadResponse)).data == payload(1, 2)


async def test_unix_socket(make_region: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(make_region(), unix_path=str(path)), await trio.open_unix_socket(path) as stream:
        upstairs = ScriptedUpstairs(stream)
        await upstairs.activate()
        await upstairs.ask(write(1, 0), m.WriteAck)
    assert not path.exists()


async def test_stale_unix_socket_is_replaced_and_one_in_use_is_not(make_region: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    async with serving(make_region(), unix_path=path):
        with pytest.raises(ExceptionGroup) as caught:
            async with serving(make_region(), unix_path=path):
                pytest.fail("two servers at one socket")
        assert caught.group_contains(errors.UsageError, match="address already in use")


async def test_port_in_use_is_one_sentence(make_region: Any) -> None:
    async with serving(make_region()) as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with serving(make_region(), port=server.address.port):
                pytest.fail("two servers at one port")
        assert caught.group_contains(errors.UsageError, match=f"cannot listen on 127.0.0.1 port {server.address.port}")


async def test_default_repair_port_is_4000_above(make_region: Any) -> None:
    async with serving(make_region(), repair_port=None) as server:
        assert server.repair_address.port == server.address.port + 4000


# Bounds


async def test_silence_ends_a_connection(make_region: Any) -> None:
    clock = MockClock()

    async def main() -> None:
        async with serving(make_region()) as server, connected(server) as upstairs:
            await upstairs.activate()
            clock.jump(44)
            assert await upstairs.ask(m.Ruok()) == m.Imok()
            # Bytes that are no complete frame do not count.
            await upstairs.stream.send_all(encode(m.Ruok())[0][:4])
            clock.jump(45)
            await upstairs.hear_end()

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


async def test_more_answers_than_the_peer_reads(make_region: Any) -> None:
    """A peer that asks and does not listen: what waits for it is bounded, and when it listens everything comes."""
    region = make_region(definition(blocks=64, block_size=4096))
    limits = JobLimits(bytes_max=4 << 20)
    async with serving(region, limits=limits) as server, connected(server) as upstairs:
        await upstairs.activate()
        asked = 600
        whole = region.definition.total_blocks
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstairs.say, *[read(1000 + index, 0, whole) for index in range(asked)])
            await trio.testing.wait_all_tasks_blocked(0.05)
            (connection,) = server._connections.values()
            held = connection._unsent_bytes
            assert UNSENT_BYTES_MAX < held < UNSENT_BYTES_MAX + 2 * limits.bytes_max
            for index in range(asked):
                response = await upstairs.hear(m.ReadResponse)
                assert response.job_id == 1000 + index
                assert len(response.data) == region.definition.size_bytes


async def test_jobs_that_wait_for_nothing_real_end_the_connection(make_region: Any) -> None:
    async with serving(make_region(), limits=JobLimits(jobs_max=50)) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(*[write(1000 + index, 0, deps=(5,)) for index in range(60)])
        assert await upstairs.hear_end() == []
        assert server.runner.core.lane.idle


async def test_long_dependencies_of_one_train(make_region: Any) -> None:
    async with serving(make_region()) as server, connected(server) as upstairs:
        await upstairs.activate()
        ids = list(range(1000, 3000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstairs.say, *[write(job, job % 32) for job in ids], flush(9000, ids))
            for job in ids:
                assert (await upstairs.hear(m.WriteAck)).job_id == job
            assert (await upstairs.hear(m.FlushAck)).job_id == 9000


async def test_staging_full_makes_writes_wait_and_lose_nothing(make_region: Any) -> None:
    region = make_region(definition(extents=4, blocks=64), staged_bytes_max=16 * BLOCK)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        total = region.definition.total_blocks
        jobs = [write(1000 + block, block, 1, block) for block in range(total)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstairs.say, *jobs, read(5000, 0, total, [job.job_id for job in jobs]))
            acked = [(await upstairs.hear(m.WriteAck)).job_id for _ in jobs]
            response = await upstairs.hear(m.ReadResponse)
        assert sorted(acked) == [job.job_id for job in jobs]
        fills = np.frombuffer(response.data, np.uint8).reshape(total, -1)[:, 0]
        assert fills.tolist() == [block % 256 for block in range(total)]
        assert server.core.statistics.destages > 0


async def test_write_bigger_than_the_staging_area(make_region: Any) -> None:
    region = make_region(definition(extents=4, blocks=64), staged_bytes_max=16 * BLOCK)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 3, 100, 8), read(2, 3, 100, (1,)))
        assert await upstairs.hear() == m.WriteAck(U, S, 1, None)
        assert (await upstairs.hear(m.ReadResponse)).data == payload(100, 8)


async def test_clean_stop_keeps_what_is_staged(make_region: Any) -> None:
    region = make_region()
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(write(1, 5, 1, 8), m.WriteAck)
    region.close()
    with Region.open(region.path) as again:
        out = bytearray(BLOCK)
        again.read(5, 1, memoryview(out))
        assert out == payload(1, 8)
        assert again.extent_versions()[2].tolist() == [True, False, False, False]


# Faults on purpose


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
async def test_injected_errors_hit_some_and_say_so(make_region: Any, kind: str, expect_log: Any) -> None:
    expect_log("injected", at_least=0)
    faults = Faults(**{f"{kind}_errors": 0.25}, seed=7)
    async with serving(make_region(), faults=faults) as server, connected(server) as upstairs:
        await upstairs.activate()
        make = {"read": lambda job: read(job, 0), "write": lambda job: write(job, 0), "flush": lambda job: flush(job)}[
            kind
        ]
        await upstairs.say(*[make(job) for job in range(100)])
        failed = 0
        for _ in range(100):
            reply = await upstairs.hear()
            failed += isinstance(getattr(reply, "result", None) or getattr(reply, "blocks", None), errors.IoError)
        assert 10 < failed < 45
        assert server.core.statistics.jobs_failed == failed


async def test_lossy_changes_the_order_and_loses_nothing(make_region: Any) -> None:
    faults = Faults(lossy=0.5, delay_s_max=0.002, seed=3)
    async with serving(make_region(), faults=faults) as server, connected(server) as upstairs:
        await upstairs.activate()
        jobs = list(range(1000, 1200))
        await upstairs.say(*[read(job, job % 30) for job in jobs])
        answered = [(await upstairs.hear(m.ReadResponse)).job_id for _ in jobs]
        assert answered != jobs
        assert sorted(answered) == jobs
        # What is ordered by dependencies stays ordered.
        await upstairs.say(*[write(job, 0, 1, job, (job - 1,) if job > 2000 else ()) for job in range(2000, 2050)])
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(50)] == list(range(2000, 2050))


async def test_dropped_connections_and_reconnects(make_region: Any) -> None:
    faults = Faults(drop=0.2, seed=1)
    async with serving(make_region(), faults=faults) as server:
        done = drops = 0
        while done < 30:
            async with connected(server) as upstairs:
                try:
                    await upstairs.activate(1 + drops)
                    while done < 30:
                        await upstairs.ask(write(1000 + done, done), m.WriteAck)
                        done += 1
                except (AssertionError, trio.BrokenResourceError):
                    drops += 1
        assert drops > 0


async def test_stall_and_go_on(make_region: Any) -> None:
    async with serving(make_region()) as server, connected(server) as upstairs:
        await upstairs.activate()
        server.runner.stall()
        await upstairs.say(write(1, 0, 1, 1), write(2, 0, 1, 2), m.Ruok())
        assert await upstairs.hear() == m.Imok(), "a ping is no work"
        server.runner.unstall()
        assert (await upstairs.hear(m.WriteAck)).job_id == 1
        assert (await upstairs.hear(m.WriteAck)).job_id == 2
        assert (await upstairs.ask(read(3, 0), m.ReadResponse)).data == payload(1, 2)


async def test_statistics_count_what_was_done(make_region: Any) -> None:
    async with serving(make_region()) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.say(write(1, 0, 3), read(2, 0, 2, (1,)), flush(3, (2,)))
        for _ in range(3):
            await upstairs.hear()
        found = server.statistics()
    assert (found["blocks_written"], found["blocks_read"], found["flushes"], found["jobs"]) == (3, 2, 1, 3)
    assert found["connections_open"] == 1
