"""Pantries, as sagas ask them (nexus.md §8.2).

A volume without a guest is attached to some pantry for as long as it takes. Which one is written down by who attaches;
the address alone is kept. What it guarantees is what :mod:`nexus.services.agents` does, with another rule for gone: a
pantry that is not listed any more, or whose sled is expunged, will never answer. To detach from such a one is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import trio

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.pantry import PantryClient
from crucible_emu.client.persistence import Persistence
from crucible_emu.errors import RemoteError
from crucible_emu.pantry.documents import ReplaceResult
from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import Database
from nexus.saga import ActionFailed
from nexus.services.connections import Connections
from nexus.services.gone import pantries_listed, pantry_gone
from nexus.services.refusals import Gone, ServiceRefused, told_of
from nexus.volumes import Address

PantryAddress = Address
HEALTH_TIMEOUT_S = 5.0
ACTIVATION_TIMEOUT_S = 120.0
"""*Liveness*: a volume with a lost copy is never activated. Who waits for that may hold what the replacement of the
copy needs: the disk, or the lock of its volume."""

T = TypeVar("T")


class Pantries:
    """All pantries of the rack. ``persistence`` says how long the pauses are; its ``gone`` is not used."""

    def __init__(self, database: Database, connections: Connections, persistence: Persistence) -> None:
        self._database = database
        self._connections = connections
        self._persistence = persistence

    async def choose(self, seed: str) -> PantryAddress:
        """One that answers; ``seed`` says where the search begins. Raises :class:`~nexus.saga.ActionFailed`."""
        listed = await self._database.read(pantries_listed)
        start = sum(seed.encode()) % len(listed) if listed else 0
        for address in listed[start:] + listed[:start]:
            try:
                with trio.fail_after(HEALTH_TIMEOUT_S):
                    await self._connections.pantry(address).pantry_status()
            except (ServiceError, ServiceUnreachable, RemoteError, trio.TooSlowError):
                continue
            return address
        raise ActionFailed("no pantry answers" if listed else "no pantry is known", "unavailable")

    async def attach(self, address: PantryAddress, attachment_id: str, request: VolumeConstructionRequest) -> None:
        """Attach and activate, and wait for that, but not for ever: what was attached stays, and is to be detached.
        Raises :class:`Gone`, :class:`~nexus.services.refusals.ServiceRefused`."""
        with trio.move_on_after(ACTIVATION_TIMEOUT_S) as patience:
            await self._ask(address, attachment_id, lambda pantry: pantry.attach(attachment_id, request))
        if patience.cancelled_caught:
            reason = "it is not activated: a copy of it does not answer, or is lost"
            raise ServiceRefused(f"{attachment_id} at the pantry {address}", reason)

    async def attach_in_background(
        self, address: PantryAddress, attachment_id: str, job_id: str, request: VolumeConstructionRequest
    ) -> None:
        """Attach, and activate in a job: its end is told by :meth:`job_finished`. Raises as :meth:`attach`."""
        await self._ask(
            address,
            attachment_id,
            lambda pantry: pantry.attach_activate_background(attachment_id, job_id, request),
        )

    async def snapshot(self, address: PantryAddress, attachment_id: str, snapshot_id: str) -> None:
        """Flush what is attached, and have its Downstairs take a snapshot of that name; with a lost copy that cannot be
        done, and is not tried for ever. Raises as :meth:`attach`."""
        with trio.move_on_after(ACTIVATION_TIMEOUT_S) as patience:
            await self._ask(address, attachment_id, lambda pantry: pantry.snapshot(attachment_id, snapshot_id))
        if patience.cancelled_caught:
            reason = "no snapshot can be taken: a copy of it does not answer, or is lost"
            raise ServiceRefused(f"{attachment_id} at the pantry {address}", reason)

    async def bulk_write(self, address: PantryAddress, attachment_id: str, offset: int, data: bytes) -> None:
        """Raises as :meth:`attach`."""
        await self._ask(address, attachment_id, lambda pantry: pantry.bulk_write(attachment_id, offset, data))

    async def bulk_read(self, address: PantryAddress, attachment_id: str, offset: int, size_bytes: int) -> bytes:
        """Raises as :meth:`attach`."""
        return await self._ask(
            address, attachment_id, lambda pantry: pantry.bulk_read(attachment_id, offset, size_bytes)
        )

    async def replace(
        self, address: PantryAddress, attachment_id: str, request: VolumeConstructionRequest
    ) -> ReplaceResult:
        """Have what is attached be made of ``request`` from now on. Raises as :meth:`attach`."""
        return await self._ask(address, attachment_id, lambda pantry: pantry.replace(attachment_id, request))

    async def detach(self, address: PantryAddress, attachment_id: str) -> None:
        """Return when it is not attached there; one that is gone has nothing attached."""
        try:
            await self._ask(address, attachment_id, lambda pantry: pantry.detach(attachment_id))
        except Gone:
            return

    def client(self, address: PantryAddress) -> PantryClient:
        """For single questions, that are not repeated."""
        return self._connections.pantry(address)

    async def is_gone(self, address: PantryAddress) -> bool:
        return await self._database.read(lambda c: pantry_gone(c, address))

    async def _ask(
        self, address: PantryAddress, attachment_id: str, request: Callable[[PantryClient], Awaitable[T]]
    ) -> T:
        persistence = replace(self._persistence, gone=lambda: self.is_gone(address))
        with told_of(f"{attachment_id} at the pantry {address}"):
            return await persistence.ask(lambda: request(self.client(address)))
