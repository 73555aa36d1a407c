"""A disk that fails, or a process that dies, at a chosen step.

:class:`InterruptedStorage` passes everything on to the real files and counts each operation that changes something.
At operation number ``stop_at`` it raises: an :class:`OSError` once (a disk that fails), or :class:`Killed` from then on
for everything, clean-up included (a process that is no more). :func:`interrupted_everywhere` walks through all steps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from crucible_emu.region.storage import OsStorage

CHANGES = (
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "sync_files",
    "sync_tree",
    "sync_directory",
    "ftruncate",
    "rename",
    "unlink",
    "make_directories",
    "remove_tree",
)


class Killed(BaseException):
    """The process is gone; no handler for errors may take this for one."""


class InterruptedStorage:
    def __init__(self, stop_at: int | None = None, *, kill: bool = False) -> None:
        self._files = OsStorage()
        self._stop_at = stop_at
        self._kill = kill
        self.steps: list[str] = []

    @property
    def reached(self) -> bool:
        return self._stop_at is not None and len(self.steps) > self._stop_at

    def open(self, path: Any, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_CREAT:
            self._count(f"create {os.path.basename(path)}")
        elif self._kill and self.reached:
            raise Killed
        return self._files.open(path, flags, mode)

    def close(self, descriptor: int) -> None:
        self._files.close(descriptor)  # the kernel closes the files of a dead process

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._files, name)
        if name not in CHANGES:
            return operation

        def counted(*arguments: Any) -> Any:
            self._count(name)
            return operation(*arguments)

        return counted

    def _count(self, step: str) -> None:
        if self._kill and self.reached:
            raise Killed
        self.steps.append(step)
        if self._stop_at is not None and len(self.steps) == self._stop_at + 1:
            if self._kill:
                raise Killed
            raise OSError(errno.EIO, "Input/output error")


def interrupted_everywhere(
    prepare: Callable[[], Any], act: Callable[[InterruptedStorage, Any], None], *, kill: bool
) -> Iterator[Any]:
    """Run ``act`` once for each of its steps, each time on what ``prepare`` made, and interrupt it there.

    Yields what ``prepare`` made, after the interruption; it ends when ``act`` runs to its end.
    """
    step = 0
    while True:
        subject = prepare()
        storage = InterruptedStorage(step, kill=kill)
        try:
            act(storage, subject)
        except (Killed, Exception):
            if not storage.reached:
                raise
            yield subject
        else:
            if not storage.reached:
                assert step > 0, "nothing was changed: there is nothing to interrupt"
                return
            yield subject  # the step failed and nothing came of it
        step += 1
