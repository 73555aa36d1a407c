"""One random history of an Upstairs and its three Downstairs, from a seed.

What it is for: a seed draws a small disk, a few kinds of trouble and how often each comes, and then steps: guest
requests, trouble, waiting, and what a person does with a disk (activate, deactivate, take over, replace). At the end
everything is healed, and what must come true is waited for in mock time.

What must hold, besides what the parts check on their way:

* *liveness*: after the healing the disk is in service with all three replicas, and every request is answered;
* then a flush, the whole disk read back, no job left in the core's table, a clean deactivation;
* *safety*: in the end the three replicas hold the same blocks under the same numbers, and none is dirty.

Within the limits at most one replica's flushed data are lost at a time; some seeds go beyond, and then an error or the
loss of any write is allowed, but never a block that nobody wrote.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.blockio import Kind
from crucible_emu.geometry import RegionDefinition
from crucible_emu.sim.upstairs.downstairs import ModelDownstairs
from crucible_emu.sim.upstairs.registers import Registers
from crucible_emu.sim.upstairs.requests import GuestSide
from crucible_emu.sim.upstairs.storage import Storage
from crucible_emu.sim.upstairs.world import World
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState

HEALED_WITHIN_S = 900.0
ENDS_NOTICED_WITHIN_S = 1.0
REPAIR_BEGINS_WITHIN_S = 12.0
ACTIVATION_TIMEOUTS_S = (None, None, None, 5.0, 30.0)
BLOCK_SIZE = 512

TROUBLES = ("drop", "refuse", "stall", "power", "kill", "slow", "errors", "damage", "blackout")
GUEST = ("io", "io", "io", "io", "flush", "snapshot", "beside repair")
WAITS = ("moment", "moment", "moment", "while", "long")
PERSON = ("activate", "deactivate", "crash", "crash in replay", "takeover", "destroy", "replace")


class History:
    """The steps of one seed over one world."""

    def __init__(self, seed: int, steps: int | None = None, trace: Callable[[str], None] | None = None) -> None:
        rng = random.Random(seed)
        definition = RegionDefinition(BLOCK_SIZE, rng.choice((2, 3, 4)), rng.randint(3, 10), UUID(int=9))
        self.world = World(seed, definition, trace)
        self.seed = seed
        self.steps = rng.choice((30, 60, 90, 120))
        if steps is not None:
            self.steps = min(self.steps, steps)
        self.beyond_limits = rng.random() < 0.1
        self.registers = Registers(self.world)
        self.places = [self._new_downstairs() for _ in range(3)]
        """The Downstairs in the three places of the set; a replacement changes it."""
        self.generation = 0
        self.sides: list[GuestSide] = []
        self.lost: ModelDownstairs | None = None
        """Whose flushed data are lost and not yet made good."""
        self._flush_interval_s = rng.choice((0.5, 3.0, 20.0))
        self._value = 0
        self._busy = False
        self._clean = False
        self._kinds = self._draw_kinds(rng)
        if self.beyond_limits:
            self._kinds += ["destroy", "destroy", "activate"]

    @staticmethod
    def _draw_kinds(rng: random.Random) -> list[str]:
        """A few kinds of trouble, chosen anew for each seed, meet more often than all of them would."""
        troubles = rng.sample(TROUBLES, rng.randint(0, 4))
        person = rng.sample(PERSON, rng.randint(0, 3))
        busy = rng.randint(1, 3)
        return [*GUEST * busy, *WAITS * rng.randint(1, 2), *troubles * rng.randint(1, 2), *person]

    def _new_downstairs(self) -> ModelDownstairs:
        found = ModelDownstairs(self.world, len(self.world.downstairs) + 1)
        self.world.downstairs.append(found)
        return found

    @property
    def side(self) -> GuestSide:
        """The Upstairs that was opened last."""
        return self.sides[-1]

    # -- the course ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All steps, then the end. Raises :class:`~crucible_emu.sim.upstairs.world.Violation`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.world.run_events)
            await self._open()
            await self._activate()
            for number in range(self.steps):
                kind = self.world.rng.choice(self._kinds)
                self.world.say(f"step {number}: {kind}")
                self.world.count(f"step {kind}")
                await self._STEPS[kind](self)
            await self._end()
            nursery.cancel_scope.cancel()

    async def _open(self) -> None:
        """A new Upstairs over the set, not yet active."""
        self.generation += self.world.rng.choice((1, 1, 3))
        number = len(self.sides) + 1
        side = GuestSide(self.world, self.registers, self.places, self.generation, number, self._flush_interval_s)
        self.sides.append(side)
        await self._nursery.start(side.run)

    # -- the guest ----------------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Kind, int, int, bool, int]:
        rng, total = self.world.rng, self.world.definition.total_blocks
        kind = rng.choice((Kind.READ, Kind.READ, Kind.WRITE, Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_ZEROES))
        count = min(rng.choice((1, 1, 1, 2, 3, 5, 9)), total)
        start = rng.randrange(total - count + 1)
        self._value += 100
        fua = kind is not Kind.READ and rng.random() < 0.15
        return kind, start, count, fua, self._value

    async def _io(self) -> None:
        rng = self.world.rng
        side = self.side if rng.random() < 0.9 else rng.choice(self.sides)
        if not side.scope.cancel_called:
            side.submit([self._plan() for _ in range(rng.choice((1, 1, 2, 4)))])

    async def _flush(self) -> None:
        self._submit_flush()

    def _submit_flush(self) -> None:
        if not self.side.scope.cancel_called:
            self.side.submit([(Kind.FLUSH, 0, 0, False, 0)])

    async def _snapshot(self) -> None:
        if not self.side.scope.cancel_called:
            self.side.snapshot()

    async def _beside_repair(self) -> None:
        """Wait for a live repair that is to come, and work beside it: it is short, and seldom met by chance."""
        side, rng = self.side, self.world.rng
        out = [client for client in side.core.clients if client.state.mode in (Mode.FAULTED, Mode.REPLACED)]
        if side.state is UpstairsState.ACTIVE and out and rng.random() < 0.5:
            with trio.move_on_after(REPAIR_BEGINS_WITHIN_S):
                await side.repair_begins.wait()
            for _ in range(rng.randint(1, 8)):
                await self._io()
                await self._moment()

    async def _moment(self) -> None:
        await trio.sleep(self.world.rng.choice((0.0, 0.001, 0.003, 0.01, 0.03)))

    async def _while(self) -> None:
        await trio.sleep(self.world.rng.uniform(0.05, 3.0))

    async def _long(self) -> None:
        await trio.sleep(self.world.rng.uniform(5.0, 60.0))

    # -- trouble ------------------------------------------------------------------------------------------------------

    def _victim(self) -> ModelDownstairs:
        return self.world.rng.choice(self.places)

    async def _drop(self) -> None:
        connector = self.world.rng.choice(self.side.connectors)
        if connector.wire is not None:
            self.world.say(f"  cut {connector.downstairs}")
            connector.wire.cut()

    async def _refuse(self) -> None:
        victim = self._victim()
        victim.refusing = True
        self.world.after(self.world.rng.uniform(1.0, 40.0), setattr, victim, "refusing", False)
        await self._drop()

    async def _stall(self) -> None:
        victim, duration_s = self._victim(), self.world.rng.choice((0.05, 0.5, 5.0, 30.0, 50.0, 100.0))
        self.world.say(f"  {victim} for {duration_s:g} s")
        victim.stall(duration_s)

    async def _power(self) -> None:
        self._crash_downstairs(lose_power=True)

    async def _kill(self) -> None:
        self._crash_downstairs(lose_power=False)

    def _crash_downstairs(self, *, lose_power: bool) -> None:
        rng = self.world.rng
        victims = [self._victim()] if rng.random() < 0.85 else list(self.places)
        for victim in victims:
            self.world.say(f"  {victim}")
            victim.crash(lose_power=lose_power)
            self.world.after(rng.choice((0.05, 0.5, 5.0, 30.0)), victim.restart)

    async def _slow(self) -> None:
        victim = self._victim()
        victim.slow = True
        self.world.after(self.world.rng.uniform(0.1, 20.0), setattr, victim, "slow", False)

    async def _errors(self) -> None:
        victim = self._victim()
        victim.error_rate = self.world.rng.choice((0.05, 0.3, 1.0))
        self.world.after(self.world.rng.choice((0.005, 0.05, 1.0, 20.0)), setattr, victim, "error_rate", 0.0)

    async def _blackout(self) -> None:
        """All disks begin to fail, so that no replica can be replayed to, and then the power goes."""
        for place in self.places:
            place.error_rate = 1.0
            self.world.after(1.0, setattr, place, "error_rate", 0.0)
        await self._io()
        await trio.sleep(0.05)
        for place in self.places:
            place.crash(lose_power=True)
            self.world.after(self.world.rng.choice((1.0, 20.0)), place.restart)

    async def _damage(self) -> None:
        """Bytes rot on one replica, where all hold the same."""
        if self._may_lose() and self.side.all_active():
            victim = self._victim()
            victim.storage.damage(self.world.rng.randrange(self.world.definition.total_blocks))
            victim.in_trouble()

    def _may_lose(self, victim: ModelDownstairs | None = None) -> bool:
        """Whether flushed data of (another) replica may be lost now."""
        if self.side.all_active():
            self.lost, self.registers.thin = None, False
        return self.lost in (None, victim) and not self.registers.thin

    # -- the person ---------------------------------------------------------------------------------------------------

    async def _activate(self) -> None:
        """Bring the last Upstairs into service, if it is not; goes on in the background."""
        if self.side.scope.cancel_called:
            await self._open()
        if self.side.state in (UpstairsState.INITIALIZING, UpstairsState.DISABLED) and not self._busy:
            self._background(self._activation)
            await self._moment()

    def _background(self, what: Callable[[GuestSide], Awaitable[None]]) -> None:
        side = self.side
        self._busy = True

        async def run() -> None:
            with side.scope_of_requests():
                await what(side)
            self._busy = False

        self._nursery.start_soon(run)

    async def _activation(self, side: GuestSide) -> None:
        again = side.core.state is UpstairsState.DISABLED
        if side.was_used:
            self.generation += 1
        side.was_used = True
        generation, stored = self.generation, self._stored_generation()
        self.world.say(f"  {side} activates with generation {generation}")
        try:
            await side.upstairs.activate(generation, self.world.rng.choice(ACTIVATION_TIMEOUTS_S))
        except errors.NegotiationError as error:
            if generation > max(stored, self._stored_generation()):
                self.world.violation(f"{side} is refused with generation {generation}: {error}")
            self.generation = max(self.generation, self._stored_generation()) + 1
        except (errors.IoError, errors.NoLongerActive) as error:
            self.world.say(f"  {side} not activated: {error}")
        else:
            self._took_over(side, again)

    def _stored_generation(self) -> int:
        return max(max(place.storage.gen) for place in self.places)

    def _took_over(self, side: GuestSide, again: bool) -> None:
        """``side`` has the disk now."""
        self.world.say(f"  {side} is active")
        self.world.count("activations")
        if not (self._clean and side.owns_disk):
            self.registers.doubt(to_report=again and side.owns_disk)
        self._clean = False
        side.was_activated = True
        for other in self.sides:
            other.owns_disk = other is side
        self.lost, self.registers.thin = None, False
        self.world.next_event()

    async def _deactivate(self) -> None:
        if self.side.state is UpstairsState.ACTIVE and not self._busy:
            self._background(self._deactivation)
            await self._moment()

    async def _deactivation(self, side: GuestSide) -> None:
        began, all_there = self.world.next_event(), side.all_active() and side.all_connected()
        try:
            await side.upstairs.deactivate()
        except (errors.NoLongerActive, errors.UpstairsInactive) as error:
            self.world.say(f"  {side} not deactivated: {error}")
            return
        held = self.registers.held_by([place.storage for place in self.places])
        undisturbed = all_there and all(place.faults < began for place in self.places)
        self.world.say(f"  {side} is inactive; {held} replicas hold everything")
        if undisturbed and held < 3:
            self.world.violation(f"{side} is deactivated undisturbed, and only {held} replicas hold everything")
        self._clean = held >= 2

    async def _crash(self) -> None:
        """The process of the Upstairs is gone; another one is started."""
        if not self.side.scope.cancel_called and not self._busy:
            self._crash_upstairs()
            await self._moment()
            await self._activate()

    def _crash_upstairs(self) -> None:
        self.side.crash()
        self.registers.doubt(to_report=False)
        self._clean = False

    async def _crash_in_replay(self) -> None:
        """Wait for a replica that is away to be replayed to, and crash in the middle of it."""
        side = self.side
        if any(client.state.connecting and client.state.mode is Mode.OFFLINE for client in side.core.clients):
            side.replay_begins = trio.Event()
            with trio.move_on_after(REPAIR_BEGINS_WITHIN_S):
                await side.replay_begins.wait()
            await trio.sleep(self.world.rng.choice((0.001, 0.003, 0.005, 0.01)))
            await self._crash()

    async def _takeover(self) -> None:
        """Another Upstairs activates the same disk; the one before must find itself disabled."""
        if self.side.state is UpstairsState.ACTIVE and not self._busy:
            await self._open()
            await self._activate()

    async def _destroy(self) -> None:
        """While nobody uses the disk, a replica comes back with an old copy of its region, or with an empty one."""
        rng = self.world.rng
        if self.side.state is UpstairsState.ACTIVE and not self._busy and rng.random() < 0.3:
            self._crash_upstairs()
        if not self._busy and self._nobody_uses_it():
            victim = self._victim()
            if not self._may_lose(victim):
                if not self.beyond_limits:
                    return
                self.world.count("beyond limits")
                self.registers.doubt(to_report=False, unlimited=True)
            if not self._clean:
                self.registers.doubt(to_report=False)
            self.lost = victim
            self.world.count("regions lost")
            self.world.say(f"  {victim} loses its data")
            victim.crash(lose_power=True)
            victim.storage = (
                victim.backup.copy() if victim.backup and rng.random() < 0.7 else Storage(victim.definition)
            )
            self.world.after(rng.choice((0.05, 5.0)), victim.restart)
        elif not self.lost:
            victim = self._victim()
            victim.backup = victim.storage.copy()

    def _nobody_uses_it(self) -> bool:
        return all(side.state is UpstairsState.INITIALIZING for side in self.sides)

    async def _replace(self) -> None:
        """Another Downstairs, with an empty region, takes the place of one."""
        side = self.side
        if side.scope.cancel_called or not self._may_lose():
            return
        place = self.world.rng.randrange(3)
        old, new = self.places[place], self._new_downstairs()
        try:
            result = side.upstairs.replace_downstairs(old.target, new.target)
        except errors.ReplaceRequestInvalid as error:
            self.world.say(f"  {error}")
            self.world.downstairs.remove(new)
            return
        if result is not ReplaceResult.STARTED:
            self.world.violation(f"to replace {old} by {new} has the outcome {result}")
        old.in_trouble()
        new.in_trouble()
        self.world.say(f"  {new} takes the place of {old}")
        self.world.count("replacements")
        self.places[place] = self.lost = new

    _STEPS: dict[str, Callable[[History], Awaitable[None]]] = {
        "io": _io,
        "flush": _flush,
        "snapshot": _snapshot,
        "beside repair": _beside_repair,
        "moment": _moment,
        "while": _while,
        "long": _long,
        "drop": _drop,
        "refuse": _refuse,
        "stall": _stall,
        "power": _power,
        "kill": _kill,
        "slow": _slow,
        "errors": _errors,
        "damage": _damage,
        "blackout": _blackout,
        "activate": _activate,
        "deactivate": _deactivate,
        "crash": _crash,
        "crash in replay": _crash_in_replay,
        "takeover": _takeover,
        "destroy": _destroy,
        "replace": _replace,
    }

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Everything is healed; then everything must come true."""
        self.world.say("heal")
        for downstairs in self.world.downstairs:
            downstairs.heal()
        await trio.sleep(ENDS_NOTICED_WITHIN_S)
        deadline = trio.current_time() + HEALED_WITHIN_S
        await self._until(lambda: not self._busy, deadline, "an activation or deactivation is not answered")
        while not self.side.all_active():
            if self.side.state in (UpstairsState.INITIALIZING, UpstairsState.DISABLED):
                await self._activate()
            await self._until(lambda: not self._busy, deadline, "an activation is not answered")
            if self.side.state is UpstairsState.ACTIVE:
                await self._until(self.side.all_active, deadline, "not all replicas are in service again")
        for side in self.sides[:-1]:
            self._must_have_lost_the_disk(side)
        await self._until(self._all_answered, deadline, "requests are not answered")
        await self._read_back()

    def _must_have_lost_the_disk(self, side: GuestSide) -> None:
        """*Safety*: an Upstairs that was taken over has no connection. It knows why, but for one that had no connection
        at the time: that one is refused without a word ever after (wire-protocol.md §6.4)."""
        for client, replica in zip(side.core.clients, side.replicas):
            serves = client.state.phase in (Phase.ACTIVE, Phase.LIVE_REPAIR) and not side.scope.cancel_called
            if serves and replica in self.places:
                self.world.violation(f"{side} was taken over and still has {replica}")
        if side.state is not UpstairsState.DISABLED:
            side.crash()

    def _all_answered(self) -> bool:
        return not any(side.waiting for side in self.sides if not side.scope.cancel_called)

    async def _until(self, condition: Callable[[], bool], deadline: float, complaint: str) -> None:
        while not condition():
            if trio.current_time() > deadline:
                self.world.violation(f"{complaint}, {HEALED_WITHIN_S:.0f} s after the healing; {self._standing()}")
            await trio.sleep(0.5)

    def _standing(self) -> str:
        """What everybody is doing, for a complaint."""
        side = self.side
        found = [f"{side} is {side.state.value}", *(f"{client.state}" for client in side.core.clients)]
        found += [check.text for side in self.sides if not side.scope.cancel_called for check in side.waiting][:3]
        for downstairs in self.places:
            for connection in downstairs.connections:
                found += [
                    f"{downstairs} holds job {job}, which waits for {missing}"
                    for job, missing in connection.never_to_come()
                ]
        return "; ".join(found)

    async def _read_back(self) -> None:
        side, total = self.side, self.world.definition.total_blocks
        self._submit_flush()
        deadline = trio.current_time() + HEALED_WITHIN_S
        await self._until(self._all_answered, deadline, "the last flush is not answered")
        size = self.world.definition.blocks_per_extent
        side.submit([(Kind.READ, start, min(size, total - start), False, 0) for start in range(0, total, size)])
        await self._until(self._all_answered, deadline, "the last reads are not answered")
        await trio.sleep(2 * self._flush_interval_s + 1)
        if len(side.core.jobs):
            self.world.violation(
                f"{len(side.core.jobs)} jobs are left after the last flush: {list(side.core.jobs)[:3]}"
            )
        await side.upstairs.deactivate()
        first, *others = [place.storage for place in self.places]
        for place, storage in zip(self.places[1:], others):
            if storage.values() != first.values():
                self.world.violation(f"{self.places[0]} and {place} differ: {first.values()} {storage.values()}")
            if (storage.gen, storage.flush) != (first.gen, first.flush):
                if self.world.counts.get("replays"):
                    # A flush that is repeated stamps what was written after it (wire-protocol.md §7.9): the numbers of
                    # equal extents then differ.
                    self.world.count("numbers apart after a replay")
                    continue
                numbers = [list(zip(each.gen, each.flush)) for each in (first, storage)]
                self.world.violation(f"{self.places[0]} and {place} differ in generation or flush number: {numbers}")
        if any(any(place.storage.dirty) for place in self.places):
            self.world.violation("a replica is dirty after the deactivation")
