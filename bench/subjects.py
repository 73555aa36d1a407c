"""Who is asked: this disk and its peers, each as the command that serves it on a unix socket.

What it is for: :data:`SUBJECTS` is the table of those that ``bench quick`` compares, :data:`ALL` has those of
``bench run`` as well; each row says what its subject does not do, for a rate means nothing without that.
:func:`running` starts one subject, waits until its socket accepts, fills its disk, and ends it.

What it guarantees: only what was started here is ended, by its own process group; the server is gone and its files
and socket are removed when the ``with`` block is left, however it is left. A subject that cannot take part raises
:class:`Absent` with a reason fit for the report, and is never dropped in silence.

Every disk is filled through its own door in the same pieces (see :data:`bench.lines.FILL`), so none is measured on
memory that was never touched or on a file with holes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import fio
from bench.lines import KIB, MIB, Line

START_S = 120.0
END_S = 10.0
LAST_LINES = 3
OURS = "crucible-emu"
ENCRYPTED = "crucible-emu-encrypted"
CIPHER = "cipher-alone"
"""No subject: what the cipher does without a disk, see :mod:`bench.cipher`."""
PEER = "qemu-quorum"
MEMORY = "nbdkit-memory"
REFERENCES = (PEER, MEMORY)
"""What ratios are taken against: the peer that does the same job, and the ceiling that keeps one copy in memory."""


class Absent(Exception):
    """A subject cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a subject lives while it runs: a folder of its own, its socket's path, the disk's size (whole MiB)."""

    folder: Path
    socket: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the table. ``programs`` maps each program it needs to where it is had, ``plugins`` each plugin of
    nbdkit; ``files`` are the raw files that its command expects, made empty at the disk's size. ``lacks`` is what it
    does not do, ``copies`` how many of the disk it keeps in files, ``block_bytes`` the smallest block it serves.
    ``environment`` is added to that of its process."""

    name: str
    what: str
    programs: dict[str, str]
    command: Callable[[Place], list[str]]
    files: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    copies: int = 1
    block_bytes: int = 512
    plugins: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def serves(self, line: Line) -> bool:
        """Whether the line's blocks are whole blocks of this disk."""
        return line.block_bytes % self.block_bytes == 0


def serve(*options: str) -> Callable[[Place], list[str]]:
    """This project's disk: three regions under one Upstairs in one process. ``{folder}`` in an option is filled in."""

    def command(place: Place) -> list[str]:
        size = f"{place.size_bytes // MIB}MiB"
        words = [OURS, "serve", str(place.folder / "disk"), "--size", size, "--nbd", fio.uri_of(place.socket)]
        return [*words, *(option.format(folder=place.folder) for option in options)]

    return command


