"""NBD URIs: where an export is, as one line that every client understands.

    nbd://host[:port]/NAME          TCP
    nbd+unix:///NAME?socket=PATH    Unix domain socket
    nbds://…, nbds+unix://…         the same, TLS required

What it guarantees: ``parse(str(uri)) == uri`` for every :class:`NbdUri` that exists, and a line that is no NBD URI
costs a :class:`UsageError` that quotes it and says what would be right. The format is doc/uri.md of the NBD project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

from crucible_emu.errors import UsageError
from crucible_emu.nbd.protocol import DEFAULT_PORT, STRING_BYTES_MAX

SCHEMES: dict[str, tuple[bool, bool]] = {
    "nbd": (False, False),
    "nbds": (False, True),
    "nbd+unix": (True, False),
    "nbds+unix": (True, True),
}
"""Scheme to (Unix domain socket, TLS)."""

UNIX_PATH_BYTES_MAX = 107
"""A Unix domain socket's path is no longer (``sun_path`` less its final zero)."""


@dataclass(frozen=True, slots=True)
class NbdUri:
    """The address of one export.

    Either ``socket`` (a path; over a Unix domain socket) or ``host`` and ``port`` (TCP) is meaningful. ``user`` and
    ``parameters`` (pairs whose names begin with ``tls-`` or ``x-``) are for clients and are only carried along.
    Raises :class:`UsageError` when the parts cannot be an address.
    """

    export: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    socket: str | None = None
    tls: bool = False
    user: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if "\0" in self.export or len(self.export.encode()) > STRING_BYTES_MAX:
            raise UsageError(f"an export's name has no zero byte and at most {STRING_BYTES_MAX} bytes")
        if self.socket is None and not self.host:
            raise UsageError("an address names a host or a socket: use nbd://host/NAME or nbd+unix:///NAME?socket=PATH")
        if self.socket is not None:
            if not 0 < len(self.socket.encode()) <= UNIX_PATH_BYTES_MAX:
                raise UsageError(
                    f"the socket path '{self.socket}' is {len(self.socket.encode())} bytes long: "
                    f"use one of 1 to {UNIX_PATH_BYTES_MAX} bytes"
                )
            if self.host or self.port != DEFAULT_PORT:
                raise UsageError(f"the socket '{self.socket}' has no host ('{self.host}') and no port ({self.port})")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is outside 0 to 65535")
        for name, _ in self.parameters:
            if not name.startswith(("tls-", "x-")):
                raise UsageError(f"the parameter '{name}' is not one of an NBD address: use socket=PATH or tls-…")

    @property
    def scheme(self) -> str:
        return f"nbd{'s' if self.tls else ''}{'+unix' if self.socket is not None else ''}"

    def with_export(self, export: str) -> NbdUri:
        """The same server, another export."""
        return replace(self, export=export)

    def __str__(self) -> str:
        user = f"{quote(self.user, safe='')}@" if self.user is not None else ""
        authority = ""
        if self.socket is None:
            host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
            authority = host if self.port == DEFAULT_PORT else f"{host}:{self.port}"
        path = "/" + quote(self.export, safe="/:,;=+-._~")
        pairs = [] if self.socket is None else [("socket", self.socket)]
        query = "&".join(f"{quote(name)}={quote(value, safe='/:,.-_~')}" for name, value in [*pairs, *self.parameters])
        return f"{self.scheme}://{user}{authority}{path}{'?' if query else ''}{query}"


def parse(text: str) -> NbdUri:
    """The address in ``text``. Raises :class:`UsageError`."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"'{text}' is not an NBD address ({error}): use nbd://host:port/NAME") from None
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"'{text}' is not an NBD address: use nbd://host[:port]/NAME or nbd+unix:///NAME?socket=PATH "
            "(nbds:// and nbds+unix:// with TLS)"
        )
    unix, tls = SCHEMES[parts.scheme]
    if parts.fragment:
        raise UsageError(f"'{text}' has a fragment ('#{parts.fragment}'): write %23 for a # in a name")
    user, host = _authority(parts.netloc)
    sockets, rest = _parameters(parts.query)
    if unix and len(sockets) != 1:
        raise UsageError(f"'{text}' names {len(sockets)} sockets: add one ?socket=PATH")
    if not unix and sockets:
        raise UsageError(f"'{text}' has a socket but is a TCP address: use {parts.scheme}+unix:///NAME?socket=PATH")
    if not unix and not host:
        raise UsageError(f"'{text}' names no host: use {parts.scheme}://host[:port]/NAME")
    if unix and (host or port is not None):
        raise UsageError(f"'{text}' has a host but is the address of a socket: use {parts.scheme}:///NAME?socket=PATH")
    return NbdUri(
        export=unquote(parts.path[1:]),
        host=host,
        port=DEFAULT_PORT if port is None else port,
        socket=sockets[0] if unix else None,
        tls=tls,
        user=user,
        parameters=tuple(rest),
    )


def _authority(netloc: str) -> tuple[str | None, str]:
    """``(user, host)`` of ``user@host:port``; the host without the brackets of an IPv6 address."""
    user, at, place = netloc.rpartition("@")
    host = place[1 : place.index("]")] if place.startswith("[") else place.partition(":")[0]
    return unquote(user) if at else None, unquote(host)


def _parameters(query: str) -> tuple[list[str], list[tuple[str, str]]]:
    """``(values of socket, all other pairs)``. A ``+`` is a plus sign: paths contain it, and other clients agree."""
    pairs = [(unquote(name), unquote(value)) for name, _, value in (part.partition("=") for part in query.split("&"))]
    sockets = [value for name, value in pairs if name == "socket"]
    return sockets, [(name, value) for name, value in pairs if name not in ("socket", "")]
