"""``crucible-emu host run`` as a process: its ready line, its end, and what a SIGKILL leaves to the next one."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from command_rig import Command, refusal, running
from disk_rig import make_regions, pattern
from host_rig import BLOCK, DISK, INSTANCE, ensure_body
from nbd_plain_client import PlainClient

from crucible_emu.cli.host import scrub_delay
from crucible_emu.errors import UsageError
from crucible_emu.host.directory import LOCK, NOTE, clear, held
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest


def ask(command: Command, method: str, path: str, body: Any = None, version: str | None = "5.0.0") -> tuple[int, Any]:
    headers = {"content-type": "application/json"} | ({} if version is None else {"api-version": version})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(command.ready["url"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
            return response.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def disk_request(members: list[Command], generation: int) -> RegionRequest:
    targets = [f"{member.ready['address']}:{member.ready['port']}" for member in members]
    opts = CrucibleOpts.model_validate({"id": UUID(int=0xD15C), "target": targets})
    return RegionRequest(
        type="region", block_size=BLOCK, blocks_per_extent=8, extent_count=4, opts=opts, gen=generation
    )


def boot(command: Command, request: RegionRequest) -> str:
    """An instance with one disk, running; the disk's address."""
    assert ask(command, "PUT", "/instance", ensure_body(request))[0] == 201
    assert ask(command, "PUT", "/instance/state", "Run")[0] == 204
    assert ask(command, "GET", "/instance/state-monitor", {"gen": 2})[1]["state"] == "Running"
    uri: str = ask(command, "GET", "/instance/disks")[1]["disks"][0]["uri"]
    return uri


async def write_all(machine: PlainClient) -> None:
    await machine.write(0, pattern(machine.size_bytes))
    answer = await machine.call(3)  # flush
    assert answer.errno == 0


async def read_all(machine: PlainClient) -> bytes:
    return await machine.read(0, machine.size_bytes)


def test_a_host_that_was_killed_leaves_its_disks_whole_and_its_successor_says_what_ended(tmp_path: Path) -> None:
    """SIGKILL with a guest's data flushed: nothing runs again by itself, the socket is gone, the data is there."""
    regions = make_regions(tmp_path)
    directory = tmp_path / "host"
    with (
        running("downstairs", "run", regions[0], "--port", "0", "--json") as one,
        running("downstairs", "run", regions[1], "--port", "0", "--json") as two,
        running("downstairs", "run", regions[2], "--port", "0", "--json") as three,
    ):
        members = [one, two, three]
        with running("host", "run", directory, "--json") as command:
            assert command.ready["lost"] == []
            command.talk(write_all, boot(command, disk_request(members, 1)))
            assert stat.S_ISSOCK((directory / f"{DISK}.sock").stat().st_mode)
            command.process.kill()
            command.process.wait(30)
        assert (directory / f"{DISK}.sock").exists() and (directory / NOTE).exists()
        with running("host", "run", directory, "--json") as command:
            assert command.ready["lost"] == [str(INSTANCE)]
            assert not list(directory.glob("*.sock"))
            code, answer = ask(command, "GET", "/instance")
            assert (code, answer["error_code"]) == (424, "NoInstance")
            _, listed = ask(command, "GET", "/hosts/0/instances")
            assert listed["instances"] == []
            assert [(lost["id"], lost["disks"]) for lost in listed["lost"]] == [(str(INSTANCE), [DISK])]
            uri = boot(command, disk_request(members, 2))
            assert command.talk(read_all, uri) == pattern(4 * 8 * BLOCK)
            assert ask(command, "GET", "/hosts/0/instances")[1]["lost"] == []
            code, _, err = command.end()
            assert code == 0
            assert "the last process of this host was killed" in err
        assert sorted(path.name for path in directory.iterdir()) == [LOCK]


def test_the_end_of_standard_input_ends_a_host(tmp_path: Path) -> None:
    with running("host", "run", tmp_path, "--json", "--until-eof", stdin=subprocess.PIPE) as command:
        assert command.ready["url"].startswith("http://[::1]:")
        assert command.ready["pid"] == command.process.pid
        assert command.process.stdin is not None
        command.process.stdin.close()
        assert command.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_host_in_order_while_somebody_waits_for_news(tmp_path: Path, number: int) -> None:
    with running("host", "run", tmp_path, "--json", "--faithful", "--lenient") as command:
        assert ask(command, "PUT", "/instance", ensure_body(None), version=None)[0] == 201
        assert ask(command, "GET", "/hosts/0/instances")[0] == 404
        where = urlsplit(command.ready["url"])
        with socket.create_connection((where.hostname, where.port)) as watcher:
            body = b'{"gen": 1}'
            head = f"GET /instance/state-monitor HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            watcher.sendall(head.encode() + body)
            code, _, err = command.end(number)
            assert (code, err) == (0, "")


def test_two_hosts_do_not_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path):
        code, sentence = refusal(capsys, "host", "run", tmp_path)
    assert (code, sentence) == (2, f"{tmp_path} is in use by another host: stop it, or give another directory")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--listen", "0.0.0.0:80"], "can be reached from other machines"),
        (["--nexus", "nexus"], "'nexus' is no receiver of notices"),
        (["--scrub-after", "soon"], "--scrub-after soon is no time"),
        (["--tls-cert", "no-file"], "TLS needs both files"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    code, said = refusal(capsys, "host", "run", tmp_path / "host", *options)
    assert code == 2 and sentence in said
    assert not (tmp_path / "host").exists(), "nothing was done"


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "host").write_text("")
    code, said = refusal(capsys, "host", "run", tmp_path / "host")
    assert code == 2 and "cannot be the host's directory" in said


def test_when_scrubs_begin() -> None:
    assert (scrub_delay("never"), scrub_delay("0"), scrub_delay("1.5")) == (None, 0.0, 1.5)
    for text in ("-1", "nan", "inf", ""):
        with pytest.raises(UsageError, match="is no time"):
            scrub_delay(text)


def test_only_dead_sockets_are_cleared_away(tmp_path: Path, expect_log: Any) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind(os.fspath(tmp_path / "dead.sock"))
        alive.bind(os.fspath(tmp_path / "alive.sock"))
        alive.listen()
        (tmp_path / "file.sock").write_text("somebody's")
        with expect_log("sockets_removed=1"):
            assert clear(tmp_path) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive.sock", "file.sock"]


def test_a_damaged_note_costs_a_warning(tmp_path: Path, expect_log: Any) -> None:
    (tmp_path / NOTE).write_text("{")
    with expect_log("the note of the last process cannot be read.*it is damaged"):
        assert clear(tmp_path) == ()
