"""What unmodified clients do with an export, as functions of its address.

What it is for: the same checks run over a memory device, and over every disk that is served later: each function of
:data:`CLIENTS` takes a :class:`Bench` (the address, the programs, a folder of its own) and raises where the client
finds a fault. They write to the whole export, which must be of :data:`SIZE_BYTES_MIN` at least, and start from any
content. None asks the server anything but over NBD.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crucible_emu.nbd import NbdUri

MEGABYTE = 1 << 20
SIZE_BYTES_MIN = 16 * MEGABYTE
TIMEOUT_S = 120
POLL_S = 0.02


@dataclass
class Bench:
    """An export, the programs that may be asked for (``program`` skips the test where one is missing), a folder."""

    uri: NbdUri
    program: Callable[[str], str]
    libnbd: Callable[[], ModuleType]
    folder: Path

    def run(self, name: str, *arguments: object, **settings: Any) -> str:
        """Run a program to its end: what it wrote. Raises with its words when it fails."""
        command = [self.program(name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=self.folder, **settings)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    @property
    def size_bytes(self) -> int:
        return int(self.run("nbdinfo", "--size", self.uri))

    def image(self, name: str, size: int) -> Path:
        """A file of ``size`` bytes: random data, a hole, zeros that are written, random data again."""
        path = self.folder / name
        with open(path, "wb") as file:
            file.write(os.urandom(size // 4))
            file.seek(size // 2)
            file.write(bytes(size // 8))
            file.write(os.urandom(size // 8 + 512))
            file.truncate(size)
        return path


# --- libnbd's programs ---


def info(bench: Bench) -> None:
    """nbdinfo: every capability that the export has."""
    (found,) = json.loads(bench.run("nbdinfo", "--json", bench.uri))["exports"]
    assert found["export-size"] == bench.size_bytes >= SIZE_BYTES_MIN
    wanted = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    assert [name for name in wanted if not found[f"can_{name}"]] == []
    assert not found["is_read_only"] and found["contexts"] == ["base:allocation", "qemu:allocation-depth"]
    assert found["block_size_minimum"] >= 512 and found["block_size_maximum"] == 32 * MEGABYTE


def listing(bench: Bench) -> None:
    """nbdinfo --list: our export is among those listed."""
    found = json.loads(bench.run("nbdinfo", "--list", "--json", bench.uri))["exports"]
    assert bench.uri.export in [export["export-name"] for export in found]


def maps(bench: Bench) -> None:
    """nbdinfo --map in both contexts, and qemu-img map: they cover everything, and agree about what reads as zeros."""
    size = bench.size_bytes
    bench.run("qemu-io", "-f", "raw", bench.uri, "-c", "write -P 7 1M 1M", "-c", "write -P 7 9M 64k")
    allocation = json.loads(bench.run("nbdinfo", "--map", "--json", bench.uri))
    depth = json.loads(bench.run("nbdinfo", "--map=qemu:allocation-depth", "--json", bench.uri))
    qemu = json.loads(bench.run("qemu-img", "map", "-f", "raw", "--output=json", bench.uri))
    assert sum(extent["length"] for extent in allocation) == sum(extent["length"] for extent in depth) == size
    written = spans((e["offset"], e["length"]) for e in allocation if e["type"] == 0)
    assert written == spans((e["offset"], e["length"]) for e in depth if e["type"] > 0)
    assert written == spans((e["start"], e["length"]) for e in qemu if not e["zero"])
    assert any(start <= MEGABYTE and end >= 2 * MEGABYTE for start, end in written)


def spans(found: Any) -> list[tuple[int, int]]:
    """``(start, end)`` of (offset, length) pairs, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for offset, length in found:
        if joined and joined[-1][1] == offset:
            joined[-1] = (joined[-1][0], offset + length)
        else:
            joined.append((offset, offset + length))
    return joined


def copy_both_ways(bench: Bench) -> None:
    """nbdcopy with four connections, there and back: the bytes come home."""
    image = bench.image("image", bench.size_bytes)
    bench.run("nbdcopy", "--connections=4", "--flush", image, bench.uri)
    bench.run("nbdcopy", "--connections=4", bench.uri, bench.folder / "back")
    assert (bench.folder / "back").read_bytes() == image.read_bytes()
    bench.run("nbdcopy", "--connections=2", "--request-size=4096", "--requests=16", bench.uri, bench.folder / "again")
    assert (bench.folder / "again").read_bytes() == image.read_bytes()


