"""Two pantries fight over one volume, and a Downstairs is replaced while bulk writes go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from disk_rig import digests, failures, pattern, region_set, until
from image_server import image_server
from pantry_rig import (
    BLOCK,
    CHUNK,
    SIZE,
    Caller,
    attach_body,
    moved,
    raised,
    replicas,
    request_of,
    running_pantry,
    volume_of,
    write_body,
)

from crucible_emu.upstairs.actions import RepairNews
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.volume.region_set import RegionSet
from crucible_emu.volume.vcr import VolumeConstructionRequest, VolumeRequest

ExpectLog = Callable[..., Any]
PIECE = 8 * BLOCK


def lost(expect_log: ExpectLog) -> None:
    expect_log("another Upstairs took over", at_least=0)
    expect_log("disk disabled error=another Upstairs", at_least=0)
    for perhaps in (
        "connection ended",
        "replica faulted",
        "live repair",
        "reconciliation",
        "acknowledged writes may be lost",
    ):
        expect_log(perhaps, at_least=0)


class Writer:
    """Writes pieces with ever new fills to offsets of its own choice, until the pantry does not take them any more.

    ``acknowledged``: the last fill of each piece that was answered. ``doubtful``: one that was not."""

    def __init__(self, caller: Caller, seed: int, pieces: range) -> None:
        self.caller = caller
        self.random = Random(seed)
        self.pieces = pieces
        self.acknowledged: dict[int, int] = {}
        self.doubtful: tuple[int, int] | None = None
        self.status = 204
        self.written = 0
        self.warm = trio.Event()
        """A few writes are done, and more follow."""

    async def run(self, until_stopped: trio.Event | None = None) -> None:
        while until_stopped is None or not until_stopped.is_set():
            piece, fill = self.random.choice(self.pieces), self.random.randrange(1, 256)
            body = write_body(piece * PIECE, bytes([fill]) * PIECE)
            answer = await self.caller.call("POST", "/volume/v/bulk-write", body)
            self.status = answer.status
            if answer.status != 204:
                self.doubtful = (piece, fill)
                return
            self.acknowledged[piece] = fill
            self.written += 1
            if self.written > 5:
                self.warm.set()

    def check(self, data: bytes) -> None:
        for piece in self.pieces:
            found = data[piece * PIECE : (piece + 1) * PIECE]
            allowed = {self.acknowledged.get(piece, 0)}
            if self.doubtful is not None and self.doubtful[0] == piece:
                allowed.add(self.doubtful[1])  # not acknowledged: block by block, it is there or not
            assert set(found) <= allowed, f"piece {piece}: {set(found)}, may be {allowed}"
            assert len(allowed) > 1 or len(set(found)) == 1


async def contents(caller: Caller) -> bytes:
    return b"".join([await caller.read(offset, CHUNK) for offset in range(0, SIZE, CHUNK)])


# -- take-over --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_the_loser_of_a_volume_says_so_and_no_acknowledged_write_is_lost(
    tmp_path: Path, expect_log: ExpectLog, seed: int
) -> None:
    """It is taken in the midst of bulk writes; the write under way may be there or not, block by block."""
    lost(expect_log)
    async with replicas(tmp_path) as servers, running_pantry() as loser, running_pantry() as winner:
        vcr = volume_of(request_of(servers))
        await loser.attach(vcr)
        writers = [Writer(loser, seed, range(0, 16)), Writer(loser, seed + 10, range(16, 32))]
        async with trio.open_nursery() as nursery:
            for writer in writers:
                nursery.start_soon(writer.run)
            for writer in writers:
                await writer.warm.wait()
            await winner.attach(raised(vcr, 2))
        data = await contents(winner)
        for writer in writers:
            writer.check(data)
            assert writer.status == 410
        status = await loser.status()
        assert (status["active"], status["seen_active"], status["num_job_handles"]) == (False, True, 1)
        await winner.write(0, pattern(PIECE))
        await loser.detach()
        assert await winner.read(0, PIECE) == pattern(PIECE)
        await winner.detach()
    assert len(digests(servers.paths)) == 1 and all(failures(path) == [] for path in servers.paths)


@pytest.mark.parametrize("faithful", [False, True])
async def test_all_that_a_loser_can_be_asked_for(tmp_path: Path, expect_log: ExpectLog, faithful: bool) -> None:
    lost(expect_log)
    async with replicas(tmp_path) as servers, running_pantry(faithful=faithful) as loser, running_pantry() as winner:
        vcr = volume_of(request_of(servers))
        await loser.attach_in_background(vcr, "j")
        assert await loser.ok("j")
        await winner.attach(raised(vcr, 2))
        await until(lambda: not loser.pantry.held["v"].active)
        for route, body in (
            ("import-from-url", {"url": "http://127.0.0.1:9/x"}),
            ("snapshot", {"snapshot_id": "s"}),
            ("bulk-write", write_body(0, bytes(BLOCK))),
            ("bulk-read", {"offset": 0, "size": BLOCK}),
            ("scrub", None),
            ("validate", {"expected_digest": {"sha256": "0" * 64}}),
            ("replace", attach_body(raised(vcr, 3))),
        ):
            answer = await loser.call("POST", f"/volume/v/{route}", body)
            assert answer.status == 410
            assert answer.json["error_code"] == answer.json["message"] and "took it over" in answer.message
        assert await loser.do("GET", "/job/j/is-finished") == {"job_is_finished": True} and await loser.ok("j")
        again = await loser.refused(400, "POST", "/volume/v/background", attach_body(vcr, "j"))
        assert "detach it here" in again
        assert (await loser.status())["seen_active"] is True
        await loser.detach()
        await winner.write(0, pattern(BLOCK))
        # It may come back as it went: with a higher generation.
        await loser.attach(raised(vcr, 3))
        assert await loser.read(0, BLOCK) == pattern(BLOCK)
        await winner.refused(410, "POST", "/volume/v/bulk-read", {"offset": 0, "size": BLOCK})


async def test_a_job_is_under_way_when_the_volume_is_taken(tmp_path: Path, expect_log: ExpectLog) -> None:
    lost(expect_log)
    async with (
        image_server(pattern(SIZE)) as image,
        replicas(tmp_path) as servers,
        running_pantry() as loser,
        running_pantry() as winner,
    ):
        vcr = volume_of(request_of(servers))
        await loser.attach(vcr)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(winner.attach, raised(vcr, 2))
            jobs = [await loser.start("import-from-url", {"url": image.url}) for _ in range(1)]
            results = [await loser.ok(job) for job in jobs]
        await until(lambda: not loser.pantry.held["v"].active)
        await loser.refused(410, "POST", "/volume/v/scrub")
        if results == [True]:
            assert await contents(winner) == pattern(SIZE)
        await loser.detach()
        await loser.refused(404, "GET", f"/job/{jobs[0]}")


async def test_pantries_take_a_volume_from_each_other_many_times(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Every write that anybody acknowledged is there in the end, whoever it was."""
    lost(expect_log)
    async with replicas(tmp_path) as servers, running_pantry() as one, running_pantry() as other:
        vcr = volume_of(request_of(servers))
        held: dict[int, int] = {}
        for generation in range(1, 9):
            caller = (one, other)[generation % 2]
            await caller.detach()
            await caller.attach(raised(vcr, generation))
            for piece, fill in held.items():
                assert set(await caller.read(piece * PIECE, PIECE)) == {fill}
            await caller.write((generation % 3) * PIECE, bytes([generation]) * PIECE)
            held[generation % 3] = generation


