"""``python -m bench growth``: what gets dearer when a disk gets larger, is cut finer, or has others beside it.

What it is for: each :class:`Series` changes one cause and leaves everything else as it is; :data:`SERIES` is the table.
The same numbers of operations at the same places are asked of every disk, and what counts is the server's processor
time for one of them, for a rate depends on who else uses the machine. Whether a figure grows faster than its cause is
judged by :mod:`bench.trends` against the table in :mod:`bench.limits`.

What it guarantees: every disk is made new, sparse, in a temporary directory, and is gone afterwards. A point that
cannot be measured is a failure with its sentence; the others are measured all the same.

*Near* loads stay among the first blocks of the disk, *scattered* ones go to all of it: where only these grow, it is the
places that cost and not the size.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.limits import GIB, MIB
from bench.opening import Opened, OpeningError, opened, serve_command
from bench.pipelined import BLOCK_BYTES, READ, WRITE, Connection, Load, LoadError, apply, connected
from bench.trends import Point

Figures = dict[str, float]
"""Figures of one point, by name; the name ends in the unit."""

DEPTH = 16
NEAR_BLOCKS = 64 * MIB // BLOCK_BYTES
FLUSH_EVERY = 32
REPLICAS = 3
EXTENTS_PER_GIB = 16
"""Of a disk whose extents nobody asked for: 64 MiB each."""
FILE_BYTES = 8192
"""What a sparse extent occupies: a page at its end, where bitmap and metadata are, and one of contexts."""
ROOM_BYTES = 6 * GIB
"""What the loads write, on all three replicas, beyond the sparse files."""

EXTENTS_DISK_BLOCKS = 800_000
"""The disk of the series of extents: 800,000 blocks can be cut into 10 to 100,000 equal extents."""
BEHIND_EXTENTS = 10_000
BEHIND_EXTENT_BLOCKS = 16
MANY_DISKS_MIB = 64
UNFLUSHED_DISK_GIB = 4
DEPTH_DISK_GIB = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is measured: ``operations`` of each load, ``rounds`` of which the median is taken."""

    folder: Path | None
    operations: int
    rounds: int


FULL_OPERATIONS, FULL_ROUNDS = 16_384, 3
QUICK_OPERATIONS, QUICK_ROUNDS = 2_048, 1


@dataclass(frozen=True, slots=True)
class Found:
    """One point of a series: its figures, and how large the disk was."""

    figures: Figures
    disk_bytes: int


Measure = Callable[[int, Setting, Path], Found]
"""Measures one point. The folder is the series' own, and stays from point to point."""


@dataclass(frozen=True, slots=True)
class Series:
    """One cause. ``extents`` says how many one point has, so that the room for its files can be looked for first."""

    name: str
    cause: str
    causes: tuple[int, ...]
    quick: tuple[int, ...]
    measure: Measure
    extents: Callable[[int], int]


