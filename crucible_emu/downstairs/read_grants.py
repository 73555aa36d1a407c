"""Who may read a region past its Downstairs, and until when.

What it is for: an Upstairs on the same machine reads what is at hand faster by itself than by asking (as HDFS clients
do with "short-circuit local reads"). It asks once, with one line of JSON on a socket beside the Downstairs' own, and is
answered with one line and, where it is let in, two descriptors: the region's shared memory
(:mod:`~crucible_emu.region.sharing`) and its directory. Nothing of this is on the wire of the real program.

    {"upstairs_id": UUID, "session_id": UUID}
    {"granted": {"region": UUID, "epoch": NUMBER, "layout": {...}}}      or      {"refused": "a sentence"}

What it guarantees: only the session that is the writer of the region, and that runs, is let in; and only while the
Downstairs does what a Downstairs does: not while it injects faults, is stalled, or has an extent closed. A grant ends,
by another epoch, *before* what it stands on does: before the next writer is told that it is one (its connection is
closed first), before an extent is closed, before the region is. Whoever holds one is told, too, but need not be.

Why nobody who was superseded reads anything old: between the end of its connection and the first write of the next
writer lies the change of the epoch, and it looks at the epoch behind every read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.session import State
from crucible_emu.region import Region
from crucible_emu.region.sharing import SharedTables

ASK_BYTES_MAX = 1024
"""A line that asks has some 110 bytes."""
Ended = Callable[[], None]


class NotGranted(Exception):
    """Whoever asked is told this sentence."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks: to read or, with ``memory_bytes``, to show memory of that size (:mod:`peer_memory`)."""

    upstairs_id: UUID
    session_id: UUID
    memory_bytes: int | None = None


class ReadGrants:
    """The grants of one Downstairs. ``stalled`` says whether it seems to have stopped."""

    def __init__(self, region: Region, shared: SharedTables, core: Downstairs, stalled: Callable[[], bool]) -> None:
        self._region = region
        self._core = core
        self._stalled = stalled
        self._holders: dict[Ended, int] = {}
        self.shared = shared
        shared.on_revoked = self._tell

    def __len__(self) -> int:
        """Grants that hold."""
        return len(self._holders)

    def grant(self, question: Question, ended: Ended) -> dict[str, object]:
        """What a question for reads is granted; ``ended`` is called once, when that does not hold any more. Raises
        :class:`NotGranted`."""
        connection_id = self.writer(question)
        if self._stalled():
            raise NotGranted("the Downstairs is stalled")
        if not self._region.all_open:
            raise NotGranted("an extent is closed")
        self._holders[ended] = connection_id
        return {
            "region": str(self._region.definition.uuid),
            "epoch": self.shared.epoch,
            "layout": self.shared.layout.as_json(),
        }

    def writer(self, question: Question) -> int:
        """The connection of the region's writer, if it is the session that asks. Raises :class:`NotGranted`."""
        claim = self._core.active.writer
        if claim is None or (claim.upstairs_id, claim.session_id) != (question.upstairs_id, question.session_id):
            raise NotGranted("this session is not the writer of the region")
        if self._core.state(claim.connection_id) is not State.RUNNING:
            raise NotGranted("this session does not run yet")
        return claim.connection_id

    def left(self, ended: Ended) -> None:
        """Whoever held the grant does not need it any more, or never got to hear of it."""
        self._holders.pop(ended, None)

    def connection_ended(self, connection_id: int) -> None:
        """A connection ended; what was granted to its session holds no more."""
        if connection_id in self._holders.values():
            self.revoke()

    def revoke(self) -> None:
        """All grants end."""
        self.shared.revoke()

    def _tell(self) -> None:
        holders, self._holders = self._holders, {}
        for ended in holders:
            ended()


def question_in(line: bytes) -> Question:
    """What ``line`` asks. Raises :class:`NotGranted`."""
    try:
        members = json.loads(line)
        memory_bytes = members.get("memory_bytes")
        if memory_bytes is not None and type(memory_bytes) is not int:
            raise TypeError
        return Question(UUID(members["upstairs_id"]), UUID(members["session_id"]), memory_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotGranted("a line of JSON with upstairs_id and session_id is what asks here") from None
