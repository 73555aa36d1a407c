"""Unmodified clients against mirrored disks that are served as a person serves them.

The functions of ``nbd_real_clients`` run over ``crucible-emu serve``, plain and encrypted, and over ``crucible-emu
attach`` with three Downstairs processes. After the last of them the disk leaves cleanly, and its three replicas verify
and are equal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import nbd_real_clients as real
import pytest
from command_rig import Command, running, unix_uri
from disk_rig import digests, failures, make_regions

from crucible_emu.nbd import parse_uri
from crucible_emu.volume import vcr

pytestmark = pytest.mark.real_client

MEGABYTE = 1 << 20
BLOCKS = 512
"""Per extent, where blocks have 4096 bytes."""
SIZE = real.SIZE_BYTES_MIN
Program = Callable[[str], str]
Bench = Callable[[str], real.Bench]

CLIENTS = [name for name in real.CLIENTS if name != "nbdinfo"]
"""All but the one that asks for every capability: a mirrored disk does not promise fast zeroes."""


def whole(regions: list[Path]) -> None:
    assert [failures(region) for region in regions] == [[], [], []]
    assert len(digests(regions)) == 1


@contextmanager
def served(folder: Path, *options: object, size: int = SIZE) -> Iterator[Command]:
    """A new disk, served; at the end it leaves in order and its replicas are whole."""
    arguments = ("serve", folder / "disk", "--size", size, "--nbd", unix_uri(folder / "disk.sock"), "--json")
    with running(*arguments, *options) as command:
        regions = [Path(region) for region in command.ready["regions"]]
        yield command
        code, _, err = command.end()
        assert code == 0 and "Traceback" not in err and '"level"' not in err, err
    whole(regions)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served disk; one for all clients, which start from any content."""
    with served(tmp_path_factory.mktemp("served"), "--block-size", 512) as command:
        yield command.ready["uri"]


@pytest.fixture(scope="module")
def encrypted_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("sealed")
    with served(folder, "--encrypt", folder / "key") as command:
        yield command.ready["uri"]


@pytest.fixture
def bench(require_program: Program, require_libnbd: Callable[[], ModuleType], tmp_path: Path) -> Bench:
    folder = tmp_path / "client"
    folder.mkdir()
    return lambda uri: real.Bench(parse_uri(uri), require_program, require_libnbd, folder)


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_over_a_served_disk(client: str, disk: str, bench: Bench) -> None:
    real.CLIENTS[client](bench(disk))


@pytest.mark.parametrize("client", ["nbdcopy", "qemu-io-blkverify", "fio-verify"])
def test_clients_over_an_encrypted_disk(client: str, encrypted_disk: str, bench: Bench) -> None:
    real.CLIENTS[client](bench(encrypted_disk))


def test_what_a_served_disk_says_of_itself(disk: str, bench: Bench) -> None:
    client = bench(disk)
    (found,) = json.loads(client.run("nbdinfo", "--json", client.uri))["exports"]
    assert found["export-size"] == SIZE and found["description"] == "a mirrored disk"
    wanted = ("cache", "df", "flush", "fua", "multi_conn", "trim", "zero")
    assert [name for name in wanted if not found[f"can_{name}"]] == []
    assert found["contexts"] == ["base:allocation", "qemu:allocation-depth"]


def test_a_new_disk_is_a_hole_and_fills_where_it_is_written(tmp_path: Path, bench: Bench) -> None:
    with served(tmp_path) as command:
        client = bench(command.ready["uri"])
        client.run("qemu-io", "-f", "raw", client.uri, "-c", "write -P 7 1M 64k", "-c", "write -z -u 8M 1M")
        found = client.run("nbdinfo", "--map=qemu:allocation-depth", client.uri).split("\n")
        assert [line.split()[:2] for line in found if line] == [
            *(["0", "1048576"], ["1048576", "65536"], ["1114112", "15663104"]),
        ]