def libnbd_calls(bench: Bench) -> None:
    """libnbd from Python: each call of its API that reaches the server, flags included."""
    nbd = bench.libnbd()
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(str(bench.uri))
    data = os.urandom(64 * 1024)
    handle.pwrite(data, 1 * MEGABYTE, nbd.CMD_FLAG_FUA)
    assert handle.pread(len(data), 1 * MEGABYTE) == data
    handle.zero(16 * 1024, 1 * MEGABYTE, nbd.CMD_FLAG_NO_HOLE)
    handle.zero(16 * 1024, 1 * MEGABYTE + 16 * 1024)
    handle.trim(16 * 1024, 1 * MEGABYTE + 32 * 1024, nbd.CMD_FLAG_FUA)
    handle.cache(64 * 1024, 1 * MEGABYTE)
    handle.flush()
    found = handle.pread(len(data), 1 * MEGABYTE)
    assert found[: 32 * 1024] == bytes(32 * 1024) and found[48 * 1024 :] == data[48 * 1024 :]
    extents: list[int] = []
    handle.block_status(MEGABYTE, MEGABYTE, lambda _, offset, entries, error: extents.extend(entries) or 0)
    assert sum(extents[::2]) <= MEGABYTE and len(extents) % 2 == 0 and extents
    chunks: list[tuple[int, int]] = []
    chunk = handle.pread_structured(
        4096, MEGABYTE, lambda data, at, kind, _: chunks.append((at, len(data))), nbd.CMD_FLAG_DF
    )
    assert chunk == bytes(4096) and chunks == [(MEGABYTE, 4096)]
    several_at_once(handle, nbd)
    handle.set_strict_mode(0)  # let it ask for what it knows to be wrong
    with pytest.raises(nbd.Error) as caught:
        handle.pread(512, bench.size_bytes)
    assert caught.value.errno == "EINVAL"
    handle.shutdown()


def several_at_once(handle: Any, nbd: ModuleType) -> None:
    """Sixteen asynchronous writes in flight, then as many reads."""
    buffers = [nbd.Buffer.from_bytearray(bytearray([n + 1]) * 4096) for n in range(16)]
    cookies = [handle.aio_pwrite(buffer, n * 8192) for n, buffer in enumerate(buffers)]
    finish(handle, cookies)
    found = [nbd.Buffer(4096) for _ in buffers]
    finish(handle, [handle.aio_pread(buffer, n * 8192) for n, buffer in enumerate(found)])
    assert [buffer.to_bytearray() for buffer in found] == [bytearray([n + 1]) * 4096 for n in range(16)]


def finish(handle: Any, cookies: list[int]) -> None:
    waiting = set(cookies)
    while waiting:
        waiting = {cookie for cookie in waiting if not handle.aio_command_completed(cookie)}
        if waiting:
            handle.poll(-1)


# --- qemu's programs ---


def qemu_info(bench: Bench) -> None:
    found = json.loads(bench.run("qemu-img", "info", "--output=json", "-f", "raw", bench.uri))
    assert (found["format"], found["virtual-size"]) == ("raw", bench.size_bytes)


def qemu_convert_and_compare(bench: Bench) -> None:
    """qemu-img convert to the export and back through qcow2, with a comparison of both ends."""
    image = bench.image("image", bench.size_bytes)
    bench.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, bench.uri)
    bench.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, bench.uri)
    bench.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", bench.uri, "back.qcow2")
    bench.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, "back.qcow2")
    bench.run("qemu-img", "convert", "-n", "-W", "-m", "8", "--target-is-zero", "-O", "raw", "back.qcow2", bench.uri)
    bench.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, bench.uri)


def qemu_bench(bench: Bench) -> None:
    """qemu-img bench: requests at depth, writes with flushes between."""
    bench.run("qemu-img", "bench", "-f", "raw", "-c", 2000, "-d", 16, "-s", 4096, bench.uri)
    bench.run("qemu-img", "bench", "-f", "raw", "-c", 500, "-d", 16, "-s", 4096, "-w", "--flush-interval=50", bench.uri)


def blkverify(bench: Bench) -> None:
    """qemu's blkverify: each read of a long mixed program is compared with a file of the same history."""
    reference = bench.folder / "reference"
    bench.run("nbdcopy", bench.uri, reference)
    uri = bench.uri
    place = f"path={uri.socket}" if uri.socket is not None else f"host={uri.host},test.file.port={uri.port}"
    name = f",test.file.export={uri.export}" if uri.export else ""
    options = (
        f"driver=blkverify,raw.driver=file,raw.filename={reference},"
        f"test.driver=raw,test.file.driver=nbd,test.file.{place}{name}"
    )
    program: list[str] = []
    for n in range(40):
        at = n * 7919 * 512 % (12 * MEGABYTE)
        program.append(f"write {'-f ' if n % 3 == 0 else ''}-P {n + 1} {at} {512 * (1 + n * n % 400)}")
        program.append(f"aio_write -P {n + 2} {at + 300_032} 4096")
        program.append(f"read {at // 512 * 512} 300032")
        if n % 5 == 0:
            program += ["aio_flush", "flush", "read 0 8M", "read 8M 8M"]
    bench.run("qemu-io", "--image-opts", options, *[word for line in program for word in ("-c", line)])
    bench.run("qemu-img", "compare", "-f", "raw", "-F", "raw", reference, uri)


