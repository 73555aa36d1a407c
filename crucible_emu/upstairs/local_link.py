"""A Downstairs in this process: Trio tasks beside the Upstairs, no sockets, no encoding.

What it is for: the fastest way to a mirrored disk on one machine. Trains of writes and cached reads are plain calls;
everything else uses the same messages, sessions and job order as over a socket, so one Downstairs serves both.

Why it is safe: jobs run in the order in which they are sent, so no dependency can be violated. When a train cannot run
at once (its session is not ready, jobs wait, the staging area is full) the same jobs go the ordinary way, as messages,
and are acknowledged later; their data are copied first, because the guest's memory is only lent for the call.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import trio

from crucible_emu.downstairs.local import LocalConnection, LocalDownstairs
from crucible_emu.integrity import BlockContexts, Proofs
from crucible_emu.statistics import Snapshot
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.links import Port
from crucible_emu.upstairs.rules import WRITES, JobKind
from crucible_emu.upstairs.tcp_link import job_message
from crucible_emu.wire import messages as m


class LocalConnector:
    """Connects to ``downstairs`` in this process."""

    in_process = True

    def __init__(self, downstairs: LocalDownstairs, upstairs_id: UUID, session_id: UUID) -> None:
        self.downstairs = downstairs
        self.target = str(downstairs.region.path)
        self._ids = (upstairs_id, session_id)

    def snapshots(self) -> tuple[Snapshot, Snapshot]:
        """What the Downstairs and its region have done; over a network their own process has to be asked."""
        return self.downstairs.statistics().snapshot(), self.downstairs.region.statistics().snapshot()

    async def run(self, port: Port) -> str:
        ended = trio.Event()
        why = "closed by the Downstairs"

        def closed(reason: str) -> None:
            nonlocal why
            why = reason
            ended.set()

        connection = self.downstairs.connect(port.received, closed)
        try:
            port.opened(LocalLink(connection, *self._ids))
            await ended.wait()
        finally:
            connection.close()
        return why


class LocalLink:
    """An open connection inside this process; see the module's essay."""

    reads_at_hand = True

    def __init__(self, connection: LocalConnection, upstairs_id: UUID, session_id: UUID) -> None:
        self._connection = connection
        self._ids = (upstairs_id, session_id)

    def send(self, message: m.Message) -> None:
        self._connection.send([message])

    def send_job(self, job: Job, dependencies: list[list[int]]) -> bool:
        if job.kind not in WRITES:
            self._connection.send([job_message(job, [[]], *self._ids)])
            return False
        assert job.blocks is not None and job.rows is not None and job.contexts is not None
        if job.kind is JobKind.WRITE and self._connection.write(
            job.first_id, job.starts, job.lengths, job.blocks, job.rows, job.contexts
        ):
            return True
        self._connection.send(self._write_messages(job))
        return False

    def admits_singles(self, blocks: list[int]) -> bool:
        return self._connection.admits_singles(blocks)

    def write_singles(self, first_job_id: int, blocks: list[int], data: list[memoryview], proofs: Proofs) -> bool:
        return self._connection.write_singles(first_job_id, blocks, data, proofs)

    def read_singles(self, blocks: list[int], outs: list[memoryview]) -> list[int] | None:
        return self._connection.read_singles(blocks, outs)

    def read_sealed(self, blocks: list[int], outs: list[memoryview]) -> list[bytes | None] | None:
        return self._connection.read_sealed(blocks, outs)

    def _write_messages(self, job: Job) -> list[m.Message]:
        """The train as ordinary messages, with data of their own."""
        assert job.rows is not None and job.contexts is not None
        rows = job.rows.copy()
        messages: list[m.Message] = []
        message = m.WriteUnwritten if job.kind is JobKind.WRITE_UNWRITTEN else m.Write
        at = 0
        for index, (start, count) in enumerate(zip(job.starts, job.lengths)):
            data = rows[at : at + count].data.cast("B")
            contexts = job.contexts[at : at + count]
            messages.append(message(*self._ids, job.first_id + index, (), start, contexts, data))
            at += count
        return messages

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        return self._connection.read_cached(start, count, out)

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> tuple[BlockContexts, list[int]] | None:
        return self._connection.read_blocks_cached(blocks, outs)

    def written(self, start: int, count: int) -> Any:
        return self._connection.written(start, count)
