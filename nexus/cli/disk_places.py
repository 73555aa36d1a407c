"""Where a disk's bytes can be had: an instance that has it, and its address on a host.

What it is for: a rack has no virtual machines; what stands in for one is an instance without processor or memory, whose
disks are open to NBD clients while it runs. ``attach`` and ``export`` bring a disk there and back.

What it guarantees: said again, each does nothing that was done before: an attached disk is found where it is, a
detached one is left alone. An instance that was made here, which its description says, goes with its last disk; one
that a person made is only stopped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from crucible_emu.errors import RemoteError, UsageError
from nexus.api.external_documents import Disk, StateWithInstance
from nexus.api.instance_documents import Instance, InstanceCreate, UsualInterfaces
from nexus.cli.session import Session, all_of, or_none

MADE_HERE = "made by nexus disk attach"
WAIT_S_MAX = 300.0
"""How long an instance may take to start or stop: a disk's replicas agree first, and flush in the end."""
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """A disk that can be used. ``new``: it was brought there for this, and is to be taken back."""

    disk: Disk
    instance: str
    uri: str
    new: bool


async def place(nexus: Session, disk: str, instance: str | None) -> Place:
    """Attach the disk to ``instance`` where no instance has it, and start that. Raises :class:`RemoteError` where it
    does not come up."""
    found = await nexus.external.disk_view(disk, nexus.within(disk))
    holder, new = await _holder(nexus, found, instance)
    if holder.run_state not in ("running", "starting"):
        await nexus.external.instance_start(str(holder.id))
    await _until(nexus, holder, "running")
    uri = await _address(nexus, found)
    return Place(await nexus.external.disk_view(str(found.id)), holder.name, uri, new)


async def _holder(nexus: Session, disk: Disk, wanted: str | None) -> tuple[Instance, bool]:
    """The instance that has the disk, or has it now."""
    if isinstance(disk.state, StateWithInstance):
        holder = await nexus.external.instance_view(str(disk.state.instance))
        if wanted not in (None, holder.name, str(holder.id)):
            raise UsageError(f"disk {disk.name} is attached to {holder.name}: detach it there first")
        return holder, False
    name = wanted or disk.name
    found = await or_none(nexus.external.instance_view(name, nexus.within(name)))
    if found is None:
        found = await nexus.external.instance_create(_instance(name), nexus.project)
    await nexus.external.instance_disk_attach(str(found.id), str(disk.id))
    return await nexus.external.instance_view(str(found.id)), True


def _instance(name: str) -> InstanceCreate:
    return InstanceCreate(
        name=name,
        description=MADE_HERE,
        hostname=name,
        memory=0,
        ncpus=0,
        start=False,
        network_interfaces=UsualInterfaces(type="none"),
    )


async def leave(nexus: Session, disk: str) -> Disk:
    """Stop the instance that has the disk, and take the disk from it."""
    found = await nexus.external.disk_view(disk, nexus.within(disk))
    if not isinstance(found.state, StateWithInstance):
        return found
    holder = await nexus.external.instance_view(str(found.state.instance))
    if holder.run_state not in ("stopped", "stopping", "failed"):
        await nexus.external.instance_stop(str(holder.id))
    await _until(nexus, holder, "stopped", "failed")
    await nexus.external.instance_disk_detach(str(holder.id), str(found.id))
    if holder.description == MADE_HERE and not await all_of(nexus.external.instance_disk_list(str(holder.id))):
        await nexus.external.instance_delete(str(holder.id))
    return await nexus.external.disk_view(str(found.id))


async def _until(nexus: Session, instance: Instance, *states: str) -> None:
    async def seen() -> bool:
        now = await nexus.external.instance_view(str(instance.id))
        if now.run_state == "failed" and "failed" not in states:
            raise RemoteError(f"instance {instance.name} has failed: see what its sled's host says in its log")
        return now.run_state in states

    await _wait(seen, f"instance {instance.name} is not {states[0]}")


async def _address(nexus: Session, disk: Disk) -> str:
    """Its NBD address, as soon as its host has one."""
    from nexus.client.disk_doors import disk_door  # here, because all of a host stands behind its documents

    hosts = [url_of(sled.host) for sled in await all_of(nexus.emulator.sled_list()) if sled.policy != "expunged"]
    uris: list[str] = []

    async def seen() -> bool:
        door = await disk_door(hosts, disk.id)
        if door is not None and door.problem is not None:
            raise RemoteError(f"disk {disk.name} serves nothing: {door.problem}")
        uris.extend(() if door is None or door.uri is None else (door.uri,))
        return bool(uris)

    await _wait(seen, f"no host has an address for disk {disk.name}")
    return uris[0]


def url_of(address: str) -> str:
    """The URL of what listens at ``ip:port``."""
    return address if "://" in address else f"http://{address}"


async def _wait(seen: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """*Liveness*: not for ever, for nobody may be about to change anything."""
    with trio.move_on_after(WAIT_S_MAX):
        while not await seen():  # noqa: ASYNC110  what changes is somewhere else
            await trio.sleep(POLL_S)
        return
    raise RemoteError(f"{otherwise} after {WAIT_S_MAX:.0f} s")
