"""The memory device: the seam's rules, and its allocation map."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice

BLOCK, BLOCKS = 512, 16


def done_by(device: MemoryDevice, *requests: Request) -> list[Request]:
    reports: list[list[Request]] = []
    device.submit(list(requests), reports.append)
    (report,) = reports
    return report


async def test_a_batch_is_done_in_order_and_reported_in_one_call() -> None:
    device = MemoryDevice(BLOCK * BLOCKS, BLOCK)
    await device.wait_for_room()
    found = memoryview(bytearray(2 * BLOCK))
    batch = [
        Request(Kind.WRITE, BLOCK, BLOCK, memoryview(b"a" * BLOCK)),
        Request(Kind.READ, 0, 2 * BLOCK, found),
        Request(Kind.FLUSH),
        Request(Kind.TRIM, BLOCK, BLOCK),
    ]
    assert done_by(device, *batch) == batch and all(request.error is None for request in batch)
    assert found == bytes(BLOCK) + b"a" * BLOCK
    assert (device.size_bytes, device.block_size, device.flushes) == (BLOCK * BLOCKS, BLOCK, 1)
    assert not any(device.data)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(Kind.READ, 1, BLOCK, memoryview(bytearray(BLOCK))), errors.OffsetUnaligned()),
        (Request(Kind.READ, BLOCK * BLOCKS, BLOCK, memoryview(bytearray(BLOCK))), errors.OffsetInvalid()),
        (Request(Kind.WRITE, 0, BLOCK, memoryview(bytes(BLOCK))), errors.ModifyingReadOnlyRegion()),
        (Request(Kind.TRIM, 0, BLOCK), errors.ModifyingReadOnlyRegion()),
    ],
)
def test_what_cannot_be_done_is_an_error(request_: Request, error: errors.CrucibleError) -> None:
    (found,) = done_by(MemoryDevice(BLOCK * BLOCKS, BLOCK, read_only=True), request_)
    assert found.error == error


def test_a_size_of_broken_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="not made of blocks"):
        MemoryDevice(1000, 512)


steps = st.tuples(
    st.sampled_from([kind for kind in Kind if kind is not Kind.WRITE_UNWRITTEN]),
    st.integers(0, BLOCKS - 1),
    st.integers(1, BLOCKS),
    st.booleans(),
)


@given(program=st.lists(steps, max_size=20))
async def test_the_map_tells_what_was_written(program: list[tuple[Kind, int, int, bool]]) -> None:
    device = MemoryDevice(BLOCK * BLOCKS, BLOCK)
    written = [False] * BLOCKS
    for kind, first, count, no_hole in program:
        count = min(count, BLOCKS - first)
        buffer = memoryview(bytearray(b"x" * (count * BLOCK))) if kind in (Kind.READ, Kind.WRITE) else None
        done_by(device, Request(kind, first * BLOCK, count * BLOCK, buffer, no_hole=no_hole))
        if kind in (Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM):
            written[first : first + count] = [kind is Kind.WRITE or (kind is Kind.WRITE_ZEROES and no_hole)] * count
    runs = await device.allocation(0, device.size_bytes)
    assert [run.depth for run in runs for _ in range(run.length // BLOCK)] == list(map(int, written))
    assert await device.allocation(BLOCK, BLOCK) == [Allocation(BLOCK, int(written[1]))]
