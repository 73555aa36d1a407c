"""How much memory a region may take for blocks that are not flushed: the option of ``serve`` and ``downstairs run``.

What it is for: the more there is, the more of what is written again and again reaches the device but once; whoever has
other uses for the machine's memory says so here. Where it is full, blocks are written out before anybody flushes.
"""

from __future__ import annotations

import typer

from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from crucible_emu.region import STAGED_BYTES_MAX

UNFLUSHED_BYTES_MIN = 1024 * 1024
OPTION = typer.Option(
    "--unflushed",
    metavar="SIZE",
    help="Memory of each replica for what is not flushed yet [1GiB, or a sixteenth of the machine's if that is less].",
)


def staged_bytes_max(text: str | None) -> int:
    """What the option says, or the default. Raises :class:`UsageError`."""
    if text is None:
        return STAGED_BYTES_MAX
    size_bytes = parse_size(text)
    if size_bytes < UNFLUSHED_BYTES_MIN:
        raise UsageError(f"--unflushed {text} is too little: give at least 1MiB")
    return size_bytes