def test_nbdcopy_with_several_connections_into_and_out_of_an_encrypted_disk(tmp_path: Path, bench: Bench) -> None:
    """What comes out is what went in; what lies on the three disks is not."""
    with served(tmp_path, "--encrypt", tmp_path / "key") as command:
        client = bench(command.ready["uri"])
        marked = b"not to be found on any disk " * 40
        image = client.folder / "image"
        image.write_bytes((marked * 20_000)[:SIZE])
        client.run("nbdcopy", "--connections=4", "--flush", image, client.uri)
        client.run("nbdcopy", "--connections=4", client.uri, "back")
        assert (client.folder / "back").read_bytes()[: image.stat().st_size] == image.read_bytes()
    for region in sorted((tmp_path / "disk").glob("region-*")):
        assert not any(marked[:28] in path.read_bytes() for path in region.rglob("*") if path.is_file())


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device and a mount need root")
def test_a_file_system_on_a_mirrored_disk(tmp_path: Path, bench: Bench) -> None:
    with served(tmp_path, size=48 * MEGABYTE) as command:
        real.file_system(bench(command.ready["uri"]))


# -- three Downstairs processes ---------------------------------------------------------------------------------------


@contextmanager
def attached(folder: Path, regions: list[Path], generation: int) -> Iterator[tuple[Command, list[Command]]]:
    """``attach`` in front of three Downstairs processes; all end in order but those that were killed."""
    with ExitStack() as stack:
        mirrors = [
            stack.enter_context(running("downstairs", "run", region, "--port", 0, "--repair-port", 0, "--json"))
            for region in regions
        ]
        targets = tuple(f"127.0.0.1:{mirror.ready['port']}" for mirror in mirrors)
        request = vcr.RegionRequest(
            type="region",
            block_size=4096,
            blocks_per_extent=BLOCKS,
            extent_count=SIZE // (4096 * BLOCKS),
            opts=vcr.CrucibleOpts(id=uuid4(), target=targets),
            gen=generation,
        )
        (folder / "vcr.json").write_text(vcr.dumps(request))
        uri = unix_uri(folder / "attached.sock")
        command = stack.enter_context(running("attach", folder / "vcr.json", "--nbd", uri, "--json", "--timeout", 30))
        yield command, mirrors
        code, _, err = command.end()
        assert code == 0 and "Traceback" not in err
        for mirror in mirrors:
            if mirror.process.poll() is None:
                mirror.end_well()


@pytest.fixture(scope="module")
def remote_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("attached")
    regions = make_regions(folder, block_size=4096, blocks_per_extent=BLOCKS, extent_count=SIZE // (4096 * BLOCKS))
    with attached(folder, regions, 1) as (command, _):
        yield command.ready["uri"]
    whole(regions)


@pytest.mark.parametrize("client", ["nbdcopy", "qemu-img-convert", "qemu-io-blkverify", "qemu-io-zeroes"])
def test_clients_over_three_downstairs_processes(client: str, remote_disk: str, bench: Bench) -> None:
    real.CLIENTS[client](bench(remote_disk))


def stored_bytes(region: Path) -> int:
    """What the files of a region occupy."""
    return sum(path.stat().st_blocks for path in region.rglob("*") if path.is_file()) * 512


def test_fio_verifies_while_a_downstairs_is_killed(tmp_path: Path, bench: Bench) -> None:
    """Every block is as written although one replica dies under it; the next activation makes all three equal."""
    regions = make_regions(tmp_path, block_size=4096, blocks_per_extent=BLOCKS, extent_count=SIZE // (4096 * BLOCKS))
    with attached(tmp_path, regions, 1) as (command, mirrors):
        client = bench(command.ready["uri"])
        words = "--name=kill --rw=randwrite --bs=4k --iodepth=16 --fsync=64 --verify=crc32c --do_verify=1 --size=8m"
        fio = subprocess.Popen(
            [client.program("fio"), *words.split(), "--ioengine=nbd", f"--uri={client.uri}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=client.folder,
        )
        empty = stored_bytes(regions[2])
        real.until(fio, lambda: stored_bytes(regions[2]) > empty)
        mirrors[2].end(signal.SIGKILL)
        assert fio.poll() is None, "it is in the middle of its work"
        said, _ = fio.communicate(timeout=real.TIMEOUT_S)
        assert fio.returncode == 0, said
        image = client.folder / "after"
        client.run("nbdcopy", client.uri, image)
    with attached(tmp_path, regions, 2) as (command, _):
        client = bench(command.ready["uri"])
        client.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, client.uri)
    whole(regions)
