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

import array
import json
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import trio

from crucible_emu.errors import RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts
from crucible_emu.logs import get_logger
from crucible_emu.region.shared_reading import SharedReader
from crucible_emu.region.sharing import SharedLayout
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import READS_PATH_SUFFIX

ANSWER_BYTES_MAX = 4096
"""A grant has some 400 bytes."""
ANSWER_S_MAX = 5.0
ASK_AGAIN_S = 1.0
DESCRIPTORS_MAX = 8
"""So many are taken, of which two are right; the kernel closes what comes on top."""

Found = TypeVar("Found")

log = get_logger(__name__)


class ReadsAtHand:
    """The short way beside one connection to a Downstairs at the unix socket ``path``. :meth:`run` must run."""

    def __init__(self, path: str, upstairs_id: UUID, session_id: UUID) -> None:
        self._path = path + READS_PATH_SUFFIX
        self._ids = (upstairs_id, session_id)
        self._definition: RegionDefinition | None = None
        self._reader: SharedReader | None = None
        self._connection = select.poll()
        self._ended: trio.CancelScope | None = None
        self._wanted = trio.Event()
        self._said = ""

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

    def want(self) -> None:
        """A read goes the ordinary way: the short one is worth asking for."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask, once there is a reason to, and again when a grant has ended; until cancelled, or nobody answers."""
        while True:
            await self._wanted.wait()
            try:
                if not await self._ask_once():
                    return
            except RemoteError as error:
                log.warning("no reads past the Downstairs: it broke the protocol", path=self._path, error=str(error))
                return
            except (OSError, trio.TooSlowError) as error:
                self._say(str(error) or "it does not answer")
            await trio.sleep(ASK_AGAIN_S)
            self._wanted = trio.Event()

    def _say(self, reason: str) -> None:
        """Why there is no grant, but not the same again and again."""
        if reason != self._said:
            self._said = reason
            log.info("no reads past the Downstairs", path=self._path, reason=reason)

    async def _ask_once(self) -> bool:
        """Ask, and stay until the grant ends. Whether it is worth asking again. Raises :class:`RemoteError`, OSError,
        :class:`trio.TooSlowError`."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            with trio.fail_after(ANSWER_S_MAX):
                try:
                    await peer.connect(self._path)
                except (FileNotFoundError, ConnectionRefusedError):
                    return False  # another program, or one that does not share
                await peer.send(_question(*self._ids))
                answer, descriptors = await _answer_from(peer)
            reader = self._let_in(answer, descriptors)
            if reader is None:
                return True
            self._said = ""
            self._connection = select.poll()
            self._connection.register(peer.fileno(), select.POLLIN)
            self._reader = reader
            try:
                with trio.CancelScope() as self._ended:
                    await peer.recv(1)
            finally:
                self._ended = None
                self._let_go()
        return True

    def _let_in(self, answer: bytes, descriptors: list[int]) -> SharedReader | None:
        """What the answer lets us read; ``None`` where it is a refusal. Takes over the descriptors. Raises
        :class:`RemoteError`."""
        try:
            epoch, layout = _grant_in(answer, self._definition)
            if len(descriptors) != 2:
                raise RemoteError(f"a grant with {len(descriptors)} descriptors instead of 2")
        except _Refused as refused:
            self._say(str(refused))
            _close(descriptors)
            return None
        except RemoteError:
            _close(descriptors)
            raise
        return SharedReader(layout, epoch, *descriptors)


class _Refused(Exception):
    """The Downstairs says why not."""


def _question(upstairs_id: UUID, session_id: UUID) -> bytes:
    return json.dumps({"upstairs_id": str(upstairs_id), "session_id": str(session_id)}).encode() + b"\n"


def _grant_in(answer: bytes, definition: RegionDefinition | None) -> tuple[int, SharedLayout]:
    """Epoch and layout of a grant for the region of ``definition``. Raises :class:`RemoteError`, :class:`_Refused`."""
    try:
        members = json.loads(answer)
    except (ValueError, RecursionError):
        raise RemoteError("an answer that is not JSON") from None
    if isinstance(members, dict) and isinstance(members.get("refused"), str):
        raise _Refused(members["refused"])
    granted = members.get("granted") if isinstance(members, dict) else None
    if not isinstance(granted, dict):
        raise RemoteError("an answer that neither grants nor refuses")
    layout, epoch = SharedLayout.from_json(granted.get("layout")), granted.get("epoch")
    if type(epoch) is not int:
        raise RemoteError("a grant without an epoch")
    if definition is None or granted.get("region") != str(definition.uuid) or not layout.fits(definition):
        raise RemoteError("a grant for another region")
    return epoch, layout


async def _answer_from(peer: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    """One line, and the descriptors that came with it, which are the caller's to close. Raises OSError."""
    line = b""
    descriptors: list[int] = []
    try:
        while b"\n" not in line and len(line) < ANSWER_BYTES_MAX:
            room = socket.CMSG_LEN(DESCRIPTORS_MAX * array.array("i").itemsize)
            more, ancillary, _flags, _address = await peer.recvmsg(
                ANSWER_BYTES_MAX - len(line), room, socket.MSG_CMSG_CLOEXEC
            )
            descriptors += _descriptors_in(ancillary)
            if not more:
                raise ConnectionResetError("it left without a word")  # turned away, or the grant has ended already
            line += more
    except BaseException:
        _close(descriptors)
        raise
    return line, descriptors


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found += numbers
    return found


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
