"""HTTP for the repair service: h11 for the words, ``sendfile`` for the extents.

Why not an application server: an extent of 64 MiB leaves here in 30 ms, and through one in 150, all of them on the
loop that also serves the guests' blocks (measured over loopback with curl; with our own client 155 and 385 ms). Here
the kernel copies the file, in a thread, since what is not in memory has to be waited for.

What it guarantees: memory does not grow with the extent. A peer that asks nothing or takes nothing for
:data:`SILENCE_S_MAX` loses its connection; request heads and bodies are bounded.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from urllib.parse import unquote

import h11
import trio

from crucible_emu.downstairs.listening import accept_forever
from crucible_emu.downstairs.repair_service import Answer, RepairService, error_answer
from crucible_emu.logs import get_logger

CONNECTIONS_MAX = 64
SILENCE_S_MAX = 30.0
BODY_BYTES_MAX = 1024
SENDFILE_BYTES = 8 * 1024 * 1024
SENDFILE_THREADS = 4
RECEIVE_BYTES = 16 * 1024

log = get_logger(__name__)


async def serve_repair(
    service: RepairService, listener: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer requests on ``listener`` until cancelled."""
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)
    threads = trio.CapacityLimiter(SENDFILE_THREADS)
    async with trio.open_nursery() as nursery:
        task_status.started()
        await accept_forever(listener, lambda peer: _Exchange(service, peer, threads).run(), nursery, limit)


class _Exchange:
    """One connection: any number of requests, one after the other."""

    def __init__(self, service: RepairService, peer: socket.socket, threads: trio.CapacityLimiter) -> None:
        self._service = service
        self._peer = peer
        self._threads = threads
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        try:
            self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while await self._one_request():
                self._http.start_next_cycle()
        except (OSError, h11.LocalProtocolError, trio.TooSlowError) as error:
            log.info("repair connection broke", reason=str(error) or type(error).__name__)

    async def _one_request(self) -> bool:
        """Read one request, answer it; whether another may follow."""
        try:
            request = await self._next_event()
            if not isinstance(request, h11.Request):
                return False
            body_bytes = 0
            while isinstance(event := await self._next_event(), h11.Data):
                body_bytes += len(event.data)
                if body_bytes > BODY_BYTES_MAX:
                    await self._send(error_answer(400, f"a body may have {BODY_BYTES_MAX} bytes"))
                    return False
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(error_answer(error.error_status_hint, str(error)))
            return False
        path = unquote(request.target.decode("latin-1").partition("?")[0])
        await self._send(self._service.answer(request.method.decode("latin-1"), path))
        return bool(self._http.our_state is h11.DONE and self._http.their_state is h11.DONE)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            with trio.fail_after(SILENCE_S_MAX):
                await trio.lowlevel.wait_readable(self._peer)
            self._http.receive_data(self._peer.recv(RECEIVE_BYTES))
        return event

    async def _send(self, answer: Answer) -> None:
        try:
            head = h11.Response(status_code=answer.status, headers=answer.headers)
            await self._send_bytes(self._http.send(head) or b"")
            if answer.descriptor is not None:
                # h11 is told that so many bytes go by, and sees none of them.
                self._http.send_with_data_passthrough(h11.Data(data=_Passing(answer.size_bytes)))  # type: ignore[arg-type]
                await self._send_file(answer.descriptor, answer.size_bytes)
            elif answer.body:
                await self._send_bytes(self._http.send(h11.Data(data=answer.body)) or b"")
            self._http.send(h11.EndOfMessage())
        finally:
            if answer.descriptor is not None:
                os.close(answer.descriptor)

    async def _send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._peer.send(view) :]
            except BlockingIOError:
                await self._writable()

    async def _send_file(self, descriptor: int, size_bytes: int) -> None:
        out, sent = self._peer.fileno(), 0
        while sent < size_bytes:
            send = partial(os.sendfile, out, descriptor, sent, min(SENDFILE_BYTES, size_bytes - sent))
            try:
                count = await trio.to_thread.run_sync(send, limiter=self._threads)
            except BlockingIOError:
                await self._writable()
                continue
            if count == 0:
                raise OSError(f"the file ended after {sent} of {size_bytes} bytes")
            sent += count

    async def _writable(self) -> None:
        with trio.fail_after(SILENCE_S_MAX):
            await trio.lowlevel.wait_writable(self._peer)


class _Passing:
    """Stands for bytes that go to the socket without h11."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes
