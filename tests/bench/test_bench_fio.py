"""fio's arguments and its output, good and bad."""

import json
from pathlib import Path

import pytest

from bench import fio
from bench.lines import FILL, MIB, MORE, QUICK, verifying

RANDWRITE = QUICK[0]
LATENCIES = ("latency_us_p50", "latency_us_p99", "latency_us_p999")


def document(error: int = 0, **write: object) -> str:
    part = {
        "iops": 512.0,
        "bw_bytes": 2097152,
        "total_ios": 256,
        "clat_ns": {"percentile": {"50.000000": 7000, "99.000000": 12500, "99.900000": 20000}},
    }
    nothing = {"iops": 0.0, "bw_bytes": 0, "total_ios": 0, "clat_ns": {}}
    return json.dumps({"jobs": [{"error": error, "read": nothing, "write": part | write}]})


def test_measuring_is_timed_and_filling_is_one_flushed_pass() -> None:
    timed = fio.arguments(RANDWRITE, "U", 1024, 0.25)
    assert {"--time_based", "--runtime=250ms", "--rw=randwrite", "--bs=4096", "--iodepth=1", "--uri=U"} <= set(timed)
    assert not any(word.startswith("--fsync") for word in timed)
    once = fio.arguments(FILL, "U", 1024, None)
    assert {"--rw=write", "--bs=65536", "--size=1024", "--end_fsync=1"} <= set(once)
    assert not any("runtime" in word or "time_based" in word for word in once)
    assert "--fsync=32" in fio.arguments(MORE[0], "U", 1024, 1)


def test_socket_path_is_quoted() -> None:
    assert fio.uri_of(Path("/a b/s&x")) == "nbd+unix:///?socket=/a%20b/s%26x"


def test_output_is_read_behind_what_fio_says_first() -> None:
    achieved = fio.parse(RANDWRITE, "fio: connected to NBD server\n" + document())
    assert achieved == fio.Achieved(iops=512.0, mib_s=2.0, operations=256, **dict(zip(LATENCIES, (7.0, 12.5, 20.0))))
    without = fio.parse(RANDWRITE, document(clat_ns={}))
    assert without == fio.Achieved(iops=512.0, mib_s=2.0, operations=256)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("", "could not be read"),
        ("fio: bad option", "could not be read"),
        ("{}", "could not be read"),
        ('{"jobs": []}', "could not be read"),
        ('{"jobs": [7]}', "could not be read"),
        (document(error=5), r"ended with error 5 \(Input/output error\)"),
        (document(total_ios=0), "completed no operation"),
        (document(iops=0), "completed no operation"),
    ],
)
def test_bad_output_is_a_sentence_that_names_the_line(output: str, sentence: str) -> None:
    with pytest.raises(fio.FioError, match=f"^randwrite-4k-qd1: .*{sentence}"):
        fio.parse(RANDWRITE, output)


def fake_fio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in fio's place."""
    program = tmp_path / "bin" / "fio"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_exit_code_comes_with_the_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fio(tmp_path, monkeypatch, "echo 'fio: nbd_connect_uri:' >&2; echo ' no such socket' >&2; echo '{}'; exit 1")
    with pytest.raises(fio.FioError, match=r"ended with code 1: fio: nbd_connect_uri: no such socket$"):
        fio.measure(RANDWRITE, "U", 1024, 1, tmp_path)


def test_long_complaint_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fio(tmp_path, monkeypatch, "for i in $(seq 1000); do echo 'verify: bad header' >&2; done; exit 1")
    with pytest.raises(fio.FioError, match=r"ended with code 1: (verify: bad header )+.{0,20} \.\.\.$") as refused:
        fio.measure(RANDWRITE, "U", 1024, 1, tmp_path)
    assert len(str(refused.value)) < fio.COMPLAINT_CHARACTERS_MAX + 60


def test_verifying_writes_each_block_once_and_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(document())
    fake_fio(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/answer')
    for line, size_bytes, verified in (
        (verifying(MIB), 1 << 30, 16 * MIB),
        (verifying(4096), 1 << 30, 4 * MIB),
        (verifying(4096), MIB, MIB),
    ):
        fio.verify(line, "U", size_bytes, tmp_path)
        asked = (tmp_path / "asked").read_text().split()
        assert {"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", f"--size={verified}"} <= set(asked)
        assert "--norandommap" not in asked
        assert not any("runtime" in word or "time_based" in word for word in asked)


def test_hung_server_costs_the_grace_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fio's forked worker is ended too: with the pipe still open in it, reading fio's output would never end."""
    monkeypatch.setattr(fio, "GRACE_S", 0.1)
    fake_fio(tmp_path, monkeypatch, "sleep 600 & wait")
    with pytest.raises(fio.FioError, match="the server did not finish within"):
        fio.measure(RANDWRITE, "U", 1024, 0.1, tmp_path)


def test_missing_fio_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fio.FioError, match="fio is not installed"):
        fio.measure(RANDWRITE, "U", 1024, 1, tmp_path)
