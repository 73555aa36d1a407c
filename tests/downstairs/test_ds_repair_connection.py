"""HTTP to a repair service: bodies of both kinds, one connection for many questions, and what ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import h11
import pytest
import trio

from crucible_emu.downstairs.repair_connection import PIECE_BYTES, RepairConnection
from crucible_emu.wire.messages import SocketAddress

KNOWN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
BIG = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (PIECE_BYTES * 2 + 7) + bytes(PIECE_BYTES * 2 + 7)


class Service:
    """Answers the nth question with the nth of its answers, whatever was asked; ``HANG UP`` ends the connection."""

    HANG_UP = b""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.connections = 0
        self.gone = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            with suppress(trio.BrokenResourceError):  # the asker may hang up before it has read everything
                await self._answer(stream)
        self.gone.set()

    async def _answer(self, stream: trio.SocketStream) -> None:
        while self.answers and await stream.receive_some(4096):
            await stream.send_all(self.answers.pop(0))
            if self.answers and self.answers[0] == self.HANG_UP:
                self.answers.pop(0)
                return


@asynccontextmanager
async def asking(*answers: bytes) -> AsyncIterator[tuple[RepairConnection, Service]]:
    service = Service(list(answers))
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, service.serve, [listener])
        port = listener.socket.getsockname()[1]
        async with aclosing(RepairConnection(SocketAddress("127.0.0.1", port))) as connection:
            yield connection, service
        nursery.cancel_scope.cancel()


async def body(connection: RepairConnection) -> bytes:
    found = b""
    while (piece := await connection.next_piece()) is not None:
        found += piece
    return found


async def asked(connection: RepairConnection) -> bytes:
    await connection.ask("/x")
    return await body(connection)


@pytest.mark.parametrize("answer", [KNOWN, CHUNKED, LAST], ids=["known length", "chunked", "the last one"])
async def test_bodies_arrive_and_the_connection_is_used_again_where_it_may_be(answer: bytes) -> None:
    async with asking(answer, answer, answer) as (connection, service):
        for _ in range(3):
            assert await connection.ask("/x") == 200
            assert await body(connection) == b"hello"
            assert await connection.next_piece() is None, "also when asked again"
        assert service.connections == (3 if answer is LAST else 1)


async def test_a_long_body_comes_in_pieces_of_a_mebibyte() -> None:
    async with asking(BIG) as (connection, _):
        await connection.ask("/x")
        lengths = []
        while (piece := await connection.next_piece()) is not None:
            lengths.append(len(piece))
        assert sum(lengths) == PIECE_BYTES * 2 + 7
        assert all(PIECE_BYTES <= length < 2 * PIECE_BYTES for length in lengths[:-1])


async def test_an_answer_that_was_not_read_to_its_end_costs_its_connection() -> None:
    async with asking(BIG, KNOWN) as (connection, service):
        await connection.ask("/x")
        await connection.next_piece()
        assert await connection.ask("/y") == 200
        assert await body(connection) == b"hello"
        assert service.connections == 2


async def test_a_service_that_hung_up_between_two_questions_is_connected_to_again() -> None:
    """The race: its farewell is in our socket before the next question is sent."""
    async with asking(KNOWN, Service.HANG_UP, KNOWN) as (connection, service):
        await connection.ask("/x")
        await body(connection)
        await service.gone.wait()
        assert await connection.ask("/y") == 200
        assert await body(connection) == b"hello"
        assert service.connections == 2


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", KNOWN[:-1]], ids=["no HTTP", "cut off"])
async def test_a_service_that_breaks_http_is_an_error(answer: bytes) -> None:
    async with asking(answer, Service.HANG_UP) as (connection, _):
        with pytest.raises(h11.RemoteProtocolError):
            await asked(connection)


async def test_a_service_that_says_nothing_and_goes_is_an_error() -> None:
    async with asking() as (connection, _):
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await connection.ask("/x")


async def test_nobody_listening_is_an_error_of_the_operating_system() -> None:
    async with asking() as (connection, _):
        pass
    with pytest.raises(OSError):
        await connection.ask("/x")
