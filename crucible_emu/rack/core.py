"""All services of a rack: who shall run, who is started again and when, and in which order they end.

What it is for: the control socket, the processes and the timers call methods here; what is then to be done lies in
:meth:`RackCore.take_actions`, for the supervisor. There is no clock here: whoever calls says what time it is.

What it guarantees: a service that ends by itself is started again after a time that doubles from
:data:`BACKOFF_S_MIN` to :data:`BACKOFF_S_MAX`; after :data:`CRASHES_MAX` in a row, or one exit that says the command
itself is wrong, it is ``failed`` (*safety* against a loop of failures). A killed sled stays dead until it is started.
At the end hosts, pantries and programs go first and agents only when these are gone: a disk that is flushed and
deactivated needs its Downstairs (*liveness*: a host whose Downstairs went first waits for them until it is killed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crucible_emu.errors import UsageError
from crucible_emu.rack.states import HAS_PROCESS, Doing, Event, ServiceState, step

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.25, 15.0
CRASHES_MAX = 4
STEADY_S = 60.0
"""Ready for so long, a service has outlived its troubles: the next crash is counted as the first."""
USAGE_EXIT = 2
"""The exit code of a command that was given wrong input: it would be wrong the next time too."""

ENDS_FIRST = frozenset({"pantry", "host", "command"})


class Leaving(UsageError):
    """The rack is on its way down."""

    def __init__(self) -> None:
        super().__init__("the rack is on its way down: wait until it is, and start it again with rack up")


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for the service."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send SIGTERM to its process."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to its process and to all that this has started."""

    name: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Call :meth:`RackCore.due` with ``number`` after ``delay_s``."""

    name: str
    delay_s: float
    number: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The service is in another state now."""

    name: str
    state: ServiceState


Action = Spawn | Terminate | Kill | Wait | Changed


@dataclass(slots=True)
class Service:
    """One service. ``crashes`` counts its ends by itself in a row; ``waits`` and ``restarts`` count for good."""

    name: str
    kind: str
    sled: str
    state: ServiceState = ServiceState.STOPPED
    pid: int | None = None
    returncode: int | None = None
    said: str = ""
    crashes: int = 0
    waits: int = 0
    restarts: int = 0
    ready_since_s: float | None = None
    start_again: bool = False


