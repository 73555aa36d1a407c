"""Where clients knock: Unix domain sockets, TCP ports, and sockets that the starter of the process opened.

What it guarantees: a listener's :meth:`Listener.uri` is an address that a client can use as it is. A socket file that
nobody listens on any more is replaced, one in use is not: that costs a :class:`UsageError`. Closing removes the socket
file that this process made, and only if it is still the same file.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass

import trio

from crucible_emu.errors import UsageError
from crucible_emu.nbd.protocol import DEFAULT_PORT
from crucible_emu.nbd.uri import UNIX_PATH_BYTES_MAX, NbdUri

BACKLOG = 128
FIRST_INHERITED_FD = 3
"""Where socket activation puts the first socket (sd_listen_fds)."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening, non-blocking socket; ``made`` is the device and inode of the socket file that we made, if any."""

    socket: socket.socket
    made: tuple[int, int] | None = None

    def uri(self, export: str = "", *, tls: bool = False) -> NbdUri:
        """The address of ``export`` here. A wildcard address becomes the loopback address."""
        name = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return NbdUri(export, socket=os.fsdecode(name), tls=tls)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0])
        return NbdUri(export, host=host, port=name[1], tls=tls)

    def close(self) -> None:
        """Stop listening and remove the socket file; a second call does nothing."""
        if self.socket.fileno() < 0:
            return
        path = self.socket.getsockname() if self.made is not None else None
        self.socket.close()
        if path is not None and _identity(path) == self.made:
            os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def listen_on_unix(path: str | os.PathLike[str]) -> Listener:
    """Listen on the Unix domain socket ``path``. Raises :class:`UsageError`."""
    name = os.fspath(path)
    if not 0 < len(os.fsencode(name)) <= UNIX_PATH_BYTES_MAX:
        raise UsageError(f"the socket path '{name}' is too long or empty: use one of 1 to {UNIX_PATH_BYTES_MAX} bytes")
    _remove_stale(name)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(name)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on '{name}': {error.strerror}; use a path in a folder that exists") from None
    listening.setblocking(False)
    return Listener(listening, _identity(name))


def _remove_stale(path: str) -> None:
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot use the socket path '{path}': {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"'{path}' exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)  # a server with a full backlog would make us wait, and it is alive
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            pass
    raise UsageError(f"'{path}' is in use by another server: stop it, or choose another path")


async def listen_on_tcp(host: str | None = "127.0.0.1", port: int = DEFAULT_PORT) -> list[Listener]:
    """Listen on ``port`` (0: any free one) of every address of ``host`` (``None``: all). Raises :class:`UsageError`."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is outside 0 to 65535")
    try:
        opened = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen on {host or 'any address'}, port {port}: {error}") from None
    # Out of Trio's wrapper: the accept loop and the connections use the plain socket.
    return [Listener(socket.socket(fileno=listener.socket.detach())) for listener in opened]


def inherited_listeners(environ: MutableMapping[str, str] = os.environ, pid: int | None = None) -> list[Listener]:
    """The sockets of socket activation (``LISTEN_FDS``, ``LISTEN_PID``); none when there was no activation.

    Takes both variables out of ``environ``, so that no child takes the sockets for its own. Raises
    :class:`UsageError` when the variables or the sockets are not what they should be.
    """
    if environ.get("LISTEN_PID") != str(os.getpid() if pid is None else pid):
        return []
    del environ["LISTEN_PID"]
    text = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"LISTEN_FDS is '{text}': it must be the number of sockets")
    return [_inherited(FIRST_INHERITED_FD + index) for index in range(int(text))]


def _inherited(descriptor: int) -> Listener:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"LISTEN_FDS passes descriptor {descriptor}, which is no socket: {error.strerror}") from None
    accepts = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if found.type != socket.SOCK_STREAM or not accepts:
        found.detach()
        raise UsageError(f"LISTEN_FDS passes descriptor {descriptor}, which does not listen for stream connections")
    os.set_inheritable(descriptor, False)
    found.setblocking(False)
    return Listener(found)