@dataclass(slots=True)
class Outcome:
    """What a series found: points by figure, and a sentence for each point that could not be measured."""

    series: Series
    points: dict[str, list[Point]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


# --- loads


def cpu_us(server: Opened, connections: Sequence[Connection], load: Load, seed: int) -> tuple[float, float]:
    """CPU time of the server per operation in µs, and operations per second."""
    before = server.cpu_seconds()
    seconds = apply(load, connections, seed)
    count = load.count * len(connections)
    return (server.cpu_seconds() - before) * 1e6 / count, count / seconds


def flush_all(server: Opened, connections: Sequence[Connection]) -> float:
    """CPU seconds of the server for a flush of each disk."""
    before = server.cpu_seconds()
    for connection in connections:
        connection.flush()
    return server.cpu_seconds() - before


def loads(
    server: Opened,
    connections: Sequence[Connection],
    setting: Setting,
    *,
    blocks: int,
    prefix: str = "",
    depth: int = DEPTH,
    warm: bool = True,
) -> Figures:
    """Writes, their flush, and reads of what was written; medians over the rounds. ``flush_cpu_us`` is per write."""
    write, read = Load(WRITE, setting.operations, depth, blocks), Load(READ, setting.operations, depth, blocks)
    rounds: list[Figures] = []
    for number in range(setting.rounds + warm):
        write_us, write_iops = cpu_us(server, connections, write, number)
        flush_us = flush_all(server, connections) * 1e6 / (write.count * len(connections))
        read_us, read_iops = cpu_us(server, connections, read, number)
        rounds.append(
            {
                f"{prefix}write_cpu_us": write_us,
                f"{prefix}write_iops": write_iops,
                f"{prefix}flush_cpu_us": flush_us,
                f"{prefix}read_cpu_us": read_us,
                f"{prefix}read_iops": read_iops,
            }
        )
    return medians(rounds[warm:])


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {name: median(each[name] for each in rounds) for name in rounds[0]}


def small_flushes(server: Opened, connection: Connection, setting: Setting) -> float:
    """CPU µs per write where every 32 of them are flushed, near each other."""
    count = max(1, setting.operations // FLUSH_EVERY // 8)
    before = server.cpu_seconds()
    for number in range(count):
        apply(Load(WRITE, FLUSH_EVERY, DEPTH, NEAR_BLOCKS), [connection], number)
        connection.flush()
    return (server.cpu_seconds() - before) * 1e6 / (count * FLUSH_EVERY)


def kill_under_load(server: Opened, setting: Setting, blocks: int) -> None:
    """Write, flush a part, write on, and kill the server while all that is under way."""
    with connected(server.socket) as connections:
        for number in range(4):
            apply(Load(WRITE, setting.operations // 4, DEPTH, blocks), connections, number)
            connections[0].flush()
        apply(Load(WRITE, setting.operations // 4, DEPTH, blocks), connections, 4)
        connections[0].send(WRITE, range(DEPTH))
        server.kill()


@contextmanager
def door() -> Iterator[Path]:
    """A path for a unix socket, which has at most 107 bytes and so does not live in a folder that a user chose."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder) / "s"


def open_and_kill(setting: Setting, disk: Path, socket: Path, blocks: int) -> Figures:
    """How long a clean disk takes to open, and one whose server was killed."""
    command = serve_command(disk, socket)
    clean = []
    for _ in range(setting.rounds):
        with opened(command, socket) as server:
            clean.append(server.opening_s)
    after = []
    for _ in range(setting.rounds):
        with opened(command, socket) as server:
            kill_under_load(server, setting, blocks)
        with opened(command, socket) as server:
            after.append(server.opening_s)
    return {"opening_s": median(clean), "opening_after_kill_s": median(after)}


# --- the series


def by_size(gib: int, setting: Setting, home: Path) -> Found:
    """A disk of so many GiB in extents of the size that the program chooses."""
    disk, blocks = home / f"size-{gib}", gib * GIB // BLOCK_BYTES
    with door() as socket:
        with opened(serve_command(disk, socket, "--size", f"{gib}GiB"), socket) as server:
            found = {"creation_s": server.opening_s}
        found |= open_and_kill(setting, disk, socket, blocks)
        with opened(serve_command(disk, socket), socket) as server, connected(socket) as connections:
            found["idle_memory_mib"] = server.memory().proportional_mib
            found["idle_resident_mib"] = server.memory().resident_mib
            found |= loads(server, connections, setting, blocks=NEAR_BLOCKS)
            found |= loads(server, connections, setting, blocks=blocks, prefix="scattered_", warm=False)
            found["used_memory_mib"] = server.memory().proportional_mib
    return Found(found, gib * GIB)


def by_extents(extents: int, setting: Setting, home: Path) -> Found:
    """The same disk, cut into so many extents."""
    disk, per_extent = home / f"extents-{extents}", EXTENTS_DISK_BLOCKS // extents
    size_bytes = extents * per_extent * BLOCK_BYTES
    cut = ("--size", str(size_bytes), "--extent-size", str(per_extent))
    with door() as socket:
        with opened(serve_command(disk, socket, *cut), socket) as server:
            found = {"creation_s": server.opening_s}
        found |= open_and_kill(setting, disk, socket, extents * per_extent)
        with opened(serve_command(disk, socket), socket) as server, connected(socket) as connections:
            found["idle_memory_mib"] = server.memory().proportional_mib
            found |= loads(server, connections, setting, blocks=NEAR_BLOCKS)
            found["small_flush_cpu_us"] = small_flushes(server, connections[0], setting)
            blocks = extents * per_extent
            found |= loads(server, connections, setting, blocks=blocks, prefix="scattered_", warm=False)
    return Found(found, size_bytes)


def by_behind(count: int, setting: Setting, home: Path) -> Found:
    """So many of 10,000 extents are marked as torn in one replica, as a power cut in a flush marks them."""
    disk = home / "behind"
    size_bytes = BEHIND_EXTENTS * BEHIND_EXTENT_BLOCKS * BLOCK_BYTES
    cut = ("--size", str(size_bytes), "--extent-size", str(BEHIND_EXTENT_BLOCKS))
    times = []
    with door() as socket:
        if not disk.exists():
            with opened(serve_command(disk, socket, *cut), socket):
                pass
        for _ in range(setting.rounds):
            mark_torn(disk / "region-0", count)
            with opened(serve_command(disk, socket), socket) as server:
                times.append(server.opening_s)
    return Found({"opening_s": median(times)}, size_bytes)


METADATA_BYTES = 32
EXTENTS_PER_DIRECTORY = 4096


def mark_torn(region: Path, count: int) -> None:
    """Set the dirty byte of ``count`` extents, spread evenly: what the first phase of a flush leaves behind."""
    for number in range(count):
        extent = number * BEHIND_EXTENTS // count
        group, name = divmod(extent, EXTENTS_PER_DIRECTORY)
        with (region / "00" / f"{group:03X}" / f"{name:03X}").open("r+b") as file:
            file.seek(-METADATA_BYTES, os.SEEK_END)
            file.write(b"\x01")


def by_disks(count: int, setting: Setting, home: Path) -> Found:
    """So many disks in one process, all of them under load, and one of them among its idle neighbours."""
    with door() as socket:
        command = [sys.executable, "-m", "bench.many_disks", str(home), str(count), str(MANY_DISKS_MIB), str(socket)]
        with opened(command, socket, "0") as server:
            found = {
                "opening_s": float(str(server.facts["opening_s"])),
                "idle_memory_mib": server.memory().proportional_mib,
                "idle_cpu_us": idle_cpu_us(server),
            }
            # As many operations as elsewhere, on all disks together.
            each = Setting(setting.folder, max(DEPTH, setting.operations // count), setting.rounds)
            with connected(socket, *map(str, range(count))) as connections:
                found |= loads(server, connections, each, blocks=MANY_DISKS_MIB * MIB // BLOCK_BYTES)
                blocks = MANY_DISKS_MIB * MIB // BLOCK_BYTES
                found |= loads(server, connections[:1], setting, blocks=blocks, prefix="one_")
                found["used_memory_mib"] = server.memory().proportional_mib
    return Found(found, count * MANY_DISKS_MIB * MIB)


IDLE_S = 1.0


def idle_cpu_us(server: Opened) -> float:
    """CPU µs that the server uses in a second in which nobody asks for anything."""
    before = server.cpu_seconds()
    time.sleep(IDLE_S)
    return (server.cpu_seconds() - before) * 1e6 / IDLE_S


def by_unflushed(mib: int, setting: Setting, home: Path) -> Found:
    """So many MiB are written, each block once, before the first flush."""
    disk, blocks = home / f"unflushed-{mib}", mib * MIB // BLOCK_BYTES
    with door() as socket:
        command = serve_command(disk, socket, "--size", f"{UNFLUSHED_DISK_GIB}GiB")
        with opened(command, socket) as server, connected(socket) as connections:
            (connection,) = connections
            first = blocks - min(blocks, setting.operations) // 2
            write_in_order(connection, range(first))
            before = server.cpu_seconds()
            write_in_order(connection, range(first, blocks))
            found = {"write_cpu_us": (server.cpu_seconds() - before) * 1e6 / (blocks - first)}
            found["unflushed_memory_mib"] = server.memory().proportional_mib
            before, began = server.cpu_seconds(), time.monotonic()
            connection.flush()
            found["flush_s"] = time.monotonic() - began
            found["flush_cpu_us"] = (server.cpu_seconds() - before) * 1e6 / blocks
            found["flushed_memory_mib"] = server.memory().proportional_mib
    return Found(found, UNFLUSHED_DISK_GIB * GIB)


def write_in_order(connection: Connection, blocks: range) -> None:
    """Write each of ``blocks`` once, at the usual depth."""
    for start in range(0, len(blocks), DEPTH):
        part = blocks[start : start + DEPTH]
        connection.send(WRITE, part)
        connection.take(WRITE, len(part))


def by_depth(depth: int, setting: Setting, home: Path) -> Found:
    """The same disk, with so many requests under way."""
    disk = home / "depth"
    with door() as socket:
        more = () if disk.exists() else ("--size", f"{DEPTH_DISK_GIB}GiB")
        with opened(serve_command(disk, socket, *more), socket) as server, connected(socket) as connections:
            found = loads(server, connections, setting, blocks=NEAR_BLOCKS, depth=depth)
    return Found(found, DEPTH_DISK_GIB * GIB)


def extents_of(gib: int) -> int:
    """How many extents a disk of that size has by default."""
    return gib * EXTENTS_PER_GIB


SIZES_GIB = (1, 4, 16, 64, 256, 1024)
EXTENTS_PER_GIB = 16

SERIES = (
    Series("size", "size of the disk, GiB", SIZES_GIB, (1, 32, 1024), by_size, extents_of),
    Series(
        "extents", "extents of a disk of 3 GiB", (10, 100, 1_000, 10_000, 100_000), (10, 100, 1_000), by_extents, int
    ),
    Series(
        "behind",
        f"extents of {BEHIND_EXTENTS:,} that one replica has torn",
        (1, 10, 100, 1_000, 10_000),
        (1, 10, 100),
        by_behind,
        lambda _: BEHIND_EXTENTS,
    ),
    Series("disks", "disks in one process", (1, 10, 50, 100, 200), (1, 5, 20), by_disks, int),
    Series(
        "unflushed",
        "written and not flushed, MiB",
        (1, 4, 16, 64, 256, 1024),
        (1, 8, 64),
        by_unflushed,
        lambda _: UNFLUSHED_DISK_GIB * EXTENTS_PER_GIB,
    ),
    Series(
        "depth", "requests under way", (1, 2, 4, 8, 16, 32, 64, 128), (1, 16, 64), by_depth, lambda _: EXTENTS_PER_GIB
    ),
)


def choose(names: Sequence[str]) -> tuple[Series, ...]:
    """The series of these names, in the table's order; all for none. Raises :class:`ValueError` for a name that is
    none of them."""
    known = [each.name for each in SERIES]
    for name in names:
        if name not in known:
            raise ValueError(f"--only does not know '{name}'; there are {', '.join(known)}.")
    return tuple(each for each in SERIES if not names or each.name in names)


def room_needed(series: Sequence[Series], *, quick: bool) -> tuple[int, int]:
    """Files and bytes that the largest series has on the file system at a time."""
    most = max(sum(each.extents(cause) for cause in (each.quick if quick else each.causes)) for each in series)
    return REPLICAS * most, REPLICAS * most * FILE_BYTES + ROOM_BYTES


def check_room(folder: Path, series: Sequence[Series], *, quick: bool) -> None:
    """Raises :class:`ValueError` where the disks of the series would not fit into ``folder``."""
    files, size_bytes = room_needed(series, quick=quick)
    there = os.statvfs(folder)
    if there.f_bavail * there.f_frsize < size_bytes:
        raise ValueError(f"{folder} has no room for {size_bytes / GIB:.0f} GiB: name another folder with --folder.")
    if there.f_files and there.f_favail < files:  # a file system without a number of inodes has no limit of them
        raise ValueError(f"{folder} has no room for {files:,} files: name another folder with --folder.")


def run(
    series: Sequence[Series], setting: Setting, *, quick: bool, tell: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Measure the series one after the other; ``tell`` hears of every point."""
    outcomes = []
    for each in series:
        outcome = Outcome(each)
        with tempfile.TemporaryDirectory(prefix=f"bench-{each.name}-", dir=setting.folder) as home:
            for cause in each.quick if quick else each.causes:
                try:
                    found = each.measure(cause, setting, Path(home))
                except (OpeningError, LoadError) as problem:
                    outcome.failures.append(f"{each.name} {cause:,}: {problem}")
                    tell(outcome.failures[-1])
                    continue
                for figure, value in found.figures.items():
                    outcome.points.setdefault(figure, []).append(Point(cause, value, found.disk_bytes))
                tell(f"{each.name} {cause:,}: " + ", ".join(f"{k} {v:,.3g}" for k, v in found.figures.items()))
        outcomes.append(outcome)
    return outcomes
