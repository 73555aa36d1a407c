"""``crucible-emu attach``: a disk over three Downstairs processes, its ready line, its clean end, and refusals."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from command_rig import COMMAND, Command, one_sentence, outcome, outcome_here, pattern, refusal, running, unix_uri
from nbd_plain_client import PlainClient

from crucible_emu.geometry import RegionDefinition
from crucible_emu.nbd import protocol as p
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView

KEY = base64.b64encode(bytes(range(32))).decode()
BLOCK, BLOCKS, EXTENTS = 4096, 64, 4
SIZE = BLOCK * BLOCKS * EXTENTS
DISK = "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001"


def make_regions(folder: Path, encrypted: bool = False) -> list[Path]:
    paths = [folder / f"region-{client}" for client in range(3)]
    for path in paths:
        Region.create(path, RegionDefinition(BLOCK, BLOCKS, EXTENTS, uuid4(), encrypted)).close()
    return paths


def request(targets: list[str], generation: int, **opts: Any) -> dict[str, Any]:
    region = {
        "type": "region",
        "block_size": BLOCK,
        "blocks_per_extent": BLOCKS,
        "extent_count": EXTENTS,
        "gen": generation,
        "opts": {"id": DISK, "target": targets, "lossy": False, "read_only": False, **opts},
    }
    return {"type": "volume", "id": DISK, "block_size": BLOCK, "sub_volumes": [region], "read_only_parent": None}


@contextmanager
def downstairs(paths: list[Path]) -> Iterator[tuple[list[Command], list[str]]]:
    """A Downstairs process for each region, and their addresses."""
    with ExitStack() as stack:
        running_ = [
            stack.enter_context(running("downstairs", "run", path, "--port", 0, "--repair-port", 0, "--json"))
            for path in paths
        ]
        yield running_, [f"127.0.0.1:{command.ready['port']}" for command in running_]


class Place:
    """Where the request lies and the disk is served."""

    def __init__(self, folder: Path) -> None:
        self.document = folder / "disk.json"
        self.socket = folder / "disk.sock"

    def attach(self, *options: object) -> tuple[object, ...]:
        return ("attach", self.document, "--nbd", unix_uri(self.socket), *options)

    def write(self, document: Any) -> None:
        self.document.write_text(json.dumps(document))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def write_some(client: PlainClient) -> None:
    await client.write(3, pattern(300_000))


async def write_and_flush(client: PlainClient) -> None:
    await client.write(SIZE - 8192, pattern(8192, 2))
    assert (await client.call(p.Command.FLUSH)).errno == 0


async def read_all(client: PlainClient) -> bytes:
    assert client.size_bytes == SIZE
    return await client.read(0, SIZE)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# -- a disk over processes --------------------------------------------------------------------------------------------


def test_a_disk_over_three_processes(tmp_path: Path, place: Place, expect_log: Any) -> None:
    """Ready, written, ended by each signal, attached again with a higher generation, one Downstairs killed."""
    regions = make_regions(tmp_path, encrypted=True)
    expected = bytearray(SIZE)
    expected[3:300_003] = pattern(300_000)
    with downstairs(regions) as (processes, targets):
        place.write(request(targets, 1, key=KEY))
        with running(*place.attach("--json", "--timeout", 20)) as command:
            assert command.ready == {
                "ready": True,
                "uri": unix_uri(place.socket),
                "uris": [unix_uri(place.socket)],
                "size_bytes": SIZE,
                "block_size": BLOCK,
                "read_only": False,
                "pid": command.process.pid,
                "targets": targets,
            }
            command.talk(write_some)
            command.end_well(signal.SIGINT)
        assert not place.socket.exists()
        # The same generation once more: the Downstairs have stored it.
        with expect_log("the generation is too low"):
            code, out, err = outcome_here(*place.attach("--timeout", 20))
        assert (code, out) == (1, "")
        assert "generation" in one_sentence(err.splitlines()[-1]) and KEY not in err
        place.write(request(targets, 2, key=KEY))
        with running(*place.attach("--timeout", 20)) as command:
            assert command.line == f"Ready: a disk of 1 MiB at {unix_uri(place.socket)}\n"
            assert command.talk(read_all, unix_uri(place.socket)) == expected
            processes[1].end(signal.SIGKILL)
            command.talk(write_and_flush, unix_uri(place.socket))
            expected[SIZE - 8192 :] = pattern(8192, 2)
            assert command.talk(read_all, unix_uri(place.socket)) == expected
            code, _, err = command.end()
            assert code == 0
            assert {json.loads(line)["event"] for line in err.splitlines()} == {"connection ended"}
            assert KEY not in err
        for survivor in (0, 2):
            code, _, err = processes[survivor].end()
            assert (code, err) == (0, "")
    views = [RegionView.open(regions[client]) for client in (0, 2)]
    assert len({region_digest(view).region for view in views}) == 1


def test_a_disk_over_an_image_is_scrubbed_in_the_background(tmp_path: Path, place: Place) -> None:
    """Attached over a file, scrubbed, ended; attached once more without it, it holds the same."""
    image = tmp_path / "image.raw"
    image.write_bytes(pattern(SIZE // 2))
    expected = pattern(SIZE // 2) + bytes(SIZE // 2)
    with downstairs(make_regions(tmp_path)) as (_, targets):
        document = request(targets, 1)
        parent = {"type": "file", "id": DISK, "block_size": BLOCK, "path": str(image)}
        place.write({**document, "read_only_parent": parent})
        with running(*place.attach("--json", "--timeout", 20, "--scrub")) as command:
            assert command.ready["size_bytes"] == SIZE and command.ready["targets"] == targets
            assert command.process.stderr is not None
            events = iter(lambda: json.loads(command.process.stderr.readline())["event"], None)  # type: ignore[union-attr]
            assert "scrub done: the disk needs no parent any more" in events
            assert command.talk(read_all) == expected
            assert command.end()[0] == 0
        place.write(request(targets, 2))
        with running(*place.attach("--json", "--timeout", 20)) as command:
            assert command.talk(read_all) == expected
            command.end_well()


def test_a_scrub_that_fails_leaves_the_disk_in_service(tmp_path: Path, place: Place) -> None:
    image, data = tmp_path / "image.raw", tmp_path / "data.raw"
    for path in (image, data):
        path.write_bytes(pattern(SIZE))
    parts = [{"type": "file", "id": DISK, "block_size": BLOCK, "path": str(path)} for path in (data, image)]
    members = {"type": "volume", "id": DISK, "block_size": BLOCK}
    place.write({**members, "sub_volumes": parts[:1], "read_only_parent": parts[1]})
    with running(*place.attach("--json", "--scrub")) as command:
        assert command.process.stderr is not None
        said = json.loads(command.process.stderr.readline())
        assert said["event"] == "scrub failed: the disk still needs its parent" and "written" in said["error"]
        assert command.talk(read_all) == pattern(SIZE)
        assert command.end()[0] == 0


def test_an_activation_that_waits_can_be_interrupted(place: Place) -> None:
    """Nobody listens at the targets, and no time was given: Ctrl-C ends it without a traceback."""
    place.write(request([f"127.0.0.1:{free_port()}" for _ in range(3)], 1, key=KEY))
    command = [*COMMAND, *map(str, place.attach())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        try:
            assert "cannot connect" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert (process.wait(30), process.stdout.read()) == (130, "")
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in said and KEY not in said


def test_no_activation_within_the_time_given(place: Place) -> None:
    place.write(request([f"127.0.0.1:{free_port()}" for _ in range(3)], 1))
    code, _, err = outcome(*place.attach("--timeout", 0.3))
    assert code == 1
    assert "no activation within 0.3 s; waiting for replicas 0, 1, 2" in one_sentence(err.splitlines()[-1])
    assert not place.socket.exists()


# -- refusals ---------------------------------------------------------------------------------------------------------

TARGETS = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
REFUSALS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "is not JSON"),
    "not a VCR": ([], "the document"),
    "two targets": (request(TARGETS[:2], 1), "exactly 3 targets"),
    "a name for an address": (request(["localhost:1", *TARGETS[1:]], 1), "'localhost:1' is not an address"),
    "a target twice": (request([TARGETS[0], *TARGETS[:2]], 1), "twice"),
    "a bad key": (request(TARGETS, 1, key=KEY[:-8]), "key"),
    "blocks of two sizes": ({**request(TARGETS, 1), "block_size": 512}, "blocks of 4096 bytes"),
    "nothing in it": ({**request(TARGETS, 1), "sub_volumes": []}, "neither a sub-volume nor a read-only parent"),
    "a file that is not there": (
        {**request(TARGETS, 1), "read_only_parent": {"type": "file", "id": DISK, "block_size": BLOCK, "path": "/no"}},
        "cannot open the file /no: no such file",
    ),
    "a url that is none": ({"type": "url", "id": DISK, "block_size": BLOCK, "url": "ftp://x/"}, "http or https"),
    "a url of blocks of no size": ({"type": "url", "id": DISK, "block_size": 3, "url": "http://x/"}, "block size 3 is"),
    "TLS without its files": (request(TARGETS, 1, cert_pem="/none.pem"), "all three"),
    "a generation below zero": (request(TARGETS, -1), "gen"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_document_that_is_wrong_is_refused_by_name(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    document, words = REFUSALS[name]
    place.document.write_text(document if isinstance(document, str) else json.dumps(document))
    code, sentence = refusal(capsys, *place.attach())
    assert code == 2 and words in sentence
    assert KEY[:-8] not in sentence
    assert not place.socket.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nbd", "nbd://"), "nbd://"),
        (("--nbd", "nbd://127.0.0.1:0/other"), "one disk"),
        (("--nbd", "nbds://127.0.0.1:0/"), "--tls-cert and --tls-key"),
        (("--timeout", "soon"), "--timeout"),
        (("--timeout", "-1"), "--timeout"),
        (("--timeout", "nan"), "--timeout"),
    ],
)
def test_options_that_are_wrong(
    place: Place, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    place.write(request(TARGETS, 1))
    code, sentence = refusal(capsys, *place.attach(*options))
    assert code == 2 and words in sentence


def test_a_document_that_is_not_there(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, sentence = refusal(capsys, *place.attach())
    assert code == 2 and str(place.document) in sentence
