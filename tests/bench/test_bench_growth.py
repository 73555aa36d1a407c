"""The growth bench: what it does with points that fail, what it prints, and small runs of the real thing."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import growth, growth_report, process_figures
from bench.growth import Found, Outcome, Series, Setting
from bench.limits import GIB
from bench.opening import OpeningError, opened
from bench.pipelined import WRITE, Connection, Load, LoadError, apply, connected
from bench.trends import Point
from crucible_emu.region import Region
from crucible_emu.volume import local_disk


def measure(cause: int, setting: Setting, home: Path) -> Found:
    """Opening takes as long as there are extents, and fails at 30."""
    assert home.is_dir()
    if cause == 30:
        raise OpeningError("The disk did not open: out of luck")
    return Found({"opening_s": cause / 100, "write_cpu_us": 20.0, "idle_memory_mib": 60.0}, GIB)


FAKE = Series("size", "size of the disk, GiB", (1, 30, 100, 1000), (1, 100), measure, lambda _: 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SERIES", (FAKE,))


def test_a_point_that_fails_is_named_and_the_others_are_measured(fake: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(command.app, ["growth", "--out", str(tmp_path / "new"), "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "- failed: size 30: The disk did not open: out of luck" in result.output
    document = json.loads((tmp_path / "new" / "growth.json").read_text())
    (series,) = document["series"]
    assert series["failures"] == ["size 30: The disk did not open: out of luck"]
    opening, write, memory = series["figures"]
    assert opening["points"] == [[1, 0.01, GIB], [100, 1.0, GIB], [1000, 10.0, GIB]]
    assert opening["exponent"] == pytest.approx(1.0)
    assert [limit["met"] for limit in opening["limits"]] == [True, False], "as its cause, and longer than two seconds"
    assert [limit["met"] for limit in write["limits"]] == [True]
    assert memory["last_to_first"] == 1.0
    assert "- NOT met: opening_s at most 2 s: 10 at the cause 1,000" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_limit_that_is_not_met_is_no_failure(fake: None) -> None:
    result = CliRunner().invoke(command.app, ["growth", "--quick"])
    assert result.exit_code == 0
    assert "| opening_s | 0.01 | 1 | 1.00 | 100 |" in result.output.replace("100.00", "100")
    assert "limits met" in result.output


def test_charts_are_drawn_where_there_is_something_to_draw_with(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = {"opening_s": [Point(1, 0.5, GIB), Point(10, 0.7, GIB)], "write_cpu_us": [Point(1, 20.0, GIB)]}
    assert growth_report.draw(tmp_path, [Outcome(FAKE, points), Outcome(FAKE)])
    assert [path.name for path in tmp_path.iterdir()] == ["growth-size.png"]


def test_without_matplotlib_there_is_a_report_and_no_chart(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not growth_report.draw(tmp_path, [Outcome(FAKE, {"opening_s": [Point(1, 1, 1)]})])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "colour"], "--only does not know 'colour'; there are size."),
        (["--out", "/proc/nothing/here"], "--out /proc/nothing/here: nothing can be written there"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_measured(
    fake: None, arguments: list[str], sentence: str
) -> None:
    result = CliRunner().invoke(command.app, ["growth", *arguments])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_room_for_the_files_is_looked_for_first(tmp_path: Path) -> None:
    files, size_bytes = growth.room_needed(growth.SERIES, quick=False)
    assert files == 3 * 111_110
    assert 3 * 111_110 * 8192 < size_bytes < 16 * GIB
    huge = Series("huge", "", (10**12,), (1,), measure, int)
    with pytest.raises(ValueError, match="has no room for"):
        growth.check_room(tmp_path, [huge], quick=False)
    growth.check_room(tmp_path, [huge], quick=True)


def test_processor_time_and_memory_are_those_of_the_process() -> None:
    own = os.getpid()
    before = process_figures.cpu_seconds(own)
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert 0.02 <= process_figures.cpu_seconds(own) - before < 10
    found = process_figures.memory(own)
    assert 1 < found.proportional_mib <= found.resident_mib
    with pytest.raises(process_figures.GoneError, match="does not say"):
        process_figures.parse_memory("Rss: 12 kB\n")
    with pytest.raises(process_figures.GoneError, match="cannot be read"):
        process_figures.memory(own, Path("/nowhere"))


def test_torn_extents_are_what_an_open_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "BEHIND_EXTENTS", 4)
    local_disk.create(tmp_path / "disk", 4 * 16 * 4096, blocks_per_extent=16)
    growth.mark_torn(tmp_path / "disk" / "region-0", 2)
    with Region.open(tmp_path / "disk" / "region-0") as region:
        assert region.extent_versions()[2].tolist() == [True, False, True, False]


def test_many_disks_in_one_process_each_keep_their_own(tmp_path: Path) -> None:
    """The real thing: two disks, one process, one socket; and what is killed is gone."""
    with growth.door() as socket:
        words = [sys.executable, "-m", "bench.many_disks", str(tmp_path), "2", "1", str(socket)]
        with opened(words, socket, "1") as server:
            assert server.opening_s > float(str(server.facts["opening_s"])) > 0
            with connected(socket, "0", "1") as connections:
                assert [each.size_bytes for each in connections] == [1 << 20] * 2
                found = growth.loads(server, connections, Setting(None, 40, 1), blocks=256)
                assert {name for name, value in found.items() if value > 0} == {
                    *("write_cpu_us", "write_iops", "flush_cpu_us", "read_cpu_us", "read_iops")
                }
                with pytest.raises(LoadError, match="error"):
                    apply(Load(WRITE, 1, 1, 1), [_beyond(connections[0])])
            with pytest.raises(LoadError):
                Connection(socket, "2")
            server.kill()
            with pytest.raises(OpeningError, match="no clock"):
                server.cpu_seconds()


def _beyond(connection: Connection) -> Connection:
    """The same connection, asked for a block that the disk does not have."""

    class Beyond:
        def send(self, kind: int, blocks: list[int]) -> None:
            connection.send(kind, [1 << 40])

        take = connection.take

    return Beyond()  # type: ignore[return-value]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no disk today')"]
    with pytest.raises(OpeningError, match="no disk today"), opened(words, tmp_path / "s"):
        pass
    with pytest.raises(OpeningError, match="cannot be started"), opened(["/no/such/program"], tmp_path / "s"):
        pass


def test_one_point_of_a_real_disk(tmp_path: Path) -> None:
    found = growth.by_unflushed(4, Setting(tmp_path, 512, 1), tmp_path)
    assert found.disk_bytes == growth.UNFLUSHED_DISK_GIB * GIB
    assert set(found.figures) == {
        *("write_cpu_us", "flush_cpu_us", "flush_s", "unflushed_memory_mib", "flushed_memory_mib")
    }
    assert {name: value for name, value in found.figures.items() if value <= 0} == {}
