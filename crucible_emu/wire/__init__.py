"""Messages to bytes and back: no sockets, no clocks, no state but what a stream of bytes needs.

``messages``    the 42 messages as frozen classes (``from crucible_emu.wire import messages as m``)
``codec``       the catalogue: every message and error as a table of fields; single errors
``hot``         the few messages of every request, packed by hand
``contexts``    block contexts, as arrays
``frames``      one message, one frame: :func:`encode`, :func:`decode`
``decoder``     a stream of bytes to messages: :class:`Decoder`
``trains``      many writes, reads or acks at once, on their way out
``runs``        the same where they come in
``constants``   what both ends must agree on
``primitives``  bincode: how a field becomes bytes
"""

from crucible_emu.errors import LocalError, RemoteError
from crucible_emu.wire.constants import (
    FIRST_JOB_ID,
    FRAME_BYTES_MAX,
    PING_INTERVAL_S,
    RECEIVE_SILENCE_S_MAX,
    REPAIR_PORT_OFFSET,
    VERSION,
    max_io_blocks,
)
from crucible_emu.wire.decoder import Decoder
from crucible_emu.wire.frames import decode, encode
from crucible_emu.wire.messages import MESSAGES, Message, SocketAddress
from crucible_emu.wire.primitives.bincode import Parts
from crucible_emu.wire.trains import encode_ack_train, encode_read_train, encode_write_train

__all__ = [
    "FIRST_JOB_ID",
    "FRAME_BYTES_MAX",
    "MESSAGES",
    "PING_INTERVAL_S",
    "RECEIVE_SILENCE_S_MAX",
    "REPAIR_PORT_OFFSET",
    "VERSION",
    "Decoder",
    "LocalError",
    "Message",
    "Parts",
    "RemoteError",
    "SocketAddress",
    "decode",
    "encode",
    "encode_ack_train",
    "encode_read_train",
    "encode_write_train",
    "max_io_blocks",
]
