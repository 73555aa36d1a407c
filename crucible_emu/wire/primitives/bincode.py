"""The part of bincode 1.3.3 that the wire uses (wire-protocol.md §2), as field types and records of them.

What it is for: a message is described once, as a table of named fields; encoder and decoder both follow that table.
Integers are little endian and of fixed width, a list is a u64 count and its items, an option is a byte 0 or 1, an enum
is a u32 index. A :class:`Record` compiles each run of neighbouring fixed-size fields into one ``struct.Struct``, so a
message without lists is one pack and one unpack.

What it guarantees: decoding any bytes gives values or :class:`Malformed`, nothing else. No count is believed before
the bytes for that many items are seen to be there. Encoding a value that has no bytes (a number too large, a text with
half a surrogate pair) raises ``ValueError``.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from crucible_emu.wire.constants import LIST_ITEMS_MAX

T = TypeVar("T")
Buffer = bytes | memoryview
Parts = list[Buffer]
"""What an encoder appends to; joined or sent piece by piece."""

U32_STRUCT = struct.Struct("<I")
U64_STRUCT = struct.Struct("<Q")
UUID_BYTES = 16
UUID_PREFIX = UUID_BYTES.to_bytes(8, "little")


class Malformed(ValueError):
    """The bytes are no encoding of what should be there; the message says which part and what is wrong with it."""


class FieldType(ABC, Generic[T]):
    """How one value of a record is encoded."""

    @abstractmethod
    def encode(self, value: T, parts: Parts) -> None:
        """Append the bytes of ``value``. Raises ``ValueError`` where it has none."""

    @abstractmethod
    def decode(self, frame: memoryview, offset: int) -> tuple[T, int]:
        """The value at ``offset`` and the offset behind it. Raises :class:`Malformed`."""


def _same(value: Any) -> Any:
    return value


class Scalar(FieldType[T]):
    """A value of fixed size: one ``struct`` code, and how the unpacked value becomes ours and back."""

    def __init__(self, code: str, to_wire: Callable[[Any], Any] = _same, from_wire: Callable[[Any], Any] = _same):
        self.code = code
        self.to_wire = to_wire
        self.from_wire = from_wire
        self._struct = struct.Struct("<" + code)

    def encode(self, value: T, parts: Parts) -> None:
        parts.append(pack(self._struct, self.to_wire(value)))

    def decode(self, frame: memoryview, offset: int) -> tuple[T, int]:
        (raw,) = unpack(self._struct, frame, offset)
        return self.from_wire(raw), offset + self._struct.size


def pack(form: struct.Struct, *values: Any) -> bytes:
    """``form`` filled with ``values``; ``ValueError`` instead of ``struct.error``."""
    try:
        return form.pack(*values)
    except struct.error as error:
        raise ValueError(f"{error} (values {values})") from error


def unpack(form: struct.Struct, frame: memoryview, offset: int) -> tuple[Any, ...]:
    """What ``form`` finds at ``offset``; :class:`Malformed` when the frame ends before."""
    try:
        return form.unpack_from(frame, offset)
    except struct.error:
        left = len(frame) - offset
        raise Malformed(f"the frame ends too early ({left} bytes left where {form.size} are needed)") from None


def to_bool(value: int) -> bool:
    """A bool on the wire is 0 or 1."""
    if value > 1:
        raise Malformed(f"a bool is {value}, but only 0 and 1 exist")
    return value == 1


def uuid_to_wire(value: UUID) -> bytes:
    """A UUID travels as a byte string of length 16: 24 bytes."""
    return UUID_PREFIX + value.bytes


def uuid_from_wire(raw: bytes) -> UUID:
    if raw[:8] != UUID_PREFIX:
        raise Malformed(f"a UUID claims {int.from_bytes(raw[:8], 'little')} bytes instead of {UUID_BYTES}")
    return UUID(bytes=raw[8:])


U8: Scalar[int] = Scalar("B")
U32: Scalar[int] = Scalar("I")
U64: Scalar[int] = Scalar("Q")
BOOL: Scalar[bool] = Scalar("B", bool, to_bool)
UUID_FIELD: Scalar[UUID] = Scalar("24s", uuid_to_wire, uuid_from_wire)


class Unit(FieldType[None]):
    """``()``: no bytes at all, ``None`` here."""

    def encode(self, value: None, parts: Parts) -> None:
        pass

    def decode(self, frame: memoryview, offset: int) -> tuple[None, int]:
        return None, offset


class Tuple(FieldType[tuple[Any, ...]]):
    """Some scalars in a row, as a plain tuple."""

    def __init__(self, *scalars: Scalar[Any]):
        self._struct = struct.Struct("<" + "".join(scalar.code for scalar in scalars))
        self._scalars = scalars

    def encode(self, value: tuple[Any, ...], parts: Parts) -> None:
        if len(value) != len(self._scalars):
            raise ValueError(f"{value!r} has {len(value)} members instead of {len(self._scalars)}")
        parts.append(pack(self._struct, *(scalar.to_wire(one) for scalar, one in zip(self._scalars, value))))

    def decode(self, frame: memoryview, offset: int) -> tuple[tuple[Any, ...], int]:
        raw = unpack(self._struct, frame, offset)
        return tuple(s.from_wire(one) for s, one in zip(self._scalars, raw)), offset + self._struct.size


def read_count(frame: memoryview, offset: int, item_bytes: int, what: str, count_max: int) -> tuple[int, int]:
    """A u64 count whose items of at least ``item_bytes`` bytes are all there, and the offset of the first.

    *Safety*: nothing may be allocated for a count that did not pass here.
    """
    (count,) = unpack(U64_STRUCT, frame, offset)
    offset += 8
    if count * item_bytes > len(frame) - offset:
        raise Malformed(f"{count} {what} are announced, but only {len(frame) - offset} bytes are left")
    if count > count_max:
        raise Malformed(f"{count} {what} are announced, more than the {count_max} that make sense")
    return count, offset


class Integers(FieldType[tuple[int, ...]]):
    """A list of integers of one width, as a tuple."""

    def __init__(self, scalar: Scalar[int], count_max: int = LIST_ITEMS_MAX):
        self._code = scalar.code
        self._item_bytes = struct.calcsize("<" + scalar.code)
        self._count_max = count_max

    def encode(self, value: tuple[int, ...], parts: Parts) -> None:
        if len(value) > self._count_max:
            raise ValueError(f"a list of {len(value)} numbers is longer than {self._count_max}")
        parts.append(pack(struct.Struct(f"<Q{len(value)}{self._code}"), len(value), *value))

    def decode(self, frame: memoryview, offset: int) -> tuple[tuple[int, ...], int]:
        count, offset = read_count(frame, offset, self._item_bytes, "list items", self._count_max)
        return struct.unpack_from(f"<{count}{self._code}", frame, offset), offset + count * self._item_bytes


class ByteString(FieldType[Buffer]):
    """A u64 length and that many bytes, as ``bytes``."""

    def encode(self, value: Buffer, parts: Parts) -> None:
        parts.append(U64_STRUCT.pack(len(value)))
        parts.append(value)

    def decode(self, frame: memoryview, offset: int) -> tuple[bytes, int]:
        length, offset = read_count(frame, offset, 1, "bytes", len(frame))
        return bytes(frame[offset : offset + length]), offset + length


class Text(FieldType[str]):
    """A byte string that is UTF-8."""

    _bytes = ByteString()

    def encode(self, value: str, parts: Parts) -> None:
        self._bytes.encode(value.encode(), parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[str, int]:
        raw, offset = self._bytes.decode(frame, offset)
        try:
            return raw.decode(), offset
        except UnicodeDecodeError as error:
            raise Malformed(f"a text is not UTF-8 ({error.reason} at byte {error.start})") from None


class Option(FieldType[T | None]):
    """0, or 1 and the value."""

    def __init__(self, inner: FieldType[T]):
        self._inner = inner

    def encode(self, value: T | None, parts: Parts) -> None:
        if value is None:
            parts.append(b"\0")
        else:
            parts.append(b"\1")
            self._inner.encode(value, parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[T | None, int]:
        present, offset = U8.decode(frame, offset)
        if present > 1:
            raise Malformed(f"an option begins with {present}, but only 0 and 1 exist")
        return self._inner.decode(frame, offset) if present else (None, offset)


class Record(FieldType[T]):
    """A struct: named fields in order, which ``make`` (called with all of them, by position) turns into a value."""

    def __init__(self, make: Callable[..., T], *fields: tuple[str, FieldType[Any]]):
        self._make = make
        self._steps: list[_Packed | _Single] = []
        run: list[tuple[str, Scalar[Any]]] = []
        for name, kind in fields:
            if isinstance(kind, Scalar):
                run.append((name, kind))
                continue
            if run:
                self._steps.append(_Packed(run))
                run = []
            self._steps.append(_Single(name, kind))
        if run:
            self._steps.append(_Packed(run))
        self.names = tuple(name for name, _ in fields)

    def encode(self, value: T, parts: Parts) -> None:
        for step in self._steps:
            step.write(value, parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[T, int]:
        values: list[Any] = []
        for step in self._steps:
            offset = step.read(frame, offset, values)
        return self._make(*values), offset


class _Packed:
    """Neighbouring fixed-size fields: one struct."""

    def __init__(self, fields: Sequence[tuple[str, Scalar[Any]]]):
        self._fields = list(fields)
        self._struct = struct.Struct("<" + "".join(kind.code for _, kind in fields))

    def write(self, value: Any, parts: Parts) -> None:
        raw = [kind.to_wire(getattr(value, name)) for name, kind in self._fields]
        try:
            parts.append(self._struct.pack(*raw))
        except struct.error as error:
            names = ", ".join(f"{name} {getattr(value, name)}" for name, _ in self._fields)
            raise ValueError(f"{error} (among {names})") from error

    def read(self, frame: memoryview, offset: int, values: list[Any]) -> int:
        try:
            raw = self._struct.unpack_from(frame, offset)
        except struct.error:
            raise Malformed(f"the frame ends before field {self._fields[-1][0]}") from None
        for (name, kind), one in zip(self._fields, raw):
            try:
                values.append(kind.from_wire(one))
            except Malformed as error:
                raise Malformed(f"field {name}: {error}") from None
        return offset + self._struct.size


class _Single:
    """One field of variable size."""

    def __init__(self, name: str, kind: FieldType[Any]):
        self._name = name
        self._kind = kind

    def write(self, value: Any, parts: Parts) -> None:
        try:
            self._kind.encode(getattr(value, self._name), parts)
        except ValueError as error:
            raise ValueError(f"field {self._name}: {error}") from error

    def read(self, frame: memoryview, offset: int, values: list[Any]) -> int:
        try:
            value, offset = self._kind.decode(frame, offset)
        except Malformed as error:
            raise Malformed(f"field {self._name}: {error}") from None
        values.append(value)
        return offset


class Tagged(FieldType[T]):
    """An enum: a u32 index, then the record of that variant. A value tells its index as ``TAG``."""

    def __init__(self, what: str, records: Sequence[Record[Any]]):
        self._what = what
        self.records = tuple(records)

    def encode(self, value: T, parts: Parts) -> None:
        tag: int = value.TAG  # type: ignore[attr-defined]  # every family of variants has it
        parts.append(U32_STRUCT.pack(tag))
        self.records[tag].encode(value, parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[T, int]:
        (tag,) = unpack(U32_STRUCT, frame, offset)
        if tag >= len(self.records):
            raise Malformed(f"there is no {self._what} {tag}, the last is {len(self.records) - 1}")
        value: T
        value, offset = self.records[tag].decode(frame, offset + 4)
        return value, offset


class Result(FieldType[Any]):
    """Ok (0) with a value of ``ok``, or Err (1) with one of ``error``, told apart by ``error_class``."""

    def __init__(self, ok: FieldType[Any], error: FieldType[Any], error_class: type):
        self._ok = ok
        self._error = error
        self._error_class = error_class

    def encode(self, value: Any, parts: Parts) -> None:
        failed = isinstance(value, self._error_class)
        parts.append(U32_STRUCT.pack(int(failed)))
        (self._error if failed else self._ok).encode(value, parts)

    def decode(self, frame: memoryview, offset: int) -> tuple[Any, int]:
        (failed,) = unpack(U32_STRUCT, frame, offset)
        if failed > 1:
            raise Malformed(f"a result begins with {failed}, but only 0 (Ok) and 1 (Err) exist")
        return (self._error if failed else self._ok).decode(frame, offset + 4)
