"""Runs of like messages as columns: what a batch of guest requests looks like where it arrives.

What it is for: requests that were sent together arrive together, and most are alike: one block written or read, plain
or encrypted, or an ack that says Ok. As objects they cost 2 to 3 µs each before anybody looks at them, as columns 0.4
to 1. A :class:`~crucible_emu.wire.decoder.Decoder` that is asked for runs gives one object for all frames of such a
kind that stand side by side; whoever has no use for it takes :meth:`messages` of it, which are what would have come
otherwise.

What it guarantees: only frames that are whole and exactly of the form are taken (ids as in the message before, a number
of dependencies that any guest's request has, one block, plain or encrypted as the one before, its data the rest of the
frame). Anything else ends the run and goes the way of single messages, which finds out what it is, or what is wrong
with it.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self
from uuid import UUID

import numpy as np

from crucible_emu.integrity import ENCRYPTED, PLAIN, SEAL_BYTES, BlockContexts
from crucible_emu.wire import messages as m
from crucible_emu.wire.contexts import one_plain_block, one_sealed_block
from crucible_emu.wire.hot import ACK_BYTES, ACK_STRUCT, ACKS, Identities, ids_to_wire
from crucible_emu.wire.primitives.bincode import U64_STRUCT

_REQUEST = struct.Struct("<II48sQQ")  # LEN, TAG, both ids, job id, number of dependencies
_ONE_BLOCK = struct.Struct("<QQQB0sQ")  # start, 1, hash, no encryption context, length of the data
_ONE_SEALED = struct.Struct(f"<QQQB{SEAL_BYTES}sQ")  # the same with one: nonce and tag
_SPAN = struct.Struct("<QQ")  # start, count
_RESPONSE = struct.Struct("<II48sQIQIQQ")  # LEN, TAG, both ids, job id, Ok, 1, plain, hash, length of the data
_SEALED_RESPONSE = struct.Struct(f"<II48sQIQI{SEAL_BYTES}sQ")  # the same with nonce and tag instead of the hash
_FEW_DEPENDENCIES = tuple(struct.Struct(f"<{count}Q") for count in range(16))
_NONE: tuple[int, ...] = ()
_READ_BYTES = _REQUEST.size + _SPAN.size
RESPONSE_BYTES = _RESPONSE.size
"""Length of a ReadResponse of one plain block without its data."""
RUN_FRAME_BYTES_MAX = 64 * 1024
"""A longer frame is no part of a run."""


class Run(m.Message, ABC):
    """Several messages of one kind."""

    __slots__ = ()

    @abstractmethod
    def messages(self) -> list[m.Message]:
        """The same, message by message."""


@dataclass(slots=True, eq=False)
class RequestRun(Run, ABC):
    """Several requests of one kind, each for one block; in lists, what each of them has."""

    upstairs_id: UUID
    session_id: UUID
    job_ids: list[int]
    dependencies: list[tuple[int, ...]]
    starts: list[int]

    def only(self, positions: Sequence[int]) -> Self:
        """Those at ``positions``, in that order."""
        members = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: [member[at] for at in positions] for name, member in members.items() if isinstance(member, list)
        }
        return replace(self, **chosen)


@dataclass(slots=True, eq=False)
class WriteRun(RequestRun):
    """Writes of one block each. ``hashes``: what the sender says; ``data`` are views into the received bytes.
    ``seals``: nonce and tag of each, where they are encrypted."""

    hashes: list[int]
    data: list[memoryview]
    seals: list[bytes] | None = None

    def messages(self) -> list[m.Message]:
        """The same, message by message."""
        ids = (self.upstairs_id, self.session_id)
        contexts = map(one_plain_block, self.hashes)
        if self.seals is not None:
            contexts = map(one_sealed_block, self.hashes, self.seals)
        columns = zip(self.job_ids, self.dependencies, self.starts, contexts, self.data)
        return [m.Write(*ids, job, needed, start, context, data) for job, needed, start, context, data in columns]


@dataclass(slots=True, eq=False)
class ReadRequestRun(RequestRun):
    """Requests for one block each."""

    def messages(self) -> list[m.Message]:
        """The same, message by message."""
        ids = (self.upstairs_id, self.session_id)
        columns = zip(self.job_ids, self.dependencies, self.starts)
        return [m.ReadRequest(*ids, job, needed, start, 1) for job, needed, start in columns]


@dataclass(slots=True, eq=False)
class ReadResponseRun(Run):
    """Answers to reads, each with one block. ``hashes``: what each block must have; or, where they are encrypted,
    ``seals``: nonce and tag of each."""

    upstairs_id: UUID
    session_id: UUID
    job_ids: list[int]
    hashes: list[int]
    data: list[memoryview]
    seals: list[bytes] | None = None

    def messages(self) -> list[m.Message]:
        """The same, message by message."""
        return [self.message(position) for position in range(len(self.job_ids))]

    def message(self, position: int) -> m.ReadResponse:
        """One of them."""
        if self.seals is None:
            contexts = BlockContexts(np.array([PLAIN], np.uint8), np.array([self.hashes[position]], np.uint64))
        else:
            contexts = one_sealed_block(0, self.seals[position])
        job_id, data = self.job_ids[position], self.data[position]
        return m.ReadResponse(self.upstairs_id, self.session_id, job_id, contexts, data)


@dataclass(slots=True, eq=False)
class AckRun(Run):
    """Acks of one class that say Ok."""

    cls: type[m.Ack]
    upstairs_id: UUID
    session_id: UUID
    job_ids: Sequence[int]

    def messages(self) -> list[m.Message]:
        """The same, message by message."""
        return [self.cls(self.upstairs_id, self.session_id, job_id, None) for job_id in self.job_ids]


def _writes(view: memoryview, at: int, end: int, known: Identities) -> tuple[WriteRun, int]:
    run, stop = _writes_of(_ONE_BLOCK, view, at, end, known)
    return (run, stop) if run.job_ids else _writes_of(_ONE_SEALED, view, at, end, known)


def _writes_of(form: struct.Struct, view: memoryview, at: int, end: int, known: Identities) -> tuple[WriteRun, int]:
    seals: list[bytes] = []
    sealed = form is _ONE_SEALED
    run = WriteRun(known.upstairs_id, known.session_id, [], [], [], [], [], seals if sealed else None)
    job_ids, dependencies, starts, hashes, data = run.job_ids, run.dependencies, run.starts, run.hashes, run.data
    request, one_block, raw_ids, wanted = _REQUEST.unpack_from, form.unpack_from, known.raw, m.Write.TAG
    least = _REQUEST.size + form.size
    while end - at >= least:
        length, tag, raw, job_id, count = request(view, at)
        stop = at + length
        if (
            tag != wanted
            or raw != raw_ids
            or stop > end
            or length > RUN_FRAME_BYTES_MAX
            or count >= len(_FEW_DEPENDENCIES)
        ):
            break
        begin = at + least + 8 * count
        if begin > stop:
            break
        start, blocks, value, mark, seal, size = one_block(view, begin - form.size)
        if blocks != 1 or mark != sealed or size != stop - begin:
            break
        job_ids.append(job_id)
        dependencies.append(_FEW_DEPENDENCIES[count].unpack_from(view, at + _REQUEST.size) if count else _NONE)
        starts.append(start)
        hashes.append(value)
        seals.append(seal)
        data.append(view[begin:stop])
        at = stop
    return run, at


def _read_requests(view: memoryview, at: int, end: int, known: Identities) -> tuple[ReadRequestRun, int]:
    run = ReadRequestRun(known.upstairs_id, known.session_id, [], [], [])
    job_ids, dependencies, starts = run.job_ids, run.dependencies, run.starts
    request, span, raw_ids, wanted = _REQUEST.unpack_from, _SPAN.unpack_from, known.raw, m.ReadRequest.TAG
    while end - at >= _READ_BYTES:
        length, tag, raw, job_id, count = request(view, at)
        stop = at + length
        if tag != wanted or raw != raw_ids or stop > end or count >= len(_FEW_DEPENDENCIES):
            break
        if length != _READ_BYTES + 8 * count:
            break
        start, blocks = span(view, stop - _SPAN.size)
        if blocks != 1:
            break
        job_ids.append(job_id)
        dependencies.append(_FEW_DEPENDENCIES[count].unpack_from(view, at + _REQUEST.size) if count else _NONE)
        starts.append(start)
        at = stop
    return run, at


def _read_responses(view: memoryview, at: int, end: int, known: Identities) -> tuple[ReadResponseRun, int]:
    run, stop = _read_responses_of(_RESPONSE, view, at, end, known)
    return (run, stop) if run.job_ids else _read_responses_of(_SEALED_RESPONSE, view, at, end, known)


def _read_responses_of(
    form: struct.Struct, view: memoryview, at: int, end: int, known: Identities
) -> tuple[ReadResponseRun, int]:
    proofs: list[Any] = []
    sealed = form is _SEALED_RESPONSE
    run = ReadResponseRun(known.upstairs_id, known.session_id, [], [], [])
    run.hashes, run.seals = ([], proofs) if sealed else (proofs, None)
    job_ids, data, mark = run.job_ids, run.data, ENCRYPTED if sealed else PLAIN
    response, raw_ids, wanted = form.unpack_from, known.raw, m.ReadResponse.TAG
    while end - at >= form.size:
        length, tag, raw, job_id, failed, blocks, kind, proof, size = response(view, at)
        stop, begin = at + length, at + form.size
        if tag != wanted or raw != raw_ids or stop > end or failed or blocks != 1 or kind != mark:
            break
        if size != stop - begin or length > RUN_FRAME_BYTES_MAX:
            break
        job_ids.append(job_id)
        proofs.append(proof)
        data.append(view[begin:stop])
        at = stop
    return run, at


def _acks(view: memoryview, at: int, end: int, known: Identities) -> tuple[AckRun, int]:
    (wanted,) = _TAG.unpack_from(view, at + 4)
    job_ids: list[int] = []
    raw_ids, whole = known.raw, at + (end - at) // ACK_BYTES * ACK_BYTES
    for length, tag, raw, job_id, failed in ACK_STRUCT.iter_unpack(view[at:whole]):
        if length != ACK_BYTES or tag != wanted or raw != raw_ids or failed:
            break
        job_ids.append(job_id)
    return AckRun(ACKS[wanted], known.upstairs_id, known.session_id, job_ids), at + ACK_BYTES * len(job_ids)


_TAG = struct.Struct("<I")
RUN_DECODERS: dict[int, Callable[[memoryview, int, int, Identities], tuple[Run, int]]] = {
    m.Write.TAG: _writes,
    m.ReadRequest.TAG: _read_requests,
    m.ReadResponse.TAG: _read_responses,
    **dict.fromkeys(ACKS, _acks),
}
"""By tag of the first frame, which stands at the offset, of a view whose bytes end at ``end``: the run, which may be
empty, and the offset behind it."""


RUNS = frozenset({WriteRun, ReadRequestRun, ReadResponseRun, AckRun})
"""The classes of what the decoders below give."""


class ResponseFrames(m.Message):
    """ReadResponses of one block each, as the frames that they are sent in: ``buffer`` is all of them.

    ``outs`` are where the data of each go; :meth:`prove` or, where they are ``sealed``, :meth:`seal` adds what proves
    them.
    """

    __slots__ = ("_frame_bytes", "buffer", "outs")

    def __init__(
        self, upstairs_id: UUID, session_id: UUID, job_ids: Sequence[int], block_size: int, *, sealed: bool = False
    ) -> None:
        form, kind = (_SEALED_RESPONSE, ENCRYPTED) if sealed else (_RESPONSE, PLAIN)
        self._frame_bytes = size = form.size + block_size
        self.buffer = memoryview(bytearray(size * len(job_ids)))
        ids, tag, buffer, pack = ids_to_wire(upstairs_id, session_id), m.ReadResponse.TAG, self.buffer, form.pack_into
        nothing = b"" if sealed else 0
        starts = range(0, size * len(job_ids), size)
        for start, job_id in zip(starts, job_ids):
            pack(buffer, start, size, tag, ids, job_id, 0, 1, kind, nothing, block_size)
        self.outs = [buffer[start + form.size : start + size] for start in starts]

    def prove(self, hashes: Sequence[int]) -> memoryview:
        """The data are there and have these hashes: all frames, ready to be sent."""
        pack, buffer = U64_STRUCT.pack_into, self.buffer
        for start, value in zip(range(_PROOF_AT, len(buffer), self._frame_bytes), hashes):
            pack(buffer, start, value)
        return buffer

    def seal(self, seals: Sequence[bytes]) -> memoryview:
        """The data are there and have these nonces and tags: all frames, ready to be sent."""
        buffer = self.buffer
        for start, seal in zip(range(_PROOF_AT, len(buffer), self._frame_bytes), seals):
            buffer[start : start + SEAL_BYTES] = seal
        return buffer


_PROOF_AT = RESPONSE_BYTES - 16
