"""An agent of a light rack: the answers of :class:`crucible_emu.client.agent.AgentClient`, without HTTP.

What it guarantees (nexus.md §8.1): an id is used once; a wish that is repeated is answered with what became of the
first, another wish under the same id is refused; a region with snapshots is not deleted, a snapshot that is served
neither. A clone has the bytes that its source had in the moment in which it was made. What a slow agent was asked for
comes true later, and its answers say ``requested`` or ``tombstoned`` until then.
"""

from __future__ import annotations

import trio

from crucible_emu.agent.documents import (
    CreateRegion,
    DigestStatus,
    GetSnapshotResponse,
    Region,
    RunningSnapshot,
    Snapshot,
    State,
)
from crucible_emu.client.failures import ServiceError
from nexus.explore import storage
from nexus.explore.fabric import Fabric, Sled
from nexus.explore.storage import Contents, Served

TAKEN = "2026-01-01T00:00:00Z"


class LightAgent:
    """The agent of one sled."""

    def __init__(self, fabric: Fabric, sled: Sled) -> None:
        self._fabric = fabric
        self._sled = sled
        self._url = f"[{sled.ip}]"

    # -- regions ------------------------------------------------------------------------------------------------------

    async def region_list(self) -> list[Region]:
        await self._asked()
        return [_region(each) for each in self._sled.regions.values()]

    async def region_create(self, wish: CreateRegion) -> Region:
        await self._asked()
        found = self._sled.regions.get(wish.id)
        if found is None:
            contents = Contents(wish.extent_size, wish.extent_count)
            state = State.REQUESTED if self._sled.trouble.slow_s else State.CREATED
            found = storage.Region(wish, self._sled.free_port(), state, contents, self._later())
            self._sled.regions[wish.id] = found
            if state is State.CREATED:
                self._fill(found)
        elif found.wish != wish:
            self._fabric.contradictions.append(f"agent {self._url} was asked for two regions {wish.id}")
            raise ServiceError(409, f"region {wish.id} exists with other parameters")
        self._sled.answer(self._url)
        return _region(found)

    async def region_get(self, region_id: str) -> Region:
        await self._asked()
        return _region(self._known(region_id))

    async def region_delete(self, region_id: str) -> None:
        await self._asked()
        found = self._known(region_id)
        if found.snapshots:
            raise ServiceError(400, f"region {region_id} has snapshots: delete them first")
        if found.state not in (State.DESTROYED, State.TOMBSTONED):
            found.state = State.TOMBSTONED if self._sled.trouble.slow_s else State.DESTROYED
            found.ready_s = self._later()
        self._sled.answer(self._url)

    # -- snapshots ----------------------------------------------------------------------------------------------------

    async def region_get_snapshots(self, region_id: str) -> GetSnapshotResponse:
        await self._asked()
        region = self._known(region_id)
        return GetSnapshotResponse(
            snapshots=[Snapshot(name=name, created=TAKEN) for name in region.snapshots],
            running_snapshots={name: _running(region_id, name, served) for name, served in region.served.items()},
        )

    async def region_get_snapshot(self, region_id: str, name: str) -> Snapshot:
        await self._asked()
        if name not in self._known(region_id).snapshots:
            raise ServiceError(404, f"there is no snapshot {name} of region {region_id}")
        return Snapshot(name=name, created=TAKEN)

    async def region_delete_snapshot(self, region_id: str, name: str) -> None:
        await self._asked()
        region = self._known(region_id)
        served = region.served.get(name)
        if served is not None and served.state is not State.DESTROYED:
            raise ServiceError(400, f"snapshot {name} of region {region_id} is served: stop that first")
        region.snapshots.pop(name, None)
        self._sled.answer(self._url)

    async def region_run_snapshot(self, region_id: str, name: str) -> RunningSnapshot:
        await self._asked()
        region = self._known(region_id)
        if name not in region.snapshots:
            raise ServiceError(404, f"there is no snapshot {name} of region {region_id}")
        found = region.served.get(name)
        if found is None:
            state = State.REQUESTED if self._sled.trouble.slow_s else State.CREATED
            found = region.served[name] = Served(self._sled.free_port(), state, self._later())
        self._sled.answer(self._url)
        return _running(region_id, name, found)

    async def region_delete_running_snapshot(self, region_id: str, name: str) -> None:
        await self._asked()
        found = self._known(region_id).served.get(name)
        if found is None:
            raise ServiceError(404, f"snapshot {name} of region {region_id} was never served")
        if found.state not in (State.DESTROYED, State.TOMBSTONED):
            found.state = State.TOMBSTONED if self._sled.trouble.slow_s else State.DESTROYED
            found.ready_s = self._later()
        self._sled.answer(self._url)

    # -- digests ------------------------------------------------------------------------------------------------------

    async def region_digest(self, region_id: str) -> DigestStatus:
        await self._asked()
        region = self._known(region_id)
        if region.state is not State.CREATED:
            raise ServiceError(404, f"region {region_id} is {region.state.value}")
        return _digest(region.contents, region.read_only)

    async def snapshot_digest(self, region_id: str, name: str) -> DigestStatus:
        await self._asked()
        contents = self._known(region_id).snapshots.get(name)
        if contents is None:
            raise ServiceError(404, f"there is no snapshot {name} of region {region_id}")
        return _digest(contents, True)

    async def region_digest_forget(self, region_id: str) -> None:
        await self._asked()
        self._known(region_id)

    async def snapshot_digest_forget(self, region_id: str, name: str) -> None:
        await self._asked()
        self._known(region_id)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _asked(self) -> None:
        await trio.lowlevel.checkpoint()
        self._sled.request(self._url)
        now_s = self._fabric.now_s()
        for region in self._sled.regions.values():
            if region.state is State.REQUESTED and region.ready_s <= now_s:
                region.state = State.CREATED
                self._fill(region)
            elif region.state is State.TOMBSTONED and region.ready_s <= now_s:
                region.state = State.DESTROYED
            for served in region.served.values():
                if served.ready_s <= now_s and served.state in AFTER:
                    served.state = AFTER[served.state]

    def _later(self) -> float:
        return self._fabric.now_s() + self._sled.trouble.slow_s

    def _known(self, region_id: str) -> storage.Region:
        found = self._sled.regions.get(region_id)
        if found is None:
            raise ServiceError(404, f"there is no region {region_id}")
        return found

    def _fill(self, region: storage.Region) -> None:
        """A clone takes the bytes of its source as they are now; without a source that answers it has failed."""
        if region.wish.source is None:
            return
        source = self._fabric.repair_source(region.wish.source)
        if source is None or (source.blocks_per_extent, source.extent_count) != (
            region.contents.blocks_per_extent,
            region.contents.extent_count,
        ):
            region.state = State.FAILED
            return
        region.contents = source.copy()


AFTER = {State.REQUESTED: State.CREATED, State.TOMBSTONED: State.DESTROYED}


def _region(region: storage.Region) -> Region:
    wish = region.wish
    return Region(
        id=wish.id,
        state=region.state,
        block_size=wish.block_size,
        extent_size=wish.extent_size,
        extent_count=wish.extent_count,
        encrypted=wish.encrypted,
        port_number=region.port,
        source=wish.source,
        read_only=region.read_only,
    )


def _running(region_id: str, name: str, served: Served) -> RunningSnapshot:
    return RunningSnapshot(id=region_id, name=name, port_number=served.port, state=served.state)


def _digest(contents: Contents, immutable: bool) -> DigestStatus:
    waiting = [mark.dirty and not immutable for mark in contents.marks]
    extents = [None if wait else contents.digest(extent) for extent, wait in enumerate(waiting)]
    return DigestStatus(
        state="done",
        extents_done=contents.extent_count,
        extent_count=contents.extent_count,
        extents_waiting=sum(waiting),
        extents=extents,
        digest=None if any(waiting) else "-".join(str(each) for each in extents),
        immutable=immutable,
    )
