"""The image of the demonstration: a real ext4 file system with files of this machine's Python library in it.

Where ``mkfs.ext4`` is missing the files are put into an archive, which is as good as any other bytes, if no file
system. Either way the image is as large as the disk that it is imported into, so that the digest of one is that of the
other.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

from crucible_emu.cli.demonstration.source import Source, describe
from crucible_emu.errors import UsageError

IMAGE_BYTES = 32 * 1024 * 1024
PARTS = ("asyncio", "concurrent", "email", "encodings", "html", "http", "importlib", "json", "logging", "urllib", "xml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "test", "tests", "*.so", "*.a")
SYSTEM_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"


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
