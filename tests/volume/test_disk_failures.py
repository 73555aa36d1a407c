"""What a mirrored disk survives, and what it says: damage, lost replicas, errors, crashes, takeover, refusals."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import trio
from disk_model import BLOCKS, Model, Reopen, Submit, programs, run
from disk_rig import (
    KEY,
    OTHER_KEY,
    Batch,
    damage,
    digests,
    do,
    everything,
    failures,
    flush,
    make_regions,
    pattern,
    read,
    read_request,
    region_set,
    spoil_contexts,
    until,
    write,
    write_request,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.downstairs.faults import Faults
from crucible_emu.downstairs.local import LocalDownstairs
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.local_link import LocalConnector
from crucible_emu.upstairs.members import Identity
from crucible_emu.upstairs.states import Phase, UpstairsState
from crucible_emu.volume import region_set as region_set_module
from crucible_emu.volume.in_service import in_service
from crucible_emu.volume.local_disk import open_disk, region_path

Fresh = Callable[..., Path]
ExpectLog = Callable[..., Any]
EXTENT = 8
"""Blocks; extent n of a disk with three active replicas is read from replica n % 3."""


def replicas(directory: Path) -> list[Path]:
    return [region_path(directory, client) for client in range(3)]


@asynccontextmanager
async def opened(directory: Path, remote: bool, *, key: str | None = None, generation: int = 2) -> AsyncIterator[Guest]:
    """The disk in ``directory``, in this process or over TCP."""
    if remote:
        async with region_set(replicas(directory)) as servers, servers.disk(generation, key=key) as disk:
            yield disk
    else:
        async with open_disk(directory, cipher=None if key is None else Cipher.from_base64(key)) as disk:
            yield disk


async def filled(directory: Path, *, key: str | None = None, block_size: int = 512) -> bytes:
    """Write the whole disk and leave it clean; what it holds."""
    data = pattern(BLOCKS * block_size)
    async with open_disk(directory, cipher=None if key is None else Cipher.from_base64(key)) as disk:
        await write(disk, 0, data)
    return data


def whole(directory: Path) -> None:
    """All three replicas verify clean and hold the same."""
    assert [failures(region) for region in replicas(directory)] == [[], [], []]
    assert len(digests(replicas(directory))) == 1


# -- damage -----------------------------------------------------------------------------------------------------------

HOW = {
    "one block": lambda: [read_request(9 * 512, 512)],
    "a range": lambda: [read_request(6 * 512, 6 * 512)],
    "single blocks together": lambda: [read_request(block * 512, 512) for block in range(16)],
    "everything": lambda: [read_request(0, BLOCKS * 512)],
}


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("how", HOW)
async def test_damaged_block_is_read_elsewhere_and_rewritten(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool, key: str | None, how: str
) -> None:
    directory = fresh_disk(512, key is not None)
    data = await filled(directory, key=key)
    # A range is read from the replica of its first block, and so is, from another process, a batch of single blocks.
    victim = 0 if how in ("a range", "everything") or (remote and how == "single blocks together") else 1
    damage(region_path(directory, victim), 9)
    assert len(failures(region_path(directory, victim))) == 1
    expect_log(f"damaged block client={victim}")
    expect_log(f"operation failed on a replica client={victim} job=Read")
    expect_log(f"healed block client={victim} block=9")
    async with opened(directory, remote, key=key) as disk:
        requests = HOW[how]()
        await do(disk, *requests)
        for request in requests:
            assert request.buffer == data[request.offset : request.offset + request.length]
        statistics = disk.upstairs.statistics
        assert statistics.damaged_reads >= 1
        await until(lambda: statistics.healed_blocks > 0 and disk.healer.idle)
        assert statistics.healed_blocks == 1
        await flush(disk)
        before = statistics.damaged_reads
        assert await everything(disk) == data
        assert statistics.damaged_reads == before
    whole(directory)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
async def test_a_whole_damaged_extent_is_healed_block_by_block(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool
) -> None:
    directory = fresh_disk()
    data = await filled(directory)
    damage(region_path(directory, 2), 2 * EXTENT, EXTENT)
    expect_log("damaged block client=2")
    expect_log("operation failed on a replica client=2 job=Read")
    expect_log("healed block client=2", at_least=EXTENT)
    async with opened(directory, remote) as disk:
        assert await read(disk, 2 * EXTENT * 512, EXTENT * 512) == data[2 * EXTENT * 512 : 3 * EXTENT * 512]
        await until(lambda: disk.upstairs.statistics.healed_blocks == EXTENT)
    whole(directory)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
async def test_a_damaged_context_is_healed_as_a_damaged_block_is(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool
) -> None:
    directory = fresh_disk()
    data = await filled(directory)
    spoil_contexts(region_path(directory, 1), 9)
    assert failures(region_path(directory, 1))
    for line in ("work failed", "damaged block client=1", "operation failed on a replica client=1 job=Read"):
        expect_log(line)
    expect_log("healed block client=1 block=9")
    async with opened(directory, remote) as disk:
        assert await read(disk, 9 * 512, 512) == data[9 * 512 : 10 * 512]
        await until(lambda: disk.healer.idle)
    whole(directory)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
async def test_different_damage_on_every_replica_is_no_loss(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool
) -> None:
    """No replica could answer a read of the whole disk, but each block is whole somewhere."""
    directory = fresh_disk()
    data = await filled(directory)
    for client in range(3):
        for extent in range(4):
            damage(region_path(directory, client), extent * EXTENT + client * 2)
    expect_log("damaged block", at_least=4)
    expect_log("operation failed on a replica", at_least=4)
    expect_log("healed block", at_least=4)
    async with opened(directory, remote) as disk:
        assert await everything(disk) == data
        await until(lambda: disk.upstairs.statistics.healed_blocks >= 4 and disk.healer.idle)
        assert await everything(disk) == data


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_damage_on_all_three_is_an_error_of_that_block_and_a_write_cures_it(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool, key: str | None
) -> None:
    directory = fresh_disk(512, key is not None)
    data = await filled(directory, key=key)
    for region in replicas(directory):
        damage(region, 9)
    expect_log("damaged block", at_least=3)
    expect_log("operation failed on a replica", at_least=3)
    expect_log("block not healed")
    async with opened(directory, remote, key=key) as disk:
        request, beside = read_request(9 * 512, 512), read_request(10 * 512, 512)
        await Batch(disk, [request, beside]).wait()
        assert request.error == (errors.HashMismatch() if key is None else errors.DecryptionError())
        assert beside.error is None and beside.buffer == data[10 * 512 : 11 * 512]
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 0
        assert [client.state.phase for client in disk.upstairs.core.clients] == [Phase.ACTIVE] * 3
        await write(disk, 9 * 512, pattern(512, 9))
        assert await read(disk, 9 * 512, 512) == pattern(512, 9)
    whole(directory)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
@pytest.mark.parametrize("when", ["while it reads", "before it writes"])
async def test_a_guest_write_that_races_the_healing_wins(
    fresh_disk: Fresh, expect_log: ExpectLog, remote: bool, when: str
) -> None:
    directory = fresh_disk()
    await filled(directory)
    damage(region_path(directory, 1), 9)
    expect_log("damaged block client=1")
    expect_log("operation failed on a replica client=1 job=Read")
    fresh = pattern(512, 77)
    async with opened(directory, remote) as disk:
        healing, written = disk.read_blocks, trio.Event()

        async def overtaken(*arguments: Any) -> Any:
            """The read that the healing begins with; the guest's write comes before or after its answer."""
            assert disk.healer.watching
            if when == "while it reads":
                disk.submit([write_request(9 * 512, fresh)], lambda _: None)
                found = await healing(*arguments)
            else:
                found = await healing(*arguments)
                disk.submit([write_request(9 * 512, fresh)], lambda _: None)
            written.set()
            return found

        disk.read_blocks = overtaken  # type: ignore[method-assign]
        await read(disk, 9 * 512, 512)
        await written.wait()
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 0
        assert await read(disk, 9 * 512, 512) == fresh
    whole(directory)


