"""Scenarios over four Downstairs of this process: what they bring about, and that the disk is right afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx2
import numpy as np
import pytest
import trio
from disk_rig import DISK, RegionSet, digests, make_regions, region_set

from crucible_emu import errors
from crucible_emu.exercise import disk as disks
from crucible_emu.exercise import scenarios, workloads
from crucible_emu.exercise.control import Control, connected
from crucible_emu.exercise.disk import Interrupted, Subject, generation_of, with_generation
from crucible_emu.exercise.layout import layout_of
from crucible_emu.exercise.runner import IntegrityError
from crucible_emu.exercise.scenarios import SCENARIOS, Setting
from crucible_emu.exercise.write_log import WriteLog
from crucible_emu.volume import vcr

TROUBLE = (
    "connection ended",
    "replica faulted",
    "reconciliation aborted",
    "disk disabled",
    "another Upstairs took over",
    "acknowledged writes may be lost",
)


class MemberControl:
    """Stops and starts Downstairs of this process, as a control API does."""

    def __init__(self, servers: RegionSet) -> None:
        self.servers = servers
        self.stopped: list[int] = []

    async def targets(self) -> list[str]:
        return [member.target for member in self.servers.members]

    async def stop(self, cid: int) -> None:
        self.stopped.append(cid)
        await self.servers.members[cid].stop()

    async def start(self, cid: int) -> None:
        await self.servers.start(cid, port=self.servers.members[cid].port)


def request(servers: RegionSet) -> vcr.RegionRequest:
    """The disk of the first three; the fourth is the spare."""
    found = servers.members[0].region.definition
    targets = tuple(member.target for member in servers.members[:3])
    return vcr.RegionRequest(
        type="region",
        block_size=found.block_size,
        blocks_per_extent=found.blocks_per_extent,
        extent_count=found.extent_count,
        opts=vcr.CrucibleOpts.model_validate({"id": DISK, "target": targets}),
        gen=1,
    )


@asynccontextmanager
async def setting(folder: Path, count: int = 1) -> AsyncIterator[Setting]:
    async with region_set(make_regions(folder, count=4)) as servers:
        wanted = request(servers)
        layout = layout_of(wanted)
        log = WriteLog.new(layout.block_count, blank=True)
        control: Any = MemberControl(servers)
        yield Setting(
            Subject(wanted, timeout_s=30),
            log,
            layout,
            Random(5),
            count,
            control=control,
            spare=servers.members[3].target,
        )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "RECONNECT_DELAY_S", 0.05)
    monkeypatch.setattr(scenarios, "GENERIC_WHILE_STOPPED", 50)


async def verified(it: Setting) -> None:
    async with it.subject.active() as device:
        await it.verify(device)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_scenario_leaves_the_disk_right_and_its_replicas_equal(
    name: str, tmp_path: Path, expect_log: Any
) -> None:
    for trouble in TROUBLE:
        expect_log(trouble, at_least=0)
    async with setting(tmp_path, count=2) as it:
        async with it.session() as guest:
            await it.run(guest, workloads.fill(it.plan()))
        before, said = it.subject.generation, list[str]()
        it.say = said.append
        await SCENARIOS[name].play(it)
        assert it.subject.generation > before
        await verified(it)
        assert not it.log.doubtful.any()
        assert isinstance(it.control, MemberControl)
        if name in ("replay", "reconcile", "replace-before-active", "replace-reconcile"):
            assert len(it.control.stopped) == 2
        replaced = [line for line in said if "is being replaced by" in line]
        assert len(replaced) == (2 if name.startswith("replace") else 0)
        ports = [await it.cid_of(target) for target in it.subject.region().opts.target]
        paths = [it.control.servers.paths[cid] for cid in ports]
    assert len(digests(paths)) == 1


async def test_a_wrong_block_ends_a_scenario(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        async with it.session() as guest:
            await it.run(guest, workloads.fill(it.plan()))
        it.log.cur[3] += 1
        it.log.min[3] += 1
        with pytest.raises(BaseExceptionGroup) as found:
            await verified(it)
        assert found.group_contains(IntegrityError, match="block 3 is wrong: expected write 2, found write 1")


async def test_an_interrupted_session_leaves_the_disk_flushed(tmp_path: Path) -> None:
    """The block is cancelled, not the connections that the last flush needs."""
    async with setting(tmp_path) as it:
        assert it.subject.interrupt() is False

        async def busy() -> None:
            async with it.session() as guest, trio.open_nursery() as nursery:
                nursery.start_soon(it.run, guest, workloads.rand_write(it.plan()))
                await disks.until(lambda: int(it.log.cur.sum()) > 100)
                assert it.subject.interrupt() is True

        with trio.fail_after(60), pytest.raises(Interrupted):
            await busy()
        it.log.commit_all()  # all that was submitted was finished, and flushed
        await verified(it)


async def test_what_a_scenario_needs_is_said(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        it.spare = None
        with pytest.raises(errors.UsageError, match="give --replacement IP:PORT"):
            await scenarios.replace(it)
        it.control = None
        with pytest.raises(errors.UsageError, match="give the --control URL"):
            await scenarios.replay(it)


async def test_generation_is_raised_to_what_is_due(tmp_path: Path, expect_log: Any) -> None:
    expect_log("disk disabled")
    async with setting(tmp_path) as it:
        it.subject.generation = 41
        async with it.session() as guest:
            await it.run(guest, workloads.fill(it.plan()))
        used: list[int] = []
        again = Subject(it.subject.request, timeout_s=30)
        again.remember = used.append
        async with again.active() as device:
            await it.verify(device)
        assert used[0] == 1 and used[1] > 41
        assert again.generation == used[1] + 1


def test_generations_of_a_tree() -> None:
    opts = {"id": DISK, "target": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")}
    part = {"type": "region", "block_size": 512, "blocks_per_extent": 1, "extent_count": 1, "opts": opts}
    parts = ({**part, "gen": 3}, {**part, "gen": 7})
    tree = vcr.VolumeRequest.model_validate({"type": "volume", "id": DISK, "block_size": 512, "sub_volumes": parts})
    assert generation_of(tree) == 7
    assert [generation_of(each) for each in with_generation(tree, 9).sub_volumes] == [9, 9]  # type: ignore[union-attr]


# -- the client of the control API ------------------------------------------------------------------------------------


def answering(routes: dict[str, Any]) -> Control:
    """A client whose API answers these GETs, and everything else with 404."""

    def answer(asked: httpx2.Request) -> httpx2.Response:
        if asked.url.path in routes:
            return httpx2.Response(200, json=routes[asked.url.path])
        return httpx2.Response(404, json={"message": "Not Found", "request_id": "1"})

    transport = httpx2.MockTransport(answer)
    return Control(httpx2.AsyncClient(base_url="http://127.0.0.1:1", transport=transport), "127.0.0.1")


REAL = {
    "/regioninfo": {"block_size": 512, "blocks_per_extent": 4, "extent_count": 2},
    "/readonly": False,
    "/regioncount": 7,
    "/uuid/cid/0": "12345678-0000-0000-0000-000000008810",
    **{f"/port/cid/{cid}": 8810 + 10 * cid for cid in range(7)},
}


async def test_a_disk_from_the_real_api_has_a_sub_volume_for_every_three(tmp_path: Path) -> None:
    found = await answering(REAL).volume_request(None)
    assert isinstance(found, vcr.VolumeRequest)
    assert found.id == UUID("12345678-0000-0000-0000-000000008810")
    assert [part.opts.target for part in found.sub_volumes] == [  # type: ignore[union-attr]
        ("127.0.0.1:8810", "127.0.0.1:8820", "127.0.0.1:8830"),
        ("127.0.0.1:8840", "127.0.0.1:8850", "127.0.0.1:8860"),
    ]
    assert np.isclose(layout_of(found).size_bytes, 2 * 512 * 8)
    with pytest.raises(errors.UsageError, match="a disk needs three"):
        await answering({**REAL, "/regioncount": 2}).volume_request(None)


async def test_a_key_is_put_where_none_is() -> None:
    whole = await answering(REAL).volume_request(None)
    found = await answering({"/vcr": whole.model_dump(mode="json")}).volume_request("c2VjcmV0")
    keys = [part.opts.key.get_secret_value() for part in found.sub_volumes]  # type: ignore[union-attr]
    assert keys == ["c2VjcmV0"] * 2


async def test_an_api_that_is_none() -> None:
    with pytest.raises(errors.RemoteError, match="refuses POST /stop/cid/1: 404"):
        await answering({}).stop(1)
    for url in ("here", "https://127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:x"):
        with pytest.raises(errors.UsageError, match="is no control API: write http://ip:port"):
            async with connected(url):
                pass
    async with connected("127.0.0.1:1") as control:
        with pytest.raises(errors.IoError, match="the control API does not answer GET /regioncount"):
            await control.targets()
