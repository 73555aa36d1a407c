"""The error family: what can go wrong with a disk, in the words of the wire and in words for a person.

What it is for: :class:`CrucibleError` and its 42 variants are those of the wire protocol (wire-protocol.md §3.3), in
its order, so that an error crosses a connection without loss. Each says in one sentence what is wrong and, where there
is something to do, what would be right. :class:`NegotiationError` carries one of eight details of its own.

Beside the family stand three other kinds. :class:`RemoteError`: the peer broke the protocol; the connection to it ends,
nothing else does. :class:`LocalError`: we were about to break it ourselves. :class:`UsageError`: a person's input is
wrong; the command line prints its one sentence and exits with 2.
"""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID


class UsageError(Exception):
    """A person's input is wrong; the message is the one sentence that says so and what would be right."""


class RemoteError(Exception):
    """The peer sent what it must not send. It costs that connection and nothing else (wire-protocol.md §14)."""


class LocalError(Exception):
    """We were about to send what must not be sent; nothing was. The message names it: a defect of this program."""


class CrucibleError(Exception):
    """One of the 42 errors of the wire. ``TAG`` is its number there, ``SENTENCE`` what it means."""

    TAG: ClassVar[int]
    SENTENCE: ClassVar[str]
    FIELDS: ClassVar[tuple[str, ...]] = ()

    @property
    def payload(self) -> tuple[object, ...]:
        """The values that travel with the error, in wire order."""
        return tuple(getattr(self, name) for name in self.FIELDS)

    def __str__(self) -> str:
        return self.SENTENCE

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.payload))})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, CrucibleError) and other.payload == self.payload

    def __hash__(self) -> int:
        return hash((type(self), self.payload))


class TextError(CrucibleError):
    """An error whose payload is one text, ``detail``."""

    FIELDS = ("detail",)

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.SENTENCE}: {self.detail}" if self.detail else self.SENTENCE


class GenericError(TextError):
    TAG = 0
    SENTENCE = "something failed for a reason that only its text names"


class IoError(TextError):
    TAG = 1
    SENTENCE = "an input or output operation failed"


class Unsupported(TextError):
    TAG = 2
    SENTENCE = "this backend cannot do what was asked"


class Disconnect(CrucibleError):
    TAG = 3
    SENTENCE = "the peer closed the connection: connect again"


class DataLockError(CrucibleError):
    TAG = 4
    SENTENCE = "a data lock could not be taken (legacy, no longer raised)"


class RwLockError(TextError):
    TAG = 5
    SENTENCE = "a read-write lock failed (legacy, no longer raised)"


class RecvDisconnected(CrucibleError):
    TAG = 6
    SENTENCE = "the other side went away without answering: activate the disk again"


class SendError(TextError):
    TAG = 7
    SENTENCE = "a message could not be sent (legacy, no longer raised)"


class OffsetUnaligned(CrucibleError):
    TAG = 8
    SENTENCE = "the offset is not a multiple of the block size: align it"


class DataLenUnaligned(CrucibleError):
    TAG = 9
    SENTENCE = "the length is not a multiple of the block size: align it"


class BlockSizeMismatch(CrucibleError):
    TAG = 10
    SENTENCE = "the parts of one volume have different block sizes: give all the same"


class InvalidNumberOfBlocks(TextError):
    TAG = 11
    SENTENCE = "the number of blocks does not fit the data"


class OffsetInvalid(CrucibleError):
    TAG = 12
    SENTENCE = "the range ends beyond the end of the disk: ask for less"


class UpstairsActivateInProgress(CrucibleError):
    TAG = 13
    SENTENCE = "an activation is already under way: wait for it"


class UpstairsDeactivating(CrucibleError):
    TAG = 14
    SENTENCE = "the disk is being deactivated: wait until that is done"


class UpstairsInactive(CrucibleError):
    TAG = 15
    SENTENCE = "the disk is not active: activate it first"


class UuidMismatch(CrucibleError):
    TAG = 16
    SENTENCE = "a Downstairs serves another Upstairs than this one: check the ids"


