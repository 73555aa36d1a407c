"""Disks for asyncio and notebooks.

    from crucible_emu.client import aio

    async with await aio.open("nbd+unix:///?socket=/run/disk.sock") as disk:
        await disk.copy_in("debian.img", progress=print)
        await disk.write(0, bytes(4096))
        await disk.flush()
        copied = await disk.copy_out("back.img")       # copied.blake3 is what b3sum says

``opening``   which kind of disk an address means
``device``    ranges of bytes: what every disk can do
``disk``      the same, and whole files
``nbd``       an NBD export
``pantry``    a volume that a pantry has attached
``copying``   whole files in and out
``link``      sockets
"""

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.aio.opening import open_disk as open
from crucible_emu.client.copying import Copied, Pace, Progress
from crucible_emu.client.failures import ConnectionLost, ExportRefused, RequestFailed

__all__ = ["ConnectionLost", "Copied", "Disk", "ExportRefused", "Pace", "Progress", "RequestFailed", "open"]
