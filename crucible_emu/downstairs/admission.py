"""What a running session may ask for, and what becomes of the rest (wire-protocol.md §7.3, §7.4, §13, §14).

Much of what a peer can send kills the real Downstairs. Here it costs one answer or, at most, one connection:

=====================================================================  =============================================
message                                                                here
=====================================================================  =============================================
frame that cannot be decoded, length 0..7 or over 100 MiB              connection closed (``wire.Decoder``)
ids other than those negotiated                                        UuidMismatch, the job is dropped
write whose data are no whole blocks, or not one context per block     connection closed
more than 65,536 dependencies                                          connection closed
jobs that fill the queue, each waiting for one that never came         connection closed
modifying message to a read-only region                                connection closed
message that is neither a job nor a reconciliation step                connection closed
read or write beyond the region                                        answer with OffsetInvalid
read of no block, or of more than fits into one frame                  answer with InvalidNumberOfBlocks
write of no block                                                      answered, nothing done
extent id that does not exist (also as limit of a flush)               answer with InvalidExtent
read or write of a closed extent, closing a closed one, reopening an   answer with the region's error
open one, repairing an open one
block that its hash does not fit                                       answer with HashMismatch, nothing written
snapshot of a read-only region                                         answer with ModifyingReadOnlyRegion
snapshot name that is no plain file name                               answer with SnapshotFailed
reconciliation step that fails                                         ExtentError
any other job that fails                                               answer with the error, or (``faithful``)
                                                                       ErrorReport and another try after a pause
=====================================================================  =============================================

An answer with an error makes the Upstairs fault this client, that is: throw its state away and repair it. A job that
was refused or failed never counts as complete, a read excepted (the Upstairs keeps the client after a failed read and
goes on naming it as a dependency).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from crucible_emu import errors
from crucible_emu.downstairs.work import Kind, Work
from crucible_emu.errors import CrucibleError, RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import FRAME_BYTES_MAX
from crucible_emu.wire.hot import Identities
from crucible_emu.wire.runs import ReadRequestRun, WriteRun

READ_HEADER_BYTES: Final = 84
READ_CONTEXT_BYTES_MAX: Final = 32
DEPENDENCIES_MAX: Final = 65_536
SNAPSHOT_NAME_BYTES_MAX: Final = 255

# A waiting write holds its contexts and the objects around them as well as its data; a job without data, those only.
JOB_OVERHEAD_BYTES: Final = 1024
CONTEXT_BYTES: Final = 48

MODIFYING: frozenset[type[m.Message]] = frozenset(
    {
        m.Write,
        m.WriteUnwritten,
        m.ExtentFlush,
        m.ExtentClose,
        m.ExtentRepair,
        m.ExtentReopen,
        m.ExtentLiveClose,
        m.ExtentLiveFlushClose,
        m.ExtentLiveRepair,
        m.ExtentLiveReopen,
        m.ExtentLiveNoOp,
    }
)
"""What a read-only Downstairs closes the connection for. Four of them the real one does not filter; it dies of them."""


class Refused(Exception):
    """The message gets an answer with ``error`` instead of being done."""

    def __init__(self, error: CrucibleError) -> None:
        super().__init__(str(error))
        self.error = error


class Admission:
    """Turns messages of running sessions into work. Raises :class:`RemoteError` for what costs the connection, and
    :class:`Refused` for what is answered with an error."""

    def __init__(self, definition: RegionDefinition, read_only: bool) -> None:
        self.read_only = read_only
        self.block_size = definition.block_size
        self.total_blocks = definition.total_blocks
        self.extent_count = definition.extent_count
        self.read_blocks_max = (FRAME_BYTES_MAX - READ_HEADER_BYTES) // (self.block_size + READ_CONTEXT_BYTES_MAX)
        self.jobs: dict[type[m.Message], Callable[[int, Any], Work]] = {
            m.Write: self._write,
            m.WriteUnwritten: self._write,
            m.ReadRequest: self._read,
            m.Flush: self._flush,
            m.Barrier: _plain(Kind.BARRIER),
            m.ExtentLiveNoOp: _plain(Kind.NO_OP),
            m.ExtentLiveClose: self._of_extent(Kind.CLOSE),
            m.ExtentLiveFlushClose: self._of_extent(Kind.FLUSH_CLOSE),
            m.ExtentLiveRepair: self._of_extent(Kind.REPAIR),
            m.ExtentLiveReopen: self._of_extent(Kind.REOPEN),
        }
        """What makes work of a job's message."""
        self.steps: dict[type[m.Message], Callable[[int, Any], Work]] = {
            m.ExtentFlush: self._of_extent(Kind.FLUSH_EXTENT),
            m.ExtentClose: self._of_extent(Kind.CLOSE),
            m.ExtentRepair: self._of_extent(Kind.REPAIR),
            m.ExtentReopen: self._of_extent(Kind.REOPEN),
        }
        """What makes work of a reconciliation step."""
        if read_only:
            for builders in (self.jobs, self.steps):
                builders.update(dict.fromkeys(MODIFYING & builders.keys(), _refuse_to_modify))

    def _write(self, connection_id: int, message: m.Write | m.WriteUnwritten) -> Work:
        data_bytes = len(message.data)
        count = len(message.contexts)
        if data_bytes != count * self.block_size:
            if data_bytes % self.block_size:
                raise RemoteError(f"a write of {data_bytes} bytes is no whole number of {self.block_size}-byte blocks")
            raise RemoteError(f"a write of {data_bytes // self.block_size} blocks came with {count} contexts")
        if len(message.dependencies) > 1:
            check_dependencies(message)
        if message.start + count > self.total_blocks:
            raise Refused(errors.OffsetInvalid())
        kind = Kind.WRITE if type(message) is m.Write else Kind.WRITE_UNWRITTEN
        size_bytes = data_bytes + CONTEXT_BYTES * count + JOB_OVERHEAD_BYTES
        return Work(
            kind if count else Kind.NO_OP, connection_id, message, message.job_id, message.start, count, size_bytes
        )

    def _read(self, connection_id: int, message: m.ReadRequest) -> Work:
        if len(message.dependencies) > 1:
            check_dependencies(message)
        count = message.count
        if message.start + count > self.total_blocks:
            raise Refused(errors.OffsetInvalid())
        if not 1 <= count <= self.read_blocks_max:
            raise Refused(
                errors.InvalidNumberOfBlocks(f"a read of {count} blocks, one answer holds 1 to {self.read_blocks_max}")
            )
        size_bytes = count * (self.block_size + CONTEXT_BYTES) + JOB_OVERHEAD_BYTES
        return Work(Kind.READ, connection_id, message, message.job_id, message.start, count, size_bytes)

    def _flush(self, connection_id: int, message: m.Flush) -> Work:
        check_dependencies(message)
        # One more than the last extent is let through, as the real program does.
        if message.extent_limit is not None and message.extent_limit > self.extent_count:
            raise Refused(errors.InvalidExtent())
        if message.snapshot_details is not None:
            if self.read_only:
                raise Refused(errors.ModifyingReadOnlyRegion())
            check_snapshot_name(message.snapshot_details)
        return Work(Kind.FLUSH, connection_id, message, message.job_id, size_bytes=JOB_OVERHEAD_BYTES)

    def _of_extent(self, kind: Kind) -> Callable[[int, Any], Work]:
        def build(connection_id: int, message: Any) -> Work:
            job_id = getattr(message, "job_id", None)
            if job_id is not None:
                check_dependencies(message)
            if message.extent_id >= self.extent_count:
                raise Refused(errors.InvalidExtent())
            return Work(
                kind, connection_id, message, job_id, extent_id=message.extent_id, size_bytes=JOB_OVERHEAD_BYTES
            )

        return build


