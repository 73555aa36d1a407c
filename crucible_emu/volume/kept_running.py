"""Tasks that a block needs to its very end.

What it is for: a disk is flushed and leaves service when the block that uses it ends, and that takes the tasks which
drive it. Trio cancels the tasks of a nursery together with the block inside it, so when the block is cancelled from
outside, they would be gone before the flush, which then waits for ever.

What it guarantees: here the tasks are shielded from that. They are cancelled when the block is left, by whatever way;
when one of them fails, the block is cancelled and the failure is raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

Run = Callable[..., Awaitable[Any]]
"""A task that reports when it has started: ``run(*, task_status)``."""


@asynccontextmanager
async def kept_running(*runs: Run) -> AsyncIterator[None]:
    """All of ``runs``, started one after the other, while the block runs; also while it cleans up after itself."""
    scopes = [trio.CancelScope(shield=True) for _ in runs]

    async def keep(run: Run, scope: trio.CancelScope, started: trio.Event) -> None:
        # A nursery of its own, inside the shield: one that is cancelled never lets go of a task that it starts.
        with scope:
            async with trio.open_nursery() as shielded:
                await shielded.start(run)
                started.set()

    async with trio.open_nursery() as nursery:
        try:
            for run, scope in zip(runs, scopes):
                started = trio.Event()
                nursery.start_soon(keep, run, scope, started)
                await started.wait()
            yield
        finally:
            for scope in scopes:
                scope.cancel()
