"""What a lost copy is cloned from, and the proof of the clone: pure, then with bytes that rot on real disks (§3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pytest
from disks_rig import standing
from frozen_rig import ledger, refused
from nexus_rig import CAPACITY_BYTES, Plant, plant
from read_only_rig import Before, State, asks, copies, nexus_of, request, scene
from sqlalchemy import Connection
from test_saga_snapshot_replacement_start import SAGA, document, targets_now
from test_saga_volume_verify import UNWRITTEN_BYTE, flip
from users_rig import run

from crucible_emu.agent import Failing, Failures
from crucible_emu.agent.api import agent_api
from crucible_emu.service import application
from nexus.db import Database, schema
from nexus.objects.snapshots import Ledger, ledger_remove, ledger_write
from nexus.placement import regions_of
from nexus.replacement import notes
from nexus.replacement.clone_proof import Verdict, judged
from nexus.replacement.clone_source import SnapshotCopy, choose, repair_address, why_none
from nexus.replacement.read_only import target_of
from nexus.saga import Context
from nexus.sagas.region_snapshot_replacement_start import Params, new_region_id
from nexus.sagas.target_swap import resource_of
from nexus.verification import Holding
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot
from nexus.volumes.freed import Dataset
from nexus.volumes.resolution import Resource

WRITTEN_BYTE = 0


# -- the policy -------------------------------------------------------------------------------------------------------


def copy_of(resource: Resource, **changed: Any) -> SnapshotCopy:
    found = SnapshotCopy(resource, Dataset("d", "::1", 1), Address("::1", 2), in_service=True, used=True)
    return replace_fields(found, **changed)


A, B, C = (copy_of(RegionSnapshot("dataset", name, "snapshot")) for name in "abc")
M, N = (copy_of(ReadOnlyRegion(name)) for name in "mn")


def test_another_snapshot_then_another_region_then_itself() -> None:
    assert choose([N, A, B], A.resource, (), "") == B
    assert choose([N, A, M], M.resource, (), "") == A
    assert choose([N, A], A.resource, (), "") == N
    assert choose([A], A.resource, (), "") == A
    assert choose([], A.resource, (), "") is None


@pytest.mark.parametrize("changed", [{"in_service": False}, {"used": False}, {"address": None}])
def test_what_is_no_source(changed: dict[str, Any]) -> None:
    """Lost, not counted on (a clone that is not proved yet: R37), or never told where it listens."""
    assert choose([replace_fields(B, **changed), N, A], A.resource, (), "") == N


def test_a_source_that_was_refused_is_not_asked_again() -> None:
    assert choose([A, B, C], A.resource, {B.name}, "") == C
    assert choose([A, B, C], A.resource, {B.name, C.name}, "") == A
    assert choose([A, B, C], A.resource, {A.name, B.name, C.name}, "") is None


def test_among_equals_the_seed_draws_and_the_order_does_not() -> None:
    """The next attempt need not meet the same silent agent."""
    drawn = {seed: choose([A, B, C], A.resource, (), seed) for seed in map(str, range(20))}
    assert set(drawn.values()) == {B, C}
    assert drawn == {seed: choose([C, B, A], A.resource, (), seed) for seed in drawn}


def test_why_there_is_none_names_what_is_lost_and_what_is_rotten() -> None:
    lost = replace_fields(B, in_service=False)
    sentence = why_none([A, lost], "snapshot", {A.name})
    assert sentence.startswith("no good copy of snapshot snapshot is left to clone")
    assert f"what is there is not what the snapshot was: {A.name}" in sentence
    assert f"on disks that are gone: {lost.name}" in sentence


# -- the proof --------------------------------------------------------------------------------------------------------

GOOD, BAD = ("1", "2"), ("1", "9")


@pytest.mark.parametrize(
    ("clone", "source", "written", "verdict"),
    [
        (Holding("n", GOOD), Holding("b", GOOD), GOOD, Verdict.SOUND),
        (Holding("n", GOOD), Holding("b", BAD), GOOD, Verdict.SOUND),
        (Holding("n", BAD), Holding("b", BAD), GOOD, Verdict.SOURCE_IS_NOT),
        (Holding("n", BAD), Holding("b", GOOD), GOOD, Verdict.COPY_IS_NOT),
        (Holding("n", BAD), Holding("b", problem="damaged"), GOOD, Verdict.SOURCE_IS_NOT),
        (Holding("n", BAD), Holding("b", problem="silent", absent=True), GOOD, Verdict.UNKNOWN),
        (Holding("n", problem="damaged"), Holding("b", GOOD), GOOD, Verdict.COPY_IS_NOT),
        (Holding("n", GOOD[:1]), Holding("b", GOOD), GOOD, Verdict.COPY_IS_NOT),
        # Of a snapshot without a ledger.
        (Holding("n", GOOD), Holding("b", GOOD), None, Verdict.SOUND),
        (Holding("n", GOOD), Holding("b", BAD), None, Verdict.SOURCE_IS_NOT),
        (Holding("n", GOOD), Holding("b", problem="damaged"), None, Verdict.SOURCE_IS_NOT),
        (Holding("n", GOOD), Holding("b", problem="silent", absent=True), None, Verdict.UNKNOWN),
        (Holding("n", problem="damaged"), Holding("b", GOOD), None, Verdict.COPY_IS_NOT),
        (Holding("n", (None, None)), Holding("b", (None, None)), None, Verdict.SOURCE_IS_NOT),
    ],
)
def test_what_the_digests_say(
    clone: Holding, source: Holding, written: tuple[str, ...] | None, verdict: Verdict
) -> None:
    found = judged(clone, source, written)
    assert found.verdict is verdict and found.sentence


# -- on real disks ----------------------------------------------------------------------------------------------------


def file_of(rack: Plant, resource: Resource, dataset_id: str = "") -> Path:
    """The first extent of a copy."""
    match resource:
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            path = rack.agents[dataset_id].datasets.snapshot_path(region_id, snapshot_id)
        case ReadOnlyRegion(region_id):
            path = rack.agents[dataset_id].datasets.path(region_id)
    assert path is not None
    return path / "00" / "000" / "000"


def rot_of_the_source(rack: Plant, byte: int, seen: list[Resource]) -> Before:
    """The copy that was chosen rots before it is cloned."""

    async def rot(context: Context[Any]) -> None:
        seen.append(resource_of(context.outputs["GET_CLONE_SOURCE"]))
        flip(file_of(rack, seen[0]), byte)

    return Before("NEW_REGION_ENSURE", rot)


def refusals(rack: Plant, request_id: str) -> list[str]:
    return [each.source for each in rack.run(notes.sources_refused, request_id)]


def source_of_the_clone(rack: Plant, request_id: str) -> str:
    """Which source the agent of the successor was told of."""
    clone = request(rack, request_id).new_region_id
    (wish,) = [each.wish for agent in rack.agents.values() for each in agent.regions() if each.id == clone]
    return str(wish.source)


def repaired_from(rack: Plant, target: Resource) -> str:
    return str(repair_address(rack.run(target_of, target).address))


@pytest.mark.parametrize("byte", [UNWRITTEN_BYTE, WRITTEN_BYTE])
async def test_a_source_that_rotted_is_refused_and_another_is_cloned(
    tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any], byte: int
) -> None:
    """Where nobody ever wrote, and where somebody did. Its agent finds that, and so does who would copy it."""
    expect_log("a copy of a snapshot is not what the snapshot was")
    expect_log("region not made")
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        before = await standing(rack)
        text, rotten = document(rack, found.snapshot.volume_id), list[Resource]()
        with refused("refused", match="is failed"):
            await run(rack, SAGA, Params(request_id=request_id), perform=rot_of_the_source(rack, byte, rotten))
        assert refusals(rack, request_id) == [str(rotten[0])] and rotten[0] != found.targets[0]
        assert request(rack, request_id).state is State.REQUESTED
        assert await standing(rack) == before and document(rack, found.snapshot.volume_id) == text
        outputs = await run(rack, SAGA, Params(request_id=request_id))
        chosen = resource_of(outputs["GET_CLONE_SOURCE"])
        assert chosen not in (rotten[0], found.targets[0])
        assert source_of_the_clone(rack, request_id) == repaired_from(rack, chosen)
        clone = str(targets_now(found)[0])
        assert (await copies(rack, found.snapshot))[clone] == ledger(rack, found.snapshot.id).extents
        assert rack.findings() == []


async def test_a_clone_that_went_wrong_is_made_again_from_the_same_source(tmp_path: Path, in_memory: Database) -> None:
    """The source is what it was: it is not refused."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        before = await standing(rack)

        async def rot(context: Context[Any]) -> None:
            region = schema.region
            clone = new_region_id(context)
            query = region.select().where(region.c.id == clone)
            dataset_id = rack.run(lambda c: c.execute(query).one()).dataset_id
            flip(file_of(rack, ReadOnlyRegion(clone), dataset_id), UNWRITTEN_BYTE)

        with refused("unproved", match="differs from the ledger|differs from snapshot"):
            await run(rack, SAGA, Params(request_id=request_id), perform=Before("VERIFY_NEW_REGION", rot))
        assert refusals(rack, request_id) == [] and await standing(rack) == before


