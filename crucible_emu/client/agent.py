"""A Crucible agent over HTTP (apis-and-tools.md §1.1).

What it is for: one method for each operation of ``crucible-agent-1.0.0.json``, and for this project's digests. The
waits for what an agent does in the background are in :mod:`~crucible_emu.client.regions`.
"""

from __future__ import annotations

from pydantic import TypeAdapter

from crucible_emu.agent.documents import (
    CreateRegion,
    DigestStatus,
    GetSnapshotResponse,
    Region,
    RunningSnapshot,
    Snapshot,
)
from crucible_emu.client.service import ServiceClient, segment

REGIONS = "/crucible/0/regions"

_REGION = TypeAdapter(Region)
_REGION_LIST = TypeAdapter(list[Region])
_SNAPSHOT = TypeAdapter(Snapshot)
_SNAPSHOTS = TypeAdapter(GetSnapshotResponse)
_RUNNING = TypeAdapter(RunningSnapshot)
_DIGEST = TypeAdapter(DigestStatus)


class AgentClient(ServiceClient):
    """Regions and snapshots of one agent; what each raises is in :mod:`crucible_emu.client.service`."""

    VERSION = "1.0.0"

    async def region_list(self) -> list[Region]:
        """Every region that ever was, destroyed ones included."""
        return await self._ask("GET", REGIONS, _REGION_LIST)

    async def region_create(self, wish: CreateRegion) -> Region:
        """Ask for a region, or again for the same: the answer is its record as it is now."""
        return await self._ask("POST", REGIONS, _REGION, wish)

    async def region_get(self, region_id: str) -> Region:
        return await self._ask("GET", _region(region_id), _REGION)

    async def region_delete(self, region_id: str) -> None:
        """Give the region up; it is destroyed later."""
        await self._tell("DELETE", _region(region_id))

    async def region_get_snapshots(self, region_id: str) -> GetSnapshotResponse:
        return await self._ask("GET", f"{_region(region_id)}/snapshots", _SNAPSHOTS)

    async def region_get_snapshot(self, region_id: str, name: str) -> Snapshot:
        return await self._ask("GET", _snapshot(region_id, name), _SNAPSHOT)

    async def region_delete_snapshot(self, region_id: str, name: str) -> None:
        await self._tell("DELETE", _snapshot(region_id, name))

    async def region_run_snapshot(self, region_id: str, name: str) -> RunningSnapshot:
        """Ask for a read-only Downstairs of the snapshot, or again: the answer is its record as it is now."""
        return await self._ask("POST", f"{_snapshot(region_id, name)}/run", _RUNNING)

    async def region_delete_running_snapshot(self, region_id: str, name: str) -> None:
        await self._tell("DELETE", f"{_snapshot(region_id, name)}/run")

    async def region_digest(self, region_id: str) -> DigestStatus:
        """How far the digest of a region is; this project's agents only."""
        return await self._ask("GET", f"{_region(region_id)}/digest", _DIGEST)

    async def snapshot_digest(self, region_id: str, name: str) -> DigestStatus:
        """How far the digest of a snapshot is; this project's agents only."""
        return await self._ask("GET", f"{_snapshot(region_id, name)}/digest", _DIGEST)

    async def region_digest_forget(self, region_id: str) -> None:
        """Have the region read again by the next question for its digest; this project's agents only."""
        await self._tell("DELETE", f"{_region(region_id)}/digest")

    async def snapshot_digest_forget(self, region_id: str, name: str) -> None:
        """Have the snapshot read again by the next question for its digest; this project's agents only."""
        await self._tell("DELETE", f"{_snapshot(region_id, name)}/digest")


def _region(region_id: str) -> str:
    return f"{REGIONS}/{segment(region_id)}"


def _snapshot(region_id: str, name: str) -> str:
    return f"{_region(region_id)}/snapshots/{segment(name)}"
