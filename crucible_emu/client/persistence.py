"""Requests that are made until they are answered, under Trio.

What it is for: :class:`Persistence` is what a caller decides once (how fast, whose random numbers, how to learn that a
service is gone for good); :meth:`Persistence.ask` makes one request as often as that takes, and
:meth:`Persistence.wait_for` asks again and again until the answer is the one that is waited for.

What it guarantees: what is not passing is raised at once. The ``gone`` question is asked before every attempt, so a
service that was given up is not spoken to again, and a caller that waits for it ends with :class:`ServiceGone`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TypeVar

import trio

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.retry import Backoff, Patience, is_passing

T = TypeVar("T")


class ServiceGone(Exception):
    """The service will never answer: whoever knows about it says that it is gone. ``last``: how it failed before."""

    def __init__(self, last: Exception | None) -> None:
        super().__init__(last)
        self.last = last

    def __str__(self) -> str:
        after = f"; the last attempt: {self.last}" if self.last is not None else ""
        return f"the service is gone for good{after}"


async def _still_there() -> bool:
    return False


@dataclass(frozen=True)
class Persistence:
    """``gone``: whether the service is known to be gone; for an agent its disk's policy says so, for a pantry its
    name's records (§0.4)."""

    backoff: Backoff = field(default_factory=Backoff)
    draw: Callable[[], float] = field(default_factory=lambda: SystemRandom().random)
    gone: Callable[[], Awaitable[bool]] = _still_there

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer of ``request``. Raises :class:`ServiceGone`, and what is not passing."""
        patience = Patience(self.backoff, self.draw)
        last: Exception | None = None
        while True:
            if await self.gone():
                raise ServiceGone(last)
            try:
                return await request()
            except (ServiceError, ServiceUnreachable) as error:
                if not is_passing(error):
                    raise
                last = error
            await trio.sleep(patience.pause_s())

    async def wait_for(self, request: Callable[[], Awaitable[T]], arrived: Callable[[T], bool]) -> T:
        """Repeat ``request`` until ``arrived`` says that its answer is the last; that may raise, too."""
        patience = Patience(self.backoff, self.draw)
        while True:
            answer = await self.ask(request)
            if arrived(answer):
                return answer
            await trio.sleep(patience.pause_s())
