"""What sagas speak of: from an id to the saga that has to do with it.

What it is for: who looks at the database while sagas run sees things half made. Whatever an unfinished saga speaks of,
in its parameters or in what its nodes recorded, is that saga's business (:func:`claims`). And of what is locked one
wants to know whether anybody will ever unlock it (:func:`saga_behind`).

What it guarantees: the sagas are read in the caller's transaction, so what is found half made and the saga that makes
it are of one moment. Ids are found in the stored texts whatever their shape; a saga's derived ids are in them once a
node recorded them, and so are the parameters of sub-sagas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, or_, select

from nexus.db.sagas import GOING_ON
from nexus.db.schema import saga, saga_event, saga_lease
from nexus.saga import SagaState
from nexus.saga.execution import ENDED

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


_GOING_ON = select(saga.c.id, saga.c.params).where(GOING_ON).order_by(saga.c.id)
_RECORDED = (
    select(saga_event.c.saga_id, saga_event.c.data)
    .where(saga_event.c.saga_id.in_(select(saga.c.id).where(GOING_ON)), saga_event.c.data.is_not(None))
    .order_by(saga_event.c.saga_id, saga_event.c.number)
)


def claims(connection: Connection) -> dict[str, str]:
    """Every id that an unfinished saga speaks of, its own included, and which saga that is. A stuck saga lays no claim:
    it does nothing until somebody looks at what it left."""
    found: dict[str, str] = {}

    def note(text: str | None, saga_id: str) -> None:
        for each in UUID.findall(text or ""):
            found.setdefault(each.lower(), saga_id)

    for row in connection.execute(_GOING_ON):
        found.setdefault(row.id, row.id)
        note(row.params, row.id)
    for row in connection.execute(_RECORDED):
        note(row.data, row.saga_id)
    return found


@dataclass(frozen=True, slots=True)
class Behind:
    """The saga that stands behind the holder of something."""

    saga_id: str
    state: SagaState

    @property
    def ended(self) -> bool:
        """It will never let go of anything any more. One that is stuck may: an operator can resume it."""
        return self.state in ENDED


def saga_behind(connection: Connection, holder_id: str) -> Behind | None:
    """Whose ``operating_saga_id``, or holder of a lock, this is: the saga of that id, the one that is written down for
    it, or one whose parameters name it. Of several one that has not ended is told; ``None`` where nobody knows it."""
    leased = select(saga_lease.c.saga_id).where(saga_lease.c.holder_id == holder_id)
    named = select(saga.c.id, saga.c.state).where(or_(saga.c.id == holder_id, saga.c.id.in_(leased)))
    rows = connection.execute(named).all()
    if not rows:
        # The parameters are looked through only for holders that are neither: nearly none.
        rows = connection.execute(select(saga.c.id, saga.c.state).where(saga.c.params.contains(holder_id))).all()
    found = sorted((Behind(row.id, SagaState(str(row.state))) for row in rows), key=lambda each: each.ended)
    return found[0] if found else None
