"""Volumes over real region sets on loopback: layers, scrub, read-only sets, snapshots, replacement, generations."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from disk_model import BLOCKS
from disk_rig import (
    KEY,
    Batch,
    RegionSet,
    digests,
    do,
    everything,
    flush,
    make_regions,
    pattern,
    read,
    region_set,
    until,
    write,
    write_request,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_server import image_server
from volume_rig import BLOCK, Modelled, Op, Outstanding, batches

from crucible_emu import errors
from crucible_emu.blockio import Allocation, BlockDevice, Kind, Request
from crucible_emu.downstairs.faults import Faults
from crucible_emu.region import Region
from crucible_emu.upstairs import dispatcher as dispatcher_module
from crucible_emu.upstairs import guest as guest_module
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume import scrub as scrub_module
from crucible_emu.volume.attach import attach
from crucible_emu.volume.backend import WorkCounts
from crucible_emu.volume.construction import construct
from crucible_emu.volume.info import UpstairsNode, VolumeNode
from crucible_emu.volume.local_disk import open_disk, region_path
from crucible_emu.volume.vcr import FileRequest, RegionRequest, UrlRequest, VolumeConstructionRequest, VolumeRequest
from crucible_emu.volume.volume import Volume

Fresh = Callable[..., Path]
ExpectLog = Callable[..., Any]
SIZE = BLOCKS * BLOCK
ACTIVATION_S = 30


def replicas(directory: Path) -> list[Path]:
    return [region_path(directory, client) for client in range(3)]


def volume_of(*parts: VolumeConstructionRequest, parent: VolumeConstructionRequest | None = None) -> VolumeRequest:
    return VolumeRequest(type="volume", id=uuid4(), block_size=BLOCK, sub_volumes=parts, read_only_parent=parent)


def request_of(servers: RegionSet, gen: int = 1, *, number: int = 0, **settings: Any) -> RegionRequest:
    """The request of a region set; ``number`` tells the Upstairs of several apart."""
    request = servers.request(gen, **settings)
    return request.model_copy(update={"opts": request.opts.model_copy(update={"id": UUID(int=number + 1)})})


def moved(request: RegionRequest, client: int, target: str, gen: int | None = None) -> RegionRequest:
    """The request with another target."""
    targets = list(request.opts.target)
    targets[client] = target
    opts = request.opts.model_copy(update={"target": tuple(targets)})
    return request.model_copy(update={"opts": opts, "gen": request.gen if gen is None else gen})


@asynccontextmanager
async def attached(request: VolumeConstructionRequest, **settings: Any) -> AsyncIterator[Volume]:
    async with attach(request, timeout_s=ACTIVATION_S, reconnect_delay_s=0.05, **settings) as volume:
        yield volume


@asynccontextmanager
async def region_sets(
    fresh: Fresh, count: int, *, read_only: bool = False, encrypted: bool = False
) -> AsyncIterator[list[RegionSet]]:
    """So many region sets of 32 blocks."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(served(fresh(BLOCK, encrypted), read_only=read_only)) for _ in range(count)
        ]


@asynccontextmanager
async def served(directory: Path, *, read_only: bool = False) -> AsyncIterator[RegionSet]:
    async with region_set(replicas(directory), read_only=dict.fromkeys(range(3), read_only)) as servers:
        yield servers


async def filled(fresh: Fresh, data: bytes, *, at: int = 0, encrypted: bool = False) -> Path:
    """A disk that was written and taken out of service: what a snapshot is, served read-only."""
    directory = fresh(BLOCK, encrypted)
    async with served(directory) as servers, attached(request_of(servers, key=KEY if encrypted else None)) as volume:
        await write(volume, at, data)
    return directory


async def first_bytes(volume: Volume) -> list[int]:
    return list((await everything(volume))[::BLOCK])


