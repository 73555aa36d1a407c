"""Racks of stand-in services as people meet them: commands, and what is left of them in the machine."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
REAL = [sys.executable, "-m", "crucible_emu", "rack"]
WAIT_S = 60


def command(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """A command of the rack that goes on running; ``program`` is :data:`STAND_IN` or :data:`REAL`."""
    environment = {name: value for name, value in os.environ.items() if name != "CRUCIBLE_RACK"}
    return subprocess.Popen(
        [*settings.pop("program", STAND_IN), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2]), **settings.pop("env", {})},
        **settings,
    )


def outcome(*arguments: object, **settings: Any) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    with command(*arguments, **settings) as process:
        out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def rack(*arguments: object, **settings: Any) -> dict[str, Any]:
    """What a command says with ``--json``; it must end well and without a word besides."""
    code, out, err = outcome(*arguments, "--json", **settings)
    assert (code, err) == (0, ""), err
    found: dict[str, Any] = json.loads(out)
    return found


def sentence(*arguments: object, **settings: Any) -> str:
    """The one sentence of a command that must fail."""
    code, out, err = outcome(*arguments, **settings)
    assert (code, out) == (2, ""), (code, out, err)
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def states(found: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["state"] for each in found["services"]}


def urls(found: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["url"] for each in found["services"]}


def service(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = [each for each in found["services"] if each["name"] == name]
    return dict(one)


def hello(url: str) -> list[str]:
    """What the stand-in service at ``url`` was started with."""
    with urllib.request.urlopen(f"{url}/hello", timeout=WAIT_S) as answer:
        arguments: list[str] = json.load(answer)["arguments"]
    return arguments


def call(method: str, url: str, version: str, body: object = None) -> Any:
    """What a service answers to a request; raises for a refusal."""
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"api-version": version, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def processes_of(root: Path) -> set[int]:
    """The processes of the rack in ``root``, by its name on their command line; those that have ended do not count."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid() and not gone(int(entry)):
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(root).encode() in words:
                found.add(int(entry))
    return found


def gone(pid: int) -> bool:
    """Whether the process has ended; somebody may still have to wait for it."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def parent(pid: int) -> int:
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2].split()[1])


def sockets_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]


def nothing_left(root: Path) -> bool:
    """No process, socket or mount of the rack."""
    return not processes_of(root) and not sockets_under(root) and str(root) not in Path("/proc/mounts").read_text()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for other processes."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def end_by_force(root: Path) -> None:
    """Whatever a failed test has left."""
    for pid in processes_of(root):
        os.kill(pid, signal.SIGKILL)