class EncryptionError(TextError):
    TAG = 17
    SENTENCE = "a block could not be encrypted"


class DecryptionError(CrucibleError):
    TAG = 18
    SENTENCE = "a block does not decrypt: it was damaged, or the key is not the one it was written with"


class HashMismatch(CrucibleError):
    TAG = 19
    SENTENCE = "a block is not what its hash says: it was damaged on the way or on disk"


class LBARangeOverlap(CrucibleError):
    TAG = 20
    SENTENCE = "two parts of one volume overlap (legacy, no longer raised)"


class SubvolumeSizeMismatch(CrucibleError):
    TAG = 21
    SENTENCE = "a part of the volume changed its size: describe the volume anew"


class SubvolumeTypeMismatch(CrucibleError):
    TAG = 22
    SENTENCE = "the parts of the volume are of different kinds: describe it anew"


class CannotServeBlocks(TextError):
    TAG = 23
    SENTENCE = "the volume has nothing that could serve these blocks"


class CannotReceiveBlocks(TextError):
    TAG = 24
    SENTENCE = "the volume has nothing that could take these blocks"


class SnapshotFailed(TextError):
    TAG = 25
    SENTENCE = "the snapshot could not be taken"


class ModifyingReadOnlyRegion(CrucibleError):
    TAG = 26
    SENTENCE = "the region is read-only: write to a disk made from it instead"


class InvalidExtent(CrucibleError):
    TAG = 27
    SENTENCE = "there is no extent of that number"


class RepairRequestError(TextError):
    TAG = 28
    SENTENCE = "the repair source did not serve a request"


class RepairFilesInvalid(TextError):
    TAG = 29
    SENTENCE = "the repair source offers other files than an extent has"


class RepairStreamError(TextError):
    TAG = 30
    SENTENCE = "the download from the repair source broke off"


class GenerationNumberInvalid(CrucibleError):
    TAG = 31
    SENTENCE = "the disk is active with another generation: deactivate it first"


class NoLongerActive(CrucibleError):
    TAG = 32
    SENTENCE = "another Upstairs with a higher generation took over this disk"


class RegionAssembleError(CrucibleError):
    TAG = 33
    SENTENCE = "the replicas could not be brought together (legacy, no longer raised)"


class PropertyNotAvailable(TextError):
    TAG = 34
    SENTENCE = "this is not known before a Downstairs has answered"


class ReplaceRequestInvalid(TextError):
    TAG = 35
    SENTENCE = "this Downstairs cannot be replaced that way now"


class MissingContextSlot(CrucibleError):
    TAG = 36
    SENTENCE = "no context matches the block's data: replace this replica or repair the extent"
    FIELDS = ("block", "extent")

    def __init__(self, block: int, extent: int) -> None:
        super().__init__(block, extent)
        self.block = block
        self.extent = extent

    def __str__(self) -> str:
        return f"{self.SENTENCE} (block {self.block} of extent {self.extent})"


class BadMetadata(TextError):
    TAG = 37
    SENTENCE = "the extent's metadata cannot be decoded"


class BadContextSlot(TextError):
    TAG = 38
    SENTENCE = "a context slot cannot be decoded"


class MissingBlockContext(CrucibleError):
    TAG = 39
    SENTENCE = "a block has data but no context that fits: it was damaged, or the encryption setting is wrong"


class RegionIncompatible(TextError):
    TAG = 40
    SENTENCE = "the two regions differ in a way that makes one no copy of the other"


