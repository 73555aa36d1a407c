"""Look at everything: the database and every agent (what ``nexus check`` finds on a live system).

How a fault is told from work under way, without anything standing still:

- One *look* reads the database, asks all agents in service what they hold, and reads the database again. What an agent
  holds is compared with both readings, and differs from both, or there is nothing to report.
- What an unfinished saga is about is left out, in either reading (:mod:`nexus.checking.business`). A saga whose ids are
  in neither reading had not begun at the first or had ended at the second, and then what it did is in the second.
- What was found is looked at *twice*, with a pause. A saga that began and ended within one look, between an agent's
  answer and the second reading, is over at the second look.

*Safety* of leaving out: a saga that runs for ever would hide a fault for as long. It waits for somebody who does not
answer, and that is a finding; and one that is stuck, or whose Nexus is dead, is a finding itself. An agent that does
not answer is no finding where its disk is expunged: then nobody expects it to.

Nothing is changed by looking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio
from sqlalchemy import Connection, select

from crucible_emu.agent.documents import GetSnapshotResponse, State
from crucible_emu.client.failures import ServiceUnreachable
from crucible_emu.errors import RemoteError
from nexus.checking.business import business
from nexus.checking.holdings import Holdings, Key, Recorded, RegionRow, differences
from nexus.checking.records import look
from nexus.db import schema
from nexus.services import ServiceRefused, World
from nexus.services.gone import dataset_gone
from nexus.volumes import Address
from nexus.volumes.freed import Dataset
from nexus.volumes.invariants import Finding

BETWEEN_LOOKS_S = 1.0
AGENT_TIMEOUT_S = 15.0
AGENTS_AT_ONCE = 8

_REGION, _SNAPSHOT, _DATASET = schema.region, schema.region_snapshot, schema.crucible_dataset

Identity = tuple[str, tuple[str, ...]]


async def check(world: World, *, between_looks_s: float = BETWEEN_LOOKS_S) -> list[Finding]:
    """Every fault, each in one sentence; nothing where all is well."""
    first = await _look(world)
    if not first:
        return []
    await trio.sleep(between_looks_s)
    seen = {_identity(each) for each in first}
    return [each for each in await _look(world) if _identity(each) in seen]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The database at one moment: what it tells by itself, what agents should hold, and what is left out."""

    findings: tuple[Finding, ...]
    recorded: Mapping[str, Recorded]
    business: frozenset[str]

    def unexplained(self, findings: Iterable[Finding]) -> list[Finding]:
        return [each for each in findings if self.business.isdisjoint(each.ids)]


async def _look(world: World) -> list[Finding]:
    before = await world.database.read(_read)
    held = await _ask_all(world, [each.dataset for each in before.recorded.values()])
    after = await world.database.read(_read)
    found = list(after.findings)
    for dataset_id, holdings in held.items():
        # A dataset that is gone by now is expected to hold nothing.
        if dataset_id not in after.recorded:
            continue
        earlier = {_identity(each) for each in before.unexplained(differences(before.recorded[dataset_id], holdings))}
        later = after.unexplained(differences(after.recorded[dataset_id], holdings))
        found += [each for each in later if _identity(each) in earlier]
    return found


def _identity(finding: Finding) -> Identity:
    return finding.invariant, finding.ids


def _read(connection: Connection) -> _Reading:
    explained = business(connection)
    findings = tuple(
        seen.finding for seen in look(connection) if not seen.explainable or explained.isdisjoint(seen.finding.ids)
    )
    return _Reading(findings, recorded_holdings(connection), explained)


_REGIONS, _SNAPSHOTS = select(_REGION), select(_SNAPSHOT)
_DATASETS = (
    select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port)
    .where(_DATASET.c.time_deleted.is_(None))
    .order_by(_DATASET.c.id)
)


def recorded_holdings(connection: Connection) -> dict[str, Recorded]:
    """What the agent of each dataset in service should hold."""
    regions: dict[str, dict[str, RegionRow]] = defaultdict(dict)
    for row in connection.execute(_REGIONS):
        regions[row.dataset_id][row.id] = RegionRow(
            row.id, row.port, row.block_size, row.blocks_per_extent, row.extent_count, row.read_only
        )
    snapshots: dict[str, dict[Key, int | None]] = defaultdict(dict)
    for row in connection.execute(_SNAPSHOTS):
        port = None if row.deleting else Address.parse(row.snapshot_addr).port
        snapshots[row.dataset_id][row.region_id, row.snapshot_id] = port
    return {
        row.id: Recorded(Dataset(*row), regions[row.id], snapshots[row.id])
        for row in connection.execute(_DATASETS).all()
        if not dataset_gone(connection, row.id)
    }


# -- agents -----------------------------------------------------------------------------------------------------------


async def _ask_all(world: World, datasets: Sequence[Dataset]) -> dict[str, Holdings]:
    """What each agent holds, by dataset; a few are asked at a time."""
    found: dict[str, Holdings] = {}
    limiter = trio.CapacityLimiter(AGENTS_AT_ONCE)

    async def one(dataset: Dataset) -> None:
        async with limiter:
            found[dataset.id] = await _ask(world, dataset)

    async with trio.open_nursery() as nursery:
        for dataset in datasets:
            nursery.start_soon(one, dataset)
    return dict(sorted(found.items()))


async def _ask(world: World, dataset: Dataset) -> Holdings:
    """Asked once: who looks for faults does not wait for a dead agent."""
    try:
        with trio.fail_after(AGENT_TIMEOUT_S):
            regions = await world.agents.regions_list(dataset)
            living = [each.id for each in regions if each.state is not State.DESTROYED]
            snapshots = {each: await _snapshots(world, dataset, each) for each in living}
    except ServiceUnreachable as error:
        return Holdings(silence=error.reason)
    except (ServiceRefused, RemoteError) as error:
        return Holdings(silence=str(error))
    except trio.TooSlowError:
        return Holdings(silence=f"nothing came for {AGENT_TIMEOUT_S:g} s")
    return Holdings(tuple(regions), snapshots)


async def _snapshots(world: World, dataset: Dataset, region_id: str) -> GetSnapshotResponse:
    try:
        return await world.agents.region_snapshots(dataset, region_id)
    except ServiceRefused as error:
        if error.status != 404:
            raise
        # Destroyed since it was listed.
        return GetSnapshotResponse(snapshots=[], running_snapshots={})