def qemu_io_zeroes(bench: Bench) -> None:
    """qemu-io: zeroing with and without holes, discards, writes through, patterns checked by qemu itself."""
    said = bench.run(
        *("qemu-io", "-f", "raw", "-d", "unmap", str(bench.uri)),
        *("-c", "write -P 9 0 4M", "-c", "write -z 64k 128k", "-c", "write -z -u 1M 1M", "-c", "write -z -f 2M 4k"),
        *("-c", "discard 3M 64k", "-c", "write -f -P 3 512 512", "-c", "flush"),
        *("-c", "read -P 0 64k 128k", "-c", "read -P 0 1M 1M", "-c", "read -P 0 2M 4k", "-c", "read -P 3 512 512"),
        *("-c", "read -P 9 1k 63k", "-c", "read -P 9 192k 832k", "-c", "read -P 9 3136k 960k"),
    )
    assert "Pattern verification failed" not in said


# --- fio ---

FIO_VERIFIED = "--verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0 --size=8m"
FIO_JOBS = {
    "random writes": "--rw=randwrite --bs=4k --iodepth=16",
    "mixed sizes": "--rw=randwrite --bsrange={block}-128k --blockalign={block} --iodepth=8",
    "reads and writes": "--rw=randrw --bs=4k --iodepth=32 --fsync=16",
    "large writes": "--rw=write --bs=1m --iodepth=4",
    "trims between": "--rw=randtrimwrite --bs=4k --iodepth=8",
    "many jobs": "--rw=randwrite --bs=4k --iodepth=8 --numjobs=4 --offset_increment=4m --size=4m --group_reporting",
}


def fio_verifies(bench: Bench) -> None:
    """fio writes, reads back and checks each block, in every pattern of :data:`FIO_JOBS`."""
    (export,) = json.loads(bench.run("nbdinfo", "--json", bench.uri))["exports"]
    for name, job in FIO_JOBS.items():
        words = [*FIO_VERIFIED.split(), *job.format(block=export["block_size_minimum"]).split()]
        bench.run("fio", f"--name={name}", "--ioengine=nbd", f"--uri={bench.uri}", *words)


# --- a file system ---


@contextmanager
def as_loop_device(bench: Bench) -> Iterator[str]:
    """As root: the export as a file (nbdfuse) and that as a loop device, whose name is yielded."""
    for name in ("nbdfuse", "fusermount3", "losetup"):
        bench.program(name)
    (bench.folder / "fuse").mkdir(exist_ok=True)
    disk = bench.folder / "fuse" / "disk"
    with ExitStack() as undo:
        fuse = subprocess.Popen([bench.program("nbdfuse"), disk, str(bench.uri)], cwd=bench.folder)
        undo.callback(fuse.wait, TIMEOUT_S)
        undo.callback(bench.run, "fusermount3", "-u", "-z", "fuse")
        until(fuse, disk.exists)
        # nbdfuse passes on what the loop device asks for, and libnbd refuses what is smaller than a block.
        (export,) = json.loads(bench.run("nbdinfo", "--json", bench.uri))["exports"]
        sector = max(512, export["block_size_minimum"])
        loop = bench.run("losetup", "--sector-size", sector, "-f", "--show", disk).strip()
        undo.callback(bench.run, "losetup", "-d", loop)
        yield loop


@contextmanager
def mounted(bench: Bench, loop: str, *options: str) -> Iterator[Path]:
    """The file system on a loop device, mounted."""
    where = bench.folder / "mounted"
    where.mkdir(exist_ok=True)
    bench.run("mount", *options, loop, where)
    try:
        yield where
    finally:
        bench.run("umount", where)


def file_system(bench: Bench) -> None:
    """As root: ext4 on a loop device, filled, checked, and read back."""
    for name in ("mkfs.ext4", "mount", "umount", "fsck.ext4"):
        bench.program(name)
    content = {f"file{n}": os.urandom(1 + n * n * 401) for n in range(40)}
    with as_loop_device(bench) as loop:
        bench.run("mkfs.ext4", "-q", "-F", loop)
        with mounted(bench, loop) as where:
            for name, data in content.items():
                (where / name).write_bytes(data)
        bench.run("fsck.ext4", "-fn", loop)
        with mounted(bench, loop, "-o", "ro") as where:
            assert {name: (where / name).read_bytes() for name in content} == content


def until(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Wait for a state that ``process`` brings about; raises when it ends first or takes too long."""
    for _ in range(int(TIMEOUT_S / POLL_S)):
        if ready():
            return
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"{process.args!r} ended with {process.returncode}")
    raise AssertionError(f"{process.args!r} was not ready within {TIMEOUT_S} s")


CLIENTS: dict[str, Callable[[Bench], None]] = {
    "nbdinfo": info,
    "nbdinfo-list": listing,
    "maps": maps,
    "nbdcopy": copy_both_ways,
    "libnbd": libnbd_calls,
    "qemu-img-info": qemu_info,
    "qemu-img-convert": qemu_convert_and_compare,
    "qemu-img-bench": qemu_bench,
    "qemu-io-blkverify": blkverify,
    "qemu-io-zeroes": qemu_io_zeroes,
    "fio-verify": fio_verifies,
}
"""Everything that needs no special rights; :func:`file_system` needs root."""
