"""Starting, watching and ending servers, tried on small Python programs in their place."""

import os
import select
import sys
from pathlib import Path

import pytest

from bench import fio, subjects
from bench.lines import MIB
from bench.subjects import ALL, SUBJECTS, Absent, Place, Subject

PLACE = Place(Path("/f,o"), Path("/s"), 256 * MIB)

LISTEN = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "


def python(code: str) -> Subject:
    """A subject that runs ``code`` with its socket as argument."""
    return Subject("fake", "a program", {}, lambda place: [sys.executable, "-c", code, str(place.socket)], ("r0",))


@pytest.fixture(autouse=True)
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No disk is behind these servers: note who would be filled."""
    asked: list[str] = []
    monkeypatch.setattr(fio, "fill", lambda uri, size_bytes, folder: asked.append(uri))
    return asked


def test_server_is_filled_before_it_is_handed_out_and_leaves_nothing(tmp_path: Path, filled: list[str]) -> None:
    with subjects.running(python(LISTEN + "time.sleep(600)"), tmp_path, 8192) as server:
        assert filled == [server.uri]
        assert (server.place.folder / "r0").stat().st_size == 8192
        assert server.death() is None
        assert server.place.socket.exists()
        cpu = server.cpu_seconds()
        assert cpu is not None
        assert 0 <= cpu < 60
    assert server.process.returncode is not None
    assert not server.place.socket.exists()
    assert list(tmp_path.iterdir()) == []


def test_stubborn_server_and_what_it_forked_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "END_S", 0.05)
    code = (
        "import os, signal, socket, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork()\n"
        "if child: s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print(child, flush=True); s.listen()\n"
        "time.sleep(600)"
    )
    with subjects.running(python(code), tmp_path, 8192) as server:
        child = int(server.log.read_text())
        assert os.getpgid(child) == server.process.pid
        ended = os.pidfd_open(child)
    assert server.process.returncode == -9
    assert select.select([ended], [], [], 60) == ([ended], [], [])
    os.close(ended)


def test_server_that_ends_at_once_is_absent_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('a banner'); sys.exit('serve: no such folder')"
    with (
        pytest.raises(Absent, match=r"it did not start: it ended with code 1: .*serve: no such folder"),
        subjects.running(python(code), tmp_path, 8192),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_server_that_never_listens_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects.wait_until_it_accepts, "__defaults__", (0.05,))
    with (
        pytest.raises(Absent, match=r"it did not listen within 0 s: it wrote nothing"),
        subjects.running(python("import time; time.sleep(600)"), tmp_path, 8192),
    ):
        pass


def test_disk_that_cannot_be_filled_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise fio.FioError("fill: fio ended with error 28 (No space left on device).")

    monkeypatch.setattr(fio, "fill", refuse)
    with (
        pytest.raises(Absent, match=r"its disk could not be filled: fill: fio ended with error 28"),
        subjects.running(python(LISTEN + "time.sleep(600)"), tmp_path, 8192),
    ):
        pass


def test_missing_program_is_named_with_its_source() -> None:
    quorum = next(subject for subject in SUBJECTS if subject.name == subjects.PEER)
    with pytest.raises(Absent, match=r"qemu-storage-daemon is not installed \(Debian package qemu-system-common\)"):
        subjects.check_programs(quorum, lambda name: None)
    subjects.check_programs(quorum, lambda name: f"/bin/{name}")


def test_commands_name_their_socket_their_files_and_their_size() -> None:
    commands = {subject.name: subject.command(PLACE) for subject in ALL}
    assert commands["crucible-emu"] == [
        *("crucible-emu", "serve", "/f,o/disk", "--size", "256MiB", "--nbd", "nbd+unix:///?socket=/s")
    ]
    assert commands["nbdkit-memory"] == ["nbdkit", "-f", "-U", "/s", "memory", str(256 * MIB)]
    assert commands["nbdkit-file"][-1] == "/f,o/r0"
    assert commands["nbdkit-python-mirror"][-1] == "dir=/f,o"
    assert Path(commands["nbdkit-python-mirror"][-2]).is_file()
    assert commands["asyncio-aiofiles"][1:] == ["-m", "bench.asyncio_mirror", "/f,o", "--socket", "/s"]
    assert commands["crucible-emu-processes"][1:4] == ["-m", "bench.three_processes", "/f,o"]
    assert commands["crucible-emu-encrypted"][-2:] == ["--encrypt", "/f,o/key"]
    assert commands["crucible-emu-512"][-2:] == ["--block-size", "512"]
    quorum = " ".join(commands["qemu-quorum"])
    for index in range(3):
        assert f"filename=/f,,o/r{index},aio=io_uring" in quorum
    assert "read-pattern=fifo" in quorum
    assert "vote-threshold=2" in quorum


def test_cpu_time_counts_a_session_and_nobody_else(tmp_path: Path) -> None:
    def process(pid: int, session: int, *ticks: int) -> None:
        (tmp_path / str(pid)).mkdir()
        fields = ["S", "1", "1", str(session), *["0"] * 7, *map(str, ticks), "20"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) {' '.join(fields)}\n")

    process(10, 10, 100, 50, 7, 3)
    process(11, 10, 40, 0, 0, 0)
    process(12, 99, 10_000, 0, 0, 0)
    (tmp_path / "13").mkdir()  # gone between the listing and the reading
    assert subjects.cpu_seconds(10, tmp_path) == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    assert subjects.cpu_seconds(77, tmp_path) is None
