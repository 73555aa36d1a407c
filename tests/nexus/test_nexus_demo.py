"""The demonstration: what it proves, and how, without a rack; and at the end all of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from blake3 import blake3
from nexus_commands import environment, sentence
from nexus_rig import EPOCH
from rich.console import Console

from crucible_emu.errors import UsageError
from nexus.api.emulator_documents import RegionNode, TargetState, VolumeNode, VolumeTree
from nexus.cli.demonstration import guests, image
from nexus.cli.demonstration.guests import Writer
from nexus.cli.demonstration.proving import good_copies, sleds_under
from nexus.cli.demonstration.telling import Telling
from nexus.cli.demonstration.verdict import Guest, Measured, Survivor, as_json, claims, ok
from nexus.cli.replacement_watch import Followed

ALL_S_MAX = 300
DIGEST, OTHER = "a" * 64, "b" * 64
DISK = Survivor("copy", "disk", DIGEST, DIGEST, DIGEST, 6, (), (3, 3))
IMAGE = Survivor("golden", "image", DIGEST, None, DIGEST, 3, (), (3,))
WRITER = Guest("copy", writes=9, bytes_written=9, reads=2, flushes=1, wrote_meanwhile=5)
MEASURED = Measured(
    image=DIGEST,
    sled="sled4",
    survivors=(DISK, IMAGE),
    guests=(WRITER,),
    deleted={"disk source": ("allocating", "requested"), "snapshot before": ("running",)},
    replacements={"region": 2, "region_snapshot": 1},
    bytes_left=0,
)


def broken(**changed: Any) -> list[str]:
    return [each.sentence for each in claims(replace(MEASURED, **changed)) if not each.holds]


def test_all_holds_of_what_went_well() -> None:
    assert broken() == []
    assert ok(claims(MEASURED))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"survivors": ()}, "every byte"),
        ({"survivors": (replace(DISK, verified=OTHER), IMAGE)}, "every byte"),
        ({"survivors": (replace(DISK, verified=None), IMAGE)}, "every byte"),
        ({"survivors": (replace(DISK, read=OTHER), IMAGE)}, "every byte"),
        ({"survivors": (replace(DISK, findings=("extent 3 differs",)), IMAGE)}, "every byte"),
        ({"survivors": (replace(DISK, good_copies=(3, 2)), IMAGE)}, "three good copies"),
        ({"survivors": (replace(DISK, good_copies=()), IMAGE)}, "three good copies"),
        ({"guests": ()}, "guests failed"),
        ({"guests": (replace(WRITER, failures=("it broke",)),)}, "guests failed"),
        ({"guests": (replace(WRITER, differences=1),)}, "guests failed"),
        ({"guests": (WRITER, replace(WRITER, wrote_meanwhile=0))}, "while the dead sled was replaced"),
        ({"deleted": {}}, "in the middle"),
        ({"deleted": {"disk source": ("requested",)}}, "in the middle"),
        ({"deleted": MEASURED.deleted | {"snapshot before": ()}}, "in the middle"),
        ({"replacements": {}}, "are complete"),
        ({"not_complete": 1}, "are complete"),
        ({"lost": 1}, "are complete"),
        ({"findings": ("I1: ...",)}, "nothing is left"),
        ({"findings_at_the_end": ("I1: ...",)}, "nothing is left"),
        ({"bytes_left": 4096}, "nothing is left"),
        ({"bytes_left": None}, "nothing is left"),
    ],
)
def test_each_shortcoming_is_found(changed: dict[str, Any], word: str) -> None:
    found = broken(**changed)
    assert [each for each in found if word in each], found


def test_machines_are_told_all_that_it_is_computed_from() -> None:
    told = json.loads(json.dumps(as_json(MEASURED, 61.2345)))
    assert (told["ok"], told["seconds"], told["image"], told["sled"]) == (True, 61.234, DIGEST, "sled4")
    names = ["bytes", "guests", "writing", "deleted", "replaced", "copies", "nothing_left"]
    assert told["claims"] == dict.fromkeys(names, True)
    assert told["survivors"][0]["expected"] == DIGEST and told["guests"][0]["writes"] == 9
    assert as_json(replace(MEASURED, lost=1), 1.0)["ok"] is False


# -- evidence ---------------------------------------------------------------------------------------------------------


def region_set(*members: dict[str, Any]) -> RegionNode:
    good = {"kind": "read_write_region", "agent_state": "created", "disk_policy": "in_service"}
    targets = [
        TargetState.model_validate({"address": f"[::1]:{number}", "sled_id": UUID(int=number)} | good | member)
        for number, member in enumerate(members, 1)
    ]
    return RegionNode(
        upstairs_id=uuid4(),
        block_size=512,
        blocks_per_extent=8,
        extent_count=1,
        size_bytes=4096,
        generation=1,
        read_only=False,
        encrypted=True,
        targets=tuple(targets),
    )


def tree(part: RegionNode, parent: RegionNode | None = None) -> VolumeTree:
    node = VolumeNode(id=uuid4(), block_size=512, sub_volumes=(part,), read_only_parent=parent)
    return VolumeTree(id=uuid4(), time_created=EPOCH, tree=node)


def test_a_good_copy_is_in_service_created_and_on_a_sled_of_its_own() -> None:
    whole = region_set({}, {}, {})
    assert good_copies(tree(whole, whole)) == (3, 3)
    for wrong in ({"disk_policy": "expunged"}, {"agent_state": None}, {"agent_state": "failed"}):
        assert good_copies(tree(whole, region_set({}, wrong, {}))) == (3, 0)
    assert good_copies(tree(region_set({}, {}))) == (0,)
    assert good_copies(tree(region_set({}, {"sled_id": UUID(int=1)}, {}))) == (0,)
    assert sleds_under(tree(whole)) == [str(UUID(int=number)) for number in (1, 2, 3)]


def test_the_image_is_as_large_as_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image.make_image(tmp_path)
    assert made.length == image.IMAGE_BYTES == made.path.stat().st_size
    assert made.blake3 == blake3(made.path.read_bytes()).hexdigest()
    assert [each.name for each in tmp_path.iterdir()] == ["image.raw"]
    if "ext4" in made.about:
        assert made.path.read_bytes()[1024 + 56 : 1024 + 58] == b"\x53\xef", "the superblock's magic"


def test_what_a_disk_of_somebodys_image_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.img"
    path.write_bytes(b"x" * 1_500_000)
    source = image.brought(path)
    content = image.as_on_a_disk(source)
    assert bytes(content) == b"x" * 1_500_000 + bytes(2 * 1024 * 1024 - 1_500_000)
    assert image.digest_on_a_disk(source) == blake3(content).hexdigest() != source.blake3
    monkeypatch.setattr(image, "BROUGHT_BYTES_MAX", 1_000_000)
    with pytest.raises(UsageError, match="take one of "):
        image.brought(path)


def test_without_mkfs_it_is_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    made = image.make_image(tmp_path)
    assert made.about.endswith("(mkfs.ext4 is not installed)")
    assert made.length == image.IMAGE_BYTES and made.data_bytes > 1024 * 1024


# -- guests -----------------------------------------------------------------------------------------------------------


class Bytes:
    """An NBD disk in memory. ``lies``: reads tell something else; ``breaks_at``: the write that fails."""

    def __init__(self, size: int, *, lies: bool = False, breaks_at: int | None = None) -> None:
        self.data, self.writes, self.flushes = bytearray(size), 0, 0
        self.lies, self.breaks_at = lies, breaks_at

    async def write(self, offset: int, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        if self.writes == self.breaks_at:
            raise ConnectionResetError("the host is gone")
        self.data[offset : offset + len(data)] = data

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        found = bytes(self.data[offset : offset + length])
        return bytes(length) if self.lies else found

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bytes], None]:
    """``on(disk)``: guests find this disk wherever they look."""

    def put(disk: Bytes) -> None:
        @asynccontextmanager
        async def opened(_uri: str) -> AsyncIterator[Bytes]:
            yield disk

        monkeypatch.setattr(guests, "opened", opened)

    return put


async def work(guest: Writer, writes: int) -> Guest:
    """It works until it has written so often, or has failed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run)
        while guest.writes < writes and not guest.stopped.is_set():  # noqa: ASYNC110  it tells nobody
            await trio.sleep(0.1)
        await guest.stop()
    return guest.told()


