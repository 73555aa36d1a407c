"""SIGKILL a process that writes a mirrored disk, open the disk again, and check every block. Again and again.

    python tests/volume/kill_disk.py --rounds 100

The writer stamps each block with its number and a version that only grows, and appends what it does to a log file with
plain ``write``: that survives the process, as the page cache does. After a kill the disk is opened (which reconciles)
and each block must hold a version between the last flushed and the last issued one, whole; then the three region
digests must be equal.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import trio

from crucible_emu.blockio import Kind, Request
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView
from crucible_emu.volume import local_disk
from crucible_emu.volume.image import submit

ISSUED, FLUSHED = 1, 2
RECORD = struct.Struct("<BQQ")
BATCH_MAX = 24


def stamp(block: int, version: int, block_size: int) -> bytes:
    """A block's content: its number and version, over and over, so that a torn block shows."""
    return struct.pack("<QQ", block, version) * (block_size // 16)


async def write_for_ever(directory: Path, log: Path, seed: int, first_version: int) -> None:
    """The process that is going to be killed."""
    rng = random.Random(seed)
    version = first_version
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with local_disk.open_disk(directory) as disk:
        blocks, size = disk.size_bytes // disk.block_size, disk.block_size
        print("ready", flush=True)
        while True:
            for _ in range(rng.randrange(1, 6)):
                chosen = rng.sample(range(blocks), rng.randrange(1, BATCH_MAX))
                if rng.random() < 0.3:
                    start = rng.randrange(blocks - BATCH_MAX)
                    chosen = list(range(start, start + rng.randrange(1, BATCH_MAX)))
                requests, records = [], []
                for block in chosen:
                    version += 1
                    records.append(RECORD.pack(ISSUED, block, version))
                    payload = memoryview(bytearray(stamp(block, version, size)))
                    requests.append(Request(Kind.WRITE, block * size, size, payload))
                os.write(descriptor, b"".join(records))
                await trio.lowlevel.checkpoint()
                disk.submit(requests, lambda _: None)
            covered = version
            await submit(disk, Request(Kind.FLUSH))
            os.write(descriptor, RECORD.pack(FLUSHED, 0, covered))


@dataclass(slots=True)
class History:
    """What the log says: versions issued per block, and the version up to which everything is flushed."""

    issued: dict[int, list[int]] = field(default_factory=dict)
    flushed: int = 0
    last: int = 0

    @classmethod
    def read(cls, log: Path) -> History:
        history = cls()
        stored = log.read_bytes() if log.exists() else b""
        whole = len(stored) - len(stored) % RECORD.size
        for kind, block, version in RECORD.iter_unpack(stored[:whole]):
            history.last = max(history.last, version)
            if kind == FLUSHED:
                history.flushed = version
            else:
                history.issued.setdefault(block, []).append(version)
        return history

    def allowed(self, block: int) -> set[int]:
        """Versions that ``block`` may hold after a crash; 0 stands for never written."""
        versions = self.issued.get(block, [])
        durable = [version for version in versions if version <= self.flushed]
        return {durable[-1] if durable else 0, *(version for version in versions if version > self.flushed)}


async def check(directory: Path, history: History) -> list[str]:
    """Open the disk and compare every block with its history; what is wrong."""
    wrong = []
    async with local_disk.open_disk(directory) as disk:
        size = disk.block_size
        piece = memoryview(bytearray(1024 * 1024))
        for offset in range(0, disk.size_bytes, len(piece)):
            part = piece[: min(len(piece), disk.size_bytes - offset)]
            await submit(disk, Request(Kind.READ, offset, len(part), part))
            words = np.frombuffer(part, "<u8").reshape(-1, size // 16, 2)
            for index, block_words in enumerate(words):
                block = offset // size + index
                number, version = (int(word) for word in block_words[0])
                whole = bool((block_words == block_words[0]).all())
                named = number == (block if version else 0)
                if not (whole and named and version in history.allowed(block)):
                    wrong.append(
                        f"block {block} holds block {number} version {version} (whole: {whole}), "
                        f"allowed: {sorted(history.allowed(block))}"
                    )
                else:
                    # What was read once must stay: from now on this version counts as flushed.
                    history.issued[block] = [version] if version else []
    return wrong


def region_digests(directory: Path) -> list[str]:
    return [region_digest(RegionView.open(local_disk.region_path(directory, client))).region for client in range(3)]


def one_round(directory: Path, log: Path, seed: int) -> list[str]:
    """Write, kill, check. The log is replaced by what the check found, so that rounds build on each other."""
    before = History.read(log)
    command = [sys.executable, __file__, "--write", str(directory), str(log), str(seed), str(before.last)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        if writer.stdout.readline() != b"ready\n":
            return [f"seed {seed}: the disk did not open again"]
        time.sleep(random.Random(seed).uniform(0.0, 0.4))  # the load under which it is killed
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    history = History.read(log)
    wrong = trio.run(check, directory, history)
    if len(set(region_digests(directory))) != 1:
        wrong.append("the three replicas differ")
    settled = [RECORD.pack(ISSUED, block, versions[0]) for block, versions in history.issued.items() if versions]
    log.write_bytes(b"".join(settled) + RECORD.pack(FLUSHED, 0, history.last))
    return [f"seed {seed}: {line}" for line in wrong]


def run(rounds: int, seed: int, block_size: int = 4096) -> list[str]:
    """``rounds`` kills of one disk; what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        directory, log = Path(folder) / "disk", Path(folder) / "log"
        local_disk.create(directory, 512 * 16 * block_size // 8, block_size=block_size, blocks_per_extent=256)
        for index in range(rounds):
            wrong = one_round(directory, log, seed + index)
            if wrong:
                return wrong
    return []


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        directory, log, seed, first_version = sys.argv[2:]
        trio.run(write_for_ever, Path(directory), Path(log), int(seed), int(first_version))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--block-size", type=int, default=4096)
    arguments = parser.parse_args()
    wrong = run(arguments.rounds, arguments.seed, arguments.block_size)
    print("\n".join(wrong) if wrong else f"{arguments.rounds} kills: 0 violations")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
