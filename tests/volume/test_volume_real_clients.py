"""Unmodified clients against a volume: a region set of three processes and a file, over an image that is shorter.

The functions of ``nbd_real_clients`` run over ``crucible-emu attach``; the image keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import nbd_real_clients as real
import pytest
from command_rig import running, unix_uri
from disk_rig import digests, make_regions, pattern

from crucible_emu.nbd import parse_uri
from crucible_emu.volume import vcr

pytestmark = pytest.mark.real_client

MEGABYTE = 1 << 20
BLOCK = 4096
IMAGE_BYTES = 3 * real.SIZE_BYTES_MIN // 4
Bench = Callable[[str], real.Bench]


def file_request(path: Path) -> vcr.FileRequest:
    return vcr.FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the volume: the first half lies on the region set, the second in a file of zeros."""
    half = real.SIZE_BYTES_MIN // 2
    image, data = folder / "image.raw", folder / "data.raw"
    image.write_bytes(pattern(IMAGE_BYTES))
    with data.open("wb") as file:
        file.truncate(half)
    regions = make_regions(folder, block_size=BLOCK, blocks_per_extent=512, extent_count=half // (512 * BLOCK))
    with ExitStack() as stack:
        mirrors = [
            stack.enter_context(running("downstairs", "run", region, "--port", 0, "--repair-port", 0, "--json"))
            for region in regions
        ]
        targets = tuple(f"127.0.0.1:{mirror.ready['port']}" for mirror in mirrors)
        opts = vcr.CrucibleOpts(id=uuid4(), target=targets)
        geometry: dict[str, Any] = {
            "block_size": BLOCK,
            "blocks_per_extent": 512,
            "extent_count": half // (512 * BLOCK),
        }
        request = vcr.VolumeRequest(
            type="volume",
            id=uuid4(),
            block_size=BLOCK,
            sub_volumes=(vcr.RegionRequest(type="region", opts=opts, gen=1, **geometry), file_request(data)),
            read_only_parent=file_request(image),
        )
        (folder / "vcr.json").write_text(vcr.dumps(request))
        uri = unix_uri(folder / "volume.sock")
        command = stack.enter_context(running("attach", folder / "vcr.json", "--nbd", uri, "--json", "--timeout", 30))
        yield command.ready["uri"]
        command.end_well()
        for mirror in mirrors:
            mirror.end_well()
    assert image.read_bytes() == pattern(IMAGE_BYTES)
    assert len(digests(regions)) == 1


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all clients, which start from any content."""
    with served(tmp_path_factory.mktemp("volume")) as uri:
        yield uri


@pytest.fixture
def bench(require_program: Callable[[str], str], require_libnbd: Callable[[], ModuleType], tmp_path: Path) -> Bench:
    folder = tmp_path / "client"
    folder.mkdir()
    return lambda uri: real.Bench(parse_uri(uri), require_program, require_libnbd, folder)


def test_an_image_shows_through_and_the_map_says_so(tmp_path: Path, bench: Bench) -> None:
    """A file counts as written everywhere and hides the image."""
    with served(tmp_path) as uri:
        client = bench(uri)
        client.run("nbdcopy", client.uri, "back")
        found = client.run("nbdinfo", "--map=qemu:allocation-depth", client.uri).split("\n")
    half = real.SIZE_BYTES_MIN // 2
    assert (client.folder / "back").read_bytes() == pattern(IMAGE_BYTES)[:half] + bytes(half)
    assert [line.split()[:3] for line in found if line] == [["0", str(half), "2"], [str(half), str(half), "1"]]


@pytest.mark.parametrize("client", ["qemu-io-blkverify", "qemu-io-zeroes", "fio-verify", "nbdcopy", "qemu-img-convert"])
def test_clients_over_a_volume(client: str, volume: str, bench: Bench) -> None:
    real.CLIENTS[client](bench(volume))
