"""The short way beside a connection: what the other side may do wrong, and what the pure part must say."""

from __future__ import annotations

import array
import gc
import json
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_emu.errors import RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.region.memory import SharedFile
from crucible_emu.region.sharing import SharedLayout, SharedTables
from crucible_emu.upstairs import asking as asking_module
from crucible_emu.upstairs.dependencies import DependencyTracker
from crucible_emu.upstairs.reads_at_hand import ReadsAtHand
from crucible_emu.wire import messages as m

U, S = UUID(int=1), UUID(int=2)
BLOCK, PER_EXTENT, EXTENTS = 512, 8, 4
DEFINITION = RegionDefinition(BLOCK, PER_EXTENT, EXTENTS, UUID(int=3), False)
ExpectLog = Callable[..., Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reads-") as made:
        yield Path(made)


@pytest.fixture
def region(folder: Path) -> Iterator[Region]:
    Region.create(folder / "region", DEFINITION).close()
    with Region.open(folder / "region", share=True) as opened:
        rows = np.arange(PER_EXTENT * EXTENTS * BLOCK, dtype=np.uint32).astype(np.uint8).reshape(-1, BLOCK)
        opened.write(np.arange(len(rows)), rows, BlockContexts.plain(hash_blocks(rows)))
        yield opened


def tables(region: Region) -> SharedTables:
    assert region.shared is not None
    return region.shared


def grant(of: Region, **changes: Any) -> dict[str, Any]:
    shared = tables(of)
    return {
        "region": str(DEFINITION.uuid),
        "epoch": shared.epoch,
        "layout": shared.layout.as_json(),
    } | changes


def line(members: Any) -> bytes:
    return json.dumps(members).encode() + b"\n"


def open_descriptors() -> list[str]:
    gc.collect()  # memory that was mapped, and the descriptor with it, goes with the last who knows of it
    return sorted(os.listdir("/proc/self/fd"))


Answer = Callable[[socket.socket], None]
"""What the other side does with somebody who has asked."""


def answering(text: bytes, descriptors: list[int]) -> Answer:
    def answer(peer: socket.socket) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        peer.sendmsg([text], rights)

    return answer


@asynccontextmanager
async def asking(folder: Path, answer: Answer) -> AsyncIterator[tuple[ReadsAtHand, list[socket.socket]]]:
    """An Upstairs that asks once, a Downstairs that does as it is told; the connections that it has."""
    peers: list[socket.socket] = []
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(folder / "s.reads"))
    listener.listen()

    async def serve() -> None:
        while True:
            peer, _ = await listener.accept()
            await peer.recv(1024)
            peers.append(socket.socket(fileno=peer.detach()))
            answer(peers[-1])

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            short = ReadsAtHand(str(folder / "s"), U, S)
            short.heard([m.Imok(), m.RegionInfo(DEFINITION)])
            assert short.knows_region
            nursery.start_soon(short.run)
            short.want()
            try:
                yield short, peers
            finally:
                nursery.cancel_scope.cancel()
                for peer in peers:
                    peer.close()
    os.unlink(folder / "s.reads")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await wait_all_tasks_blocked(0.001)


def outs(count: int = 1) -> list[memoryview]:
    return [memoryview(bytearray(BLOCK)) for _ in range(count)]


async def test_a_grant_is_used_until_the_other_side_leaves(folder: Path, region: Region) -> None:
    """Race: the other side is gone, and nobody but the kernel knows: what is read then does not count."""
    with tables(region).descriptors(region.path) as descriptors:
        async with asking(folder, answering(line({"granted": grant(region)}), descriptors)) as (short, peers):
            assert short.read_singles([0], outs()) is None
            await until(lambda: short.open)
            found = outs(3)
            expected = short.read_singles([0, 9, 31], found)
            assert expected == hash_blocks(np.stack([np.frombuffer(each, np.uint8) for each in found])).tolist()
            assert short.read_sealed([0], outs()) is None and short.open
            together = memoryview(bytearray(5 * BLOCK))
            contexts = short.read_range(7, 5, together)
            assert contexts is not None
            assert (hash_blocks(np.frombuffer(together, np.uint8).reshape(5, BLOCK)) == contexts.hash).all()
            peers[0].close()
            assert short.read_range(7, 5, together) is None
            assert short.read_singles([0], outs()) is None
            assert not short.open


