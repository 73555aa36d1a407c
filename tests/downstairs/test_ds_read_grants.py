"""Who is let in to read past a Downstairs, for how long, and what becomes of those who ask badly."""

from __future__ import annotations

import gc
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from downstairs_rig import OTHER_S, OTHER_U, S, ScriptedUpstairs, U, connected, flush, payload, serving, write

from crucible_emu.downstairs import read_grants_service
from crucible_emu.downstairs.faults import Faults
from crucible_emu.downstairs.server import DownstairsServer
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.region.shared_reading import SharedReader
from crucible_emu.region.sharing import SharedLayout
from crucible_emu.wire import messages as m

QUESTION = json.dumps({"upstairs_id": str(U), "session_id": str(S)}).encode() + b"\n"


class Asker:
    """One connection to the socket of grants, and what came back."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = trio.socket.from_stdlib_socket(peer)
        self.members: dict[str, Any] = {}
        self.descriptors: list[int] = []

    async def ask(self, line: bytes = QUESTION) -> dict[str, Any]:
        await self.peer.send(line)
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        with trio.fail_after(20):
            answer, ancillary, _, _ = await self.peer.recvmsg(4096, 64, socket.MSG_CMSG_CLOEXEC)
        for _, _, data in ancillary:
            self.descriptors += memoryview(data).cast("i").tolist()
        self.members = json.loads(answer)
        return self.members

    async def hear_end(self) -> None:
        with trio.fail_after(20):
            assert await self.peer.recv(1) == b""

    def reader(self) -> SharedReader:
        granted = self.members["granted"]
        memory, directory = self.descriptors
        self.descriptors = []
        return SharedReader(SharedLayout.from_json(granted["layout"]), granted["epoch"], memory, directory)

    def close(self) -> None:
        self.peer.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


async def asker(path: Path) -> Asker:
    peer = socket.socket(socket.AF_UNIX)
    peer.setblocking(False)
    made = Asker(peer)
    await made.peer.connect(f"{path}.reads")
    return made


def epoch(server: DownstairsServer) -> int:
    assert server.region.shared is not None
    return server.region.shared.epoch


async def test_the_writer_is_let_in_until_its_connection_ends(shared: Region, tmp_path: Path) -> None:
    path = tmp_path / "s"
    out = memoryview(bytearray(512))
    async with serving(shared, unix_path=str(path)) as server:
        asked = await asker(path)
        assert await asked.ask() == {"refused": "this session is not the writer of the region"}
        await asked.hear_end()
        asked.close()
        async with connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.ask(write(1, 5, fill=7), m.WriteAck)
            asked = await asker(path)
            granted = (await asked.ask())["granted"]
            assert granted["region"] == str(shared.definition.uuid)
            reader = asked.reader()
            assert reader.read_singles([5], [out]) is not None and out == payload(1, 7)
            await upstairs.ask(write(2, 5, fill=8), m.WriteAck)
            assert reader.read_singles([5], [out]) is not None and out == payload(1, 8)
            assert reader.read_singles([20], [out]) is None, "nobody has read what the file says of it"
            assert reader.holds
        await asked.hear_end()
        assert not reader.holds and reader.read_singles([5], [out]) is None
        reader.close()
        asked.close()
    assert not path.exists() and not (tmp_path / "s.reads").exists()


async def test_the_epoch_changes_before_the_next_writer_is_told(shared: Region, tmp_path: Path) -> None:
    """Race: the one before has not heard yet that it is superseded."""
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as first:
        await first.activate()
        asked = await asker(path)
        await asked.ask()
        before = epoch(server)
        async with connected(server, OTHER_U, OTHER_S) as second:
            await second.activate(2)
            assert epoch(server) > before
            again = await asker(path)
            assert await again.ask() == {"refused": "this session is not the writer of the region"}
            again.close()
        asked.close()


async def test_a_stranger_that_leaves_ends_nothing(shared: Region, tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        asked = await asker(path)
        await asked.ask()
        before = epoch(server)
        async with connected(server, OTHER_U, OTHER_S) as stranger:
            await stranger.ask(m.Ruok(), m.Imok)
        await upstairs.ask(m.Ruok(), m.Imok)
        assert epoch(server) == before
        asked.close()


async def test_a_closed_extent_ends_grants_and_keeps_others_out(shared: Region, tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(flush(1), m.FlushAck)
        asked = await asker(path)
        await asked.ask()
        shared.close_extent(2)
        await asked.hear_end()
        other = await asker(path)
        assert await other.ask() == {"refused": "an extent is closed"}
        shared.reopen_extent(2)
        third = await asker(path)
        assert "granted" in await third.ask()
        server.runner.stall()
        await third.hear_end()
        fourth = await asker(path)
        assert await fourth.ask() == {"refused": "the Downstairs is stalled"}
        for each in (asked, other, third, fourth):
            each.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"5\n",
        b"\xff\xfe\n",
        b"[" * 1024,
        b"{" * 3000,
        b'{"upstairs_id": 5, "session_id": null}\n',
        b'{"upstairs_id": "x", "session_id": "y"}\n',
    ],
)
async def test_what_is_no_question_is_refused_in_a_sentence(shared: Region, tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        gc.collect()  # what other tests mapped goes with the last who knows of it
        descriptors = sorted(os.listdir("/proc/self/fd"))
        asked = await asker(path)
        assert (await asked.ask(line))["refused"].startswith("a line of JSON with upstairs_id and session_id")
        asked.close()
        await upstairs.ask(m.Ruok(), m.Imok)
        assert sorted(os.listdir("/proc/self/fd")) == descriptors


async def test_who_says_nothing_is_not_waited_for(
    shared: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_grants_service, "ASK_S_MAX", 0.05)
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        silent, leaving = await asker(path), await asker(path)
        leaving.close()
        await silent.hear_end()
        many = [await asker(path) for _ in range(read_grants_service.PEERS_MAX + 3)]
        for each in many:
            await each.hear_end()
            each.close()
        silent.close()
        asked = await asker(path)
        assert "granted" in await asked.ask()
        asked.close()


async def test_who_asks_for_more_behind_a_grant_loses_it(shared: Region, tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        asked = await asker(path)
        await asked.ask()
        assert server.statistics()["readers_past_this_process"] == 1
        await asked.peer.send(b"more")
        with pytest.raises(ConnectionResetError):
            await asked.hear_end()
        assert server.statistics()["readers_past_this_process"] == 0
        asked.close()


async def test_memory_that_others_see_is_only_theirs_to_read(shared: Region, tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(shared, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        asked = await asker(path)
        await asked.ask()
        memory, directory = asked.descriptors
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(memory, b"x", 0)
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor|Operation not permitted"):
            os.ftruncate(memory, 0)
        assert sorted(os.listdir(directory)) == sorted(os.listdir(shared.path))
        asked.close()


@pytest.mark.parametrize("why", ["read-only", "policy", "faults", "path", "not asked to"])
async def test_where_nobody_is_let_in_there_is_no_socket(make_region: Any, tmp_path: Path, why: str) -> None:
    made = make_region()
    made.close()
    path = tmp_path / ("s" * (107 - len(str(tmp_path)) - 1) if why == "path" else "s")
    opening = {"read-only": {"read_only": True}, "policy": {"policy": SyncPolicy.ZFS}}.get(why, {})
    faults = {"faults": Faults(read_errors=0.5)} if why == "faults" else {}
    with Region.open(made.path, share=why != "not asked to", **opening) as region:  # type: ignore[arg-type]  # by name
        async with serving(region, unix_path=str(path), **faults), await trio.open_unix_socket(path) as stream:
            assert await ScriptedUpstairs(stream).ask(m.Ruok(), m.Imok)
            assert not any(name.endswith(".reads") for name in os.listdir(tmp_path))
