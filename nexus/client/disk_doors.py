"""Where on the rack's hosts an attached disk is: its NBD address.

What it is for: the API says which instance has a disk, not where its bytes can be had; the hosts know. All of them are
asked, because Nexus may start an instance on any of them.

What it guarantees: a host that does not answer costs :data:`TIMEOUT_S` and is passed over; the disk is found if its own
host answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import trio

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.host import HostClient
from crucible_emu.errors import RemoteError
from crucible_emu.host.documents import HostedDisk

TIMEOUT_S = 5.0


async def disk_door(hosts: Iterable[str], disk_id: UUID) -> HostedDisk | None:
    """The disk as a host of ``hosts`` (URLs) has it, one with an address before others; ``None`` where none has it."""
    found: list[HostedDisk] = []

    async def look(url: str) -> None:
        async with HostClient(url, timeout_s=TIMEOUT_S) as host:
            try:
                hosted = await host.hosted_instances_list()
            except (ServiceError, ServiceUnreachable, RemoteError):
                return  # passed over
        disks = [disk for instance in hosted.instances for disk in instance.disks]
        found.extend(disk for disk in disks if disk.id == str(disk_id))

    async with trio.open_nursery() as nursery:
        for url in hosts:
            nursery.start_soon(look, url)
    return max(found, key=lambda disk: (disk.uri is not None, disk.active), default=None)
