"""Our client against a server that others wrote: nbdkit."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from test_client_copying import scattered, sparse_file

from crucible_emu.client import sync
from crucible_emu.client.failures import RequestFailed

MIB = 1 << 20
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def nbdkit(program: str, path: Path, *options: str) -> Iterator[str]:
    """nbdkit on a socket that is open before it starts, so that nobody has to wait for it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        words = [sys.executable, "-c", HAND_OVER, str(listening.fileno()), program, "-f", *options]
        process = subprocess.Popen(words, pass_fds=[listening.fileno()])
        try:
            yield f"nbd+unix:///?socket={path}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def serve_by_nbdkit(require_program: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        program = require_program("nbdkit")
        yield lambda *words: stack.enter_context(nbdkit(program, tmp_path / "kit.sock", *words))


@pytest.mark.real_client
@pytest.mark.parametrize("options", [[], ["--filter=noextents"], ["--filter=nozero"], ["--no-sr"]])
def test_copies_through_nbdkit(serve_by_nbdkit: Callable[..., str], tmp_path: Path, options: list[str]) -> None:
    size = 5 * MIB + 1234
    content = sparse_file(tmp_path / "image", size, scattered(1, size) | {MIB: random.Random(2).randbytes(2 * MIB)})
    with sync.open(serve_by_nbdkit(*options, "memory", "8M")) as disk:
        assert disk.can_map is (options != ["--no-sr"])
        disk.write(0, b"\xee" * (8 * MIB))
        copied = disk.copy_in(tmp_path / "image")
        assert disk.copy_out(tmp_path / "back", length=size).blake3 == copied.blake3
        assert disk.read(size, 8 * MIB - size) == b"\xee" * (8 * MIB - size)
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.real_client
def test_a_server_that_says_no_block_by_block(serve_by_nbdkit: Callable[..., str], tmp_path: Path) -> None:
    with sync.open(serve_by_nbdkit("-r", "memory", "1M")) as disk:
        assert disk.read_only
    uri = f"nbd+unix:///?socket={tmp_path / 'kit.sock'}"
    with sync.open(uri) as disk, pytest.raises(RequestFailed, match="read-only"):
        disk.write(0, bytes(512))


@pytest.mark.real_client
def test_errors_of_nbdkit_are_told(serve_by_nbdkit: Callable[..., str], tmp_path: Path) -> None:
    uri = serve_by_nbdkit("--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%")
    with sync.open(uri) as disk:
        disk.write(0, b"x" * 512)
        with pytest.raises(RequestFailed, match="READ"):
            disk.copy_out(tmp_path / "out")
        disk.write(0, bytes(512))
    assert not (tmp_path / "out").exists()
