"""Waiting for what an agent does in the background, as the control plane does it (apis-and-tools.md §1.9).

What it is for: an agent writes a wish down and answers at once; these functions return when it has come true. Each is
one line of a recipe: :func:`ensure_region`, :func:`delete_region`, :func:`run_snapshot`, :func:`stop_snapshot`,
:func:`delete_snapshot`.

What it guarantees: each may be called again after any failure, and by somebody else at the same time, and ends in the
same state: a wish is repeated with the same request, and what is gone already counts as done. What each state of a
record means to each wait is a literal table; a state that a wait cannot come out of is :class:`UnexpectedState` and
never waited on.
"""

from __future__ import annotations

from enum import Enum, auto

from crucible_emu.agent.documents import CreateRegion, GetSnapshotResponse, Region, RunningSnapshot, State
from crucible_emu.client.agent import AgentClient
from crucible_emu.client.failures import ServiceError
from crucible_emu.client.persistence import Persistence


class Verdict(Enum):
    """What a record's state means to a wait."""

    DONE = auto()
    WAIT = auto()
    ASK_AGAIN = auto()
    IMPOSSIBLE = auto()


ENSURE: dict[State, Verdict] = {
    State.REQUESTED: Verdict.WAIT,
    State.CREATED: Verdict.DONE,
    State.TOMBSTONED: Verdict.IMPOSSIBLE,
    State.DESTROYED: Verdict.IMPOSSIBLE,
    State.FAILED: Verdict.IMPOSSIBLE,
}
"""For a region and for a running snapshot alike: ids and names are used once, and a failure is for good."""

DELETE: dict[State, Verdict] = {
    State.REQUESTED: Verdict.IMPOSSIBLE,
    State.CREATED: Verdict.IMPOSSIBLE,
    State.TOMBSTONED: Verdict.WAIT,
    State.DESTROYED: Verdict.DONE,
    State.FAILED: Verdict.ASK_AGAIN,
}
"""For a region after its DELETE was answered: it cannot be alive any more."""

STOP: dict[State, Verdict] = {
    State.REQUESTED: Verdict.IMPOSSIBLE,
    State.CREATED: Verdict.IMPOSSIBLE,
    State.TOMBSTONED: Verdict.WAIT,
    State.DESTROYED: Verdict.DONE,
    State.FAILED: Verdict.IMPOSSIBLE,
}
"""For a running snapshot after its DELETE was answered."""


class UnexpectedState(Exception):
    """A record is in a state that what was asked for cannot come out of. ``state`` is ``None`` where it is gone."""

    def __init__(self, what: str, state: State | None) -> None:
        super().__init__(what, state)
        self.what = what
        self.state = state

    def __str__(self) -> str:
        return f"{self.what} is {self.state.value if self.state is not None else 'gone'}"


async def ensure_region(agent: AgentClient, wish: CreateRegion, persistence: Persistence | None = None) -> Region:
    """The region, once it is created; the same POST is repeated until then. Raises :class:`UnexpectedState`, and what
    :meth:`Persistence.ask` raises."""

    def arrived(region: Region) -> bool:
        return _judge(ENSURE, f"region {region.id}", region.state) is Verdict.DONE

    return await (persistence or Persistence()).wait_for(lambda: agent.region_create(wish), arrived)


async def delete_region(agent: AgentClient, region_id: str, persistence: Persistence | None = None) -> None:
    """Return when the region is destroyed, or was never there. Raises as :func:`ensure_region`."""
    asking = persistence or Persistence()
    what = f"region {region_id}"
    try:
        await asking.ask(lambda: agent.region_get(region_id))
    except ServiceError as error:
        if error.status == 404:
            return
        raise

    async def look() -> Region:
        try:
            return await agent.region_get(region_id)
        except ServiceError as error:
            if error.status == 404:
                raise UnexpectedState(what, None) from error
            raise

    def ended(region: Region) -> bool:
        return _judge(DELETE, what, region.state) is not Verdict.WAIT

    def done(region: Region) -> bool:
        return _judge(DELETE, what, region.state) is Verdict.DONE

    async def attempt() -> Region:
        await asking.ask(lambda: agent.region_delete(region_id))
        return await asking.wait_for(look, ended)

    await asking.wait_for(attempt, done)


async def run_snapshot(
    agent: AgentClient, region_id: str, name: str, persistence: Persistence | None = None
) -> RunningSnapshot:
    """The snapshot's read-only Downstairs, once it runs. Raises :class:`ServiceError` (404) where there is no such
    region or snapshot, and as :func:`ensure_region`."""
    asking = persistence or Persistence()
    await asking.ask(lambda: agent.region_get(region_id))
    await asking.ask(lambda: agent.region_get_snapshot(region_id, name))

    def arrived(running: RunningSnapshot) -> bool:
        return _judge(ENSURE, f"snapshot {name} of region {region_id}", running.state) is Verdict.DONE

    return await asking.wait_for(lambda: agent.region_run_snapshot(region_id, name), arrived)


async def stop_snapshot(agent: AgentClient, region_id: str, name: str, persistence: Persistence | None = None) -> None:
    """Return when no Downstairs serves the snapshot any more. Raises as :func:`ensure_region`."""
    asking = persistence or Persistence()
    await asking.ask(lambda: agent.region_delete_running_snapshot(region_id, name))

    def stopped(found: GetSnapshotResponse) -> bool:
        running = found.running_snapshots.get(name)
        what = f"the running snapshot {name} of region {region_id}"
        return running is None or _judge(STOP, what, running.state) is Verdict.DONE

    await asking.wait_for(lambda: agent.region_get_snapshots(region_id), stopped)


async def delete_snapshot(
    agent: AgentClient, region_id: str, name: str, persistence: Persistence | None = None
) -> None:
    """Return when the snapshot is not listed any more. Raises as :func:`ensure_region`."""
    asking = persistence or Persistence()
    await asking.ask(lambda: agent.region_delete_snapshot(region_id, name))
    await asking.wait_for(
        lambda: agent.region_get_snapshots(region_id),
        lambda found: all(snapshot.name != name for snapshot in found.snapshots),
    )


def _judge(table: dict[State, Verdict], what: str, state: State) -> Verdict:
    verdict = table[state]
    if verdict is Verdict.IMPOSSIBLE:
        raise UnexpectedState(what, state)
    return verdict
