"""A stream of bytes to messages, however the bytes were cut.

What it is for: a socket driver receives straight into the decoder's own memory (:meth:`Decoder.buffer`, then
:meth:`Decoder.received`) and gets all messages that are complete; :meth:`Decoder.receive` does the same for bytes that
are already somewhere::

    while count := sock.recv_into(decoder.buffer()):
        for message in decoder.received(count):
            ...
    decoder.finish()

What it guarantees: any bytes, in any split, give the same messages and then at most one :class:`RemoteError`, never
another exception. A frame that cannot be right (LEN 0..7 or above the limit, a tag that does not exist) is refused as
soon as those bytes are there, without waiting for the rest. After an error the decoder is dead: it raises that error
again and takes nothing more.

Messages that came before a bad frame are not lost: the call that meets it returns them, and the *next* call raises.
:attr:`Decoder.error` tells at once; a call that has nothing to return raises itself.

A decoder that was asked for *runs* gives frames of the same kind that stand side by side as one object each
(:mod:`crucible_emu.wire.runs`), where they are of the forms that guests' requests make.

Memory: bytes come into chunks of :data:`CHUNK_BYTES`. Data of bulk messages are views into them, so a chunk whose
data were handed out is never written again where they are; it goes away with its last view, and the decoder takes a
new one when the old one is full. An unfinished frame is moved at most once into a chunk where all of it has room (more
often only above :data:`BELIEVED_BYTES`, where the memory grows with what really came: a peer that announces 100 MiB and
sends nothing costs 2 MiB). So the decoder holds one unfinished frame, or one chunk.

Large frames are placed so that their *data* begin at a page: a later copy of 1 MiB from elsewhere is several times
slower. Where a large frame came, the next one is expected to be alike and received in its place at once, without any
move.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crucible_emu.errors import RemoteError
from crucible_emu.wire.constants import BY_REFERENCE_TAG, FRAME_BYTES_MAX
from crucible_emu.wire.frames import FRAME_BYTES_MIN, HEAD, decode_body, name_of
from crucible_emu.wire.hot import ACK_BYTES, ACK_STRUCT, ACKS, Identities, make_ack
from crucible_emu.wire.messages import MESSAGES, BlockWrite, Message, ReadResponse, Write, WriteUnwritten
from crucible_emu.wire.primitives.bincode import U32_STRUCT, U64_STRUCT
from crucible_emu.wire.runs import RUN_DECODERS, RUN_FRAME_BYTES_MAX, ReadResponseRun, Run, WriteRun

CHUNK_BYTES = 256 * 1024
"""What a driver usually receives at once."""

BELIEVED_BYTES = 2 * 1024 * 1024
"""Up to here an announced length is believed and its memory taken; guests' requests make frames of 1.1 MB (§12)."""

_PAGE = 4096
_NO_RUNS: dict[int, Callable[[memoryview, int, int, Identities], tuple[Run, int]]] = {}
_NOWHERE = memoryview(b"")


