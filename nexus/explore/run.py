"""One run of a case: the scenario, its interferences, then rest, then the end of everything; and what was wrong.

The course of a run: the rack is made from the image of its set-up, a Nexus with hooks starts, the prelude and the story
run, and at the moments of the case the operations do. Then all troubles end, and all background tasks run in rounds
until a round changes nothing: that is *rest*, and everything must be as it should. Then all things are deleted, and
after rest nothing may be left.

What it guarantees: a run depends on its case alone. It runs under the clock of :class:`trio.testing.MockClock`, with
Trio's shuffling seeded, without threads, sockets and files; two runs of a case leave the same trace. An operation that
changed nothing leaves nothing but a line in the story: what it drew of ids and chance is put back. So such a case and
the one without the operation are the same run, and only one of them is run (:func:`run_cases`).
"""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
import trio.testing
from blake3 import blake3
from sqlalchemy import Connection, select

from crucible_emu.sim.trio_seed import seeded_scheduling
from nexus.db import DatabaseError, schema
from nexus.explore import operations, users, verdicts
from nexus.explore.cases import BEFORE_EFFECT, POINTS, Case, Moment
from nexus.explore.operations import MISFORTUNES, USERS, Operation, task_operations
from nexus.explore.processes import Process, Processes
from nexus.explore.rack import Image, Rack
from nexus.explore.rehearsal import Course, Happened, Rehearsal
from nexus.explore.results import Result
from nexus.explore.scenarios import SCENARIOS, SETUPS, Scenario
from nexus.explore.standing import Standing
from nexus.explore.state import digest_of
from nexus.replacement.notes import survivor_decide, waiting_of
from nexus.saga import ActionFailed, Fenced, SagaFailed, SagaState, SagaStuck
from nexus.saga.hooks import Crash, Point
from nexus.sagas import ALL_SAGAS
from nexus.services import Gone, ServiceRefused
from nexus.volumes.repair_lock import PATIENCE

_OPEN = schema.region_replacement.c.replacement_state != "complete"
_DECISION = re.compile(r"needs an operator's decision: region (?P<region>[0-9a-f-]{36})")
RECIPES = {saga.name: saga for saga in ALL_SAGAS}
SEED = 1
ROUND_PAUSE_S = 120.0
ROUNDS_MAX = 40
ROUNDS_IN_USE = 12
PROPER = (ActionFailed, SagaFailed, SagaStuck, Fenced, DatabaseError, Gone, ServiceRefused)
"""What a user or task may be told instead of success."""


@dataclass
class Outcome:
    """What came of a run. ``story``: who did what, in order. ``passed``: every moment that the sagas came by.
    ``happened``: the operations of the case that were done. ``state``: the digest of the state in which the sagas have
    ended, and ``afterwards`` the place in the story of what came then."""

    case: Case
    violations: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    passed: list[Moment] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    state: str = ""
    afterwards: int = 0

    def result(self) -> Result:
        """It in words that travel between processes."""
        course = blake3("\n".join([*map(str, self.passed), self.state]).encode()).hexdigest()
        fired = len(self.happened) == len(self.case.interferences)
        return Result(str(self.case), tuple(self.violations), tuple(self.story), course, fired, self.afterwards)


class Interferer:
    """Stands at the hooks of the first Nexus and does what the case says there."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._left = list(outcome.case.interferences)
        self.names: dict[str, str] = {}
        self.order: dict[str, int] = {}
        self._seen: Counter[str] = Counter()
        self.on_nothing_changed: Callable[[int], Awaitable[None]] | None = None
        """Called where an operation changed nothing, with the place of its lines in the story."""
        self.act: Callable[[str, str], Awaitable[bool]] | None = None
        """Does an operation, beside the saga of an id; whether anything is different now."""
        self.course: Course | None = None
        self.armed = False

    def moment(self, saga_id: str, label: str, point: str) -> Moment:
        name = self.names[saga_id]
        if saga_id not in self.order:
            self._seen[name] += 1
            self.order[saga_id] = self._seen[name]
        return Moment(name, label, point, self.order[saga_id])

    def due(self, moment: Moment) -> Iterator[str]:
        """The operations that happen now, which are those that come next."""
        course = self.course
        while True:
            if course is not None:
                course.come_by(moment)
            if not self._left or self._left[0].moment != moment:
                return
            if course is not None:
                course.part(self._left[0])
            yield self._left.pop(0).operation

    async def hook(self, point: Point, saga_id: str, label: str) -> None:
        if not self.armed:
            return
        moment = self.moment(saga_id, label, POINTS[point])
        self.outcome.passed.append(moment)
        for operation in self.due(moment):
            await self._happen(moment, operation, saga_id)

    async def _happen(self, moment: Moment, operation: str, saga_id: str) -> None:
        assert self.act is not None
        place = len(self.outcome.story)
        self.outcome.happened.append(operation)
        self.outcome.story.append(f"at {moment}: {operation}")
        changed = await self.act(operation, saga_id)
        if not changed and self.on_nothing_changed is not None:
            await self.on_nothing_changed(place)

    async def perform(self, work: Any, vertex: Any, context: Any) -> Any:
        """Stands in the executor between the record of a node's start and its action."""
        if not self.armed or work is not vertex.action:
            return await work(context)
        moment = self.moment(context.saga_id, vertex.label, BEFORE_EFFECT)
        self.outcome.passed.append(moment)
        for operation in self.due(moment):
            if operation == operations.ERROR:
                self.outcome.happened.append(operation)
                self.outcome.story.append(f"at {moment}: its action fails")
                raise ActionFailed("injected by the explorer", "injected")
            if operation == operations.TWICE:
                self.outcome.happened.append(operation)
                self.outcome.story.append(f"at {moment}: its action runs twice")
                await work(context)
            else:
                await self._happen(moment, operation, context.saga_id)
        return await work(context)