async def test_what_the_epoch_ends_is_asked_for_again(
    folder: Path, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "ASK_AGAIN_S", 0.01)

    def answer(peer: socket.socket) -> None:
        with tables(region).descriptors(region.path) as descriptors:
            answering(line({"granted": grant(region)}), descriptors)(peer)

    async with asking(folder, answer) as (short, peers):
        await until(lambda: short.open)
        tables(region).revoke()
        assert short.read_sealed([0], outs()) is None and not short.open
        await until(lambda: not short.open)
        short.want()
        while not short.open:
            short.want()
            await wait_all_tasks_blocked(0.001)
        assert short.read_singles([0], outs()) is not None and len(peers) == 2


async def test_a_refusal_is_asked_again(folder: Path, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "ASK_AGAIN_S", 0.01)
    with tables(region).descriptors(region.path) as descriptors:
        answers = [answering(line({"refused": "not now"}), []), answering(line({"refused": "not now"}), descriptors)]
        answers.append(answering(line({"granted": grant(region)}), descriptors))
        async with asking(folder, lambda peer: answers.pop(0)(peer)) as (short, _):
            while not short.open:
                short.want()
                await wait_all_tasks_blocked(0.001)
            assert not answers


BROKEN = {
    "not JSON": b"granted\n",
    "deep": b"[" * 4096,
    "neither": line({"other": 1}),
    "no object": line([1]),
    "no members": line({"granted": {}}),
    "refusal without a sentence": line({"refused": 5}),
}
CHANGED: dict[str, dict[str, Any]] = {
    "another region": {"region": str(UUID(int=9))},
    "no epoch": {"epoch": "1"},
    "no layout": {"layout": None},
    "a layout of strings": {"layout": dict.fromkeys(SharedLayout.__slots__, "1")},
}
LAID_OUT: dict[str, dict[str, int]] = {
    "another geometry": {"blocks_per_extent": 4, "extent_count": 8},
    "beyond its memory": {"row_of_block": 1 << 40},
    "askew": {"epoch": 4},
    "more memory than there is": {"size_bytes": 1 << 50},
    "negative": {"kind": -1},
}


def broken_answers(region: Region) -> Iterator[tuple[str, bytes]]:
    yield from BROKEN.items()
    for name, changes in CHANGED.items():
        yield name, line({"granted": grant(region, **changes)})
    layout = tables(region).layout.as_json()
    for name, laid in LAID_OUT.items():
        yield name, line({"granted": grant(region, layout=layout | laid)})


@pytest.mark.parametrize("name", [*BROKEN, *CHANGED, *LAID_OUT])
async def test_a_grant_that_cannot_be_is_not_used(
    folder: Path, region: Region, expect_log: ExpectLog, name: str
) -> None:
    text = dict(broken_answers(region))[name]
    before = open_descriptors()
    expect_log("no reads past the Downstairs: it broke the protocol")

    def answer(peer: socket.socket) -> None:
        with tables(region).descriptors(region.path) as descriptors:
            if text:
                answering(text, descriptors)(peer)
        peer.shutdown(socket.SHUT_WR)

    async with asking(folder, answer) as (short, peers):
        await until(lambda: bool(peers))
        await wait_all_tasks_blocked(0.01)
        assert not short.open and short.read_singles([0], outs()) is None
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "what", ["none", "one", "three", "too many", "unsealed", "small", "a file", "no directory", "no extents"]
)
async def test_descriptors_that_are_not_what_they_should_be(
    folder: Path, region: Region, expect_log: ExpectLog, what: str
) -> None:
    before = open_descriptors()
    expect_log("no reads past the Downstairs: it broke the protocol")
    size_bytes = tables(region).layout.size_bytes
    with tables(region).descriptors(region.path) as (memory, directory):
        unsealed, small = SharedFile("unsealed"), SharedFile("small")
        unsealed.place(size_bytes)
        small.place(4096)
        small.seal()
        (folder / "file").write_bytes(bytes(size_bytes))
        elsewhere = os.open(folder, os.O_RDONLY)
        async with await trio.open_file(folder / "file", "rb") as file:
            descriptors = {
                "none": [],
                "one": [memory],
                "three": [memory, directory, directory],
                "too many": [memory] * 40,
                "unsealed": [unsealed.descriptor, directory],
                "small": [small.descriptor, directory],
                "a file": [file.fileno(), directory],
                "no directory": [memory, file.fileno()],
                "no extents": [memory, elsewhere],
            }[what]
            answer = answering(line({"granted": grant(region)}), descriptors)
            async with asking(folder, answer) as (short, peers):
                await until(lambda: bool(peers))
                await wait_all_tasks_blocked(0.01)
                assert not short.open
        unsealed.close()
        small.close()
        os.close(elsewhere)
    assert open_descriptors() == before