def three_processes(place: Place) -> list[str]:
    """This project's disk over three Downstairs at unix sockets, four processes in all."""
    words = [sys.executable, "-m", "bench.three_processes", str(place.folder)]
    return [*words, "--size-mib", str(place.size_bytes // MIB), "--nbd", fio.uri_of(place.socket)]


def asyncio_mirror(place: Place) -> list[str]:
    """What one would write by hand."""
    return [sys.executable, "-m", "bench.asyncio_mirror", str(place.folder), "--socket", str(place.socket)]


def quorum(place: Place) -> list[str]:
    """qemu's quorum of three files in its best setting: reads from one, io_uring below."""
    command = ["qemu-storage-daemon", "--object", "iothread,id=io0"]
    for index, name in enumerate(QUORUM_FILES):
        path = str(place.folder / name).replace(",", ",,")  # a comma in a value is written twice
        command += ["--blockdev", f"driver=file,node-name=f{index},filename={path},aio=io_uring"]
        command += ["--blockdev", f"driver=raw,node-name=r{index},file=f{index}"]
    children = ",".join(f"children.{index}=r{index}" for index in range(len(QUORUM_FILES)))
    command += ["--blockdev", f"driver=quorum,node-name=q0,vote-threshold=2,read-pattern=fifo,{children}"]
    listen = str(place.socket).replace(",", ",,")
    command += ["--nbd-server", f"addr.type=unix,addr.path={listen},max-connections=16"]
    return [*command, "--export", "type=nbd,id=e0,node-name=q0,name=,writable=on"]


def nbdkit(*plugin: str) -> Callable[[Place], list[str]]:
    """nbdkit in the foreground with a plugin; ``{size}`` and ``{folder}`` are filled in."""

    def command(place: Place) -> list[str]:
        values = {"size": str(place.size_bytes), "folder": str(place.folder)}
        return ["nbdkit", "-f", "-U", str(place.socket), *(word.format(**values) for word in plugin)]

    return command


NBDKIT = {"nbdkit": "Debian package nbdkit"}
CRUCIBLE = {OURS: "pip install -e ."}
QUORUM_FILES = ("r0", "r1", "r2")
ROOT = Path(__file__).resolve().parent.parent
OF_THIS_TREE = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
"""For servers that are modules of the bench: they are started in a folder from where Python would not find them."""

NO_HASHES = "hashes: a block that rots is served as it is"
NO_MIRROR = "a mirror: one copy, and what that loses is lost"
NO_CRASH_SAFETY = "crash safety: after a crash the copies differ, and nothing makes them equal"
NO_REPAIR = "repair: a copy that was away stays out, or stale"
NO_ENCRYPTION = "encryption"
NOT_DURABLE = "durability: what is in memory ends with the process"
ONE_PROCESS = "separate replicas: the three are in one process and die together"
PAST_THE_SOCKET = (
    "all data over sockets: on one machine, blocks at hand are read past the Downstairs' processes, and data of large "
    "writes are found in shared memory"
)
NO_SECTORS = "blocks of 512 bytes"
LACKS_OF_A_PLAIN_MIRROR = (NO_HASHES, NO_CRASH_SAFETY, NO_REPAIR, NO_ENCRYPTION)

SUBJECTS = (
    Subject(
        OURS,
        "three regions, one process",
        CRUCIBLE,
        serve(),
        lacks=(NO_ENCRYPTION, ONE_PROCESS, NO_SECTORS),
        copies=3,
        block_bytes=4 * KIB,
    ),
    Subject(
        PEER,
        "three files, fifo reads, io_uring",
        {"qemu-storage-daemon": "Debian package qemu-system-common"},
        quorum,
        QUORUM_FILES,
        lacks=LACKS_OF_A_PLAIN_MIRROR,
        copies=3,
    ),
    Subject(
        MEMORY,
        "one copy in memory",
        NBDKIT,
        nbdkit("memory", "{size}"),
        lacks=(NO_HASHES, NO_MIRROR, NOT_DURABLE, NO_ENCRYPTION),
        copies=0,
    ),
    Subject(
        "nbdkit-file",
        "one file",
        NBDKIT,
        nbdkit("file", "{folder}/r0"),
        ("r0",),
        lacks=(NO_HASHES, NO_MIRROR, NO_ENCRYPTION),
    ),
)
"""This disk, and the peers that are programs."""

BY_HAND = (
    Subject(
        "nbdkit-python-mirror",
        "three files, a plugin in Python",
        NBDKIT,
        nbdkit("python", str(Path(__file__).with_name("mirror_plugin.py")), "dir={folder}"),
        QUORUM_FILES,
        lacks=LACKS_OF_A_PLAIN_MIRROR,
        copies=3,
        plugins={"python": "Debian package nbdkit-plugin-python"},
    ),
    Subject(
        "asyncio-aiofiles",
        "three files, asyncio and aiofiles",
        {},
        asyncio_mirror,
        QUORUM_FILES,
        lacks=LACKS_OF_A_PLAIN_MIRROR,
        copies=3,
        environment=OF_THIS_TREE,
    ),
)
"""Mirrors in Python, as one would write them by hand."""

FORMS = (
    Subject(
        f"{OURS}-processes",
        "three regions, a process each",
        CRUCIBLE,
        three_processes,
        lacks=(NO_ENCRYPTION, PAST_THE_SOCKET, NO_SECTORS),
        copies=3,
        block_bytes=4 * KIB,
        environment=OF_THIS_TREE,
    ),
    Subject(
        ENCRYPTED,
        "three regions, AES-256-GCM-SIV",
        CRUCIBLE,
        serve("--encrypt", "{folder}/key"),
        lacks=(ONE_PROCESS, NO_SECTORS),
        copies=3,
        block_bytes=4 * KIB,
    ),
    Subject(
        f"{OURS}-512",
        "three regions, 512-byte blocks",
        CRUCIBLE,
        serve("--block-size", "512"),
        lacks=(NO_ENCRYPTION, ONE_PROCESS),
        copies=3,
    ),
)
"""This disk in its other forms."""

ALL = (*SUBJECTS, *BY_HAND, *FORMS)


def is_ours(name: str) -> bool:
    """Whether a subject is this disk, in whatever form."""
    return name == OURS or name.startswith(f"{OURS}-")


def find_program(name: str) -> str | None:
    """A program's path: beside this interpreter first, so that an environment's own command wins over an installed
    one, then on the search path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def check_programs(subject: Subject, find: Callable[[str], str | None] = find_program) -> None:
    """Raise :class:`Absent` where a program or plugin that ``subject`` needs is missing."""
    for program, source in subject.programs.items():
        if find(program) is None:
            raise Absent(f"{program} is not installed ({source})")
    for plugin, source in subject.plugins.items():
        # nbdkit knows where its plugins are; one that it cannot load ends it with a complaint.
        if subprocess.run(["nbdkit", "--dump-plugin", plugin], capture_output=True).returncode:
            raise Absent(f"nbdkit's plugin {plugin} is not installed ({source})")


class Server:
    """A subject that is being served."""

    def __init__(self, subject: Subject, process: subprocess.Popen[bytes], place: Place, log: Path) -> None:
        self.subject = subject
        self.process = process
        self.place = place
        self.log = log

    @property
    def uri(self) -> str:
        return fio.uri_of(self.place.socket)

    def last_words(self) -> str:
        """The last lines that the server wrote, for a report on why it is gone."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-LAST_LINES:]) or "it wrote nothing"

    def death(self) -> str | None:
        """Why the server is gone, or ``None`` while it runs."""
        code = self.process.poll()
        return None if code is None else f"it ended with code {code}: {self.last_words()}"

    def cpu_seconds(self) -> float | None:
        """CPU time that the server and what it forked have used so far; ``None`` where /proc does not tell."""
        return cpu_seconds(self.process.pid)


def cpu_seconds(session: int, proc: Path = Path("/proc")) -> float | None:
    """User and system time of every process of a session, ended children that were waited for included."""
    ticks = found = 0
    for stat in proc.glob("[0-9]*/stat"):
        try:
            # The second field is the name in brackets, which may itself hold spaces and brackets.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended between the listing and the reading
            continue
        if int(fields[3]) == session:
            found += 1
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK") if found else None


def wait_until_it_accepts(server: Server, timeout_s: float = START_S) -> None:
    """Return when the socket accepts a connection. Raises :class:`Absent` where the server ends or takes longer."""
    deadline = time.monotonic() + timeout_s
    while True:
        reason = server.death()
        if reason is not None:
            raise Absent(f"it did not start: {reason}")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(server.place.socket)) == 0:
                return
        if time.monotonic() > deadline:
            raise Absent(f"it did not listen within {timeout_s:.0f} s: {server.last_words()}")
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server that was started here, and whatever it forked.

    Until its last line the server is not waited for, so its number cannot have passed to somebody else's process.
    """
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running(subject: Subject, folder: Path, size_bytes: int) -> Iterator[Server]:
    """Serve ``subject``'s disk, filled, from a fresh folder in ``folder``; see the module for what is promised.

    Raises :class:`Absent` where a program is missing, or the server does not start or cannot be filled.
    """
    check_programs(subject)
    with (
        tempfile.TemporaryDirectory(prefix=f"bench-{subject.name}-", dir=folder) as home,
        # A unix socket's path has at most 107 bytes, so it does not live in a folder that a user chose.
        tempfile.TemporaryDirectory(prefix="bench-") as sockets,
    ):
        place = Place(Path(home), Path(sockets) / "s", size_bytes)
        for name in subject.files:
            with open(place.folder / name, "wb") as file:
                file.truncate(size_bytes)
        command = subject.command(place)
        command[0] = find_program(command[0]) or command[0]
        log = place.folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=place.folder,
                env=os.environ | subject.environment,
                start_new_session=True,
            )
        try:
            server = Server(subject, process, place, log)
            wait_until_it_accepts(server)
            try:
                fio.fill(server.uri, size_bytes, place.folder)
            except fio.FioError as problem:
                raise Absent(f"its disk could not be filled: {server.death() or problem}") from problem
            yield server
        finally:
            end(process)
