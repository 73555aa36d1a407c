"""The 42 messages (wire-protocol.md §4), one frozen class each, with the wire's names and field order.

What it is for: sessions speak in these; bytes are the business of :mod:`crucible_emu.wire.frames` and
:mod:`crucible_emu.wire.decoder`. ``TAG`` is a message's number on the wire, :data:`MESSAGES` holds all classes at that
index. The comment U→D or D→U says who sends it (U = Upstairs).

What it guarantees: a message does not change after it was made. Block data are memoryviews, contexts and extent
versions are arrays: they are shared, not copied, and two messages are equal when these hold equal values. Messages
that carry arrays have no hash.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar
from uuid import UUID

import numpy as np
import numpy.typing as npt

from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts


class Message:
    """What all messages have: a number on the wire."""

    __slots__ = ()
    TAG: ClassVar[int]


class JobRequest(Message):
    """The ten messages that ask for a job: a Downstairs checks their ids and waits for their dependencies (§7)."""

    __slots__ = ()
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]


class JobReply(Message):
    """What a Downstairs answers to a job: the acks, ReadResponse and ErrorReport."""

    __slots__ = ()
    upstairs_id: UUID
    session_id: UUID
    job_id: int


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Address of a repair service: IP address as text and port. A scope or flow label does not travel (§2)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HereIAm(Message):
    """U→D. First word of an Upstairs; its ``generation`` only informs."""

    TAG = 0
    version: int
    upstairs_id: UUID
    session_id: UUID
    generation: int
    read_only: bool
    encrypted: bool
    alternate_versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class YesItsMe(Message):
    """D→U. The HereIAm is accepted; ``repair_addr`` is where extents can be fetched."""

    TAG = 1
    version: int
    repair_addr: SocketAddress


@dataclass(frozen=True, slots=True)
class VersionMismatch(Message):
    """D→U. The HereIAm spoke another version than this."""

    TAG = 2
    version: int


@dataclass(frozen=True, slots=True)
class ReadOnlyMismatch(Message):
    """D→U. The Downstairs is (not) read-only, as ``expected`` says."""

    TAG = 3
    expected: bool


@dataclass(frozen=True, slots=True)
class EncryptedMismatch(Message):
    """D→U. The region is (not) encrypted, as ``expected`` says."""

    TAG = 4
    expected: bool


@dataclass(frozen=True, slots=True)
class PromoteToActive(Message):
    """U→D. Asks to be the one Upstairs of this Downstairs, with this generation."""

    TAG = 5
    upstairs_id: UUID
    session_id: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class YouAreNowActive(Message):
    """D→U. The promotion is granted; the three values are an echo."""

    TAG = 6
    upstairs_id: UUID
    session_id: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class YouAreNoLongerActive(Message):
    """D→U. Another Upstairs took over; the connection closes."""

    TAG = 7
    new_upstairs_id: UUID
    new_session_id: UUID
    new_gen: int


@dataclass(frozen=True, slots=True)
class UuidMismatch(Message):
    """D→U. A message came with other ids than this one."""

    TAG = 8
    expected_id: UUID


@dataclass(frozen=True, slots=True)
class Ruok(Message):
    """U→D. Are you alive?"""

    TAG = 9


@dataclass(frozen=True, slots=True)
class Imok(Message):
    """D→U. I am alive."""

    TAG = 10


@dataclass(frozen=True, slots=True)
class ExtentClose(Message):
    """U→D. Reconciliation: close this extent."""

    TAG = 11
    repair_id: int
    extent_id: int


@dataclass(frozen=True, slots=True)
class ExtentReopen(Message):
    """U→D. Reconciliation: open this extent again."""

    TAG = 12
    repair_id: int
    extent_id: int


@dataclass(frozen=True, slots=True)
class ExtentFlush(Message):
    """U→D. Reconciliation: flush this extent with these numbers."""

    TAG = 13
    repair_id: int
    extent_id: int
    client_id: int
    flush_number: int
    gen_number: int


@dataclass(frozen=True, slots=True)
class ExtentRepair(Message):
    """U→D. Reconciliation: fetch this closed extent from the source."""

    TAG = 14
    repair_id: int
    extent_id: int
    source_client_id: int
    source_repair_address: SocketAddress
    dest_clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RepairAckId(Message):
    """D→U. A step of the reconciliation is done."""

    TAG = 15
    repair_id: int


@dataclass(frozen=True, slots=True)
class ExtentError(Message):
    """D→U. A step of the reconciliation failed."""

    TAG = 16
    repair_id: int
    extent_id: int
    error: CrucibleError


@dataclass(frozen=True, slots=True)
class ExtentLiveClose(JobRequest):
    """U→D. Live repair: close this extent without flushing it."""

    TAG = 17
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    extent_id: int


@dataclass(frozen=True, slots=True)
class ExtentLiveFlushClose(JobRequest):
    """U→D. Live repair: flush this extent with these numbers, then close it."""

    TAG = 18
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    extent_id: int
    flush_number: int
    gen_number: int


@dataclass(frozen=True, slots=True)
class ExtentLiveRepair(JobRequest):
    """U→D. Live repair: fetch this closed extent from the source."""

    TAG = 19
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    extent_id: int
    source_client_id: int
    source_repair_address: SocketAddress


@dataclass(frozen=True, slots=True)
class ExtentLiveReopen(JobRequest):
    """U→D. Live repair: open this extent again."""

    TAG = 20
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    extent_id: int


@dataclass(frozen=True, slots=True)
class ExtentLiveNoOp(JobRequest):
    """U→D. Live repair: nothing to do here, but the job id must be completed."""

    TAG = 21
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExtentLiveCloseAck(JobReply):
    """D→U. The extent is closed; Ok carries (generation, flush number, dirty) as stored."""

    TAG = 22
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    result: tuple[int, int, bool] | CrucibleError


@dataclass(frozen=True, slots=True)
class Ack(JobReply):
    """What the acks without a payload share: ``result`` is ``None`` for Ok, else the error."""

    upstairs_id: UUID
    session_id: UUID
    job_id: int
    result: CrucibleError | None


@dataclass(frozen=True, slots=True)
class ExtentLiveRepairAckId(Ack):
    """D→U. An ExtentLiveRepair is done."""

    TAG = 23


@dataclass(frozen=True, slots=True)
class ExtentLiveAckId(Ack):
    """D→U. An ExtentLiveReopen or ExtentLiveNoOp is done."""

    TAG = 24


@dataclass(frozen=True, slots=True)
class RegionInfoPlease(Message):
    """U→D. What region is this?"""

    TAG = 25


@dataclass(frozen=True, slots=True)
class RegionInfo(Message):
    """D→U. This one."""

    TAG = 26
    region_def: RegionDefinition


@dataclass(frozen=True, slots=True)
class ExtentVersionsPlease(Message):
    """U→D. Which version has each extent?"""

    TAG = 27


def _same_data(one: memoryview, other: memoryview) -> bool:
    return one.nbytes == other.nbytes and bytes(one) == bytes(other)


def _same_contexts(one: BlockContexts, other: BlockContexts) -> bool:
    """Whether two sets of contexts would be the same bytes in a Write: hashes count for sealed blocks too."""
    return one.same_reads(other) and np.array_equal(one.hash, other.hash)


@dataclass(frozen=True, slots=True, eq=False)
class ExtentVersions(Message):
    """D→U. Per extent, in order: generation and flush number (uint64), and whether it is dirty (bool).

    The wire has three lists, which could differ in length; an Upstairs checks that they do not.
    """

    TAG = 28
    gen_numbers: npt.NDArray[np.uint64]
    flush_numbers: npt.NDArray[np.uint64]
    dirty_bits: npt.NDArray[np.bool_]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtentVersions) and all(
            np.array_equal(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True, slots=True)
class LastFlush(Message):
    """U→D. The last flush this Downstairs acknowledged, by *job id* in spite of the field's name; replay follows."""

    TAG = 29
    last_flush_number: int | None


