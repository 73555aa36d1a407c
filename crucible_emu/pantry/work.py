"""What the pantry's jobs do: fill a volume from a URL, scrub it, check its digest (apis-and-tools.md §2.7, §2.8).

What it guarantees: a job tells how far it is while it runs. An import is durable before its digest is compared; one
that fails leaves what was written, as in the real pantry. Where the last piece is no whole number of blocks, zeros
follow it (the real one dies there). At most :data:`PIECES_AHEAD` pieces are held in memory.
"""

from __future__ import annotations

import hashlib
from collections import deque

import trio

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.pantry import chunks
from crucible_emu.pantry.fetching import Source, http_client
from crucible_emu.pantry.ledger import Job
from crucible_emu.volume.image import submit
from crucible_emu.volume.volume import Volume

PIECES_AHEAD = 4


async def activate(volume: Volume, job: Job) -> None:
    """Bring the volume into service, however long that takes. Raises :class:`errors.CrucibleError`."""
    await volume.activate()


async def import_from_url(volume: Volume, job: Job, url: str, sha256: str | None) -> None:
    """Fill the beginning of ``volume`` with the content at ``url``. Raises :class:`errors.CrucibleError`."""
    expected = None if sha256 is None else chunks.expected_digest(sha256)
    async with http_client() as client:
        source = Source(client, url)
        length = await source.length()
        if length > volume.size_bytes:
            raise errors.GenericError(
                f"the content has {length} bytes, more than the volume, which has {volume.size_bytes}"
            )
        job.total_bytes = length
        digest = await _copy(source, length, volume, job)
    await volume.flush()
    if expected is not None:
        chunks.check_digest(digest, expected)


async def _copy(source: Source, length: int, volume: Volume, job: Job) -> str:
    """Fetch and write at the same time; the SHA-256 of what came."""
    hasher = hashlib.sha256()
    send, receive = trio.open_memory_channel[tuple[int, bytes]](PIECES_AHEAD - 2)

    async def fetch() -> None:
        async with send:
            for offset, wanted in chunks.pieces(length):
                await send.send((offset, await source.piece(offset, wanted, length)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        async for offset, data in receive:
            hasher.update(data)
            block = memoryview(chunks.padded(data, volume.block_size))
            await submit(volume, Request(Kind.WRITE, offset, len(block), block))
            job.done_bytes += len(data)
    return hasher.hexdigest()


async def validate(volume: Volume, job: Job, sha256: str, size: int | None) -> None:
    """Compare the digest of the first ``size`` bytes, by default of all. Raises :class:`errors.CrucibleError`."""
    expected = chunks.expected_digest(sha256)
    end = volume.size_bytes if size is None else size
    chunks.check_size_to_validate(end, volume.size_bytes, volume.block_size)
    job.total_bytes = end
    hasher = hashlib.sha256()
    under_way: deque[tuple[Request, trio.Event]] = deque()
    for offset, length in chunks.pieces(end):
        under_way.append(await _begin_read(volume, offset, length))
        if len(under_way) == PIECES_AHEAD:
            await _take(under_way, hasher, job)
    while under_way:
        await _take(under_way, hasher, job)
    chunks.check_digest(hasher.hexdigest(), expected)


async def _begin_read(volume: Volume, offset: int, length: int) -> tuple[Request, trio.Event]:
    request, done = Request(Kind.READ, offset, length, memoryview(bytearray(length))), trio.Event()
    await volume.wait_for_room()
    volume.submit([request], lambda _: done.set())
    return request, done


async def _take(under_way: deque[tuple[Request, trio.Event]], hasher: hashlib._Hash, job: Job) -> None:
    """Wait for the oldest read, and digest what it read."""
    request, done = under_way.popleft()
    await done.wait()
    if request.error is not None:
        raise request.error
    assert request.buffer is not None
    hasher.update(request.buffer)
    job.done_bytes += request.length


async def scrub(volume: Volume, job: Job) -> None:
    """Make the volume independent of its parent. Raises :class:`errors.CrucibleError`."""
    job.total_bytes = volume.parent_end
    await volume.scrub()


def update_progress(volume: Volume, job: Job) -> None:
    """Note how far a scrub is: it counts for itself."""
    if job.total_bytes is not None:
        job.done_bytes = min(volume.scrub_point, job.total_bytes)
