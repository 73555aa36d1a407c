"""Which cases there are: every operation at every moment, one interference at a time; pairs; and chance.

The moments are those that a run without interference comes by, and for undos one in which the last action fails. Two
of them are the same instant, and only one is run: *after-record* of a node after which one node alone comes, and that
one's *before-node*. At *after-effect* each operation is tried twice: the saga goes on, or its Nexus dies and the node
runs again in a world that has changed.

What it guarantees: the list depends on the recipes and scenarios alone, not on who runs which part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from random import Random

from nexus.explore.cases import BEFORE_EFFECT, Case, Interference, Moment
from nexus.explore.operations import (
    AT_EFFECT_ONLY,
    COMPETE,
    CRASH,
    CRASH_RESTART,
    ERROR,
    SECOND_NEXUS,
    TWICE,
    WITHOUT_RIVAL,
)
from nexus.explore.run import passed_by
from nexus.explore.scenarios import ALONE, SCENARIOS, Scenario
from nexus.saga.dag import Dag
from nexus.sagas import ALL_SAGAS

FORWARD = ("before-node", "after-effect", "after-record")
UNDOING = ("before-undo", "after-undo-effect")
STANDING_STILL = (CRASH, CRASH_RESTART, SECOND_NEXUS)
AT_EFFECT_ONLY_IN_ORDER = tuple(sorted(AT_EFFECT_ONLY))
_DAGS = {saga.name: Dag.of(saga) for saga in ALL_SAGAS}


def moments(scenario: Scenario) -> list[Moment]:
    """What the scenario's sagas come by, once each, without those that are the same instant as another."""
    found = dict.fromkeys(each for each in next(passed_by(scenario.name, [()])) if _wanted(scenario, each))
    return [each for each in found if not _same_as_before(each)]


def _wanted(scenario: Scenario, moment: Moment) -> bool:
    return not scenario.sagas or moment.saga in scenario.sagas


def _same_as_before(moment: Moment) -> bool:
    if moment.point != "before-node":
        return False
    dag = _DAGS[moment.saga]
    before = dag.vertices[moment.label].after
    return len(before) == 1 and len(list(dag.waiting_for(before[0]))) == 1


def last_action(saga: str) -> str | None:
    """The last node that does anything, where the saga has an undo at all: when it fails, everything is undone."""
    dag = _DAGS[saga]
    if not any(each.undo for each in dag.vertices.values()):
        return None
    return [label for label, each in dag.vertices.items() if each.action is not None][-1]


def one(scenario: Scenario) -> Iterator[Case]:
    """Every case with one interference, and none; of a variation, one in so many."""
    return every_nth(every(scenario), scenario.stride)


def every(scenario: Scenario) -> Iterator[Case]:
    """Every case with one interference, and none."""
    yield Case(scenario.name)
    found = moments(scenario)
    for moment in found:
        yield from _at(scenario, moment)
    yield from _while_undoing(scenario, dict.fromkeys((each.saga, each.nth) for each in found))


def _at(scenario: Scenario, moment: Moment) -> Iterator[Case]:
    def case(*names: str) -> Case:
        return Case(scenario.name, tuple(Interference(moment, name) for name in names))

    if moment.point == BEFORE_EFFECT:
        for name in (*AT_EFFECT_ONLY_IN_ORDER, *STANDING_STILL):
            yield case(name)
        return
    for name in scenario.operations:
        yield case(name)
        if moment.point == "after-effect":
            yield case(name, CRASH)
    if moment.point != "before-node":
        for name in STANDING_STILL:
            yield case(name)
    if moment.saga not in WITHOUT_RIVAL:
        yield case(COMPETE)


def _while_undoing(scenario: Scenario, sagas: Iterable[tuple[str, int]]) -> Iterator[Case]:
    lasts = [(saga, last_action(saga), nth) for saga, nth in sagas]
    failing = [Interference(Moment(saga, last, BEFORE_EFFECT, nth), ERROR) for saga, last, nth in lasts if last]
    for each, passed in zip(failing, passed_by(scenario.name, [(each,) for each in failing]), strict=True):
        saga = (each.moment.saga, each.moment.nth)
        for moment in dict.fromkeys(one for one in passed if (one.saga, one.nth) == saga and one.point in UNDOING):
            for name in (*scenario.operations, CRASH, SECOND_NEXUS):
                yield Case(scenario.name, (each, Interference(moment, name)))


def pairs(scenario: Scenario, per_moment: int, seed: int) -> Iterator[Case]:
    """Cases with two interferences: for each first moment so many second ones, drawn by ``seed``."""
    random = Random(f"{seed}/{scenario.name}")
    singles = [case for case in every(scenario) if len(case.interferences) == 1]
    for first in dict.fromkeys(case.interferences[0].moment for case in singles):
        for _ in range(per_moment):
            yield Case(scenario.name, drawn(random, singles, 2, first))


def chance(count: int, seed: int, scenarios: Sequence[Scenario], most: int = 4) -> Iterator[Case]:
    """``count`` cases of up to ``most`` interferences. The nth depends on ``seed`` and n alone."""
    singles: dict[str, list[Case]] = {}
    scenarios = [each for each in scenarios if each.sagas != ALONE]
    for number in range(count if scenarios else 0):
        random = Random(f"{seed}/{number}")
        scenario = random.choice(scenarios)
        if scenario.name not in singles:
            singles[scenario.name] = [case for case in every(scenario) if case.interferences]
        yield Case(scenario.name, drawn(random, singles[scenario.name], random.randint(2, most)))


def drawn(random: Random, singles: list[Case], count: int, first: Moment | None = None) -> tuple[Interference, ...]:
    """Interferences out of ``singles``, in the order in which their moments come; ``first``: one of the moments."""
    places = {moment: place for place, moment in enumerate(dict.fromkeys(_moments_of(singles)))}
    chosen = [random.choice(singles).interferences[-1] for _ in range(count)]
    if first is not None:
        chosen[0] = random.choice([case for case in singles if case.interferences[0].moment == first]).interferences[0]
    done = {each.moment for each in chosen if each.operation == TWICE}
    # An action that ran already does not fail "before it has done anything".
    possible = [each for each in chosen if each.operation != ERROR or each.moment not in done]
    return tuple(sorted(possible, key=lambda each: places[each.moment]))


def _moments_of(singles: list[Case]) -> Iterator[Moment]:
    for case in singles:
        for each in case.interferences:
            yield each.moment


def every_nth(cases: Iterable[Case], nth: int) -> Iterator[Case]:
    """A sample: the first case, and every nth after it."""
    return islice(cases, 0, None, nth)


def scenarios_named(names: Sequence[str]) -> list[Scenario]:
    """All of them where none is named. Raises :class:`KeyError`."""
    return [SCENARIOS[name] for name in names] if names else list(SCENARIOS.values())
