"""Hosts, as sagas ask them: what Propolis and the sled agent are to the real one (nexus.md §8.3).

A host runs the guests' ends of disks on one sled; it is known by its sled, and each instance on it by its vmm. What it
guarantees is what :mod:`nexus.services.agents` does: a host is gone when its sled is expunged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from crucible_emu.client.host import HostClient
from crucible_emu.client.persistence import Persistence
from nexus.db import Database
from nexus.services.connections import Connections
from nexus.services.gone import sled_gone
from nexus.services.refusals import told_of
from nexus.volumes import Address

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Vmm:
    """A process that runs an instance, and where its host listens."""

    vmm_id: str
    instance_id: str
    sled_id: str
    address: Address


class Hosts:
    """All hosts of the rack. ``persistence`` says how long the pauses are; its ``gone`` is not used."""

    def __init__(self, database: Database, connections: Connections, persistence: Persistence) -> None:
        self._database = database
        self._connections = connections
        self._persistence = persistence

    async def ask(self, vmm: Vmm, what: str, request: Callable[[HostClient], Awaitable[T]]) -> T:
        """The answer of the instance's process to ``request``, which may be repeated. Raises
        :class:`~nexus.services.refusals.Gone`, :class:`~nexus.services.refusals.ServiceRefused`."""

        async def gone() -> bool:
            return await self._database.read(lambda c: sled_gone(c, vmm.sled_id))

        with told_of(what):
            return await replace(self._persistence, gone=gone).ask(lambda: request(self.client(vmm)))

    async def snapshot(self, vmm: Vmm, disk_id: str, snapshot_id: str) -> None:
        """Have the guest's disk flushed, and its Downstairs take a snapshot of that name. Raises as :meth:`ask`."""
        await self.ask(
            vmm,
            f"the snapshot {snapshot_id} of disk {disk_id}",
            lambda host: host.instance_issue_crucible_snapshot_request(disk_id, snapshot_id),
        )

    def client(self, vmm: Vmm) -> HostClient:
        """For single questions, that are not repeated."""
        return self._connections.host(vmm.address).instance(vmm.instance_id)
