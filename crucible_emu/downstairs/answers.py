"""What is answered to each job and each reconciliation step (wire-protocol.md §7.5, §8.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from crucible_emu.errors import CrucibleError
from crucible_emu.wire import messages as m

NO_DATA = memoryview(b"")


def answer(message: Any, outcome: Any, upstairs_id: UUID, session_id: UUID) -> m.Message:
    """The answer to ``message``, whose work ended with ``outcome``: a :class:`CrucibleError`, or what it yielded."""
    return _ANSWERS[type(message)](message, outcome, upstairs_id, session_id)


def _ack(ack: Callable[..., m.Message]) -> Callable[[Any, Any, UUID, UUID], m.Message]:
    """An acknowledgement that says no more than whether it worked."""

    def build(message: Any, outcome: Any, upstairs_id: UUID, session_id: UUID) -> m.Message:
        error = outcome if isinstance(outcome, CrucibleError) else None
        return ack(upstairs_id, session_id, message.job_id, error)

    return build


def _closed(message: Any, outcome: Any, upstairs_id: UUID, session_id: UUID) -> m.Message:
    return m.ExtentLiveCloseAck(upstairs_id, session_id, message.job_id, outcome)


def _read(message: Any, outcome: Any, upstairs_id: UUID, session_id: UUID) -> m.Message:
    if isinstance(outcome, CrucibleError):
        return m.ReadResponse(upstairs_id, session_id, message.job_id, outcome, NO_DATA)
    contexts, data = outcome
    return m.ReadResponse(upstairs_id, session_id, message.job_id, contexts, data)


def _reconciled(message: Any, outcome: Any, _upstairs_id: UUID, _session_id: UUID) -> m.Message:
    if isinstance(outcome, CrucibleError):
        return m.ExtentError(message.repair_id, message.extent_id, outcome)
    return m.RepairAckId(message.repair_id)


_ANSWERS: dict[type[m.Message], Callable[[Any, Any, UUID, UUID], m.Message]] = {
    m.Write: _ack(m.WriteAck),
    m.WriteUnwritten: _ack(m.WriteUnwrittenAck),
    m.ReadRequest: _read,
    m.Flush: _ack(m.FlushAck),
    m.Barrier: _ack(m.BarrierAck),
    m.ExtentLiveClose: _closed,
    m.ExtentLiveFlushClose: _closed,
    m.ExtentLiveRepair: _ack(m.ExtentLiveRepairAckId),
    m.ExtentLiveReopen: _ack(m.ExtentLiveAckId),
    m.ExtentLiveNoOp: _ack(m.ExtentLiveAckId),
    m.ExtentFlush: _reconciled,
    m.ExtentClose: _reconciled,
    m.ExtentRepair: _reconciled,
    m.ExtentReopen: _reconciled,
}
