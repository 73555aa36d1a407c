"""Replacement of a Downstairs by another one at a new address (upstairs-volume.md §9).

What it is for: a machine is gone for good, and its region with it. The volume names another Downstairs in its place,
and the Upstairs takes that one into the set: by reconciliation while it is not active, by live repair while it is. A
Downstairs may be replaced in any state of the Upstairs, and asked for again as often as the caller likes.

Why it is safe: :func:`decide` refuses while another replica is missing anything, for then the replica that is to go
may hold the only copy of a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from crucible_emu.errors import ReplaceRequestInvalid
from crucible_emu.upstairs.states import ClientState, Mode, Phase, StopReason


class ReplaceResult(StrEnum):
    """What came of a request to replace; the values are those of the real program's JSON."""

    STARTED = "started"
    STARTED_ALREADY = "started_already"
    COMPLETED_ALREADY = "completed_already"
    MISSING = "missing"
    VCR_MATCHES = "vcr_matches"


BEHIND = frozenset({Mode.REPLACED, Mode.OFFLINE, Mode.FAULTED})
"""What a connecting replica comes back from that may miss something."""


def under_way(state: ClientState) -> bool:
    """Whether a replica in ``state`` may still be on its way in after it was put in place of another."""
    if state.phase is Phase.STOPPING:
        return state.reason is StopReason.REPLACING
    return state.phase is Phase.LIVE_REPAIR or (state.connecting and state.mode is Mode.REPLACED)


def may_miss_something(state: ClientState) -> bool:
    """Whether a replica in ``state`` cannot be counted on while another one is taken out."""
    return state.phase in (Phase.STOPPING, Phase.LIVE_REPAIR) or (state.connecting and state.mode in BEHIND)


def decide(
    targets: Sequence[str], states: Sequence[ClientState], old: str, new: str
) -> tuple[ReplaceResult, int | None]:
    """What a request to replace ``old`` by ``new`` means now: the answer, and the client to replace if it begins.

    ``targets`` and ``states`` of the three clients. Raises :class:`ReplaceRequestInvalid`.
    """
    if new in targets:
        if old in targets:
            raise ReplaceRequestInvalid(f"Both old {old} and new {new} targets are in use")
        already = under_way(states[targets.index(new)])
        return (ReplaceResult.STARTED_ALREADY if already else ReplaceResult.COMPLETED_ALREADY), None
    if old not in targets:
        return ReplaceResult.MISSING, None
    leaving = targets.index(old)
    for client, state in enumerate(states):
        if client != leaving and may_miss_something(state):
            # *Safety*: see the module's essay.
            raise ReplaceRequestInvalid(f"Replace {old} failed, downstairs {client} is {state}")
    return ReplaceResult.STARTED, leaving
