"""The NBD server: exports by name, on any number of listening sockets.

What it is for: :class:`Server` holds what is served, :meth:`Server.serve` runs it. One task per listening socket
accepts; one connection is three tasks (:mod:`~crucible_emu.nbd.connection`).

What it guarantees: connections to one device share one :class:`~crucible_emu.nbd.alignment.ByteDevice`, under whatever
names it is exported, so unaligned writes stay safe across them and a flush on one covers writes answered on all.
:meth:`Server.shut_down` ends in order: no new client, no new request, everything outstanding answered, then closed;
after ``grace_s`` what remains is cut off. Cancelling :meth:`Server.serve` cuts off at once. Either way the sockets are
closed and their files removed.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import trio

from crucible_emu.blockio import BlockDevice
from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger
from crucible_emu.nbd.alignment import ByteDevice
from crucible_emu.nbd.buffers import BufferPool
from crucible_emu.nbd.connection import Connection, Limits, Served
from crucible_emu.nbd.handshake import ExportInfo, Handshake, Tls
from crucible_emu.nbd.listeners import Listener
from crucible_emu.nbd.protocol import STRING_BYTES_MAX
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.transport import SocketTransport

log = get_logger(__name__)

CONNECTIONS_MAX = 256
GRACE_S = 10.0
BLOCK_SIZE_MAX = 65536
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Export:
    """A device under a name. ``read_only`` protects a device that could be written. ``multi_conn``: tell clients that
    they may spread requests over connections. ``fast_zero``: the device zeroes faster than it writes, so a client's
    fast zeroing succeeds instead of getting ENOTSUP. ``description`` is shown by clients."""

    device: BlockDevice
    description: str = ""
    read_only: bool = False
    multi_conn: bool = True
    fast_zero: bool = False


class Server:
    """NBD for a set of exports. Raises :class:`UsageError` where the settings contradict each other.

    ``exports``: by name; ``""`` is the one that a client gets without asking. The mapping is looked at anew by every
    handshake, so exports may come and go. ``tls`` is a server-side context with a certificate; with ``require_tls``
    no client gets anywhere without it.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        tls: ssl.SSLContext | None = None,
        require_tls: bool = False,
        limits: Limits | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        if require_tls and tls is None:
            raise UsageError("TLS is required but there is no certificate: give one, or do not require TLS")
        for name, export in exports.items():
            check_export(name, export)
        self.exports = exports
        self.statistics = Statistics()
        self._tls = tls
        self._tls_mode = Tls.NONE if tls is None else Tls.REQUIRED if require_tls else Tls.OFFERED
        self._limits = limits or Limits()
        self._connections_max = connections_max
        self._pool = BufferPool()
        self._byte_devices: WeakValueDictionary[int, ByteDevice] = WeakValueDictionary()
        self._connections: set[Connection] = set()
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    async def serve(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until :meth:`shut_down` is done or the caller cancels; closes ``listeners``."""
        try:
            with self._serving:
                async with trio.open_nursery() as nursery:
                    task_status.started(self)
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept, listener, nursery)
                    # Clients that come now find no socket; those that are here finish.
                    _close(listeners)
            if self._serving.cancelled_caught:
                log.info("connections cut off at shutdown: they did not end in time")
        finally:
            _close(listeners)

    def shut_down(self, grace_s: float = GRACE_S) -> None:
        """Begin to end: what is outstanding has ``grace_s`` seconds. On the loop's thread."""
        self._accepting.cancel()
        self._serving.deadline = min(self._serving.deadline, trio.current_time() + grace_s)
        for connection in self._connections:
            connection.shut_down()

    # --- clients ---

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            try:
                connected, _ = listener.socket.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener.socket)
                continue
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    log.warning("cannot accept a connection", reason=str(error))
                    await trio.sleep(ACCEPT_PAUSE_S)
                else:  # this client is gone again already
                    log.debug("a connection was lost before it was accepted", reason=str(error))
                    await trio.lowlevel.checkpoint()
                continue
            if len(self._connections) >= self._connections_max:
                self.statistics.connections_refused += 1
                log.info("connection refused: too many", connections_max=self._connections_max)
                connected.close()
            else:
                nursery.start_soon(self._run, self._connection(connected))
            await trio.lowlevel.checkpoint()

    async def serve_socket(self, connected: socket.socket) -> None:
        """Serve one connected stream socket until its client leaves; closes it."""
        await self._run(self._connection(connected))

    def _connection(self, connected: socket.socket) -> Connection:
        connection = Connection(
            SocketTransport(connected),
            Handshake(lambda: list(self.exports), self._info, self._tls_mode),
            self._served,
            tls=self._tls,
            limits=self._limits,
            pool=self._pool,
            statistics=self.statistics,
        )
        self._connections.add(connection)
        self.statistics.connections += 1
        self.statistics.connections_open += 1
        return connection

    async def _run(self, connection: Connection) -> None:
        if self._accepting.cancel_called:
            connection.shut_down()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self.statistics.connections_open -= 1

    def _info(self, name: str) -> ExportInfo | None:
        export = self.exports.get(name)
        if export is None:
            return None
        device = export.device
        return ExportInfo(
            name,
            device.size_bytes,
            device.block_size,
            read_only=export.read_only or device.read_only,
            multi_conn=export.multi_conn,
            description=export.description,
        )

    def _served(self, name: str) -> Served | None:
        export = self.exports.get(name)
        if export is None:
            return None
        return Served(self._byte_device(export.device), export.fast_zero)

    def _byte_device(self, device: BlockDevice) -> ByteDevice:
        """The one object for all connections to ``device``, for as long as there are any."""
        found = self._byte_devices.get(id(device))
        if found is None:
            found = ByteDevice(device, trio.lowlevel.current_trio_token().run_sync_soon)
            self._byte_devices[id(device)] = found
        return found


def check_export(name: str, export: Export) -> None:
    """Raises :class:`UsageError` when no client could use the export."""
    for what, text in (("name", name), ("description", export.description)):
        if len(text.encode()) > STRING_BYTES_MAX or "\0" in text:
            raise UsageError(
                f"the export's {what} '{text[:40]}…' is too long: at most {STRING_BYTES_MAX} bytes, no zeros"
            )
    block_size = export.device.block_size
    if not 0 < block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
        raise UsageError(f"export '{name}' has blocks of {block_size} bytes: a power of two up to {BLOCK_SIZE_MAX}")
    if export.device.size_bytes % block_size:
        raise UsageError(f"export '{name}' of {export.device.size_bytes} bytes is not made of whole blocks")


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
