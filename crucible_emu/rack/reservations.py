"""Ports that stay ours while nobody listens on them.

What it is for: an agent that was killed comes back at its own port. While it is away the system might give that port to
any client's connection, and while the rack is down to anybody.

What it guarantees: as long as a :class:`Reservations` is open, each of its ports can be listened on by a program that
sets ``SO_REUSEADDR`` (as all servers do), and is not handed out by the system. That is safe because the kernel lets two
sockets share an address when both are marked so and at most one listens, and passes bound ports over when it looks for
a free one. Pools of Downstairs ports are held against other racks only, by a name for each hundred ports in the
kernel's list of abstract sockets, which are gone with their process.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.rack.ports import CLAIM, NONE

TRIES_MAX = 1000
CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Of both versions of IP."""


def ports_of_clients() -> range:
    """The ports that the system gives to connections of clients; none where it does not say."""
    try:
        first, last = map(int, CLIENT_PORTS.read_text().split())
    except (OSError, ValueError):
        return NONE
    return range(first, last + 1)


class Reservations:
    """Holds ports of ``address``; a context manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._held: list[socket.socket] = []
        self._claimed: set[int] = set()

    def __enter__(self) -> Reservations:
        return self

    def __exit__(self, *_: object) -> None:
        while self._held:
            self._held.pop().close()

    def hold(self, port: int, who: str) -> None:
        """Hold ``port`` for ``who``. Raises :class:`UsageError` where somebody else has it."""
        try:
            self._held.append(self._bound(port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(
                f"{who} cannot have its port {port} of {self.address}: {reason}; "
                "end the program that has it, or say --new-ports to give out others"
            ) from None

    def take(self, bad: Callable[[int], bool]) -> int:
        """Hold a port that the system chooses and that is not ``bad``."""
        rejected = []
        try:
            for _ in range(TRIES_MAX):
                found = self._bound(0)
                port: int = found.getsockname()[1]
                if not bad(port):
                    self._held.append(found)
                    return port
                rejected.append(found)
        finally:
            for each in rejected:
                each.close()
        raise UsageError(f"the system has no port of {self.address} that is not a Downstairs port of this rack")

    def claim(self, hundreds: Collection[int]) -> frozenset[int]:
        """Hold these hundreds of ports against other racks; those that another one has. None is held if there are."""
        held, refused = [], set()
        for hundred in set(hundreds) - self._claimed:
            name = socket.socket(socket.AF_UNIX)
            try:
                name.bind(f"\0crucible-emu/rack/{self.address}/{hundred * CLAIM}")
            except OSError as error:
                name.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                refused.add(hundred)
            else:
                held.append(name)
        if refused:
            for name in held:
                name.close()
        else:
            self._claimed |= set(hundreds)
            self._held += held
        return frozenset(refused)

    def _bound(self, port: int) -> socket.socket:
        found = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self.address, port))
        except BaseException:
            found.close()
            raise
        return found