async def test_a_downstairs_that_says_nothing_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "ANSWER_S_MAX", 0.02)
    monkeypatch.setattr(asking_module, "ASK_AGAIN_S", 0.01)
    before = open_descriptors()
    async with asking(folder, lambda peer: None) as (short, peers):
        while len(peers) < 2:
            short.want()
            await wait_all_tasks_blocked(0.001)
        assert not short.open
    assert open_descriptors() == before


@pytest.mark.parametrize("text", [b"", b'{"granted": {'], ids=["nothing", "half a line"])
async def test_who_is_turned_away_asks_again(
    folder: Path, region: Region, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    """Race: the grant ended before it arrived."""
    monkeypatch.setattr(asking_module, "ASK_AGAIN_S", 0.01)
    before = open_descriptors()
    with tables(region).descriptors(region.path) as descriptors:

        def turn_away(peer: socket.socket) -> None:
            if text:
                answering(text, descriptors)(peer)
            peer.shutdown(socket.SHUT_WR)

        answers = [turn_away, answering(line({"granted": grant(region)}), descriptors)]
        async with asking(folder, lambda peer: answers.pop(0)(peer)) as (short, _):
            while not short.open:
                short.want()
                await wait_all_tasks_blocked(0.001)
    assert open_descriptors() == before


async def test_where_nobody_listens_nobody_is_asked_again(folder: Path) -> None:
    short = ReadsAtHand(str(folder / "nobody"), U, S)
    short.want()
    with trio.fail_after(30):
        await short.run()


async def test_rows_that_are_none_are_not_looked_at(folder: Path, region: Region) -> None:
    """A table that lies costs the short way, not the program."""
    with tables(region).descriptors(region.path) as descriptors:
        layout = replace(tables(region).layout, row_count=2)
        text = line({"granted": grant(region, layout=layout.as_json())})
        async with asking(folder, answering(text, descriptors)) as (short, _):
            await until(lambda: short.open)
            assert short.read_singles([31], outs()) is None and short.open
            assert short.read_range(30, 2, memoryview(bytearray(2 * BLOCK))) is None and short.open


def test_a_layout_is_read_as_it_was_written(region: Region) -> None:
    layout = tables(region).layout
    assert SharedLayout.from_json(json.loads(json.dumps(layout.as_json()))) == layout
    with pytest.raises(RemoteError, match="other members"):
        SharedLayout.from_json(layout.as_json() | {"more": 1})


@pytest.mark.parametrize("seed", range(10))
def test_the_last_blocking_job_of_a_block(seed: int) -> None:
    """Whatever came on ranges and single blocks, it is what a list of blocks would say."""
    draw, tracker = random.Random(seed), DependencyTracker()
    last: list[int | None] = [None] * 64
    for job_id in range(300):
        start = draw.randrange(64)
        end = start + 1 if draw.random() < 0.6 else draw.randint(start, 64)
        if draw.random() < 0.05:
            tracker.block_everything(job_id, lambda _: True)
            last = [job_id] * 64
        elif draw.random() < 0.5:
            tracker.block(job_id, start, end, lambda _: True)
            last[start:end] = [job_id] * (end - start)
        else:
            tracker.read(job_id, start, end, lambda _: True)
        assert [tracker.blocking(block) for block in range(64)] == last
