"""What Upstairs tell Nexus (nexus.md §1.5). Receiving one only records it; who needs it reads it later."""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import enumeration, identifier, index, ip, moment, number, port, table


class RepairType(StrEnum):
    """How a copy is made good again."""

    LIVE = "live"
    RECONCILIATION = "reconciliation"


class RepairNotificationType(StrEnum):
    """What became of a repair."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class StopRequestReason(StrEnum):
    """Why an Upstairs asked its client of a downstairs to stop."""

    REPLACING = "replacing"
    DISABLED = "disabled"
    FAILED_RECONCILE = "failed_reconcile"
    IO_ERROR = "io_error"
    BAD_NEGOTIATION_ORDER = "bad_negotiation_order"
    INCOMPATIBLE = "incompatible"
    FAILED_LIVE_REPAIR = "failed_live_repair"
    TOO_MANY_OUTSTANDING_JOBS = "too_many_outstanding_jobs"
    DEACTIVATED = "deactivated"


class StoppedReason(StrEnum):
    """Why an Upstairs' client of a downstairs stopped."""

    CONNECTION_TIMEOUT = "connection_timeout"
    CONNECTION_FAILED = "connection_failed"
    TIMEOUT = "timeout"
    WRITE_FAILED = "write_failed"
    READ_FAILED = "read_failed"
    REQUESTED_STOP = "requested_stop"
    FINISHED = "finished"
    QUEUE_CLOSED = "queue_closed"
    RECEIVE_TASK_CANCELLED = "receive_task_cancelled"


upstairs_repair_notification = table(
    "upstairs_repair_notification",
    "A repair of one downstairs has started or ended.",
    moment("time", "By the clock of the Upstairs."),
    identifier("repair_id", "Names the attempt.", key=True),
    enumeration("repair_type", RepairType, "Which kind; the same in all rows of one repair."),
    identifier("upstairs_id", "The Upstairs.", key=True),
    identifier("session_id", "Changes each time that an Upstairs is made.", key=True),
    identifier("region_id", "The region that is repaired.", key=True),
    ip("target_ip", "Where its downstairs listens."),
    port("target_port", "Where its downstairs listens."),
    enumeration("notification_type", RepairNotificationType, "What became of it.", key=True),
    index("upstairs_repair_notification_by_region", "region_id", "notification_type"),
)

upstairs_repair_progress = table(
    "upstairs_repair_progress",
    "How far a repair is.",
    identifier("repair_id", "The attempt.", key=True),
    moment("time", "By the clock of the Upstairs.", key=True),
    number("current_item", "What is done.", key=True),
    number("total_items", "What there is to do.", key=True),
)

downstairs_client_stop_request_notification = table(
    "downstairs_client_stop_request_notification",
    "An Upstairs asked its client of a downstairs to stop. For people only.",
    moment("time", "By the clock of the Upstairs.", key=True),
    identifier("upstairs_id", "The Upstairs.", key=True),
    identifier("downstairs_id", "The downstairs.", key=True),
    enumeration("reason", StopRequestReason, "Why.", key=True),
)

downstairs_client_stopped_notification = table(
    "downstairs_client_stopped_notification",
    "An Upstairs' client of a downstairs has stopped. For people only.",
    moment("time", "By the clock of the Upstairs.", key=True),
    identifier("upstairs_id", "The Upstairs.", key=True),
    identifier("downstairs_id", "The downstairs.", key=True),
    enumeration("reason", StoppedReason, "Why.", key=True),
)
