"""The lockstep API: what operators look at, and what they say is lost (apis-and-tools.md §5.5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from uuid import UUID

from pydantic import TypeAdapter

from crucible_emu.client.service import segment
from nexus.api.external_documents import SledPolicy
from nexus.api.lockstep_documents import (
    BackgroundTask,
    BackgroundTasksActivateRequest,
    PhysicalDiskPath,
    Ping,
    Saga,
    SagaResultsPage,
    SledSelector,
)
from nexus.client.asking import NexusClient

_PING = TypeAdapter(Ping)
_TASK, _TASKS = TypeAdapter(BackgroundTask), TypeAdapter(dict[str, BackgroundTask])
_SAGA, _SAGAS = TypeAdapter(Saga), TypeAdapter(SagaResultsPage)
_POLICY: TypeAdapter[SledPolicy] = TypeAdapter(SledPolicy)


class LockstepClient(NexusClient):
    """What operators say to a Nexus. The real API has no version."""

    async def ping(self) -> Ping:
        return await self._ask("GET", "/v1/ping", _PING)

    async def bgtask_list(self) -> dict[str, BackgroundTask]:
        """By name."""
        return await self._ask("GET", "/bgtasks", _TASKS)

    async def bgtask_view(self, name: str) -> BackgroundTask:
        return await self._ask("GET", f"/bgtasks/view/{segment(name)}", _TASK)

    async def bgtask_activate(self, names: Iterable[str]) -> None:
        """Answered at once; the tasks work then."""
        body = BackgroundTasksActivateRequest(bgtask_names=frozenset(names))
        await self._tell("POST", "/bgtasks/activate", body)

    def saga_list(self) -> AsyncIterator[Saga]:
        return self._all("/sagas", _SAGAS, Saga)

    async def saga_view(self, saga_id: UUID | str) -> Saga:
        return await self._ask("GET", f"/sagas/{segment(saga_id)}", _SAGA)

    async def sled_expunge(self, sled_id: UUID) -> SledPolicy:
        """Say that the sled is lost for good; the answer is what it was before."""
        return await self._ask("POST", "/sleds/expunge", _POLICY, SledSelector(sled=sled_id))

    async def physical_disk_expunge(self, disk_id: UUID) -> None:
        """Say that the disk is lost for good."""
        await self._tell("POST", "/physical-disk/expunge", PhysicalDiskPath(disk_id=disk_id))