class NegotiationDetail:
    """Why two peers could not agree: one of the eight variants of NegotiationError (wire-protocol.md §3.3)."""

    TAG: ClassVar[int]
    SENTENCE: ClassVar[str]
    FIELDS: ClassVar[tuple[tuple[str, type], ...]] = ()

    def __init__(self, *values: object) -> None:
        if len(values) != len(self.FIELDS):
            raise TypeError(f"{type(self).__name__} takes {len(self.FIELDS)} values, got {len(values)}")
        for (name, _), value in zip(self.FIELDS, values):
            setattr(self, name, value)

    @property
    def payload(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name, _ in self.FIELDS)

    def __str__(self) -> str:
        found = ", ".join(f"{name} {value}" for (name, _), value in zip(self.FIELDS, self.payload))
        return f"{self.SENTENCE} ({found})" if found else self.SENTENCE

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.payload))})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, NegotiationDetail) and other.payload == self.payload

    def __hash__(self) -> int:
        return hash((type(self), self.payload))


class OutOfOrder(NegotiationDetail):
    TAG = 0
    SENTENCE = "a negotiation message came in the wrong order"


class GenerationZeroIsIllegal(NegotiationDetail):
    TAG = 1
    SENTENCE = "generation 0 is not allowed: start with 1"


class GenerationNumberTooLow(NegotiationDetail):
    TAG = 2
    SENTENCE = "the generation is too low: ask for at least the actual one"
    FIELDS = (("requested", int), ("actual", int))


class IncompatibleVersion(NegotiationDetail):
    TAG = 3
    SENTENCE = "the peer speaks another version of the protocol"
    FIELDS = (("expected", int), ("actual", int))


class EncryptionMismatch(NegotiationDetail):
    TAG = 4
    SENTENCE = "one side encrypts and the other does not: give the key, or leave it out"
    FIELDS = (("expected", bool), ("actual", bool))


class ReadOnlyMismatch(NegotiationDetail):
    TAG = 5
    SENTENCE = "one side is read-only and the other is not"
    FIELDS = (("expected", bool), ("actual", bool))


class UpstairsIdMismatch(NegotiationDetail):
    TAG = 6
    SENTENCE = "the Downstairs answered for another Upstairs"
    FIELDS = (("expected", UUID), ("actual", UUID))


class SessionIdMismatch(NegotiationDetail):
    TAG = 7
    SENTENCE = "the Downstairs answered for another session"
    FIELDS = (("expected", UUID), ("actual", UUID))


class NegotiationError(CrucibleError):
    TAG = 41
    SENTENCE = "the Upstairs and a Downstairs could not agree"
    FIELDS = ("detail",)

    def __init__(self, detail: NegotiationDetail) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.SENTENCE}: {self.detail}"


ERRORS: tuple[type[CrucibleError], ...] = (
    GenericError,
    IoError,
    Unsupported,
    Disconnect,
    DataLockError,
    RwLockError,
    RecvDisconnected,
    SendError,
    OffsetUnaligned,
    DataLenUnaligned,
    BlockSizeMismatch,
    InvalidNumberOfBlocks,
    OffsetInvalid,
    UpstairsActivateInProgress,
    UpstairsDeactivating,
    UpstairsInactive,
    UuidMismatch,
    EncryptionError,
    DecryptionError,
    HashMismatch,
    LBARangeOverlap,
    SubvolumeSizeMismatch,
    SubvolumeTypeMismatch,
    CannotServeBlocks,
    CannotReceiveBlocks,
    SnapshotFailed,
    ModifyingReadOnlyRegion,
    InvalidExtent,
    RepairRequestError,
    RepairFilesInvalid,
    RepairStreamError,
    GenerationNumberInvalid,
    NoLongerActive,
    RegionAssembleError,
    PropertyNotAvailable,
    ReplaceRequestInvalid,
    MissingContextSlot,
    BadMetadata,
    BadContextSlot,
    MissingBlockContext,
    RegionIncompatible,
    NegotiationError,
)
"""All 42, at the index that is their tag on the wire."""

NEGOTIATION_DETAILS: tuple[type[NegotiationDetail], ...] = (
    OutOfOrder,
    GenerationZeroIsIllegal,
    GenerationNumberTooLow,
    IncompatibleVersion,
    EncryptionMismatch,
    ReadOnlyMismatch,
    UpstairsIdMismatch,
    SessionIdMismatch,
)
"""All eight, at the index that is their tag on the wire."""
