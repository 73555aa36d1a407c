"""Workloads with events: activation anew, and Downstairs that are stopped, started and replaced (§16.1).

Every scenario ends with all blocks verified by its caller. Most need a control API; those that replace a Downstairs
need a spare one too, which is not among the disk's three.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from random import Random

import trio

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice
from crucible_emu.exercise import workloads
from crucible_emu.exercise.control import Control
from crucible_emu.exercise.disk import POLL_S, Subject, all_active, phases, until, until_all_active
from crucible_emu.exercise.layout import Layout
from crucible_emu.exercise.runner import Runner, RunnerStatistics
from crucible_emu.exercise.workloads import Plan, Steps
from crucible_emu.exercise.write_log import WriteLog
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.states import Phase, UpstairsState

GENERIC_PER_ACTIVATION = 20
GENERIC_WHILE_STOPPED = 300
REPLACE_TRIES_S_MAX = 60.0
STARTED = (ReplaceResult.STARTED, ReplaceResult.STARTED_ALREADY)


@dataclass(slots=True)
class Setting:
    """What a scenario works on. ``say`` takes a line for a person; ``spare`` is the address of a further Downstairs."""

    subject: Subject
    log: WriteLog
    layout: Layout
    rng: Random
    count: int
    depth: int = 8
    control: Control | None = None
    spare: str | None = None
    in_range: bool = False
    say: Callable[[str], None] = lambda line: None
    totals: list[RunnerStatistics] = field(default_factory=list)

    def plan(self, count: int = 1) -> Plan:
        return Plan(self.layout, self.rng, count)

    def runner(self, device: BlockDevice) -> Runner:
        """A runner whose statistics are counted."""
        runner = Runner(device, self.log, depth=self.depth, in_range=self.in_range)
        self.totals.append(runner.statistics)
        return runner

    async def run(self, device: BlockDevice, steps: Steps) -> None:
        await self.runner(device).run(steps)

    async def generic(self, device: BlockDevice, count: int) -> None:
        await self.run(device, workloads.mixed(10, 40)(self.plan(count)))

    async def verify(self, device: BlockDevice) -> None:
        await self.run(device, workloads.verify(self.plan()))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Guest]:
        """The disk as one region set with its replicas to look at; what was written is durable behind the block."""
        async with self.subject.serve(self.subject.upstairs()) as guest:
            yield guest
        self.log.commit_all()

    def needed_control(self) -> Control:
        """Raises :class:`errors.UsageError`."""
        if self.control is None:
            raise errors.UsageError("this workload stops and starts Downstairs: give the --control URL of run-many")
        return self.control

    def needed_spare(self) -> str:
        """Raises :class:`errors.UsageError`."""
        if self.spare is None:
            raise errors.UsageError(
                "this workload replaces a Downstairs: give --replacement IP:PORT, or --control of a run-many --count 4"
            )
        return self.spare

    async def cid_of(self, target: str) -> int:
        """The number of the Downstairs at ``target`` in the control API."""
        port = int(target.rpartition(":")[2])
        ports = [int(each.rpartition(":")[2]) for each in await self.needed_control().targets()]
        if port not in ports:
            raise errors.UsageError(f"the control API has no Downstairs at port {port}: is it that of this disk?")
        return ports.index(port)

    async def victim(self) -> tuple[str, int]:
        """A random one of the disk's Downstairs: its address and its cid."""
        target = self.rng.choice(self.subject.region().opts.target)
        return target, await self.cid_of(target)


async def deactivate(it: Setting) -> None:
    """Activate with a higher generation, some requests, deactivate."""
    for number in range(it.count):
        async with it.subject.active() as device:
            await it.generic(device, GENERIC_PER_ACTIVATION)
        it.log.commit_all()
        it.say(f"activation {number + 1} of {it.count} done")


async def replay(it: Setting) -> None:
    """Requests while a Downstairs is away; it comes back and gets what it missed."""
    control = it.needed_control()
    async with it.session() as guest:
        for _ in range(it.count):
            target, cid = await it.victim()
            await control.stop(cid)
            it.say(f"stopped {target}")
            await it.generic(guest, GENERIC_WHILE_STOPPED)
            await control.start(cid)
            await until_all_active(guest.upstairs)
            it.say(f"{target} has caught up")
            await it.verify(guest)


async def reconcile(it: Setting) -> None:
    """A Downstairs misses writes and comes back for the next activation, which makes all three equal."""
    control = it.needed_control()
    for _ in range(it.count):
        target, cid = await it.victim()
        async with it.session() as guest:
            await it.run(guest, workloads.fast_fill(it.plan()))
            await control.stop(cid)
            it.say(f"stopped {target}")
            await it.run(guest, workloads.fast_fill(it.plan()))
        await control.start(cid)
        async with it.session() as guest:
            it.say(f"active again with {target}")
            await it.verify(guest)


async def replace(it: Setting) -> None:
    """Requests without a pause while each Downstairs in turn is replaced by the spare one and repaired."""
    it.needed_spare()
    async with it.session() as guest, trio.open_nursery() as nursery:

        async def busy() -> None:
            endless = workloads.mixed(10, 40)
            for plan in repeat(it.plan(100)):
                await it.run(guest, endless(plan))

        nursery.start_soon(busy)
        for number in range(it.count):
            old = it.subject.region().opts.target[number % 3]
            await _replace(it, guest.upstairs, old)
            await until_all_active(guest.upstairs)
            it.say("all three active")
        nursery.cancel_scope.cancel()