async def test_without_a_good_copy_a_request_waits_and_keeps_everything(
    tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any]
) -> None:
    """What the copies hold is whole, and not what was frozen: only the ledger tells. Nothing is replaced, nothing is
    lost, and who asks is told what is wrong with which."""
    expect_log("a copy of a snapshot is not what the snapshot was", at_least=3)
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        written_down = ledger(rack, found.snapshot.id)
        rack.run(ledger_remove, found.snapshot.id)
        other = Ledger(written_down.extent_size_bytes, written_down.extents[::-1])
        rack.run(ledger_write, found.snapshot.id, other, rack.now())
        request_id = asks(rack, found.targets[0])
        before = await standing(rack)
        async with nexus_of(rack) as nexus:
            for _ in found.targets:
                assert len((await nexus.does(nexus.start))["start_invoked_ok"]) == 1
            since = None
            for _ in range(2):
                status = await nexus.does(nexus.start)
                assert status["start_invoked_ok"] == [] and len(status["waiting"]) == 1
                waiting = rack.run(notes.waiting_of, request_id)
                assert since in (None, waiting.time_since), "and since when"
                since = waiting.time_since
            assert all(str(each) in waiting.reason for each in found.targets)
            assert len(refusals(rack, request_id)) == 3 and await standing(rack) == before
            await found.delete_snapshot()
            await found.delete_copy()
            await found.delete_disk()
            assert len((await nexus.does(nexus.start))["requests_completed_ok"]) == 1
            assert rack.run(notes.waiting_of, request_id) is None
        await rack.require_empty()


