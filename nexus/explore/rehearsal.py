"""What runs have in common is asked of the database once: later ones recall what their first transactions came to.

All cases with one interference begin alike, and most of the time of a run is spent in the database. So the first run
that comes by writes down what each transaction returned, and keeps an image of the database at each instant at which
something will interfere. A later run does everything again but the transactions: it is told what they returned, and
where its course parts from what is known, it fills the database with the image of that instant (*optimisation*).

Why that is safe: a run depends on its case alone, so what two of them do until their interferences differ is the same,
to the order in which tasks are scheduled; and a transaction's body has no effect but on the database and what it draws
of ids, ticks and chance, which is put where it was. What is known depends on the set-up, on the interferences that have
happened (:class:`Beginning` is kept by these), and on the code: it lasts for one call of
:func:`nexus.explore.run.run_cases`. Each recalled transaction is the same code as the one that ran, or the run breaks
off with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Protocol

from nexus.db.database import Attempt, Body, Database
from nexus.db.engines import Lanes
from nexus.explore.cases import Case, Interference, Moment

Happened = tuple[Interference, ...]


class Draws(Protocol):
    """Who gives ids, ticks and chance. ``counted``: what of ``drawn`` is there without asking for chance."""

    counted: Any
    drawn: Any

    @property
    def draws(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Done:
    """A transaction that came to its end. ``drawn``: where chance stood after it, if it drew any."""

    code: Any
    attempt: Attempt[Any]
    counted: Any
    drawn: Any


@dataclass(slots=True)
class Beginning:
    """What every run does between two interferences. ``images``: the database after so many transactions.
    ``expected``: the moments at which some run goes another way, and which no run has come by yet."""

    expected: set[Moment]
    images: dict[int, bytes] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)


class Recalling(Database):
    """The database of the explorer. ``course``: that of the run that has it now."""

    course: Course | None = None

    def attempt(self, lanes: Lanes, body: Body[Any], after_body: Body[None] | None, number: int) -> Attempt[Any]:
        course = self.course
        if course is None or course.aside:
            return super().attempt(lanes, body, after_body, number)
        ask = super().attempt
        return course.attempt(body, lambda: ask(lanes, body, after_body, number))


class Rehearsal:
    """What is known of runs of a scenario. ``cases``: what is run of it, and what is left of that without some
    interferences. ``image``: the database after the set-up."""

    def __init__(self, scenario: str, cases: Iterable[Case], image: bytes) -> None:
        self._expected: dict[Happened, set[Moment]] = {}
        for happened in dict.fromkeys(_parts(case for case in cases if case.scenario == scenario)):
            for place, each in enumerate(happened):
                self._expected.setdefault(happened[:place], set()).add(each.moment)
        self._known: dict[Happened, Beginning] = {}
        self._image = image

    def beginning(self, happened: Happened, image: bytes | None = None) -> Beginning:
        """Of the runs in which that much has happened. ``image``: the database then, needed for the first of them."""
        found = self._known.get(happened)
        if found is None:
            found = Beginning(set(self._expected.get(happened, ())))
            found.images[0] = self._image if image is None else image
            if found.expected:
                self._known[happened] = found
        return found


def _parts(cases: Iterable[Case]) -> Iterable[Happened]:
    for case in cases:
        for count in range(1, len(case.interferences) + 1):
            yield from combinations(case.interferences, count)


class Course:
    """What one run does and recalls. ``aside``: what the database is asked now is no part of the run."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._happened: Happened = ()
        self._now = rehearsal.beginning(())
        self._place = 0
        self._real = False
        self._noting = True
        self.aside = False
        self._rack: Draws
        self._database: Recalling

    def begin(self, rack: Draws, database: Recalling) -> None:
        """Nothing was asked yet."""
        self._rack, self._database = rack, database
        database.course = self

    def attempt(self, body: Body[Any], ask: Callable[[], Attempt[Any]]) -> Attempt[Any]:
        """Recall what the transaction came to; ask, and note it, where no run has."""
        if not self._real:
            if self._place < len(self._now.done):
                return self._recalled(body)
            self._become_real()
        if not self._noting:
            return ask()
        draws = self._rack.draws
        attempt = ask()
        drawn = None if self._rack.draws == draws else self._rack.drawn
        kept = replace(attempt, tally=replace(attempt.tally), value=fresh(attempt.value))
        self._now.done.append(Done(_code(body), kept, self._rack.counted, drawn))
        self._place += 1
        return attempt

    def _recalled(self, body: Body[Any]) -> Attempt[Any]:
        done = self._now.done[self._place]
        if _code(body) is not done.code:
            raise RuntimeError(f"a run asks {body}, where another that began like it asked {done.code}")
        self._place += 1
        if done.drawn is None:
            self._rack.counted = done.counted
        else:
            self._rack.drawn = done.drawn
        attempt = done.attempt
        error = None if attempt.error is None else attempt.error.with_traceback(None)
        return replace(attempt, value=fresh(attempt.value), error=error)

    def _become_real(self) -> None:
        self.aside = True
        self._database.fill(self._now.images[self._place])
        self.aside = False
        self._real = True
        # What no run will need is not noted: whoever comes that far goes on by itself.
        self._noting = bool(self._now.expected)

    def come_by(self, moment: Moment) -> None:
        """At ``moment`` other runs may go another way."""
        if moment not in self._now.expected:
            return
        self._now.expected.discard(moment)
        self._keep_image()
        if self._real:
            self._noting = bool(self._now.expected)

    def part(self, interference: Interference) -> None:
        """It happens now, at a moment that was come by."""
        self._happened += (interference,)
        known = self._now.images.get(self._place)
        self._now = self._rehearsal.beginning(self._happened, known)
        self._place = 0
        self._noting = bool(self._now.expected)

    def end(self) -> None:
        """No moment comes any more."""
        if self._real and self._noting:
            self._keep_image()
            self._noting = False
            self._now.expected.clear()

    def _keep_image(self) -> None:
        if self._place in self._now.images:
            return
        if not self._real:
            raise RuntimeError("an instant that is known has its image")
        self.aside = True
        self._now.images[self._place] = self._database.image()
        self.aside = False


def _code(body: Any) -> Any:
    return getattr(body, "__code__", None)


def fresh(value: Any) -> Any:
    """The same for somebody else: what may be changed is not shared. All else that bodies return is immutable."""
    match value:
        case list():
            return [fresh(each) for each in value]
        case dict():
            return {name: fresh(each) for name, each in value.items()}
        case set():
            return set(value)
    return value
