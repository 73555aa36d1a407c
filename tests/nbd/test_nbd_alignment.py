"""Any byte range on a device of blocks: the bytes end up as if changes had come one after the other."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from nbd_devices import HeldDevice

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd.alignment import LOCKED_MAX, ByteDevice

BLOCK = 16
SIZE = 8 * BLOCK


class Bench:
    """A byte device over a held device, with the loop's next turn in the test's hands."""

    def __init__(self, fail: Callable[[Request], errors.CrucibleError | None] | None = None, size: int = SIZE) -> None:
        self.device = HeldDevice(MemoryDevice(size, BLOCK), fail)
        self.device.memory.data[:] = bytes(i % 256 for i in range(size))
        self.deferred: list[Callable[[], None]] = []
        self.bytes = ByteDevice(self.device, self.deferred.append)
        self.done: list[Request] = []

    def submit(self, *requests: Request) -> None:
        bits = 0
        for request in requests:
            bits |= request.offset | request.length
        self.bytes.submit(list(requests), self.done.extend, bits)

    def turn(self) -> None:
        deferred, self.deferred[:] = list(self.deferred), []
        for function in deferred:
            function()

    def settle(self) -> None:
        while self.device.held or self.deferred:
            self.device.release_all()
            self.turn()


def write(offset: int, data: bytes, *, fua: bool = False) -> Request:
    return Request(Kind.WRITE, offset, len(data), memoryview(bytearray(data)), fua=fua)


def read(offset: int, length: int) -> Request:
    return Request(Kind.READ, offset, length, memoryview(bytearray(length)))


def test_aligned_requests_pass_untouched() -> None:
    bench = Bench()
    requests = [write(0, bytes(BLOCK)), read(BLOCK, BLOCK), Request(Kind.FLUSH)]
    bench.submit(*requests)
    assert bench.device.admissions == [requests]


def test_a_read_is_widened_and_cut() -> None:
    bench = Bench()
    request = read(BLOCK - 3, BLOCK + 7)
    bench.submit(request)
    (found,) = bench.device.admissions[0]
    assert (found.offset, found.length) == (0, 3 * BLOCK)
    bench.settle()
    assert bench.done == [request] and request.buffer == bytes(range(BLOCK - 3, 2 * BLOCK + 4))


def test_a_write_reads_its_edges_and_keeps_its_middle_where_it_is() -> None:
    bench = Bench()
    request = write(BLOCK - 1, b"x" * (2 * BLOCK + 2), fua=True)
    bench.submit(request)
    assert [(r.kind, r.offset, r.length) for r in bench.device.admissions[0]] == [
        (Kind.READ, 0, BLOCK),
        (Kind.READ, 3 * BLOCK, BLOCK),
    ]
    assert bench.bytes.locked
    bench.device.release_all()
    bench.turn()
    assert not bench.bytes.locked
    parts = bench.device.admissions[1]
    assert [(r.kind, r.offset, r.length, r.fua) for r in parts] == [
        (Kind.WRITE, 0, BLOCK, True),
        (Kind.WRITE, 3 * BLOCK, BLOCK, True),
        (Kind.WRITE, BLOCK, 2 * BLOCK, True),
    ]
    assert request.buffer is not None and parts[2].buffer is not None and parts[2].buffer.obj is request.buffer.obj
    bench.settle()
    assert bench.done == [request]


def test_zeroing_without_holes_says_so_for_its_middle() -> None:
    bench = Bench()
    bench.submit(Request(Kind.WRITE_ZEROES, 1, SIZE - 2, no_hole=True))
    bench.settle()
    assert [(r.kind, r.no_hole) for r in bench.device.admissions[1]] == [
        (Kind.WRITE, False),
        (Kind.WRITE, False),
        (Kind.WRITE_ZEROES, True),
    ]
    assert bytes(bench.device.memory.data) == b"\0" + bytes(SIZE - 2) + bytes([SIZE - 1])


def test_a_trim_shrinks_to_its_blocks_and_may_vanish() -> None:
    bench = Bench()
    nothing = Request(Kind.TRIM, 1, 2 * BLOCK - 2)
    something = Request(Kind.TRIM, 1, 2 * BLOCK)
    bench.submit(nothing, something)
    assert [(r.offset, r.length) for r in bench.device.admissions[0]] == [(BLOCK, BLOCK)]
    bench.settle()
    assert bench.done == [nothing, something] and all(request.error is None for request in bench.done)


def test_a_whole_block_write_waits_for_the_patch_of_its_block() -> None:
    """The lost update: an aligned write between an edge's read and its write back must not be overwritten."""
    bench = Bench()
    bench.submit(write(3, b"ragged"))
    whole = write(0, b"W" * BLOCK)
    elsewhere = write(BLOCK, b"E" * BLOCK)
    bench.submit(whole)
    bench.submit(elsewhere)
    assert len(bench.device.admissions) == 1, "both changes wait in line"
    between = read(0, BLOCK)
    bench.submit(between)
    assert len(bench.device.admissions) == 2, "a read does not wait"
    bench.settle()
    assert bytes(bench.device.memory.data[: 2 * BLOCK]) == b"W" * BLOCK + b"E" * BLOCK


