"""The messages of every request, by hand: acks, reads, writes, flushes.

What it is for: the catalogue's tables cost 4-7 µs for a message without blocks. A guest's request of 4 KiB costs three
writes and three acks, so these few are packed and unpacked with one or two ``struct`` calls: an ack at 0.6-0.8 µs, a
read or flush at 1.1-1.3, a write of one block at 2.1-2.4. :data:`ENCODERS` and :data:`DECODERS`
say which; everything else goes through :mod:`crucible_emu.wire.codec`. The bytes are the same, and a test holds the
two against each other.

Two tricks, both measured. *Identities*: all messages of a connection carry the same two UUIDs, so their 48 bytes are
compared with the last ones seen, and the two UUID objects used again (0.05 µs instead of 2.5). *Thawed twins*: the
``__init__`` of a frozen dataclass costs 0.15-0.2 µs per field. The decoder fills an unfrozen class with the same slots,
and then changes the object's class to the frozen one: less than half the time for the same object.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields, make_dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from crucible_emu.errors import CrucibleError
from crucible_emu.integrity import BlockContexts
from crucible_emu.wire import messages as m
from crucible_emu.wire.codec import ERROR, TEXT
from crucible_emu.wire.constants import BLOCKS_MAX, FRAME_BYTES_MAX, LIST_ITEMS_MAX
from crucible_emu.wire.contexts import (
    decode_read_contexts,
    decode_write_contexts,
    encode_read_contexts,
    encode_write_contexts,
    one_plain_block,
)
from crucible_emu.wire.primitives.bincode import U32, UUID_BYTES, Buffer, Malformed, Option, Parts, uuid_from_wire

ACK_BYTES = 68
"""Length of an ack frame whose result is Ok."""

ACK_STRUCT = struct.Struct("<II48sQI")
"""LEN, TAG, both ids, job id, result: a whole Ok ack, and the beginning of any other."""

_REPLY_HEAD = ACK_STRUCT
_REQUEST_HEAD = struct.Struct("<II48sQQ")  # LEN, TAG, both ids, job id, number of dependencies
_IDS = struct.Struct("<Q16sQ16s")
_ACK_OUT = struct.Struct("<IIQ16sQ16sQI")
_ONE, _TWO = struct.Struct("<Q"), struct.Struct("<QQ")
_ONE_PLAIN_WRITE = struct.Struct("<QQQBQ")  # start, 1, hash, no encryption context, length of the data
_FLUSH_TAIL = struct.Struct("<QQH")  # flush number, generation, the first bytes of both options if both are empty
_SNAPSHOT_NAME, _EXTENT_LIMIT = Option(TEXT), Option(U32)
_DEPENDENCIES_AT = _REQUEST_HEAD.size
_DEPENDENCIES_COMPILED = 16


class Identities:
    """The ids in the last message of a connection: their 48 bytes and their two UUIDs."""

    __slots__ = ("raw", "session_id", "upstairs_id")

    def __init__(self) -> None:
        self.raw = b""
        self.upstairs_id = self.session_id = UUID(int=0)

    def learn(self, raw: bytes) -> None:
        """Take over the ids in ``raw``. Raises :class:`Malformed`."""
        upstairs_id, session_id = uuid_from_wire(raw[:24]), uuid_from_wire(raw[24:])
        self.raw, self.upstairs_id, self.session_id = raw, upstairs_id, session_id


def _thawed(cls: type[m.Message]) -> Callable[..., Any]:
    """The unfrozen twin of a message class: same slots, quick ``__init__``."""
    members = [(field.name, field.type) for field in fields(cls)]  # type: ignore[arg-type]  # all are dataclasses
    bases = tuple(base for base in cls.__mro__ if base in (m.JobRequest, m.JobReply))
    return make_dataclass(f"Thawed{cls.__name__}", members, bases=bases, slots=True, eq=False)


_ThawedAck = _thawed(m.Ack)
_ThawedWrite = _thawed(m.BlockWrite)
_ThawedReadRequest = _thawed(m.ReadRequest)
_ThawedReadResponse = _thawed(m.ReadResponse)
_ThawedFlush = _thawed(m.Flush)

ACKS: dict[int, type[m.Ack]] = {
    cls.TAG: cls
    for cls in (
        m.ExtentLiveRepairAckId,
        m.ExtentLiveAckId,
        m.WriteAck,
        m.FlushAck,
        m.BarrierAck,
        m.WriteUnwrittenAck,
    )
}
"""The acks without a payload, by tag."""


def make_ack(cls: type[m.Ack], known: Identities, job_id: int, result: CrucibleError | None) -> m.Ack:
    """An ack of this class with the known ids."""
    ack: m.Ack = _ThawedAck(known.upstairs_id, known.session_id, job_id, result)
    ack.__class__ = cls
    return ack


_dependency_structs = [struct.Struct(f"<{count}Q") for count in range(_DEPENDENCIES_COMPILED)]


def _dependencies(frame: memoryview, count: int) -> tuple[tuple[int, ...], int]:
    """The dependencies of a job request, and the offset behind them."""
    if count < _DEPENDENCIES_COMPILED:
        return _dependency_structs[count].unpack_from(frame, _DEPENDENCIES_AT), _DEPENDENCIES_AT + 8 * count
    # Safety: nothing is allocated for a count before its bytes are there.
    if 8 * count > len(frame) - _DEPENDENCIES_AT or count > LIST_ITEMS_MAX:
        raise Malformed(f"field dependencies: {count} are announced, the frame has {len(frame)} bytes")
    return struct.unpack_from(f"<{count}Q", frame, _DEPENDENCIES_AT), _DEPENDENCIES_AT + 8 * count


def _tail(frame: memoryview, offset: int, length: int) -> memoryview:
    """The data of a bulk message: the last ``length`` bytes of the frame (§1.3), of which the rest is at ``offset``."""
    size = len(frame)
    if length > size - offset:
        raise Malformed(f"{length} bytes of data are announced, but the frame has only {size - offset} left")
    return frame[size - length :]


def _bulk(frame: memoryview, offset: int) -> memoryview:
    (length,) = _ONE.unpack_from(frame, offset)
    return _tail(frame, offset + 8, length)


def _too_many(count: int) -> Malformed:
    return Malformed(f"{count} block contexts are announced, more than the {BLOCKS_MAX} that make sense")


def _decode_ack(frame: memoryview, known: Identities) -> m.Message:
    _, tag, raw, job_id, failed = _REPLY_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    if failed > 1:
        raise Malformed(f"field result: it begins with {failed}, but only 0 (Ok) and 1 (Err) exist")
    return make_ack(ACKS[tag], known, job_id, ERROR.decode(frame, ACK_BYTES)[0] if failed else None)


def _decode_read_request(frame: memoryview, known: Identities) -> m.Message:
    _, _, raw, job_id, count = _REQUEST_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    dependencies, offset = _dependencies(frame, count)
    start, blocks = _TWO.unpack_from(frame, offset)
    request = _ThawedReadRequest(known.upstairs_id, known.session_id, job_id, dependencies, start, blocks)
    request.__class__ = m.ReadRequest
    return request  # type: ignore[no-any-return]  # a twin that has become what it should be


def _decode_flush(frame: memoryview, known: Identities) -> m.Message:
    _, _, raw, job_id, count = _REQUEST_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    dependencies, offset = _dependencies(frame, count)
    flush_number, gen_number, options = _FLUSH_TAIL.unpack_from(frame, offset)
    snapshot, limit = None, None
    if options:  # either is there, or something is wrong
        snapshot, offset = _SNAPSHOT_NAME.decode(frame, offset + 16)
        limit, offset = _EXTENT_LIMIT.decode(frame, offset)
    flush = _ThawedFlush(
        known.upstairs_id, known.session_id, job_id, dependencies, flush_number, gen_number, snapshot, limit
    )
    flush.__class__ = m.Flush
    return flush  # type: ignore[no-any-return]


def _written_blocks(frame: memoryview, offset: int) -> tuple[int, BlockContexts, int]:
    """Where a write begins, the contexts of its blocks, and the offset behind them."""
    start, blocks = _TWO.unpack_from(frame, offset)
    if blocks > BLOCKS_MAX:
        raise _too_many(blocks)
    return (start, *decode_write_contexts(frame, offset + _TWO.size, blocks))


def _decode_write(frame: memoryview, known: Identities) -> m.Message:
    _, tag, raw, job_id, count = _REQUEST_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    dependencies, offset = _dependencies(frame, count)
    if len(frame) - offset >= _ONE_PLAIN_WRITE.size:
        start, blocks, value, sealed, length = _ONE_PLAIN_WRITE.unpack_from(frame, offset)
        whole = blocks == 1 and not sealed
    else:
        whole = False
    if whole:  # the most frequent write of all
        contexts = one_plain_block(value)
        data = _tail(frame, offset + _ONE_PLAIN_WRITE.size, length)
    else:
        start, contexts, offset = _written_blocks(frame, offset)
        data = _bulk(frame, offset)
    write = _ThawedWrite(known.upstairs_id, known.session_id, job_id, dependencies, start, contexts, data)
    write.__class__ = m.Write if tag == m.Write.TAG else m.WriteUnwritten
    return write  # type: ignore[no-any-return]


def decode_write_by_reference(frame: memoryview, known: Identities, memory: memoryview) -> m.Message:
    """A Write whose data lie in ``memory``: in place of them, its frame ends with their size and their offset there.

    Raises :class:`Malformed` or ``struct.error``.
    """
    _, _, raw, job_id, count = _REQUEST_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    dependencies, offset = _dependencies(frame, count)
    start, contexts, offset = _written_blocks(frame, offset)
    size, begin = _TWO.unpack_from(frame, offset)
    if offset + _TWO.size != len(frame) or begin + size > len(memory):
        raise Malformed(f"{size} bytes at {begin} are not in the {len(memory)} bytes of memory that were shown")
    data = memory[begin : begin + size]
    return m.Write(known.upstairs_id, known.session_id, job_id, dependencies, start, contexts, data)


def _decode_read_response(frame: memoryview, known: Identities) -> m.Message:
    _, _, raw, job_id, failed = _REPLY_HEAD.unpack_from(frame)
    if raw != known.raw:
        known.learn(raw)
    blocks: BlockContexts | CrucibleError
    if failed == 0:
        (count,) = _ONE.unpack_from(frame, ACK_BYTES)
        if count > BLOCKS_MAX:
            raise _too_many(count)
        blocks, offset = decode_read_contexts(frame, ACK_BYTES + 8, count)
    elif failed == 1:
        blocks, offset = ERROR.decode(frame, ACK_BYTES)
    else:
        raise Malformed(f"field blocks: it begins with {failed}, but only 0 (Ok) and 1 (Err) exist")
    response = _ThawedReadResponse(known.upstairs_id, known.session_id, job_id, blocks, _bulk(frame, offset))
    response.__class__ = m.ReadResponse
    return response  # type: ignore[no-any-return]


DECODERS: dict[int, Callable[[memoryview, Identities], m.Message]] = {
    **dict.fromkeys(ACKS, _decode_ack),
    m.ReadRequest.TAG: _decode_read_request,
    m.ReadResponse.TAG: _decode_read_response,
    m.Flush.TAG: _decode_flush,
    m.Write.TAG: _decode_write,
    m.WriteUnwritten.TAG: _decode_write,
}
"""By tag: a whole frame, LEN and TAG included, to its message. They raise :class:`Malformed` or ``struct.error``."""


def ids_to_wire(upstairs_id: UUID, session_id: UUID) -> bytes:
    """Both ids as they stand in every job message: 48 bytes."""
    return _IDS.pack(UUID_BYTES, upstairs_id.bytes, UUID_BYTES, session_id.bytes)


def _encode_ack(message: m.Ack) -> Parts:
    upstairs, session = message.upstairs_id.bytes, message.session_id.bytes
    if message.result is None:
        return [_ACK_OUT.pack(ACK_BYTES, message.TAG, 16, upstairs, 16, session, message.job_id, 0)]
    parts: Parts = []
    ERROR.encode(message.result, parts)
    payload = b"".join(parts)
    length = checked_length(ACK_BYTES + len(payload))
    head = _ACK_OUT.pack(length, message.TAG, 16, upstairs, 16, session, message.job_id, 1)
    return [head + payload]


@lru_cache(maxsize=64)
def request_struct(dependencies: int) -> struct.Struct:
    """LEN, TAG, ids, job id, that many dependencies with their count, and two u64: the start of most job requests."""
    return struct.Struct(f"<II48sQQ{dependencies}QQQ")


def flat(data: memoryview) -> memoryview:
    """Block data as a one-dimensional view of bytes, so that its length is its size. Raises ``ValueError``."""
    if data.format == "B" and data.ndim == 1 and data.c_contiguous:
        return data
    if not data.c_contiguous:
        raise ValueError("field data: the bytes are not contiguous")
    return data.cast("B")


def checked_length(length: int) -> int:
    """The length of a frame, if it may be sent. Raises ``ValueError`` above :data:`FRAME_BYTES_MAX`."""
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"the frame would have {length} bytes, but a peer takes at most {FRAME_BYTES_MAX}")
    return length


def _request_head(message: m.BlockWrite | m.ReadRequest | m.Flush, extra: int, first: int, second: int) -> bytes:
    """The start of a job request with ``extra`` bytes still to come, ending in the two numbers."""
    dependencies = message.dependencies
    count = len(dependencies)
    if count > LIST_ITEMS_MAX:
        raise ValueError(f"{count} dependencies are more than {LIST_ITEMS_MAX}")
    form = request_struct(count)
    ids = ids_to_wire(message.upstairs_id, message.session_id)
    length = checked_length(form.size + extra)
    return form.pack(length, message.TAG, ids, message.job_id, count, *dependencies, first, second)


def _encode_read_request(message: m.ReadRequest) -> Parts:
    return [_request_head(message, 0, message.start, message.count)]


def _encode_flush(message: m.Flush) -> Parts:
    if message.snapshot_details is None and message.extent_limit is None:
        return [_request_head(message, 2, message.flush_number, message.gen_number) + b"\0\0"]
    parts: Parts = []
    _SNAPSHOT_NAME.encode(message.snapshot_details, parts)
    _EXTENT_LIMIT.encode(message.extent_limit, parts)
    tail = b"".join(parts)
    return [_request_head(message, len(tail), message.flush_number, message.gen_number) + tail]


def _encode_write(message: m.BlockWrite) -> Parts:
    contexts, data = message.contexts, flat(message.data)
    encoded, size = encode_write_contexts(contexts), len(data)
    if len(contexts) > BLOCKS_MAX:
        raise ValueError(f"{len(contexts)} blocks are more than the {BLOCKS_MAX} that any frame could hold")
    head = _request_head(message, len(encoded) + 8 + size, message.start, len(contexts))
    header = b"".join((head, encoded, _ONE.pack(size)))
    return [header, data] if size else [header]


def _encode_read_response(message: m.ReadResponse) -> Parts:
    blocks, data = message.blocks, flat(message.data)
    size = len(data)
    encoded: Buffer
    if isinstance(blocks, CrucibleError):
        parts: Parts = []
        ERROR.encode(blocks, parts)
        failed, encoded = 1, b"".join(parts)
    elif len(blocks) > BLOCKS_MAX:
        raise ValueError(f"{len(blocks)} blocks are more than the {BLOCKS_MAX} that any frame could hold")
    else:
        failed, encoded = 0, _ONE.pack(len(blocks)) + encode_read_contexts(blocks)
    ids = ids_to_wire(message.upstairs_id, message.session_id)
    length = checked_length(ACK_BYTES + len(encoded) + 8 + size)
    head = ACK_STRUCT.pack(length, message.TAG, ids, message.job_id, failed)
    header = b"".join((head, encoded, _ONE.pack(size)))
    return [header, data] if size else [header]


ENCODERS: dict[type[m.Message], Callable[[Any], Parts]] = {
    **dict.fromkeys(ACKS.values(), _encode_ack),
    m.ReadRequest: _encode_read_request,
    m.ReadResponse: _encode_read_response,
    m.Flush: _encode_flush,
    m.Write: _encode_write,
    m.WriteUnwritten: _encode_write,
}
"""By class: a message to the buffers of its whole frame. They raise ``ValueError`` or ``struct.error``."""
