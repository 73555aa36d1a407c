"""The Trio shell around the fleet: processes, signals, the timer of random stops.

What it guarantees: a member's process is waited for by one task, which tells the core how it ended; so the core knows
of every end exactly once. Leaving the nursery that runs :meth:`Supervisor.run` leaves no process behind, whether it
ends by :meth:`Supervisor.shut_down` (in order, with :data:`GRACE_S`) or by being cancelled (at once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from crucible_emu.logs import get_logger
from crucible_emu.supervisor.fleet import Changed, Fleet, Send, Spawn
from crucible_emu.supervisor.layout import Place
from crucible_emu.supervisor.process import run_child

GRACE_S = 15.0
"""How long an orderly end may take before SIGKILL: moving staged blocks into the files takes a second or two."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """How Downstairs are started. ``command`` begins every command line, ``options`` end it."""

    command: tuple[str, ...]
    address: str
    output_dir: Path
    options: tuple[str, ...] = ()

    def command_line(self, place: Place) -> list[str]:
        given = ["--address", self.address, "--port", str(place.port), "--json", "--until-eof"]
        return [*self.command, str(place.region), *given, *self.options]

    def output(self, place: Place) -> Path:
        """Where the process says what it has to say; a new file at every start, as in the real program."""
        return self.output_dir / f"downstairs-{place.port}.txt"


@dataclass(slots=True)
class Supervisor:
    """Runs ``fleet``; ``changed`` hears of every change of a member's state."""

    fleet: Fleet
    places: Sequence[Place]
    launch: Launch
    changed: Callable[[Changed], None]
    _processes: dict[int, trio.Process] = field(default_factory=dict)
    _nursery: trio.Nursery | None = None
    _settings_changed: trio.Event = field(default_factory=trio.Event)
    _progress: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start all members and look after them until :meth:`shut_down`, and until the last has ended."""
        self.launch.output_dir.mkdir(parents=True, exist_ok=True)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._stop_at_random)
            self.fleet.start_all()
            self.perform()
            task_status.started()
            await self.until(lambda: self.fleet.leaving)
            with trio.move_on_after(GRACE_S):
                await self.until(lambda: self.fleet.all_stopped)
            for cid, process in self._processes.items():
                log.warning("downstairs killed: it did not end in time", cid=cid, pid=process.pid)
            nursery.cancel_scope.cancel()

    def shut_down(self) -> None:
        """End all members in order, then :meth:`run`."""
        self.fleet.shut_down()
        self.perform()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; it is looked at whenever something was carried out."""
        while not condition():
            await self._progress.wait()

    def perform(self) -> None:
        """Carry out what the core wants done. Call it after every call into the core."""
        while wanted := self.fleet.take_actions():
            for action in wanted:
                if isinstance(action, Spawn):
                    assert self._nursery is not None
                    self._nursery.start_soon(self._one_process, action.cid)
                elif isinstance(action, Send):
                    # Not by number: the process may have ended, and its number may be somebody else's.
                    if action.cid in self._processes:
                        self._processes[action.cid].send_signal(action.number)
                else:
                    self.changed(action)
        self._progress.set()
        self._progress = trio.Event()

    def random_stop_changed(self) -> None:
        """Random stops were switched on or off, or their window moved: the wait begins anew."""
        self._settings_changed.set()
        self._settings_changed = trio.Event()

    async def _one_process(self, cid: int) -> None:
        place = self.places[cid]

        def started(process: trio.Process) -> None:
            self._processes[cid] = process
            self.fleet.spawned(cid, process.pid)
            self.perform()

        def ready(_facts: object) -> None:
            self.fleet.ready(cid)
            self.perform()

        try:
            returncode = await run_child(self.launch.command_line(place), self.launch.output(place), started, ready)
        except OSError as error:
            log.error("downstairs not started", cid=cid, error=str(error))
            self._processes.pop(cid, None)
            self.fleet.could_not_start(cid)
        else:
            del self._processes[cid]
            self.fleet.ended(cid, returncode)
        self.perform()

    async def _stop_at_random(self) -> None:
        while True:
            changed = self._settings_changed
            if not self.fleet.random_stop.enabled:
                await changed.wait()
                continue
            with trio.move_on_after(self.fleet.random_delay_s()) as wait:
                await changed.wait()
            if wait.cancelled_caught and self.fleet.random_stop.enabled:
                self.fleet.stop_one_at_random()
                self.perform()
