"""``crucible-emu pantry run`` as a process: ready line, real sockets, an orderly end, refusals of one sentence."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from command_rig import END_S, one_sentence, outcome_here, running
from disk_rig import DISK, digests, failures, make_regions, pattern
from pantry_rig import BLOCK, attach_body, volume_of, write_body

from crucible_emu.pantry.operations import BASE
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest, VolumeRequest

HEADERS = {"api-version": "2.0.0"}


@contextmanager
def downstairs(paths: list[Path]) -> Iterator[VolumeRequest]:
    """The request of a disk over three processes."""
    with ExitStack() as stack:
        commands = [
            stack.enter_context(running("downstairs", "run", path, "--port", 0, "--repair-port", 0, "--json"))
            for path in paths
        ]
        targets = tuple(f"{command.ready['address']}:{command.ready['port']}" for command in commands)
        opts = CrucibleOpts(id=DISK, target=targets)
        yield volume_of(
            RegionRequest(type="region", block_size=BLOCK, blocks_per_extent=16, extent_count=16, opts=opts, gen=1)
        )
        for command in commands:
            command.end_well()


def client(ready: dict[str, Any], **settings: Any) -> httpx2.Client:
    return httpx2.Client(base_url=ready["url"] + BASE, headers=HEADERS | settings.pop("headers", {}), **settings)


@pytest.mark.parametrize("end", [signal.SIGTERM, None])
def test_the_end_of_the_process_flushes_and_deactivates(tmp_path: Path, end: int | None) -> None:
    """By a signal, or with its parent: afterwards the replicas are equal and nothing is to be repaired."""
    paths = make_regions(tmp_path, block_size=BLOCK, blocks_per_extent=16, extent_count=16)
    options = ["--until-eof"] if end is None else []
    pipe = {"stdin": subprocess.PIPE} if end is None else {}
    with (
        downstairs(paths) as vcr,
        running("pantry", "run", "--listen", "[::1]:0", "--json", *options, **pipe) as pantry,
    ):
        assert pantry.ready["ready"] is True and pantry.ready["pid"] == pantry.process.pid
        with client(pantry.ready) as http:
            attached = http.post("/volume/v", json=attach_body(vcr), timeout=END_S)
            assert (attached.status_code, attached.json()) == (200, {"id": "v"})
            for number in range(4):
                body = write_body(number * BLOCK, pattern(BLOCK, number + 1))
                assert http.post("/volume/v/bulk-write", json=body).status_code == 204
            if end is None:
                assert pantry.process.stdin is not None
                pantry.process.stdin.close()
                assert pantry.process.wait(END_S) == 0
                assert pantry.process.stderr is not None and pantry.process.stderr.read() == ""
            else:
                pantry.end_well(end)
    assert len(digests(paths)) == 1 and all(failures(path) == [] for path in paths)


def test_the_version_is_wanted_and_a_lenient_pantry_does_without() -> None:
    for options, status in (([], 400), (["--lenient"], 200)):
        with running("pantry", "run", "--listen", "127.0.0.1:0", *options, "--json") as pantry:
            assert httpx2.get(pantry.ready["url"] + BASE).status_code == status
            pantry.end_well()


def test_a_token_is_wanted_where_one_was_given(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-enough-token\n")
    with running("pantry", "run", "--listen", "[::1]:0", "--token-file", token, "--json") as pantry:
        with client(pantry.ready) as http:
            assert http.get("").status_code == 401
        with client(pantry.ready, headers={"authorization": "Bearer a-long-enough-token"}) as http:
            assert http.get("").json() == {"volumes": [], "num_job_handles": 0}
        pantry.end_well()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen", "nowhere"], "'nowhere' is no address"),
        (["--listen", "0.0.0.0:0"], "can be reached from other machines"),
        (["--token-file", "/nonexistent"], "the token file /nonexistent cannot be read"),
        (["--tls-cert", "/nonexistent"], "TLS needs both files"),
    ],
)
def test_bad_input_costs_one_sentence(arguments: list[str], why: str) -> None:
    code, out, err = outcome_here("pantry", "run", *arguments)
    assert (code, out) == (2, "")
    assert why in one_sentence(err)
