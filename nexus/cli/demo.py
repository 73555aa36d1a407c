"""``nexus demo``: a sled dies under a working rack, half of all is deleted meanwhile, nothing else is lost: proved."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console

from crucible_emu import logs
from crucible_emu.cli.program import FAILURE_EXIT
from crucible_emu.errors import UsageError

app = typer.Typer()


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Use this raw image. [one that is made]")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="The rack lies here, and stays when it is down. [none]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object; the story goes to stderr.")
    ] = False,
) -> None:
    """Kill a sled under a working rack, delete half of what is there, and prove that nothing else was lost.

    Starts a rack of five sleds with a Nexus, on this machine. A disk gets a real ext4 image; there is a snapshot of it,
    a disk and an image made from that, and a blank disk. NBD clients write all the while. One sled is killed and
    expunged; in the middle of the replacements the source disk and the snapshot are deleted. At the end every surviving
    byte is verified with BLAKE3, everything has three good copies, and nothing is left behind when it is deleted. Exit
    code 0 only when what was measured proves it.
    """
    from nexus.cli.demonstration import stage, story, verdict
    from nexus.cli.demonstration.image import brought, make_image
    from nexus.cli.demonstration.telling import Telling

    # *Safety*: whatever is in the directory is taken down in the end, so it must not be somebody's rack.
    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty: take another directory")
    # The death is part of the story; warnings about it would only interrupt.
    logs.configure(level="error")
    telling = Telling(Console(stderr=as_json, highlight=False, soft_wrap=True))

    async def main(folder: Path) -> verdict.Measured:
        with telling:
            source = brought(image) if image is not None else await trio.to_thread.run_sync(make_image, folder)
            telling.say(f"A rack of {stage.SLEDS} sleds with a Nexus comes up")
            root = directory.absolute() if directory is not None else folder / "r"
            async with stage.rack_up(root), stage.speaking(root) as nexus:
                return await story.tell_story(story.Scene(nexus, root, source, telling))

    with _folder() as folder:
        measured = trio.run(main, folder)
    claims = verdict.claims(measured)
    telling.conclude(claims)
    if as_json:
        print(json.dumps(verdict.as_json(measured, telling.seconds)), flush=True)
    if not verdict.ok(claims):
        sys.exit(FAILURE_EXIT)


@contextmanager
def _folder() -> Iterator[Path]:
    """For the image, and for the rack where nobody says where it shall be: a short name, for the sockets in it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="nexus-demo-"))
    except OSError as error:
        raise UsageError(f"there is no room for temporary files: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
