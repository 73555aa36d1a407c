"""One disk of an instance: the volume that its backend describes, and the door through which a guest reaches it.

What it is for: :class:`Disk` is activated, opened, closed and left by the driver of its instance. The guest is any NBD
client; the door is a Unix domain socket, so that nobody but users of this machine can knock.

What it guarantees: the door is there only while the disk is in service, and closing it lets what is outstanding end.
A disk that another Upstairs took over stays where it is and says so; its guest gets errors, never old data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from crucible_emu import nbd
from crucible_emu.errors import CrucibleError
from crucible_emu.host import documents as d
from crucible_emu.host.spec import DiskPlan
from crucible_emu.logs import get_logger
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.states import UpstairsState
from crucible_emu.volume.volume import Volume

DOOR_GRACE_S = 2.0
"""How long closing a door waits for requests that are under way. Longer does not help: they wait for replicas that are
away, and a guest that is switched off has no claim to an answer."""

log = get_logger(__name__)


class Door:
    """NBD at a socket, until it is closed. Start :meth:`serve` in a nursery. Raises
    :class:`~crucible_emu.errors.UsageError` where nobody can listen at ``path``."""

    def __init__(self, volume: Volume, path: Path, *, read_only: bool) -> None:
        export = nbd.Export(volume, "a disk of an instance", read_only=read_only)
        self._server = nbd.Server({"": export})
        self._listener = nbd.listen_on_unix(path)
        self._closed = trio.Event()
        self.uri = str(self._listener.uri())

    async def serve(self) -> None:
        try:
            await self._server.serve([self._listener])
        finally:
            self._closed.set()

    async def close(self) -> None:
        self._server.shut_down(DOOR_GRACE_S)
        await self._closed.wait()


class Disk:
    """The disk of ``plan`` as ``volume``, which runs; ``upstairs`` are its region sets."""

    def __init__(self, plan: DiskPlan, volume: Volume, upstairs: list[Upstairs], path: Path) -> None:
        self.plan = plan
        self.volume = volume
        self.path = path
        self._upstairs = upstairs
        self._door: Door | None = None
        self._scrub = trio.CancelScope()

    def open(self, nursery: trio.Nursery) -> None:
        """Let guests in. Raises :class:`~crucible_emu.errors.UsageError`."""
        self._door = Door(self.volume, self.path, read_only=self.plan.read_only)
        nursery.start_soon(self._door.serve)

    async def close(self) -> None:
        """Send guests away; what they had under way has :data:`DOOR_GRACE_S`."""
        door, self._door = self._door, None
        if door is not None:
            await door.close()

    async def flush(self) -> None:
        """Make everything durable; where that fails, say so."""
        try:
            await self.volume.flush()
        except CrucibleError as error:
            log.warning("flush failed", disk=self.plan.id, error=str(error))

    async def leave(self) -> None:
        """Flush and leave service. A failure is said, not raised: the instance ends either way."""
        self._scrub.cancel()
        await self.close()
        try:
            await self.volume.leave_service()
        except CrucibleError as error:
            log.warning("the last flush failed", disk=self.plan.id, error=str(error))

    @property
    def wants_scrub(self) -> bool:
        """Whether it reads from a parent that it could do without (§6.4)."""
        volume = self.volume
        return volume.parent is not None and bool(volume.sub_volumes) and not (self.plan.read_only or volume.read_only)

    async def scrub(self, delay_s: float, pause_s: float, done: Callable[[], None]) -> None:
        """Copy what the parent holds, then call ``done``; until the disk is left."""
        with self._scrub:
            try:
                await self.volume.scrub(delay_s, pause_s)
            except CrucibleError as error:
                log.warning("scrub failed: the disk still needs its parent", disk=self.plan.id, error=str(error))
            else:
                log.info("scrub done: the disk needs no parent any more", disk=self.plan.id)
                done()

    @property
    def problem(self) -> str | None:
        """Why it serves nothing although it should, ``None`` where it does or should not."""
        for upstairs in self._upstairs:
            if upstairs.core.state is UpstairsState.DISABLED and upstairs.core.disabled_by is not None:
                return str(upstairs.core.disabled_by)
        return None

    def describe(self) -> d.HostedDisk:
        return d.HostedDisk(
            id=self.plan.id,
            volume_id=self.volume.id,
            size_bytes=self.volume.size_bytes,
            block_size=self.volume.block_size,
            read_only=self.plan.read_only or self.volume.read_only,
            active=self.volume.active,
            uri=None if self._door is None else self._door.uri,
            problem=self.problem,
        )
