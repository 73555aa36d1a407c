"""How an Upstairs is, from its status document (nexus.md §9.8)."""

from __future__ import annotations

from uuid import UUID

import pytest

from crucible_emu.volume.info import (
    Connecting,
    Settled,
    TargetInfo,
    UpstairsInfo,
    UpstairsNode,
    VolumeNode,
    VolumeParts,
)
from nexus.replacement.health import Health, single_upstairs_health, upstairs_with, written_targets
from nexus.volumes import Address

ACTIVE = Settled(type="active")
LIVE_REPAIR = Settled(type="live_repair")
STOPPING = Settled(type="stopping")
REPLACED = Connecting(state="negotiating", mode="replaced")
AWAY = Connecting(state="wait_connect", mode="offline")
NEW = Connecting(state="wait_quorum", mode="new")


def upstairs(*states: Connecting | Settled, first_port: int = 1, **changed: object) -> UpstairsInfo:
    whole = UpstairsInfo(
        state="active",
        block_size=512,
        upstairs_id=UUID(int=1),
        session_id=UUID(int=2),
        generation=1,
        read_only=False,
        encrypted=True,
        reconcile_in_progress=False,
        live_repair_in_progress=False,
        targets=tuple(
            TargetInfo(region_id=UUID(int=number), target_addr=f"[fd00::1]:{number}", repair_addr=None, state=state)
            for number, state in enumerate(states, first_port)
        ),
    )
    return whole.model_copy(update=changed)


def test_single_upstairs_health_rw_basic() -> None:
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE, ACTIVE)) is Health.HEALTHY


@pytest.mark.parametrize("phase", ["initializing", "go_active", "deactivating", "disabled"])
def test_single_upstairs_health_not_active(phase: str) -> None:
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE, ACTIVE, state=phase)) is Health.NOT_ACTIVE


def test_single_upstairs_health_only_two_present_and_active() -> None:
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE)) is Health.INVALID_STATE
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE, AWAY)) is Health.REDUCED_REDUNDANCY


def test_single_upstairs_health_one_stopping() -> None:
    assert single_upstairs_health(upstairs(ACTIVE, STOPPING, ACTIVE)) is Health.REDUCED_REDUNDANCY


def test_single_upstairs_health_one_live_repair() -> None:
    assert single_upstairs_health(upstairs(ACTIVE, LIVE_REPAIR, ACTIVE)) is Health.DOWNSTAIRS_DEGRADED


def test_single_upstairs_health_two_live_repair() -> None:
    assert single_upstairs_health(upstairs(LIVE_REPAIR, LIVE_REPAIR, ACTIVE)) is Health.DOWNSTAIRS_DEGRADED


def test_single_upstairs_health_live_repair_in_progress() -> None:
    found = upstairs(ACTIVE, ACTIVE, ACTIVE, live_repair_in_progress=True)
    assert single_upstairs_health(found) is Health.DOWNSTAIRS_DEGRADED


def test_single_upstairs_health_replace() -> None:
    assert single_upstairs_health(upstairs(REPLACED, ACTIVE, ACTIVE)) is Health.REDUCED_REDUNDANCY


def test_what_is_lost_for_good_is_not_asked_for() -> None:
    """W54: the third is lost, and its turn comes when the first is good."""
    lost = [Address.parse("[fd00::1]:3")]
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE, AWAY), lost) is Health.HEALTHY
    assert single_upstairs_health(upstairs(ACTIVE, ACTIVE, LIVE_REPAIR), lost) is Health.HEALTHY
    assert single_upstairs_health(upstairs(REPLACED, ACTIVE, AWAY), lost) is Health.REDUCED_REDUNDANCY
    assert single_upstairs_health(upstairs(LIVE_REPAIR, ACTIVE, AWAY), lost) is Health.DOWNSTAIRS_DEGRADED
    going_on = upstairs(ACTIVE, ACTIVE, AWAY, live_repair_in_progress=True)
    assert single_upstairs_health(going_on, lost) is Health.DOWNSTAIRS_DEGRADED


def test_single_upstairs_health_reconciliation() -> None:
    going_on = upstairs(NEW, NEW, NEW, state="go_active", reconcile_in_progress=True)
    assert single_upstairs_health(going_on) is Health.DOWNSTAIRS_DEGRADED


def test_single_upstairs_health_ro_basic() -> None:
    assert single_upstairs_health(upstairs(ACTIVE, AWAY, AWAY, read_only=True)) is Health.HEALTHY
    assert single_upstairs_health(upstairs(AWAY, AWAY, AWAY, read_only=True)) is Health.REDUCED_REDUNDANCY


def test_upstairs_health_search() -> None:
    """Of a volume with parts and a parent, the one Upstairs is found that has the copy."""
    own, parent = upstairs(ACTIVE, ACTIVE, ACTIVE), upstairs(ACTIVE, AWAY, AWAY, first_port=11, read_only=True)
    below = VolumeNode(volume=VolumeParts(sub_volumes=(UpstairsNode(upstairs=parent),), read_only_parent=None))
    info = VolumeNode(volume=VolumeParts(sub_volumes=(UpstairsNode(upstairs=own),), read_only_parent=below))
    assert upstairs_with(info, Address.parse("[fd00::1]:2")) is own
    assert upstairs_with(info, Address.parse("[fd00::1]:12")) is parent
    assert upstairs_with(info, Address.parse("[fd00::1]:22")) is None
    assert written_targets(info) == {Address.parse(f"[fd00::1]:{port}") for port in (1, 2, 3)}