class Run:
    """One run, from the image to the verdict."""

    def __init__(self, case: Case, image: Image, *, shortcut: bool = False, course: Course | None = None) -> None:
        self.scenario: Scenario = SCENARIOS[case.scenario]
        self.outcome = Outcome(case)
        self._image = image
        self._interferer = Interferer(self.outcome)
        self._interferer.course = self._course = course
        if shortcut:
            self._interferer.on_nothing_changed = self._go_no_further
        self.alike: tuple[Case, int, tuple[str, ...]] | None = None
        """Of a run that went no further: the case that comes to the same, and where in its story what stands."""
        self.rack: Rack
        self.processes: Processes

    async def go(self, *, to_the_end: bool = True) -> None:
        async with trio.open_nursery() as nursery:
            self.rack = Rack(nursery, self._image, self._course)
            self.processes = Processes(self.rack, nursery)
            self._note_names()
            self._interferer.act = self._act
            first = await self.processes.start(hooks=self._interferer.hook, perform=self._interferer.perform)
            await self._attempt("the prelude", lambda: self.scenario.prelude(first))
            self._interferer.armed = True
            with first.lifetime:
                await self._attempt("the story", lambda: self.scenario.story(first))
            await self._attempt("the sagas of the story", self._settle)
            self._interferer.armed = False
            if self._course is not None:
                self._course.end()
            if to_the_end:
                await self._end()
            nursery.cancel_scope.cancel()

    async def _go_no_further(self, place: int) -> None:
        self.alike = self.outcome.case.without(len(self.outcome.happened) - 1), place, tuple(self.outcome.story[place:])
        self.rack.nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    def _note_names(self) -> None:
        """Hooks are told ids of sagas; people want their names."""
        create, names = self.processes.store.create, self._interferer.names

        class Noting:
            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            async def create(self, record: Any) -> None:
                names[record.id] = record.name
                await create(record)

        store = self.processes.store
        self.processes.store = Noting()  # type: ignore[assignment]

    async def _attempt(self, what: str, work: Callable[[], Awaitable[Any]]) -> bool:
        """Do it; whether it was done. That it fails properly is part of the story."""
        try:
            await work()
        except PROPER as error:
            self.outcome.story.append(f"{what} ends: {error}")
            return False
        except trio.TooSlowError:
            self.outcome.violations.append(f"{what} does not come to an end")
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.outcome.violations.append(f"{what} failed unexpectedly: {error!r}")
            return False
        return True

    async def _settle(self) -> None:
        for process in self.processes.known:
            if process.alive:
                await process.settle()

    # -- what happens at a moment -------------------------------------------------------------------------------------

    async def _act(self, operation: str, saga_id: str) -> bool:
        first = self.processes.known[0]
        # To its end: where a branch beside this one hears that the saga is another's, this one is cancelled with it.
        # But not beyond the death of the Nexus, which a branch beside this one may come by, too.
        with trio.CancelScope(shield=True) as scope:
            first.held_up.add(scope)
            changed = await self._do(operation, saga_id, first)
        first.held_up.remove(scope)
        if scope.cancelled_caught:
            await trio.sleep_forever()  # cancelled, as all that the dead one was at
        return changed

    async def _do(self, operation: str, saga_id: str, first: Process) -> bool:
        before = Standing.of(self.rack, self.processes)
        match operation:
            case operations.CRASH | operations.CRASH_RESTART:
                first.die()
                raise Crash
            case operations.SECOND_NEXUS:
                await self._attempt("the second Nexus", lambda: self._take_over(first))
            case operations.COMPETE:
                await self._attempt("the competing saga", lambda: self._compete(first, saga_id))
            case _:
                done = await self._attempt(operation, lambda: table(first)[operation](first))
                self.outcome.story.append(f"{operation}: {'done' if done else 'refused'}")
        await self._settle_others()
        return before.changed(self.rack, self.processes)

    async def _take_over(self, first: Process) -> None:
        await self.processes.leases.retire(first.name)
        second = await self.processes.start()
        await second.activate("saga_recovery")
        await self.processes.leases.register(first.name)

    async def _compete(self, first: Process, saga_id: str) -> None:
        record, _ = await self.processes.store.load(saga_id)
        recipe = RECIPES[record.name]
        fresh = {name: self.rack.id() for name in operations.DRAWN_BY_CALLERS.get(record.name, ())}
        second = await self.processes.start()
        await second.executor.run(recipe, recipe.params.model_validate(record.params | fresh))

    async def _settle_others(self) -> None:
        for process in self.processes.known:
            if process.alive and process is not self.processes.known[0]:
                await process.settle()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        self._heal()
        found: list[Process] = []
        if not await self._attempt("recovery", lambda: self._recover(found)):
            return
        await self._attempt("the sagas of all", self._settle)
        self.outcome.afterwards = len(self.outcome.story)
        state = digest_of(self.rack)
        self.outcome.state = state or ""
        await self._known_from(state, lambda: self._rest_and_end(found[0]))

    async def _rest_and_end(self, process: Process) -> None:
        if await self.rest(process):
            state = digest_of(self.rack)
            at_rest = None if state is None else f"{state} at rest"
            await self._known_from(at_rest, lambda: self._judge_and_delete(process))

    async def _known_from(self, state: str | None, find_out: Callable[[], Awaitable[None]]) -> None:
        """What is to be told and found from a state on: found out once, if the state says all (*optimisation*)."""
        known = None if state is None else _known.get(state)
        if known is None:
            said, found_before = len(self.outcome.story), len(self.outcome.violations)
            await find_out()
            known = tuple(self.outcome.story[said:]), tuple(self.outcome.violations[found_before:])
            if state is not None:
                _known[state] = known
            return
        self.outcome.story += known[0]
        self.outcome.violations += known[1]

    async def _judge_and_delete(self, process: Process) -> None:
        """What a state at rest is worth: whether everything is as it must be, and can be deleted."""
        wrong = await verdicts.at_rest(self.rack)
        self._judge("at rest", wrong)
        # Only for that: what is found from here on is kept for every run that comes to this state.
        if wrong:
            return
        for _ in range(2):
            if await self._attempt("deleting everything", lambda: users.delete_everything(process)):
                break
            await self.rest(process)
        else:
            self.outcome.violations.append(f"not everything can be deleted: {self.outcome.story[-1]}")
            return
        # Who waits for the lock of a volume that is gone loses its place after a while.
        await trio.sleep(2 * PATIENCE.total_seconds())
        if await self.rest(process):
            self._judge("in the end", await verdicts.nothing_left(self.rack))

    async def _recover(self, found: list[Process]) -> None:
        """Find a Nexus that lives, and have it go on with what dead ones left."""
        first = self.processes.known[0]
        restart = operations.CRASH_RESTART in self.outcome.happened
        if not first.alive and restart:
            self.processes.known.remove(first)
            found.append(await self.processes.start(name=first.name))
            await found[0].activate("saga_recovery")
            return
        found.append(await self.processes.living())

    def _heal(self) -> None:
        for sled in self.rack.fabric.sleds:
            sled.trouble.silent, sled.trouble.slow_s = False, 0.0
            sled.trouble.lost_answers = sled.trouble.refusals = 0
        self.rack.mute = 0

    async def rest(self, process: Process) -> bool:
        """Run all tasks until nothing changes; whether that came to an end."""
        statistics = self.rack.database.statistics
        for number in range(ROUNDS_MAX):
            if number == ROUNDS_IN_USE:
                await self._give_disks_up(process)
            # What goes on by itself comes to its end: repairs, silences, the patience of who waits in a line.
            await trio.sleep(ROUND_PAUSE_S)
            before = statistics().rows_written
            await self._attempt("an operator", lambda: self._resume_stuck(process))
            for name in process.tasks:
                if not await self._attempt(f"task {name}", lambda one=name: process.activate(one)):  # type: ignore[misc]
                    return False
            passed_over = bool(getattr(process.tasks.get("resume_volume_deletion"), "_left", None))
            if not passed_over and statistics().rows_written == before:
                return True
        self.outcome.violations.append(f"no rest after {ROUNDS_MAX} rounds of all tasks")
        self._judge("without rest", await verdicts.at_rest(self.rack))
        return False

    async def _give_disks_up(self, process: Process) -> None:
        """*Liveness*: some rests are a person's to bring about."""
        for what, way in users.ways_to_give_disks_up(process):
            self.outcome.story.append(f"an operator {what}")
            await self._attempt(what, way)

    async def _resume_stuck(self, process: Process) -> None:
        """What an operator does where an undo failed: have it tried again. That it failed is no finding only where an
        agent said so."""
        for record in await self.processes.store.page(limit=100, state=SagaState.STUCK):
            if operations.REFUSED not in self.outcome.happened:
                self.outcome.violations.append(f"saga {record.name} is stuck, and no agent refused anything")
            await process.executor.resume(record.id)
        await process.settle()
        await self.rack.database.transact(self._decide)

    def _decide(self, connection: Connection) -> None:
        """What an operator says of a survivor that is asked about: it is to be believed. Here that is true."""
        for row in connection.execute(select(schema.region_replacement).where(_OPEN)):
            waiting = waiting_of(connection, row.id)
            asked = None if waiting is None else _DECISION.search(waiting.reason)
            if asked is not None:
                survivor_decide(connection, row.volume_id, asked["region"], self.rack.now())

    def _judge(self, when: str, found: list[str]) -> None:
        self.outcome.violations += [f"{when}: {each}" for each in found]


