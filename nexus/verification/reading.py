"""Reading all of a volume through an Upstairs, at a pantry where it is attached.

The Upstairs checks each block that it reads: its hash, and where there is a key, its authenticity. So what was read is
what was once written. What cannot be read is named by its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from crucible_emu.client.pantry import CHUNK_BYTES_MAX
from nexus.services import Pantries, PantryAddress, ServiceRefused

NOT_ATTACHED = frozenset({404, 410})
"""Statuses that say that the volume is not attached there, or that another has taken it."""


@dataclass(slots=True)
class ReadThrough:
    """What became of it. ``digest``: BLAKE3 of all bytes, as ``b3sum`` says of an exported image; ``None`` where some
    could not be read. ``unreadable``: first byte and length of each piece, and why."""

    bytes_read: int = 0
    digest: str | None = None
    unreadable: list[tuple[int, int, str]] = field(default_factory=list)


async def read_through(
    pantries: Pantries, address: PantryAddress, attachment_id: str, size_bytes: int, piece_bytes: int
) -> ReadThrough:
    """Read the attached volume to its end in pieces of ``piece_bytes`` or less. Raises
    :class:`~nexus.services.Gone`."""
    found, digest = ReadThrough(), blake3()
    step = min(piece_bytes, CHUNK_BYTES_MAX)
    for offset in range(0, size_bytes, step):
        length = min(step, size_bytes - offset)
        try:
            data = await pantries.bulk_read(address, attachment_id, offset, length)
        except ServiceRefused as error:
            if error.status in NOT_ATTACHED:
                found.unreadable.append((offset, size_bytes - offset, str(error)))
                break
            found.unreadable.append((offset, length, str(error)))
            continue
        digest.update(data)
        found.bytes_read += length
    if not found.unreadable:
        found.digest = digest.hexdigest()
    return found
