"""The command ``nexus`` as people meet it: a program, and what is left of it in the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NEXUS = [sys.executable, "-m", "nexus"]
CRUCIBLE = [sys.executable, "-m", "crucible_emu"]
NAMES_A_RACK = ("NEXUS_", "CRUCIBLE_RACK")
WAIT_S = 120


def environment(**more: str) -> dict[str, str]:
    """Without what names a rack."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NAMES_A_RACK)}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


def outcome(*arguments: object, program: list[str] = NEXUS, **settings: Any) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    done = subprocess.run(
        [*program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        env=settings.pop("env", environment()),
        **settings,
    )
    return done.returncode, done.stdout, done.stderr


def nexus(*arguments: object, **settings: Any) -> dict[str, Any]:
    """What a command says with ``--json``; it must end well and without a word besides."""
    code, out, err = outcome(*arguments, "--json", **settings)
    assert (code, err) == (0, ""), (arguments, err)
    found: dict[str, Any] = json.loads(out)
    return found


def said(*arguments: object, **settings: Any) -> str:
    """What a command says to a person; it must end well."""
    code, out, err = outcome(*arguments, **settings)
    assert (code, err) == (0, ""), (arguments, err)
    return out


def sentence(*arguments: object, code: int = 2, **settings: Any) -> str:
    """The one sentence of a command that must fail."""
    found, out, err = outcome(*arguments, **settings)
    lines = [line for line in err.splitlines() if not line.startswith("Try '")]
    assert (found, out, len(lines)) == (code, "", 1), (arguments, found, out, err)
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")