# -- replicas that are lost -------------------------------------------------------------------------------------------


async def test_disk_goes_on_with_two_and_with_one_it_reads_and_waits(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    directory = fresh_disk()
    expect_log("connection ended", at_least=2)
    async with region_set(replicas(directory)) as servers:
        async with servers.disk() as disk:
            content = bytearray(BLOCKS * 512)

            def put(block: int, seed: int) -> Batch:
                data = pattern(512, seed)
                content[block * 512 : (block + 1) * 512] = data
                return Batch(disk, [write_request(block * 512, data), Request(Kind.FLUSH)])

            await put(3, 1).wait()
            await servers.members[1].stop()
            for block in range(BLOCKS):
                await put(block, block).wait()
            assert await everything(disk) == content
            await servers.members[0].stop()
            await until(lambda: len(disk.upstairs.core.readers) == 1)
            assert await everything(disk) == content
            waiting = put(5, 99)
            await until(lambda: waiting.pending == 1)
            assert await everything(disk) == content
            await servers.start(0, port=servers.members[0].port)
            for request in await waiting.wait():
                assert request.error is None
            await servers.start(1, port=servers.members[1].port)
            await until(lambda: len(disk.upstairs.core.readers) == 3)
            assert await everything(disk) == content
        async with servers.disk(5) as disk:
            assert await everything(disk) == content
    whole(directory)


async def test_leaving_a_disk_of_which_two_replicas_are_gone_says_that_the_last_flush_failed(
    fresh_disk: Fresh, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_set_module, "FAREWELL_TIMEOUT_S", 0.2)
    directory = fresh_disk()
    expect_log("connection ended", at_least=2)
    expect_log("acknowledged writes may be lost")
    async with region_set(replicas(directory)) as servers:
        with pytest.RaisesGroup(
            pytest.RaisesExc(errors.IoError, match="2 out of 3"), flatten_subgroups=True, allow_unwrapped=True
        ):
            async with servers.disk() as disk:
                await servers.members[0].stop()
                await servers.members[1].stop()
                await until(lambda: len(disk.upstairs.core.readers) == 1)
                await write(disk, 0, pattern(512))


@pytest.mark.parametrize("how", ["stop", "drop"])
async def test_a_replica_lost_in_the_middle_of_writes_and_flushes(
    fresh_disk: Fresh, expect_log: ExpectLog, how: str
) -> None:
    """Everything that is acknowledged stays readable, and what was flushed is on the survivors' disks."""
    directory = fresh_disk()
    expect_log("connection ended", at_least=1)
    async with region_set(replicas(directory)) as servers:
        async with servers.disk() as disk:
            last: dict[int, bytes] = {}
            for turn in range(40):
                requests = []
                for index in range(12):
                    block, data = (turn * 5 + index) % BLOCKS, pattern(512, turn * 12 + index)
                    requests.append(write_request(block * 512, data))
                    last[block] = data
                batch = Batch(disk, [*requests, Request(Kind.FLUSH), read_request(0, BLOCKS * 512)])
                if turn == 20:
                    # The requests are on their way now.
                    if how == "stop":
                        servers.members[1].scope.cancel()
                    else:
                        servers.members[1].server.drop_connections()
                for request in await batch.wait():
                    assert request.error is None, (turn, request)
                assert batch.requests[-1].buffer == b"".join(last.get(n, bytes(512)) for n in range(BLOCKS))
            if how == "stop":
                await servers.start(1, port=servers.members[1].port)
            # Replayed to, or repaired where a flush was under way: either way it holds everything in the end.
            await until(lambda: len(disk.upstairs.core.readers) == 3)
        async with servers.disk(7) as disk:
            assert await everything(disk) == b"".join(last.get(n, bytes(512)) for n in range(BLOCKS))
    whole(directory)


@pytest.mark.parametrize("replayable", [True, False])
async def test_three_connections_lost_at_a_time_come_back(
    fresh_disk: Fresh, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, replayable: bool
) -> None:
    """What is in the job table is sent again; what a barrier retired may be lost, and the next flush says so."""
    directory = fresh_disk()
    expect_log("connection ended", at_least=3)
    if not replayable:
        expect_log("acknowledged writes may be lost")
    # The delay is long enough for all three to be seen lost before the first is back.
    async with region_set(replicas(directory)) as servers, servers.disk(reconnect_delay_s=0.5) as disk:
        core = disk.upstairs.core
        await write(disk, 0, pattern(512))
        await flush(disk)
        await until(lambda: len(core.jobs) == 0)  # a replica lost in the middle of a flush would be repaired
        await write(disk, 512, pattern(512, 2))
        # The automatic flush would make everything durable, and replayable again.
        monkeypatch.setattr(core, "idle_flush", lambda: None)
        core.can_replay = replayable
        for member in servers.members:
            member.server.drop_connections()
        await until(lambda: not core.readers)
        if replayable:
            assert await read(disk, 512, 512) == pattern(512, 2), "it waited for the first that came back"
            await flush(disk)
        else:
            for request in (read_request(0, 512), write_request(0, bytes(512)), Request(Kind.FLUSH)):
                with pytest.raises(errors.IoError, match="too many inactive clients"):
                    await do(disk, request)
            await until(lambda: core.accepting() == 3)
            assert await read(disk, 512, 512) in (pattern(512, 2), bytes(512))
            with pytest.raises(errors.IoError, match="lost"):
                await flush(disk)
        assert await read(disk, 0, 512) == pattern(512)
        await write(disk, 512, pattern(512, 3))
        await flush(disk)
    whole(directory)


async def test_a_lower_generation_is_refused_with_a_reason_and_disturbs_nobody(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    directory = fresh_disk()
    expect_log("connection ended", at_least=3)
    expect_log("disk disabled")
    async with region_set(replicas(directory)) as servers, servers.disk(7) as disk:
        await write(disk, 0, pattern(512))
        with pytest.RaisesGroup(
            pytest.RaisesExc(errors.IoError, match="refuse generation 6"), flatten_subgroups=True, allow_unwrapped=True
        ):
            async with servers.disk(6):
                pass
        await write(disk, 512, pattern(512, 2))
        await flush(disk)
        assert await read(disk, 0, 1024) == pattern(512) + pattern(512, 2)
    whole(directory)


# -- errors of one replica --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["write", "flush"])
async def test_an_error_on_one_replica_faults_it_and_the_disk_goes_on(
    fresh_disk: Fresh, expect_log: ExpectLog, kind: str
) -> None:
    directory = fresh_disk()
    expect_log("operation failed on a replica client=1", at_least=1)
    expect_log("replica faulted client=1", at_least=1)
    expect_log("live repair aborted", at_least=0)
    faults = {1: Faults(**{f"{kind}_errors": 1.0})}
    async with region_set(replicas(directory), faults=faults) as servers, servers.disk() as disk:
        await write(disk, 9 * 512, pattern(512))
        await flush(disk)
        core = disk.upstairs.core
        await until(lambda: core.clients[1].state.phase is not Phase.ACTIVE)
        await write(disk, 10 * 512, pattern(512, 2))
        await flush(disk)
        assert await read(disk, 9 * 512, 1024) == pattern(512) + pattern(512, 2)
        assert core.clients[0].state.phase is core.clients[2].state.phase is Phase.ACTIVE
    async with region_set(replicas(directory)) as servers, servers.disk(3) as disk:
        assert await read(disk, 9 * 512, 1024) == pattern(512) + pattern(512, 2)
    whole(directory)


async def test_write_errors_on_two_replicas_end_in_an_error_and_not_in_silence(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    expect_log("operation failed on a replica", at_least=2)
    expect_log("acknowledged writes may be lost", at_least=0)
    expect_log("replica faulted", at_least=2)
    faults = Faults(write_errors=1.0)
    async with region_set(replicas(fresh_disk()), faults={0: faults, 2: faults}) as servers:
        with pytest.RaisesGroup(errors.IoError, flatten_subgroups=True, allow_unwrapped=True):
            async with servers.disk() as disk:
                await write(disk, 0, pattern(512))
                with pytest.raises(errors.IoError, match=r"downstairs failed|too many inactive"):
                    await flush(disk)
                assert disk.upstairs.core.accepting() == 1


async def test_read_errors_are_tried_elsewhere_and_fault_nobody(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    expect_log("operation failed on a replica client=1", at_least=1)
    faults = {1: Faults(read_errors=1.0)}
    async with region_set(replicas(fresh_disk()), faults=faults) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * 512))
        assert await read(disk, 9 * 512, 512) == pattern(BLOCKS * 512)[9 * 512 : 10 * 512]
        assert disk.upstairs.core.accepting() == 3
        assert disk.upstairs.statistics.damaged_reads == 0


async def test_read_errors_everywhere_reach_the_guest(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    expect_log("operation failed on a replica", at_least=3)
    faults = {client: Faults(read_errors=1.0) for client in range(3)}
    async with region_set(replicas(fresh_disk()), faults=faults) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(512))
        with pytest.raises(errors.IoError, match="injected"):
            await read(disk, 0, 512)
        await flush(disk)


@settings(
    max_examples=max(8, (settings.default.max_examples if settings.default else 100) // 20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs, seed=st.integers(0, 2**32 - 1))
async def test_replicas_that_reorder_whatever_nobody_ordered_are_a_list_of_blocks(
    fresh_disk: Fresh, program: list[Submit | Reopen], seed: int
) -> None:
    directory, generation = fresh_disk(), 0
    faults = {client: Faults(lossy=0.4, delay_s_max=0.003, seed=seed + client) for client in range(3)}
    try:
        async with region_set(replicas(directory), faults=faults) as servers:

            def open_remote() -> Any:
                nonlocal generation
                generation += 1
                return servers.disk(generation)

            await run(program, Model(512, trims=False), open_remote)
        assert len(digests(replicas(directory))) == 1
    finally:
        shutil.rmtree(directory)


FAILING = [
    {"write_errors": 0.1},
    {"flush_errors": 0.3},
    {"read_errors": 0.3},
    {"drop": 0.1},
    {"drop": 0.03, "write_errors": 0.03, "read_errors": 0.1, "flush_errors": 0.1, "lossy": 0.2, "delay_s_max": 0.002},
]


@settings(
    max_examples=max(10, (settings.default.max_examples if settings.default else 100) // 20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs, victim=st.integers(0, 2), fault=st.sampled_from(FAILING), seed=st.integers(0, 2**32 - 1))
async def test_one_replica_may_fail_in_any_way_and_nobody_notices(
    fresh_disk: Fresh,
    expect_log: ExpectLog,
    program: list[Submit | Reopen],
    victim: int,
    fault: dict[str, float],
    seed: int,
) -> None:
    known = ("connection ended", "operation failed", "replica faulted", "reconciliation aborted", "live repair aborted")
    for line in known:
        expect_log(line, at_least=0)
    directory, generation = fresh_disk(), 0
    try:
        async with region_set(replicas(directory), faults={victim: Faults(**fault, seed=seed)}) as servers:

            def open_remote() -> Any:
                nonlocal generation
                generation += 1
                return servers.disk(generation, reconnect_delay_s=0.005)

            await run(program, Model(512, trims=False, retries_reads=True), open_remote)
        async with region_set(replicas(directory)) as servers, servers.disk(100):
            pass
        whole(directory)
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def disk_with_a_faulty_replica(
    paths: list[Path], victim: int, faults: Faults, generation: int
) -> AsyncIterator[Guest]:
    """The disk over these regions in this process, one of them behind a Downstairs that fails at random."""
    identity = Identity(uuid4(), uuid4(), remote=False)
    async with AsyncExitStack() as stack:
        regions = [stack.enter_context(Region.open(path)) for path in paths]
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        replicas_here = [
            LocalDownstairs(region, faults=faults if client == victim else None)
            for client, region in enumerate(regions)
        ]
        for downstairs in replicas_here:
            await nursery.start(downstairs.run)
        connectors = [LocalConnector(each, identity.upstairs_id, identity.session_id) for each in replicas_here]
        core = UpstairsCore(identity, generation, regions[0].definition)
        upstairs = Upstairs(core, [*connectors], reconnect_delay_s=0.002)
        yield await stack.enter_async_context(in_service(upstairs, timeout_s=30))


@settings(
    max_examples=max(15, (settings.default.max_examples if settings.default else 100) // 10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    program=programs,
    victim=st.integers(0, 2),
    fault=st.sampled_from([fault for fault in FAILING if set(fault) != {"drop"}]),
    seed=st.integers(0, 2**32 - 1),
)
async def test_one_replica_in_this_process_may_fail_in_any_way_and_nobody_notices(
    fresh_disk: Fresh,
    expect_log: ExpectLog,
    program: list[Submit | Reopen],
    victim: int,
    fault: dict[str, float],
    seed: int,
) -> None:
    for line in ("work failed", "operation failed", "replica faulted", "live repair aborted", "connection ended"):
        expect_log(line, at_least=0)
    directory, generation = fresh_disk(), 0
    try:

        def open_local(faults: Faults | None = None) -> Any:
            nonlocal generation
            generation += 1
            return disk_with_a_faulty_replica(
                replicas(directory), victim, faults or Faults(**fault, seed=seed + generation), generation
            )

        await run(program, Model(512, retries_reads=True), open_local)
        async with open_local(Faults()):
            pass
        whole(directory)
    finally:
        shutil.rmtree(directory)


# -- reconciliation ---------------------------------------------------------------------------------------------------


def store(region: Region, block: int, version: int) -> None:
    """Write one block of a region that nobody serves."""
    rows = np.frombuffer(content(version), np.uint8).reshape(1, -1).copy()
    region.write(np.array([block], np.int64), rows, BlockContexts.plain(hash_blocks(rows)))


def content(version: int) -> bytes:
    return pattern(512, version) if version else bytes(512)


def destage(region: Region) -> None:
    """What a process that ends in order does with what nobody flushed: into the files, dirty."""
    work = region.begin_destage()
    work.run()
    region.finish_flush(work)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "tcp"])
async def test_replicas_with_different_flush_states_are_made_equal(fresh_disk: Fresh, remote: bool) -> None:
    """A flush reached two replicas; then one had an un-flushed write in its files; the third saw neither."""
    directory = fresh_disk()
    for client, path in enumerate(replicas(directory)):
        with Region.open(path) as region:
            store(region, 0, 1)
            store(region, 9, 1)
            region.flush(1, 1)
            if client < 2:
                store(region, 0, 2)
                region.flush(2, 1)
            if client == 1:
                store(region, 20, 3)
                destage(region)
            if client == 2:
                store(region, 30, 4)  # and is killed: it is gone
    assert len(digests(replicas(directory))) == 3
    async with opened(directory, remote) as disk:
        assert disk.upstairs.core.reconciled_extents == 2
        assert await read(disk, 0, 512) == content(2)
        assert await read(disk, 9 * 512, 512) == content(1)
        assert await read(disk, 20 * 512, 512) == content(3)
        assert await read(disk, 30 * 512, 512) == bytes(512)
    whole(directory)


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, BLOCKS - 1)),
    st.tuples(st.just("flush"), st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 1, 2)])),
)


