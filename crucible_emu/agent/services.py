"""The Downstairs of an agent: those that shall run do, the others do not (apis-and-tools.md §1.6).

What it is for: the real agent tells the system's service manager which services it wants. :class:`Services` is that
service manager: :meth:`Services.apply` compares what runs with what is wanted and starts and stops the difference. A
Downstairs runs as a task of this process (:class:`InThisProcess`) or as a child process (:class:`AsChildren`).

What it guarantees: when :meth:`Services.apply` returns, what is no longer wanted has ended and closed its region, so
that its files may go; each new one can be reached or has failed once, unless nobody waits for that. One that fails is
started again after a pause, for as long as it is wanted: its port may have been somebody else's, an earlier child may
still be ending. The pause grows to :data:`PAUSE_S_MAX`; each new reason is logged once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from crucible_emu.downstairs.server import DownstairsServer, ServerOptions
from crucible_emu.downstairs.tls import server_context
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.logs import get_logger
from crucible_emu.region import Region
from crucible_emu.supervisor.process import last_words, run_child

PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 5.0
GRACE_S = 15.0
"""How long a child may take to end in order: moving staged blocks into the files takes a second or two."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One Downstairs: the region or snapshot in ``directory``, at ``host`` and ``port``, read-only or not."""

    name: str
    directory: Path
    host: str
    port: int
    read_only: bool
    tls: bool

    @property
    def pem_files(self) -> tuple[Path, Path, Path]:
        """Certificate, key and root."""
        return self.directory / "cert.pem", self.directory / "key.pem", self.directory / "root.pem"


class Ended(Exception):
    """A Downstairs ended although it is wanted; the message says why."""


class Running(Protocol):
    """A way to run a Downstairs."""

    async def run(self, config: ServiceConfig, *, task_status: trio.TaskStatus[Region | None]) -> None:
        """Run until cancelled; report when it can be reached, with its region where that is open in this process.
        Raises :class:`Ended`."""
        ...


class InThisProcess:
    """Downstairs as tasks: cheap, and they end with the agent."""

    async def run(self, config: ServiceConfig, *, task_status: trio.TaskStatus[Region | None]) -> None:
        reasons: list[BaseException] = []
        try:
            tls = server_context(*config.pem_files) if config.tls else None
            opening = partial(Region.open, config.directory, read_only=config.read_only)
            # A disk of many extents takes seconds to open, if it was not closed in order.
            with await trio.to_thread.run_sync(opening) as region:
                server = DownstairsServer(region, ServerOptions(host=config.host, port=config.port, tls=tls))
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.run)
                    task_status.started(region)
        except* (UsageError, CrucibleError, OSError) as group:
            reasons = _leaves(group)
        raise Ended("; ".join(map(str, reasons)) or "its server returned")


@dataclass(frozen=True, slots=True)
class AsChildren:
    """Downstairs as processes: one that crashes takes nobody with it. What they say goes to files in ``output``."""

    output: Path
    command: tuple[str, ...] = (sys.executable, "-m", "crucible_emu", "downstairs", "run")

    def command_line(self, config: ServiceConfig) -> list[str]:
        mode = "ro" if config.read_only else "rw"
        given = ["--address", config.host, "--port", str(config.port), "--mode", mode, "--json", "--until-eof"]
        if config.tls:
            cert, key, root = map(str, config.pem_files)
            given += ["--cert-pem", cert, "--key-pem", key, "--root-cert-pem", root]
        return [*self.command, str(config.directory), *given]

    async def run(self, config: ServiceConfig, *, task_status: trio.TaskStatus[Region | None]) -> None:
        self.output.mkdir(exist_ok=True)
        output = self.output / f"{config.name}.txt"
        child = _Child()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run, self.command_line(config), output, task_status)
            try:
                await child.ended.wait()
            finally:
                await child.end()
                nursery.cancel_scope.cancel()
        reason = last_words(output) or f"it ended with {child.outcome}"
        raise Ended(reason)


