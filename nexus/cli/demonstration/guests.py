"""Guests of the demonstration: NBD clients that write all the while, and know what every byte has to be.

What it guarantees: of every write it is known what it was, before it is sent; one at a time, so there is no doubt
about which came last. In between a guest reads what it wrote, wherever that may be by then. An error is written down
and ends the guest's work: a disk in front of a rack that is mended has to show none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import trio
from blake3 import blake3

from crucible_emu.client.nbd import NbdDisk, opened
from nexus.cli.demonstration.verdict import Guest

WRITE_BYTES_MAX = 64 * 1024
BLOCK_BYTES = 4096
PAUSE_S = 0.01
"""Between two requests: the demonstration shares its processors with the rack."""
READ_EVERY, FLUSH_EVERY = 4, 16
PIECE_BYTES = 1024 * 1024


@dataclass
class Writer:
    """A guest on the disk at ``uri``, which holds ``model`` when it begins."""

    name: str
    uri: str
    model: bytearray
    random: Random
    writes: int = 0
    bytes_written: int = 0
    reads: int = 0
    flushes: int = 0
    differences: int = 0
    failures: list[str] = field(default_factory=list)
    counts_meanwhile: bool = False
    wrote_meanwhile: int = 0
    stopping: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)
    read_back: str | None = None

    async def run(self) -> None:
        """Write until told to stop; then flush, and read everything back."""
        try:
            async with opened(self.uri) as disk:
                while not self.stopping.is_set():
                    await self._once(disk)
                    await trio.sleep(PAUSE_S)
                await self._flush(disk)
                self.read_back = await self._read_all(disk)
        except (OSError, trio.TooSlowError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.stopped.set()

    async def _once(self, disk: NbdDisk) -> None:
        blocks = self.random.randint(1, WRITE_BYTES_MAX // BLOCK_BYTES)
        length = blocks * BLOCK_BYTES
        offset = self.random.randrange((len(self.model) - length) // BLOCK_BYTES + 1) * BLOCK_BYTES
        data = self.random.randbytes(length)
        self.model[offset : offset + length] = data
        await disk.write(offset, data)
        self.writes += 1
        self.bytes_written += length
        self.wrote_meanwhile += self.counts_meanwhile
        if self.writes % FLUSH_EVERY == 0:
            await self._flush(disk)
        if self.writes % READ_EVERY == 0:
            await self._read_some(disk)

    async def _flush(self, disk: NbdDisk) -> None:
        await disk.flush()
        self.flushes += 1

    async def _read_some(self, disk: NbdDisk) -> None:
        offset = self.random.randrange((len(self.model) - WRITE_BYTES_MAX) // BLOCK_BYTES + 1) * BLOCK_BYTES
        found = await disk.read(offset, WRITE_BYTES_MAX)
        self.reads += 1
        self.differences += found != self.model[offset : offset + WRITE_BYTES_MAX]

    async def _read_all(self, disk: NbdDisk) -> str:
        hasher = blake3()
        for offset in range(0, len(self.model), PIECE_BYTES):
            hasher.update(await disk.read(offset, min(PIECE_BYTES, len(self.model) - offset)))
        return hasher.hexdigest()

    @property
    def expected(self) -> str:
        """What it has to read back."""
        return blake3(self.model).hexdigest()

    async def stop(self) -> None:
        """Returns when it has read everything back, or has failed."""
        self.stopping.set()
        await self.stopped.wait()

    def told(self) -> Guest:
        """What it did."""
        return Guest(
            name=self.name,
            writes=self.writes,
            bytes_written=self.bytes_written,
            reads=self.reads,
            flushes=self.flushes,
            wrote_meanwhile=self.wrote_meanwhile,
            failures=tuple(self.failures),
            differences=self.differences,
        )
