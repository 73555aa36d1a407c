"""Flushes of several regions in one thread, step by step, with one sync for all.

What it is for: the three replicas of a disk in one process are flushed at the same moment, and mostly they lie on one
file system. Each flush has three phases with a sync after each; a sync costs much and its second caller nothing more,
so the flushes go through their phases side by side (:meth:`~crucible_emu.region.flush.StagedFlush.steps`).

What it guarantees: each flush does what it would do by itself, in its own order, and goes on only when its files are
durable. One that fails, or whose sync fails, fails by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from crucible_emu.errors import CrucibleError
from crucible_emu.region.flush import StagedFlush, Steps
from crucible_emu.region.journaled import JournaledFlush
from crucible_emu.region.storage import OsStorage


@dataclass(slots=True, eq=False)
class _Course:
    """One flush on its way: what it wants synced now, its file system, and what became of it."""

    steps: Steps
    storage: OsStorage
    wanted: list[int] | None = None
    device: int | None = None
    failure: CrucibleError | None = None

    def go_on(self, failed_sync: OSError | None = None) -> None:
        try:
            self.wanted = next(self.steps, None) if failed_sync is None else self.steps.throw(failed_sync)
        except CrucibleError as error:
            self.wanted, self.failure = None, error
        if self.wanted and self.device is None:
            self.device = os.fstat(self.wanted[0]).st_dev


SteppedFlush = StagedFlush | JournaledFlush


def may_go_together(flush: object) -> TypeGuard[SteppedFlush]:
    """Whether :func:`run_together` takes this flush."""
    return isinstance(flush, SteppedFlush) and isinstance(flush.storage, OsStorage)


def run_together(flushes: Sequence[SteppedFlush]) -> list[CrucibleError | None]:
    """Run them all, each to its end or its failure: what became of each, in their order. For any thread."""
    courses = []
    for flush in flushes:
        assert isinstance(flush.storage, OsStorage)
        courses.append(_Course(flush.steps(), flush.storage))
    for course in courses:
        course.go_on()
    while under_way := [course for course in courses if course.wanted is not None]:
        for device in {course.device: None for course in under_way}:
            meeting = [course for course in under_way if course.device == device]
            outcomes = meeting[0].storage.sync_groups([course.wanted or [] for course in meeting])
            for course, failed_sync in zip(meeting, outcomes):
                course.go_on(failed_sync)
    return [course.failure for course in courses]