def of(*fills: int) -> bytes:
    return b"".join(bytes([fill]) * BLOCK for fill in fills)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_disk_from_a_snapshot(fresh_disk: Fresh, encrypted: bool) -> None:
    """The snapshot shows, is written over, and keeps its bytes; an encrypted one has a key of its own."""
    key = KEY if encrypted else None
    below = await filled(fresh_disk, of(*[17] * 16), encrypted=encrypted)
    before = digests(replicas(below))
    async with served(below, read_only=True) as snapshot, region_sets(fresh_disk, 1) as (top,):
        parent = volume_of(request_of(snapshot, 4, number=1, read_only=True, key=key))
        async with attached(volume_of(request_of(top, 4), parent=parent)) as volume:
            assert await first_bytes(volume) == [17] * 16 + [0] * 16
            assert await volume.allocation(0, SIZE) == [Allocation(SIZE // 2, 2), Allocation(SIZE // 2, 0)]
            await write(volume, 15 * BLOCK, of(1, 0, 2))
            assert await first_bytes(volume) == [17] * 15 + [1, 0, 2] + [0] * 14
            await do(volume, Request(Kind.WRITE_UNWRITTEN, 14 * BLOCK, 2 * BLOCK, memoryview(of(5, 5))))
            assert await first_bytes(volume) == [17] * 14 + [5, 1, 0, 2] + [0] * 14
            await do(volume, Request(Kind.WRITE_ZEROES, 0, 2 * BLOCK))
            await flush(volume)
            assert await first_bytes(volume) == [0] * 2 + [17] * 12 + [5, 1, 0, 2] + [0] * 14
        async with attached(volume_of(request_of(top, 5))) as alone:
            assert await first_bytes(alone) == [0] * 14 + [5, 1, 0, 2] + [0] * 14
    assert digests(replicas(below)) == before


async def test_a_disk_from_an_image_with_two_layers_below(fresh_disk: Fresh) -> None:
    """The base image is an HTTP URL, shorter than the disk; a snapshot of a disk made from it lies between."""
    middle = await filled(fresh_disk, of(3, 3), at=BLOCK)
    async with (
        image_server(of(*[255] * 4)) as image,
        served(middle, read_only=True) as snapshot,
        region_sets(fresh_disk, 1) as (top,),
    ):
        url = UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=image.url)
        parent = volume_of(request_of(snapshot, number=1, read_only=True), parent=volume_of(url))
        async with attached(volume_of(request_of(top), parent=parent)) as volume:
            await write(volume, 2 * BLOCK, of(1))
            assert (await first_bytes(volume))[:5] == [255, 3, 1, 255, 0]
            await volume.scrub()
            asked = len(image.requests)
            assert (await first_bytes(volume))[:5] == [255, 3, 1, 255, 0]
            assert len(image.requests) == asked and all(method in ("HEAD", "GET") for method, _ in image.requests)


async def test_a_file_below_and_beside_region_sets(fresh_disk: Fresh, tmp_path: Path) -> None:
    base, data = tmp_path / "base.raw", tmp_path / "data.raw"
    base.write_bytes(of(*[7] * 40))
    data.write_bytes(of(8, 8))
    files = [FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path)) for path in (base, data)]
    async with (
        region_sets(fresh_disk, 1) as (top,),
        attached(volume_of(request_of(top), files[1], parent=files[0])) as volume,
    ):
        await write(volume, 31 * BLOCK, of(1, 2, 3))
        assert await first_bytes(volume) == [7] * 31 + [1, 2, 3]
        await do(volume, *(write_request(block * BLOCK, of(5)) for block in range(34)))
        await flush(volume)
    assert data.read_bytes() == of(5, 5) and base.read_bytes() == of(*[7] * 40)


async def test_a_file_by_itself_is_wrapped_in_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "data.raw"
    path.write_bytes(bytes(4 * BLOCK))
    async with attached(FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))) as volume:
        await write(volume, 0, of(5))
        with pytest.raises(errors.Unsupported):
            volume.volume_info()
    assert path.read_bytes() == of(5, 0, 0, 0)


async def test_a_large_request_over_several_region_sets(fresh_disk: Fresh) -> None:
    async with region_sets(fresh_disk, 3) as sets:
        request = volume_of(*(request_of(servers, number=number) for number, servers in enumerate(sets)))
        async with attached(request) as volume:
            assert volume.size_bytes == 3 * SIZE
            for shift in (0, 1, 31):
                data = pattern(3 * SIZE - shift * BLOCK, shift + 1)
                await write(volume, shift * BLOCK, data)
                assert await read(volume, shift * BLOCK, len(data)) == data
            with pytest.raises(errors.OffsetInvalid):
                await write(volume, 2 * SIZE, bytes(SIZE + BLOCK))
            assert await read(volume, 31 * BLOCK, len(data)) == data
        assert all(len(digests(servers.paths)) == 1 for servers in sets)