@dataclass(frozen=True, slots=True, eq=False)
class BlockWrite(JobRequest):
    """What Write and WriteUnwritten share: n contexts, and the data of n blocks from ``start`` on (uint8, flat)."""

    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    start: int
    contexts: BlockContexts
    data: memoryview

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and isinstance(other, BlockWrite)
            and (self.upstairs_id, self.session_id, self.job_id) == (other.upstairs_id, other.session_id, other.job_id)
            and (self.dependencies, self.start) == (other.dependencies, other.start)
            and _same_contexts(self.contexts, other.contexts)
            and _same_data(self.data, other.data)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True, slots=True, eq=False)
class Write(BlockWrite):
    """U→D. Write these blocks."""

    TAG = 30


@dataclass(frozen=True, slots=True)
class WriteAck(Ack):
    """D→U. A Write is done."""

    TAG = 31


@dataclass(frozen=True, slots=True)
class Flush(JobRequest):
    """U→D. Make extents durable with these numbers, up to ``extent_limit``; then the snapshot of that name."""

    TAG = 32
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    flush_number: int
    gen_number: int
    snapshot_details: str | None
    extent_limit: int | None


@dataclass(frozen=True, slots=True)
class FlushAck(Ack):
    """D→U. A Flush is done."""

    TAG = 33


