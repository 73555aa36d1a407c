"""One line, one server: run fio's NBD engine and read its result.

What it is for: :func:`measure` returns what one line achieved, :func:`verify` finds out whether what is written is what
comes back. A run that fails raises :class:`FioError` with one sentence that names fio's own complaint; a run that did
nothing is a failure too, for a rate of zero would pass as a slow disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.lines import FILL, MIB, WARM, Line

GRACE_S = 60.0
"""How long fio may take beyond its measuring time before its server counts as hung."""
VERIFIED_BYTES_MAX = 16 * MIB
VERIFIED_BLOCKS_MAX = 1024
COMPLAINT_CHARACTERS_MAX = 300
"""fio says the same of every block that is wrong; the first of them is enough."""
PERCENTILES = {"50.000000": "latency_us_p50", "99.000000": "latency_us_p99", "99.900000": "latency_us_p999"}


class FioError(Exception):
    """A line could not be measured; the message is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Achieved:
    """What one run of one line achieved: operations per second, MiB/s, operations; the latency that so many percent of
    the operations stayed below, in µs (50, 99, 99.9; ``None`` where fio does not tell)."""

    iops: float
    mib_s: float
    operations: int
    latency_us_p50: float | None = None
    latency_us_p99: float | None = None
    latency_us_p999: float | None = None


def uri_of(socket: Path) -> str:
    """The NBD URI of a unix socket."""
    return f"nbd+unix:///?socket={quote(str(socket))}"


def arguments(line: Line, uri: str, size_bytes: int, seconds: float | None) -> list[str]:
    """fio's arguments. ``seconds`` is how long to measure; ``None`` passes over the disk once and flushes it."""
    given = [
        "fio",
        f"--name={line.name}",
        "--output-format=json",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--size={size_bytes}",
        f"--rw={line.rw}",
        f"--bs={line.block_bytes}",
        f"--iodepth={line.depth}",
        "--randrepeat=0",
        "--norandommap",
    ]
    if line.flush_every:
        given.append(f"--fsync={line.flush_every}")
    if seconds is None:
        given.append("--end_fsync=1")
    else:
        given += ["--time_based", f"--runtime={round(seconds * 1000)}ms"]
    return given


def parse(line: Line, output: str) -> Achieved:
    """Read fio's JSON. Raises :class:`FioError` where it is no JSON, reports an error, or did nothing."""
    try:
        # fio prints a sentence of its own in front of the document.
        document = json.loads(output[output.index("{") :])
        job = document["jobs"][0]
        # In the "write" and "read" parts of a line that does the other, everything is zero.
        part = job["write" if line.writes else "read"]
        error = int(job["error"])
        iops, bytes_s, operations = float(part["iops"]), float(part["bw_bytes"]), int(part["total_ios"])
        percentiles = part["clat_ns"].get("percentile", {})
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        raise FioError(f"{line.name}: fio's output could not be read ({problem!r}).") from problem
    if error:
        raise FioError(f"{line.name}: fio ended with error {error} ({os.strerror(error)}).")
    if operations == 0 or iops == 0:
        raise FioError(f"{line.name}: fio completed no operation.")
    latencies = {name: percentiles[key] / 1000 for key, name in PERCENTILES.items() if key in percentiles}
    return Achieved(iops, bytes_s / MIB, operations, **latencies)


def run(command: list[str], folder: Path, timeout_s: float) -> tuple[int, str, str]:
    """Run a command in ``folder``: exit code, output, errors. It and what it forked are killed after ``timeout_s``,
    which raises :class:`subprocess.TimeoutExpired`."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # fio forks its workers: one group, so that one signal ends them all
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


def complete(line: Line, command: list[str], folder: Path, timeout_s: float) -> str:
    """Run fio to its end: its output. Raises :class:`FioError` with its complaint."""
    try:
        code, output, errors = run(command, folder, timeout_s)
    except FileNotFoundError as problem:
        raise FioError("fio is not installed (Debian package fio).") from problem
    except subprocess.TimeoutExpired as problem:
        raise FioError(f"{line.name}: the server did not finish within {problem.timeout:.0f} s.") from problem
    if code:
        complaint = " ".join(errors.split()) or " ".join(output[: max(output.find("{"), 0)].split())
        if len(complaint) > COMPLAINT_CHARACTERS_MAX:
            complaint = complaint[:COMPLAINT_CHARACTERS_MAX] + " ..."
        raise FioError(f"{line.name}: fio ended with code {code}: {complaint or 'it did not say why'}")
    return output


def measure(line: Line, uri: str, size_bytes: int, seconds: float | None, folder: Path) -> Achieved:
    """Run ``line`` against the server at ``uri``. Raises :class:`FioError` where there is nothing to report."""
    command = arguments(line, uri, size_bytes, seconds)
    return parse(line, complete(line, command, folder, (seconds or 0) + GRACE_S))


def verify(line: Line, uri: str, size_bytes: int, folder: Path) -> None:
    """Write the disk's beginning with ``line``, each block once and with a checksum in it, and read all of it back.

    Raises :class:`FioError`: what came back is not what was written, or it did not come back.
    """
    verified_bytes = min(size_bytes, VERIFIED_BYTES_MAX, VERIFIED_BLOCKS_MAX * line.block_bytes)
    words = arguments(line, uri, verified_bytes, None)
    words.remove("--norandommap")  # or some blocks would be written twice, and others not at all
    words += ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"]
    parse(line, complete(line, words, folder, GRACE_S))


def fill(uri: str, size_bytes: int, folder: Path) -> None:
    """Write the whole disk once, as every subject's is written, and flush it."""
    measure(FILL, uri, size_bytes, None, folder)


def warm(uri: str, size_bytes: int, folder: Path) -> None:
    """Read the whole disk once."""
    measure(WARM, uri, size_bytes, None, folder)
