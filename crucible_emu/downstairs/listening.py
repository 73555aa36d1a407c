"""Sockets that wait for peers: TCP ports and unix socket files, and the loop that accepts.

What it guarantees: accepting never ends the server. A process that is out of descriptors waits a little and goes on; a
peer beyond the limit of connections is turned away at once, which it notices, rather than left in the backlog, which it
does not. A unix socket file that nobody listens on any more is replaced, one in use is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger

BACKLOG = 128
DEFECTS = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
"""Errors of a socket that is none; every other one passes, such as having no descriptor left."""
PAUSE_S = 0.1
"""How long accepting rests after an error."""

log = get_logger(__name__)


def listen_on_tcp(host: str, port: int, what: str) -> socket.socket:
    """A listening, non-blocking socket at an IP address (or a name for one); port 0: the system's choice.

    ``what`` names it in the :class:`UsageError` that says why this is not possible.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port for {what}: take 0 to 65535, 0 for any that is free")
    family, kind, protocol, _, address = look_up(host, port, what)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(f"{what} cannot listen on {host} port {port}: {(error.strerror or '').lower()}") from None
    return listener


def look_up(host: str, port: int, what: str) -> tuple[int, int, int, str, Any]:
    """What ``socket`` and ``bind`` want to know of an address to listen on. Raises :class:`UsageError`."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise UsageError(f"{host!r} is no address for {what}: {error.strerror}") from None
    except UnicodeError:  # a part of it is empty, or longer than 63 bytes
        raise UsageError(f"{host!r} is no address for {what}: no machine can have that name") from None


def listen_on_unix(path: str) -> socket.socket:
    """A listening, non-blocking unix socket at ``path``. Raises :class:`UsageError`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_stale(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on the unix socket {path}: {(error.strerror or str(error)).lower()}") from None
    return listener


def _is_stale(path: str) -> bool:
    """Whether ``path`` is a socket on which nobody listens."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def close_listener(listener: socket.socket) -> None:
    """Stop listening; the file of a unix socket goes too."""
    if listener.fileno() >= 0:
        path = listener.getsockname() if listener.family == socket.AF_UNIX else None
        listener.close()
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def accept_forever(
    listener: socket.socket,
    handle: Callable[[socket.socket], Awaitable[None]],
    nursery: trio.Nursery,
    limit: trio.CapacityLimiter,
) -> None:
    """Start ``handle`` in ``nursery`` for every peer, at most as many at once as ``limit`` has room for."""
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            peer, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue
        except OSError as error:
            if error.errno in DEFECTS:
                raise
            log.warning("cannot accept a connection", reason=error.strerror)
            await trio.sleep(PAUSE_S)
            continue
        peer.setblocking(False)
        token = object()
        try:
            limit.acquire_on_behalf_of_nowait(token)
        except trio.WouldBlock:
            log.info("connection turned away", limit=limit.total_tokens)
            peer.close()
            continue
        nursery.start_soon(_handle_one, handle, peer, limit, token)


async def _handle_one(
    handle: Callable[[socket.socket], Awaitable[None]], peer: socket.socket, limit: trio.CapacityLimiter, token: object
) -> None:
    try:
        await handle(peer)
    finally:
        peer.close()
        limit.release_on_behalf_of(token)