@settings(
    max_examples=max(20, (settings.default.max_examples if settings.default else 100) // 10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    history=st.lists(steps, max_size=24),
    ends=st.tuples(*[st.tuples(st.integers(0, 24), st.booleans()) for _ in range(3)]),
)
async def test_every_flush_that_two_replicas_have_survives_any_crash(
    fresh_disk: Fresh, history: list[Any], ends: tuple[tuple[int, bool], ...]
) -> None:
    """Each replica stops somewhere in the history, killed or in order; what two of them flushed must be there."""
    directory = fresh_disk()
    flushed, later = [0] * BLOCKS, [{0} for _ in range(BLOCKS)]
    try:
        regions = [Region.open(path) for path in replicas(directory)]
        version = flush_number = 0
        for index, (step, argument) in enumerate(history):
            running = [client for client in range(3) if index < ends[client][0]]
            if len(running) < 2:
                break  # the disk takes no writes with one replica
            if step == "write":
                version += 1
                later[argument].add(version)
                for client in running:
                    store(regions[client], argument, version)
            else:
                flush_number += 1
                reached = [client for client in argument if client in running]
                for client in reached:
                    regions[client].flush(flush_number, 1)
                if len(reached) >= 2:
                    flushed = [max(versions) for versions in later]
                    later = [{newest} for newest in flushed]
        for region, (_, in_order) in zip(regions, ends):
            if in_order:
                destage(region)
            region.close()
        async with open_disk(directory) as disk:
            found = await everything(disk)
        for block in range(BLOCKS):
            allowed = [content(wanted) for wanted in later[block]]
            assert found[block * 512 : (block + 1) * 512] in allowed, (block, later[block])
        whole(directory)
    finally:
        shutil.rmtree(directory)


async def test_a_replica_lost_during_reconciliation_is_waited_for(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    directory = fresh_disk()
    for client, path in enumerate(replicas(directory)):
        with Region.open(path) as region:
            for block in range(BLOCKS):
                store(region, block, 1 + client)
            region.flush(1 + client, 1)
    expect_log("connection ended", at_least=1)
    expect_log("reconciliation aborted", at_least=1)
    expect_log("work failed", at_least=0)
    async with region_set(replicas(directory)) as servers:
        upstairs, steps_begun = servers.upstairs(2), 0
        next_step = upstairs.core.next_reconciliation_step

        def cut_at_the_fifth() -> None:
            nonlocal steps_begun
            steps_begun += 1
            if steps_begun == 5:
                servers.members[1].server.drop_connections()
            next_step()

        upstairs.core.next_reconciliation_step = cut_at_the_fifth  # type: ignore[method-assign]
        async with in_service(upstairs, timeout_s=30) as disk:
            assert await everything(disk) == content(3) * BLOCKS
        # Four an extent, and one to find that there are no more; one or two were begun before the end was noticed.
        assert steps_begun <= 4 + 2 + 3 * 4 + 1, "the extent that was done is not done again"
    whole(directory)


# -- takeover, and who is refused -------------------------------------------------------------------------------------


def refused(error: type[Exception], match: str) -> Any:
    return pytest.RaisesGroup(pytest.RaisesExc(error, match=match), flatten_subgroups=True, allow_unwrapped=True)


async def test_a_higher_generation_takes_over_and_the_first_is_disabled(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    expect_log("another Upstairs took over")
    expect_log("disk disabled error=another Upstairs")
    async with region_set(replicas(fresh_disk())) as servers, servers.disk(1) as first:
        await write(first, 0, pattern(512, 1))
        await flush(first)
        async with servers.disk(2) as second:
            await until(lambda: first.upstairs.core.state is UpstairsState.DISABLED)
            assert not first.upstairs.active
            assert await read(second, 0, 512) == pattern(512, 1)
            await write(second, 0, pattern(512, 2))
            for request in (read_request(0, 512), write_request(0, bytes(512)), Request(Kind.FLUSH)):
                with pytest.raises(errors.UpstairsInactive):
                    await do(first, request)
            assert await read(second, 0, 512) == pattern(512, 2)


async def test_requests_under_way_when_another_takes_over_are_all_answered(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    expect_log("another Upstairs took over")
    expect_log("disk disabled")
    expect_log("acknowledged writes may be lost")
    slow = dict.fromkeys(range(3), Faults(lossy=1.0, delay_s_max=0.5))
    async with region_set(replicas(fresh_disk()), faults=slow) as servers, servers.disk(1) as first:
        flushes = [Request(Kind.FLUSH), Request(Kind.FLUSH)]
        wrote, again = write_request(0, pattern(512)), write_request(512, pattern(512))
        batch = Batch(first, [wrote, read_request(0, 512), flushes[0], again, flushes[1]])
        assert batch.pending == 3
        async with servers.disk(2):
            await batch.wait()
            assert wrote.error is again.error is None
            others = [batch.requests[1], *flushes]
            assert all(isinstance(request.error, errors.NoLongerActive) for request in others[:2])
            assert isinstance(others[2].error, errors.UpstairsInactive)


async def test_a_lower_generation_is_refused_while_another_is_active_and_after(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    expect_log("connection ended", at_least=3)
    expect_log("disk disabled", at_least=2)
    async with region_set(replicas(fresh_disk())) as servers:
        async with servers.disk(7) as disk:
            await write(disk, 0, pattern(512))
            with refused(errors.IoError, "refuse generation 5"):
                async with in_service(servers.upstairs(5), timeout_s=30):
                    raise AssertionError
            await write(disk, 512, pattern(512))
        with refused(errors.NegotiationError, "generation"):
            async with servers.disk(7):
                raise AssertionError
        async with servers.disk(8) as disk:
            assert await read(disk, 0, 1024) == pattern(512) * 2


async def test_a_downstairs_that_is_not_there_gives_a_clear_error(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    expect_log("cannot connect to 127.0.0.1", at_least=1)
    expect_log("disk disabled")
    async with region_set(replicas(fresh_disk())) as servers:
        await servers.members[2].stop()
        with refused(errors.IoError, r"no activation within 0\.3 s; waiting for replicas 2$"):
            async with in_service(servers.upstairs(), timeout_s=0.3):
                raise AssertionError


@pytest.mark.parametrize(("encrypted", "key"), [(False, KEY), (True, None)])
async def test_a_key_too_many_or_too_few_is_refused(
    fresh_disk: Fresh, expect_log: ExpectLog, encrypted: bool, key: str | None
) -> None:
    expect_log("disk disabled")
    async with region_set(replicas(fresh_disk(512, encrypted))) as servers:
        with refused(errors.NegotiationError, "encrypt"):
            async with servers.disk(key=key):
                raise AssertionError


async def test_another_key_reads_errors_and_spoils_nothing(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    directory = fresh_disk(512, True)
    data = await filled(directory, key=KEY)
    for pattern_ in ("damaged block", "operation failed on a replica", "block not healed"):
        expect_log(pattern_)
    async with region_set(replicas(directory)) as servers:
        async with servers.disk(2, key=OTHER_KEY) as disk:
            with pytest.raises(errors.DecryptionError):
                await read(disk, 0, 512)
        async with servers.disk(3, key=KEY) as disk:
            assert await everything(disk) == data


@pytest.mark.parametrize(
    ("geometry", "sentence"),
    [
        ({"extent_count": 5}, "4 extents of 8 blocks of 512 bytes, the disk has 5 of 8 of 512"),
        ({"blocks_per_extent": 16}, "4 extents of 8 blocks of 512 bytes, the disk has 4 of 16 of 512"),
        ({"block_size": 4096}, "4 extents of 8 blocks of 512 bytes, the disk has 4 of 8 of 4096"),
    ],
)
async def test_another_geometry_is_refused_with_both(
    fresh_disk: Fresh, expect_log: ExpectLog, geometry: dict[str, int], sentence: str
) -> None:
    expect_log("replica does not fit")
    expect_log("disk disabled")
    async with region_set(replicas(fresh_disk())) as servers:
        with refused(errors.RegionIncompatible, sentence):
            async with servers.disk(1, **geometry):
                raise AssertionError


async def test_one_region_behind_two_addresses_is_refused(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    """Two Downstairs over copies of one region: a flush would count one copy twice."""
    directory = fresh_disk()
    one, two, _ = replicas(directory)
    shutil.rmtree(two)
    shutil.copytree(one, two)
    expect_log("replica does not fit.*are the same region")
    expect_log("disk disabled")
    async with region_set(replicas(directory)) as servers:
        with refused(errors.RegionIncompatible, "are the same region"):
            async with servers.disk():
                raise AssertionError


async def test_a_read_only_disk_reads_from_one_replica_and_refuses_writes(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("cannot connect to 127.0.0.1", at_least=0)
    paths = make_regions(tmp_path)
    for path in paths:
        with Region.open(path) as region:
            store(region, 3, 5)
            region.flush(1, 1)
    async with region_set(paths, read_only=dict.fromkeys(range(3), True)) as servers:
        await servers.members[0].stop()
        await servers.members[2].stop()
        async with servers.disk(0, read_only=True) as disk:
            assert disk.read_only
            assert await read(disk, 3 * 512, 512) == content(5)
            await flush(disk)
            with pytest.raises(errors.ModifyingReadOnlyRegion):
                await write(disk, 0, bytes(512))
            with pytest.raises(errors.ModifyingReadOnlyRegion):
                await do(disk, Request(Kind.WRITE_ZEROES, 0, 512))


async def test_a_read_write_disk_over_read_only_downstairs_is_refused(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log("disk disabled")
    async with region_set(make_regions(tmp_path), read_only=dict.fromkeys(range(3), True)) as servers:
        with refused(errors.NegotiationError, "read-only|read.only|ReadOnly"):
            async with servers.disk():
                raise AssertionError


async def test_leaving_answers_everything_that_is_under_way(fresh_disk: Fresh) -> None:
    directory = fresh_disk()
    async with region_set(replicas(directory)) as servers:
        async with servers.disk() as disk:
            batches = [
                Batch(disk, [write_request(n * 512, pattern(512, n)), read_request(n * 512, 512), Request(Kind.FLUSH)])
                for n in range(BLOCKS)
            ]
        for batch in batches:
            assert batch.pending == 0
            assert all(request.error is None for request in batch.requests)
    whole(directory)
