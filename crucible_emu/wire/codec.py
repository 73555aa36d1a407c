"""The catalogue: every message and every error as a table of its fields (wire-protocol.md §3, §4).

What it is for: :data:`MESSAGE` and :data:`ERROR` *are* the specification's tables, in a form that encodes and decodes.
They cover all 42 messages and all 42 errors with their 8 negotiation details. :mod:`crucible_emu.wire.hot` overtakes
them for the few messages that every request needs; the tests hold the two against each other.

:func:`encode_error` and :func:`decode_error` are for a single error outside of any message.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.errors import CrucibleError, LocalError, NegotiationDetail, RemoteError
from crucible_emu.geometry import DATABASE_VERSION, GeometryError, RegionDefinition
from crucible_emu.wire import messages as m
from crucible_emu.wire.contexts import ReadContexts, WriteContexts
from crucible_emu.wire.primitives.bincode import (
    BOOL,
    U8,
    U32,
    U64,
    U64_STRUCT,
    UUID_FIELD,
    ByteString,
    FieldType,
    Integers,
    Malformed,
    Option,
    Parts,
    Record,
    Result,
    Tagged,
    Text,
    Tuple,
    Unit,
    read_count,
    unpack,
)


class Address(FieldType[m.SocketAddress]):
    """A socket address: u32 0 or 1, 4 or 16 address bytes in network order, the port little endian (§2)."""

    _HEAD = struct.Struct("<I")
    _V4 = struct.Struct("<4sH")
    _V6 = struct.Struct("<16sH")

    def encode(self, value: m.SocketAddress, parts: Parts) -> None:
        address = ipaddress.ip_address(value.host)
        if not 0 <= value.port <= 0xFFFF:
            raise ValueError(f"port {value.port} is outside 0..65535")
        form = self._V4 if address.version == 4 else self._V6
        parts.append(self._HEAD.pack(int(address.version == 6)) + form.pack(address.packed, value.port))

    def decode(self, frame: memoryview, offset: int) -> tuple[m.SocketAddress, int]:
        (version,) = unpack(self._HEAD, frame, offset)
        if version > 1:
            raise Malformed(f"a socket address begins with {version}, but only 0 (IPv4) and 1 (IPv6) exist")
        form = self._V6 if version else self._V4
        packed, port = unpack(form, frame, offset + 4)
        host = ipaddress.IPv6Address(packed) if version else ipaddress.IPv4Address(packed)
        return m.SocketAddress(str(host), port), offset + 4 + form.size


class RegionDefinitionType(FieldType[RegionDefinition]):
    """A region definition: it must be one that can exist, with both database versions 1 (§3.2)."""

    _fields = Tuple(U64, U64, U32, U32, UUID_FIELD, BOOL, U64, U64)

    def encode(self, value: RegionDefinition, parts: Parts) -> None:
        members = (value.block_size, value.blocks_per_extent, value.shift, value.extent_count, value.uuid)
        self._fields.encode((*members, value.encrypted, DATABASE_VERSION, DATABASE_VERSION), parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[RegionDefinition, int]:
        members, offset = self._fields.decode(frame, offset)
        block_size, blocks_per_extent, shift, extent_count, uuid, encrypted, *versions = members
        if versions != [DATABASE_VERSION, DATABASE_VERSION]:
            raise Malformed(f"database versions {versions} are not the only known ones, {DATABASE_VERSION}")
        try:
            definition = RegionDefinition(block_size, blocks_per_extent, extent_count, uuid, encrypted)
        except GeometryError as error:
            raise Malformed(str(error)) from None
        if definition.shift != shift:
            raise Malformed(f"block size {block_size} and shift {shift} disagree: it would be {definition.shift}")
        return definition, offset


class Column(FieldType[npt.NDArray[Any]]):
    """A list of numbers or bools, one per extent, as an array."""

    def __init__(self, dtype: npt.DTypeLike):
        self._dtype = np.dtype(dtype)

    def encode(self, value: npt.NDArray[Any], parts: Parts) -> None:
        parts.append(U64_STRUCT.pack(len(value)))
        parts.append(np.asarray(value, self._dtype).tobytes())

    def decode(self, frame: memoryview, offset: int) -> tuple[npt.NDArray[Any], int]:
        size = self._dtype.itemsize
        count, offset = read_count(frame, offset, size, "list items", len(frame))
        end = offset + count * size
        raw = frame[offset:end]
        if self._dtype.kind == "b" and raw.nbytes:
            largest = int(np.frombuffer(raw, np.uint8).max())
            if largest > 1:
                raise Malformed(f"a bool is {largest}, but only 0 and 1 exist")
        return np.frombuffer(raw, self._dtype).copy(), end


class BulkData(FieldType[memoryview]):
    """Block data: a u64 length, and the data are the last so many bytes of the frame (§1.3). Never copied."""

    def encode(self, value: memoryview, parts: Parts) -> None:
        parts.append(U64_STRUCT.pack(value.nbytes))
        parts.append(value)

    def decode(self, frame: memoryview, offset: int) -> tuple[memoryview, int]:
        (length,) = unpack(U64_STRUCT, frame, offset)
        size = len(frame)
        if length > size - offset - 8:
            raise Malformed(f"{length} bytes of data are announced, but the frame has only {size - offset - 8} left")
        return frame[size - length :], size


TEXT = Text()
ADDRESS = Address()


def _detail(cls: type[NegotiationDetail]) -> Record[NegotiationDetail]:
    forms: dict[type, FieldType[Any]] = {bool: BOOL, UUID: UUID_FIELD}
    # Versions are u32, generations u64: the only two variants with integers.
    forms[int] = U32 if cls is errors.IncompatibleVersion else U64
    return Record(cls, *((name, forms[kind]) for name, kind in cls.FIELDS))


NEGOTIATION_DETAIL: Tagged[NegotiationDetail] = Tagged(
    "negotiation error", [_detail(cls) for cls in errors.NEGOTIATION_DETAILS]
)


def _error(cls: type[CrucibleError]) -> Record[CrucibleError]:
    if issubclass(cls, errors.TextError):
        return Record(cls, ("detail", TEXT))
    if cls is errors.MissingContextSlot:
        return Record(cls, ("block", U64), ("extent", U32))
    if cls is errors.NegotiationError:
        return Record(cls, ("detail", NEGOTIATION_DETAIL))
    return Record(cls)


ERROR: Tagged[CrucibleError] = Tagged("error", [_error(cls) for cls in errors.ERRORS])
"""CrucibleError, §3.3."""

_IDS = (("upstairs_id", UUID_FIELD), ("session_id", UUID_FIELD))
_JOB = (*_IDS, ("job_id", U64))
_DEPS = (*_JOB, ("dependencies", Integers(U64)))
_STEP = (("repair_id", U64), ("extent_id", U32))
_ACK = (*_JOB, ("result", Result(Unit(), ERROR, CrucibleError)))
_CLOSED = Result(Tuple(U64, U64, BOOL), ERROR, CrucibleError)
_PROMOTE = (*_IDS, ("generation", U64))
_TAKEN_OVER = (("new_upstairs_id", UUID_FIELD), ("new_session_id", UUID_FIELD), ("new_gen", U64))
_NUMBERS = (("flush_number", U64), ("gen_number", U64))
_SOURCE = (("source_client_id", U8), ("source_repair_address", ADDRESS))
_WRITE = (*_DEPS, ("start", U64), ("contexts", WriteContexts()), ("data", BulkData()))
_BLOCKS = Result(ReadContexts(), ERROR, CrucibleError)

_HERE_I_AM = (
    ("version", U32),
    *_IDS,
    ("generation", U64),
    ("read_only", BOOL),
    ("encrypted", BOOL),
    ("alternate_versions", Integers(U32)),
)
_VERSIONS = (("gen_numbers", Column("<u8")), ("flush_numbers", Column("<u8")), ("dirty_bits", Column(np.bool_)))
_SNAPSHOT = (("snapshot_details", Option(TEXT)), ("extent_limit", Option(U32)))

_CATALOGUE: tuple[tuple[type[m.Message], tuple[tuple[str, FieldType[Any]], ...]], ...] = (
    (m.HereIAm, _HERE_I_AM),
    (m.YesItsMe, (("version", U32), ("repair_addr", ADDRESS))),
    (m.VersionMismatch, (("version", U32),)),
    (m.ReadOnlyMismatch, (("expected", BOOL),)),
    (m.EncryptedMismatch, (("expected", BOOL),)),
    (m.PromoteToActive, _PROMOTE),
    (m.YouAreNowActive, _PROMOTE),
    (m.YouAreNoLongerActive, _TAKEN_OVER),
    (m.UuidMismatch, (("expected_id", UUID_FIELD),)),
    (m.Ruok, ()),
    (m.Imok, ()),
    (m.ExtentClose, _STEP),
    (m.ExtentReopen, _STEP),
    (m.ExtentFlush, (*_STEP, ("client_id", U8), *_NUMBERS)),
    (m.ExtentRepair, (*_STEP, *_SOURCE, ("dest_clients", Integers(U8)))),
    (m.RepairAckId, (("repair_id", U64),)),
    (m.ExtentError, (*_STEP, ("error", ERROR))),
    (m.ExtentLiveClose, (*_DEPS, ("extent_id", U32))),
    (m.ExtentLiveFlushClose, (*_DEPS, ("extent_id", U32), *_NUMBERS)),
    (m.ExtentLiveRepair, (*_DEPS, ("extent_id", U32), *_SOURCE)),
    (m.ExtentLiveReopen, (*_DEPS, ("extent_id", U32))),
    (m.ExtentLiveNoOp, _DEPS),
    (m.ExtentLiveCloseAck, (*_JOB, ("result", _CLOSED))),
    (m.ExtentLiveRepairAckId, _ACK),
    (m.ExtentLiveAckId, _ACK),
    (m.RegionInfoPlease, ()),
    (m.RegionInfo, (("region_def", RegionDefinitionType()),)),
    (m.ExtentVersionsPlease, ()),
    (m.ExtentVersions, _VERSIONS),
    (m.LastFlush, (("last_flush_number", Option(U64)),)),
    (m.Write, _WRITE),
    (m.WriteAck, _ACK),
    (m.Flush, (*_DEPS, *_NUMBERS, *_SNAPSHOT)),
    (m.FlushAck, _ACK),
    (m.Barrier, _DEPS),
    (m.BarrierAck, _ACK),
    (m.ReadRequest, (*_DEPS, ("start", U64), ("count", U64))),
    (m.ReadResponse, (*_JOB, ("blocks", _BLOCKS), ("data", BulkData()))),
    (m.WriteUnwritten, _WRITE),
    (m.WriteUnwrittenAck, _ACK),
    (m.ErrorReport, (*_JOB, ("error", ERROR))),
    (m.Unknown, (("tag", U32), ("data", ByteString()))),
)

MESSAGE: Tagged[m.Message] = Tagged("message", [Record(cls, *fields) for cls, fields in _CATALOGUE])
"""Message, §4: the body of a frame, from its tag on."""


def encode_error(error: CrucibleError) -> bytes:
    """The bytes of one error (§3.3). Raises :class:`LocalError` where a payload has no bytes."""
    parts: Parts = []
    try:
        ERROR.encode(error, parts)
    except ValueError as reason:
        raise LocalError(f"{type(error).__name__} cannot be encoded: {reason}") from reason
    return b"".join(parts)


def decode_error(data: bytes | memoryview) -> CrucibleError:
    """The error in ``data``; bytes behind it are ignored. Raises :class:`RemoteError`."""
    try:
        return ERROR.decode(memoryview(data), 0)[0]
    except Malformed as reason:
        raise RemoteError(f"an error cannot be decoded: {reason}") from reason