def table(process: Process) -> dict[str, Operation]:
    """Every operation but those about the saga itself."""
    return USERS | MISFORTUNES | task_operations(list(process.tasks))


_known: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
"""What was told and found from each state on."""
_images: dict[str, Image] = {}


def image_of(setup: str) -> Image:
    """The rack after a set-up; made once in each process."""
    if setup not in _images:
        _images[setup] = _in_a_loop(lambda: _set_up(setup))
    return _images[setup]


async def _set_up(setup: str) -> Image:
    async with trio.open_nursery() as nursery:
        rack = Rack(nursery)
        processes = Processes(rack, nursery)
        process = await processes.start()
        await SETUPS[setup](process)
        await processes.leases.retire(process.name)
        image = rack.keep()
        nursery.cancel_scope.cancel()
    return image


def run_case(case: Case) -> Outcome:
    """What comes of it."""
    run = Run(case, image_of(SCENARIOS[case.scenario].setup))
    with _collecting_later():
        _in_a_loop(run.go)
    return run.outcome


def passed_by(scenario: str, each_of: Sequence[Happened]) -> Iterator[list[Moment]]:
    """Every moment that the sagas come by, with each of these interferences."""
    image, cases = image_of(SCENARIOS[scenario].setup), [Case(scenario, each) for each in each_of]
    rehearsal = Rehearsal(scenario, cases, image.rows)
    for case in cases:
        run = Run(case, image, course=Course(rehearsal))
        with _collecting_later():
            _in_a_loop(partial(run.go, to_the_end=False))
        yield run.outcome.passed


