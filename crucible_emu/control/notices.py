"""What the control plane is told of repairs and lost connections, and what waits to be told (upstairs-volume.md §15.4).

What it is for: :class:`Reporter` words the news of one Upstairs as requests of the Nexus internal API;
:class:`NoticeQueue` keeps them until they are sent. Both are pure: the time comes from an injected clock, the sending
is done by :mod:`crucible_emu.control.notifier`.

What it guarantees: putting a notice in never waits and never fails; a full queue drops it and says so. The beginning
and the end of a repair (*high*) go before progress and lost connections (*low*), and are tried five times; a notice
carries the time at which it was put in, whenever it is sent. No more than 257 notices are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid5

from crucible_emu.logs import get_logger
from crucible_emu.upstairs.actions import RepairNews
from crucible_emu.upstairs.core import UpstairsCore

HIGH_MAX = 128
LOW_MAX = 128
ATTEMPTS_MAX = 5

STOP_REASONS: tuple[tuple[str, str | None], ...] = (
    ("no answer from", "connection_timeout"),
    ("cannot connect", None),
    ("closed by us", None),
    ("silent for", "timeout"),
    ("sending failed", "write_failed"),
    ("receiving failed", "read_failed"),
    ("broke the protocol", "read_failed"),
)
"""How a connection's end begins in words, and what the API calls it; ``None`` is noise and is not sent. Everything
else is an end that the Downstairs chose: ``finished``."""

Clock = Callable[[], str]
"""The time now, RFC 3339."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """One request to be sent: POST ``body`` to ``path``. ``attempts`` have failed so far."""

    path: str
    body: dict[str, Any]
    high: bool
    attempts: int = 0


class NoticeQueue:
    """What waits to be sent, bounded."""

    def __init__(self, high_max: int = HIGH_MAX, low_max: int = LOW_MAX) -> None:
        self._maxima = {True: high_max, False: low_max}
        self._waiting: dict[bool, deque[Notice]] = {True: deque(), False: deque()}
        self._again: Notice | None = None
        self.dropped = 0
        self._full = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) + (self._again is not None)

    def put(self, notice: Notice) -> bool:
        """Keep ``notice`` until it is taken; ``False``: there is no room, it is dropped."""
        waiting = self._waiting[notice.high]
        if len(waiting) >= self._maxima[notice.high]:
            self._drop()
            return False
        waiting.append(notice)
        return True

    def take(self) -> Notice | None:
        """The notice to be sent next: one that failed before, else the oldest high one, else the oldest low one."""
        if self._again is not None:
            again, self._again = self._again, None
            return again
        for high in (True, False):
            if self._waiting[high]:
                self._full = False
                return self._waiting[high].popleft()
        return None

    def failed(self, notice: Notice) -> bool:
        """``notice`` was taken and could not be sent; whether it is kept for another attempt."""
        if notice.high and notice.attempts + 1 < ATTEMPTS_MAX:
            self._again = replace(notice, attempts=notice.attempts + 1)
            return True
        self.dropped += 1
        return False

    def _drop(self) -> None:
        self.dropped += 1
        if not self._full:  # once per jam: a long repair brings thousands
            self._full = True
            log.warning("notices are dropped: too many wait to be sent", waiting=len(self))


class Reporter:
    """Words the news of one Upstairs. Addresses and regions are those that ``core`` knows when the news come."""

    def __init__(self, core: UpstairsCore, now: Clock) -> None:
        self._core = core
        self._now = now
        self._base = f"/crucible/0/upstairs/{core.identity.upstairs_id}"
        self._repairs: dict[int, list[dict[str, str]]] = {}

    def repair_id(self, number: int) -> UUID:
        """The id of the run ``number`` of this session: the same in all its notices, another for every session."""
        return uuid5(self._core.identity.session_id, f"repair {number}")

    def repair(self, news: RepairNews) -> Notice:
        """A repair or reconciliation begins, goes on or ends."""
        repair_id = self.repair_id(news.number)
        if news.what == "progress":
            path = f"{self._base}/repair/{repair_id}/progress"
            body = {"time": self._now(), "current_item": news.current, "total_items": news.total}
            return Notice(path, body, high=False)
        if news.what == "start":
            self._repairs[news.number] = self._under_repair(news.clients)
        members = self._repairs.get(news.number)
        body = {
            "time": self._now(),
            "session_id": str(self._core.identity.session_id),
            "repair_id": str(repair_id),
            "repair_type": news.repair_type,
            "repairs": members if members is not None else self._under_repair(news.clients),
        }
        if news.what == "finish":
            self._repairs.pop(news.number, None)
            body["aborted"] = news.aborted
        return Notice(f"{self._base}/repair-{news.what}", body, high=True)

    def _under_repair(self, clients: tuple[int, ...]) -> list[dict[str, str]]:
        found = []
        for index in clients:
            client = self._core.clients[index]
            if client.region_uuid is None or not client.target:
                log.warning("left out of a notice: its region or address is not known", client=index)
            else:
                found.append({"region_uuid": str(client.region_uuid), "target_addr": client.target})
        return found

    def stopped(self, index: int, why: str) -> Notice | None:
        """The connection of client ``index`` has ended; ``None`` where nobody is told."""
        reason = stop_reason(why)
        region = self._core.clients[index].region_uuid
        if reason is None or region is None:
            return None
        path = f"{self._base}/downstairs/{region}/stopped"
        return Notice(path, {"time": self._now(), "reason": reason}, high=False)


def stop_reason(why: str) -> str | None:
    """The API's word for the end of a connection, ``None`` where it is not told."""
    for beginning, reason in STOP_REASONS:
        if why.startswith(beginning):
            return reason
    return "finished"
