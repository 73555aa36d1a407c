"""Downstairs and NBD clients as processes of their own.

What it guarantees: everything that was started is ended when the block ends, whatever happened, and a process that
fails is reported with what it said.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from crucible_emu.errors import IoError

READY_TIMEOUT_S = 20.0


@dataclass(slots=True)
class DownstairsProcess:
    """A running Downstairs: its process, and ``ip:port`` as a VCR names it."""

    region: Path
    process: trio.Process
    target: str
    port: int

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        self.process.send_signal(signal.SIGKILL)


@asynccontextmanager
async def all_downstairs(regions: list[Path], *, read_only: bool = False) -> AsyncIterator[list[DownstairsProcess]]:
    """A Downstairs for each directory, started side by side, all ready; ended with the block."""
    running: dict[Path, DownstairsProcess] = {}
    async with trio.open_nursery() as nursery:
        ready, leave = [trio.Event() for _ in regions], trio.Event()

        async def one(region: Path, is_ready: trio.Event) -> None:
            async with downstairs(region, read_only=read_only) as process:
                running[region] = process
                is_ready.set()
                await leave.wait()

        for region, is_ready in zip(regions, ready):
            nursery.start_soon(one, region, is_ready)
        try:
            for is_ready in ready:
                await is_ready.wait()
            yield [running[region] for region in regions]
        finally:
            leave.set()


@asynccontextmanager
async def downstairs(region: Path, *, port: int = 0, read_only: bool = False) -> AsyncIterator[DownstairsProcess]:
    """A Downstairs for the directory ``region`` on loopback, ready; ended with the block. ``port`` 0: any free one."""
    command = [sys.executable, "-m", "crucible_emu", "downstairs", "run", str(region), "--json"]
    command += ["--address", "127.0.0.1", "--port", str(port), "--repair-port", "0"]
    command += ["--mode", "ro" if read_only else "rw"]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(_run, command)
        try:
            ready = await _first_line(process, region)
            yield DownstairsProcess(region, process, f"{ready['address']}:{ready['port']}", int(str(ready["port"])))
        finally:
            if process.returncode is None:
                process.terminate()
                with trio.CancelScope(shield=True), trio.move_on_after(5):
                    await process.wait()
            nursery.cancel_scope.cancel()


async def keep_downstairs(region: Path, port: int = 0, *, task_status: trio.TaskStatus[DownstairsProcess]) -> None:
    """A Downstairs as a task: started with ``nursery.start``, ended when the nursery is cancelled."""
    async with downstairs(region, port=port) as process:
        task_status.started(process)
        await trio.sleep_forever()


async def _run(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        task_status=task_status,
    )


async def _first_line(process: trio.Process, region: Path) -> dict[str, object]:
    """The ready line of a process. Raises :class:`IoError`."""
    text = b""
    assert process.stdout is not None
    with trio.move_on_after(READY_TIMEOUT_S):
        while b"\n" not in text:
            piece = await process.stdout.receive_some(4096)
            if not piece:
                break
            text += piece
    line = text.partition(b"\n")[0]
    if not line:
        raise IoError(f"the Downstairs of {region} did not become ready")
    ready: dict[str, object] = json.loads(line)
    return ready


@dataclass(frozen=True, slots=True)
class Client:
    """An NBD client that is installed here: how it copies a file in and out."""

    name: str

    def copy_in(self, image: Path, uri: str) -> list[str]:
        if self.name == "nbdcopy":
            return ["nbdcopy", "--connections=4", "--flush", str(image), uri]
        return ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), uri]

    def copy_out(self, uri: str, out: Path) -> list[str]:
        if self.name == "nbdcopy":
            return ["nbdcopy", "--connections=4", uri, str(out)]
        return ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(out)]


def installed_client() -> Client | None:
    """The first real client on this machine, ``None`` without one."""
    for name in ("nbdcopy", "qemu-img"):
        if shutil.which(name):
            return Client(name)
    return None


async def run_client(command: list[str]) -> None:
    """Run a client to its end. Raises :class:`IoError` with what it said."""
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise IoError(f"{command[0]} failed with exit code {done.returncode}: {said}")
