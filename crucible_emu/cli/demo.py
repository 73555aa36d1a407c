"""``crucible-emu demo``: the whole data plane at work in under a minute, with proof."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from crucible_emu.cli import serving
from crucible_emu.cli.demonstration import source as sources
from crucible_emu.cli.demonstration.story import REPLACED, VICTIM, Verdict, tell_story
from crucible_emu.cli.sizes import format_size
from crucible_emu.errors import UsageError

app = typer.Typer()


@app.command()
def demo(
    image: Annotated[Path | None, typer.Option(help="Use this raw image instead of making one.")] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep regions, VCR and image in this folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object; the story goes to stderr.")
    ] = False,
) -> None:
    """Copy a real image through a mirrored disk, kill a replica half-way, and prove that nothing was lost.

    Makes an ext4 image from files of this machine (or takes yours), starts three Downstairs processes, writes the image
    with a real NBD client and kills one Downstairs with SIGKILL in the middle. It returns and gets what it missed;
    another one is replaced by an empty region. Everything is read back and compared with BLAKE3. Then a disk is layered
    on top of the image, changed, and made independent of it. Exit code 0 only when the digests prove it.
    """
    started = time.monotonic()
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def show(marked_up: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {marked_up}")

    def tell(line: str) -> None:
        show(escape(line))  # paths may hold anything, brackets as well

    verdicts: list[Verdict] = []
    with _folder(keep) as folder:
        source = sources.describe(image, f"your image {image}") if image is not None else sources.make(folder)
        tell(f"The image: {source.about}, {format_size(source.length)}")
        tell(f"           BLAKE3 {source.blake3}")

        async def main() -> None:
            verdicts.append(await tell_story(source, folder, tell))

        # The kill is part of the story; its warnings would only interrupt it.
        serving.run(main, log_level="error")
    verdict = verdicts[0]
    tell(f"Read back: BLAKE3 {verdict.read_back_blake3}")
    for client, found in enumerate(verdict.region_digests):
        fate = {VICTIM: "was killed and healed", REPLACED: "is new"}.get(client, "was there all the time")
        tell(f"Replica {client}: {found[:32]}…  {fate}")
    tell(f"On top:    BLAKE3 {verdict.layered_blake3}, the image with one block changed")
    show(_conclusion(verdict))
    if keep is not None:
        tell(f"Regions, VCR and copies are in {keep}")
    if as_json:
        outcome = {
            "ok": verdict.ok,
            "source_blake3": verdict.source_blake3,
            "read_back_blake3": verdict.read_back_blake3,
            "region_digests": list(verdict.region_digests),
            "expected_blake3": verdict.expected_blake3,
            "layered_blake3": verdict.layered_blake3,
            "seconds": round(time.monotonic() - started, 3),
        }
        print(json.dumps(outcome), flush=True)
    if not verdict.ok:
        sys.exit(1)


def _conclusion(verdict: Verdict) -> str:
    if verdict.ok:
        return "[bold green]Proved:[/] every byte came back, and all three replicas hold the same"
    if verdict.source_blake3 != verdict.read_back_blake3:
        return "[bold red]Not proved:[/] what was read back is not the image"
    if not verdict.replicas_equal:
        return "[bold red]Not proved:[/] the three replicas differ"
    return "[bold red]Not proved:[/] the disk on top is not the image with its change"


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The folder to work in: yours, new or empty, and kept; else a temporary one."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="crucible-demo-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"the folder {keep} is not empty: give a new one to --keep")
    except OSError as error:
        raise UsageError(f"cannot use the folder {keep}: {(error.strerror or str(error)).lower()}") from None
    yield keep
