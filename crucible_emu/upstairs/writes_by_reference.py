"""Large writes to a Downstairs in another process on this machine, without sending their data.

What it is for: 1 MiB through a socket is copied into the kernel and out again, three times for a disk, with pages that
the kernel finds and gives back each time: half of what such a write costs. So an Upstairs keeps the data of large
writes in a file of memory (:mod:`row_memory`), asks the Downstairs at the socket beside it to map that file, and from
then on sends a frame that says where in it the data are. The Downstairs verifies each block, as ever, and copies it to
where it stages it.

What it guarantees: what the Downstairs finds is what was written.

* *Nothing is used again too early.* Data that a Downstairs was told of stay as they are until it has answered that
  write. Where the connection ends before, they stay until it has closed the connection on which it took up the memory,
  which it does when it cannot look any more (:mod:`~crucible_emu.downstairs.peer_memory`), or is gone.
* *Nothing arrives before its time.* The frame stands in the stream of messages where the whole write would.
* *Nobody has to.* Until the Downstairs has agreed, and wherever data lie elsewhere, writes go as they always did.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import trio

from crucible_emu.descriptors import close_all, send_line
from crucible_emu.errors import RemoteError
from crucible_emu.integrity import Rows
from crucible_emu.upstairs.asking import Asker
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.row_memory import SHARED_BYTES, RowMemory
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.statistics import UpstairsStatistics
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import AckRun


class WritesByReference(Asker):
    """Which writes to one connection go by reference. It is wanted when one could."""

    WHAT = "writes by reference"

    def __init__(self, path: str, upstairs_id: UUID, session_id: UUID) -> None:
        super().__init__(path, upstairs_id, session_id)
        self._memory: RowMemory | None = None
        self._statistics = UpstairsStatistics()
        self._open = False
        self._unanswered: dict[int, Rows] = {}

    def may_refer_to(self, memory: RowMemory, statistics: UpstairsStatistics) -> None:
        """The data of large writes are in ``memory``."""
        memory.share()
        self._memory, self._statistics = memory, statistics

    def reference(self, job: Job) -> int | None:
        """Where in the memory the data of ``job`` are, if it can go by reference; then it does."""
        if self._memory is None or job.kind is not JobKind.WRITE or job.rows is None:
            return None
        offset = self._memory.offset_of(job.rows)
        if offset is None:
            return None
        if not self._open:
            self.want()
            return None
        self._statistics.writes_by_reference += job.count
        self._unanswered.update(dict.fromkeys(range(job.first_id, job.first_id + job.count), job.rows))
        return offset

    def answered(self, messages: Sequence[m.Message]) -> None:
        """What the Downstairs has answered, it does not look into any more."""
        unanswered = self._unanswered
        if not unanswered:
            return
        for message in messages:
            if isinstance(message, AckRun):
                for job_id in message.job_ids:
                    unanswered.pop(job_id, None)
            elif isinstance(message, m.JobReply):
                unanswered.pop(message.job_id, None)

    async def _ask(self, peer: trio.socket.SocketType) -> None:
        file = None if self._memory is None else self._memory.shared_file
        if file is None:
            raise OSError("the disk leaves service")
        descriptor = file.open_to_read()
        try:
            await send_line(peer, {**self._question, "memory_bytes": SHARED_BYTES}, [descriptor])
        finally:
            os.close(descriptor)

    async def _granted(self, peer: trio.socket.SocketType, members: dict[str, Any], descriptors: list[int]) -> None:
        close_all(descriptors)  # none belongs to this
        self._open = True
        try:
            if await peer.recv(1):
                raise RemoteError("something was said where only an end can come")
        except BaseException:
            self._hold(peer)
            raise
        finally:
            self._open = False
        self._unanswered.clear()

    def _hold(self, peer: trio.socket.SocketType) -> None:
        """The connection has ended, and the Downstairs may not have heard of that yet."""
        rows, self._unanswered = list(self._unanswered.values()), {}
        if rows and self._memory is not None:
            self._memory.hold(_Peer(peer.detach()), rows)


class _Peer(socket.socket):
    """The connection on which a Downstairs was shown memory, when nobody waits for its end any more."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(fileno=descriptor)

    def has_left(self) -> bool:
        """Whether the Downstairs has closed it. It never says anything there."""
        try:
            return not self.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