class Decoder:
    """Incremental decoder of one connection's receiving side. Raises :class:`RemoteError` where the peer is wrong."""

    __slots__ = (
        *("_end", "_expected", "_known", "_lent", "_runs", "_start", "_view"),
        *("error", "max_frame_bytes", "memory"),
    )

    def __init__(self, max_frame_bytes: int = FRAME_BYTES_MAX, *, runs: bool = False) -> None:
        self.error: RemoteError | None = None
        """Why this decoder is dead, once it is."""
        self.max_frame_bytes = max_frame_bytes
        """The longest frame that is taken, LEN included; may be changed between calls."""
        self.memory: memoryview | None = None
        """Memory of the peer, where the data of its writes by reference are; without it there are none."""
        self._known = Identities()
        self._runs = RUN_DECODERS if runs else _NO_RUNS
        self._view = _NOWHERE  # the chunk
        self._start = 0  # the unfinished frame, or nothing: [start, end) of the chunk
        self._end = 0
        self._lent = False  # whether views into the chunk were handed out
        self._expected = (0, 0)  # length of the last large frame, and where its data began in it

    def buffer(self, size_hint: int = CHUNK_BYTES) -> memoryview:
        """Where to receive: at least one byte, usually ``size_hint`` or more, less only near the end of a frame.

        It is valid until the next call of any method. Raises :class:`RemoteError` when the decoder is dead.
        """
        self._raise_error()
        size_hint = min(size_hint, BELIEVED_BYTES)
        if self._start == self._end and not self._lent:
            self._start = self._end = 0
        capacity = len(self._view) - self._start
        have = self._end - self._start
        length = U32_STRUCT.unpack_from(self._view, self._start)[0] if have >= 4 else 0
        if length > capacity and (have == capacity or capacity < min(length, BELIEVED_BYTES)):
            self._make_room_for_frame(length, have)
        elif length == 0 and capacity - have < max(1, size_hint >> 2):
            self._make_room_for_more(size_hint)
        return self._view[self._end :]

    def received(self, count: int) -> list[Message]:
        """``count`` bytes were put at the beginning of what :meth:`buffer` gave: the messages they complete.

        Raises :class:`RemoteError` where there are none before the first bad frame, or the decoder is dead.
        """
        self._raise_error()
        messages: list[Message] = []
        self._take(count, messages)
        if not messages:
            self._raise_error()
        return messages

    def receive(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that ``data`` complete; ``data`` may be reused afterwards. Raises as :meth:`received`."""
        self._raise_error()
        source = memoryview(data).cast("B")
        messages: list[Message] = []
        while len(source) and self.error is None:
            room = self.buffer(min(len(source), CHUNK_BYTES))
            count = min(len(room), len(source))
            room[:count] = source[:count]
            source = source[count:]
            self._take(count, messages)
        if not messages:
            self._raise_error()
        return messages

    def finish(self) -> None:
        """The stream has ended. Raises :class:`RemoteError` when it did so inside a frame, or the decoder is dead."""
        have = self._end - self._start
        if have:
            what = name_of(HEAD.unpack_from(self._view, self._start)[1]) if have >= 8 else "a message"
            self._die(RemoteError(f"the stream ends inside {what}, after {have} bytes of its frame"))
        self._raise_error()

    def _take(self, count: int, messages: list[Message]) -> None:
        """Decode what ``count`` further bytes complete; an error is kept, not raised."""
        if not 0 <= count <= len(self._view) - self._end:
            raise ValueError(f"{count} bytes cannot have been received into {len(self._view) - self._end}")
        self._end += count
        try:
            self._decode(messages)
        except RemoteError as error:
            self._die(error)

    def _die(self, error: RemoteError) -> None:
        self.error = error.with_traceback(None)
        self._view, self._start, self._end = _NOWHERE, 0, 0

    def _raise_error(self) -> None:
        if self.error is not None:
            # A new one each time: the kept one must not collect tracebacks, which hold memory.
            raise RemoteError(*self.error.args)

    def _decode(self, messages: list[Message]) -> None:
        """Decode every complete frame; move ``_start`` along so that what was decoded stays so if a later one fails."""
        view, end = self._view, self._end
        while end - self._start >= 8:
            start = self._start
            length, tag = HEAD.unpack_from(view, start)
            if not FRAME_BYTES_MIN <= length <= self.max_frame_bytes or not self._exists(tag):
                break
            if end - start < length:
                return
            decode_run = self._runs.get(tag)
            if decode_run is not None and length <= RUN_FRAME_BYTES_MAX <= self.max_frame_bytes:
                run, self._start = decode_run(view, start, end, self._known)
                if self._start > start:
                    messages.append(run)
                    self._lent = self._lent or isinstance(run, WriteRun | ReadResponseRun)
                    continue
            elif length == ACK_BYTES and tag in ACKS and self._decode_acks(messages):
                continue
            message = decode_body(view[start : start + length], tag, self._known, self.memory)
            messages.append(message)
            self._start = start + length
            if tag != BY_REFERENCE_TAG and isinstance(message, BlockWrite | ReadResponse):
                self._lent = True
                if CHUNK_BYTES <= length <= BELIEVED_BYTES:
                    self._expected = (length, length - len(message.data))
        self._refuse()

    def _exists(self, tag: int) -> bool:
        return tag < len(MESSAGES) or (tag == BY_REFERENCE_TAG and self.memory is not None)

    def _decode_acks(self, messages: list[Message]) -> bool:
        """Decode a run of Ok acks with the known ids; whether there was any.

        *Optimisation*: an Upstairs receives mostly these, and in a train each costs one step of ``iter_unpack``.
        """
        known, start = self._known, self._start
        raw_ids = known.raw
        whole = (self._end - start) // ACK_BYTES * ACK_BYTES
        for length, tag, raw, job_id, failed in ACK_STRUCT.iter_unpack(self._view[start : start + whole]):
            if length != ACK_BYTES or raw != raw_ids or failed or tag not in ACKS:
                break
            messages.append(make_ack(ACKS[tag], known, job_id, None))
            start += ACK_BYTES
        found = start != self._start
        self._start = start
        return found

    def _refuse(self) -> None:
        """*Safety*: raise if what stands at ``_start`` cannot be the beginning of a frame, however little it is."""
        view, start, have = self._view, self._start, self._end - self._start
        if have < 4:
            return
        (length,) = U32_STRUCT.unpack_from(view, start)
        tag = HEAD.unpack_from(view, start)[1] if have >= 8 else None
        if length < FRAME_BYTES_MIN:
            raise RemoteError(f"a frame claims {length} bytes, but the shortest has {FRAME_BYTES_MIN}")
        if length > self.max_frame_bytes:
            what = name_of(tag) if tag is not None else "a message"
            raise RemoteError(
                f"the frame of {what} claims {length} bytes, but at most {self.max_frame_bytes} are allowed"
            )
        if tag is not None and not self._exists(tag):
            raise RemoteError(f"there is no message {tag}, the last is {len(MESSAGES) - 1}")

    def _make_room_for_frame(self, length: int, have: int) -> None:
        """The frame of this length, of which ``have`` bytes are there, does not fit where it is: move it."""
        size = min(length, max(BELIEVED_BYTES, 2 * have))
        if length < CHUNK_BYTES:
            self._move(CHUNK_BYTES, 0)
        else:
            self._move(size, _data_offset(self._view[self._start : self._end]))

    def _make_room_for_more(self, size_hint: int) -> None:
        """The chunk is used up: take a new one, in which a large frame like the last one would lie as it should."""
        length, data_offset = self._expected
        self._expected = (0, 0)
        self._move(max(size_hint, CHUNK_BYTES, length), data_offset)

    def _move(self, size: int, data_offset: int) -> None:
        """Get ``size`` bytes of room in all, with what was begun at the front.

        A page begins ``data_offset`` bytes behind the front, if that is not 0.
        """
        begun = self._view[self._start : self._end]
        if self._lent or size > len(self._view) or data_offset:
            chunk = np.empty(size + _PAGE, np.uint8) if data_offset else np.empty(size, np.uint8)
            skip = -(chunk.__array_interface__["data"][0] + data_offset) % _PAGE if data_offset else 0
            self._view, self._lent = chunk.data[skip : skip + size], False
            self._view[: len(begun)] = begun
        else:  # nobody looks at this chunk
            self._view[: len(begun)] = bytes(begun)
        self._start, self._end = 0, len(begun)


def _data_offset(frame: memoryview) -> int:
    """Where the data of a bulk message begin, guessed from the beginning of its frame; 0 if that is not to be seen.

    *Optimisation*: the guess takes all contexts to be like the first; a wrong one costs speed, nothing else.
    """
    if len(frame) < 96:
        return 0
    length, tag = HEAD.unpack_from(frame)
    (count,) = U64_STRUCT.unpack_from(frame, 64)
    if tag in (Write.TAG, WriteUnwritten.TAG):
        contexts = 72 + 8 * count + 16  # behind the dependencies: start, number of contexts
        if contexts + 9 > len(frame):
            return 0
        (blocks,) = U64_STRUCT.unpack_from(frame, contexts - 8)
        offset = contexts + blocks * (37 if frame[contexts + 8] else 9) + 8
    elif tag == ReadResponse.TAG:
        (blocks,) = U64_STRUCT.unpack_from(frame, 68)
        offset = 76 + blocks * {0: 4, 1: 32}.get(frame[76], 12) + 8
    else:
        return 0
    return offset if offset < length else 0
