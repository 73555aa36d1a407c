"""Requests out of bytes: whatever way they arrive, each is understood, refused or costs the connection."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbd_plain_client import request

from crucible_emu.blockio import Kind, Request
from crucible_emu.errors import RemoteError
from crucible_emu.nbd.buffers import Allowance, BufferPool
from crucible_emu.nbd.handshake import Agreement, ExportInfo
from crucible_emu.nbd.protocol import PAYLOAD_BYTES_MAX, Command, CommandFlag, Context, Errno
from crucible_emu.nbd.transmission import LARGE_BYTES, RECEIVE_BYTES, SKIPPED_BYTES_MAX, SLAB_BYTES, Batch, Intake

SIZE = 64 << 20
FIRST_BYTES = RECEIVE_BYTES + SLAB_BYTES
C, F = Command, CommandFlag


def asks(command: int, offset: int = 0, length: int = 0, flags: int = 0) -> dict[str, int]:
    return {"command": command, "offset": offset, "length": length, "flags": flags}


def intake(
    *,
    size: int = SIZE,
    read_only: bool = False,
    structured: bool = True,
    contexts: tuple[Context, ...] = (Context.ALLOCATION,),
    fast_zero: bool = True,
    memory: int = 96 << 20,
    payload_memory: Callable[[int], memoryview | None] | None = None,
) -> tuple[Intake, Allowance]:
    allowance = Allowance(BufferPool(), memory)
    export = ExportInfo("", size, 512, read_only=read_only)
    agreement = Agreement(export, structured, contexts)
    return Intake(agreement, allowance, fast_zero=fast_zero, payload_memory=payload_memory), allowance


def feed(inlet: Intake, data: bytes, *, room: int = 1 << 30) -> list[Batch]:
    """Put all of ``data`` in as a socket would, parsing after each piece."""
    batches = [inlet.parse(room)]
    while data:
        targets = inlet.targets()
        assert targets is not None
        taken = 0
        for target in targets:
            piece = data[taken : taken + len(target)]
            target[: len(piece)] = piece
            taken += len(piece)
        inlet.received(taken)
        data = data[taken:]
        batches.append(inlet.parse(room))
    return batches


def one(inlet: Intake, message: bytes) -> Batch:
    """The single thing that the message comes to."""
    found = [batch for batch in feed(inlet, message) if batch.requests or batch.refusals or batch.queries]
    assert len(found) == 1 and not inlet.midway
    return found[0]


def release(requests: list[Request]) -> None:
    for done in requests:
        holder = done.cookie[1]
        if holder is not None:
            holder.release()


@pytest.mark.parametrize(
    ("message", "kind", "fua", "no_hole"),
    [
        (asks(C.READ, offset=512, length=1024), Kind.READ, False, False),
        (asks(C.READ, offset=1, length=LARGE_BYTES, flags=F.FUA | F.DF), Kind.READ, None, False),
        (asks(C.READ, offset=SIZE - 1, length=1), Kind.READ, False, False),
        (asks(C.CACHE, offset=0, length=4096), Kind.READ, False, False),
        (asks(C.WRITE, offset=512, length=4096), Kind.WRITE, False, False),
        (asks(C.WRITE, offset=0, length=LARGE_BYTES, flags=F.FUA), Kind.WRITE, True, False),
        (asks(C.WRITE, offset=7, length=PAYLOAD_BYTES_MAX), Kind.WRITE, False, False),
        (asks(C.TRIM, offset=0, length=SIZE, flags=F.FUA), Kind.TRIM, True, False),
        (asks(C.WRITE_ZEROES, offset=0, length=SIZE), Kind.WRITE_ZEROES, False, False),
        (asks(C.WRITE_ZEROES, offset=0, length=9, flags=F.NO_HOLE | F.FUA), Kind.WRITE_ZEROES, True, True),
        (asks(C.WRITE_ZEROES, offset=0, length=9, flags=F.FAST_ZERO), Kind.WRITE_ZEROES, False, False),
    ],
)
def test_a_request_of_the_protocol_becomes_one_of_the_device(
    message: dict[str, int], kind: Kind, fua: bool | None, no_hole: bool
) -> None:
    inlet, allowance = intake()
    data = bytes(i % 251 for i in range(message["length"])) if message["command"] == C.WRITE else b""
    batch = one(inlet, request(**message, cookie=1 << 63, data=data))
    (found,) = batch.requests
    assert (found.kind, found.offset, found.length, found.no_hole) == (
        kind,
        message["offset"],
        message["length"],
        no_hole,
    )
    assert fua is None or found.fua is fua
    assert batch.bits == message["offset"] | message["length"]
    assert found.cookie[0] == 1 << 63 and found.cookie[2] == message["command"]
    if kind is Kind.WRITE:
        assert found.buffer == data
    if kind is Kind.READ:
        assert found.buffer is not None and len(found.buffer) == found.length and not found.buffer.readonly
    release(batch.requests)
    assert allowance.taken_bytes == FIRST_BYTES


def test_a_flush_has_no_range_even_when_the_client_fills_it_in() -> None:
    inlet, _ = intake()
    (found,) = one(inlet, request(C.FLUSH, 77, 99, cookie=1)).requests
    assert (found.kind, found.offset, found.length, found.buffer) == (Kind.FLUSH, 0, 0, None)


@pytest.mark.parametrize(
    ("message", "errno"),
    [
        (asks(99), Errno.EINVAL),
        (asks(8, length=4096), Errno.EINVAL),
        (asks(C.READ, length=512, flags=F.NO_HOLE), Errno.EINVAL),
        (asks(C.READ, length=512, flags=1 << 15), Errno.EINVAL),
        (asks(C.READ, length=512, flags=1 << 5), Errno.EINVAL),
        (asks(C.WRITE, length=512, flags=F.DF), Errno.EINVAL),
        (asks(C.TRIM, length=512, flags=F.NO_HOLE), Errno.EINVAL),
        (asks(C.CACHE, length=512, flags=F.REQ_ONE), Errno.EINVAL),
        (asks(C.READ, offset=SIZE, length=1), Errno.EINVAL),
        (asks(C.READ, offset=SIZE - 1, length=2), Errno.EINVAL),
        (asks(C.READ, offset=2**64 - 1, length=512), Errno.EINVAL),
        (asks(C.READ, offset=SIZE + 1), Errno.EINVAL),
        (asks(C.TRIM, offset=SIZE, length=1), Errno.EINVAL),
        (asks(C.CACHE, offset=SIZE, length=1), Errno.EINVAL),
        (asks(C.BLOCK_STATUS, offset=SIZE, length=1), Errno.EINVAL),
        (asks(C.BLOCK_STATUS, offset=0, length=0), Errno.EINVAL),
        (asks(C.WRITE, offset=SIZE, length=512), Errno.ENOSPC),
        (asks(C.WRITE, offset=SIZE - 4096, length=LARGE_BYTES), Errno.ENOSPC),
        (asks(C.WRITE_ZEROES, offset=SIZE, length=1), Errno.ENOSPC),
        (asks(C.READ, length=PAYLOAD_BYTES_MAX + 1), Errno.EOVERFLOW),
        (asks(C.CACHE, length=PAYLOAD_BYTES_MAX + 1), Errno.EOVERFLOW),
        (asks(C.WRITE, length=PAYLOAD_BYTES_MAX + 1), Errno.EINVAL),
        (asks(C.WRITE_ZEROES, length=512, flags=F.FAST_ZERO | F.NO_HOLE), Errno.ENOTSUP),
        (asks(C.READ), 0),
        (asks(C.WRITE, flags=F.FUA), 0),
        (asks(C.TRIM), 0),
        (asks(C.WRITE_ZEROES), 0),
        (asks(C.CACHE), 0),
    ],
)
def test_a_refused_request_gets_its_errno_and_the_next_is_understood(message: dict[str, int], errno: int) -> None:
    inlet, allowance = intake()
    data = bytes(message["length"]) if message["command"] == C.WRITE else b""
    following = request(C.WRITE, 512, 512, cookie=8, data=b"n" * 512)
    batches = feed(inlet, request(**message, cookie=7, data=data) + following)
    (refusal,) = [refusal for batch in batches for refusal in batch.refusals]
    assert (refusal.cookie, refusal.command, refusal.errno) == (7, message["command"], errno)
    assert bool(refusal.sentence) == bool(errno)
    (after,) = [found for batch in batches for found in batch.requests]
    assert after.buffer == b"n" * 512
    release([after])
    assert allowance.taken_bytes == FIRST_BYTES


@pytest.mark.parametrize(
    ("message", "errno"),
    [
        (asks(C.WRITE, length=512), Errno.EPERM),
        (asks(C.WRITE, length=LARGE_BYTES), Errno.EPERM),
        (asks(C.WRITE_ZEROES, length=512), Errno.EPERM),
        (asks(C.TRIM, length=512), Errno.EPERM),
        (asks(C.READ), 0),
    ],
)
def test_a_read_only_export_refuses_every_change(message: dict[str, int], errno: int) -> None:
    inlet, _ = intake(read_only=True)
    data = bytes(message["length"]) if message["command"] == C.WRITE else b""
    (refusal,) = one(inlet, request(**message, cookie=7, data=data)).refusals
    assert refusal.errno == errno


def test_what_was_not_agreed_is_refused() -> None:
    plain, _ = intake(structured=False, contexts=(), fast_zero=False)
    messages = [
        request(C.READ, 0, PAYLOAD_BYTES_MAX + 1, cookie=1),
        request(C.BLOCK_STATUS, 0, 512, cookie=2),
        request(C.WRITE_ZEROES, 0, 512, cookie=3, flags=F.FAST_ZERO),
    ]
    refusals = [refusal.errno for batch in feed(plain, b"".join(messages)) for refusal in batch.refusals]
    assert refusals == [Errno.EINVAL, Errno.EINVAL, Errno.ENOTSUP]


def test_block_status_becomes_a_query() -> None:
    inlet, _ = intake()
    (query,) = one(inlet, request(C.BLOCK_STATUS, 3, SIZE - 3, cookie=5, flags=F.REQ_ONE)).queries
    assert (query.cookie, query.offset, query.length, query.one) == (5, 3, SIZE - 3, True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0" * 28, id="no magic"),
        pytest.param(request(C.READ, 0, 512, cookie=1) + b"\x25\x60\x95\x14" + bytes(24), id="second magic is wrong"),
        pytest.param(request(C.WRITE, 0, SKIPPED_BYTES_MAX + 1, cookie=1), id="a payload without end"),
    ],
)
def test_a_stream_out_of_step_costs_the_connection(data: bytes) -> None:
    inlet, _ = intake()
    with pytest.raises(RemoteError):
        feed(inlet, data)


def test_nothing_is_understood_after_a_goodbye() -> None:
    inlet, _ = intake()
    (batch,) = feed(inlet, request(C.READ, 0, 512, cookie=1) + request(C.DISC, cookie=2) + b"garbage" * 9)[1:]
    assert batch.disconnect and len(batch.requests) == 1


# --- memory ---


def test_large_payloads_start_on_a_page_of_their_own() -> None:
    inlet, _ = intake()
    stream = b"".join(request(C.WRITE, 0, 1 << 20, cookie=n, data=bytes([n]) * (1 << 20)) for n in range(4))
    found = list(itertools.chain.from_iterable(batch.requests for batch in feed(inlet, stream)))
    assert [bytes(f.buffer[:1]) for f in found if f.buffer is not None] == [b"\0", b"\1", b"\2", b"\3"]
    # The payload is the buffer's beginning, and the pool's buffers begin on pages.
    assert all(f.buffer == f.cookie[1].memory[: 1 << 20] and len(f.cookie[1].memory) == 1 << 20 for f in found)


def test_large_payloads_go_where_the_device_wants_them() -> None:
    handed_out: list[memoryview] = []

    def payload_memory(length: int) -> memoryview | None:
        if length > 2 * LARGE_BYTES:
            return None
        handed_out.append(memoryview(bytearray(length)))
        return handed_out[-1]

    inlet, allowance = intake(payload_memory=payload_memory)
    lengths = [LARGE_BYTES, 2 * LARGE_BYTES, LARGE_BYTES - 1, 3 * LARGE_BYTES]
    data = [bytes((i * 7 + length) % 251 for i in range(length)) for length in lengths]
    stream = b"".join(request(C.WRITE, 0, len(each), cookie=1, data=each) for each in data)
    stream += request(C.READ, 0, LARGE_BYTES, cookie=2) + request(C.WRITE, SIZE, LARGE_BYTES, cookie=3, data=data[0])
    batches = feed(inlet, stream)
    found = [each for batch in batches for each in batch.requests]
    assert [each.buffer for each in found[:4]] == data
    assert [each.buffer is memory for each, memory in zip(found, handed_out)] == [True, True] and len(handed_out) == 2
    assert [each.cookie[1] is None for each in found] == [True, True, False, False, False]
    assert [refusal.errno for batch in batches for refusal in batch.refusals] == [Errno.ENOSPC]
    release(found)
    assert allowance.taken_bytes == FIRST_BYTES


def test_parsing_stops_where_the_allowance_ends_and_goes_on_after_a_release() -> None:
    inlet, allowance = intake(memory=FIRST_BYTES + PAYLOAD_BYTES_MAX)
    messages = [request(C.READ, 0, PAYLOAD_BYTES_MAX, cookie=n) for n in range(3)]
    (batch,) = feed(inlet, b"".join(messages))[1:]
    assert batch.blocked and [found.cookie[0] for found in batch.requests] == [0]
    assert inlet.parse(9).blocked
    for n in (1, 2):
        release(batch.requests)
        batch = inlet.parse(9)
        assert [found.cookie[0] for found in batch.requests] == [n]
    release(batch.requests)
    assert allowance.taken_bytes == FIRST_BYTES and not inlet.midway


def test_parsing_takes_no_more_requests_than_asked_for() -> None:
    inlet, _ = intake()
    (batch,) = feed(inlet, request(C.READ, 0, 512, cookie=1) * 5, room=2)[1:]
    assert batch.blocked and len(batch.requests) == 2
    assert len(inlet.parse(2).requests) == 2
    assert len(inlet.parse(2).requests) == 1


def test_a_held_receive_buffer_is_not_written_over() -> None:
    inlet, allowance = intake(memory=FIRST_BYTES + PAYLOAD_BYTES_MAX)
    held: list[tuple[Request, bytes]] = []
    for n in range(300):
        data = bytes([n % 256]) * 8192
        for batch in feed(inlet, request(C.WRITE, 0, 8192, cookie=n, data=data)):
            held += [(found, data) for found in batch.requests]
    assert len(held) == 300 and all(found.buffer == data for found, data in held)
    assert allowance.taken_bytes > FIRST_BYTES
    release([found for found, _ in held])
    assert allowance.taken_bytes == FIRST_BYTES


def test_where_every_buffer_is_held_no_bytes_are_taken() -> None:
    inlet, allowance = intake(memory=FIRST_BYTES + PAYLOAD_BYTES_MAX)
    held: list[Request] = []
    message = request(C.WRITE, 0, 32768, cookie=1, data=bytes(32768))
    while inlet.targets() is not None:
        held += [found for batch in feed(inlet, message) for found in batch.requests]
        assert len(held) < 5000
    release(held)
    assert inlet.targets() is not None and allowance.taken_bytes == FIRST_BYTES


# --- a model ---

commands = st.sampled_from([C.READ, C.WRITE, C.FLUSH, C.TRIM, C.CACHE, C.WRITE_ZEROES, C.BLOCK_STATUS, 77])
lengths = st.sampled_from([0, 1, 512, 4096, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 300_000])
messages = st.lists(
    st.tuples(commands, st.sampled_from([0, 0, 0, 1, 2, 8]), st.sampled_from([0, 513, SIZE - 4096]), lengths),
    max_size=12,
)


def encoded(index: int, command: int, flags: int, offset: int, length: int) -> bytes:
    data = bytes([index]) * length if command == C.WRITE else b""
    return request(command, offset, length, cookie=index, flags=flags, data=data)


@given(messages=messages, sizes=st.lists(st.integers(1, 100_000), min_size=1, max_size=8), data=st.data())
def test_every_request_comes_out_once_and_in_order_however_it_arrives(
    messages: list[tuple[int, int, int, int]], sizes: list[int], data: st.DataObject
) -> None:
    inlet, allowance = intake()
    stream = b"".join(encoded(index, *message) for index, message in enumerate(messages))
    pieces = itertools.cycle(sizes)
    seen: list[int] = []
    to_device: list[int] = []
    held: list[Request] = []
    while stream:
        piece, stream = (lambda n: (stream[:n], stream[n:]))(next(pieces))
        for batch in feed(inlet, piece):
            to_device += [found.cookie[0] for found in batch.requests]
            seen += [r.cookie for r in batch.refusals] + [q.cookie for q in batch.queries]
            for found in batch.requests:
                index = found.cookie[0]
                if found.kind is Kind.WRITE:
                    assert found.buffer == bytes([index]) * messages[index][3]
            held += batch.requests
        if held and data.draw(st.booleans()):
            release(held)
            held = []
    assert to_device == sorted(to_device)
    assert sorted(seen + to_device) == list(range(len(messages)))
    release(held)
    assert not inlet.midway and allowance.taken_bytes == FIRST_BYTES
    inlet.close()
    assert allowance.taken_bytes == 0