class _Child:
    """One child process. It is not cancelled with its surroundings but told to end, so that it ends in order."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.outcome: int | str = "nothing"
        self._process: trio.Process | None = None
        self._leaving = False

    async def run(self, command: list[str], output: Path, task_status: trio.TaskStatus[Region | None]) -> None:
        def reached(_facts: dict[str, Any]) -> None:
            if not self._leaving:
                task_status.started(None)

        with trio.CancelScope(shield=True):
            try:
                self.outcome = await run_child(command, output, self._started, reached)
            except OSError as error:
                self.outcome = str(error)
            finally:
                self.ended.set()

    def _started(self, process: trio.Process) -> None:
        self._process = process
        if self._leaving:
            process.terminate()

    async def end(self) -> None:
        """SIGTERM, then SIGKILL if it does not end in time."""
        self._leaving = True
        with trio.CancelScope(shield=True):
            if self._process is not None:
                self._process.terminate()
            with trio.move_on_after(GRACE_S):
                await self.ended.wait()
            if not self.ended.is_set() and self._process is not None:
                log.warning("downstairs killed: it did not end in time", pid=self._process.pid)
                self._process.kill()
            await self.ended.wait()


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


@dataclass(slots=True, eq=False)
class _Service:
    """One Downstairs that is kept running."""

    config: ServiceConfig
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    up: bool = False
    region: Region | None = None
    reasons: set[str] = field(default_factory=set)


class Services:
    """Keeps Downstairs running as tasks of ``nursery``."""

    def __init__(self, nursery: trio.Nursery, running: Running) -> None:
        self._nursery = nursery
        self._running = running
        self._services: dict[str, _Service] = {}

    def is_up(self, name: str) -> bool:
        """Whether this Downstairs can be reached."""
        service = self._services.get(name)
        return service is not None and service.up

    def region(self, name: str) -> Region | None:
        """The open region of a Downstairs in this process."""
        service = self._services.get(name)
        return None if service is None else service.region

    async def apply(self, wanted: Mapping[str, ServiceConfig], *, wait: bool = True) -> None:
        """Run what is ``wanted`` and nothing else. One call at a time. Without ``wait`` it does not wait for what is
        started, only for what is ended."""
        leaving = [service for name, service in self._services.items() if wanted.get(name) != service.config]
        for service in leaving:
            service.scope.cancel()
        for service in leaving:
            await service.ended.wait()
            self._services.pop(service.config.name, None)
        coming = [config for name, config in wanted.items() if name not in self._services]
        async with trio.open_nursery() as starting:
            for config in coming:
                service = self._services[config.name] = _Service(config)
                if wait:
                    starting.start_soon(self._nursery.start, self._keep_running, service)
                else:
                    self._nursery.start_soon(self._keep_running, service)

    async def _keep_running(
        self, service: _Service, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """``task_status`` when the first attempt has succeeded or failed."""
        told, pause_s = False, PAUSE_S_MIN
        try:
            with service.scope:
                while True:
                    reason = None
                    try:
                        async with trio.open_nursery() as nursery:
                            service.region = await nursery.start(self._running.run, service.config)
                            service.up = True
                            log.info("downstairs runs", service=service.config.name, port=service.config.port)
                            pause_s = PAUSE_S_MIN
                            if not told:
                                told = True
                                task_status.started()
                    except* Ended as group:
                        reason = str(_leaves(group)[0])
                    finally:
                        service.up, service.region = False, None
                    self._report(service, reason)
                    if not told:
                        told = True
                        task_status.started()
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        finally:
            service.ended.set()
            if not told:
                task_status.started()

    def _report(self, service: _Service, reason: str | None) -> None:
        if reason not in service.reasons:
            service.reasons.add(str(reason))
            log.warning("downstairs ended", service=service.config.name, port=service.config.port, reason=reason)
