"""Sagas, as operators see them: those of every Nexus that shares the database.

A saga's parameters and log hold ids and never a secret (:func:`nexus.saga.events.refuse_secrets`), so they are shown as
they are. A saga that unwinds is *running* in the lockstep API's words, which knows four states and not five.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from nexus.api import emulator_documents as ours
from nexus.api import lockstep_documents as theirs
from nexus.db import schema
from nexus.db.schema.sagas import StoredEventKind, StoredSagaState
from nexus.objects.lookups import Slice
from nexus.objects.refusals import not_found

_SAGA, _EVENT = schema.saga, schema.saga_event
_FAILURES = (StoredEventKind.FAILED, StoredEventKind.UNDO_FAILED)
_FAILED = (StoredSagaState.UNWOUND, StoredSagaState.STUCK)

Failures = dict[StoredEventKind, tuple[str, Any]]
"""Of one saga: node and reason, of the first failure of each kind."""


def page(connection: Connection, wanted: Slice) -> list[Row[Any]]:
    """Sagas by id."""
    query = select(_SAGA).order_by(_SAGA.c.id).limit(wanted.limit)
    if wanted.after is not None:
        query = query.where(_SAGA.c.id > wanted.after)
    return list(connection.execute(query))


def require(connection: Connection, saga_id: str) -> Row[Any]:
    """Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = connection.execute(select(_SAGA).where(_SAGA.c.id == saga_id)).one_or_none()
    if row is None:
        raise not_found("saga", saga_id)
    return row


def failures(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, Failures]:
    """Why those of ``rows`` that failed have, by saga."""
    found: dict[str, Failures] = {}
    ids = [row.id for row in rows if row.state in _FAILED]
    if ids:
        query = select(_EVENT).where(_EVENT.c.saga_id.in_(ids), _EVENT.c.kind.in_(_FAILURES))
        for event in connection.execute(query.order_by(_EVENT.c.saga_id, _EVENT.c.number)):
            found.setdefault(event.saga_id, {}).setdefault(event.kind, (event.label, json.loads(event.data)))
    return found


# -- in the words of the lockstep API ---------------------------------------------------------------------------------


def lockstep(row: Row[Any], why: Failures) -> theirs.Saga:
    """``why``: what :func:`failures` says of it."""
    return theirs.Saga(id=UUID(row.id), state=_state(row.state, why))


def _state(state: StoredSagaState, why: Failures) -> theirs.SagaState:
    if state is StoredSagaState.DONE:
        return theirs.SagaGoingOn(state="succeeded")
    if state not in _FAILED:
        return theirs.SagaGoingOn(state="running")
    node, reason = why.get(StoredEventKind.FAILED, ("", {"message": "its recipe is not known here", "kind": "failed"}))
    info = theirs.ActionFailed(source_error=reason)
    if state is StoredSagaState.UNWOUND:
        return theirs.SagaUnwound(error_node_name=node, error_info=info)
    undo_node, undo_reason = why.get(StoredEventKind.UNDO_FAILED, (node, reason))
    return theirs.SagaStuck(
        error_node_name=node, error_info=info, undo_error_node_name=undo_node, undo_source_error=undo_reason
    )


# -- in our own -------------------------------------------------------------------------------------------------------


def entry(row: Row[Any]) -> ours.SagaEntry:
    return ours.SagaEntry.model_validate(_entry(row))


def detail(connection: Connection, saga_id: str) -> ours.SagaDetail:
    """With its log. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = require(connection, saga_id)
    log = select(_EVENT).where(_EVENT.c.saga_id == saga_id).order_by(_EVENT.c.number)
    events = [
        {
            "number": event.number,
            "label": event.label,
            "kind": event.kind.value,
            "time": event.time,
            "data": None if event.data is None else json.loads(event.data),
        }
        for event in connection.execute(log)
    ]
    return ours.SagaDetail.model_validate(_entry(row) | {"params": json.loads(row.params), "events": events})


def _entry(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state.value,
        "nexus_id": row.executor_id,
        "time_created": row.time_created,
        "time_modified": row.time_modified,
    }
