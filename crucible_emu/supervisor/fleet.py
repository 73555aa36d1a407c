"""All Downstairs of one supervisor: who shall run, who is restarted, who is stopped at random.

What it is for: the control API, the processes and the timer of random stops call methods here; what is then to be done
lies in :meth:`Fleet.take_actions`, for the driver. There is no clock, no process and no randomness of its own here:
draws come from the :class:`random.Random` that the maker gives.

What it guarantees: a member has at most one process at a time, because :data:`~.states.TRANSITIONS` starts one only in
states without. A member that ended by itself with an exit code is not restarted (*safety* against a loop of failures:
its automatic restart is switched off, as in the real program). After :meth:`Fleet.shut_down` nothing is started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from crucible_emu.errors import UsageError
from crucible_emu.supervisor.states import HAS_PROCESS, Doing, Event, ProcessState, step

RANDOM_STOP_MIN_S, RANDOM_STOP_MAX_S = 9, 10
RANDOM_STOP_S_MAX = 24 * 3600

SIGNALS = {
    "stop": signal.SIGSTOP,
    "cont": signal.SIGCONT,
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
}
"""What a tester may send to a running Downstairs; ``term`` ends it in order."""


class NoSuchMember(UsageError):
    """There is no Downstairs of that number."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for member ``cid``."""

    cid: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the process ``pid`` of member ``cid``."""

    cid: int
    pid: int
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Changed:
    """Member ``cid`` is in another state now; for whoever reports that."""

    cid: int
    state: ProcessState
    pid: int | None
    returncode: int | None


Action = Spawn | Send | Changed


@dataclass(slots=True)
class Member:
    """One Downstairs. ``uuid`` is that of its region, ``paused`` whether SIGSTOP was the last signal of the two."""

    cid: int
    port: int
    uuid: UUID
    state: ProcessState = ProcessState.STOPPED
    pid: int | None = None
    returncode: int | None = None
    auto_restart: bool = False
    start_again: bool = False
    paused: bool = False


@dataclass(slots=True)
class RandomStop:
    """Every ``min_s`` to ``max_s`` seconds (``max_s`` excluded) one running member is stopped."""

    enabled: bool = False
    min_s: int = RANDOM_STOP_MIN_S
    max_s: int = RANDOM_STOP_MAX_S


@dataclass(slots=True)
class Fleet:
    """The core. ``members`` by client id, from 0; ``rng`` decides on random stops."""

    members: list[Member]
    rng: Random
    random_stop: RandomStop = field(default_factory=RandomStop)
    leaving: bool = False
    _actions: list[Action] = field(default_factory=list)

    # -- what people ask for ------------------------------------------------------------------------------------------

    def member(self, cid: int) -> Member:
        """Raises :class:`NoSuchMember`."""
        if not 0 <= cid < len(self.members):
            raise NoSuchMember(f"there is no Downstairs {cid}: they are numbered from 0 to {len(self.members) - 1}")
        return self.members[cid]

    def start(self, cid: int) -> None:
        """Start it unless it runs."""
        if not self.leaving:
            self._happen(self.member(cid), Event.START)

    def stop(self, cid: int) -> None:
        """SIGKILL, as the real program stops. With automatic restart it comes back."""
        member = self.member(cid)
        member.start_again = False
        self._happen(member, Event.STOP)

    def signal(self, cid: int, name: str) -> None:
        """Send one of :data:`SIGNALS`. Raises :class:`UsageError` where it has no process or the name is none."""
        member = self.member(cid)
        if name not in SIGNALS:
            raise UsageError(f"{name!r} is no signal for a Downstairs: take one of {', '.join(SIGNALS)}")
        if member.pid is None:
            raise UsageError(f"Downstairs {cid} has no process: start it first")
        if name == "kill":
            self.stop(cid)
        elif name == "term":
            self._resume(member)
            self._happen(member, Event.END)
        else:
            member.paused = name == "stop"
            self._actions.append(Send(cid, member.pid, SIGNALS[name]))

    def start_all(self) -> None:
        self.each(self.start)

    def stop_all(self) -> None:
        self.each(self.stop)

    def each(self, do: Callable[[int], None]) -> None:
        for member in self.members:
            do(member.cid)

    def stop_one_at_random(self) -> int | None:
        """Stop one of those that run; its number, ``None`` where none does."""
        running = [member.cid for member in self.members if member.state is ProcessState.RUNNING]
        if not running:
            return None
        cid = self.rng.choice(running)
        self.stop(cid)
        return cid

    def set_restart(self, cid: int, wanted: bool) -> None:
        """Automatic restart on or off. What has ended by a signal before stays as it is until it is started."""
        self.member(cid).auto_restart = wanted

    def set_random_window(self, *, min_s: int | None = None, max_s: int | None = None) -> None:
        """Either end of the window of random stops. Raises :class:`UsageError`."""
        for name, given, least in (("minimum", min_s, 0), ("maximum", max_s, 1)):
            if given is not None and not least <= given <= RANDOM_STOP_S_MAX:
                raise UsageError(f"{given} is no {name} for random stops: take {least} to {RANDOM_STOP_S_MAX} seconds")
        if min_s is not None:
            self.random_stop.min_s = min_s
        if max_s is not None:
            self.random_stop.max_s = max_s

    def random_delay_s(self) -> float:
        """How long until the next random stop. Where the maximum is not above the minimum (the ends are set one by
        one, in any order; the real program crashes then) it is the minimum."""
        low, high = self.random_stop.min_s, self.random_stop.max_s
        return low + self.rng.random() * (high - low) if high > low else float(low)

    def shut_down(self) -> None:
        """End all in order; nothing is started any more."""
        self.leaving = True
        self.random_stop.enabled = False
        for member in self.members:
            member.auto_restart = member.start_again = False
            self._resume(member)
            self._happen(member, Event.END)

    # -- what processes do --------------------------------------------------------------------------------------------

    def spawned(self, cid: int, pid: int) -> None:
        """The process that was asked for exists. If its end was asked for meanwhile, it gets the signal now."""
        member = self.member(cid)
        member.pid = pid
        if member.state is ProcessState.STOPPING:
            self._actions.append(Send(cid, pid, signal.SIGTERM if self.leaving else signal.SIGKILL))
        else:
            self._report(member)

    def ready(self, cid: int) -> None:
        """It can be reached."""
        self._happen(self.member(cid), Event.READY)

    def ended(self, cid: int, returncode: int) -> None:
        """Its process is gone: ``returncode`` is the exit code, or the negative number of a signal."""
        member = self.member(cid)
        member.pid, member.returncode, member.paused = None, returncode, False
        self._happen(member, Event.SIGNALLED if returncode < 0 else Event.EXITED)
        again, member.start_again = member.start_again, False
        if member.state is ProcessState.FAILED:
            member.auto_restart = False
        elif (again or member.auto_restart) and not self.leaving:
            self._happen(member, Event.START)

    def could_not_start(self, cid: int) -> None:
        """No process came to be."""
        member = self.member(cid)
        member.pid, member.start_again = None, False
        self._happen(member, Event.UNSTARTABLE)

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def all_running(self) -> bool:
        return all(member.state is ProcessState.RUNNING for member in self.members)

    @property
    def all_stopped(self) -> bool:
        """No member has a process."""
        return not any(member.state in HAS_PROCESS for member in self.members)

    def take_actions(self) -> list[Action]:
        """What is to be done, oldest first; each is handed out once."""
        actions, self._actions = self._actions, []
        return actions

    # -----------------------------------------------------------------------------------------------------------------

    def _happen(self, member: Member, event: Event) -> None:
        transition = step(member.state, event)
        if transition is None:
            return
        changed = transition.after is not member.state
        member.state = transition.after
        if transition.doing is Doing.SPAWN:
            member.returncode = None
            self._actions.append(Spawn(member.cid))
        elif transition.doing is Doing.START_AGAIN:
            member.start_again = True
        elif transition.doing is not Doing.NOTHING and member.pid is not None:
            number = signal.SIGKILL if transition.doing is Doing.KILL else signal.SIGTERM
            self._actions.append(Send(member.cid, member.pid, number))
        if changed:
            self._report(member)

    def _report(self, member: Member) -> None:
        self._actions.append(Changed(member.cid, member.state, member.pid, member.returncode))

    def _resume(self, member: Member) -> None:
        """*Liveness*: a process that stands still does not hear SIGTERM."""
        if member.paused and member.pid is not None:
            member.paused = False
            self._actions.append(Send(member.cid, member.pid, signal.SIGCONT))
