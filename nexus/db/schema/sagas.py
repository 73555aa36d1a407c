"""Sagas, their logs, and the Nexus processes that run them (nexus.md §0.5).

A saga belongs to the Nexus named in ``executor_id``, under the *fence* that grows whenever it changes hands; a Nexus
keeps what is its own by renewing its lease in ``nexus_instance``. The log has one row per event, and is only
appended to.
"""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import enumeration, identifier, index, moment, number, table, text


class StoredSagaState(StrEnum):
    """How far a saga is: the values of ``nexus.saga.SagaState``."""

    RUNNING = "running"
    UNWINDING = "unwinding"
    DONE = "done"
    UNWOUND = "unwound"
    STUCK = "stuck"


class StoredEventKind(StrEnum):
    """What happened to a node: the values of ``nexus.saga.events.Kind``."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDO_STARTED = "undo_started"
    UNDO_FINISHED = "undo_finished"
    UNDO_FAILED = "undo_failed"


UNFINISHED = "state IN ('running', 'unwinding')"

saga = table(
    "saga",
    "Work in steps that ends done or undone.",
    text("id", "Names the saga.", key=True),
    text("name", "The recipe."),
    text("params", "The recipe's parameters as JSON; ids, never secrets."),
    text("labels", "JSON list of the nodes of its graph when it was made, to notice a recipe that has changed."),
    enumeration("state", StoredSagaState, "How far it is; stuck waits for a person."),
    text("executor_id", "The Nexus that it belongs to."),
    number("fence", "Grows when the saga changes hands; who writes under an older one has lost it."),
    number("event_count", "Rows in its log, and so the number of the next."),
    moment("time_created", "When it was asked for."),
    moment("time_modified", "When it last came further."),
    index("saga_unfinished", "executor_id", "id", where=UNFINISHED),
    index("saga_by_state", "state", "time_created", "id"),
    index("saga_by_time", "time_created", "id"),
    state="state",
)

saga_event = table(
    "saga_event",
    "The log of all sagas, one row per event.",
    text("saga_id", "The saga.", key=True),
    number("number", "Which of its events, from 0.", key=True),
    text("label", "The node."),
    enumeration("kind", StoredEventKind, "What happened to it."),
    text("data", "JSON: the output of a success, the reason of a failure; ids, never secrets.", nullable=True),
    moment("time", "When."),
)

saga_lease = table(
    "saga_lease",
    "Which saga stands behind an operating_saga_id or the holder of a volume's lock, so that what a saga left locked"
    " when it ended can be found and let go (W42).",
    identifier("holder_id", "The operating_saga_id, or the repair_id of the lock.", key=True),
    text("saga_id", "The saga."),
    moment("time_taken", "Since when."),
    index("saga_lease_by_saga", "saga_id"),
)

nexus_instance = table(
    "nexus_instance",
    "A Nexus process, alive for as long as it renews its lease.",
    text("id", "Names the process; its sagas carry it as executor_id.", key=True),
    moment("time_started", "When it registered."),
    moment("time_heartbeat", "When it last renewed its lease."),
    moment("time_expires", "When it is taken for dead, and others take its sagas over."),
    index("nexus_instance_by_expiry", "time_expires"),
)
