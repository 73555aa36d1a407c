"""Many cases as one run: the process is forked where they part, and where nothing changes they stay one.

What it is for: thousands of cases begin alike. All cases with one interference are the run without any, up to their
moment; so that run is done once, and at each moment a child is forked for each operation that some case has there. A
case with two interferences parts from its first one's child, and so on. A child whose operation changed nothing
(:mod:`nexus.explore.standing`) need not go on: what follows is what follows in its parent.

What it guarantees: each case has the same result, to the last byte of its trace, as when it runs by itself. That is so
because a run depends on its case alone: no thread, no socket, no file, no clock and no chance of the machine is in it,
and so a forked process goes on as its parent would have.

A child never returns to whoever called: it writes its results into a pipe, and is gone. Its parent waits meanwhile, so
one process at a time is at work.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nexus.explore.cases import Case, Interference, Moment
from nexus.explore.results import Result


class BranchDied(BaseException):
    """A child ended without a result; what it said stands in the error stream. Not an :class:`Exception`: no saga in
    between is to take it for the failure of an action."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a child tells: all results, and what it found out of states at rest that were new to it."""

    results: dict[Case, Result]
    learned: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NothingChanged:
    """What a child tells that is at the end already: the lines of the story that its operation came to."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alike:
    """``case`` is ``fewer`` with an operation that changed nothing: ``lines`` at ``place`` of the story."""

    case: Case
    fewer: Case
    place: int
    lines: tuple[str, ...]


class Branches:
    """The cases that are to be run from here on, which are all alike so far. ``case``: what happened so far.
    ``learned``: what was found out of states at rest, which children pass on to their parents."""

    def __init__(self, cases: Sequence[Case], learned: dict[str, Any]) -> None:
        self.case = Case(cases[0].scenario)
        self.results: dict[Case, Result] = {}
        self._learned = learned
        self._known_before = len(learned)
        self._alike: list[Alike] = []
        self._parent: int | None = None
        """The pipe to the parent; ``None`` in the first process."""
        self._ended: set[Case] = set()
        self._wanted: list[Case] = []
        self._open: list[Case] = []
        for case in dict.fromkeys(cases):
            self._add(case)

    def _add(self, case: Case) -> None:
        (self._wanted if case == self.case else self._open).append(case)

    def part(self, moment: Moment, story: list[str]) -> str | None:
        """Fork for all operations that come at this moment. Returns the operation that this process is to do now, or
        ``None``: it goes on without one. Raises :class:`BranchDied`."""
        depth = len(self.case.interferences)
        while True:
            here = next((each for each in self._open if each.interferences[depth].moment == moment), None)
            if here is None:
                return None
            which = here.interferences[depth]
            group = [each for each in self._open if each.interferences[depth] == which]
            self._open = [each for each in self._open if each.interferences[depth] != which]
            told = self._fork(which, group)
            if told is None:
                return which.operation
            self._ended.update(group)
            if isinstance(told, Ended):
                self.results.update(told.results)
                self._learned.update(told.learned)
                continue
            for case in group:
                fewer = case.without(depth)
                self._alike.append(Alike(case, fewer, len(story), told.lines))
                if fewer not in self._ended and fewer not in self._open and fewer not in self._wanted:
                    self._add(fewer)

    def _fork(self, which: Interference, group: list[Case]) -> Ended | NothingChanged | None:
        """``None`` in the child; in the parent what it told."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            if self._parent is not None:
                os.close(self._parent)
            self._parent = writing
            self.case = Case(self.case.scenario, (*self.case.interferences, which))
            self.results, self._alike, self._ended = {}, [], set()
            self._known_before = len(self._learned)
            self._wanted, self._open = [], []
            for case in group:
                self._add(case)
            return None
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if status or not said:
            raise BranchDied(f"the branch {which} of {self.case} ended with {status}")
        told: Ended | NothingChanged = pickle.loads(said)
        return told

    def nothing_changed(self, lines: Sequence[str]) -> None:
        """The operation that this process was forked for has changed nothing: that is all there is to tell."""
        self._tell(NothingChanged(tuple(lines)))

    def end(self, result: Result) -> None:
        """This process has come to the end of its run with ``result``. Returns in the first process alone."""
        for case in self._wanted:
            self.results[case] = result
        for case in self._open:
            self.results[case] = result.never_came(case)
        alike = {each.case: each for each in self._alike}
        for case in alike:
            self.results[case] = self._result_of(case, alike)
        if self._parent is not None:
            self._tell(Ended(self.results, dict(list(self._learned.items())[self._known_before :])))

    def _result_of(self, case: Case, alike: dict[Case, Alike]) -> Result:
        """What a case is alike to may be alike to another; each has fewer interferences, so this ends."""
        if case not in alike:
            return self.results[case]
        each = alike[case]
        return self._result_of(each.fewer, alike).with_nothing_more(case, each.place, each.lines)

    def _tell(self, told: Ended | NothingChanged) -> None:
        assert self._parent is not None, "the first process does nothing of its own"
        with open(self._parent, "wb") as pipe:
            pickle.dump(told, pipe)
        os._exit(0)

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """A child that fails ends here, and tells nobody's caller. To be entered within the loop: a child cannot end
        its loop, for it shares with its parent what wakes one at its very end."""
        try:
            yield
        except BaseException:
            if self._parent is None:
                raise
            traceback.print_exc()
            os._exit(1)
