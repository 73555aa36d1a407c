"""``crucible-emu region clone`` from the repair service of a running, read-only Downstairs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crucible_emu.cli.region import service_address

COMMAND = [sys.executable, "-m", "crucible_emu"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def served(region: Path, mode: str) -> Iterator[str]:
    """The address of the repair service of ``region``."""
    command = [*COMMAND, "downstairs", "run", str(region), "--address", "127.0.0.1", "--port", "0"]
    command += ["--repair-port", "0", "--mode", mode, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield f"{ready['repair_address']}:{ready['repair_port']}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """A region with something in it."""
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 4096)
    assert run("region", "create", tmp_path / "r0", "--size", "2MiB", "--extent-size", "64KiB").returncode == 0
    assert run("region", "import", tmp_path / "r0", image).returncode == 0
    return tmp_path / "r0"


def digest(region: Path) -> str:
    found = json.loads(run("region", "digest", region, "--json").stdout)
    return str(found["region_digest"])


def test_a_clone_over_the_network_equals_its_source(region: Path, tmp_path: Path) -> None:
    with served(region, "ro") as address:
        cloned = run("region", "clone", address, tmp_path / "r1", "--json")
        again = run("region", "clone", address, tmp_path / "r1", "--overwrite")
    assert cloned.returncode == 0, cloned.stderr
    assert again.returncode == 0, again.stderr
    assert run("region", "verify", tmp_path / "r1").returncode == 0
    assert digest(tmp_path / "r1") == digest(region)
    uuids = [json.loads((path / "region.json").read_text())["uuid"] for path in (region, tmp_path / "r1")]
    assert uuids[0] != uuids[1]


def test_a_region_that_is_being_written_is_not_cloned(region: Path, tmp_path: Path) -> None:
    with served(region, "rw") as address:
        refused = run("region", "clone", address, tmp_path / "r1")
    assert refused.returncode == 1
    assert "not read-only" in refused.stderr
    assert not (tmp_path / "r1").exists()


def test_nobody_at_the_address_is_one_sentence(tmp_path: Path) -> None:
    refused = run("region", "clone", "127.0.0.1:1", tmp_path / "r1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "r1").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7810", ("127.0.0.1", 7810)),
        ("[::1]:7810", ("::1", 7810)),
        ("r0", None),
        ("folder/127.0.0.1:7810", None),
        ("name:7810", None),
        ("127.0.0.1:0", None),
    ],
)
def test_what_counts_as_an_address(text: str, expected: tuple[str, int] | None) -> None:
    assert service_address(text) == expected
