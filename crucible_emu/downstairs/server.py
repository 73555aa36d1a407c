"""A Downstairs on the network: TCP, TLS or a unix socket in front of one region (wire-protocol.md §1.1, §6.7, §10.1).

What it is for: everything that one ``crucible-emu downstairs run`` is: the data port, the repair service beside it
(data port + 4000 unless said otherwise), the runner and its threads. A unix socket speaks the same protocol without
TLS; it is an extension, for three mirrors on one machine. Where the region is opened to be shared, an Upstairs that
came by it may read past this process (:mod:`read_grants`); a second socket beside the first is for those who ask.

What it guarantees: an Upstairs is told an address of the repair service at which other machines can reach it. Where
the service listens on every address, that is the one at which this Upstairs reached us (the real program then names
0.0.0.0, which nobody can use). A stop ends connections at once, finishes a flush that has begun, and moves what is
staged into the files, so that a clean stop loses nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from crucible_emu.downstairs.connection import Connection
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.faults import FaultInjector, Faults
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.downstairs.listening import accept_forever, close_listener, listen_on_tcp, listen_on_unix
from crucible_emu.downstairs.read_grants_service import ReadGrantsService
from crucible_emu.downstairs.repair_client import HttpSources, Sources
from crucible_emu.downstairs.repair_http import serve_repair
from crucible_emu.downstairs.repair_service import RepairService
from crucible_emu.downstairs.runner import Runner
from crucible_emu.downstairs.transport import PlainTransport, TlsTransport, Transport
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.logs import get_logger
from crucible_emu.region import Region
from crucible_emu.wire.constants import READS_PATH_SUFFIX, REPAIR_PORT_OFFSET
from crucible_emu.wire.messages import SocketAddress

CONNECTIONS_MAX = 128
READ_ONLY_BYTES_MAX = 32 * 1024 * 1024
"""What each of the many Upstairs of a read-only region may have outstanding."""
HANDSHAKE_S_MAX = 10.0
PORT_TRIES_MAX = 20
SOCKET_PATH_BYTES_MAX = 107
"""Linux takes no longer path for a unix socket."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a Downstairs is served. ``repair_port`` ``None``: data port + 4000; 0 (either port): any that is free."""

    host: str = "127.0.0.1"
    port: int = 9000
    repair_port: int | None = None
    unix_path: str | None = None
    tls: ssl.SSLContext | None = None
    faults: Faults = field(default_factory=Faults)
    faithful: bool = False
    limits: JobLimits = field(default_factory=JobLimits)


