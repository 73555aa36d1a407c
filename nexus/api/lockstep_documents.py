"""The documents of the lockstep API, by the names and members of ``nexus-lockstep.json`` (apis-and-tools.md §5.5)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from nexus.api.external_documents import Expunged, Ping, SledInService, SledPolicy
from nexus.api.members import Document, Page, Uint64

ActivationReason = Literal["signaled", "timeout", "dependency"]


class Duration(Document):
    """A span of time."""

    secs: Uint64
    nanos: Annotated[int, Field(ge=0, lt=10**9)]

    @classmethod
    def of(cls, seconds: float) -> Duration:
        """So many seconds."""
        whole = int(seconds)
        return cls(secs=whole, nanos=min(int((seconds - whole) * 10**9), 10**9 - 1))


# -- background tasks -------------------------------------------------------------------------------------------------


class CurrentStatusRunning(Document):
    """An activation that is under way."""

    start_time: datetime
    reason: ActivationReason
    iteration: Uint64


class Idle(Document):
    """Nothing is under way."""

    current_status: Literal["idle"] = "idle"


class Running(Document):
    """Something is."""

    current_status: Literal["running"] = "running"
    details: CurrentStatusRunning


class LastResultCompleted(Document):
    """The last activation. ``details`` are the task's own."""

    start_time: datetime
    elapsed: Duration
    iteration: Uint64
    reason: ActivationReason
    details: Any


class NeverCompleted(Document):
    """There was none."""

    last_result: Literal["never_completed"] = "never_completed"


class Completed(Document):
    """There was one."""

    last_result: Literal["completed"] = "completed"
    details: LastResultCompleted


class BackgroundTask(Document):
    """What Nexus does by itself, again and again."""

    name: str
    description: str
    period: Duration
    current: Annotated[Idle | Running, Field(discriminator="current_status")]
    last: Annotated[NeverCompleted | Completed, Field(discriminator="last_result")]


class BackgroundTasksActivateRequest(Document):
    """Tasks that shall do their work now."""

    bgtask_names: frozenset[str]


# -- hardware ---------------------------------------------------------------------------------------------------------


class PhysicalDiskPath(Document):
    """Which physical disk."""

    disk_id: UUID


class SledSelector(Document):
    """Which sled."""

    sled: UUID


# -- sagas ------------------------------------------------------------------------------------------------------------


class ActionFailed(Document):
    """A node could not do what it was for, and says why."""

    error: Literal["action_failed"] = "action_failed"
    source_error: Any


class InjectedError(Document):
    """A test wanted the node to fail."""

    error: Literal["injected_error"] = "injected_error"


class FailedWith(Document):
    """The saga could not be read or written."""

    error: Literal["deserialize_failed", "serialize_failed", "subsaga_create_failed"]
    message: str


SagaErrorInfo = Annotated[ActionFailed | InjectedError | FailedWith, Field(discriminator="error")]


class SagaGoingOn(Document):
    """Not failed: under way, or done."""

    state: Literal["running", "succeeded"]


class SagaUnwound(Document):
    """Failed, and undone."""

    state: Literal["failed"] = "failed"
    error_node_name: str
    error_info: SagaErrorInfo


class SagaStuck(Document):
    """Failed, and cannot be undone without a person."""

    state: Literal["stuck"] = "stuck"
    error_node_name: str
    error_info: SagaErrorInfo
    undo_error_node_name: str
    undo_source_error: Any


SagaState = Annotated[SagaGoingOn | SagaUnwound | SagaStuck, Field(discriminator="state")]


class Saga(Document):
    """A saga."""

    id: UUID
    state: SagaState


class SagaResultsPage(Page[Saga]):
    """Some sagas."""


__all__ = [
    "BackgroundTask",
    "BackgroundTasksActivateRequest",
    "CurrentStatusRunning",
    "Duration",
    "Expunged",
    "LastResultCompleted",
    "PhysicalDiskPath",
    "Ping",
    "Saga",
    "SagaResultsPage",
    "SledInService",
    "SledPolicy",
    "SledSelector",
]
