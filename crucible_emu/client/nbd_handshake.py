"""The client's side of the fixed newstyle handshake, as a table and without I/O.

What it is for: a client and a server agree on an export and on how to talk about it. Bytes of the server go into
:meth:`Handshake.receive`; the bytes to answer come out, with an :class:`Outcome`: read on, do the TLS handshake, or
begin transmission with :attr:`Handshake.export`.

What it guarantees: :data:`TRANSITIONS` is all there is. Whatever a server sends, the handshake ends: in an agreement,
in :class:`ExportRefused` with the server's sentence, or in :class:`RemoteError` at what must not be sent; replies are
bounded in length and number. With TLS wanted, nothing but STARTTLS is said in the clear, and bytes that came in the
clear after it end the connection, so that nobody on the way can put answers into the server's mouth.

    GREETING ──▶ STARTTLS ──▶ TLS ──▶ STRUCTURED_REPLY ──▶ SET_META_CONTEXT ──▶ GO ──▶ TRANSMISSION
        │                                ▲   └──────────────refused──────────▶──┘ │unknown     ▲
        ├──────────TLS not wanted────────┘                                        ▼            │
        └─────────server without options──────────────────────────────────▶ EXPORT_NAME ───────┘
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum, auto

from crucible_emu.client.failures import ExportRefused
from crucible_emu.errors import RemoteError
from crucible_emu.nbd.protocol import (
    GREETING_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

REPLY_BYTES_MAX = 64 * 1024
"""Data of one reply; the longest that a server has reason to send is a description of 4 KiB."""
REPLIES_MAX = 256
"""Replies to one option. *Liveness*: a server that informs for ever is not waited for."""
BLOCK_SIZE_MAX = 64 * 1024
ALLOCATION = "base:allocation"
ERROR_BIT = 1 << 31

_GREETING = struct.Struct(">QQH")
_REPLY = struct.Struct(">QIII")
_OLD_EXPORT = struct.Struct(">QH")
PADDING_BYTES = 124


class State(Enum):
    GREETING = auto()
    STARTTLS = auto()
    TLS = auto()
    STRUCTURED_REPLY = auto()
    SET_META_CONTEXT = auto()
    GO = auto()
    EXPORT_NAME = auto()
    TRANSMISSION = auto()
    REFUSED = auto()


class Heard(Enum):
    """What a message of the server means to this side."""

    GREETED = auto()
    GREETED_TLS_WANTED = auto()
    GREETED_WITHOUT_OPTIONS = auto()
    ENCRYPTED = auto()
    ACKNOWLEDGED = auto()
    UNKNOWN_OPTION = auto()
    REFUSED = auto()
    EXPORT = auto()


TRANSITIONS: dict[tuple[State, Heard], State] = {
    (State.GREETING, Heard.GREETED): State.STRUCTURED_REPLY,
    (State.GREETING, Heard.GREETED_TLS_WANTED): State.STARTTLS,
    (State.GREETING, Heard.GREETED_WITHOUT_OPTIONS): State.EXPORT_NAME,
    (State.STARTTLS, Heard.ACKNOWLEDGED): State.TLS,
    (State.STARTTLS, Heard.UNKNOWN_OPTION): State.REFUSED,
    (State.STARTTLS, Heard.REFUSED): State.REFUSED,
    (State.TLS, Heard.ENCRYPTED): State.STRUCTURED_REPLY,
    (State.STRUCTURED_REPLY, Heard.ACKNOWLEDGED): State.SET_META_CONTEXT,
    (State.STRUCTURED_REPLY, Heard.UNKNOWN_OPTION): State.GO,
    (State.STRUCTURED_REPLY, Heard.REFUSED): State.GO,
    (State.SET_META_CONTEXT, Heard.ACKNOWLEDGED): State.GO,
    (State.SET_META_CONTEXT, Heard.UNKNOWN_OPTION): State.GO,
    (State.SET_META_CONTEXT, Heard.REFUSED): State.GO,
    (State.GO, Heard.ACKNOWLEDGED): State.TRANSMISSION,
    (State.GO, Heard.UNKNOWN_OPTION): State.EXPORT_NAME,
    (State.GO, Heard.REFUSED): State.REFUSED,
    (State.EXPORT_NAME, Heard.EXPORT): State.TRANSMISSION,
}

OPTION_OF: dict[State, Option] = {
    State.STARTTLS: Option.STARTTLS,
    State.STRUCTURED_REPLY: Option.STRUCTURED_REPLY,
    State.SET_META_CONTEXT: Option.SET_META_CONTEXT,
    State.GO: Option.GO,
    State.EXPORT_NAME: Option.EXPORT_NAME,
}
"""What is sent when a state is entered."""


class Outcome(Enum):
    """What the driver has to do next; whatever :meth:`Handshake.receive` gave is to be sent first."""

    READ_ON = auto()
    ENCRYPT = auto()
    TRANSMIT = auto()


@dataclass(slots=True)
class ExportFacts:
    """What the server told of the export. Sizes in bytes; ``allocation`` is the number of the context
    ``base:allocation`` on this connection, ``None`` where BLOCK_STATUS was not agreed on."""

    name: str
    size_bytes: int = 0
    flags: TransmissionFlag = field(default_factory=lambda: TransmissionFlag(0))
    structured: bool = False
    block_size: int = 1
    preferred_bytes: int = 4096
    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    allocation: int | None = None
    description: str = ""

    def offers(self, flag: TransmissionFlag) -> bool:
        return bool(self.flags & flag)

    @property
    def read_only(self) -> bool:
        return self.offers(TransmissionFlag.READ_ONLY)


class Handshake:
    """One handshake about the export ``name``; ``tls`` demands encryption."""

    def __init__(self, name: str, *, tls: bool = False) -> None:
        self.state = State.GREETING
        self.export = ExportFacts(name)
        self._tls = tls
        self._received = bytearray()
        self._replies = 0
        self._no_zeroes = False
        self._informed = False
        self._answer = bytearray()

    def receive(self, data: bytes | bytearray | memoryview) -> tuple[bytes, Outcome]:
        """Take ``data``; return what to send and what to do then.

        Raises :class:`RemoteError` or :class:`ExportRefused`: close the connection.
        """
        self._received += data
        self._answer.clear()
        while self.state not in (State.TLS, State.TRANSMISSION):
            heard = self._next()
            if heard is None:
                return bytes(self._answer), Outcome.READ_ON
            self._step(heard)
        if self.state is State.TLS:
            if self._received:
                raise RemoteError("bytes in the clear follow the answer to STARTTLS: somebody may have put them there")
            return bytes(self._answer), Outcome.ENCRYPT
        return bytes(self._answer), Outcome.TRANSMIT

    def encrypted(self) -> bytes:
        """The connection is encrypted from here on: the bytes to send."""
        self._answer.clear()
        self._step(Heard.ENCRYPTED)
        return bytes(self._answer)

    def rest(self) -> bytes:
        """Bytes that came after the handshake; a server has no reason to send any."""
        return bytes(self._received)

    def _step(self, heard: Heard) -> None:
        following = TRANSITIONS.get((self.state, heard))
        if following is None:
            raise RemoteError(f"the server answers {self.state.name} with {heard.name}, which has no meaning there")
        self.state = following
        self._replies = 0
        option = OPTION_OF.get(following)
        if option is not None:
            data = self._option_data(option)
            self._answer += struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data

    def _option_data(self, option: Option) -> bytes:
        name = self.export.name.encode()
        if option is Option.EXPORT_NAME:
            return name
        if option is Option.GO:
            wanted = (Info.DESCRIPTION, Info.BLOCK_SIZE)
            return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
        if option is Option.SET_META_CONTEXT:
            query = ALLOCATION.encode()
            return struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query
        return b""

    # --- what comes in ---

    def _next(self) -> Heard | None:
        """The meaning of the next whole message; ``None`` when more bytes are needed."""
        if self.state is State.GREETING:
            return self._greeting()
        if self.state is State.EXPORT_NAME:
            return self._old_export()
        while (reply := self._reply()) is not None:
            heard = self._understood(*reply)
            if heard is not None:
                return heard
        return None

    def _greeting(self) -> Heard | None:
        received = self._received
        # A server of another kind is told apart by its first bytes; it may never send as many as a greeting has.
        if not GREETING_MAGIC.to_bytes(8, "big").startswith(received[:8]):
            raise RemoteError(f"this is no NBD server: it begins with {bytes(received[:8])!r}")
        if len(received) < _GREETING.size:
            return None
        _, magic, offered = _GREETING.unpack_from(received)
        if magic != OPTION_MAGIC:
            raise RemoteError("this NBD server speaks the old style, which has no names for exports")
        del received[: _GREETING.size]
        agreed = offered & int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self._no_zeroes = bool(agreed & HandshakeFlag.NO_ZEROES)
        fixed = bool(agreed & HandshakeFlag.FIXED_NEWSTYLE)
        if self._tls and not fixed:
            raise ExportRefused("this NBD server has no TLS: use nbd:// if the way to it is safe")
        self._answer += struct.pack(">I", agreed)
        if self._tls:
            return Heard.GREETED_TLS_WANTED
        return Heard.GREETED if fixed else Heard.GREETED_WITHOUT_OPTIONS

    def _old_export(self) -> Heard | None:
        needed = _OLD_EXPORT.size + (0 if self._no_zeroes else PADDING_BYTES)
        if len(self._received) < needed:
            return None
        self._take_export(bytes(self._received[: _OLD_EXPORT.size]))
        del self._received[:needed]
        return Heard.EXPORT

    def _reply(self) -> tuple[int, bytes] | None:
        """``(type, data)`` of the next reply to the option that was sent."""
        received = self._received
        if len(received) < _REPLY.size:
            return None
        magic, option, kind, length = _REPLY.unpack_from(received)
        if magic != OPTION_REPLY_MAGIC:
            raise RemoteError(f"a reply begins with {magic:#x} and not with its magic {OPTION_REPLY_MAGIC:#x}")
        if option != OPTION_OF[self.state]:
            raise RemoteError(f"the server answers option {option}; {OPTION_OF[self.state].name} was asked")
        if length > REPLY_BYTES_MAX:
            raise RemoteError(f"a reply announces {length} bytes: at most {REPLY_BYTES_MAX}")
        if len(received) < _REPLY.size + length:
            return None
        self._replies += 1
        if self._replies > REPLIES_MAX:
            raise RemoteError(f"the server answers one option with more than {REPLIES_MAX} replies")
        data = bytes(received[_REPLY.size : _REPLY.size + length])
        del received[: _REPLY.size + length]
        return kind, data

    def _understood(self, kind: int, data: bytes) -> Heard | None:
        """What a reply means; ``None`` for one that only informs."""
        if kind & ERROR_BIT:
            return self._refused(kind, data)
        if kind == Reply.ACK:
            if data:
                raise RemoteError(f"an acknowledgement carries {len(data)} bytes of data")
            return self._acknowledged()
        if kind == Reply.INFO and self.state is State.GO:
            self._inform(data)
        elif kind == Reply.META_CONTEXT and self.state is State.SET_META_CONTEXT:
            if len(data) < 4:
                raise RemoteError(f"a metadata context of {len(data)} bytes: at least 4")
            if data[4:] == ALLOCATION.encode():
                self.export.allocation = int.from_bytes(data[:4], "big")
        else:
            raise RemoteError(f"the server answers {self.state.name} with a reply of type {kind}")
        return None

    def _acknowledged(self) -> Heard:
        if self.state is State.STRUCTURED_REPLY:
            self.export.structured = True
        elif self.state is State.GO and not self._informed:
            raise RemoteError("the server agrees on the export without saying how large it is")
        return Heard.ACKNOWLEDGED

    def _refused(self, kind: int, data: bytes) -> Heard:
        sentence = data.decode(errors="replace").strip()
        if kind == Reply.ERR_UNSUP and self.state is not State.STARTTLS:
            self.export.allocation = None
            return Heard.UNKNOWN_OPTION
        if TRANSITIONS.get((self.state, Heard.REFUSED)) is State.REFUSED or kind == Reply.ERR_TLS_REQD:
            raise ExportRefused(self._refusal(kind, sentence))
        self.export.allocation = None  # named by a reply before the refusal
        return Heard.REFUSED

    def _refusal(self, kind: int, sentence: str) -> str:
        if kind == Reply.ERR_TLS_REQD:
            return f"the server talks over TLS only: use nbds:// ({sentence or 'TLS is required'})"
        if self.state is State.STARTTLS:
            return f"the server has no TLS: use nbd:// if the way to it is safe ({sentence or 'STARTTLS is refused'})"
        known = {int(reply): reply.name for reply in Reply}
        reason = sentence or known.get(kind, f"error {kind:#x}")
        return f"the server refuses the export '{self.export.name}': {reason}"

    # --- what an export is ---

    def _inform(self, data: bytes) -> None:
        if len(data) < 2:
            raise RemoteError("a piece of information has no type")
        kind, value = int.from_bytes(data[:2], "big"), data[2:]
        if kind == Info.EXPORT:
            if len(value) != _OLD_EXPORT.size:
                raise RemoteError(f"an export is described in {len(value)} bytes and not in {_OLD_EXPORT.size}")
            self._take_export(value)
        elif kind == Info.BLOCK_SIZE:
            self._take_sizes(value)
        elif kind == Info.DESCRIPTION:
            self.export.description = value.decode(errors="replace")

    def _take_export(self, value: bytes) -> None:
        size_bytes, flags = _OLD_EXPORT.unpack(value)
        if size_bytes >= 1 << 63:
            raise RemoteError(f"an export of {size_bytes} bytes cannot be: at most 2^63 - 1")
        self.export.size_bytes = size_bytes
        self.export.flags = TransmissionFlag(flags)
        self._informed = True

    def _take_sizes(self, value: bytes) -> None:
        if len(value) != 12:
            raise RemoteError(f"block sizes come in 12 bytes, not in {len(value)}")
        least, preferred, most = struct.unpack(">III", value)
        if not 0 < least <= BLOCK_SIZE_MAX or least & (least - 1):
            raise RemoteError(f"a block size of {least} bytes: a power of two up to {BLOCK_SIZE_MAX} is allowed")
        if most < least or preferred < least:
            raise RemoteError(f"block sizes {least}, {preferred}, {most} contradict each other")
        self.export.block_size = least
        self.export.preferred_bytes = preferred
        # A multiple of the block size, so that requests of that length stay aligned.
        self.export.payload_bytes_max = min(most, PAYLOAD_BYTES_MAX) // least * least