# -- which source an agent is told of ---------------------------------------------------------------------------------


async def test_region_snapshot_replacement_start_prefer_not_self(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        others = [repaired_from(rack, each) for each in found.targets[1:]]
        request_id = asks(rack, found.targets[0])
        await run(rack, SAGA, Params(request_id=request_id))
        assert source_of_the_clone(rack, request_id) in others


async def test_region_snapshot_replacement_start_hail_mary(tmp_path: Path, in_memory: Database) -> None:
    """All other copies are lost. Of this snapshot nothing was written down: the clone is held against its source."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        written_down = ledger(rack, found.snapshot.id).extents
        rack.run(ledger_remove, found.snapshot.id)
        itself = repaired_from(rack, found.targets[0])
        for lost in found.targets[1:]:
            rack.expunge(lost.dataset_id)
        request_id = asks(rack, found.targets[0])
        await run(rack, SAGA, Params(request_id=request_id))
        assert source_of_the_clone(rack, request_id) == itself
        assert (await copies(rack, found.snapshot))[str(targets_now(found)[0])] == written_down


async def test_no_leak_region(tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any]) -> None:
    """Every agent says that the region has failed: none keeps it, and no source is blamed (R35)."""
    expect_log("region not made")
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        before = await standing(rack)
        for agent in rack.agents.values():
            agent.options = replace_fields(agent.options, failures=Failures(frozenset({Failing.CREATE})))
        with refused("refused", match="is failed"):
            await run(rack, SAGA, Params(request_id=request_id))
        assert await standing(rack) == before and refusals(rack, request_id) == []


async def test_a_full_rack_says_so_and_a_small_one_shares_sleds(tmp_path: Path, in_memory: Database) -> None:
    """R38: on three sleds the clone shares one, if that has a disk without a copy; without such a disk the request
    waits."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        with refused("capacity", match="no place for another copy"):
            await run(rack, SAGA, Params(request_id=request_id))
        assert "no place" in rack.run(notes.waiting_of, request_id).reason
        _, kept, _ = found.targets
        another_disk(rack, kept.dataset_id)
        await run(rack, SAGA, Params(request_id=request_id))
        assert sled_of_the_successor(rack, request_id) == rack.sled_of[kept.dataset_id]
        assert rack.run(notes.waiting_of, request_id) is None


async def test_another_disk_of_the_sled_that_lost_one_is_the_best_place(tmp_path: Path, in_memory: Database) -> None:
    """R38: three copies on three sleds again, although each of them has had one."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        found = await scene(rack)
        lost = found.targets[0]
        for target in found.targets:
            another_disk(rack, target.dataset_id)
        rack.expunge(lost.dataset_id)
        request_id = asks(rack, lost)
        await run(rack, SAGA, Params(request_id=request_id))
        assert sled_of_the_successor(rack, request_id) == rack.sled_of[lost.dataset_id]


def another_disk(rack: Plant, dataset_id: str) -> None:
    """The sled of the dataset has one more disk, of the same agent."""
    sled_id = rack.sled_of[dataset_id]
    hardware = {"vendor": "emulated", "serial": rack.id(), "model": "file", "variant": "u2"}
    disk_id = rack.add(schema.physical_disk, sled_id=sled_id, disk_policy="in_service", disk_state="active", **hardware)
    pool_id = rack.add(schema.zpool, sled_id=sled_id, physical_disk_id=disk_id, control_plane_storage_buffer=0)
    rack.add(schema.inv_zpool, id=pool_id, sled_id=sled_id, total_size=CAPACITY_BYTES)
    port = rack.agent_port[dataset_id] + 100
    rack.network.connect(port, application(agent_api(rack.agents[dataset_id])))
    rack.add(schema.crucible_dataset, pool_id=pool_id, ip="::1", port=port, size_used=0, no_provision=False)


def sled_of_the_successor(rack: Plant, request_id: str) -> str:
    def body(connection: Connection) -> str:
        (placed,) = [each for each in regions_of(connection, snapshot_volume) if each.region_id == successor]
        return placed.sled_id

    successor = request(rack, request_id).new_region_id
    query = schema.region.select().where(schema.region.c.id == successor)
    snapshot_volume = rack.run(lambda c: c.execute(query).one()).volume_id
    return str(rack.run(body))
