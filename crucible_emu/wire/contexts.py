"""Block contexts: arrays to bytes and back, all blocks of a message at once (wire-protocol.md §1.3, §3.2).

What it is for: a context has one of two sizes in a write (9 bytes plain, 37 sealed) and one of three in a read
response (4 empty, 32 sealed, 12 plain). In nearly every message all have the same, so they are a packed table which
numpy reads and writes in one call. Where kinds are mixed, the entries are walked once to find where each begins, and
then each kind is gathered with numpy. A single block, the most frequent case of all, is done by hand: numpy's floor
of several µs would cost more than the whole rest of the message.

What it guarantees: no Python object per block, and no array for a count whose bytes are not there (:data:`BLOCKS_MAX`
is the other bound). The arrays are copies: contexts stay valid whatever becomes of the receive buffer. Decoding raises
:class:`Malformed`, encoding ``ValueError`` for a kind that has no bytes.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_emu.integrity import EMPTY, ENCRYPTED, NONCE_BYTES, PLAIN, TAG_BYTES, BlockContexts
from crucible_emu.wire.constants import BLOCKS_MAX
from crucible_emu.wire.primitives.bincode import U32_STRUCT, U64_STRUCT, Buffer, FieldType, Malformed, Parts, read_count

_NONCE = ("nonce", "u1", (NONCE_BYTES,))
_TAG = ("tag", "u1", (TAG_BYTES,))
WRITE_PLAIN = np.dtype([("hash", "<u8"), ("mark", "u1")])
WRITE_SEALED = np.dtype([("hash", "<u8"), ("mark", "u1"), _NONCE, _TAG])
READ_EMPTY = np.dtype([("mark", "<u4")])
READ_SEALED = np.dtype([("mark", "<u4"), _NONCE, _TAG])
READ_PLAIN = np.dtype([("mark", "<u4"), ("hash", "<u8")])

# What stands in `mark` for each of our kinds. In reads it is the kind itself.
_WRITE_MARKS = {PLAIN: 0, ENCRYPTED: 1}
_WRITE_FORMS = {PLAIN: WRITE_PLAIN, ENCRYPTED: WRITE_SEALED}
_READ_MARKS = {EMPTY: EMPTY, ENCRYPTED: ENCRYPTED, PLAIN: PLAIN}
_READ_FORMS = {EMPTY: READ_EMPTY, ENCRYPTED: READ_SEALED, PLAIN: READ_PLAIN}

_HASH = np.dtype(np.uint64)
_BYTE = np.dtype(np.uint8)
_ONE_WRITE = struct.Struct("<QB")
_ONE_READ = struct.Struct("<IQ")
_SHARED_KINDS = 4096


def _constant_kinds(kind: int) -> npt.NDArray[np.uint8]:
    kinds = np.full(_SHARED_KINDS, kind, np.uint8)
    kinds.flags.writeable = False  # slices of it are handed out by many messages
    return kinds


_PLAIN_BYTE, _SEALED_BYTE = bytes([PLAIN]), bytes([ENCRYPTED])
_KINDS = {kind: _constant_kinds(kind) for kind in (EMPTY, ENCRYPTED, PLAIN)}
_ONE_PLAIN, _ONE_SEALED = _KINDS[PLAIN][:1], _KINDS[ENCRYPTED][:1]


def _kinds(kind: int, count: int) -> npt.NDArray[np.uint8]:
    """``count`` times the same kind; read-only up to 4096, where it is a slice of a shared array."""
    return _KINDS[kind][:count] if count <= _SHARED_KINDS else np.full(count, kind, np.uint8)


def decode_write_contexts(frame: memoryview, offset: int, count: int) -> tuple[BlockContexts, int]:
    """Contexts of ``count`` blocks of a write, and the offset behind them.

    A plain block's ``on_disk_hash`` is its hash: both are what the sender claims until the data are verified.
    Where any block is sealed, it is ``None``.
    """
    if count == 1:
        one = _one_write(frame, offset)
        if one is not None:
            return one
    if count == 0:
        return BlockContexts.empty(0), offset
    kind = ENCRYPTED if offset + 8 < len(frame) and frame[offset + 8] else PLAIN
    table = _uniform(frame, offset, count, _WRITE_FORMS[kind], _WRITE_MARKS[kind])
    if table is None:
        return _decode_mixed_writes(frame, offset, count)
    end = offset + table.nbytes
    hashes = table["hash"].astype(_HASH)
    if kind == PLAIN:
        return BlockContexts(_kinds(PLAIN, count), hashes, None, None, hashes), end
    return BlockContexts(_kinds(ENCRYPTED, count), hashes, table["nonce"].copy(), table["tag"].copy()), end


def decode_read_contexts(frame: memoryview, offset: int, count: int) -> tuple[BlockContexts, int]:
    """Contexts of ``count`` blocks of a read response, and the offset behind them. Hashes of sealed blocks are 0."""
    if count == 1:
        one = _one_read(frame, offset)
        if one is not None:
            return one
    if count == 0:
        return BlockContexts.empty(0), offset
    kind = frame[offset] if offset < len(frame) else EMPTY
    table = _uniform(frame, offset, count, _READ_FORMS[kind], kind) if kind in _READ_FORMS else None
    if table is None:
        return _decode_mixed_reads(frame, offset, count)
    end = offset + table.nbytes
    if kind == PLAIN:
        return BlockContexts(_kinds(PLAIN, count), table["hash"].astype(_HASH)), end
    hashes = np.zeros(count, _HASH)
    if kind == EMPTY:
        return BlockContexts(_kinds(EMPTY, count), hashes), end
    return BlockContexts(_kinds(ENCRYPTED, count), hashes, table["nonce"].copy(), table["tag"].copy()), end


def one_plain_block(value: int) -> BlockContexts:
    """The contexts of one plain block with this hash, as :func:`decode_write_contexts` gives them."""
    hashes = np.empty(1, _HASH)
    hashes[0] = value
    return BlockContexts(_ONE_PLAIN, hashes, None, None, hashes)


def one_sealed_block(value: int, seal: bytes) -> BlockContexts:
    """The same of one encrypted block with this nonce and tag; of a read response, where the hash is not known, 0."""
    hashes = np.empty(1, _HASH)
    hashes[0] = value
    nonce = np.ndarray((1, NONCE_BYTES), _BYTE, seal)
    tag = np.ndarray((1, TAG_BYTES), _BYTE, seal, NONCE_BYTES)
    return BlockContexts(_ONE_SEALED, hashes, nonce, tag)


def _one_write(frame: memoryview, offset: int) -> tuple[BlockContexts, int] | None:
    size = len(frame) - offset
    if size >= 9 and frame[offset + 8] == 0:
        (value,) = U64_STRUCT.unpack_from(frame, offset)
        return one_plain_block(value), offset + 9
    if size >= 37 and frame[offset + 8] == 1:
        (value,) = U64_STRUCT.unpack_from(frame, offset)
        return one_sealed_block(value, frame[offset + 9 : offset + 37].tobytes()), offset + 37
    return None


def _one_read(frame: memoryview, offset: int) -> tuple[BlockContexts, int] | None:
    size = len(frame) - offset
    mark = U32_STRUCT.unpack_from(frame, offset)[0] if size >= 4 else -1
    if mark == PLAIN and size >= 12:
        hashes = np.empty(1, _HASH)
        (hashes[0],) = U64_STRUCT.unpack_from(frame, offset + 4)
        return BlockContexts(_ONE_PLAIN, hashes), offset + 12
    if mark == ENCRYPTED and size >= 32:
        return one_sealed_block(0, frame[offset + 4 : offset + 32].tobytes()), offset + 32
    return None


def _uniform(frame: memoryview, offset: int, count: int, form: np.dtype[Any], mark: int) -> npt.NDArray[np.void] | None:
    """The contexts as a table over the frame, if all of them have this form."""
    if offset + count * form.itemsize > len(frame):
        return None
    table: npt.NDArray[np.void] = np.frombuffer(frame, form, count, offset)
    return table if np.count_nonzero(table["mark"] == mark) == count else None


def _decode_mixed_writes(frame: memoryview, offset: int, count: int) -> tuple[BlockContexts, int]:
    sizes = {0: WRITE_PLAIN.itemsize, 1: WRITE_SEALED.itemsize}
    starts = array("q")
    try:
        for _ in range(count):
            starts.append(offset)
            offset += sizes[frame[offset + 8]]
    except IndexError:
        raise Malformed("the frame ends inside the block contexts") from None
    except KeyError as error:
        raise Malformed(f"an encryption context's option is {error}, but only 0 and 1 exist") from None
    if offset > len(frame):
        raise Malformed("the frame ends inside the block contexts")
    bytes_, where = np.frombuffer(frame, _BYTE), np.array(starts, np.int64)
    sealed = bytes_[where + 8] == 1
    hashes = _gather(bytes_, where, 8).view("<u8")[:, 0].astype(_HASH)
    nonce, tag = _gather_sealed(bytes_, where + 9, sealed)
    return BlockContexts(np.where(sealed, np.uint8(ENCRYPTED), np.uint8(PLAIN)), hashes, nonce, tag), offset


def _decode_mixed_reads(frame: memoryview, offset: int, count: int) -> tuple[BlockContexts, int]:
    sizes = {kind: form.itemsize for kind, form in _READ_FORMS.items()}
    starts = array("q")
    try:
        for _ in range(count):
            starts.append(offset)
            offset += sizes[frame[offset]]
    except IndexError:
        raise Malformed("the frame ends inside the block contexts") from None
    except KeyError as error:
        raise Malformed(f"there is no block context {error}, the last is {PLAIN}") from None
    if offset > len(frame):
        raise Malformed("the frame ends inside the block contexts")
    bytes_, where = np.frombuffer(frame, _BYTE), np.array(starts, np.int64)
    marks = _gather(bytes_, where, 4).view("<u4")[:, 0]
    if marks.max() > PLAIN:  # the walk looked at the lowest byte of the mark only
        raise Malformed(f"there is no block context {marks.max()}, the last is {PLAIN}")
    kind = marks.astype(np.uint8)
    hashes = np.zeros(count, _HASH)
    plain = kind == PLAIN
    hashes[plain] = _gather(bytes_, where[plain] + 4, 8).view("<u8")[:, 0]
    nonce, tag = _gather_sealed(bytes_, where + 4, kind == ENCRYPTED)
    return BlockContexts(kind, hashes, nonce, tag), offset


def _gather(source: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """``size`` bytes from each start: shape (n, size), contiguous."""
    found: npt.NDArray[np.uint8] = source[starts[:, None] + np.arange(size)]
    return found


def _gather_sealed(
    source: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], sealed: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]:
    """Nonces and tags of the sealed blocks, zeros in the rows of the others; ``None`` when none is sealed."""
    if not sealed.any():
        return None, None
    nonce = np.zeros((len(starts), NONCE_BYTES), np.uint8)
    tag = np.zeros((len(starts), TAG_BYTES), np.uint8)
    nonce[sealed] = _gather(source, starts[sealed], NONCE_BYTES)
    tag[sealed] = _gather(source, starts[sealed] + NONCE_BYTES, TAG_BYTES)
    return nonce, tag


def encode_write_contexts(contexts: BlockContexts) -> Buffer:
    """The contexts of a write, without their count. Raises ``ValueError``: a written block is not empty."""
    kinds = contexts.kind.tobytes()
    if kinds == _PLAIN_BYTE:
        return _ONE_WRITE.pack(contexts.hash.item(0), 0)
    if kinds == _SEALED_BYTE and contexts.nonce is not None and contexts.tag is not None:
        return _ONE_WRITE.pack(contexts.hash.item(0), 1) + contexts.nonce.tobytes() + contexts.tag.tobytes()
    return _encode(contexts, kinds, _WRITE_FORMS, _WRITE_MARKS)


def encode_read_contexts(contexts: BlockContexts) -> Buffer:
    """The contexts of a read response, without their count."""
    kinds = contexts.kind.tobytes()
    if kinds == _PLAIN_BYTE:
        return _ONE_READ.pack(PLAIN, contexts.hash.item(0))
    if kinds == _SEALED_BYTE and contexts.nonce is not None and contexts.tag is not None:
        return U32_STRUCT.pack(ENCRYPTED) + contexts.nonce.tobytes() + contexts.tag.tobytes()
    return _encode(contexts, kinds, _READ_FORMS, _READ_MARKS)


def write_context_ends(contexts: BlockContexts) -> npt.NDArray[np.int64]:
    """Where each context ends in what :func:`encode_write_contexts` gives; int64[n]."""
    sizes = np.where(contexts.kind == ENCRYPTED, np.int64(WRITE_SEALED.itemsize), np.int64(WRITE_PLAIN.itemsize))
    return np.cumsum(sizes)


def _encode(contexts: BlockContexts, kinds: bytes, forms: dict[int, np.dtype[Any]], marks: dict[int, int]) -> Buffer:
    if not kinds:
        return b""
    first = kinds[0]
    if kinds.count(first) == len(kinds) and first in forms:
        return _table(contexts, forms[first], marks[first]).tobytes()
    for kind in sorted(set(kinds) - set(forms)):
        name = {EMPTY: "no context at all"}.get(kind, f"a context of the unknown kind {kind}")
        raise ValueError(f"block {kinds.index(kind)} has {name}")
    sizes = np.zeros(1 + max(forms), np.int64)
    for kind, form in forms.items():
        sizes[kind] = form.itemsize
    lengths = sizes[contexts.kind]
    starts = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), np.uint8)
    for kind, form in forms.items():
        rows = contexts.kind == kind
        if not rows.any():
            continue
        table = _table(contexts[rows], form, marks[kind])
        where = starts[rows][:, None] + np.arange(form.itemsize)
        out[where] = np.frombuffer(table, _BYTE).reshape(len(table), form.itemsize)
    return out.tobytes()


def _table(contexts: BlockContexts, form: np.dtype[Any], mark: int) -> npt.NDArray[np.void]:
    table: npt.NDArray[np.void] = np.empty(len(contexts), form)
    table["mark"] = mark
    names = form.names or ()
    if "hash" in names:
        table["hash"] = contexts.hash
    if "nonce" in names:
        if contexts.nonce is None or contexts.tag is None:
            raise ValueError("a block is said to be encrypted, but the contexts carry no nonce and tag")
        table["nonce"] = contexts.nonce
        table["tag"] = contexts.tag
    return table


class WriteContexts(FieldType[BlockContexts]):
    """A write's list of contexts, with its count."""

    def encode(self, value: BlockContexts, parts: Parts) -> None:
        parts.append(_count(value))
        parts.append(encode_write_contexts(value))

    def decode(self, frame: memoryview, offset: int) -> tuple[BlockContexts, int]:
        count, offset = read_count(frame, offset, WRITE_PLAIN.itemsize, "block contexts", BLOCKS_MAX)
        return decode_write_contexts(frame, offset, count)


class ReadContexts(FieldType[BlockContexts]):
    """A read response's list of contexts, with its count."""

    def encode(self, value: BlockContexts, parts: Parts) -> None:
        parts.append(_count(value))
        parts.append(encode_read_contexts(value))

    def decode(self, frame: memoryview, offset: int) -> tuple[BlockContexts, int]:
        count, offset = read_count(frame, offset, READ_EMPTY.itemsize, "block contexts", BLOCKS_MAX)
        return decode_read_contexts(frame, offset, count)


def _count(contexts: BlockContexts) -> bytes:
    if len(contexts) > BLOCKS_MAX:
        raise ValueError(f"{len(contexts)} blocks are more than the {BLOCKS_MAX} that any frame could hold")
    return len(contexts).to_bytes(8, "little")
