"""The numbers of the NBD protocol, under the names that its specification gives them.

What it is for: the handshake, the transmission phase and the tests take their constants from here and from nowhere
else. Only numbers that this door speaks are listed; the experimental extensions (extended headers, RESIZE) are not.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

DEFAULT_PORT = 10809

# --- handshake -------------------------------------------------------------------------------------------------------

GREETING_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9


class HandshakeFlag(IntFlag):
    """What the server offers in its greeting; the client answers with the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Types of replies to options; the errors have bit 31 set and may carry a sentence."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_POLICY = 2**31 + 2
    ERR_INVALID = 2**31 + 3
    ERR_PLATFORM = 2**31 + 4
    ERR_TLS_REQD = 2**31 + 5
    ERR_UNKNOWN = 2**31 + 6
    ERR_SHUTDOWN = 2**31 + 7
    ERR_BLOCK_SIZE_REQD = 2**31 + 8
    ERR_TOO_BIG = 2**31 + 9


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


STRING_BYTES_MAX = 4096
"""No string of the protocol is longer."""

# --- transmission ----------------------------------------------------------------------------------------------------

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
REQUEST_BYTES = 28

PAYLOAD_BYTES_MAX = 32 * 1024 * 1024
"""The longest READ or WRITE that is served; also the protocol's default."""


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """Types of structured reply chunks; the errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 2**15 + 1
    ERROR_OFFSET = 2**15 + 2


CHUNK_DONE = 1
"""The one flag of a chunk: no further chunk answers this request."""


class Errno(IntEnum):
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


# --- metadata contexts -----------------------------------------------------------------------------------------------


class Context(IntEnum):
    """The metadata contexts that BLOCK_STATUS can answer for; the number is the id on the wire."""

    ALLOCATION = 1
    ALLOCATION_DEPTH = 2


CONTEXT_NAMES: dict[str, Context] = {
    "base:allocation": Context.ALLOCATION,
    "qemu:allocation-depth": Context.ALLOCATION_DEPTH,
}

STATE_HOLE = 1
STATE_ZERO = 2
