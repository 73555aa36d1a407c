"""The commands of the user's guide, docs/nexus.md, one after the other as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from nexus_commands import environment

from nexus.cli import main as root

GUIDE = Path(__file__).parents[2] / "docs" / "nexus.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE_ROW = re.compile(r"^\| `nexus ([a-z-]+)", re.MULTILINE)
RACK = "/tmp/rack"
END_S = 240


@pytest.mark.real_client
def test_the_first_look_is_as_it_is_told(tmp_path: Path, require_program: Any) -> None:
    for name in ("qemu-img", "nbdcopy"):
        require_program(name)
    place = TemporaryDirectory(prefix="rack-")
    rack = Path(place.name, "r")
    script = "\n".join(BLOCK.findall(GUIDE.read_text())).replace(RACK, str(rack))
    program = f'nexus() {{ "{sys.executable}" -m nexus "$@"; }}\nset -euo pipefail\n{script}'
    try:
        done = subprocess.run(
            ["bash", "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=END_S,
            env=environment(),
            cwd=tmp_path,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "no findings; blake3" in done.stdout and "Nothing is wrong." in done.stdout
        assert f"The rack in {rack} is down." in done.stdout
        assert processes(rack) == []
    finally:
        for pid in processes(rack):
            os.kill(pid, signal.SIGKILL)
        place.cleanup()


def processes(rack: Path) -> list[int]:
    """Those that have the rack on their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if f"{rack}/".encode() in words and int(line.parent.name) != os.getpid():
            found.append(int(line.parent.name))
    return found


def test_every_group_is_in_the_guide() -> None:
    assert set(root.GROUPS) - set(TABLE_ROW.findall(GUIDE.read_text())) - {"snapshot", "image"} == set()
