"""The fixed newstyle handshake, as a table and without I/O.

What it is for: a client and this door agree on an export and on how to talk about it. Bytes of the client go into
:meth:`Handshake.receive`; the bytes to answer come out, with an :class:`Outcome` where the connection has to do
something: upgrade to TLS, begin transmission, or close.

What it guarantees: :data:`TRANSITIONS` and :data:`OPTIONS` are all there is: a pair that is not listed cannot happen.
An unknown option gets ERR_UNSUP and the next one is understood. Memory is bounded: an option's data is kept up to
:data:`OPTION_BYTES_MAX`, skipped and refused up to :data:`SKIPPED_BYTES_MAX`, and beyond that costs the connection.
With TLS required nothing but STARTTLS and ABORT is answered before TLS, and nothing that was agreed (or sent) before
TLS survives it, so that nobody on the way can put options into the client's mouth.

    FLAGS ──accepted──▶ OPTIONS ──entered──▶ TRANSMISSION
                        │  ▲  └──aborted──▶ CLOSED
                 upgrade│  │encrypted
                        ▼  │
                        TLS
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from crucible_emu.errors import RemoteError
from crucible_emu.nbd.protocol import (
    CONTEXT_NAMES,
    GREETING_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    STRING_BYTES_MAX,
    Context,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

OPTION_BYTES_MAX = 64 * 1024
"""Data of one option that is kept: an export name and a dozen queries of the longest kind."""
SKIPPED_BYTES_MAX = 16 * 1024 * 1024
OPTIONS_MAX = 4096
"""Options on one connection; a client that lists many exports asks a few for each."""

PREFERRED_BLOCK_BYTES_MIN = 4096

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class Tls(Enum):
    """Whether connections are encrypted: never, when the client asks for it, or always."""

    NONE = auto()
    OFFERED = auto()
    REQUIRED = auto()


class State(Enum):
    FLAGS = auto()
    OPTIONS = auto()
    TLS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Outcome(Enum):
    """What became of one piece of the handshake."""

    NEED_DATA = auto()
    ACCEPTED = auto()
    ANSWERED = auto()
    UPGRADE = auto()
    ENCRYPTED = auto()
    ENTERED = auto()
    ABORTED = auto()


TRANSITIONS: dict[tuple[State, Outcome], State] = {
    (State.FLAGS, Outcome.ACCEPTED): State.OPTIONS,
    (State.OPTIONS, Outcome.ANSWERED): State.OPTIONS,
    (State.OPTIONS, Outcome.UPGRADE): State.TLS,
    (State.TLS, Outcome.ENCRYPTED): State.OPTIONS,
    (State.OPTIONS, Outcome.ENTERED): State.TRANSMISSION,
    (State.OPTIONS, Outcome.ABORTED): State.CLOSED,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """How an option is treated: the method that answers it; whether it must come without data; whether it is
    answered before TLS where TLS is required; whether it is answered while the server shuts down."""

    method: str
    bare: bool = False
    before_tls: bool = False
    at_shutdown: bool = False


OPTIONS: dict[int, Rule] = {
    Option.EXPORT_NAME: Rule("_export_name"),
    Option.ABORT: Rule("_abort", before_tls=True, at_shutdown=True),
    Option.LIST: Rule("_list", bare=True),
    Option.STARTTLS: Rule("_starttls", bare=True, before_tls=True),
    Option.INFO: Rule("_info"),
    Option.GO: Rule("_go"),
    Option.STRUCTURED_REPLY: Rule("_structured_reply", bare=True),
    Option.LIST_META_CONTEXT: Rule("_list_contexts"),
    Option.SET_META_CONTEXT: Rule("_set_contexts"),
}


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a client is told of an export. Sizes in bytes."""

    name: str
    size_bytes: int
    block_size: int
    read_only: bool = False
    multi_conn: bool = True
    description: str = ""

    def flags(self, structured: bool) -> TransmissionFlag:
        """The transmission flags; DF belongs to structured replies. FUA, TRIM and zeroing are always understood."""
        found = (
            TransmissionFlag.HAS_FLAGS
            | TransmissionFlag.SEND_FLUSH
            | TransmissionFlag.SEND_FUA
            | TransmissionFlag.SEND_CACHE
        )
        if self.read_only:
            found |= TransmissionFlag.READ_ONLY
        else:
            found |= TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
        if self.multi_conn:
            found |= TransmissionFlag.CAN_MULTI_CONN
        if structured:
            found |= TransmissionFlag.SEND_DF
        return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the handshake came to: the export, the kind of replies, and the contexts that BLOCK_STATUS answers for."""

    export: ExportInfo
    structured: bool = False
    contexts: tuple[Context, ...] = ()


class _Refused(Exception):
    """The option is answered with this error and its sentence; the handshake goes on."""

    def __init__(self, reply: Reply, sentence: str) -> None:
        super().__init__(sentence)
        self.reply = reply


class Handshake:
    """The server's side of one handshake.

    ``names`` lists the exports, ``lookup`` finds one (``None``: there is none of that name); both are asked anew each
    time. :attr:`shutting_down` may be set at any time; options are refused from then on.
    """

    def __init__(
        self,
        names: Callable[[], Iterable[str]],
        lookup: Callable[[str], ExportInfo | None],
        tls: Tls = Tls.NONE,
    ) -> None:
        self.state = State.FLAGS
        self.agreement: Agreement | None = None
        self.encrypted = False
        self.shutting_down = False
        self._names = names
        self._lookup = lookup
        self._tls = tls
        self._received = bytearray()
        self._skip_bytes = 0
        self._options = 0
        self._fixed = False
        self._no_zeroes = False
        self._structured = False
        self._contexts: tuple[str, tuple[Context, ...]] = ("", ())
        self._answer = bytearray()

    def greeting(self) -> bytes:
        """The first bytes of the connection."""
        return _GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

    def receive(self, data: bytes) -> tuple[bytes, Outcome]:
        """Take ``data``; return the bytes to send and what happened last.

        UPGRADE: send, do the TLS handshake, then call :meth:`encrypted_now`. ENTERED: send and begin transmission
        (:attr:`agreement`, :meth:`rest`). ABORTED: send and close. Otherwise send and read on. Raises
        :class:`RemoteError`: close.
        """
        self._received += data
        self._answer.clear()
        outcome = Outcome.ANSWERED
        while self.state in (State.FLAGS, State.OPTIONS):
            outcome = self._client_flags() if self.state is State.FLAGS else self._option()
            if outcome is Outcome.NEED_DATA:
                break
            self._step(outcome)
        return bytes(self._answer), outcome

    def encrypted_now(self) -> None:
        """The connection is encrypted from here on; whatever was agreed before is forgotten."""
        self.encrypted = True
        self._structured = False
        self._contexts = ("", ())
        self._step(Outcome.ENCRYPTED)

    def rest(self) -> bytes:
        """Bytes that came after the handshake: the first requests."""
        return bytes(self._received)

    def _step(self, outcome: Outcome) -> None:
        following = TRANSITIONS.get((self.state, outcome))
        if following is None:
            raise RuntimeError(f"the handshake has no way from {self.state.name} by {outcome.name}")
        self.state = following

    # --- what comes in ---

    def _client_flags(self) -> Outcome:
        if len(self._received) < 4:
            return Outcome.NEED_DATA
        (flags,) = _U32.unpack_from(self._received)
        del self._received[:4]
        # int: the complement of an enum's flags has no bits but known ones
        if flags & ~int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES):
            raise RemoteError(f"the client sets handshake flags that were not offered: {flags:#x}")
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        return Outcome.ACCEPTED

    def _option(self) -> Outcome:
        received = self._received
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(received))
            del received[:skipped]
            self._skip_bytes -= skipped
            if self._skip_bytes:
                return Outcome.NEED_DATA
        if len(received) < _OPTION.size:
            return Outcome.NEED_DATA
        magic, option, length = _OPTION.unpack_from(received)
        if magic != OPTION_MAGIC:
            raise RemoteError(f"an option begins with {magic:#x} and not with its magic {OPTION_MAGIC:#x}")
        if length > OPTION_BYTES_MAX:
            return self._oversized(option, length)
        if len(received) < _OPTION.size + length:
            return Outcome.NEED_DATA
        data = bytes(received[_OPTION.size : _OPTION.size + length])
        del received[: _OPTION.size + length]
        self._count_option()
        return self._answer_option(option, data)

    def _oversized(self, option: int, length: int) -> Outcome:
        if length > SKIPPED_BYTES_MAX or option == Option.EXPORT_NAME:
            raise RemoteError(f"option {option} announces {length} bytes of data: at most {OPTION_BYTES_MAX}")
        del self._received[: _OPTION.size]
        self._skip_bytes = length
        self._count_option()
        self._reply(option, Reply.ERR_TOO_BIG, f"option data of {length} bytes: at most {OPTION_BYTES_MAX}".encode())
        return Outcome.ANSWERED

    def _count_option(self) -> None:
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise RemoteError(f"the client haggled over more than {OPTIONS_MAX} options")

    def _answer_option(self, option: int, data: bytes) -> Outcome:
        try:
            rule = self._rule(option, data)
            outcome: Outcome = getattr(self, rule.method)(data)
        except _Refused as refusal:
            if option == Option.EXPORT_NAME:  # has no error reply: closing is the only answer
                raise RemoteError(f"EXPORT_NAME was refused: {refusal}") from None
            self._reply(option, refusal.reply, str(refusal).encode())
            return Outcome.ANSWERED
        return outcome

    def _rule(self, option: int, data: bytes) -> Rule:
        rule = OPTIONS.get(option)
        if self._tls is Tls.REQUIRED and not self.encrypted and (rule is None or not rule.before_tls):
            raise _Refused(Reply.ERR_TLS_REQD, "this server talks over TLS only: send STARTTLS first")
        if self.shutting_down and (rule is None or not rule.at_shutdown):
            raise _Refused(Reply.ERR_SHUTDOWN, "this server is shutting down")
        if rule is None:
            raise _Refused(Reply.ERR_UNSUP, f"option {option} is not known here")
        if rule.bare and data:
            raise _Refused(Reply.ERR_INVALID, f"{Option(option).name} takes no data, {len(data)} bytes came")
        return rule

    # --- the options, one method each (named in OPTIONS) ---

    def _export_name(self, data: bytes) -> Outcome:
        export = self._find(_text(data))
        self._answer += struct.pack(">QH", export.size_bytes, export.flags(self._structured))
        if not self._no_zeroes:
            self._answer += bytes(124)
        return self._enter(export)

    def _abort(self, data: bytes) -> Outcome:
        self._reply(Option.ABORT, Reply.ACK)
        return Outcome.ABORTED

    def _list(self, data: bytes) -> Outcome:
        for name in self._names():
            encoded = name.encode()
            self._reply(Option.LIST, Reply.SERVER, _U32.pack(len(encoded)) + encoded)
        self._reply(Option.LIST, Reply.ACK)
        return Outcome.ANSWERED

    def _starttls(self, data: bytes) -> Outcome:
        if self._tls is Tls.NONE or not self._fixed:
            raise _Refused(Reply.ERR_UNSUP, "this server has no certificate, so it has no TLS")
        if self.encrypted:
            raise _Refused(Reply.ERR_INVALID, "this connection is encrypted already")
        if self._received:
            raise RemoteError("bytes in the clear follow STARTTLS: somebody may have put them there")
        self._reply(Option.STARTTLS, Reply.ACK)
        return Outcome.UPGRADE

    def _info(self, data: bytes) -> Outcome:
        self._describe(Option.INFO, data)
        return Outcome.ANSWERED

    def _go(self, data: bytes) -> Outcome:
        return self._enter(self._describe(Option.GO, data))

    def _structured_reply(self, data: bytes) -> Outcome:
        if self._structured:
            raise _Refused(Reply.ERR_INVALID, "structured replies are agreed already")
        self._structured = True
        self._reply(Option.STRUCTURED_REPLY, Reply.ACK)
        return Outcome.ANSWERED

    def _list_contexts(self, data: bytes) -> Outcome:
        _, queries = self._queries(data)
        for name in CONTEXT_NAMES:
            # A bare namespace is a wildcard here, and no query at all asks for everything.
            if not queries or name in queries or name.partition(":")[0] + ":" in queries:
                self._reply(Option.LIST_META_CONTEXT, Reply.META_CONTEXT, _U32.pack(0) + name.encode())
        self._reply(Option.LIST_META_CONTEXT, Reply.ACK)
        return Outcome.ANSWERED

    def _set_contexts(self, data: bytes) -> Outcome:
        self._contexts = ("", ())  # a request that fails clears what was set, too
        if not self._structured:
            raise _Refused(Reply.ERR_INVALID, "contexts need structured replies: send STRUCTURED_REPLY first")
        export, queries = self._queries(data)
        chosen = tuple(context for name, context in CONTEXT_NAMES.items() if name in queries)
        for name, context in CONTEXT_NAMES.items():
            if context in chosen:
                self._reply(Option.SET_META_CONTEXT, Reply.META_CONTEXT, _U32.pack(context) + name.encode())
        self._contexts = (export, chosen)
        self._reply(Option.SET_META_CONTEXT, Reply.ACK)
        return Outcome.ANSWERED

    # --- shared by the options ---

    def _find(self, name: str) -> ExportInfo:
        export = self._lookup(name)
        if export is None:
            raise _Refused(Reply.ERR_UNKNOWN, f"there is no export '{name}'")
        return export

    def _enter(self, export: ExportInfo) -> Outcome:
        name, contexts = self._contexts
        self.agreement = Agreement(export, self._structured, contexts if name == export.name else ())
        return Outcome.ENTERED

    def _describe(self, option: Option, data: bytes) -> ExportInfo:
        name, at = _string_at(data, 0)
        (count,) = _unpack(_U16, data, at)
        if len(data) != at + 2 + 2 * count:
            raise _Refused(Reply.ERR_INVALID, f"{count} information requests do not fill {len(data)} bytes of data")
        wanted = struct.unpack_from(f">{count}H", data, at + 2)
        export = self._find(name)
        size_and_flags = struct.pack(">QH", export.size_bytes, export.flags(self._structured))
        self._reply(option, Reply.INFO, _U16.pack(Info.EXPORT) + size_and_flags)
        if Info.NAME in wanted:
            self._reply(option, Reply.INFO, _U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted and export.description:
            self._reply(option, Reply.INFO, _U16.pack(Info.DESCRIPTION) + export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            preferred = max(PREFERRED_BLOCK_BYTES_MIN, export.block_size)
            sizes = struct.pack(">HIII", Info.BLOCK_SIZE, export.block_size, preferred, PAYLOAD_BYTES_MAX)
            self._reply(option, Reply.INFO, sizes)
        self._reply(option, Reply.ACK)
        return export

    def _queries(self, data: bytes) -> tuple[str, list[str]]:
        """``(export, queries)`` of a request about contexts, all checked."""
        export, at = _string_at(data, 0)
        (count,) = _unpack(_U32, data, at)
        at += 4
        queries = []
        for _ in range(count):  # ends at the end of the data, whatever the count claims
            query, at = _string_at(data, at)
            if ":" not in query:
                raise _Refused(Reply.ERR_INVALID, f"the query '{query}' has no namespace: use for example 'base:'")
            queries.append(query)
        if at != len(data):
            raise _Refused(Reply.ERR_INVALID, f"{len(data) - at} bytes follow the last query")
        self._find(export)
        return export, queries

    def _reply(self, option: int, reply: Reply, data: bytes = b"") -> None:
        self._answer += _REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data))
        self._answer += data


def _unpack(form: struct.Struct, data: bytes, at: int) -> tuple[int]:
    if at + form.size > len(data):
        raise _Refused(Reply.ERR_INVALID, f"the option's data ends after {len(data)} bytes, in the middle of a field")
    value: tuple[int] = form.unpack_from(data, at)
    return value


def _string_at(data: bytes, at: int) -> tuple[str, int]:
    """A length and that many bytes of text at ``at``: ``(text, where it ends)``."""
    (length,) = _unpack(_U32, data, at)
    at += 4
    if at + length > len(data):
        raise _Refused(Reply.ERR_INVALID, f"a string of {length} bytes does not fit into the option's data")
    return _text(data[at : at + length]), at + length


def _text(data: bytes) -> str:
    if len(data) > STRING_BYTES_MAX:
        raise _Refused(Reply.ERR_TOO_BIG, f"a string has {len(data)} bytes: at most {STRING_BYTES_MAX}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _Refused(Reply.ERR_INVALID, "a string is not UTF-8") from None
    if "\0" in text:
        raise _Refused(Reply.ERR_INVALID, "a string contains a zero byte")
    return text