def run_cases(cases: Sequence[Case]) -> list[Result]:
    """What comes of cases, in their order: as of :func:`run_case`, and faster (*optimisation*). Where an operation
    changed nothing, the run goes no further; what runs begin with is asked once (:mod:`nexus.explore.rehearsal`)."""
    known: dict[Case, Result] = {}
    names = {case.scenario for case in cases}
    rehearsals = {name: Rehearsal(name, cases, image_of(SCENARIOS[name].setup).rows) for name in names}
    return [_result_of(case, known, rehearsals[case.scenario]) for case in cases]


def _result_of(case: Case, known: dict[Case, Result], rehearsal: Rehearsal) -> Result:
    if case not in known:
        run = Run(case, image_of(SCENARIOS[case.scenario].setup), shortcut=True, course=Course(rehearsal))
        with _collecting_later():
            _in_a_loop(run.go)
        if run.alike is None:
            known[case] = run.outcome.result()
        else:
            fewer, place, lines = run.alike
            known[case] = _result_of(fewer, known, rehearsal).with_nothing_more(case, place, lines)
    return known[case]


def prepare() -> None:
    """Make every set-up, before anything is taken out."""
    for setup in SETUPS:
        image_of(setup)


def forget_states() -> None:
    """What was found is not so any more: the code has changed (:mod:`nexus.explore.without`)."""
    _known.clear()


@contextmanager
def _collecting_later() -> Iterator[None]:
    """*Optimisation*: a run makes few circles of objects, and SQLAlchemy so many objects that looking for circles takes
    a tenth of the time. What was there after the first runs stays, and is not looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _runs[0] += 1
        if _runs[0] % COLLECT_EVERY == 0:
            gc.collect()
        if _runs[0] == COLLECT_EVERY:
            gc.freeze()


COLLECT_EVERY = 25
_runs = [0]


def _in_a_loop(work: Callable[[], Awaitable[Any]]) -> Any:
    with quietly(), seeded_scheduling(SEED):
        return trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def quietly() -> Iterator[None]:
    """Without logs: what Nexus would log of thousands of deaths nobody reads."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
