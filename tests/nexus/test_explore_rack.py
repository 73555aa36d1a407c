"""The light rack that is explored: is it as true as it has to be? What an Upstairs, an agent, a pantry may do there."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from crucible_emu.agent.documents import CreateRegion, State
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.errors import ReplaceRequestInvalid
from crucible_emu.pantry.documents import ReplaceResult
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest, VolumeRequest
from nexus.explore.agents import LightAgent
from nexus.explore.fabric import FIRST_PORT, REPAIR_PORT_OFFSET, Fabric
from nexus.explore.upstairs import REPAIR_S, LightVolume, Taken, Unavailable

BLOCK = bytes(512)


@pytest.fixture
def fabric() -> Fabric:
    made = Fabric(5)
    made.now_s = lambda: made.clock_s  # type: ignore[attr-defined]
    made.clock_s = 0.0  # type: ignore[attr-defined]
    return made


def agent(fabric: Fabric, number: int) -> LightAgent:
    return LightAgent(fabric, fabric.sleds[number])


def wish(number: int, source: str | None = None) -> CreateRegion:
    return CreateRegion(
        id=str(UUID(int=number)), block_size=512, extent_size=2, extent_count=2, encrypted=True, source=source
    )


async def target(fabric: Fabric, number: int) -> str:
    made = await agent(fabric, number).region_create(wish(number + 1))
    return f"[{fabric.sleds[number].ip}]:{made.port_number}"


def volume(targets: list[str], gen: int = 1, *, read_only: bool = False) -> VolumeRequest:
    opts = CrucibleOpts(id=UUID(int=99), target=tuple(targets), read_only=read_only)
    region = RegionRequest(type="region", block_size=512, blocks_per_extent=2, extent_count=2, opts=opts, gen=gen)
    return VolumeRequest(type="volume", id=UUID(int=98), block_size=512, sub_volumes=(region,))


async def three(fabric: Fabric) -> list[str]:
    return [await target(fabric, number) for number in range(3)]


async def test_activation_needs_three_members_and_reading_one(fabric: Fabric) -> None:
    targets = await three(fabric)
    fabric.sleds[2].trouble.silent = True
    assert not LightVolume(fabric, volume(targets)).activate()
    assert LightVolume(fabric, volume(targets, read_only=True)).activate() is False, "they are no read-only regions"
    fabric.sleds[2].trouble.silent = False
    assert LightVolume(fabric, volume(targets)).activate()


async def test_activation_makes_all_members_what_the_newest_is(fabric: Fabric) -> None:
    targets = await three(fabric)
    first = LightVolume(fabric, volume(targets))
    assert first.activate()
    fabric.sleds[0].trouble.silent = True
    first.write(1, b"x" * 512)
    first.flush()
    fabric.sleds[0].trouble.silent = False
    assert fabric.sleds[0].regions[str(UUID(int=1))].contents.blocks == {}
    second = LightVolume(fabric, volume(targets, gen=2))
    assert second.activate()
    assert fabric.sleds[0].regions[str(UUID(int=1))].contents.blocks == {1: b"x" * 512}
    assert [each.address for part in second.sets for each in part.repaired] == [targets[0]]


async def test_a_higher_generation_wins_and_a_lower_one_loses(fabric: Fabric) -> None:
    targets = await three(fabric)
    first, second = LightVolume(fabric, volume(targets, 5)), LightVolume(fabric, volume(targets, 6))
    assert first.activate() and second.activate()
    assert not first.active
    with pytest.raises((Taken, Unavailable)):
        first.write(0, BLOCK)
    with pytest.raises(Taken):
        LightVolume(fabric, volume(targets, 6)).activate()


async def test_a_replaced_member_counts_when_it_is_repaired(fabric: Fabric) -> None:
    targets = await three(fabric)
    new = await target(fabric, 3)
    running = LightVolume(fabric, volume(targets))
    assert running.activate()
    running.write(3, b"y" * 512)
    changed = volume([new, *targets[1:]], gen=2)
    assert running.replace(changed) is ReplaceResult.STARTED
    assert running.sets[0].info().upstairs.live_repair_in_progress
    with pytest.raises(ReplaceRequestInvalid, match="no difference"):
        running.replace(changed)
    with pytest.raises(ReplaceRequestInvalid, match="failed, downstairs 0"):
        running.replace(volume([new, await target(fabric, 4), targets[2]], gen=3))
    fabric.clock_s = REPAIR_S  # type: ignore[attr-defined]
    assert running.active
    assert fabric.sleds[3].regions[str(UUID(int=4))].contents.blocks == {3: b"y" * 512}
    assert running.replace(volume([new, *targets[1:]], gen=4)) is ReplaceResult.VCR_MATCHES
    with pytest.raises(ReplaceRequestInvalid, match="multiple"):
        running.replace(volume([targets[0], new, targets[2]], gen=5))


async def test_an_agent_uses_ports_again_and_ids_once(fabric: Fabric) -> None:
    one = agent(fabric, 0)
    first = await one.region_create(wish(1))
    assert (await one.region_create(wish(1))).port_number == first.port_number == FIRST_PORT
    with pytest.raises(ServiceError, match="other parameters"):
        await one.region_create(wish(1, "[fd00::2]:24000"))
    await one.region_delete(wish(1).id)
    assert (await one.region_create(wish(1))).state is State.DESTROYED
    assert (await one.region_create(wish(2))).port_number == FIRST_PORT


async def test_snapshots_go_before_regions_and_stop_before_they_go(fabric: Fabric) -> None:
    one, targets = agent(fabric, 0), await three(fabric)
    running = LightVolume(fabric, volume(targets))
    assert running.activate()
    running.snapshot("s")
    region_id = wish(1).id
    served = await one.region_run_snapshot(region_id, "s")
    for refused in (lambda: one.region_delete(region_id), lambda: one.region_delete_snapshot(region_id, "s")):
        with pytest.raises(ServiceError):
            await refused()
    running.write(0, b"z" * 512)
    read = volume([f"[{fabric.sleds[0].ip}]:{served.port_number}"] * 3, read_only=True)
    frozen = LightVolume(fabric, read)
    assert frozen.activate() and frozen.read(0) == BLOCK and running.read(0) == b"z" * 512
    await one.region_delete_running_snapshot(region_id, "s")
    await one.region_delete_snapshot(region_id, "s")
    await one.region_delete(region_id)


async def test_a_clone_has_the_bytes_of_the_moment_or_fails(fabric: Fabric) -> None:
    targets = await three(fabric)
    running = LightVolume(fabric, volume(targets))
    assert running.activate()
    running.write(2, b"a" * 512)
    source = f"[{fabric.sleds[0].ip}]:{FIRST_PORT + REPAIR_PORT_OFFSET}"
    made = await agent(fabric, 4).region_create(wish(7, source))
    running.write(2, b"b" * 512)
    assert made.state is State.CREATED and made.read_only
    assert fabric.sleds[4].regions[wish(7).id].contents.blocks == {2: b"a" * 512}
    fabric.sleds[0].alive = False
    assert (await agent(fabric, 4).region_create(wish(8, source))).state is State.FAILED


async def test_troubles_of_agents(fabric: Fabric) -> None:
    one, trouble = agent(fabric, 0), fabric.sleds[0].trouble
    trouble.lost_answers = 1
    with pytest.raises(ServiceUnreachable):
        await one.region_create(wish(1))
    assert (await one.region_get(wish(1).id)).state is State.CREATED, "it was done all the same"
    trouble.refusals = 1
    with pytest.raises(ServiceError):
        await one.region_delete(wish(1).id)
    assert (await one.region_get(wish(1).id)).state is State.DESTROYED
    trouble.slow_s = 3.0
    assert (await one.region_create(wish(2))).state is State.REQUESTED
    fabric.clock_s = 3.0  # type: ignore[attr-defined]
    assert (await one.region_get(wish(2).id)).state is State.CREATED
    trouble.silent = True
    with pytest.raises(ServiceUnreachable):
        await one.region_list()


async def test_digests_are_of_flushed_bytes(fabric: Fabric) -> None:
    targets = await three(fabric)
    running = LightVolume(fabric, volume(targets))
    assert running.activate()
    running.write(0, b"q" * 512)
    one: Any = agent(fabric, 0)
    assert (await one.region_digest(wish(1).id)).extents_waiting == 1
    running.flush()
    digests = [(await agent(fabric, number).region_digest(wish(number + 1).id)).extents for number in range(3)]
    assert digests[0] == digests[1] == digests[2] and None not in digests[0]


def test_the_clock_is_not_the_real_one() -> None:
    assert trio.run(trio.sleep, 1e6, clock=trio.testing.MockClock(autojump_threshold=0)) is None
