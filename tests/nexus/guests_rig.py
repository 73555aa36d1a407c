"""Instances on a plant, and guests that use their disks over NBD."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from nbd_plain_client import PlainClient
from nexus_rig import Plant
from users_rig import HasVolume, run

from crucible_emu.nbd import parse_uri
from nexus.objects.instances import active_vmm, disk_attach, instance_create
from nexus.sagas import instance_start, instance_stop
from nexus.sagas.instance_start import INSTANCE_START
from nexus.sagas.instance_stop import INSTANCE_STOP


async def make_instance(rack: Plant, *disks: HasVolume, name: str = "instance") -> str:
    """A stopped instance that has ``disks``."""
    instance_id = rack.id()
    rack.run(instance_create, instance_id, rack.project_id, name, "", rack.now())
    for disk in disks:
        rack.run(disk_attach, instance_id, disk.id, rack.now())
    return instance_id


async def start(rack: Plant, instance_id: str, sled_id: str | None = None) -> str:
    """Run it; its vmm."""
    params = instance_start.Params(instance_id=instance_id, vmm_id=rack.id(), sled_id=sled_id)
    await run(rack, INSTANCE_START, params)
    return params.vmm_id


async def stop(rack: Plant, instance_id: str) -> None:
    await run(rack, INSTANCE_STOP, instance_stop.Params(instance_id=instance_id))


async def uri(rack: Plant, instance_id: str, disk: HasVolume) -> str:
    """Where the instance's guest finds the disk."""
    found = rack.run(active_vmm, instance_id)
    disks = await rack.world.hosts.client(found.vmm).instance_disks_list()
    (where,) = (each.uri for each in disks if each.id == disk.id)
    assert where is not None
    return where


@asynccontextmanager
async def guest(rack: Plant, instance_id: str, disk: HasVolume) -> AsyncIterator[PlainClient]:
    where = parse_uri(await uri(rack, instance_id, disk))
    assert where.socket is not None
    with trio.fail_after(60):
        async with await trio.open_unix_socket(where.socket) as stream:
            yield await PlainClient(stream).enter(where.export)
