"""``crucible-emu downstairs run``, as a process of its own and as a person meets it."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from downstairs_rig import BLOCK, ScriptedUpstairs, payload, read, write

from crucible_emu.cli import main as root
from crucible_emu.region import Region
from crucible_emu.wire import messages as m

COMMAND = [sys.executable, "-m", "crucible_emu", "downstairs", "run"]


@contextmanager
def running(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its first line; ended by SIGTERM unless the block has ended it."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            yield process, process.stdout.readline()
        finally:
            process.terminate()
            process.wait(20)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str]:
    """The exit code and the one line on standard error."""
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    try:
        with pytest.raises(SystemExit) as left:
            root.main(["downstairs", "run", *map(str, arguments)])
    finally:
        log.handlers = handlers
        log.setLevel(level)
    out, err = capsys.readouterr()
    assert out == ""
    return left.value.code, err


@pytest.fixture
def directory(make_region: Callable[..., Region]) -> Path:
    region = make_region()
    region.close()
    return region.path


async def talk(ready: dict[str, Any], *messages: m.Message, **changes: Any) -> list[m.Message]:
    stream = await trio.open_tcp_stream(ready["address"], ready["port"])
    async with stream:
        upstairs = ScriptedUpstairs(stream)
        await upstairs.activate(**changes)
        return [await upstairs.ask(message) for message in messages]


async def test_ready_line_serving_and_a_clean_end(directory: Path) -> None:
    with running(directory, "--port", "0", "--repair-port", "0", "--json") as (process, line):
        ready = json.loads(line)
        assert ready["ready"] is True
        assert ready["region_uuid"] == "00000000-0000-0000-0000-0000000003e8"
        assert (ready["read_only"], ready["tls"], ready["unix"]) == (False, False, None)
        assert ready["pid"] == process.pid
        assert ready["repair_port"] != ready["port"] != 0
        (ack,) = await talk(ready, write(1, 5, 1, 8))
        assert isinstance(ack, m.WriteAck)
        process.send_signal(signal.SIGINT)
        assert await trio.to_thread.run_sync(process.wait, 20) == 0
    # Nobody flushed; a clean end keeps it all the same.
    with running(directory, "--port", "0", "--repair-port", "0", "--json") as (process, line):
        (response,) = await talk(json.loads(line), read(1, 5), generation=2)
        assert response.data == payload(1, 8)  # type: ignore[attr-defined]
        process.terminate()
        assert await trio.to_thread.run_sync(process.wait, 20) == 0


async def test_read_only_and_a_line_for_people(directory: Path) -> None:
    with running(directory, "--port", "0", "--mode", "ro") as (_, line):
        assert line.startswith("Ready: region 00000000-0000-0000-0000-0000000003e8 (read-only) at 127.0.0.1:")
        assert "repair service at 127.0.0.1:" in line


async def test_injected_errors_and_unix_socket(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    options = ("--read-errors", "--lossy", "--seed", "5", "--unix", path, "--policy", "zfs")
    with running(directory, "--port", "0", "--repair-port", "0", "--json", *options) as (_, line):
        assert json.loads(line)["unix"] == str(path)
        async with await trio.open_unix_socket(path) as stream:
            upstairs = ScriptedUpstairs(stream)
            await upstairs.activate()
            answers = [await upstairs.ask(read(job, 0), m.ReadResponse) for job in range(60)]
        failed = sum(len(answer.data) != BLOCK for answer in answers)
        assert 5 < failed < 30
    assert not path.exists()


@pytest.mark.parametrize("options", [(), ("--no-shared-reads",), ("--mode", "ro"), ("--read-errors",)])
def test_a_second_socket_for_those_who_read_past_it(directory: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "s"
    with running(directory, "--port", "0", "--repair-port", "0", "--json", "--unix", path, *options) as (_, line):
        assert json.loads(line)["unix"] == str(path)
        assert (tmp_path / "s.reads").exists() == (not options)


def test_what_keeps_it_from_starting_is_one_sentence(directory: Path, tmp_path: Path, capsys: Any) -> None:
    cert = tmp_path / "cert.pem"
    trustme.CA().cert_pem.write_to_path(cert)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            ((tmp_path / "none",), "is no region"),
            ((directory, "--mode", "rx"), "'rx' is no mode: take rw or ro"),
            ((directory, "--policy", "none"), "take one of zfs, ordered-flush, strict, staged"),
            ((directory, "--port", port), f"cannot listen on 127.0.0.1 port {port}: address already in use"),
            ((directory, "--port", 0, "--repair-port", port), "the repair service cannot listen"),
            ((directory, "--port", 65000), "take a port up to 61535, or give --repair-port"),
            ((directory, "--port", 70000), "70000 is no port for the Downstairs"),
            ((directory, "--address", "300.1.1.1", "--port", 0), "'300.1.1.1' is no address for the Downstairs"),
            ((directory, "--cert-pem", cert), "TLS needs all three"),
            ((directory, "--cert-pem", cert, "--key-pem", cert, "--root-cert-pem", cert), "are not a PEM certificate"),
        ):
            code, err = fails(capsys, *map(str, arguments))
            assert code == 2
            assert err.startswith("Error: ")
            assert err.count("\n") == 1
            assert words in err


def test_region_in_use_is_one_sentence(directory: Path, capsys: Any) -> None:
    with Region.open(directory):
        code, err = fails(capsys, directory, "--port", "0")
    assert code == 2
    assert "is open read-write elsewhere" in err
