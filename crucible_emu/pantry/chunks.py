"""Pieces of a volume: what may be read or written in one request, and digests of what was (apis-and-tools.md §2.7).

What it is for: the limits of bulk requests, the cutting of a transfer into pieces, and the comparison of digests. Pure.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from crucible_emu import errors
from crucible_emu.pantry.refusals import Refused, Situation

CHUNK_BYTES_MAX = 512 * 1024
"""In one bulk request, and in one step of an import or a validation."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_length(length: int) -> None:
    """Raises :class:`Refused` where one request asks for too much."""
    if length > CHUNK_BYTES_MAX:
        raise Refused(Situation.BAD_INPUT, f"{length} bytes in one request: at most {CHUNK_BYTES_MAX} are allowed")


def check_range(offset: int, length: int, volume_bytes: int, block_size: int) -> None:
    """Raises :class:`errors.CrucibleError` for a range that is not made of blocks of the volume."""
    if offset % block_size:
        raise errors.OffsetUnaligned()
    if length % block_size:
        raise errors.DataLenUnaligned()
    if offset + length > volume_bytes:
        raise errors.OffsetInvalid()


def decode(text: str) -> bytes:
    """The bytes of a bulk write. Raises :class:`Refused`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Situation.BAD_INPUT, f"base64_encoded_data is no base64: {str(error).lower()}") from None
    check_length(len(data))
    return data


def encode(data: bytes | bytearray) -> str:
    """The text of a bulk read."""
    return base64.b64encode(data).decode("ascii")


def pieces(length: int) -> Iterator[tuple[int, int]]:
    """Offset and length of the steps of a transfer of ``length`` bytes."""
    for offset in range(0, length, CHUNK_BYTES_MAX):
        yield offset, min(CHUNK_BYTES_MAX, length - offset)


def padded(data: bytes, block_size: int) -> bytearray:
    """``data`` and zeros up to a whole number of blocks."""
    whole = bytearray(-(-len(data) // block_size) * block_size)
    whole[: len(data)] = data
    return whole


def expected_digest(sha256: str) -> str:
    """The digest that a caller expects, in lower case. Raises :class:`errors.GenericError` where it can be none: then
    nothing is worth beginning."""
    digest = sha256.lower()
    if _SHA256.fullmatch(digest) is None:
        raise errors.GenericError("the expected digest is no SHA-256: write 64 hexadecimal digits")
    return digest


def check_digest(found: str, expected: str) -> None:
    """Raises :class:`errors.GenericError` where they differ."""
    if found != expected:
        raise errors.GenericError(f"the SHA-256 is {found}, expected was {expected}")


def check_size_to_validate(size: int, volume_bytes: int, block_size: int) -> None:
    """Raises :class:`errors.CrucibleError`."""
    if size % block_size:
        raise errors.GenericError(f"size_to_validate {size} is no multiple of the block size of {block_size} bytes")
    if size > volume_bytes:
        raise errors.GenericError(f"size_to_validate {size} is more than the volume has, {volume_bytes} bytes")
