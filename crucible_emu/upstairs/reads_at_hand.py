"""Reads of a replica in another process on this machine, past that process.

What it is for: to ask another process for a block wakes two processes and costs 30 µs of processor time; to look for it
in that process's tables, staged rows and files costs 2. So the link to a Downstairs at a unix socket asks at the socket
beside it, where there is one, to be let in (:mod:`~crucible_emu.downstairs.read_grants`), as soon as it is read from;
until it is, and wherever a block is not at hand, reads go as messages, as they always did.

What it guarantees: a block that is read this way is what an answer to a message would have been, or it is not used.

* *No write of ours is missed.* The caller asks only where the replica has acknowledged every write, and every job of a
  repair, that touches the blocks (:meth:`~crucible_emu.upstairs.core.UpstairsCore.settled`). A Downstairs enters a
  write into its tables before it acknowledges it, and an acknowledgement goes through the kernel; so what its tables
  say then is of that write or a newer one, and of newer ones there are none.
* *No write of another Upstairs is missed.* Before another session becomes the writer, the Downstairs changes the epoch
  in its memory, which is looked at before and behind every read.
* *Nothing is read of a Downstairs that is gone.* The connection to it is asked behind every read whether it is still
  open: one that was killed, or started again, could not change the epoch any more.
* *No file is read that is not the replica's any more.* A live repair, or a reconciliation, closes an extent before it
  puts another file in its place, and the epoch changes before that.
* *Nothing torn is used.* The caller verifies each block by its hash or tag. One that is not right is asked for by a
  message, which finds out whether it was changing or is damaged.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import trio

from crucible_emu.descriptors import close_all
from crucible_emu.errors import RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts
from crucible_emu.region.shared_reading import SharedReader
from crucible_emu.region.sharing import SharedLayout
from crucible_emu.upstairs.asking import Asker
from crucible_emu.wire import messages as m

Found = TypeVar("Found")


class ReadsAtHand(Asker):
    """The short way beside one connection to a Downstairs at a unix socket. It is wanted when a read goes the ordinary
    way."""

    WHAT = "reads past the Downstairs"

    def __init__(self, path: str, upstairs_id: UUID, session_id: UUID) -> None:
        super().__init__(path, upstairs_id, session_id)
        self._definition: RegionDefinition | None = None
        self._reader: SharedReader | None = None
        self._connection = select.poll()
        self._ended: trio.CancelScope | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether a read is worth trying."""
        return self._reader is not None

    def read_singles(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[int] | None:
        """See :class:`~crucible_emu.upstairs.links.SingleReadsLink`."""
        return self._look(SharedReader.read_singles, blocks, outs)

    def read_sealed(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[bytes | None] | None:
        """See :class:`~crucible_emu.upstairs.links.SingleReadsLink`."""
        return self._look(SharedReader.read_sealed, blocks, outs)

    def read_range(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Consecutive blocks that are all at hand, and what each must be; see :meth:`SharedReader.read_range`."""
        return self._look(SharedReader.read_range, start, count, out)

    def _look(self, read: Callable[..., Found | None], *arguments: Any) -> Found | None:
        """What ``read``, a method of the reader, finds, as far as there is one and it counts."""
        reader = self._reader
        if reader is None:
            return None
        found = read(reader, *arguments)
        return found if self._holds(reader, found) else None

    def _holds(self, reader: SharedReader, found: object) -> bool:
        """*Safety*: what was read until now counts only if nothing has ended before."""
        if reader.holds and (found is None or not self._connection.poll(0)):
            return found is not None
        self._let_go()
        if self._ended is not None:
            self._ended.cancel()
        return False

    def _let_go(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # -- being let in -------------------------------------------------------------------------------------------------

    def heard(self, messages: Sequence[m.Message]) -> None:
        """Messages of the negotiation, one of which says what the region is."""
        for message in messages:
            if isinstance(message, m.RegionInfo):
                self._definition = message.region_def

    @property
    def knows_region(self) -> bool:
        return self._definition is not None

    async def _granted(self, peer: trio.socket.SocketType, members: dict[str, Any], descriptors: list[int]) -> None:
        reader = self._let_in(members, descriptors)
        self._connection = select.poll()
        self._connection.register(peer.fileno(), select.POLLIN)
        self._reader = reader
        try:
            with trio.CancelScope() as self._ended:
                await peer.recv(1)
        finally:
            self._ended = None
            self._let_go()

    def _let_in(self, granted: dict[str, Any], descriptors: list[int]) -> SharedReader:
        """What the grant lets us read. Takes over the descriptors. Raises :class:`RemoteError`."""
        try:
            epoch, layout = _grant_in(granted, self._definition)
            if len(descriptors) != 2:
                raise RemoteError(f"a grant with {len(descriptors)} descriptors instead of 2")
        except RemoteError:
            close_all(descriptors)
            raise
        return SharedReader(layout, epoch, *descriptors)


def _grant_in(granted: dict[str, Any], definition: RegionDefinition | None) -> tuple[int, SharedLayout]:
    """Epoch and layout of a grant for the region of ``definition``. Raises :class:`RemoteError`."""
    layout, epoch = SharedLayout.from_json(granted.get("layout")), granted.get("epoch")
    if type(epoch) is not int:
        raise RemoteError("a grant without an epoch")
    if definition is None or granted.get("region") != str(definition.uuid) or not layout.fits(definition):
        raise RemoteError("a grant for another region")
    return epoch, layout
