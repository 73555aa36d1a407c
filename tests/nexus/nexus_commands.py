"""The command ``nexus`` as people meet it: what it prints, and how it leaves.

Commands run in this process, which spares each the second that its imports take; where a rack is started or ended that
is done by processes all the same.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nexus.cli import main as root

WAIT_S = 120


def environment(**more: str) -> dict[str, str]:
    """Without what names a rack; where the ports of new racks begin is kept, for other workers' racks begin
    elsewhere."""
    names_a_rack = {name for name in os.environ if name.startswith("NEXUS_") or name == "CRUCIBLE_RACK"}
    kept = {name: value for name, value in os.environ.items() if name not in names_a_rack}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


@contextmanager
def _as_a_program(cwd: Path, env: Mapping[str, str]) -> Iterator[None]:
    log, kept = logging.getLogger(), dict(os.environ)
    handlers, level = list(log.handlers), log.level
    os.environ.clear()
    os.environ.update(env)
    try:
        with chdir(cwd):
            yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
        log.handlers = handlers
        log.setLevel(level)


def outcome(*arguments: object, cwd: Path = Path("/"), env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    out, err, code = StringIO(), StringIO(), 0
    with _as_a_program(cwd, environment() if env is None else env), redirect_stdout(out), redirect_stderr(err):
        try:
            root.main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
    # While tests run, loggers are heard from INFO on; a person hears of trouble only.
    heard = [line for line in err.getvalue().splitlines() if not (line.startswith("{") and '"level": "info"' in line)]
    return code, out.getvalue(), "\n".join(heard)


def program(*words: object, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run another program to its end."""
    done = subprocess.run(
        list(map(str, words)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        env=environment(),
        cwd=cwd,
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
