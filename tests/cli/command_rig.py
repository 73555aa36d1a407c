"""Commands as people meet them: processes with a ready line, and refusals of one sentence."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from nbd_plain_client import PlainClient

from crucible_emu.cli import main as root
from crucible_emu.nbd import parse_uri

COMMAND = [sys.executable, "-m", "crucible_emu"]
END_S = 30
T = TypeVar("T")


class Command:
    """A running command whose first line of output is ``line``; with ``--json``, ``ready`` is what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None and process.stderr is not None
        self.line = process.stdout.readline()
        if not self.line:
            process.wait(END_S)
            raise AssertionError(f"{process.args!r} ended with {process.returncode}: {process.stderr.read()}")

    @property
    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line)
        return found

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the signal and wait: exit code, the rest of standard output, standard error."""
        self.process.send_signal(number)
        assert self.process.stdout is not None and self.process.stderr is not None
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(END_S), out, err

    def end_well(self, number: int = signal.SIGTERM) -> None:
        """End it; it must leave with 0 and without a word."""
        code, _, err = self.end(number)
        assert (code, err) == (0, "")

    def talk(self, script: Callable[[PlainClient], Awaitable[T]], uri: str | None = None) -> T:
        """Run ``script`` with an NBD client in transmission."""
        return talk(uri if uri is not None else self.ready["uri"], script)


def talk(uri: str, script: Callable[[PlainClient], Awaitable[T]]) -> T:
    where = parse_uri(uri)

    async def main() -> T:
        with trio.fail_after(END_S):
            if where.socket is not None:
                stream: trio.SocketStream = await trio.open_unix_socket(where.socket)
            else:
                stream = await trio.open_tcp_stream(where.host, where.port)
            async with stream:
                client = await PlainClient(stream).enter(where.export)
                return await script(client)

    return trio.run(main)


@contextmanager
def running(*arguments: object, **settings: Any) -> Iterator[Command]:
    """A command that serves, ready; killed at the end of the block unless it has ended."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
        **settings,
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        try:
            yield Command(process)
        finally:
            process.kill()
            process.wait(END_S)


def outcome(*arguments: object, timeout: float = 60) -> tuple[int, str, str]:
    """Run a command to its end, as a process: exit code, standard output, standard error."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def outcome_here(*arguments: object) -> tuple[int, str, str]:
    """The same in this process, which spares the second that its imports take."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _exit_code(arguments)
    return code, out.getvalue(), _heard(err.getvalue())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str]:
    """Run a command in this process that must fail: its exit code and its one sentence."""
    code = _exit_code(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    return code, one_sentence(_heard(err))


def _exit_code(arguments: tuple[object, ...]) -> int:
    """Run a command in this process, and take back what it has changed in its logs."""
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    try:
        with pytest.raises(SystemExit) as left:
            root.main([str(argument) for argument in arguments])
    finally:
        log.handlers = handlers
        log.setLevel(level)
    return int(left.value.code or 0)


def _heard(err: str) -> str:
    """While tests run, loggers are heard from INFO on; a person hears of trouble only."""
    return "\n".join(line for line in err.splitlines() if not (line.startswith("{") and '"level": "info"' in line))


def one_sentence(err: str) -> str:
    """The one line on standard error, without its ``Error: ``; a hint to ``--help`` may follow."""
    lines = [line for line in err.splitlines() if not line.startswith("Try '")]
    assert len(lines) == 1, err
    assert lines[0].startswith("Error: "), err
    return lines[0].removeprefix("Error: ")


def unix_uri(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={path}"


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from block to block and from seed to seed."""
    unit = bytes((index * 7 + seed * 31) % 251 + 1 for index in range(509))
    return (unit * (length // len(unit) + 1))[:length]
