"""The Trio shell around the core of a rack: the fork server's messages, timers, and the control socket.

What it guarantees: every end of a process reaches the core exactly once, from the fork server, who alone knows. The
state that survives is on disk before what it is about happens: ports before a service is started with them, the death
of a sled before its processes are killed. :meth:`Supervisor.run` returns when no process of the rack is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger
from crucible_emu.rack import control, description, plan, state_file
from crucible_emu.rack.core import Changed, Kill, Leaving, RackCore, Service, Spawn, Terminate, Wait
from crucible_emu.rack.document import RackFile
from crucible_emu.rack.forkserver import MESSAGE_BYTES_MAX, last_words, prepare_log
from crucible_emu.rack.plan import Planned
from crucible_emu.rack.state import RackState
from crucible_emu.rack.states import HAS_PROCESS, ServiceState

READY_S_MAX = 90.0
"""How long a rack may take until it is ready; then something of it is stuck."""
GRACE_S = 20.0
"""How long an orderly end may take before SIGKILL; hosts and pantries flush their disks."""

log = get_logger(__name__)


class NotReady(UsageError):
    """The rack did not become ready; the message says which service, and what it said."""


@dataclass(slots=True)
class Supervisor:
    """Runs the rack ``document`` in ``root``. ``forks`` is the supervisor's end of the fork server's socket."""

    root: Path
    document: RackFile
    state: RackState
    planned: list[Planned]
    forks: socket.socket
    core: RackCore = field(init=False)
    _log_starts: dict[str, int] = field(default_factory=dict)
    _inputs: dict[str, int] = field(default_factory=dict)
    _requests: deque[tuple[bytes, tuple[int, ...]]] = field(default_factory=deque)
    _nursery: trio.Nursery | None = None
    _progress: trio.Event = field(default_factory=trio.Event)
    _forks_gone: bool = False

    def __post_init__(self) -> None:
        self.core = RackCore([Service(each.name, each.kind, each.sled) for each in self.planned])
        self.forks.setblocking(False)

    # -- a life -------------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Start the rack, call ``ready`` with its description when it is, and look after it until it is told to end.

        Raises :class:`NotReady` where it does not become so, when all is ended again.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(control.serve, self.root, self._answer)
                nursery.start_soon(self._listen_to_forks)
                nursery.start_soon(self._send_to_forks)
                nursery.start_soon(self._obey, signals)
                self.core.start_all(but=self.state.killed)
                self.perform()
                failure = await self._wait_for_start(ready)
                await self._until(lambda: self.core.leaving)
                await self._end()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _wait_for_start(self, ready: Callable[[dict[str, Any]], None]) -> UsageError | None:
        try:
            await self._all_ready(self.core.services)
        except (NotReady, Leaving) as error:
            log.error("rack not ready", reason=str(error))
            self.core.shut_down()
            self.perform()
            return error
        if not self.core.leaving:
            log.info("rack ready", services=len(self.core.services))
            ready(self.describe())
        return None

    async def _end(self) -> None:
        """Wait until all has ended; kill what does not; let the fork server go and wait until it is gone."""
        with trio.move_on_after(GRACE_S):
            await self._until(lambda: self.core.all_gone or self._forks_gone)
        if not self.core.all_gone and not self._forks_gone:
            stuck = [each.name for each in self.core.services if each.state in HAS_PROCESS]
            log.warning("services killed: they did not end in time", services=stuck)
            self.core.kill_all()
            self.perform()
            await self._until(lambda: self.core.all_gone or self._forks_gone)
        # It ends its process when it has seen this, and when nothing is left.
        self.forks.shutdown(socket.SHUT_WR)
        await self._until(lambda: self._forks_gone)
        log.info("rack down")

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        await anext(signals)
        self.core.shut_down()
        self.perform()
        await anext(signals)  # somebody is in a hurry
        self.core.kill_all()
        self.perform()

    # -- the core's actions -------------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Carry out what the core wants done. Call it after every call into the core."""
        assert self._nursery is not None
        while wanted := self.core.take_actions():
            for action in wanted:
                if isinstance(action, Spawn):
                    self._spawn(action.name)
                elif isinstance(action, Terminate):
                    self._request({"do": "signal", "name": action.name, "number": int(signal.SIGTERM)})
                elif isinstance(action, Kill):
                    self._request({"do": "signal", "name": action.name, "number": int(signal.SIGKILL)})
                elif isinstance(action, Wait):
                    self._nursery.start_soon(self._wait, action)
                else:
                    self._report(action)
        self._progress.set()
        self._progress = trio.Event()

    def _spawn(self, name: str) -> None:
        """Have the service forked. The write end of its standard input stays here, and nowhere else."""
        planned = self._plan_of(name)
        arguments = plan.command_line(planned, self.document, self.state, self.root)
        path = plan.log_path(self.root, name)
        self._log_starts[name] = prepare_log(path)
        their_input, our_input = os.pipe()
        our_output, their_output = os.pipe()
        foreign = planned.program is not None
        request = {"do": "spawn", "name": name, "arguments": arguments, "log": str(path), "execute": foreign}
        self._request(request, their_input, their_output)
        self._inputs[name] = our_input
        assert self._nursery is not None
        self._nursery.start_soon(self._read_output, name, our_output)

    def _request(self, request: dict[str, Any], *descriptors: int) -> None:
        """Have it sent in its turn; ``descriptors`` are closed here then."""
        self._requests.append((json.dumps(request).encode(), descriptors))

    async def _wait(self, action: Wait) -> None:
        await trio.sleep(action.delay_s)
        self.core.due(action.name, action.number)
        self.perform()

    def _report(self, change: Changed) -> None:
        service = self.core.service(change.name)
        facts = {"service": change.name, "state": change.state.value}
        if change.state in (ServiceState.WAITING, ServiceState.FAILED):
            log.warning("service ended", **facts, returncode=service.returncode, said=service.said)
        else:
            log.info("service", **facts)

    # -- the fork server and the services -----------------------------------------------------------------------------

    async def _send_to_forks(self) -> None:
        while not self._forks_gone:
            while self._requests:
                data, descriptors = self._requests.popleft()
                try:
                    await trio.lowlevel.wait_writable(self.forks)
                    socket.send_fds(self.forks, [data], descriptors)
                except ConnectionError:
                    pass  # the fork server is gone; the task that listens to it says so
                finally:
                    for each in descriptors:
                        os.close(each)
            await self._progress.wait()

    async def _listen_to_forks(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.forks)
            try:
                data = self.forks.recv(MESSAGE_BYTES_MAX)
            except ConnectionError:
                data = b""
            if not data:
                break
            event = json.loads(data)
            if event["event"] == "spawned":
                self.core.spawned(event["name"], event["pid"])
            else:
                os.close(self._inputs.pop(event["name"]))
                said = self._said(event["name"])
                self.core.ended(event["name"], event["returncode"], trio.current_time(), said)
            self.perform()
        self._forks_gone = True
        while self._inputs:
            os.close(self._inputs.popitem()[1])
        if not self.core.leaving:
            log.error("the fork server is gone, and with it all services: the rack ends")
            self.core.leaving = True
        self.perform()

    async def _read_output(self, name: str, descriptor: int) -> None:
        """Take the ready line, and read on, so that the service never waits for room in the pipe."""
        first: bytearray | None = bytearray()
        async with trio.lowlevel.FdStream(descriptor) as stream:
            while piece := await stream.receive_some(4096):
                if first is None:
                    continue
                first += piece
                if b"\n" in first or len(first) > MESSAGE_BYTES_MAX:
                    ready = _says_ready(bytes(first).partition(b"\n")[0])
                    first = None
                    if ready:
                        self.core.ready(name, trio.current_time())
                        self.perform()

    # -- what callers ask ---------------------------------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the control socket answers. Raises :class:`UsageError`."""
        match request.get("do"):
            case "status":
                pass
            case "up":
                self.core.start_failed()
                self.perform()
                await self._all_ready(self.core.services)
            case "kill":
                await self._kill(self._sled(request))
            case "start":
                await self._start(self._sled(request))
            case "down":
                self.core.shut_down()  # the caller sees by the lock when it is done
                self.perform()
            case other:
                raise UsageError(f"{other!r} is nothing that a rack can do")
        return {"rack": self.describe()}

    def _sled(self, request: dict[str, Any]) -> str:
        """The sled that is meant, by its name or its number. Raises :class:`UsageError`."""
        given = str(request.get("sled"))
        names = [sled.name for sled in self.document.sleds]
        if given not in names and given.isdecimal() and int(given) < len(names):
            given = names[int(given)]
        if given in names and given not in {sled.name for sled in self.document.here}:
            raise UsageError(f"{given} is on another machine: kill or start it there")
        self.core.of_sled(given)
        return given

    async def _kill(self, sled: str) -> None:
        self.state.killed.add(sled)
        state_file.save(self.root, self.state)
        self.core.kill_sled(sled)
        self.perform()
        services = self.core.of_sled(sled)
        await self._until(lambda: self._forks_gone or not any(each.state in HAS_PROCESS for each in services))

    async def _start(self, sled: str) -> None:
        self.core.start_sled(sled)
        self.state.killed.discard(sled)
        state_file.save(self.root, self.state)
        self.perform()
        await self._all_ready(self.core.of_sled(sled))

    async def _all_ready(self, services: list[Service]) -> None:
        """Return when all of ``services`` are ready, or dead on purpose. Raises :class:`NotReady`."""
        settled = (ServiceState.READY, ServiceState.KILLED)

        def decided() -> bool:
            failed = any(each.state is ServiceState.FAILED for each in services)
            return failed or self.core.leaving or all(each.state in settled for each in services)

        with trio.move_on_after(READY_S_MAX):
            await self._until(decided)
        for each in services:
            if each.state is ServiceState.FAILED:
                said = (
                    self._said(each.name)
                    or f"it ended with {each.returncode}; its log is {plan.log_path(self.root, each.name)}"
                )
                raise NotReady(f"{each.name} did not become ready: {said}")
        late = [each.name for each in services if each.state not in settled]
        if self._forks_gone:
            raise NotReady("the fork server ended, and with it all services: start the rack again")
        if late and self.core.leaving:
            raise Leaving
        if late:
            raise NotReady(f"{', '.join(late)} did not become ready within {READY_S_MAX:.0f} s: look into the logs")

    # -----------------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The rack as ``rack status --json`` shows it."""
        return description.describe(self.root, self.document, self.state, core=self.core, pid=os.getpid())

    def _plan_of(self, name: str) -> Planned:
        return next(each for each in self.planned if each.name == name)

    def _said(self, name: str) -> str:
        return last_words(plan.log_path(self.root, name), self._log_starts.get(name, 0))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; it is looked at whenever something was carried out."""
        while not condition():
            await self._progress.wait()


def _says_ready(line: bytes) -> bool:
    try:
        facts = json.loads(line)
    except ValueError:
        return False
    return isinstance(facts, dict) and facts.get("ready") is True
