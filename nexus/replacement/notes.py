"""What is noted of a request beside its state: why it does not go on, and what was found wrong on the way.

What it is for: a replacement that cannot be verified stops, keeps everything, and says why. The state machines are the
real one's and have no word for that; so it stands beside them, and ``nexus replacement show`` reads it. Nothing decides
by the reason of a wait, but for one *optimisation*: how soon unlike copies are compared again
(:func:`nexus.replacement.driving.asked_again_from`). A source that was refused is not cloned from again by the same
request, and an operator's word is what lets a last survivor be believed (:mod:`nexus.replacement.survivors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from nexus.db import schema
from nexus.db.transitions import insert_if_absent
from nexus.replacement.driving import UNLIKE

_REQUEST = schema.region_replacement
_WAITING, _REFUSAL, _DECISION = schema.replacement_waiting, schema.clone_source_refusal, schema.survivor_decision


_WAITING_OF = select(_WAITING).where(_WAITING.c.request_id == bindparam("request"))
_WAITS_NO_MORE = delete(_WAITING).where(_WAITING.c.request_id == bindparam("request"))
_REFUSED_FOR = select(_REFUSAL).where(_REFUSAL.c.request_id == bindparam("request")).order_by(_REFUSAL.c.source)
_DECIDED = select(_DECISION.c.volume_id).where(
    _DECISION.c.volume_id == bindparam("volume"), _DECISION.c.survivor_region_id == bindparam("survivor")
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a request does not go on, and since when that is so."""

    request_id: str
    reason: str
    time_since: datetime


@dataclass(frozen=True, slots=True)
class Refusal:
    """A copy that is not what its snapshot is."""

    source: str
    reason: str
    time_refused: datetime


def waiting_since(connection: Connection, request_id: str, reason: str, now: datetime) -> None:
    """The request does not go on, for ``reason``. The same reason again leaves its time as it is."""
    found = waiting_of(connection, request_id)
    if found is not None and found.reason == reason:
        return
    values = {"reason": reason, "time_since": now}
    if found is None:
        connection.execute(insert(_WAITING).values(request_id=request_id, **values))
    else:
        connection.execute(update(_WAITING).where(_WAITING.c.request_id == request_id).values(**values))


def waiting_no_more(connection: Connection, request_id: str) -> None:
    """The request goes on, or has ended."""
    connection.execute(_WAITS_NO_MORE, {"request": request_id})


def unlike_no_more(connection: Connection, volume_id: str) -> None:
    """The volume's set becomes another one: what was found of its copies says nothing of that."""
    of_volume = select(_REQUEST.c.id).where(_REQUEST.c.volume_id == volume_id)
    unlike = (_WAITING.c.request_id.in_(of_volume), _WAITING.c.reason.startswith(UNLIKE, autoescape=True))
    connection.execute(delete(_WAITING).where(*unlike))


def waiting_of(connection: Connection, request_id: str) -> Waiting | None:
    """Why the request does not go on; ``None`` when nothing was noted."""
    row = connection.execute(_WAITING_OF, {"request": request_id}).one_or_none()
    return None if row is None else Waiting(row.request_id, row.reason, row.time_since)


def source_refused(connection: Connection, request_id: str, source: str, reason: str, now: datetime) -> None:
    """No clone for this request is made from ``source`` again."""
    values = {"request_id": request_id, "source": source, "reason": reason, "time_refused": now}
    insert_if_absent(connection, _REFUSAL, values)


def sources_refused(connection: Connection, request_id: str) -> list[Refusal]:
    """What was refused for the request, in the order of names."""
    rows = connection.execute(_REFUSED_FOR, {"request": request_id})
    return [Refusal(row.source, row.reason, row.time_refused) for row in rows]


def survivor_decide(connection: Connection, volume_id: str, survivor_region_id: str, now: datetime) -> None:
    """An operator says that this last copy of the volume is to be believed."""
    values = {"volume_id": volume_id, "survivor_region_id": survivor_region_id, "time_decided": now}
    insert_if_absent(connection, _DECISION, values)


def survivor_decided(connection: Connection, volume_id: str, survivor_region_id: str) -> bool:
    """Whether an operator said so."""
    return connection.execute(_DECIDED, {"volume": volume_id, "survivor": survivor_region_id}).first() is not None
