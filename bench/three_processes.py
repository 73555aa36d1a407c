"""This disk over three Downstairs, each a process of its own, as one command.

What it is for: ``python -m bench.three_processes FOLDER --size-mib N --nbd URI`` makes three regions in the folder,
starts a Downstairs for each, and attaches the disk: four processes that talk as they would from machine to machine, but
over unix sockets, as is best on one; ``--tcp`` has them talk over loopback ports instead. By unix sockets, blocks
that a Downstairs has at hand are read without its process; by loopback ports nothing is. All stay in the session
that this program was started in, where their CPU time is found.

What it guarantees: when one of the four ends, the others are ended too, and the exit code is 1 with a sentence: a disk
that has lost a replica must not be measured as a whole one. Told to end, it ends the Upstairs first, for which the
Downstairs have to be there: they are in groups of their own, where a signal to this program's group does not reach
them, and end when the pipe closes that this program holds, however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.subjects import OURS, find_program

REPLICAS = 3
ENDS_WITHIN_S = 5.0
"""How long the Upstairs may take to flush and leave; less than this program is given itself."""


def command(*words: object) -> list[str]:
    return [find_program(OURS) or OURS, *map(str, words)]


def volume_request(definition: dict[str, Any], targets: list[str]) -> dict[str, object]:
    """The volume construction request of a disk over these Downstairs; ``definition`` is that of their regions."""
    return {
        "type": "region",
        "block_size": definition["block_size"],
        "blocks_per_extent": definition["extent_size"]["value"],
        "extent_count": definition["extent_count"],
        "gen": 1,
        "opts": {"id": str(uuid4()), "target": targets, "lossy": False, "read_only": False},
    }


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def start_replica(region: Path, unix: Path) -> subprocess.Popen[str]:
    """A Downstairs that lives as long as the pipe to it."""
    words = command("downstairs", "run", region, "--port", 0, "--repair-port", 0, "--until-eof", "--json")
    words += ["--unix", str(unix)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)


def ready(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    """The line in which a command with ``--json`` says that it is ready. Raises :class:`SystemExit` where it ends."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{what} did not start")
    found: dict[str, Any] = json.loads(line)
    return found


def make_regions(folders: list[Path], size_mib: int) -> dict[str, Any]:
    """Make a region in each folder, all at once: what they are. Raises :class:`SystemExit`."""
    makers = [start(command("region", "create", folder, "--size", f"{size_mib}MiB", "--json")) for folder in folders]
    said = [maker.communicate()[0] for maker in makers]
    if any(maker.returncode for maker in makers):
        raise SystemExit("a region could not be made")
    definition: dict[str, Any] = json.loads(said[0])
    return definition


def main(folder: Path, size_mib: int, uri: str, tcp: bool) -> None:
    """Serve until told to end, or until one of the processes ends."""
    # A unix socket's path has at most 107 bytes, so it does not live in a folder that a user chose.
    with tempfile.TemporaryDirectory(prefix="bench-") as sockets:
        serve(folder, Path(sockets), size_mib, uri, tcp)


def serve(folder: Path, sockets: Path, size_mib: int, uri: str, tcp: bool) -> None:
    folders = [folder / f"region{index}" for index in range(REPLICAS)]
    definition = make_regions(folders, size_mib)
    replicas: list[subprocess.Popen[str]] = []
    upstairs: subprocess.Popen[str] | None = None
    try:
        replicas.extend(start_replica(region, sockets / region.name) for region in folders)
        addresses = [ready(replica, f"the Downstairs of {region.name}") for replica, region in zip(replicas, folders)]
        targets = [f"{each['address']}:{each['port']}" if tcp else each["unix"] for each in addresses]
        request = folder / "disk.json"
        request.write_text(json.dumps(volume_request(definition, targets)))
        upstairs = start(command("attach", request, "--nbd", uri, "--json"))
        ready(upstairs, "the Upstairs")
        ended, _status = os.wait()
        raise SystemExit(f"{'the Upstairs' if ended == upstairs.pid else 'a Downstairs'} ended")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the rest is waiting
        if upstairs is not None:
            upstairs.terminate()
            try:
                upstairs.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:  # without its Downstairs it has nowhere to flush to
                upstairs.kill()
                upstairs.wait()
        for replica in replicas:
            replica.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.three_processes", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the regions are made")
    parser.add_argument("--size-mib", type=int, required=True, help="the size of the disk")
    parser.add_argument("--nbd", required=True, metavar="URI", help="where the disk is served")
    parser.add_argument("--tcp", action="store_true", help="have the processes talk over loopback ports")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(given.folder, given.size_mib, given.nbd, given.tcp)