# -- replace ----------------------------------------------------------------------------------------------------------


async def replaced(caller: Caller, vcr: VolumeConstructionRequest) -> str:
    answer: str = await caller.do("POST", "/volume/v/replace", attach_body(vcr))
    return answer


def quiet(expect_log: ExpectLog) -> None:
    for words in ("connection ended", "replica faulted", "replacing", "live repair"):
        expect_log(words, at_least=0)


async def test_a_downstairs_is_replaced_under_bulk_writes(tmp_path: Path, expect_log: ExpectLog) -> None:
    """The new one is repaired meanwhile, and holds every byte in the end, as do those that stayed."""
    quiet(expect_log)
    async with replicas(tmp_path, count=4) as servers, running_pantry() as caller:
        part = request_of(servers)
        vcr, new = volume_of(part), servers.members[3].target
        wanted = vcr.model_copy(update={"sub_volumes": (moved(part, 1, new, gen=2),)})
        await caller.attach(vcr)
        await caller.write(0, pattern(CHUNK))
        writer, stop = Writer(caller, 1, range(16, 32)), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run, stop)
            await writer.warm.wait()
            done = repaired(caller)
            assert await replaced(caller, wanted) == "started"
            assert "no difference" in await caller.refused(400, "POST", "/volume/v/replace", attach_body(wanted))
            await done.wait()
            stop.set()
        assert await caller.read(0, CHUNK) == pattern(CHUNK)
        writer.check(await contents(caller))
        (shown,) = (await caller.status())["info"]["volume"]["sub_volumes"]
        assert [target["target_addr"] for target in shown["upstairs"]["targets"]][1] == new
        assert await replaced(caller, raised(wanted, 3)) == "vcr_matches"
        await caller.detach()
        await caller.attach(raised(wanted, 4))
        writer.check(await contents(caller))
    paths = [servers.paths[client] for client in (0, 2, 3)]
    assert len(digests(paths)) == 1 and all(failures(path) == [] for path in paths)


