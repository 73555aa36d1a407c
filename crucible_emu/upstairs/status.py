"""How an Upstairs is doing, as plain documents (upstairs-volume.md §15.3, §15.5).

What it is for: :func:`info` and :func:`work` are what the control API answers, member for member as the real one's
OpenAPI document has them; :func:`trace` is the record that the real one offers to tracing tools once per second.

What it guarantees: looking changes nothing. Everything is computed when somebody asks, from what the core keeps
anyway, so that a disk which nobody looks at pays nothing for it. All three cost time in proportion to the tracked jobs,
of which there are at most as many as a barrier allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import FAULTS, NEGOTIATION_FAILURES, ClientState, Phase, StopReason, UpstairsState
from crucible_emu.upstairs.summary import COMPLETED_MAX, summaries

if TYPE_CHECKING:
    from crucible_emu.upstairs.core import UpstairsCore

UPSTAIRS_STATES: dict[UpstairsState, str] = {
    UpstairsState.INITIALIZING: "initializing",
    UpstairsState.GO_ACTIVE: "initializing",
    UpstairsState.ACTIVE: "active",
    UpstairsState.DEACTIVATING: "deactivating",
    UpstairsState.DISABLED: "initializing",
}
"""The API knows three states; a disk that waits to become active, or may not be, is ``initializing`` there."""

PHASE_TYPES: dict[Phase, str] = {
    Phase.WAIT_CONNECT: "wait_connect",
    Phase.START: "start",
    Phase.WAIT_FOR_PROMOTE: "wait_for_promote",
    Phase.WAIT_FOR_REGION_INFO: "wait_for_region_info",
    Phase.GET_EXTENT_VERSIONS: "get_extent_versions",
    Phase.WAIT_QUORUM: "wait_quorum",
    Phase.RECONCILE: "reconcile",
    Phase.LIVE_REPAIR_READY: "live_repair_ready",
    Phase.ACTIVE: "active",
    Phase.LIVE_REPAIR: "live_repair",
    Phase.STOPPING: "stopping",
}

STOP_REASONS: dict[StopReason, dict[str, str]] = {
    StopReason.REPLACING: {"type": "replacing"},
    StopReason.DISABLED: {"type": "disabled"},
    StopReason.DEACTIVATED: {"type": "deactivated"},
    StopReason.FAILED_RECONCILE: {"type": "negotiation_failed", "value": "failed_reconcile"},
    StopReason.BAD_NEGOTIATION_ORDER: {"type": "negotiation_failed", "value": "bad_negotiation_order"},
    StopReason.INCOMPATIBLE_VERSION: {"type": "negotiation_failed", "value": "incompatible_version"},
    StopReason.INCOMPATIBLE_SESSION: {"type": "negotiation_failed", "value": "incompatible_session"},
    StopReason.INCOMPATIBLE_SETTINGS: {"type": "negotiation_failed", "value": "incompatible_settings"},
    StopReason.IO_ERROR: {"type": "fault", "value": "i_o_error"},
    StopReason.FAILED_LIVE_REPAIR: {"type": "fault", "value": "failed_live_repair"},
    StopReason.OFFLINE_DEACTIVATED: {"type": "fault", "value": "offline_deactivated"},
}

SHOWN_BY_PHASE = (Phase.WAIT_QUORUM, Phase.RECONCILE, Phase.LIVE_REPAIR_READY)
"""Where the short name of a connecting client is its phase; elsewhere it is the mode."""


def client_state(state: ClientState) -> dict[str, Any]:
    """The JSON of a ``DsState`` (§2.1, §15.3)."""
    kind = PHASE_TYPES[state.phase]
    if state.connecting:
        return {"type": "connecting", "value": {"state": {"type": kind}, "mode": state.mode.value.lower()}}
    if state.phase is Phase.STOPPING:
        return {"type": "stopping", "value": STOP_REASONS[state.reason or StopReason.DISABLED]}
    return {"type": kind}


def short_name(state: ClientState) -> str:
    """The one word for ``state`` in traces (§2.1)."""
    if state.connecting:
        return str(state.phase.value if state.phase in SHOWN_BY_PHASE else state.mode.value)
    if state.phase is not Phase.STOPPING:
        return str(state.phase.value)
    reason = state.reason or StopReason.DISABLED
    if reason in FAULTS:
        return "Faulted"
    return "NegotiationFailed" if reason in NEGOTIATION_FAILURES else str(reason.value)


def info(core: UpstairsCore) -> dict[str, Any]:
    """``GET /info``: an ``UpstairsStats`` (§15.3)."""
    clients, (reconciled, to_reconcile) = core.clients, _reconciliation_steps(core)
    return {
        "state": UPSTAIRS_STATES[core.state],
        "ds_state": [client_state(client.state) for client in clients],
        "up_jobs": _waited_for(core),
        "ds_jobs": sum(job.count for job in core.jobs),
        "reconcile_done": reconciled,
        "reconcile_needed": to_reconcile,
        "extents_repaired": [client.extents_repaired for client in clients],
        "extents_confirmed": [client.extents_confirmed for client in clients],
        "extent_limit": [
            core.repair.extent_id if core.repair is not None and client.state.phase is Phase.LIVE_REPAIR else None
            for client in clients
        ],
        "live_repair_completed": [client.live_repair_completed for client in clients],
        "live_repair_aborted": [client.live_repair_aborted for client in clients],
    }


def work(core: UpstairsCore) -> dict[str, Any]:
    """``GET /work``: a ``DownstairsWork``, all tracked jobs by id and the last retired ones (§15.3)."""
    return {
        "jobs": [summary for job in core.jobs for summary in summaries(job)],
        "completed": [summary for job in core.completed for summary in summaries(job)][-COMPLETED_MAX:],
    }


def trace(core: UpstairsCore, delays_us: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """The tracing record of §15.5. ``delays_us``: what the driver slows each client down by, microseconds."""
    clients, (reconciled, to_reconcile) = core.clients, _reconciliation_steps(core)
    active = [client.index for client in clients if client.state.phase is Phase.ACTIVE]
    return {
        "upstairs_id": str(core.identity.upstairs_id),
        "session_id": str(core.identity.session_id),
        "up_count": _waited_for(core),
        "up_counters": {kind.value: core.acknowledged[kind] for kind in JobKind},
        "next_job_id": core.next_job_id,
        "write_bytes_out": max((core.jobs.bytes_in_progress[index] for index in active), default=0),
        "ds_count": sum(job.count for job in core.jobs),
        "ds_state": [short_name(client.state) for client in clients],
        "ds_io_count": _counts_by_outcome(core),
        "ds_reconciled": reconciled,
        "ds_reconcile_needed": to_reconcile,
        "ds_reconcile_aborted": core.reconciliations_aborted,
        "ds_live_repair_completed": [client.live_repair_completed for client in clients],
        "ds_live_repair_aborted": [client.live_repair_aborted for client in clients],
        "ds_connected": [client.connected for client in clients],
        "ds_replaced": [client.replaced for client in clients],
        "ds_extents_repaired": [client.extents_repaired for client in clients],
        "ds_extents_confirmed": [client.extents_confirmed for client in clients],
        "ds_extent_limit": 0 if core.repair is None else max(core.repair.extent_id, 0),
        "ds_delay_us": list(delays_us),
        "ds_ro_lr_skipped": [client.ro_lr_skipped for client in clients],
    }


def _reconciliation_steps(core: UpstairsCore) -> tuple[int, int]:
    """Steps done, and steps left; of the last reconciliation where none runs. Four steps an extent (§7.3)."""
    running = core.reconciliation
    return (core.reconciled_extents * 4, 0) if running is None else (running.done, running.needed - running.done)


def _waited_for(core: UpstairsCore) -> int:
    """Operations that some guest still waits for."""
    return sum(job.count for job in core.jobs if not job.acked and job.handle is not None)


def _counts_by_outcome(core: UpstairsCore) -> dict[str, list[int]]:
    """Tracked operations by what became of them on each client."""
    counts = {"in_progress": [0, 0, 0], "done": [0, 0, 0], "skipped": [0, 0, 0], "error": [0, 0, 0]}
    for job in core.jobs:
        for name, masks in zip(counts, (job.in_progress, job.done, job.skipped, job.failed)):
            for client in CLIENTS:
                counts[name][client] += masks[client].bit_count()
    return counts
