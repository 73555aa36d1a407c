"""Digests in the background: of one moment, of flushed contents, told as they grow."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from uuid import UUID

import pytest
import trio
from agent_rig import PARAMETERS, A, Served, serving_agent, until
from downstairs_rig import ScriptedUpstairs, flush, write
from kill_agent import digest_of

from crucible_emu.agent import digesting
from crucible_emu.agent.digest_book import DigestBook, Stamp
from crucible_emu.downstairs import settling
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import layout
from crucible_emu.wire import messages as m

DEFINITION = RegionDefinition(512, 8, 3, UUID(int=1))
CLEAN = [Stamp(inode, 1, 1, 1, False) for inode in range(3)]


@pytest.fixture(autouse=True)
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes that follow upon each other have no digest before the journal is settled: not a second for each."""
    monkeypatch.setattr(settling, "SETTLED_AFTER_S", 0.05)


def book_with(digests: int = 3, *, immutable: bool = False) -> DigestBook:
    book = DigestBook(DEFINITION, immutable=immutable)
    for extent_id in range(digests):
        book.hashed(extent_id, CLEAN[extent_id], bytes([extent_id]) * 32, CLEAN[extent_id])
    return book


def changed(extent_id: int, *, dirty: bool = False) -> list[Stamp]:
    """All stamps, that of one extent another."""
    return [Stamp(7, 7, 2, 5, dirty) if each == extent_id else CLEAN[each] for each in range(3)]


def test_digests_under_unchanged_stamps_belong_together() -> None:
    book = book_with()
    assert book.look(CLEAN) == []
    assert book.whole() is not None
    assert book.numbers() == (1, 1)


def test_extent_that_changed_is_hashed_again() -> None:
    book = book_with()
    assert book.look(changed(1)) == [1]
    assert (book.known_count, book.whole()) == (2, None)


def test_extent_that_changed_while_it_was_hashed_is_not_taken() -> None:
    book = book_with(2)
    book.hashed(2, CLEAN[2], b"d" * 32, changed(2)[2])
    assert book.look(CLEAN) == [2]


def test_dirty_extent_waits_for_its_flush() -> None:
    book = book_with()
    assert book.look(changed(1, dirty=True)) == []
    assert book.waiting == {1}
    assert book.whole() is None
    dirty = changed(1, dirty=True)[1]
    book.hashed(1, dirty, b"d" * 32, dirty)
    assert book.known[1] is None
    assert book.look(changed(1)) == [1]


def test_what_never_changes_is_hashed_once() -> None:
    """Also where an extent is dirty, as it may be in a region that was not ended in order."""
    book = book_with(2, immutable=True)
    dirty = changed(2, dirty=True)[2]
    assert book.look(changed(2, dirty=True)) == [2]
    book.hashed(2, dirty, b"d" * 32, dirty)
    assert book.look(CLEAN) == []
    assert book.whole() is not None


async def test_digest_of_a_region_and_which_flush_it_is_of(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 5, generation=3)
        first = await served.digest(f"/{A}")
        assert first["digest"] == digest_of(5)
        assert (first["generation"], first["flush_number"], first["immutable"]) == (3, 3, False)
        assert (first["extents_done"], first["extent_count"], first["extents_waiting"]) == (4, 4, 0)
        assert len(set(first["extents"])) == 1
        await served.fill(A, 6, generation=4)
        second = await served.digest(f"/{A}")
        assert (second["digest"], second["flush_number"]) == (digest_of(6), 4)


async def test_writes_without_a_flush_do_not_count(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 5)
        async with served.upstairs(A, 2) as upstairs:
            await upstairs.ask(write(2000, 0, 4, 9), m.WriteAck)
            assert (await served.digest(f"/{A}"))["digest"] == digest_of(5)


async def test_writes_in_the_files_without_a_flush_are_waited_for(tmp_path: Path) -> None:
    """A Downstairs that ends moves staged blocks into the files; what was flushed is no longer there alone."""
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 5)
        async with served.upstairs(A, 2) as upstairs:
            await upstairs.ask(write(2000, 0, 8, 9), m.WriteAck)
    async with serving_agent(tmp_path) as served:
        await served.ask("GET", f"/{A}/digest")
        found = await until(lambda: served.ask("GET", f"/{A}/digest"), lambda each: each["extents_done"] == 3)
        assert (found["state"], found["extents_waiting"], found["digest"]) == ("computing", 1, None)
        await served.fill(A, 6, generation=3)
        assert (await served.digest(f"/{A}"))["digest"] == digest_of(6)


