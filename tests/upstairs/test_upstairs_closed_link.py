"""The end of a connection to a Downstairs: what is sent after it goes nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from crucible_emu.upstairs.tcp_link import TcpLink
from crucible_emu.wire import messages as m


class Silence:
    """An Upstairs that has nothing to say."""

    def opened(self, link: object) -> None: ...

    def received(self, messages: object) -> None:
        raise AssertionError("nobody sends anything")


@pytest.mark.parametrize("gathers", [False, True])
async def test_race_of_a_send_with_a_file_that_gets_the_number_of_the_closed_socket(
    tmp_path: Path, gathers: bool
) -> None:
    """Between the end of a connection and the Upstairs hearing of it a guest may write, and a file may be opened."""
    ours, theirs = trio.socket.socketpair()
    descriptor = ours.fileno()
    stream = trio.SocketStream(ours)
    link = TcpLink(stream, uuid4(), uuid4())
    link.gathers = gathers
    theirs.close()
    assert await link.run(Silence()) == "closed by the Downstairs"  # type: ignore[arg-type]
    await trio.aclose_forcefully(stream)
    file = os.open(tmp_path / "extent", os.O_RDWR | os.O_CREAT)
    try:
        assert file == descriptor or os.dup2(file, descriptor) == descriptor
        link.send(m.Ruok())
        link.send_off()
        assert os.fstat(file).st_size == 0
    finally:
        os.close(descriptor)
        if file != descriptor:
            os.close(file)


async def test_a_link_that_was_cancelled_sends_nothing_either(tmp_path: Path) -> None:
    ours, theirs = trio.socket.socketpair()
    descriptor = ours.fileno()
    link = TcpLink(trio.SocketStream(ours), uuid4(), uuid4())
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.run(Silence())  # type: ignore[arg-type]
    link.send(m.Ruok())
    link.send_off()
    with theirs:
        ours.close()
        assert await theirs.recv(1) == b""
    with pytest.raises(OSError):
        os.fstat(descriptor)
