"""This project's own routes, ``/emulator/v1``: what the real rack's operator looks up in the database.

They are served beside the lockstep API, to who has the operator's token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from crucible_emu.client.service import segment
from nexus.api.emulator_documents import (
    BASE,
    CheckReport,
    LockReport,
    PhysicalDiskEntry,
    PhysicalDiskPage,
    ProjectAdd,
    ProjectEntry,
    ProjectPage,
    SagaDetail,
    SagaEntry,
    SagaPage,
    Silo,
    SiloCreate,
    SiloPage,
    SledAdd,
    SledEntry,
    SledPage,
    TokenCreate,
    TokenCreated,
    TokenEntry,
    TokenPage,
    VerifyReport,
    VolumeTree,
)
from nexus.api.replacement_documents import (
    PATH,
    Replacement,
    ReplacementDetail,
    ReplacementPage,
    ReplacementRequest,
    SurvivorDecided,
    SurvivorDecision,
    ToDoReport,
    WaitingReport,
)
from nexus.client.asking import NexusClient

_CHECK, _TREE = TypeAdapter(CheckReport), TypeAdapter(VolumeTree)
_LOCK, _VERIFIED = TypeAdapter(LockReport), TypeAdapter(VerifyReport)
_SLED, _SLEDS = TypeAdapter(SledEntry), TypeAdapter(SledPage)
_PHYSICAL_DISK, _PHYSICAL_DISKS = TypeAdapter(PhysicalDiskEntry), TypeAdapter(PhysicalDiskPage)
_SAGA, _SAGAS = TypeAdapter(SagaDetail), TypeAdapter(SagaPage)
_REPLACEMENT, _DETAIL, _REPLACEMENTS = (
    TypeAdapter(Replacement),
    TypeAdapter(ReplacementDetail),
    TypeAdapter(ReplacementPage),
)
_WAITING, _TO_DO, _DECIDED = TypeAdapter(WaitingReport), TypeAdapter(ToDoReport), TypeAdapter(SurvivorDecided)
_SILO, _SILOS = TypeAdapter(Silo), TypeAdapter(SiloPage)
_PROJECT, _PROJECTS = TypeAdapter(ProjectEntry), TypeAdapter(ProjectPage)
_TOKEN, _TOKENS = TypeAdapter(TokenCreated), TypeAdapter(TokenPage)


class EmulatorClient(NexusClient):
    """What operators of the emulator say to a Nexus."""

    async def check(self) -> CheckReport:
        """What is not as it must be."""
        return await self._ask("GET", f"{BASE}/check", _CHECK, waits=True)

    # --- volumes ---

    async def volume_view(self, volume_id: UUID | str) -> VolumeTree:
        return await self._ask("GET", f"{BASE}/volumes/{segment(volume_id)}", _TREE)

    async def volume_lock_holder(self, volume_id: UUID | str) -> LockReport:
        return await self._ask("GET", f"{BASE}/volumes/{segment(volume_id)}/lock-holder", _LOCK)

    async def volume_verify(self, volume_id: UUID | str) -> VerifyReport:
        """Read the whole volume, and compare."""
        return await self._ask("POST", f"{BASE}/volumes/{segment(volume_id)}/verify", _VERIFIED, waits=True)

    # --- hardware ---

    def sled_list(self) -> AsyncIterator[SledEntry]:
        return self._all(f"{BASE}/sleds", _SLEDS, SledEntry)

    async def sled_add(self, body: SledAdd) -> SledEntry:
        """One that is there already, by its serial, gets what is new on it."""
        return await self._ask("POST", f"{BASE}/sleds", _SLED, body)

    async def sled_expunge(self, sled_id: UUID | str) -> SledEntry:
        return await self._ask("POST", f"{BASE}/sleds/{segment(sled_id)}/expunge", _SLED)

    def physical_disk_list(self) -> AsyncIterator[PhysicalDiskEntry]:
        return self._all(f"{BASE}/physical-disks", _PHYSICAL_DISKS, PhysicalDiskEntry)

    async def physical_disk_expunge(self, disk_id: UUID | str) -> PhysicalDiskEntry:
        return await self._ask("POST", f"{BASE}/physical-disks/{segment(disk_id)}/expunge", _PHYSICAL_DISK)

    # --- sagas ---

    def saga_list(self) -> AsyncIterator[SagaEntry]:
        return self._all(f"{BASE}/sagas", _SAGAS, SagaEntry)

    async def saga_view(self, saga_id: str) -> SagaDetail:
        return await self._ask("GET", f"{BASE}/sagas/{segment(saga_id)}", _SAGA)

    async def saga_resume(self, saga_id: str) -> SagaDetail:
        return await self._ask("POST", f"{BASE}/sagas/{segment(saga_id)}/resume", _SAGA, waits=True)

    # --- replacements ---

    def replacement_list(self, state: str | None = None, *, everything: bool = False) -> AsyncIterator[Replacement]:
        """Those that are open, or in ``state``, or ``everything``."""
        wanted = "true" if everything else None
        return self._all(PATH, _REPLACEMENTS, Replacement, state=state, all=wanted)

    async def replacement_view(self, request_id: UUID | str) -> ReplacementDetail:
        return await self._ask("GET", f"{PATH}/{segment(request_id)}", _DETAIL)

    async def replacement_request(self, body: ReplacementRequest) -> Replacement:
        """Have a copy replaced that nobody says is lost."""
        return await self._ask("POST", PATH, _REPLACEMENT, body)

    async def replacement_waiting(self) -> WaitingReport:
        """What each open request waits for."""
        return await self._ask("GET", f"{PATH}/waiting", _WAITING)

    async def replacement_to_do(self) -> ToDoReport:
        """What is lost and not replaced yet."""
        return await self._ask("GET", f"{PATH}/to-do", _TO_DO)

    async def replacement_believe(self, body: SurvivorDecision) -> SurvivorDecided:
        """Say that the last good copy of a volume is to be believed."""
        return await self._ask("POST", f"{PATH}/believe", _DECIDED, body)

    # --- who is here ---

    def silo_list(self) -> AsyncIterator[Silo]:
        return self._all(f"{BASE}/silos", _SILOS, Silo)

    async def silo_create(self, body: SiloCreate) -> Silo:
        return await self._ask("POST", f"{BASE}/silos", _SILO, body)

    def project_list(self) -> AsyncIterator[ProjectEntry]:
        return self._all(f"{BASE}/projects", _PROJECTS, ProjectEntry)

    async def project_add(self, body: ProjectAdd) -> ProjectEntry:
        return await self._ask("POST", f"{BASE}/projects", _PROJECT, body)

    def token_list(self) -> AsyncIterator[TokenEntry]:
        return self._all(f"{BASE}/tokens", _TOKENS, TokenEntry)

    async def token_create(self, body: TokenCreate) -> TokenCreated:
        """The only time that the token is told."""
        return await self._ask("POST", f"{BASE}/tokens", _TOKEN, body)

    async def token_delete(self, token_id: UUID | str) -> Any:
        """Take it back."""
        await self._tell("DELETE", f"{BASE}/tokens/{segment(token_id)}")