async def test_digest_race_flushes_wait_in_the_journal(tmp_path: Path) -> None:
    """Extents that lag behind what was flushed have no digest; when the journal is settled, they have."""
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        async with served.upstairs(A) as upstairs:
            for number in (1, 2):
                await upstairs.ask(write(number * 10, 0, 4, number), m.WriteAck)
                await upstairs.ask(flush(number * 10 + 1, [number * 10], number, 1), m.FlushAck)
            assert (await served.ask("GET", f"/{A}/digest"))["state"] == "computing"
            found = await served.digest(f"/{A}")
            assert (found["state"], found["flush_number"]) == ("done", 2)


async def test_digest_race_flushes_while_extents_are_hashed(tmp_path: Path) -> None:
    """However hashing and flushes meet, what is answered as done is what one flush left, and not of an older one."""
    blocks = PARAMETERS["extent_size"] * PARAMETERS["extent_count"]
    async with serving_agent(tmp_path) as served, trio.open_nursery() as nursery:
        await served.made(A)
        flushed = 0

        async def flush_some(upstairs: ScriptedUpstairs, numbers: range, pause_s: float) -> None:
            nonlocal flushed
            for number in numbers:
                await upstairs.ask(write(number * 10, 0, blocks, number), m.WriteAck)
                await upstairs.ask(flush(number * 10 + 1, [number * 10], number, 1), m.FlushAck)
                flushed = number
                await trio.sleep(pause_s)

        async with served.upstairs(A) as upstairs:
            for number in range(1, 25, 3):
                nursery.start_soon(flush_some, upstairs, range(number, number + 3), number / 5000)
                found = {"state": "computing"}
                while flushed < number + 2 or found["state"] != "done":
                    await trio.sleep(0.001)  # a loop that never waits keeps the threads from the interpreter
                    before = flushed
                    found = await served.ask("GET", f"/{A}/digest")
                    if found["state"] == "done" and found["flush_number"]:
                        assert found["flush_number"] >= before
                        assert found["digest"] == digest_of(found["flush_number"])


async def test_digest_of_a_snapshot_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 5, snapshot="monday")
        await served.fill(A, 6, generation=2)
        found = await served.digest(f"/{A}/snapshots/monday")
        assert (found["digest"], found["immutable"]) == (digest_of(5), True)
        monkeypatch.setattr(digesting, "_stamps", None)
        assert await served.ask("GET", f"/{A}/snapshots/monday/digest") == found, "nobody looks again"


async def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, gate, hashed = digesting._hash, Event(), []

    def slow(view, extent_id):
        if extent_id == 2:
            assert gate.wait(30)
        hashed.append(extent_id)
        return real(view, extent_id)

    monkeypatch.setattr(digesting, "_hash", slow)
    async with serving_agent(tmp_path) as served:
        try:
            await served.made(A)
            await served.ask("GET", f"/{A}/digest")
            found = await until(lambda: served.ask("GET", f"/{A}/digest"), lambda each: each["extents_done"] == 2)
            assert (found["state"], found["digest"], found["flush_number"]) == ("computing", None, None)
            assert [each is not None for each in found["extents"]] == [True, True, False, False]
        finally:
            gate.set()
        assert (await served.digest(f"/{A}"))["state"] == "done"
        assert hashed == [0, 1, 2, 3]


async def damaged_snapshot(served: Served, directory: Path) -> None:
    await served.made(A)
    await served.fill(A, 5, snapshot="monday")
    path = layout.extent_path(directory / "regions" / A / ".zfs" / "snapshot" / "monday", 2)
    await trio.Path(path).write_bytes(b"short")


async def test_damage_is_told_once_and_then_tried_again(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await damaged_snapshot(served, tmp_path)
        path = f"/{A}/snapshots/monday/digest"
        for _ in range(2):
            found = await until(lambda: served.ask("GET", path), lambda each: each["state"] != "computing")
            assert found["state"] == "failed"
            assert "does not match expected" in found["error"]
            assert (await served.ask("GET", path))["state"] == "computing"


async def test_region_that_is_not_there_has_no_digest(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.removed(A)
        found = await served.ask("GET", f"/{A}/digest", 409)
        assert found["message"] == f"region {A!r} is destroyed, not created"
