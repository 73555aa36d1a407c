"""``crucible-emu attach``: a disk from a volume construction request, behind NBD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import trio
import typer

from crucible_emu.cli import serving
from crucible_emu.control import observation
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.logs import get_logger
from crucible_emu.volume import attach as attaching
from crucible_emu.volume import vcr
from crucible_emu.volume.volume import Volume

log = get_logger(__name__)
app = typer.Typer()


@app.command()
def attach(
    request: Annotated[Path, typer.Argument(metavar="VCR.json", help="The volume construction request.")],
    nbd: Annotated[
        list[str] | None, typer.Option(metavar="URI", help=f"Where to serve; may be repeated. [{serving.DEFAULT_URI}]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Give up when not active within so many seconds.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let no client write.")] = False,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Copy the read-only parent into the disk, in the background.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) for nbds addresses.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key (PEM) of that certificate.")] = None,
    control: Annotated[str | None, serving.CONTROL] = None,
    notify: Annotated[str | None, serving.NOTIFY] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve the disk that VCR.json describes over NBD: sub-volumes, read-only parents, files and URLs, at any depth.

    The request is the real one's JSON; each generation must be above every generation stored so far. The disk becomes
    ready when all three Downstairs of each region set answer and hold the same bytes.

    [bold]Example[/bold]

      crucible-emu attach disk.json --nbd 'nbd+unix:///?socket=/tmp/disk.sock'

      crucible-emu attach clone.json --scrub
    """
    if timeout is not None and not timeout >= 0:  # the other way round, NaN would pass
        raise UsageError(f"--timeout {timeout} is no time: take seconds, 0 or more")
    wanted = vcr.load(request)
    door = serving.Door(tuple(nbd or (serving.DEFAULT_URI,)), read_only, tls_cert, tls_key, as_json)
    serving.check(door)
    observation.check(control, notify)
    door.facts["targets"] = vcr.targets(wanted)

    async def main() -> None:
        async with (
            observation.observing(control, notify) as door.observation,
            attaching.attach(wanted, timeout_s=timeout, observe=door.observation.watch) as volume,
            trio.open_nursery() as nursery,
        ):
            door.observation.volume_info = volume.volume_info
            if scrub:
                nursery.start_soon(scrub_in_background, volume)
            await serving.serve_until_told(volume, door)
            nursery.cancel_scope.cancel()

    serving.run(main, log_level="info" if scrub else "warning")


async def scrub_in_background(volume: Volume) -> None:
    """Scrub, and say how it went; the disk goes on either way."""
    try:
        await volume.scrub()
    except CrucibleError as error:
        log.warning("scrub failed: the disk still needs its parent", error=str(error), scrub_point=volume.scrub_point)
    else:
        log.info("scrub done: the disk needs no parent any more", volume=str(volume.id))
