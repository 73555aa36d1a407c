"""One child process from its start to its end: a Downstairs that says when it can be reached.

What it is for: a Downstairs is started as this program's own command, in a session of its own (a Ctrl-C at the terminal
reaches the supervisor alone, which then ends its children in order). The first line that it prints says that it is
ready; everything else that it says goes to a file.

What it guarantees: no child outlives this process unnoticed. Its standard input is a pipe whose other end only this
process holds, and nothing is ever written to it; the child ends in order when that end is gone
(``downstairs run --until-eof``), for whatever reason, SIGKILL included. A child that was halted with SIGSTOP at that
time ends as soon as it goes on; until then it keeps its region locked, which whoever comes next is told. When
:func:`run_child` is cancelled the child is killed and waited for.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

READY_BYTES_MAX = 64 * 1024


async def run_child(
    command: list[str],
    output: Path,
    started: Callable[[trio.Process], None],
    ready: Callable[[dict[str, Any]], None],
) -> int:
    """Run ``command`` to its end and return how it ended: an exit code, or the negative number of a signal.

    ``started`` gets the process, ``ready`` what its first line says. Standard error goes to the new file ``output``.
    Raises :class:`OSError` where it cannot be started.
    """
    with output.open("wb") as file:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True
        )
    try:
        started(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, ready)
            await process.wait()
            # What it printed just before its end is still in the pipe, and nobody waits for it any more.
            nursery.cancel_scope.cancel()
        assert process.returncode is not None
        return process.returncode
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.aclose()


async def _listen(process: trio.Process, ready: Callable[[dict[str, Any]], None]) -> None:
    """Hand over the first line; read on, so that the child never waits for room in the pipe."""
    text: bytes | None = b""
    assert process.stdout is not None
    while piece := await process.stdout.receive_some(4096):
        if text is None:
            continue
        text += piece
        if b"\n" in text or len(text) > READY_BYTES_MAX:
            facts = _facts(text.partition(b"\n")[0])
            text = None
            if facts is not None:
                ready(facts)


def _facts(line: bytes) -> dict[str, Any] | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def last_words(output: Path) -> str:
    """The last line that a child left in ``output``, without its ``Error: ``; empty where it said nothing."""
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("Error: ") if lines else ""