@dataclass(slots=True)
class RackCore:
    """The core over ``services``, in the order in which they are started and shown."""

    services: list[Service]
    leaving: bool = False
    _actions: list[Action] = field(default_factory=list)

    # -- what people ask for ------------------------------------------------------------------------------------------

    def service(self, name: str) -> Service:
        return next(each for each in self.services if each.name == name)

    def of_sled(self, sled: str) -> list[Service]:
        """The services of a sled. Raises :class:`UsageError` where there is no such sled here."""
        found = [each for each in self.services if each.sled and each.sled == sled]
        if not found:
            known = ", ".join(dict.fromkeys(each.sled for each in self.services if each.sled))
            raise UsageError(f"there is no sled {sled!r} on this machine: there is {known or 'none'}")
        return found

    def start_all(self, but: Iterable[str] = ()) -> None:
        """Start all services; those of the sleds ``but`` are dead and stay so."""
        dead = set(but)
        for each in self.services:
            self._happen(each, Event.KILL if each.sled in dead else Event.START)

    def start_sled(self, sled: str) -> None:
        """Start what does not run. Raises :class:`UsageError`."""
        self._start(self.of_sled(sled))

    def start_failed(self) -> None:
        """Give those another chance that have failed or wait. Raises :class:`Leaving`."""
        self._start([each for each in self.services if each.state is not ServiceState.KILLED])

    def kill_sled(self, sled: str) -> None:
        """Sudden death of everything of a sled. Raises :class:`UsageError`."""
        for each in self.of_sled(sled):
            each.start_again = False
            self._happen(each, Event.KILL)

    def shut_down(self) -> None:
        """End all in order; nothing is started any more. Said again it changes nothing."""
        if self.leaving:
            return
        self.leaving = True
        for each in self.services:
            each.start_again = False
            if each.kind in ENDS_FIRST or each.state not in HAS_PROCESS:
                self._happen(each, Event.END)
        self._end_the_rest()

    def kill_all(self) -> None:
        """End all at once."""
        self.leaving = True
        for each in self.services:
            each.start_again = False
            if each.state in HAS_PROCESS:
                self._happen(each, Event.KILL)

    # -- what processes do --------------------------------------------------------------------------------------------

    def spawned(self, name: str, pid: int) -> None:
        """The process that was asked for exists."""
        self.service(name).pid = pid

    def ready(self, name: str, now_s: float) -> None:
        """It can be reached."""
        service = self.service(name)
        if service.state is ServiceState.STARTING:
            service.ready_since_s = now_s
        self._happen(service, Event.READY)

    def ended(self, name: str, returncode: int, now_s: float, said: str = "") -> None:
        """Its process is gone: ``returncode`` is the exit code, or the negative number of a signal; ``said`` its last
        words."""
        service = self.service(name)
        service.said = said
        since, service.ready_since_s = service.ready_since_s, None
        service.pid, service.returncode = None, returncode
        event = Event.ENDED
        if service.state in (ServiceState.STARTING, ServiceState.READY):
            steady = since is not None and now_s - since >= STEADY_S
            service.crashes = 1 if steady else service.crashes + 1
            if self.leaving:
                event = Event.LEFT
            elif returncode == USAGE_EXIT or service.crashes > CRASHES_MAX:
                event = Event.HOPELESS
        self._happen(service, event)
        again, service.start_again = service.start_again, False
        if again and not self.leaving:
            self._happen(service, Event.START)
        if self.leaving:
            self._end_the_rest()

    def due(self, name: str, number: int) -> None:
        """The wait of that number is over. One that somebody cut short changes nothing."""
        service = self.service(name)
        if service.state is ServiceState.WAITING and service.waits == number:
            service.restarts += 1
            self._happen(service, Event.DUE)

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def all_ready(self) -> bool:
        """Every service that is not dead on purpose can be reached."""
        return all(each.state in (ServiceState.READY, ServiceState.KILLED) for each in self.services)

    @property
    def all_gone(self) -> bool:
        """No service has a process."""
        return not any(each.state in HAS_PROCESS for each in self.services)

    def take_actions(self) -> list[Action]:
        """What is to be done, oldest first; each is handed out once."""
        actions, self._actions = self._actions, []
        return actions

    # -----------------------------------------------------------------------------------------------------------------

    def _start(self, services: list[Service]) -> None:
        if self.leaving:
            raise Leaving
        for each in services:
            if each.state not in HAS_PROCESS:
                each.crashes = 0
            self._happen(each, Event.START)

    def _end_the_rest(self) -> None:
        if any(each.state in HAS_PROCESS for each in self.services if each.kind in ENDS_FIRST):
            return
        for each in self.services:
            self._happen(each, Event.END)

    def _happen(self, service: Service, event: Event) -> None:
        transition = step(service.state, event)
        if transition is None:
            return
        changed = transition.after is not service.state
        service.state = transition.after
        self._do(service, transition.doing)
        if changed:
            self._actions.append(Changed(service.name, service.state))

    def _do(self, service: Service, doing: Doing) -> None:
        signals: dict[Doing, Callable[[str], Action]] = {Doing.TERMINATE: Terminate, Doing.KILL: Kill}
        if doing is Doing.SPAWN:
            service.returncode, service.said = None, ""
            self._actions.append(Spawn(service.name))
        elif doing is Doing.START_AGAIN:
            service.start_again = True
        elif doing is Doing.WAIT:
            delay_s = min(BACKOFF_S_MIN * 2 ** (service.crashes - 1), BACKOFF_S_MAX)
            service.waits += 1
            self._actions.append(Wait(service.name, delay_s, service.waits))
        elif doing in signals:
            self._actions.append(signals[doing](service.name))
