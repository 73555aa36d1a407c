"""The image that the demonstration copies: yours, or a real ext4 file system made from files of this machine.

Where ``mkfs.ext4`` is missing, the image is a made-up one: repeatable pseudo-random data with holes, so that it is as
sparse as a file system is.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from crucible_emu.errors import UsageError

IMAGE_BYTES = 128 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
BLOCK_BYTES = 4096
LEFT_OUT = ("__pycache__", "site-packages", "dist-packages", "lib-dynload", "test", "tests", "config-*", "*.a", "*.so")
SEED = 13


@dataclass(frozen=True, slots=True)
class Source:
    """A raw image: ``data_bytes`` of it lie in blocks of 4 KiB that are not all zeros. ``about`` says what it is."""

    path: Path
    length: int
    data_bytes: int
    blake3: str
    about: str


def describe(path: Path, about: str) -> Source:
    """Read ``path`` once: its digest and how much of it is data."""
    hasher = blake3()
    length = data_bytes = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
                length += len(piece)
                data_bytes += _data_bytes(piece)
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {(error.strerror or str(error)).lower()}") from None
    if not data_bytes:
        raise UsageError(f"the image {path} holds nothing but zeros: take one with data in it")
    return Source(path, length, data_bytes, hasher.hexdigest(), about)


def _data_bytes(piece: bytes) -> int:
    """Bytes of ``piece`` in blocks that are not all zeros: no client writes less than these."""
    whole = len(piece) - len(piece) % BLOCK_BYTES
    blocks = np.frombuffer(piece[:whole], np.uint8).reshape(-1, BLOCK_BYTES)
    rest = piece[whole:]
    return int(blocks.any(axis=1).sum()) * BLOCK_BYTES + (len(rest) if rest.strip(b"\0") else 0)


def make(folder: Path) -> Source:
    """A new image in ``folder``."""
    path = folder / "image.raw"
    mkfs = shutil.which("mkfs.ext4", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if mkfs is None:
        _make_up(path)
        return describe(path, "made-up data (mkfs.ext4 is not installed)")
    tree = folder / "tree"
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, tree, ignore=shutil.ignore_patterns(*LEFT_OUT), ignore_dangling_symlinks=True)
    arguments = [mkfs, "-q", "-F", "-L", "crucible-demo", "-d", str(tree), str(path), f"{IMAGE_BYTES // 1024}k"]
    made = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if made.returncode:
        raise UsageError(f"mkfs.ext4 failed: {made.stderr.strip() or made.stdout.strip()}")
    files = sum(1 for entry in tree.rglob("*") if entry.is_file())
    shutil.rmtree(tree)
    return describe(path, f"an ext4 file system with {files} files of this machine's Python library")


def _make_up(path: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(SEED))
    with path.open("wb") as file:
        for index in range(IMAGE_BYTES // PIECE_BYTES):
            if index % 4:
                file.seek(PIECE_BYTES, 1)
            else:
                file.write(generator.bytes(PIECE_BYTES))
        file.truncate(IMAGE_BYTES)
