"""The smallest NBD client, against scripted servers and once against a real one."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.flush import HAS_FLUSH, MAGIC, REPLY_MAGIC, FlushError, exactly, flush
from bench.lines import MIB
from bench.subjects import SUBJECTS, running

HANDSHAKE_BYTES, REQUEST_BYTES = 20, 28
GREETING = MAGIC + b"\0\3"


def export(flags: int) -> bytes:
    return struct.pack(">QH", 1 << 20, flags)


def reply(error: int = 0, cookie: int = 1) -> bytes:
    return struct.pack(">IIQ", REPLY_MAGIC, error, cookie)


@contextmanager
def serving(path: Path, script: Callable[[socket.socket], None]) -> Iterator[None]:
    """Run ``script`` with the first connection to ``path``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@pytest.mark.parametrize(("flags", "kinds"), [(HAS_FLUSH | 1, [3, 2]), (1, [2])])
def test_flush_is_asked_for_where_it_is_offered(tmp_path: Path, flags: int, kinds: list[int]) -> None:
    seen: list[int] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        exactly(connection, HANDSHAKE_BYTES)
        connection.sendall(export(flags))
        while seen[-1:] != [2]:
            seen.append(struct.unpack(">IHHQQI", exactly(connection, REQUEST_BYTES))[2])
            if seen[-1] == 3:
                connection.sendall(reply())

    with serving(tmp_path / "s", script):
        flush(tmp_path / "s")
    assert seen == kinds


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (reply(error=28), "the server answered with error 28"),
        (reply(cookie=9), "the server sent no reply to it"),
        (b"\0" * 16, "the server sent no reply to it"),
        (b"", "the server closed the connection"),
        (None, "it took longer than 0 s"),
    ],
)
def test_flush_that_fails_says_why(tmp_path: Path, answer: bytes | None, sentence: str) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        exactly(connection, HANDSHAKE_BYTES)
        connection.sendall(export(HAS_FLUSH))
        exactly(connection, REQUEST_BYTES)
        if answer is None:
            connection.recv(1)  # until the client gives up
        elif answer:
            connection.sendall(answer)

    with serving(tmp_path / "s", script), pytest.raises(FlushError, match=sentence):
        flush(tmp_path / "s", timeout_s=0.2 if answer is None else 10)


def test_stranger_and_absence_are_named(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "s", lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")),
        pytest.raises(FlushError, match="does not speak NBD"),
    ):
        flush(tmp_path / "s")
    with pytest.raises(FlushError, match="No such file"):
        flush(tmp_path / "none")


@pytest.mark.real_client
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_subject_starts_and_flushes(require_program, tmp_path: Path, subject) -> None:
    """Each row of the table is a command that works, this project's own among them."""
    for program in ("fio", *subject.programs):
        if program != "crucible-emu":
            require_program(program)
    with running(subject, tmp_path, 16 * MIB) as server:
        flush(server.place.socket)
        assert server.death() is None
