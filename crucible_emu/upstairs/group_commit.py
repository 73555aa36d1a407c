"""Flushes that come while one is under way share the next (upstairs-volume.md §5.3).

What it guarantees: a flush is answered when one has succeeded that was begun after it came, and so covers what was
acknowledged before it; or with the error of that one. *Optimisation*: however many doors flush, two are under way at
most, one that runs and one that waits for it.
"""

from __future__ import annotations

from crucible_emu import errors
from crucible_emu.blockio import Completed, Request
from crucible_emu.upstairs.driver import FlushHandle, Upstairs
from crucible_emu.upstairs.read_train import Finished
from crucible_emu.upstairs.rules import JobKind

FlushGroup = list[tuple[Request, Completed]]
"""Flushes that are answered by one."""


class GroupCommit:
    """The flushes of one guest."""

    def __init__(self, upstairs: Upstairs) -> None:
        self._upstairs = upstairs
        self._core = upstairs.core
        self._running: FlushGroup | None = None
        self._covers = 0
        self._waiting: FlushGroup = []

    def flush(self, request: Request, done: list[Request], completed: Completed) -> None:
        """Admit a request to flush; one that is answered already is put into ``done``."""
        if self._core.identity.read_only:  # there is nothing to flush
            done.append(request)
        elif (error := self._core.admission_error(JobKind.FLUSH)) is not None:
            request.error = error
            done.append(request)
        elif self._running is not None and self._core.last_write == self._covers:
            # Nothing was written since it began.
            self._running.append((request, completed))
        else:
            self._waiting.append((request, completed))
            if self._running is None:
                self._start()

    def _start(self) -> None:
        group, self._waiting = self._waiting, []
        self._running, self._covers = group, self._core.last_write
        self._upstairs.statistics.flushes += 1

        def answered(error: errors.CrucibleError | None) -> None:
            self._running = None
            _complete(group, error)
            if self._waiting:
                refusal = self._core.admission_error(JobKind.FLUSH)
                if refusal is None:
                    self._start()
                else:
                    waiting, self._waiting = self._waiting, []
                    _complete(waiting, refusal)

        self._core.flush(FlushHandle(answered))
        self._upstairs.perform()


def _complete(group: FlushGroup, error: errors.CrucibleError | None) -> None:
    """Complete flushes with one outcome."""
    finished = Finished()
    for request, completed in group:
        request.error = error
        finished.add(completed, request)
    finished.report()