@dataclass(frozen=True, slots=True)
class Barrier(JobRequest):
    """U→D. Forget all jobs before this one."""

    TAG = 34
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BarrierAck(Ack):
    """D→U. A Barrier is done."""

    TAG = 35


@dataclass(frozen=True, slots=True)
class ReadRequest(JobRequest):
    """U→D. Read ``count`` blocks from ``start`` on."""

    TAG = 36
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    dependencies: tuple[int, ...]
    start: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class ReadResponse(JobReply):
    """D→U. Contexts of the blocks read and their data (uint8, flat); or the error, with no data.

    The contexts of encrypted blocks come without a hash (0), and nobody has computed ``on_disk_hash``.
    """

    TAG = 37
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    blocks: BlockContexts | CrucibleError
    data: memoryview

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ReadResponse) or not _same_data(self.data, other.data):
            return False
        if (self.upstairs_id, self.session_id, self.job_id) != (other.upstairs_id, other.session_id, other.job_id):
            return False
        if isinstance(self.blocks, CrucibleError) or isinstance(other.blocks, CrucibleError):
            return bool(self.blocks == other.blocks)
        return self.blocks.same_reads(other.blocks)

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True, slots=True, eq=False)
class WriteUnwritten(BlockWrite):
    """U→D. Write those of these blocks that were never written."""

    TAG = 38


@dataclass(frozen=True, slots=True)
class WriteUnwrittenAck(Ack):
    """D→U. A WriteUnwritten is done."""

    TAG = 39


@dataclass(frozen=True, slots=True)
class ErrorReport(JobReply):
    """D→U. A job failed this time; the real Downstairs tries it again and again (§7.3)."""

    TAG = 40
    upstairs_id: UUID
    session_id: UUID
    job_id: int
    error: CrucibleError


@dataclass(frozen=True, slots=True)
class Unknown(Message):
    """A placeholder that neither side ever sends."""

    TAG = 41
    tag: int
    data: bytes


# fmt: off
MESSAGES: tuple[type[Message], ...] = (
    HereIAm, YesItsMe, VersionMismatch, ReadOnlyMismatch, EncryptedMismatch, PromoteToActive,
    YouAreNowActive, YouAreNoLongerActive, UuidMismatch, Ruok, Imok, ExtentClose,
    ExtentReopen, ExtentFlush, ExtentRepair, RepairAckId, ExtentError, ExtentLiveClose,
    ExtentLiveFlushClose, ExtentLiveRepair, ExtentLiveReopen, ExtentLiveNoOp, ExtentLiveCloseAck, ExtentLiveRepairAckId,
    ExtentLiveAckId, RegionInfoPlease, RegionInfo, ExtentVersionsPlease, ExtentVersions, LastFlush,
    Write, WriteAck, Flush, FlushAck, Barrier, BarrierAck,
    ReadRequest, ReadResponse, WriteUnwritten, WriteUnwrittenAck, ErrorReport, Unknown,
)
# fmt: on
"""All 42, at the index that is their tag on the wire."""
