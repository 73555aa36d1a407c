"""Threads for work that lets go of the interpreter's lock: what is too much for the loop's thread alone.

What it is for: encryption is most of what an encrypted disk does, and the cipher runs without the lock from 2 KiB on.
So a large piece of work is cut into *shares*, which the loop's thread and one thread for each other core take in turns.
The loop takes one share in each of its turns, so that it receives, stores and answers in between.

What it guarantees: every share of a piece of work runs exactly once; after the last one the loop's thread is told, by
one call of ``done``. Shares are begun in the order in which they came, but a later piece of work may be done before an
earlier one: whoever needs an order keeps it himself. A thread is woken only where there is a share for it that nobody
would look at otherwise: a busy crew costs no wake-ups.

Why it is safe: shares of one piece of work must not touch the same memory, which is for whoever cuts it to see to. The
threads are those of Trio's cache and end by themselves; when the loop is over, nobody is told any more.

Why the loop helps: with a thread for each core beside it, there is one more that waits for the lock than there are
cores, and each such wait is two trips through the kernel.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Protocol

import trio

THREADS_MAX = 8
"""As many as the real program has for it."""


class Divisible(Protocol):
    """Work on ``count`` things that are independent of each other."""

    @property
    def count(self) -> int: ...

    def run(self, first: int, stop: int) -> None:
        """Do the work on the things ``first`` .. ``stop``, in any thread."""
        ...


Done = Callable[[BaseException | None], None]
"""Told on the loop's thread that all is done, and what a share of it failed with. It must not raise."""


class _Task:
    """A piece of work that is under way."""

    __slots__ = ("done", "error", "shares_left", "work")

    def __init__(self, work: Divisible, shares: int, done: Done) -> None:
        self.work = work
        self.shares_left = shares
        self.done = done
        self.error: BaseException | None = None


_Share = tuple[_Task, int, int]


class Crew:
    """The loop's thread and ``width - 1`` others. Make it, and use it, on the loop's thread."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._token = trio.lowlevel.current_trio_token()
        self._lock = Lock()
        self._shares: deque[_Share] = deque()
        self._at_work = 0
        self._helping = False

    def start(self, work: Divisible, share: int, done: Done) -> None:
        """Have ``work`` done, ``share`` things at a time; ``done`` follows when the loop has its turn."""
        firsts = range(0, work.count, share)
        task = _Task(work, len(firsts), done)
        with self._lock:
            self._shares.extend((task, first, min(first + share, work.count)) for first in firsts)
            # One of them is the loop's.
            woken = max(0, min(self.width - 1 - self._at_work, len(self._shares) - 1))
            self._at_work += woken
        for _ in range(woken):
            trio.lowlevel.start_thread_soon(self._work, _ended, "crew")
        if not self._helping:
            self._helping = True
            self._token.run_sync_soon(self._help)

    def _help(self) -> None:
        """The loop's own share, once in each of its turns."""
        with self._lock:
            share = self._shares.popleft() if self._shares else None
        if share is None:
            self._helping = False
            return
        # Ahead of what ``done`` leads to, which may come here again.
        self._token.run_sync_soon(self._help)
        if self._run(share):
            share[0].done(share[0].error)

    def _work(self) -> None:
        """In a thread, as long as there are shares."""
        while True:
            with self._lock:
                if not self._shares:
                    # Under the lock, so that whoever adds shares now knows that a thread must be woken for them.
                    self._at_work -= 1
                    return
                share = self._shares.popleft()
            if self._run(share):
                try:
                    self._token.run_sync_soon(partial(share[0].done, share[0].error))
                except trio.RunFinishedError:
                    continue  # the loop is over, and with it whoever waited

    def _run(self, share: _Share) -> bool:
        """Do one share: whether it was the last of its work."""
        task, first, stop = share
        error: BaseException | None = None
        try:
            task.work.run(first, stop)
        except BaseException as problem:  # noqa: BLE001  # it belongs to whoever waits for the work
            error = problem
        with self._lock:
            task.shares_left -= 1
            task.error = task.error or error
            return not task.shares_left


def _ended(result: Any) -> None:
    """A thread has nothing more to do. What goes wrong with the crew itself is shown by Trio, on standard error."""
    result.unwrap()


_crew: trio.lowlevel.RunVar[Crew | None] = trio.lowlevel.RunVar("crew")


def crew() -> Crew | None:
    """The crew of the event loop that runs here; ``None`` on a machine with one core, where there is nothing to gain.
    One for all disks of a process, for they share the cores."""
    try:
        return _crew.get()
    except LookupError:
        cores = len(os.sched_getaffinity(0))
        found = Crew(min(cores, THREADS_MAX)) if cores > 1 else None
        _crew.set(found)
        return found
