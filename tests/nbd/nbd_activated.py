"""A program that serves a memory disk on the sockets that its starter opened (socket activation),
until it is told to end (SIGTERM)."""

from __future__ import annotations

import signal
import sys

import trio

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd import Export, Server, inherited_listeners


async def main() -> None:
    device = MemoryDevice(16 << 20, 512)
    server = Server({"": Export(device, "activated", fast_zero=True)})
    listeners = inherited_listeners()
    if not listeners:
        sys.exit("no sockets were passed: start this under socket activation")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listeners)
            async for _ in signals:
                server.shut_down()
                break


if __name__ == "__main__":
    trio.run(main)
