"""The image of the demonstration: a real ext4 file system with files of this machine's Python library in it.

Where ``mkfs.ext4`` is missing the files are put into an archive, which is as good as any other bytes, if no file
system. Somebody may bring an image along. What a disk of it holds is the image, and zeros up to a whole step; of that
is the digest that is looked for in the end.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

from blake3 import blake3

from crucible_emu.cli.demonstration.source import Source, describe
from crucible_emu.cli.sizes import format_size
from crucible_emu.errors import UsageError
from nexus.cli.disk_data import disk_size

IMAGE_BYTES = 32 * 1024 * 1024
PARTS = ("asyncio", "concurrent", "email", "encodings", "html", "http", "importlib", "json", "logging", "urllib", "xml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "test", "tests", "*.so", "*.a")
STEP_BYTES = 1024 * 1024
BROUGHT_BYTES_MAX = 512 * 1024 * 1024
"""A guest has all that its disk has to hold in memory."""
SYSTEM_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"


def brought(path: Path) -> Source:
    """An image that somebody has. Raises :class:`UsageError`."""
    found = describe(path, f"your image {path}")
    if found.length > BROUGHT_BYTES_MAX:
        raise UsageError(
            f"{path} has {format_size(found.length)}: take one of {format_size(BROUGHT_BYTES_MAX)} at most"
        )
    return found


def as_on_a_disk(source: Source) -> bytearray:
    """What a disk made of it holds."""
    content = bytearray(source.path.read_bytes())
    content += bytes(disk_size(len(content), STEP_BYTES) - len(content))
    return content


def digest_on_a_disk(source: Source) -> str:
    """BLAKE3 of that."""
    return blake3(as_on_a_disk(source)).hexdigest()


def make_image(folder: Path) -> Source:
    """A new image in ``folder``. Raises :class:`UsageError`."""
    tree, path = folder / "tree", folder / "image.raw"
    files = _copy_files(tree)
    mkfs = shutil.which("mkfs.ext4", path=SYSTEM_PATH)
    if mkfs is None:
        with tarfile.open(path, "w") as archive:
            archive.add(tree, arcname="library")
        with path.open("r+b") as file:
            file.truncate(IMAGE_BYTES)
        about = f"an archive of {files} files (mkfs.ext4 is not installed)"
    else:
        words = [mkfs, "-q", "-F", "-L", "nexus-demo", "-d", str(tree), str(path), f"{IMAGE_BYTES // 1024}k"]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode:
            raise UsageError(f"mkfs.ext4 failed: {made.stderr.strip() or made.stdout.strip()}")
        about = f"an ext4 file system with {files} files of this machine's Python library"
    shutil.rmtree(tree)
    return describe(path, about)


def _copy_files(tree: Path) -> int:
    """Some of the library; how many files that is."""
    library = Path(sysconfig.get_path("stdlib"))
    tree.mkdir()
    for file in sorted(library.glob("*.py")):
        shutil.copyfile(file, tree / file.name)
    for part in PARTS:
        if (library / part).is_dir():
            shutil.copytree(library / part, tree / part, ignore=LEFT_OUT, ignore_dangling_symlinks=True)
    return sum(1 for entry in tree.rglob("*") if entry.is_file())
