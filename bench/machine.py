"""Where and with what was measured: the machine, the versions of all programs, the commit.

What it guarantees: nothing that names a person or a place. No host name, no user, no path: results are made to be
shown. :func:`without_places` takes such things out of what servers and clients complained about.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.subjects import ROOT, Subject, find_program

LIBRARIES = ("numpy", "trio", "xxhash", "cryptography", "aiofiles")
"""What this disk and the mirrors in Python stand on."""
ANSWER_WITHIN_S = 60.0
UNKNOWN = "unknown"
PATH = re.compile(r"(?<![\w.…])…?/(?:[\w.+@%~-]+/)+(?P<last>[\w.+@%~-]*)")
PUBLIC_NAMES = {"root", "localhost"}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as far as it matters to a rate; ``load_before`` is its load average before the run."""

    system: str
    kernel: str
    processor: str
    cores: int
    memory_mib: int
    file_system: str
    load_before: float


def observe(folder: Path) -> Machine:
    """This machine now; ``folder`` is where the disks' files go."""
    return Machine(
        system=platform.system(),
        kernel=platform.release(),
        processor=processor_of(_read(Path("/proc/cpuinfo"))),
        cores=os.cpu_count() or 1,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        file_system=file_system_of(_read(Path("/proc/self/mounts")), folder.resolve()),
        load_before=round(os.getloadavg()[0], 2),
    )


def _read(path: Path) -> str:
    """A file of /proc; nothing where the system has none."""
    return path.read_text(errors="replace") if path.is_file() else ""


def processor_of(cpuinfo: str) -> str:
    """The processor's model, as ``/proc/cpuinfo`` has it."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found is not None else platform.machine() or UNKNOWN


def file_system_of(mounts: str, folder: Path) -> str:
    """The kind of file system that ``folder`` is on, as ``/proc/self/mounts`` has it: of the deepest mount above it the
    last, for one mount may cover another."""
    found, depth = UNKNOWN, -1
    for line in mounts.splitlines():
        _device, where, kind, *_ = line.split(" ")
        mounted = Path(re.sub(r"\\(\d{3})", lambda escape: chr(int(escape[1], 8)), where))
        if folder.is_relative_to(mounted) and len(mounted.parts) >= depth:
            found, depth = kind, len(mounted.parts)
    return found


def versions(subjects: Iterable[Subject]) -> dict[str, str]:
    """The version of each program that takes part and is there, of Python and of the libraries beneath."""
    programs = {"fio": None, **{program: None for subject in subjects for program in subject.programs}}
    found = {name: path for name in programs if (path := find_program(name)) is not None}
    said = {name: first_line(_said([path, "--version"]) or UNKNOWN) for name, path in found.items()}
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    libraries = {name: installed.get(name, UNKNOWN) for name in LIBRARIES}
    return {**said, "python": platform.python_version(), **libraries}


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else UNKNOWN


def _said(words: list[str], folder: Path | None = None) -> str | None:
    """What a command prints; ``None`` where it cannot be asked or ends with an error."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=ANSWER_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def commit_of(tree: Path) -> tuple[str | None, bool]:
    """The commit that a tree is checked out at, and whether files have changed since; ``None`` for no checkout."""
    top = _said(["git", "rev-parse", "--show-toplevel"], tree)
    head = _said(["git", "rev-parse", "HEAD"], tree)
    changed = _said(["git", "status", "--porcelain", "--untracked-files=no"], tree)
    if top is None or head is None or changed is None or Path(top.strip()).resolve() != tree.resolve():
        return None, False
    return head.strip(), bool(changed.strip())


def measured_tree() -> Path:
    """The tree that this disk's program comes from, which need not be the one that the bench lies in."""
    words = [sys.executable, "-P", "-c", "import crucible_emu; print(crucible_emu.__file__)"]
    where = _said(words, Path("/"))
    return Path(where.strip()).parent.parent if where else ROOT


def private_names() -> dict[str, str]:
    """Names of this machine and its user, and what to write in their place."""
    names = {socket.gethostname(): "HOST", socket.gethostname().partition(".")[0]: "HOST", getpass.getuser(): "USER"}
    return {name: instead for name, instead in names.items() if name and name not in PUBLIC_NAMES}


def private_places() -> tuple[str, ...]:
    """Folders of this machine; the longest come first."""
    places = {str(Path.home()), str(Path.cwd()), str(ROOT), tempfile.gettempdir()}
    return tuple(sorted(places - {"/"}, key=len, reverse=True))


def without_places(text: str, places: Iterable[str], names: Mapping[str, str]) -> str:
    """``text`` without absolute paths (of each its last part stays) and without these names."""
    for place in places:
        text = text.replace(place, "…")
    text = PATH.sub(lambda path: f"…/{path['last']}", text)
    for name, instead in names.items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, text)
    return text