async def _replace(it: Setting, upstairs: Upstairs, old: str) -> None:
    """Put the spare in place of ``old``, which is the spare from then on. A request that comes too early (another
    replica is still on its way) is made again."""
    new = it.needed_spare()
    with trio.fail_after(REPLACE_TRIES_S_MAX):
        while True:
            try:
                result = upstairs.replace_downstairs(old, new)
                break
            except errors.ReplaceRequestInvalid:
                await trio.sleep(POLL_S)
    if result not in STARTED:
        raise errors.IoError(f"replacing {old} by {new} was answered with {result.value}")
    it.say(f"{old} is being replaced by {new}")
    it.subject.replaced(old, new)
    it.spare = old


async def replace_before_active(it: Setting) -> None:
    """An activation waits for a Downstairs that is gone; replacing that one lets it go on."""
    control = it.needed_control()
    it.needed_spare()
    for _ in range(it.count):
        async with it.session() as guest:
            await it.run(guest, workloads.fast_fill(it.plan()))
        target, cid = await it.victim()
        await control.stop(cid)
        upstairs = it.subject.upstairs()
        async with trio.open_nursery() as nursery:

            async def when_it_waits(upstairs: Upstairs = upstairs, target: str = target) -> None:
                await _until_phases(upstairs, Phase.WAIT_QUORUM, count=2)
                if upstairs.active:
                    raise errors.IoError(f"the disk is active although {target} is gone")
                await _replace(it, upstairs, target)

            nursery.start_soon(when_it_waits)
            await _verified(it, upstairs)
        await control.start(cid)


async def replace_reconcile(it: Setting) -> None:
    """A Downstairs is replaced while the activation makes the three equal (or just after, if that is quick)."""
    control = it.needed_control()
    it.needed_spare()
    for _ in range(it.count):
        target, cid = await it.victim()
        async with it.session() as guest:
            await it.run(guest, workloads.fast_fill(it.plan()))
            await control.stop(cid)
            await it.run(guest, workloads.fast_fill(it.plan()))
        await control.start(cid)
        upstairs = it.subject.upstairs()
        async with trio.open_nursery() as nursery:

            async def while_it_reconciles(upstairs: Upstairs = upstairs, target: str = target) -> None:
                await _until_phases(upstairs, Phase.RECONCILE, Phase.ACTIVE, count=1)
                it.say(f"{target} goes while replicas are {', '.join(each.value for each in phases(upstairs))}")
                await _replace(it, upstairs, target)

            nursery.start_soon(while_it_reconciles)
            await _verified(it, upstairs)


async def _until_phases(upstairs: Upstairs, *wanted: Phase, count: int) -> None:
    await until(lambda: sum(phase in wanted for phase in phases(upstairs)) >= count)


async def _verified(it: Setting, upstairs: Upstairs) -> None:
    """Serve ``upstairs``, check all blocks, and let it end when all three replicas take part."""
    async with it.subject.serve(upstairs) as guest:
        await it.verify(guest)
        # A replacement that came after the activation is repaired while the disk is in use.
        await until_all_active(upstairs)
        await it.generic(guest, GENERIC_PER_ACTIVATION)
    it.log.commit_all()


async def take_over(it: Setting) -> None:
    """An Upstairs with a higher generation takes the disk while the older one is busy, which must then fail."""
    for _ in range(it.count):
        older, newer = it.subject.upstairs(), it.subject.upstairs()
        async with trio.open_nursery() as nursery:
            fenced = trio.Event()

            async def busy(upstairs: Upstairs = older, fenced: trio.Event = fenced) -> None:
                try:
                    async with it.subject.serve(upstairs) as guest:
                        while True:
                            await it.generic(guest, 100)
                except* errors.CrucibleError as group:
                    it.say(f"the older one has ended: {group.exceptions[0]}")
                fenced.set()

            nursery.start_soon(busy)
            await until(lambda older=older: all_active(older))  # type: ignore[misc]
            async with it.subject.serve(newer) as guest:
                await fenced.wait()
                if older.core.state is UpstairsState.ACTIVE:
                    raise errors.IoError("two Upstairs are active at once")
                # What the older one had not flushed may be there or not.
                it.log.doubt()
                await it.verify(guest)
                await it.generic(guest, GENERIC_PER_ACTIVATION)
            it.log.commit_all()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A row of :data:`SCENARIOS`."""

    play: Callable[[Setting], Awaitable[None]]
    line: str
    count: int = 1


SCENARIOS: dict[str, Scenario] = {
    "deactivate": Scenario(deactivate, "requests, deactivate, activate with a higher generation, again", 5),
    "take-over": Scenario(take_over, "a newer Upstairs takes the disk from a busy one"),
    "replay": Scenario(replay, "requests while a Downstairs is away (--control)"),
    "reconcile": Scenario(reconcile, "a Downstairs misses writes and is made equal at activation (--control)"),
    "replace": Scenario(replace, "replace Downstairs under load, round-robin (a spare one)", 3),
    "replace-before-active": Scenario(
        replace_before_active, "replace a Downstairs that an activation waits for (--control, a spare one)", 5
    ),
    "replace-reconcile": Scenario(
        replace_reconcile, "replace a Downstairs while replicas are made equal (--control, a spare one)", 5
    ),
}
