"""The socket on which an Upstairs asks to read past its Downstairs (:mod:`read_grants`), and shows it memory in which
the data of its writes are (:mod:`peer_memory`).

What it is for: one line in, one line out, descriptors with either. The connection stays open as long as what was
granted: its end tells the peer that it has ended, also where this process was killed and could not say so otherwise.

What it guarantees: a peer that sends nothing, too much or anything else is told so, or not, and costs nothing but its
connection; there are few at a time, and none for long that were not let in. No descriptor stays open for a peer but its
socket, and that of memory that is mapped.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from crucible_emu.descriptors import close_all, receive_line, send_line
from crucible_emu.downstairs.connection import Connection
from crucible_emu.downstairs.listening import accept_forever
from crucible_emu.downstairs.peer_memory import close_with, mapped
from crucible_emu.downstairs.read_grants import ASK_BYTES_MAX, NotGranted, Question, ReadGrants, question_in
from crucible_emu.logs import get_logger
from crucible_emu.region import Region

PEERS_MAX = 16
ASK_S_MAX = 5.0
"""How long a peer may take to ask, and to take its answer."""

log = get_logger(__name__)


class ReadGrantsService:
    """Answers whoever asks. ``connection``: the open connection of this number, if there is one."""

    def __init__(self, grants: ReadGrants, region: Region, connection: Callable[[int], Connection | None]) -> None:
        self._grants = grants
        self._region = region
        self._connection = connection

    async def run(self, listener: socket.socket) -> None:
        """Answer on ``listener`` until cancelled."""
        limit = trio.CapacityLimiter(PEERS_MAX)
        async with trio.open_nursery() as nursery:
            await accept_forever(listener, self._serve, nursery, limit)

    async def _serve(self, connected: socket.socket) -> None:
        with trio.socket.from_stdlib_socket(connected) as peer:
            try:
                with trio.fail_after(ASK_S_MAX):
                    line, descriptors = await receive_line(peer, ASK_BYTES_MAX)
                try:
                    await self._answer(peer, line, descriptors)
                except NotGranted as refused:
                    with trio.fail_after(ASK_S_MAX):
                        await send_line(peer, {"refused": str(refused)})
                finally:
                    close_all(descriptors)
            except trio.TooSlowError:
                log.info("a peer that asks for reads is silent")
            except OSError as error:
                log.info("a peer that asks for reads was lost", reason=str(error))

    async def _answer(self, peer: trio.socket.SocketType, line: bytes, descriptors: list[int]) -> None:
        """Answer, and stay for as long as what was granted lasts. Raises :class:`NotGranted`."""
        question = question_in(line)
        if question.memory_bytes is None:
            await self._let_in(peer, question)
        else:
            await self._take_up(peer, question, question.memory_bytes, descriptors)

    async def _let_in(self, peer: trio.socket.SocketType, question: Question) -> None:
        scope = trio.CancelScope()
        ended = scope.cancel
        granted = self._grants.grant(question, ended)
        try:
            with scope:
                with self._grants.shared.descriptors(self._region.path) as descriptors, trio.fail_after(ASK_S_MAX):
                    await send_line(peer, {"granted": granted}, descriptors)
                await peer.recv(1)  # nothing more is asked for: whatever comes, it is over
        finally:
            self._grants.left(ended)

    async def _take_up(
        self, peer: trio.socket.SocketType, question: Question, size_bytes: int, descriptors: list[int]
    ) -> None:
        """Let the writer's messages refer to its memory. *Safety*: the connection to it is closed when nothing here
        does any more, and not before."""
        connection = self._connection(self._grants.writer(question))
        if connection is None or connection.refers_to_memory:
            raise NotGranted("this session has shown its memory already")
        memory = mapped(descriptors, size_bytes)
        connection.refer_to(memory)
        try:
            with trio.fail_after(ASK_S_MAX):
                await send_line(peer, {"granted": {"region": str(self._region.definition.uuid)}})
        except BaseException:
            connection.refer_to(None)
            raise
        close_with(memory, peer.detach())