async def test_a_guest_knows_what_every_byte_has_to_be(on: Any, autojump_clock: Any) -> None:
    disk = Bytes(1 << 20)
    on(disk)
    guest = Writer("copy", "nbd://", bytearray(1 << 20), Random(1))
    told = await work(guest, 40)
    assert guest.read_back == guest.expected == blake3(disk.data).hexdigest()
    assert (told.failures, told.differences, told.wrote_meanwhile) == ((), 0, 0)
    assert told.writes >= 40 and told.reads >= 10 and told.flushes == disk.flushes >= 3


async def test_what_it_wrote_meanwhile_is_counted(on: Any, autojump_clock: Any) -> None:
    on(Bytes(1 << 20))
    guest = Writer("copy", "nbd://", bytearray(1 << 20), Random(1), counts_meanwhile=True)
    told = await work(guest, 5)
    assert told.wrote_meanwhile == told.writes


async def test_a_disk_that_lies_or_breaks_is_found_out(on: Any, autojump_clock: Any) -> None:
    on(Bytes(1 << 20, lies=True))
    guest = Writer("copy", "nbd://", bytearray(1 << 20), Random(1))
    told = await work(guest, 20)
    assert told.differences and guest.read_back != guest.expected
    on(Bytes(1 << 20, breaks_at=7))
    guest = Writer("copy", "nbd://", bytearray(1 << 20), Random(1))
    told = await work(guest, 20)
    assert told.failures == ("ConnectionResetError: the host is gone",)
    assert (told.writes, guest.read_back) == (6, None)


