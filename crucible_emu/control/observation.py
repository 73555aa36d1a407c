"""Everything that a command puts around its disks to look at them: control servers, notices, metrics.

What it is for: ``crucible-emu attach`` and ``serve`` open :func:`observing` before they build a disk, and hand
:meth:`Observation.watch` to whatever builds it. Each Upstairs is watched from before it begins to activate, because a
reconciliation is over when it is active.

What it guarantees: an address that nobody can listen on is refused with a sentence before the disk is used. On
leaving, what is still to be told to the control plane has two seconds; servers end after that. Nothing here is on the
path of a block.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from crucible_emu.control.notices import Reporter
from crucible_emu.downstairs.listening import listen_on_tcp
from crucible_emu.errors import UsageError
from crucible_emu.statistics import Snapshot
from crucible_emu.upstairs.driver import Upstairs

if TYPE_CHECKING:
    from pydantic import BaseModel

    from crucible_emu.control.notifier import Notifier

WHAT = "the control API"


def utc_now() -> str:
    """The time, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Observation:
    """The disks of one command, and who looks at them. ``urls``: where the control API answers."""

    def __init__(self, nursery: trio.Nursery, notifier: Notifier | None) -> None:
        self.upstairs: list[Upstairs] = []
        self.snapshots: list[Callable[[], Snapshot]] = []
        """What else the metrics show: the snapshot methods of an NBD server's statistics, for one."""
        self.volume_info: Callable[[], BaseModel] | None = None
        """Says what the disk is made of, once there is a volume."""
        self.urls: list[str] = []
        self._nursery = nursery
        self._notifier = notifier
        self._by_address: dict[str, list[Upstairs]] = {}

    def watch(self, upstairs: Upstairs, control: str | None = None) -> None:
        """Look at ``upstairs``, which does not run yet; ``control``: where its own control API answers, the member of
        a volume construction request. Region sets that name the same address share it. Raises :class:`UsageError`."""
        self.upstairs.append(upstairs)
        if self._notifier is not None:
            report(upstairs, self._notifier)
        if control is None:
            return
        if control not in self._by_address:
            self.listen(control, [])
        served = self._by_address[control]
        if served is not self.upstairs:
            served.append(upstairs)

    def listen(self, address: str, upstairs: list[Upstairs]) -> None:
        """Answer at ``address`` for these. Raises :class:`UsageError`."""
        from crucible_emu.control.server import Control, serve_control  # half a second of imports that few need

        listener = listen_at(address)
        host, port = listener.getsockname()[:2]
        self.urls.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        self._by_address[address] = upstairs
        control = Control(upstairs, self.snapshots, self._ask_volume)
        self._nursery.start_soon(serve_control, control, listener)

    def _ask_volume(self) -> BaseModel | None:
        return None if self.volume_info is None else self.volume_info()


def check(control: str | None, notify: str | None) -> None:
    """What can be known to be wrong with the arguments of :func:`observing`. Raises :class:`UsageError`."""
    if control is not None:
        split_address(control)
    if notify is not None:
        from crucible_emu.control.notifier import check_url  # an HTTP client, which few need

        check_url(notify)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``ip:port`` or ``[ip]:port``, port 0 for any. Raises :class:`UsageError`."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5) or not host.strip("[]"):
        raise UsageError(f"{address!r} is no address for {WHAT}: write ip:port, or [ip]:port for IPv6")
    return host.strip("[]"), int(port)


def listen_at(address: str) -> socket.socket:
    """A listening socket at ``ip:port`` or ``[ip]:port``; port 0: any. Raises :class:`UsageError`."""
    return listen_on_tcp(*split_address(address), WHAT)


def report(upstairs: Upstairs, notifier: Notifier) -> None:
    """Have ``notifier`` told of repairs and lost connections."""
    reporter = Reporter(upstairs.core, utc_now)
    upstairs.on_repair = lambda news: notifier.put(reporter.repair(news))
    upstairs.on_stopped = lambda client, why: notifier.put(reporter.stopped(client, why))


@asynccontextmanager
async def observing(control: str | None = None, notify: str | None = None) -> AsyncIterator[Observation]:
    """Look at the disks that are watched inside the block: ``control`` is an address for all of them, ``notify`` the
    base URL of a receiver of notices. Raises :class:`UsageError`."""
    notifier: Notifier | None = None
    if notify is not None:
        from crucible_emu.control.notifier import Notifier

        notifier = Notifier(notify)
    async with trio.open_nursery() as nursery:
        observation = Observation(nursery, notifier)
        try:
            if notifier is not None:
                nursery.start_soon(notifier.run)
            if control is not None:
                observation.listen(control, observation.upstairs)
            yield observation
            if notifier is not None:
                await notifier.drain()
        finally:
            nursery.cancel_scope.cancel()