@pytest.mark.parametrize("parts", [1, 2])
async def test_write_unwritten_over_region_sets(fresh_disk: Fresh, parts: int) -> None:
    async with region_sets(fresh_disk, parts) as sets:
        request = volume_of(*(request_of(servers, number=number) for number, servers in enumerate(sets)))
        async with attached(request) as volume:
            edge = 28 if parts == 2 else 4
            await write(volume, (edge + 2) * BLOCK, of(1, 0))
            for fill in (2, 3):
                data = memoryview(bytearray(of(*[fill] * 8)))
                await do(volume, Request(Kind.WRITE_UNWRITTEN, edge * BLOCK, len(data), data))
                assert (await first_bytes(volume))[edge : edge + 9] == [2, 2, 1, 0, 2, 2, 2, 2, 0]
            await write(volume, edge * BLOCK, of(*[4] * 8))
            assert (await first_bytes(volume))[edge : edge + 8] == [4] * 8


async def test_a_write_unwritten_above_all_permits_is_cut_and_ends(
    fresh_disk: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one waits for more permits than there are."""
    monkeypatch.setattr(guest_module, "BYTES_IN_PROGRESS_MAX", 4 * BLOCK)
    monkeypatch.setattr(guest_module, "TRANSFER_BYTES_MAX", 2 * BLOCK)
    async with region_sets(fresh_disk, 1) as (servers,), attached(request_of(servers)) as volume:
        data = memoryview(bytearray(pattern(SIZE)))
        await do(volume, Request(Kind.WRITE_UNWRITTEN, 0, SIZE, data))
        assert await everything(volume) == data


# -- read-only region sets --------------------------------------------------------------------------------------------


async def test_a_read_only_set_serves_with_one_replica_left(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    expect_log("cannot connect", at_least=0)
    async with served(await filled(fresh_disk, of(6, 6)), read_only=True) as servers:
        request = volume_of(request_of(servers, 2, read_only=True))
        for client in (0, 2):
            await servers.members[client].stop()
        async with attached(request) as volume:
            assert volume.read_only
            for _ in range(2):
                assert (await first_bytes(volume))[:3] == [6, 6, 0]
                await flush(volume)
            with pytest.raises(errors.ModifyingReadOnlyRegion):
                await write(volume, 0, of(1))


async def test_a_parent_alone_is_read(fresh_disk: Fresh) -> None:
    async with (
        region_sets(fresh_disk, 1, read_only=True) as (servers,),
        attached(volume_of(parent=request_of(servers, read_only=True))) as volume,
    ):
        assert await everything(volume) == bytes(SIZE)
        with pytest.raises(errors.CannotReceiveBlocks):
            await write(volume, 0, of(1))


async def test_two_volumes_read_one_read_only_set_at_a_time(fresh_disk: Fresh) -> None:
    async with served(await filled(fresh_disk, of(6)), read_only=True) as servers:
        requests = [volume_of(request_of(servers, 2, number=number, read_only=True)) for number in (1, 2)]
        async with attached(requests[0]) as one, attached(requests[1]) as other:
            for volume in (one, other, one):
                assert (await first_bytes(volume))[:2] == [6, 0]


async def test_a_snapshot_is_taken_of_every_replica_and_twice_is_fine(fresh_disk: Fresh) -> None:
    async with region_sets(fresh_disk, 2) as sets:
        request = volume_of(*(request_of(servers, number=number) for number, servers in enumerate(sets)))
        async with attached(request) as volume:
            await write(volume, 31 * BLOCK, of(4, 4))
            for _ in range(2):
                await volume.snapshot("before")
            await write(volume, 31 * BLOCK, of(5, 5))
        for servers, block in zip(sets, (31, 0)):
            for path in servers.paths:
                with Region.open(path / ".zfs" / "snapshot" / "before", read_only=True) as region:
                    found = memoryview(bytearray(BLOCK))
                    region.read(block, 1, found)
                    assert found == of(4)


async def test_a_snapshot_of_a_read_only_set_is_refused(fresh_disk: Fresh) -> None:
    """The real one says that all is well and takes none."""
    async with region_sets(fresh_disk, 1, read_only=True) as (servers,):
        async with attached(request_of(servers, read_only=True)) as volume:
            with pytest.raises(errors.ModifyingReadOnlyRegion):
                await volume.snapshot("now")
        assert not any((path / ".zfs").exists() for path in servers.paths)


# -- scrub ------------------------------------------------------------------------------------------------------------


async def test_a_scrub_over_two_region_sets_while_guests_write(
    fresh_disk: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent covers one and a half of them; afterwards the disk is complete without it."""
    monkeypatch.setattr(scrub_module, "STEP_BYTES", 3 * BLOCK)
    base = [await filled(fresh_disk, pattern(SIZE, seed)) for seed in (1, 2)]
    async with AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(served(path, read_only=True)) for path in base]
        sets = await stack.enter_async_context(region_sets(fresh_disk, 2))
        parent = volume_of(*(request_of(each, 2, number=n + 10, read_only=True) for n, each in enumerate(sources)))
        parts = [request_of(each, 2, number=n) for n, each in enumerate(sets)]
        expected = bytearray(pattern(SIZE, 1) + pattern(SIZE, 2))
        async with attached(volume_of(*parts, parent=parent)) as volume:
            expected[5 * BLOCK : 7 * BLOCK] = of(5, 6)
            await write(volume, 5 * BLOCK, of(5, 6))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.scrub)
                while volume.parent is not None:
                    for block in (6, 20, 33, 63):
                        data = of(volume.scrub_point % 251)
                        await write(volume, block * BLOCK, data)
                        expected[block * BLOCK : (block + 1) * BLOCK] = data
                    assert await everything(volume) == expected
            assert volume.active
        async with attached(volume_of(*(moved_gen(part, 3) for part in parts))) as alone:
            assert await everything(alone) == expected


