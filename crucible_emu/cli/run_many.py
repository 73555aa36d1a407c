"""``crucible-emu downstairs run-many``: all the Downstairs of a disk from one command, with a control API.

What it guarantees: the first line of standard output appears when every Downstairs can be reached, and carries (or
names the file with) the volume construction request of the disk. SIGINT and SIGTERM end all of them in order with exit
code 0; a second one ends them at once. A Downstairs that fails before that first line is one sentence, its own; the
others are ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import trio
import typer

from crucible_emu.cli import serving
from crucible_emu.cli.sizes import format_size, parse_extent_size, parse_size
from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.supervisor import Fleet, Member, ProcessState, layout
from crucible_emu.supervisor.driver import Launch, Supervisor
from crucible_emu.supervisor.fleet import Changed
from crucible_emu.supervisor.process import last_words

if TYPE_CHECKING:
    from crucible_emu.cli.supervised_disk import Disk

DEFAULT_CONTROL = "127.0.0.1:9998"
COMMAND = (sys.executable, "-m", "crucible_emu", "downstairs", "run")
FAILED = (ProcessState.FAILED, ProcessState.ERROR, ProcessState.EXIT)


class DidNotStart(UsageError):
    """One of the Downstairs ended before it could be reached; the message repeats what it said."""


def run_many(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Where regions lie, as DIR/PORT: one, three, or one DIR per region."),
    ],
    create: Annotated[bool, typer.Option("--create", help="Make the regions first.")] = False,
    cleanup: Annotated[bool, typer.Option("--cleanup", help="With --create: delete regions that are there.")] = False,
    count: Annotated[int | None, typer.Option(help="Number of regions; three make a set. [3, or one per DIR]")] = None,
    block_size: Annotated[str, typer.Option(help="With --create: bytes per block.")] = str(layout.BLOCK_SIZE),
    extent_size: Annotated[str, typer.Option(help="With --create: blocks per extent, or bytes with a unit.")] = str(
        layout.BLOCKS_PER_EXTENT
    ),
    extent_count: Annotated[int, typer.Option(min=1, help="With --create: extents.")] = layout.EXTENT_COUNT,
    encrypt: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="The disk is encrypted with this key; made if absent.")
    ] = None,
    address: Annotated[str, typer.Option("--address", "-a", help="IP address of the Downstairs.")] = "127.0.0.1",
    port_base: Annotated[int, typer.Option(help="Data port of the first; the repair port is 4000 above.")] = (
        layout.PORT_BASE
    ),
    port_step: Annotated[int, typer.Option(help="From one data port to the next.")] = layout.PORT_STEP,
    control: Annotated[str, typer.Option(help="Address of the control API; port 0: any.")] = DEFAULT_CONTROL,
    request_file: Annotated[
        Path | None, typer.Option("--vcr", metavar="FILE", help="Write the volume construction request here.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where each Downstairs' messages go. \\[beside the regions]")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start again what ended by a signal.")] = False,
    random_stop: Annotated[
        str | None, typer.Option(metavar="MIN-MAX", help="Kill one at random every so many seconds, such as 9-10.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random stops, and of the Downstairs.")] = 0,
    read_only: Annotated[bool, typer.Option("--read-only", help="Serve the regions read-only.")] = False,
    lossy: Annotated[bool, typer.Option("--lossy", help="All Downstairs delay and reorder jobs at random.")] = False,
    policy: Annotated[str | None, typer.Option(help="Sync policy of all, as for downstairs run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line: ready, then changes.")] = False,
) -> None:
    """Run the Downstairs of one disk (or of several region sets), and stop, start and halt them over HTTP.

    Each is a process of its own. The control API has the paths of the real dsc: GET /state/cid/0, POST /stop/cid/0
    (SIGKILL), /start/cid/0, /enablerestart/all, /randomstop/enable, /shutdown and so on. Beyond it: POST
    /signal/cid/0/stop and /cont halt one and let it go on, /signal/cid/0/term ends it in order, GET /members lists
    all, and GET /vcr answers with the disk's volume construction request, without its key.

    [bold]Examples[/bold]

      crucible-emu downstairs run-many /tmp/ds --create --vcr /tmp/disk.json

      crucible-emu attach /tmp/disk.json --nbd 'nbd+unix:///?socket=/tmp/disk.sock'

      curl -X POST http://127.0.0.1:9998/stop/cid/1

      crucible-emu downstairs run-many r0 r1 r2 --restart --random-stop 5-8
    """
    from crucible_emu.cli.supervised_disk import Disk, check_address

    window = None if random_stop is None else _window(random_stop)
    check_address(control)
    if cleanup and not create:
        raise UsageError("--cleanup deletes regions that --create makes anew: say both")
    if count is None:
        count = max(len(directories), layout.REGION_COUNT)
    places = layout.places(directories, count, port_base, port_step)
    if create:
        block_bytes = parse_size(block_size)
        layout.make_regions(
            places,
            block_size=block_bytes,
            blocks_per_extent=parse_extent_size(extent_size, block_bytes),
            extent_count=extent_count,
            encrypted=encrypt is not None,
            cleanup=cleanup,
        )
    definitions = layout.definitions(places)
    first = directories[0]
    disk = Disk(definitions, places, address, read_only, _key(encrypt, definitions[0], create))
    options = _options(read_only, lossy, policy, seed)
    launch = Launch(COMMAND, address, output_dir or (first.parent if layout.is_region(first) else first), options)
    members = [
        Member(place.cid, place.port, definition.uuid, auto_restart=restart)
        for place, definition in zip(places, definitions)
    ]
    fleet = Fleet(members, Random(seed))
    if window is not None:
        fleet.random_stop.enabled, fleet.random_stop.min_s, fleet.random_stop.max_s = True, *window
    reporter = Reporter(fleet, as_json)
    supervisor = Supervisor(fleet, places, launch, reporter)

    async def main() -> None:
        await _supervise(supervisor, disk, control, request_file, reporter)

    serving.run(main)


class Reporter:
    """Says what becomes of the members, one line each, once the ready line is out."""

    def __init__(self, fleet: Fleet, as_json: bool) -> None:
        self.fleet = fleet
        self.as_json = as_json
        self.announced = False

    def __call__(self, change: Changed) -> None:
        if not self.announced:
            return
        port = self.fleet.members[change.cid].port
        if self.as_json:
            line = {"event": "state", "cid": change.cid, "state": change.state.value, "port": port, "pid": change.pid}
            self._say(json.dumps({**line, "returncode": change.returncode}))
            return
        process = f", process {change.pid}" if change.pid is not None else ""
        self._say(f"Downstairs {change.cid} (port {port}): {change.state.value}{process}")

    def _say(self, line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # Whoever read this has left (`| head -1`). That is no reason to end the Downstairs.
            self.announced = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def ready(self, url: str, supervisor: Supervisor, disk: Disk, request_file: Path | None) -> None:
        """The ready line, with the document or the name of its file."""
        from crucible_emu.cli.supervised_disk import write_request
        from crucible_emu.volume import vcr

        self.announced = True
        request = disk.request()
        document = None if request is None else request.model_dump(mode="json")
        if request is not None and request_file is not None:
            write_request(request_file, request)
        if self.as_json:
            print(json.dumps(self._facts(url, supervisor, document, request_file)), flush=True)
            return
        size = disk.definitions[0].size_bytes * max(1, disk.sets)
        ports = ", ".join(str(place.port) for place in supervisor.places)
        print(f"Ready: {len(supervisor.places)} Downstairs at {disk.address}, ports {ports}; control at {url}")
        if request is None:
            print(f"No disk: {layout.REPLICAS} regions make one.")
        elif request_file is not None:
            print(f"Attach to the disk of {format_size(size)}: crucible-emu attach {request_file}")
        else:
            print(vcr.dumps(request), end="")
        sys.stdout.flush()

    def _facts(self, url: str, supervisor: Supervisor, document: Any, request_file: Path | None) -> dict[str, Any]:
        return {
            "ready": True,
            "control": url,
            "pid": os.getpid(),
            "downstairs": [
                {"cid": member.cid, "port": member.port, "pid": member.pid, "region": str(place.region)}
                for member, place in zip(self.fleet.members, supervisor.places)
            ],
            "vcr_file": None if request_file is None else str(request_file),
            "vcr": document,
        }


async def _supervise(
    supervisor: Supervisor, disk: Disk, address: str, request_file: Path | None, reporter: Reporter
) -> None:
    # Here, not above: half a second that --help need not wait for.
    from crucible_emu.cli.supervised_disk import without_key
    from crucible_emu.supervisor.control import Control, serving

    fleet = supervisor.fleet

    def document() -> Any:
        request = disk.request()
        return None if request is None else without_key(request).model_dump(mode="json")

    control = Control(supervisor, disk.definitions[0], read_only=disk.read_only, volume_request=document)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with serving(control, address) as url, trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, supervisor, nursery.cancel_scope)

            async def run() -> None:
                await supervisor.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await supervisor.until(lambda: fleet.all_running or fleet.leaving or _failed(fleet) is not None)
            failed = _failed(fleet)
            if failed is not None and not fleet.leaving:
                place = supervisor.places[failed.cid]
                output = supervisor.launch.output(place)
                supervisor.shut_down()
                said = last_words(output) or f"it said nothing in {output}"
                await supervisor.until(lambda: fleet.all_stopped)
                raise DidNotStart(f"Downstairs {failed.cid} (port {place.port}) did not become ready: {said}")
            if not fleet.leaving:
                reporter.ready(url, supervisor, disk, request_file)


async def _obey_signals(signals: Any, supervisor: Supervisor, scope: trio.CancelScope) -> None:
    """The first signal ends all in order, the second at once."""
    await anext(signals)
    supervisor.shut_down()
    await anext(signals)
    scope.cancel()


def _failed(fleet: Fleet) -> Member | None:
    return next((member for member in fleet.members if member.state in FAILED), None)


def _options(read_only: bool, lossy: bool, policy: str | None, seed: int) -> tuple[str, ...]:
    options = ["--seed", str(seed)]
    if read_only:
        options += ["--mode", "ro"]
    if lossy:
        options += ["--lossy"]
    if policy is not None:
        options += ["--policy", policy]
    return tuple(options)


def _window(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and int(low) < int(high) <= 24 * 3600):
        raise UsageError(f"{text!r} is no window of random stops: write MIN-MAX in seconds, such as 9-10")
    return int(low), int(high)


def _key(path: Path | None, definition: RegionDefinition, create: bool) -> str | None:
    """The key as a volume construction request carries it. Raises :class:`UsageError`."""
    from crucible_emu.cli.serve import make_key, read_key

    if path is None:
        if definition.encrypted:
            raise UsageError("the regions are encrypted: give their key with --encrypt KEYFILE")
        return None
    if not definition.encrypted:
        raise UsageError("the regions are not encrypted: leave --encrypt out")
    if create and not path.exists():
        make_key(path)
    read_key(path)
    return path.read_text(encoding="ascii").strip()