class DownstairsServer:
    """Serves ``region``, which the caller opened and closes. :meth:`run` does everything."""

    def __init__(self, region: Region, options: ServerOptions | None = None, *, sources: Sources | None = None) -> None:
        self.options = options if options is not None else ServerOptions()
        self.region = region
        limits = self.options.limits
        if region.read_only:
            limits = replace(limits, bytes_max=min(limits.bytes_max, READ_ONLY_BYTES_MAX))
        self.core = Downstairs(
            region.definition,
            read_only=region.read_only,
            limits=limits,
            faithful=self.options.faithful,
        )
        faults = self.options.faults
        self._injector = FaultInjector(faults) if faults.any else None
        self.runner = Runner(region, self.core, sources=sources or HttpSources(), injector=self._injector)
        self._connections: dict[int, Connection] = {}
        self._listener: socket.socket | None = None
        self._repair_listener: socket.socket | None = None
        self._reads_listener: socket.socket | None = None

    @property
    def address(self) -> SocketAddress:
        """Where the data port listens; known once :meth:`run` has started."""
        assert self._listener is not None
        return _bound(self._listener)

    @property
    def repair_address(self) -> SocketAddress:
        """Where the repair service listens; known once :meth:`run` has started."""
        assert self._repair_listener is not None
        return _bound(self._repair_listener)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and what the region says of itself."""
        return {
            **self.core.statistics.snapshot().as_dict(),
            "connections_open": len(self._connections),
            "readers_past_this_process": 0 if self.runner.read_grants is None else len(self.runner.read_grants),
            "region": self.region.statistics().snapshot().as_dict(),
        }

    def _connection(self, connection_id: int) -> Connection | None:
        return next((each for each in self._connections.values() if each.id == connection_id), None)

    def drop_connections(self) -> None:
        """End every connection without a word, as a broken network would. For tests."""
        for connection in list(self._connections.values()):
            connection.cut("dropped on purpose")

    async def run(self, *, task_status: trio.TaskStatus[DownstairsServer] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises :class:`UsageError` where an address cannot be listened on."""
        options = self.options
        listeners = self._listen()
        limit = trio.CapacityLimiter(CONNECTIONS_MAX)
        assert self._repair_listener is not None
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.runner.run)
                await nursery.start(serve_repair, RepairService(self.region, self.core), self._repair_listener)
                if self._reads_listener is not None and self.runner.read_grants is not None:
                    grants = ReadGrantsService(self.runner.read_grants, self.region, self._connection)
                    nursery.start_soon(grants.run, self._reads_listener)
                for listener in listeners:
                    context = options.tls if listener.family != socket.AF_UNIX else None
                    nursery.start_soon(
                        accept_forever, listener, lambda peer, tls=context: self._serve(peer, tls), nursery, limit
                    )
                task_status.started(self)
        finally:
            for listener in (*listeners, self._repair_listener):
                close_listener(listener)
            if self._reads_listener is not None:
                close_listener(self._reads_listener)
            self._keep_what_is_staged()

    def _listen(self) -> list[socket.socket]:
        """Listen everywhere; the sockets for data are returned. Raises :class:`UsageError`."""
        # Where the system chooses the data port, the one 4000 above may be taken: then it chooses again.
        tries = PORT_TRIES_MAX if self.options.port == 0 and self.options.repair_port is None else 1
        while True:
            try:
                return self._listen_once()
            except UsageError:
                tries -= 1
                if not tries:
                    raise

    def _listen_once(self) -> list[socket.socket]:
        options = self.options
        with contextlib.ExitStack() as opened:
            data = self._listener = listen_on_tcp(options.host, options.port, "the Downstairs")
            opened.callback(close_listener, data)
            repair = self._repair_listener = listen_on_tcp(options.host, self._repair_port(), "the repair service")
            opened.callback(close_listener, repair)
            unix = [] if options.unix_path is None else [listen_on_unix(options.unix_path)]
            for listener in unix:
                opened.callback(close_listener, listener)
            self._reads_listener = self._listen_for_readers()
            opened.pop_all()
        return [data, *unix]

    def _listen_for_readers(self) -> socket.socket | None:
        """Beside the unix socket, where the region is shared and the path is not too long for it."""
        path = self.options.unix_path
        if path is None or self.runner.read_grants is None:
            return None
        if len(os.fsencode(path + READS_PATH_SUFFIX)) > SOCKET_PATH_BYTES_MAX:
            log.info("nobody reads past this process: no room for another socket's path", path=path)
            return None
        return listen_on_unix(path + READS_PATH_SUFFIX)

    def _repair_port(self) -> int:
        if self.options.repair_port is not None:
            return self.options.repair_port
        port = self.address.port
        if port + REPAIR_PORT_OFFSET > 65535:
            raise UsageError(
                f"port {port} leaves no room for the repair service {REPAIR_PORT_OFFSET} above it: take a port up to "
                f"{65535 - REPAIR_PORT_OFFSET}, or give --repair-port"
            )
        return port + REPAIR_PORT_OFFSET

    async def _serve(self, peer: socket.socket, tls: ssl.SSLContext | None) -> None:
        who = _name_of(peer)
        try:
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            repair_address = self._repair_address_for(peer)
            transport: Transport = PlainTransport(peer) if tls is None else TlsTransport(peer, tls)
        except (OSError, ValueError) as error:  # gone before we looked
            log.info("connection lost", peer=who, reason=str(error))
            return
        try:
            if isinstance(transport, TlsTransport):
                with trio.fail_after(HANDSHAKE_S_MAX):
                    await transport.handshake()
            await self._talk(transport, repair_address, who)
        except (OSError, trio.TooSlowError) as error:
            log.info("handshake failed", peer=who, reason=str(error) or "too slow")
        finally:
            transport.close()

    async def _talk(self, transport: Transport, repair_address: SocketAddress, who: str) -> None:
        connection = Connection(self.runner, transport, repair_address, self._injector)
        log.info("connection opened", peer=who)
        key = id(connection)
        self._connections[key] = connection
        try:
            reason = await connection.run()
            log.info("connection closed", peer=who, connection=connection.id, reason=reason)
        finally:
            del self._connections[key]

    def _repair_address_for(self, peer: socket.socket) -> SocketAddress:
        bound = self.repair_address
        if not ipaddress.ip_address(bound.host).is_unspecified:
            return bound
        if peer.family == socket.AF_UNIX:
            loopback = "127.0.0.1" if ":" not in bound.host else "::1"
            return SocketAddress(loopback, bound.port)
        return SocketAddress(_plain_host(peer.getsockname()[0]), bound.port)

    def _keep_what_is_staged(self) -> None:
        """After everything has ended: move staged blocks into the files, where the next start finds them."""
        if self.region.read_only:
            return
        try:
            work = self.region.begin_destage()
        except (CrucibleError, RuntimeError) as error:
            log.warning("staged blocks are lost", reason=str(error))
            return
        try:
            work.run()
        except (CrucibleError, OSError) as error:
            self.region.abandon_flush(work)
            log.warning("staged blocks are lost", reason=str(error))
        else:
            self.region.finish_flush(work)


def _bound(listener: socket.socket) -> SocketAddress:
    host, port = listener.getsockname()[:2]
    return SocketAddress(_plain_host(host), port)


def _plain_host(host: str) -> str:
    """The address without a scope, and as IPv4 where it is one in IPv6 clothes."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _name_of(peer: socket.socket) -> str:
    try:
        name = peer.getpeername()
    except OSError:
        return "somebody who left"
    return f"{name[0]} port {name[1]}" if isinstance(name, tuple) else "the unix socket"
