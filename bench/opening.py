"""Start a disk's server and say how long it took until the first block was read.

What it guarantees: the time runs from the moment at which the command is started to the first reply that carries a
block, so it has the interpreter's start in it, as whoever waits for the disk has. A server is ended in order, or killed
where that was asked for, and is gone when the ``with`` block is left.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import fio
from bench.pipelined import READ, Connection, LoadError
from bench.process_figures import GoneError, Memory, cpu_seconds, memory
from bench.subjects import OURS, end, find_program

OPENING_S_MAX = 900.0
"""A disk that is not there after so long counts as hung."""


class OpeningError(Exception):
    """There is no disk to measure; the message is the sentence that says why."""


@dataclass(slots=True)
class Opened:
    """A server with a disk, or several, behind ``socket``."""

    process: subprocess.Popen[bytes]
    socket: Path
    opening_s: float = 0.0
    facts: dict[str, object] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """CPU time of the server so far. Raises :class:`OpeningError` where it is gone."""
        try:
            return cpu_seconds(self.process.pid)
        except GoneError as problem:
            raise OpeningError(str(problem)) from problem

    def memory(self) -> Memory:
        """The server's memory now. Raises :class:`OpeningError` where it is gone."""
        try:
            return memory(self.process.pid)
        except GoneError as problem:
            raise OpeningError(str(problem)) from problem

    def kill(self) -> None:
        """End it as a power cut of the process would, and wait until it is gone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve_command(disk: Path, socket: Path, *more: str) -> list[str]:
    """The command that serves the disk in ``disk``, and makes it where it is not there (``more`` says how)."""
    program = find_program(OURS) or OURS
    return [program, "serve", str(disk), "--nbd", fio.uri_of(socket), "--json", *more]


@contextmanager
def opened(command: Sequence[str], socket: Path, export: str = "") -> Iterator[Opened]:
    """Run a command that prints one line of JSON when its disks are served at ``socket``. Raises
    :class:`OpeningError` where it does not come that far."""
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        except OSError as problem:
            raise OpeningError(f"{command[0]} cannot be started: {problem.strerror}.") from problem
        assert process.stdout is not None
        try:
            found = Opened(process, socket)
            found.facts = _ready_line(process, log.fileno())
            found.opening_s = _first_reply(socket, export, began)
            yield found
        finally:
            end(process)
            process.stdout.close()


def _ready_line(process: subprocess.Popen[bytes], log: int) -> dict[str, object]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], OPENING_S_MAX)
    line = process.stdout.readline() if readable else b""
    try:
        facts: dict[str, object] = json.loads(line)
    except ValueError:
        os.lseek(log, 0, os.SEEK_SET)
        words = " ".join(os.read(log, 100_000).decode(errors="replace").split())[-300:]
        raise OpeningError(f"The disk did not open: {words or 'its server wrote nothing'}") from None
    return facts


def _first_reply(socket: Path, export: str, began: float) -> float:
    try:
        connection = Connection(socket, export)
        try:
            connection.send(READ, [0])
            connection.take(READ, 1)
            return time.monotonic() - began
        finally:
            connection.close()
    except LoadError as problem:
        raise OpeningError(f"The disk opened and did not answer: {problem}") from problem
