"""How a region set shows itself in volume info: states of an Upstairs and its clients in the words of that document."""

from __future__ import annotations

from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.members import Client
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.volume.info import (
    Connecting,
    ConnectingState,
    ConnectionMode,
    Settled,
    TargetInfo,
    UpstairsInfo,
    UpstairsNode,
    UpstairsPhase,
)

UPSTAIRS_PHASES: dict[UpstairsState, UpstairsPhase] = {
    UpstairsState.INITIALIZING: "initializing",
    UpstairsState.GO_ACTIVE: "go_active",
    UpstairsState.ACTIVE: "active",
    UpstairsState.DEACTIVATING: "deactivating",
    UpstairsState.DISABLED: "disabled",
}
CONNECTING_STATES: dict[Phase, ConnectingState] = {
    Phase.WAIT_CONNECT: "wait_connect",
    Phase.START: "negotiating",
    Phase.WAIT_FOR_PROMOTE: "negotiating",
    Phase.WAIT_FOR_REGION_INFO: "negotiating",
    Phase.GET_EXTENT_VERSIONS: "negotiating",
    Phase.WAIT_QUORUM: "wait_quorum",
    Phase.RECONCILE: "reconcile",
    Phase.LIVE_REPAIR_READY: "live_repair_ready",
}
CONNECTION_MODES: dict[Mode, ConnectionMode] = {
    Mode.NEW: "new",
    Mode.OFFLINE: "offline",
    Mode.FAULTED: "faulted",
    Mode.REPLACED: "replaced",
}


def info_of(upstairs: Upstairs) -> UpstairsNode:
    """Volume info of the region set that ``upstairs`` drives."""
    core = upstairs.core
    phases = {client.state.phase for client in core.clients}
    info = UpstairsInfo(
        state=UPSTAIRS_PHASES[core.state],
        block_size=None if core.definition is None else core.definition.block_size,
        upstairs_id=core.identity.upstairs_id,
        session_id=core.identity.session_id,
        generation=core.generation,
        read_only=core.identity.read_only,
        encrypted=core.identity.encrypted,
        reconcile_in_progress=core.reconciliation is not None,
        live_repair_in_progress=Phase.LIVE_REPAIR in phases,
        targets=tuple(_target_info(client) for client in core.clients),
    )
    return UpstairsNode(upstairs=info)


def _target_info(client: Client) -> TargetInfo:
    state = client.state
    shown: Connecting | Settled
    if state.connecting:
        shown = Connecting(state=CONNECTING_STATES[state.phase], mode=CONNECTION_MODES[state.mode])
    elif state.phase is Phase.ACTIVE:
        shown = Settled(type="active")
    elif state.phase is Phase.LIVE_REPAIR:
        shown = Settled(type="live_repair")
    else:
        shown = Settled(type="stopping")
    return TargetInfo(
        region_id=client.region_uuid,
        target_addr=client.target or None,
        repair_addr=None if client.repair_address is None else str(client.repair_address),
        state=shown,
    )
