"""The host: its instances, and the one directory in which they have their sockets.

What it is for: a Propolis process has one instance; a rack of many would be as many processes. :class:`Host` holds one
instance that has no name (that of ``/instance``) and any number that have a UUID of the caller's choice.

What it guarantees: a place holds one instance until that is at its end, whoever asks at the same time. Leaving
:func:`hosting` stops all instances in order: doors closed, disks flushed and out of service, sockets gone, and what is
still to be told to the control plane has its two seconds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import trio

from crucible_emu.control.notifier import Notifier
from crucible_emu.host import documents as d
from crucible_emu.host.directory import SOCKET_SUFFIX, clear, held, write_note
from crucible_emu.host.instance import Instance
from crucible_emu.host.machine import Machine, Settings
from crucible_emu.host.refusals import AlreadyInitialized, BadSpec, Forbidden, Full, NoInstance
from crucible_emu.host.spec import DiskPlan, check_replacements
from crucible_emu.logs import get_logger
from crucible_emu.nbd.uri import UNIX_PATH_BYTES_MAX
from crucible_emu.volume.kept_running import kept_running
from crucible_emu.volume.vcr import parse_address

INSTANCES_MAX = 256
"""Those that are at their end are forgotten, the oldest first, where there would be more."""
SHUTDOWN_S_MAX = 30.0
"""*Liveness*: an instance that has not ended by then is cut off. A last flush gives up after 15 s by itself."""

log = get_logger(__name__)


class Host:
    """Instances by key. Make one with :func:`hosting`; ``lost``: those of the last process, if it was killed."""

    def __init__(self, settings: Settings, lost: tuple[d.LostInstance, ...]) -> None:
        self.lost = lost
        self._settings = settings
        self._machines: dict[UUID | None, Machine] = {}
        self._leaving = False
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the instances until cancelled; :meth:`close` first."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def close(self) -> None:
        """Stop all instances and wait for their end."""
        self._leaving = True
        for machine in self._machines.values():
            try:
                machine.request("Stop")
            except Forbidden:
                pass  # it has failed, and gives back what it holds
        with trio.move_on_after(SHUTDOWN_S_MAX) as patience:
            for machine in self._machines.values():
                await machine.ended()
        if patience.cancelled_caught:
            log.warning("instances cut off: they did not end in time")

    # -- instances ----------------------------------------------------------------------------------------------------

    async def ensure(self, key: UUID | None, request: d.InstanceEnsureRequest) -> d.InstanceEnsureResponse:
        """Make an instance. It waits for Run, or, where it migrates in, goes on by itself. Raises
        :class:`~crucible_emu.host.refusals.Refused`: bad spec, there is one, it cannot be made."""
        there = self._machines.get(key)
        if there is not None and not there.instance.over:
            raise AlreadyInitialized("instance already initialized")
        instance = Instance(request)
        if isinstance(request.init, d.MigrationInit):
            _check_migration(request.init.value)
        self._make_room(key)
        machine = Machine(instance, key, self._settings, self._claim)
        self._machines.pop(key, None)  # the new one is the youngest
        self._machines[key] = machine
        self._nursery.start_soon(self._look_after, machine)
        self.lost = tuple(lost for lost in self.lost if lost.id != request.properties.id)
        self._note()
        if isinstance(request.init, d.MigrationInit):
            started = d.InstanceMigrateInitiateResponse(migration_id=request.init.value.migration_id)
            return d.InstanceEnsureResponse(migrate=started)
        try:
            await machine.prepared()
        except Exception:
            # It never was: the next may have the place. But not one that took it since.
            if self._machines.get(key) is machine:
                del self._machines[key]
            raise
        return d.InstanceEnsureResponse()

    def machine(self, key: UUID | None) -> Machine:
        """Raises :class:`NoInstance`."""
        try:
            return self._machines[key]
        except KeyError:
            raise NoInstance("Server not initialized (no instance)") from None

    def describe(self) -> d.HostedInstances:
        return d.HostedInstances(
            instances=tuple(machine.describe() for machine in self._machines.values()), lost=self.lost
        )

    async def _look_after(self, machine: Machine) -> None:
        await machine.run()
        self._note()

    def _make_room(self, key: UUID | None) -> None:
        if self._leaving:
            raise Full("this host is ending")
        if key in self._machines or len(self._machines) < INSTANCES_MAX:
            return
        for oldest, machine in self._machines.items():
            if machine.instance.over:
                del self._machines[oldest]
                return
        raise Full(f"this host has {INSTANCES_MAX} instances: no more are taken")

    def _note(self) -> None:
        running = (machine for machine in self._machines.values() if not machine.instance.released)
        write_note(
            self._settings.directory,
            [
                d.LostInstance(
                    key=machine.key,
                    id=machine.instance.properties.id,
                    name=machine.instance.properties.name,
                    disks=tuple(machine.instance.plans),
                )
                for machine in running
            ],
        )

    def _claim(self, plan: DiskPlan) -> Path:
        """The path of a disk's socket: its name, with a number where another instance has a disk of that name."""
        taken = {disk.path for machine in self._machines.values() for disk in machine.disks.values()}
        name, number = plan.file_name, 1
        while (path := self._settings.directory / f"{name}{SOCKET_SUFFIX}") in taken:
            number += 1
            name = f"{plan.file_name}-{number}"
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise BadSpec(
                f"the key {plan.id[:40]!r} is too long: the disk's socket {str(path)[:160]!r} could not be reached"
            )
        return path


def _check_migration(wanted: d.MigrationValue) -> None:
    """Raises :class:`BadSpec`."""
    check_replacements(wanted.replace_components)
    try:
        parse_address(wanted.src_addr)
    except ValueError as error:
        raise BadSpec(f"src_addr: {error}") from None


@asynccontextmanager
async def hosting(settings: Settings) -> AsyncIterator[Host]:
    """A host in the directory of ``settings`` while the block runs. Raises
    :class:`~crucible_emu.errors.UsageError` where the directory cannot be used."""
    with held(settings.directory):
        host = Host(settings, clear(settings.directory))
        write_note(settings.directory, ())
        notifier = settings.notifier
        runs = [host.run] if notifier is None else [partial(_send, notifier), host.run]
        async with kept_running(*runs):
            try:
                yield host
            finally:
                with trio.CancelScope(shield=True):
                    await host.close()
                    if notifier is not None:
                        await notifier.drain()


async def _send(notifier: Notifier, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await notifier.run()
