"""The mirrors written by hand, and who really loses or corrupts data: found out by fio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bench import asyncio_mirror, flush, measuring, subjects
from bench.lines import MIB, QUICK
from bench.subjects import BY_HAND, MEMORY, NBDKIT, SUBJECTS, Absent, Subject, check_programs, nbdkit
from crucible_emu.client import aio
from crucible_emu.client.failures import RequestFailed

FILES = asyncio_mirror.FILES
LINE = next(line for line in QUICK if line.name == "randread-4k-qd1")

CORRUPTING_PLUGIN = """
API_VERSION = 2
disk = bytearray(16 << 20)
count = 0

def open(readonly):
    return 1

def get_size(handle):
    return len(disk)

def pread(handle, buffer, offset, flags):
    buffer[:] = disk[offset : offset + len(buffer)]

def pwrite(handle, buffer, offset, flags):
    global count
    disk[offset : offset + len(buffer)] = buffer
    count += 1
    if count % 1000 == 0:
        disk[offset + 100] ^= 1

def flush(handle, flags):
    pass
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in FILES]
    for path in paths:
        path.write_bytes(bytes(MIB))
    return paths


def test_asyncio_mirror_writes_three_files_and_reads_them(files: list[Path], tmp_path: Path) -> None:
    socket = tmp_path / "s"

    async def main() -> None:
        server = asyncio.create_task(asyncio_mirror.main(tmp_path, socket))
        while not socket.exists():  # noqa: ASYNC110 - a file tells nobody that it is there
            await asyncio.sleep(0)
        async with await aio.open(f"nbd+unix:///?socket={socket}") as disk:
            assert disk.size_bytes == MIB
            await asyncio.gather(*(disk.write(block * 4096, bytes([block]) * 4096) for block in range(64)))
            await disk.write(0, b"x" * 512)
            found = await asyncio.gather(*(disk.read(block * 4096, 4096) for block in range(1, 64)))
            assert [bytes(data) for data in found] == [bytes([block]) * 4096 for block in range(1, 64)]
            await disk.flush()
            assert files[0].read_bytes()[:512] == b"x" * 512
            assert len({path.read_bytes() for path in files}) == 1
            files[0].write_bytes(bytes(4096))  # shorter than the disk: an error, and no wrong data
            with pytest.raises(RequestFailed):
                await disk.read(8192, 4096)
        await asyncio.to_thread(flush.flush, socket)
        while len(asyncio.all_tasks()) > 2:  # noqa: ASYNC110 - connections that are being closed
            await asyncio.sleep(0)
        server.cancel()
        await asyncio.wait([server])

    asyncio.run(main())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin as nbdkit loads it."""
    monkeypatch.setitem(sys.modules, "nbdkit", SimpleNamespace(THREAD_MODEL_PARALLEL=3))
    path = Path(subjects.__file__).with_name("mirror_plugin.py")
    spec = spec_from_file_location("mirror_plugin_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plugin_writes_three_files(plugin: ModuleType, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="dir=FOLDER is missing"):
        plugin.get_ready()
    with pytest.raises(RuntimeError, match="unknown parameter file"):
        plugin.config("file", "x")
    plugin.config("dir", str(tmp_path))
    plugin.get_ready()
    handle = plugin.open(False)
    assert plugin.get_size(handle) == MIB
    plugin.pwrite(handle, bytearray(b"abc"), 4096, 0)
    plugin.flush(handle, 0)
    assert len({path.read_bytes() for path in files}) == 1
    found = bytearray(5)
    plugin.pread(handle, found, 4095, 0)
    assert found == b"\0abc\0"
    files[0].write_bytes(b"short")
    with pytest.raises(OSError, match="a file became shorter"):
        plugin.pread(handle, found, 4096, 0)
    for descriptor in plugin.descriptors:
        subjects.os.close(descriptor)


def test_plugin_that_nbdkit_does_not_have_is_named_with_its_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nbdkit").write_text('#!/bin/sh\n[ "$*" = "--dump-plugin here" ]\n')
    (tmp_path / "nbdkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def needs(name: str) -> Subject:
        return Subject("fake", "a plugin", NBDKIT, nbdkit(name), plugins={name: "Debian package x"})

    check_programs(needs("here"))
    with pytest.raises(Absent, match=r"^nbdkit's plugin gone is not installed \(Debian package x\)$"):
        check_programs(needs("gone"))


@pytest.mark.real_client
def test_mirrors_by_hand_keep_what_they_are_given(require_program: Callable[[str], str], tmp_path: Path) -> None:
    for program in ("fio", "nbdkit"):
        require_program(program)
    outcome = measuring.run(BY_HAND, [LINE], 1, 0.1, 16 * MIB, tmp_path)
    assert (outcome.absent, outcome.disqualified, outcome.failures) == ({}, {}, [])
    assert outcome.subjects == ["nbdkit-python-mirror", "asyncio-aiofiles"]
    assert all(row.latency_us_p50 and row.latency_us_p99 and row.latency_us_p999 for row in outcome.rows)


@pytest.mark.real_client
def test_who_loses_or_corrupts_data_is_disqualified(require_program: Callable[[str], str], tmp_path: Path) -> None:
    """nbdkit's null plugin forgets every write; the other one turns one bit in every thousandth block."""
    for program in ("fio", "nbdkit"):
        require_program(program)
    script = tmp_path / "corrupting.py"
    script.write_text(CORRUPTING_PLUGIN)
    memory = next(subject for subject in SUBJECTS if subject.name == MEMORY)
    asked = [
        memory,
        Subject("forgetful", "forgets", NBDKIT, nbdkit("null", "{size}")),
        Subject("corrupting", "turns bits", NBDKIT, nbdkit("python", str(script))),
    ]
    outcome = measuring.run(asked, [LINE], 1, 0.1, 16 * MIB, tmp_path)
    assert outcome.absent == {}
    assert outcome.subjects == [MEMORY]
    assert {row.subject for row in outcome.rows} == {MEMORY}
    assert "verify: bad magic header 0" in outcome.disqualified["forgetful"]
    assert "crc32c: verify failed" in outcome.disqualified["corrupting"]