def test_an_aligned_write_does_not_overtake_a_patch_that_waits_for_the_next_turn() -> None:
    bench = Bench()
    bench.submit(write(3, b"ragged"))
    bench.device.release_all()
    assert bench.deferred and not bench.bytes.locked
    bench.submit(write(0, b"W" * BLOCK))
    bench.settle()
    assert bytes(bench.device.memory.data[:BLOCK]) == b"W" * BLOCK


def test_a_failed_read_of_an_edge_fails_the_write_and_lets_the_next_one_in() -> None:
    failing = [True]

    def fail(request: Request) -> errors.CrucibleError | None:
        return errors.IoError("worn out") if failing[0] and request.kind is Kind.READ else None

    bench = Bench(fail)
    broken, following = write(1, b"a"), write(2, b"b")
    bench.submit(broken, following)
    failing[0] = False
    bench.settle()
    assert bench.done == [broken, following]
    assert broken.error == errors.IoError("worn out") and following.error is None
    assert bytes(bench.device.memory.data[:4]) == b"\0\1b\3"


def test_only_so_many_updates_are_under_way_at_once() -> None:
    bench = Bench(size=(LOCKED_MAX + 9) * BLOCK)
    for index in range(LOCKED_MAX + 9):
        bench.submit(write(index * BLOCK + 1, b"x"))
    assert len(bench.device.held) == LOCKED_MAX
    bench.settle()
    assert len(bench.done) == LOCKED_MAX + 9
    assert bytes(bench.device.memory.data[1::BLOCK]) == b"x" * (LOCKED_MAX + 9)


ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))
changes = st.tuples(st.sampled_from([Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM, Kind.READ, Kind.FLUSH]), ranges)
steps = st.lists(
    st.one_of(
        st.lists(changes, min_size=1, max_size=4),
        st.integers(0, 30).map(lambda index: ("release", index)),
        st.just(("turn", 0)),
    ),
    max_size=30,
)


@given(program=steps, failures=st.sets(st.integers(0, 60), max_size=3))
def test_changes_apply_in_the_order_in_which_they_came(program: list[object], failures: set[int]) -> None:
    admitted = 0

    def fail(request: Request) -> errors.CrucibleError | None:
        nonlocal admitted
        admitted += 1
        return errors.IoError("") if admitted in failures else None

    bench = Bench(fail)
    submitted: list[Request] = []
    for step in program:
        if isinstance(step, list):
            batch = []
            for kind, (offset, length) in step:
                fill = bytes([128 + len(submitted) % 100]) * length
                request = Request(kind) if kind is Kind.FLUSH else Request(kind, offset, length)
                if kind in (Kind.READ, Kind.WRITE):
                    request.buffer = memoryview(bytearray(fill))
                submitted.append(request)
                batch.append(request)
            bench.submit(*batch)
        elif step == ("turn", 0):
            bench.turn()
        elif bench.device.held:
            bench.device.release(step[1] % len(bench.device.held))  # type: ignore[index]
    bench.settle()
    assert sorted(map(id, bench.done)) == sorted(map(id, submitted))
    assert not bench.bytes.locked
    assert bytes_may_be(submitted, bytes(bench.device.memory.data))


def bytes_may_be(submitted: list[Request], found: bytes) -> bool:
    """Whether ``found`` is what the changes come to; a byte under a failed change may be anything until it is
    changed again."""
    expected: list[int | None] = [i % 256 for i in range(SIZE)]
    for request in submitted:
        start, end = request.offset, request.offset + request.length
        if request.kind is Kind.TRIM:
            start, end = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
        for index in range(start, end):
            if request.kind in (Kind.READ, Kind.FLUSH):
                continue
            value = request.buffer[index - request.offset] if request.buffer is not None else 0
            expected[index] = None if request.error is not None else value
    return all(wanted is None or wanted == byte for wanted, byte in zip(expected, found))


@given(program=st.lists(changes, max_size=12))
def test_a_read_that_is_alone_sees_every_change_before_it(program: list[tuple[Kind, tuple[int, int]]]) -> None:
    bench = Bench()
    model = bytearray(bench.device.memory.data)
    for index, (kind, (offset, length)) in enumerate(program):
        request = write(offset, bytes([200 + index]) * length) if kind is Kind.WRITE else Request(kind, offset, length)
        if kind is Kind.READ:
            request = read(offset, length)
        bench.submit(request)
        bench.settle()
        if kind is Kind.READ:
            assert request.buffer == model[offset : offset + length]
        elif kind is Kind.WRITE:
            model[offset : offset + length] = request.buffer or b""
        elif kind is Kind.WRITE_ZEROES:
            model[offset : offset + length] = bytes(length)
        elif kind is Kind.TRIM:
            start, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
            model[start : max(start, end)] = bytes(max(0, end - start))
