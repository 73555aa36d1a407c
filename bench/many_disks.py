"""``python -m bench.many_disks FOLDER COUNT SIZE_MIB SOCKET``: many disks in one process, as a host of guests has them.

What it is for: what a disk costs when there are two hundred of them beside it. Each is a disk of three regions in a
directory of its own below FOLDER, made where it is not there; all are exports ``0`` to ``COUNT - 1`` of one NBD server.
The line on standard output says that they are served, and how long all together took to open.

What it guarantees: disks open one after the other, so that the time is the sum of theirs. SIGTERM flushes all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from bench.limits import MIB
from crucible_emu import nbd
from crucible_emu.cli.serving import tuned_process
from crucible_emu.volume import local_disk


def make(folder: Path, count: int, size_bytes: int) -> list[Path]:
    """The directories of the disks; those that are missing are made."""
    directories = [folder / f"disk-{number}" for number in range(count)]
    for directory in directories:
        if not directory.exists():
            local_disk.create(directory, size_bytes)
    return directories


async def serve(directories: list[Path], socket: Path) -> None:
    """Open all, serve them until SIGTERM, close all."""
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        exports = {}
        for number, directory in enumerate(directories):
            guest = await stack.enter_async_context(local_disk.open_disk(directory))
            exports[str(number)] = nbd.Export(guest)
        opening_s = time.monotonic() - began
        server = nbd.Server(exports)
        await stack.enter_async_context(tuned_process())
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, [nbd.listen_on_unix(socket)])
                print(json.dumps({"ready": True, "pid": os.getpid(), "opening_s": opening_s}), flush=True)
                await anext(signals)
                nursery.cancel_scope.cancel()


def main(words: list[str]) -> None:
    """Run the command of the module's name."""
    folder, count, size_mib, socket = words
    directories = make(Path(folder), int(count), int(size_mib) * MIB)
    trio.run(serve, directories, Path(socket))


if __name__ == "__main__":
    main(sys.argv[1:])