def first_upstairs(caller: Caller) -> Upstairs:
    part = caller.pantry.held["v"].built.sub_volumes[0]
    assert isinstance(part, RegionSet)
    return part.upstairs


def repaired(caller: Caller) -> trio.Event:
    """Set when the next repair of the first region set has ended well."""
    done = trio.Event()

    def heard(news: RepairNews) -> None:
        if news.what == "finish" and not news.aborted:
            done.set()

    first_upstairs(caller).on_repair = heard
    return done


async def test_a_replacement_that_is_asked_for_again_goes_on(
    tmp_path: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control plane repeats the request with ever higher generations until it is told that all is done."""
    quiet(expect_log)
    advance, let = LiveRepair.advance, trio.Event()

    def stalls(self: LiveRepair) -> None:
        if self.extent_id < 2 or let.is_set():
            advance(self)

    monkeypatch.setattr(LiveRepair, "advance", stalls)
    async with replicas(tmp_path, count=4) as servers, running_pantry() as caller:
        part = request_of(servers)
        vcr, new = volume_of(part), servers.members[3].target
        wanted = vcr.model_copy(update={"sub_volumes": (moved(part, 2, new, gen=2),)})
        await caller.attach(vcr)
        assert await replaced(caller, wanted) == "started"
        assert await replaced(caller, raised(wanted, 3)) == "vcr_matches"
        done = repaired(caller)
        let.set()
        first_upstairs(caller).core.progress()
        first_upstairs(caller).perform()
        await done.wait()


async def test_replacements_that_are_refused_leave_the_volume_as_it_was(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        part = request_of(servers, 5)
        vcr = volume_of(part)
        await caller.attach(vcr)
        moved_twice = moved(moved(part, 0, "127.0.0.1:9"), 1, "127.0.0.1:10")
        refused: list[tuple[VolumeRequest, str]] = [
            (vcr, "no difference"),
            (raised(vcr, 4), "generation too low"),
            (vcr.model_copy(update={"sub_volumes": (moved_twice,)}), "multiple different targets"),
            (vcr.model_copy(update={"read_only_parent": part}), "no read-only parent"),
            (volume_of(part), "ID mismatch"),
            (vcr.model_copy(update={"sub_volumes": (part, part)}), "subvolume len mismatch"),
            (vcr.model_copy(update={"sub_volumes": (moved(part, 0, part.opts.target[1]),)}), "in use"),
        ]
        for wanted, why in refused:
            assert why in await caller.refused(400, "POST", "/volume/v/replace", attach_body(wanted))
        await caller.attach(vcr)
        assert await replaced(caller, raised(vcr, 6)) == "vcr_matches"
        await caller.refused(409, "POST", "/volume/v", attach_body(vcr))
        await caller.attach(raised(vcr, 6))


async def test_a_downstairs_of_the_parent_is_replaced_and_a_scrubbed_parent_left_out(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    quiet(expect_log)
    async with replicas(tmp_path / "below") as writable, running_pantry() as caller:
        await caller.attach(volume_of(request_of(writable)))
        await caller.write(0, pattern(CHUNK))
        await caller.detach()
        paths = writable.paths
    read_only = dict.fromkeys(range(3), True)
    copy = Path(shutil.copytree(paths[0], tmp_path / "copy"))
    async with (
        replicas(tmp_path / "top") as top,
        region_set([copy], read_only={0: True}) as spare,
        region_set(paths, read_only=read_only) as snapshot,
        running_pantry() as caller,
    ):
        below = request_of(snapshot, 2, number=1, read_only=True)
        vcr = volume_of(request_of(top, 2), parent=volume_of(below))
        assert vcr.read_only_parent is not None
        await caller.attach(vcr)
        other = vcr.read_only_parent.model_copy(update={"sub_volumes": (moved(below, 1, spare.members[0].target, 3),)})
        changed = vcr.model_copy(update={"read_only_parent": other})
        assert await replaced(caller, changed) == "started"
        bumped = changed.model_copy(update={"read_only_parent": raised(other, 9)})  # type: ignore[arg-type]
        assert "ROP" in await caller.refused(400, "POST", "/volume/v/replace", attach_body(bumped))
        assert await caller.read(0, CHUNK) == pattern(CHUNK)
        assert await caller.ok(await caller.start("scrub"))
        without = raised(changed.model_copy(update={"read_only_parent": None}), 3)
        assert await replaced(caller, without) == "vcr_matches"
        assert (await caller.status())["info"]["volume"]["read_only_parent"] is None
        assert await caller.read(0, CHUNK) == pattern(CHUNK)
