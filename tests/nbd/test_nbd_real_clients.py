"""Unmodified clients against the door, over a memory device."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbd_real_clients as real
import pytest
import trio
from nbd_door import Certificates, Running, running

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd import Export, NbdUri, listen_on_tcp

pytestmark = pytest.mark.real_client

Serve = Callable[..., Running]
Program = Callable[[str], str]
ACTIVATED = Path(__file__).parent / "nbd_activated.py"


@pytest.fixture
def bench(
    require_program: Program, require_libnbd: Callable[[], ModuleType], tmp_path: Path
) -> Callable[..., real.Bench]:
    folder = tmp_path / "client"
    folder.mkdir()
    return lambda uri: real.Bench(uri, require_program, require_libnbd, folder)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("client", real.CLIENTS)
def test_over_a_unix_socket(client: str, block_size: int, export: Serve, bench: Callable[..., real.Bench]) -> None:
    device = MemoryDevice(real.SIZE_BYTES_MIN, block_size)
    server = export(device, description="a disk in memory", fast_zero=block_size == 512)
    real.CLIENTS[client](bench(server.uri))
    assert "RemoteError" not in server.server.statistics.errors


@pytest.mark.parametrize("client", ["nbdinfo", "nbdcopy", "qemu-img-convert", "qemu-io-blkverify", "fio-verify"])
def test_over_tcp_under_a_name(client: str, bench: Callable[..., real.Bench], tmp_path: Path) -> None:
    listeners = trio.run(listen_on_tcp, "127.0.0.1", 0)
    exports = {"disk one": Export(MemoryDevice(real.SIZE_BYTES_MIN, 512), fast_zero=True)}
    with running(exports, tmp_path / "unused", listeners):
        real.CLIENTS[client](bench(listeners[0].uri("disk one")))


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device and a mount need root")
def test_a_file_system_on_a_loop_device(export: Serve, bench: Callable[..., real.Bench]) -> None:
    real.file_system(bench(export(MemoryDevice(64 << 20, 512)).uri))


def test_layers_show_in_the_allocation_depth(export: Serve, bench: Callable[..., real.Bench]) -> None:
    device = MemoryDevice(real.SIZE_BYTES_MIN, 4096)
    device.depths[:16], device.depths[16:32], device.depths[32:48] = 1, 2, 3
    client = bench(export(device).uri)
    lines = client.run("nbdinfo", "--map=qemu:allocation-depth", client.uri).splitlines()
    labels = [line.split()[2:] for line in lines]
    assert labels == [["1", "local"], ["2", "backing", "depth", "2"], ["3", "backing", "depth", "3"], ["0", "absent"]]


def test_a_refusal_reaches_the_client_as_its_errno(export: Serve, bench: Callable[..., real.Bench]) -> None:
    nbd = bench(None).libnbd()
    handle = nbd.NBD()
    handle.connect_uri(str(export(MemoryDevice(real.SIZE_BYTES_MIN, 512, read_only=True)).uri))
    handle.set_strict_mode(0)
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(bytes(512), 0)
    assert caught.value.errno == "EPERM"
    handle.shutdown()


# --- TLS ---


@pytest.fixture
def tls_uri(certificates: Certificates, tmp_path: Path) -> object:
    listeners = trio.run(listen_on_tcp, "127.0.0.1", 0)
    exports = {"": Export(MemoryDevice(real.SIZE_BYTES_MIN, 512))}
    with running(exports, tmp_path / "unused", listeners, tls=certificates.server, require_tls=True):
        folder = ("tls-certificates", str(certificates.folder))
        yield NbdUri("", host="localhost", port=listeners[0].uri().port, tls=True, parameters=(folder,))


def test_libnbd_over_tls(tls_uri: NbdUri, bench: Callable[..., real.Bench]) -> None:
    client = bench(tls_uri)
    real.info(client)
    image = client.image("image", client.size_bytes)
    client.run("nbdcopy", image, tls_uri)
    client.run("nbdcopy", tls_uri, "back")
    assert (client.folder / "back").read_bytes() == image.read_bytes()


def test_a_client_in_the_clear_is_told_that_tls_is_required(tls_uri: NbdUri, bench: Callable[..., real.Bench]) -> None:
    with pytest.raises(AssertionError, match="TLS"):
        bench(None).run("nbdinfo", f"nbd://127.0.0.1:{tls_uri.port}/")


def test_qemu_over_tls(tls_uri: NbdUri, certificates: Certificates, bench: Callable[..., real.Bench]) -> None:
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates.folder},verify-peer=on"
    options = f"driver=nbd,host=localhost,port={tls_uri.port},tls-creds=tls0"
    client = bench(tls_uri)
    client.run(
        *("qemu-io", "--object", credentials, "--image-opts", options),
        *("-c", "write -P 5 0 3M", "-c", "flush", "-c", "read -P 5 0 3M", "-c", "read -P 0 3M 1M"),
    )


# --- socket activation ---


def test_libnbd_activates_the_server_itself(bench: Callable[..., real.Bench]) -> None:
    """nbdinfo opens the socket, starts the program with it and asks it, all by the rules of socket activation."""
    said = bench(None).run("nbdinfo", "--", "[", sys.executable, ACTIVATED, "]")
    assert "export-size: 16777216" in said and "activated" in said


def ask_and_end(bench: real.Bench, process: subprocess.Popen[bytes]) -> None:
    """The activated program answers, and ends in order when it is told to."""
    try:
        assert bench.uri.socket is not None
        real.until(process, Path(bench.uri.socket).exists)
        assert bench.size_bytes == 16 << 20
        process.terminate()
        assert process.wait(real.TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_systemd_activates_the_server(bench: Callable[..., real.Bench], tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    client = bench(NbdUri("", socket=str(path)))
    starter = client.program("systemd-socket-activate")
    ask_and_end(client, subprocess.Popen([starter, "-l", path, sys.executable, ACTIVATED]))


PASS_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, sys.argv[2]])
"""


def test_our_own_activation_passes_a_socket(bench: Callable[..., real.Bench], tmp_path: Path) -> None:
    """The same without systemd."""
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        descriptor = listening.fileno()
        command = [sys.executable, "-c", PASS_SOCKET, str(descriptor), ACTIVATED]
        process = subprocess.Popen(command, pass_fds=[descriptor])
    ask_and_end(bench(NbdUri("", socket=str(path))), process)
