"""Many frames of one kind at once: what a batch of guest requests becomes on a connection.

What it is for: requests that arrived together are sent together, by one ``sendmsg`` and without a message object for
each. The ids are packed once, all contexts are encoded in one call, and a frame costs one ``struct`` more.

What it guarantees: the bytes are those of :func:`crucible_emu.wire.frames.encode`, frame after frame. Job ids count up
from the first one. Whatever would be refused there is refused here (:class:`LocalError`), and then nothing of the
train was made.

Block data up to :data:`COPIED_BYTES_MAX` a job are copied between the headers, so that a train of small writes is one
buffer: that costs less than two more pieces in ``sendmsg``, and not at all when three mirrors are sent the same train.
Larger data stay where they are, and a train has up to two buffers a job. A kernel takes 1,024 buffers at once: a driver
has to cut longer lists.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from itertools import count as count_from
from uuid import UUID

import numpy as np

from crucible_emu.errors import LocalError
from crucible_emu.integrity import BlockContexts, Rows
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import BLOCKS_MAX, BY_REFERENCE_TAG, FRAME_BYTES_MAX, LIST_ITEMS_MAX
from crucible_emu.wire.contexts import WRITE_PLAIN, WRITE_SEALED, encode_write_contexts, write_context_ends
from crucible_emu.wire.hot import ACK_BYTES, ids_to_wire
from crucible_emu.wire.primitives.bincode import U32_STRUCT, U64_STRUCT, Parts

COPIED_BYTES_MAX = 4096

_ACK = np.dtype([("head", "V56"), ("job_id", "<u8"), ("result", "<u4")])
assert _ACK.itemsize == ACK_BYTES
_FEW = 8  # below, plain Python is quicker than numpy


@lru_cache(maxsize=64)
def _request(dependencies: int) -> struct.Struct:
    """LEN, TAG and ids (52 bytes), job id, dependencies with their count, two u64."""
    return struct.Struct(f"<I52sQQ{dependencies}QQQ")


def encode_write_train(
    upstairs_id: UUID,
    session_id: UUID,
    first_job_id: int,
    dependencies: Sequence[Sequence[int]],
    starts: Sequence[int],
    counts: Sequence[int],
    contexts: BlockContexts,
    rows: Rows,
    *,
    unwritten: bool = False,
    reference: int | None = None,
) -> Parts:
    """Write (or WriteUnwritten) frames for n jobs: job i writes ``counts[i]`` blocks from block ``starts[i]`` on.

    ``contexts`` and ``rows`` (uint8, shape (blocks, block size), contiguous) hold the blocks of all jobs, job after
    job; large ones must not change before they are sent. ``reference``: instead of the data, frames of Writes say where
    they are in memory that the peer can look into, the first at this offset. Raises :class:`LocalError`.
    """
    _same_lengths(dependencies, starts, counts)
    blocks, block_size = rows.shape
    if not len(contexts) == blocks == sum(counts):
        raise LocalError(f"a train of {sum(counts)} blocks has {len(contexts)} contexts and {blocks} rows")
    if not rows.flags.c_contiguous:
        raise LocalError("the rows of a train are not contiguous")
    tag = m.WriteUnwritten.TAG if unwritten else m.Write.TAG
    if reference is not None:
        if unwritten:
            raise LocalError("a WriteUnwritten does not go by reference")
        tag = BY_REFERENCE_TAG
    head = U32_STRUCT.pack(tag) + ids_to_wire(upstairs_id, session_id)
    data = rows.data.cast("B") if rows.size else memoryview(b"")
    train: Parts = []
    block = begin = 0
    try:
        encoded = encode_write_contexts(contexts)
        ends = _context_ends(contexts, counts, len(encoded))
        for job_id, needed, start, count, end in zip(count_from(first_job_id), dependencies, starts, counts, ends):
            form = _request(len(needed))
            size = count * block_size
            length = form.size + end - begin + (8 + size if reference is None else 16)
            if length > FRAME_BYTES_MAX or count > BLOCKS_MAX or len(needed) > LIST_ITEMS_MAX:
                raise ValueError(f"job {job_id} has {count} blocks and {len(needed)} dependencies: {length} bytes")
            packed = form.pack(length, head, job_id, len(needed), *needed, start, count)
            where = b"" if reference is None else U64_STRUCT.pack(reference + block)
            train.append(packed + encoded[begin:end] + U64_STRUCT.pack(size) + where)
            if size and reference is None:
                train.append(data[block : block + size])
            block += size
            begin = end
    except (ValueError, struct.error) as error:
        raise LocalError(f"a train of writes cannot be sent: {error}") from error
    return [b"".join(train)] if reference is not None or len(data) <= COPIED_BYTES_MAX * len(counts) else train


def encode_read_train(
    upstairs_id: UUID,
    session_id: UUID,
    first_job_id: int,
    dependencies: Sequence[Sequence[int]],
    starts: Sequence[int],
    counts: Sequence[int],
) -> bytes:
    """ReadRequest frames for n jobs: job i reads ``counts[i]`` blocks from block ``starts[i]`` on.

    Raises :class:`LocalError`.
    """
    _same_lengths(dependencies, starts, counts)
    head = U32_STRUCT.pack(m.ReadRequest.TAG) + ids_to_wire(upstairs_id, session_id)
    train: list[bytes] = []
    try:
        for job_id, needed, start, count in zip(count_from(first_job_id), dependencies, starts, counts):
            if len(needed) > LIST_ITEMS_MAX:
                raise ValueError(f"job {job_id} has {len(needed)} dependencies, more than {LIST_ITEMS_MAX}")
            form = _request(len(needed))
            train.append(form.pack(form.size, head, job_id, len(needed), *needed, start, count))
    except (ValueError, struct.error) as error:
        raise LocalError(f"a train of reads cannot be sent: {error}") from error
    return b"".join(train)


def encode_ack_train(cls: type[m.Ack], upstairs_id: UUID, session_id: UUID, job_ids: Sequence[int]) -> bytes:
    """Ok acks of one class for these jobs, in their order. Raises :class:`LocalError`."""
    head = struct.pack("<II", ACK_BYTES, cls.TAG) + ids_to_wire(upstairs_id, session_id)
    try:
        if len(job_ids) < _FEW:
            return b"".join(head + U64_STRUCT.pack(job_id) + b"\0\0\0\0" for job_id in job_ids)
        table = np.frombuffer(bytearray((head + bytes(12)) * len(job_ids)), _ACK)
        table["job_id"] = np.array(job_ids, np.uint64)
        return table.tobytes()
    except (ValueError, OverflowError, struct.error) as error:
        raise LocalError(f"a train of {cls.__name__} cannot be sent: {error}") from error


def _same_lengths(*columns: Sequence[object]) -> None:
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise LocalError(f"dependencies, starts and counts of a train differ in number: {sorted(lengths)}")


def _context_ends(contexts: BlockContexts, counts: Sequence[int], size_bytes: int) -> Iterable[int]:
    """Where each job's contexts end among the encoded ones of the train, in bytes."""
    blocks = len(contexts)
    if blocks and size_bytes in (blocks * WRITE_PLAIN.itemsize, blocks * WRITE_SEALED.itemsize):
        size = size_bytes // blocks
        return (end * size for end in accumulate(counts))
    ends = np.concatenate(([0], write_context_ends(contexts)))
    return [int(end) for end in ends[np.cumsum(counts, dtype=np.int64)]]
