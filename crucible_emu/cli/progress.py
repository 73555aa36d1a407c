"""One progress bar for everything that takes time: on standard error, and only where a person looks at a terminal."""

from __future__ import annotations

import sys
from types import TracebackType


class Progress:
    """A bar over ``total`` bytes, or things where they are ``counted``; call it with how many were just done.
    ``shown=False`` keeps it silent."""

    def __init__(self, title: str, total: int, *, shown: bool = True, counted: bool = False) -> None:
        # *Optimisation*: a MiB for every command that can show a bar, and few of them ever do.
        from rich import progress
        from rich.console import Console

        amount: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
        if not counted:
            amount = (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *amount,
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total)

    def __call__(self, done: int) -> None:
        self._bar.advance(self._task, done)

    def say(self, title: str) -> None:
        """Another title from now on."""
        self._bar.update(self._task, description=title)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