# -- how it is told ---------------------------------------------------------------------------------------------------


def test_it_is_told_in_lines_and_in_a_terminal() -> None:
    for terminal in (False, True):
        out = StringIO()
        console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
        with Telling(console) as telling:
            telling.say("a rack [of five]")
            telling.show([Writer("copy", "nbd://", bytearray(), Random(1), writes=3)], Followed())
            telling.conclude(claims(MEASURED))
            telling.conclude(claims(replace(MEASURED, lost=1)))
        told = out.getvalue()
        assert "a rack [of five]" in told and "not a byte was lost" in told and "It is not proved." in told
        assert ("copy" in told) == terminal


# -- all of it --------------------------------------------------------------------------------------------------------


def test_it_is_proved_on_a_rack(tmp_path: Path) -> None:
    """As somebody runs it who has just installed this, with a small image of their own."""
    mine = tmp_path / "mine.img"
    mine.write_bytes(Random(3).randbytes(2_500_000))
    words = [sys.executable, "-m", "nexus", "demo", "--json", "--image", str(mine)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=ALL_S_MAX, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] and set(found["claims"].values()) == {True}, done.stderr
    assert found["image"] == image.digest_on_a_disk(image.brought(mine))
    assert {each["name"] for each in found["survivors"]} == {"copy", "blank", "golden"}
    assert set(found["deleted"]) == {"disk source", "snapshot before"}
    assert set(found["replacements"]) == {"region", "region_snapshot"} and found["bytes_left"] == 0
    assert "not a byte was lost" in done.stderr and "Traceback" not in done.stderr


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rack.toml").write_text("somebody's")
    said = sentence("demo", "--directory", tmp_path)
    assert said == f"{tmp_path} is not empty: take another directory"
    assert [each.name for each in tmp_path.iterdir()] == ["rack.toml"]


def test_an_image_that_is_not_there_is_said_in_a_sentence() -> None:
    assert sentence("demo", "--image", "/nowhere/x.img").startswith("cannot read the image /nowhere/x.img: ")