def _refuse_to_modify(_connection_id: int, message: m.Message) -> Work:
    raise RemoteError(f"{type(message).__name__} to a read-only region")


def _plain(kind: Kind) -> Callable[[int, Any], Work]:
    def build(connection_id: int, message: Any) -> Work:
        check_dependencies(message)
        return Work(kind, connection_id, message, message.job_id, size_bytes=JOB_OVERHEAD_BYTES)

    return build


def check_dependencies(message: Any) -> None:
    """*Safety* (memory): raises :class:`RemoteError` for more dependencies than any Upstairs can mean."""
    if len(message.dependencies) > DEPENDENCIES_MAX:
        raise RemoteError(f"a job with {len(message.dependencies)} dependencies, at most {DEPENDENCIES_MAX} are taken")


def check_snapshot_name(name: str) -> None:
    """*Safety*: a snapshot's name becomes a directory's. Raises :class:`Refused` where it cannot be one."""
    plain = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    if not plain or len(name.encode()) > SNAPSHOT_NAME_BYTES_MAX:
        raise Refused(errors.SnapshotFailed(f"{name!r} is no name for a snapshot: take a plain file name"))


def compare_ids(known: Identities, message: m.JobRequest | WriteRun | ReadRequestRun) -> UUID | None:
    """The id that ``message`` should have carried instead of its own; ``None`` when it is right."""
    if message.upstairs_id != known.upstairs_id:
        return known.upstairs_id
    if message.session_id != known.session_id:
        return known.session_id
    # A decoder hands out the same objects again and again; to recognise one costs a tenth of comparing it.
    known.upstairs_id, known.session_id = message.upstairs_id, message.session_id
    return None