def moved_gen(request: RegionRequest, gen: int) -> RegionRequest:
    return request.model_copy(update={"gen": gen})


async def test_a_scrub_from_replicas_that_fail_and_lose_their_order(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    """Each replica of the parent fails a quarter of its reads and answers the others out of order."""
    expect_log("operation failed on a replica", at_least=0)
    below = await filled(fresh_disk, pattern(SIZE))
    faults = {client: Faults(lossy=0.25, read_errors=0.25, delay_s_max=0.001, seed=client) for client in range(3)}
    async with (
        region_set(replicas(below), read_only=dict.fromkeys(range(3), True), faults=faults) as snapshot,
        region_sets(fresh_disk, 1) as (top,),
    ):
        parent = request_of(snapshot, 2, number=1, read_only=True)
        async with attached(volume_of(request_of(top), parent=parent)) as volume:
            await volume.scrub()
            assert await everything(volume) == pattern(SIZE)


# -- life -------------------------------------------------------------------------------------------------------------


async def test_one_generation_for_all_region_sets(fresh_disk: Fresh) -> None:
    async with region_sets(fresh_disk, 3) as sets:
        parts = [request_of(servers, number + 1, number=number) for number, servers in enumerate(sets)]
        async with attached(volume_of(parts[0], volume_of(parts[1]), parent=parts[2]), generation=9) as volume:
            assert generations(volume) == [9, 9, 9]
            await volume.activate(9)
            with pytest.raises(errors.GenerationNumberInvalid):
                await volume.activate(10)
            assert volume.active
            await volume.deactivate()
            assert not volume.active
            await volume.activate(10)
            assert generations(volume) == [10, 10, 10] and volume.work_counts() == WorkCounts(0, 0, 9)


def generations(volume: Volume) -> list[int]:
    found: list[int] = []
    for part in volume.parts:
        info = part.volume_info()
        found += generations(part) if isinstance(part, Volume) else [info.upstairs.generation]  # type: ignore[union-attr]
    return found


async def test_a_region_set_that_is_not_there_takes_the_others_out_again(
    fresh_disk: Fresh, expect_log: ExpectLog
) -> None:
    """The first part was active already; the real one leaves it so, and nobody else gets at it."""
    expect_log("cannot connect", at_least=1)
    expect_log("disk disabled")
    async with region_sets(fresh_disk, 2) as sets:
        parts = [request_of(servers, number=number) for number, servers in enumerate(sets)]
        await sets[1].members[0].stop()
        with pytest.RaisesGroup(
            pytest.RaisesExc(errors.IoError, match="waiting for replicas 0$"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ):
            async with attach(volume_of(*parts), timeout_s=0.5, reconnect_delay_s=0.05):
                raise AssertionError
        # The same generation would be refused if something had been written, and wait if it were still active.
        async with attached(parts[0]) as alone:
            assert await everything(alone) == bytes(SIZE)


@pytest.mark.parametrize("remote", [False, True])
async def test_a_disk_whose_user_is_cancelled_is_flushed(fresh_disk: Fresh, remote: bool) -> None:
    """The tasks that drive it outlive the cancellation until it has left service."""
    directory = fresh_disk()
    async with AsyncExitStack() as stack:
        way: AbstractAsyncContextManager[BlockDevice] = open_disk(directory)
        if remote:
            way = attached(request_of(await stack.enter_async_context(served(directory))))
        with trio.fail_after(30), trio.CancelScope() as scope:
            async with way as disk:
                await write(disk, 0, of(5))
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    for path in replicas(directory):
        with Region.open(path, read_only=True) as region:
            generations, _, dirty = region.extent_versions()
            assert generations[0] == 1 and not dirty[0]


async def test_a_defect_in_a_task_of_the_disk_ends_it_and_is_raised(
    fresh_disk: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not hang in a last flush that nobody would carry out."""
    go_on = trio.Event()

    async def fail(upstairs: Upstairs) -> None:
        await go_on.wait()
        raise RuntimeError("a defect")

    monkeypatch.setattr(Upstairs, "_flush_when_idle", fail)
    async with served(fresh_disk()) as servers:
        with trio.fail_after(30), pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
            async with attached(request_of(servers)) as volume:
                await write(volume, 0, of(5))
                go_on.set()
                await trio.sleep_forever()


async def test_race_of_a_cancellation_with_an_activation(fresh_disk: Fresh, expect_log: ExpectLog) -> None:
    """The first part is active, the second waits for a replica: cancelled, neither becomes active when that comes."""
    expect_log("cannot connect", at_least=1)
    expect_log("disk disabled error=.*the activation was cancelled")
    async with region_sets(fresh_disk, 2) as sets, AsyncExitStack() as stack:
        parts = [request_of(servers, number=number) for number, servers in enumerate(sets)]
        port = sets[1].members[0].port
        await sets[1].members[0].stop()
        volume = await construct(volume_of(*parts), stack, reconnect_delay_s=0.05)
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            async with trio.open_nursery() as activating:
                activating.start_soon(volume.activate)
                await until(lambda: volume.sub_volumes[0].active)
                activating.cancel_scope.cancel()
            assert not volume.sub_volumes[0].active
            await sets[1].start(0, port=port)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not volume.sub_volumes[1].active
            await volume.activate(timeout_s=ACTIVATION_S)
            assert await everything(volume) == bytes(2 * SIZE)
            await volume.deactivate()
            nursery.cancel_scope.cancel()


async def test_reads_alone_do_not_keep_a_volume_from_leaving_and_coming_back(
    fresh_disk: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many reads that a barrier empties the table of jobs while a flush is still due."""
    monkeypatch.setattr(dispatcher_module, "FINISHED_JOBS_MAX", 50)
    async with region_sets(fresh_disk, 1) as (servers,), attached(request_of(servers, 2)) as volume:
        for _ in range(4):
            await Batch(volume, [Request(Kind.READ, 0, BLOCK, memoryview(bytearray(BLOCK))) for _ in range(40)]).wait()
        await volume.deactivate()
        await volume.activate(2)
        assert await read(volume, 0, BLOCK) == bytes(BLOCK)


async def test_volume_info_of_a_tree(fresh_disk: Fresh) -> None:
    async with region_sets(fresh_disk, 3, encrypted=True) as sets:
        parts = [request_of(servers, number + 1, number=number, key=KEY) for number, servers in enumerate(sets)]
        async with attached(volume_of(*parts[:2], parent=parts[2])) as volume:
            info = volume.volume_info()
            assert isinstance(info, VolumeNode)
            assert info == VolumeNode.model_validate_json(info.model_dump_json())
            found = [*info.volume.sub_volumes, info.volume.read_only_parent]
            assert [extents.extent_count for extents in volume.volume_extent_info()] == [4, 4]
            for number, (node, servers) in enumerate(zip(found, sets)):
                assert isinstance(node, UpstairsNode)
                described = node.model_dump(mode="json")["upstairs"]
                del described["session_id"]
                assert described == {
                    "state": "active",
                    "block_size": BLOCK,
                    "upstairs_id": str(UUID(int=number + 1)),
                    "generation": number + 1,
                    "read_only": False,
                    "encrypted": True,
                    "reconcile_in_progress": False,
                    "live_repair_in_progress": False,
                    "targets": [
                        {
                            "region_id": str(member.region.definition.uuid),
                            "target_addr": member.target,
                            "repair_addr": described["targets"][client]["repair_addr"],
                            "state": {"type": "active"},
                        }
                        for client, member in enumerate(servers.members)
                    ],
                }
                assert all(target["repair_addr"].startswith("127.0.0.1:") for target in described["targets"])
            await volume.deactivate()
            (first, *_) = volume.volume_info().model_dump(mode="json")["volume"]["sub_volumes"]
            assert first["upstairs"]["state"] == "initializing"
            assert first["upstairs"]["targets"][0]["state"] == {
                "type": "connecting",
                "state": "wait_connect",
                "mode": "new",
            }


# -- replacement ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def spare(folder: Path, source: Path | None = None) -> AsyncIterator[str]:
    """The address of one more Downstairs: a new one, or one that holds a copy of ``source``, read-only."""
    if source is None:
        (path,) = make_regions(folder, count=1)
    else:
        path = Path(shutil.copytree(source, folder / "copy"))
    async with region_set([path], read_only={0: source is not None}) as servers:
        yield servers.members[0].target


REPLACED = (
    "connection ended",
    "replica faulted",
    "replacing",
    "live repair",
)


def quiet(expect_log: ExpectLog) -> None:
    for words in REPLACED:
        expect_log(words, at_least=0)


async def test_a_downstairs_of_any_sub_volume_is_replaced_while_in_use(
    fresh_disk: Fresh, tmp_path: Path, expect_log: ExpectLog
) -> None:
    quiet(expect_log)
    async with region_sets(fresh_disk, 2) as sets, spare(tmp_path) as new:
        parts = [request_of(servers, 2, number=number) for number, servers in enumerate(sets)]
        original = volume_of(*parts)
        raised = original.model_copy(update={"sub_volumes": tuple(moved_gen(part, 3) for part in parts)})
        replacement = raised.model_copy(
            update={"sub_volumes": (moved_gen(parts[0], 3), moved(parts[1], 2, new, gen=3))}
        )
        async with attached(original) as volume:
            await write(volume, 0, pattern(2 * SIZE))
            assert volume.target_replace(original, raised) is ReplaceResult.VCR_MATCHES
            with pytest.raises(errors.ReplaceRequestInvalid, match="no difference"):
                volume.target_replace(original, original)
            assert volume.target_replace(original, replacement) is ReplaceResult.STARTED
            again = volume.target_replace(original, replacement)
            assert again in (ReplaceResult.STARTED_ALREADY, ReplaceResult.COMPLETED_ALREADY)
            await until(lambda: volume.target_replace(original, replacement) is ReplaceResult.COMPLETED_ALREADY)
            assert await everything(volume) == pattern(2 * SIZE)
            info = volume.volume_info().model_dump(mode="json")["volume"]["sub_volumes"][1]["upstairs"]
            assert info["targets"][2]["target_addr"] == new and info["generation"] == 2
        async with attached(replacement) as volume:
            assert await everything(volume) == pattern(2 * SIZE)


async def test_a_downstairs_is_replaced_before_the_disk_is_active(
    fresh_disk: Fresh, tmp_path: Path, expect_log: ExpectLog
) -> None:
    quiet(expect_log)
    async with region_sets(fresh_disk, 1) as (servers,), spare(tmp_path) as new:
        part = request_of(servers, 2)
        async with attached(part) as volume:
            await write(volume, 0, pattern(SIZE))
            await volume.deactivate()
            assert volume.replace_downstairs(part.opts.target[1], new) is ReplaceResult.STARTED
            await volume.activate(3)
            assert await everything(volume) == pattern(SIZE)
            assert volume.replace_downstairs(part.opts.target[1], new) is ReplaceResult.COMPLETED_ALREADY


async def test_a_downstairs_of_the_parent_is_replaced_by_a_copy(
    fresh_disk: Fresh, tmp_path: Path, expect_log: ExpectLog
) -> None:
    quiet(expect_log)
    below = await filled(fresh_disk, pattern(SIZE))
    async with (
        served(below, read_only=True) as snapshot,
        region_sets(fresh_disk, 1) as (top,),
        spare(tmp_path, region_path(below, 0)) as new,
    ):
        parent = request_of(snapshot, 2, number=1, read_only=True)
        original = volume_of(request_of(top, 2), parent=volume_of(parent))
        changed = original.model_copy(
            update={
                "read_only_parent": original.read_only_parent.model_copy(  # type: ignore[union-attr]
                    update={"sub_volumes": (moved(parent, 0, new, gen=3),)}
                )
            }
        )
        async with attached(original) as volume:
            assert await everything(volume) == pattern(SIZE)
            assert volume.target_replace(original, changed) is ReplaceResult.STARTED
            await until(lambda: volume.target_replace(original, changed) is ReplaceResult.COMPLETED_ALREADY)
            for client in (1, 2):
                await snapshot.members[client].stop()
            assert await everything(volume) == pattern(SIZE), "all from the new one"


async def test_replacements_that_cannot_be_are_refused_in_the_words_of_the_volume(fresh_disk: Fresh) -> None:
    async with region_sets(fresh_disk, 1) as (servers,):
        part = request_of(servers)
        strange = moved(part, 0, "127.0.0.1:9")
        original = volume_of(part)
        async with attached(original) as volume:
            known, other = part.opts.target[:2]
            assert volume.replace_downstairs("127.0.0.1:9", "127.0.0.1:10") is ReplaceResult.MISSING
            for old, new in ((known, other), (other, known)):
                with pytest.raises(errors.ReplaceRequestInvalid, match="in use"):
                    volume.replace_downstairs(old, new)
            wrong = original.model_copy(update={"sub_volumes": (strange,)})
            elsewhere = original.model_copy(update={"sub_volumes": (moved(part, 0, "127.0.0.1:10"),)})
            with pytest.raises(errors.ReplaceRequestInvalid, match=r"Can't locate 127\.0\.0\.1:9 to replace"):
                volume.target_replace(wrong, elsewhere)
            swapped = original.model_copy(update={"sub_volumes": (moved(part, 0, other),)})
            with pytest.raises(errors.ReplaceRequestInvalid, match=r"Replace downstairs failed for .* with .* in use"):
                volume.target_replace(original, swapped)


# -- against the model ------------------------------------------------------------------------------------------------

EXAMPLES = settings.default.max_examples if settings.default is not None else 100
FEW = settings(
    max_examples=max(8, EXAMPLES // 12),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", ["local", "remote"])
@FEW
@given(
    program=st.lists(st.tuples(batches, st.booleans()), max_size=6),
    starts=st.lists(st.integers(0, BLOCKS - 1), max_size=6),
    scrub_at=st.none() | st.integers(0, 6),
    split=st.booleans(),
)
async def test_region_sets_over_region_sets_are_their_layers(
    fresh_disk: Fresh,
    kind: str,
    program: list[tuple[list[Op], bool]],
    starts: list[int],
    scrub_at: int | None,
    split: bool,
) -> None:
    """Batches that overlap and are not waited for, and a scrub beside them."""
    async with AsyncExitStack() as stack:
        parts = []
        for _ in range(3 if split else 2):
            directory = fresh_disk()
            stack.callback(shutil.rmtree, directory)
            if kind == "local":
                guest = await stack.enter_async_context(open_disk(directory))
            else:
                servers = await stack.enter_async_context(region_set(replicas(directory)))
                guest = await stack.enter_async_context(servers.disk())
            parts.append(Modelled(guest, blocks=[{None} for _ in range(BLOCKS)], kind=kind))
        parent = parts.pop()
        for start in starts:
            count = min(5, BLOCKS - start)
            await write(parent.device, start * BLOCK, of(*[start + 1] * count))
            parent.blocks[start : start + count] = [{start + 1} for _ in range(count)]
        volume = Volume(BLOCK, [part.device for part in parts], parent.device)
        disk = Modelled(volume, parts, parent)
        outstanding = Outstanding(disk)
        async with trio.open_nursery() as nursery:
            for number, (batch, wait) in enumerate(program):
                if number == scrub_at:
                    disk.scrub_begins()
                    nursery.start_soon(volume.scrub)
                outstanding.submit(batch)
                if wait:
                    await until(lambda: not outstanding.pending)
        outstanding.submit([Op(Kind.READ, 0, disk.count, 0, owned) for owned in (False, True)])
        await until(lambda: not outstanding.pending)
