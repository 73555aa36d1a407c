"""The VCR as the control plane records it: the data plane's document, and the few shapes that only a database holds.

What it is for: ``volume.data`` is a VCR that a program can be started with, or the VCR of a *synthetic* volume, which
only owns or keeps something and is never constructed (nexus.md §6.1): a region set of fewer than three targets, of no
extents, of block size 0. :func:`parse` reads both. What leaves for a program is checked by that program with the strict
models of ``crucible_emu.volume.vcr``, of which these are subclasses.

What it guarantees: a document is immutable. Its key shows in :func:`write` alone, whose text goes into ``volume.data``
and nowhere else. An :class:`Address` is IPv6; two spellings of one address are equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError, field_validator

from crucible_emu.volume.vcr import (
    TARGETS,
    CrucibleOpts,
    FileRequest,
    RegionRequest,
    UrlRequest,
    VolumeConstructionRequest,
    VolumeRequest,
    dumps,
    parse_address,
)

BLOCK_SIZES = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Those of the data plane, and 0 for what is never constructed."""

SYNTHETIC_BLOCK_SIZE = 512


class MalformedVolume(Exception):
    """A recorded VCR is not what it must be: a defect of the control plane, or damage. The message has no key in it."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a Downstairs listens: IPv6 in canonical spelling, and the port."""

    ip: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address in ``[ip]:port``. Raises :class:`MalformedVolume`, for IPv4 too, which is illegal everywhere."""
        try:
            ip, port = parse_address(text)
        except ValueError as error:
            raise MalformedVolume(str(error)) from None
        if ":" not in ip:
            raise MalformedVolume(f"{text} is IPv4; a target is [IPv6]:port")
        return cls(ip, port)

    @classmethod
    def of(cls, ip: str, port: int) -> Address:
        """The address of a port of ``ip``, whose spelling may be any."""
        return cls(str(IPv6Address(ip)), port)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}"


class RecordedOpts(CrucibleOpts):
    """Options with up to three targets."""

    @field_validator("target")
    @classmethod
    def _three_targets(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        if len(target) > TARGETS:
            raise ValueError(f"a region set has at most {TARGETS} targets, this one has {len(target)}")
        for address in target:
            parse_address(address)
        return target


def _known_block_size(size: int) -> int:
    if size not in BLOCK_SIZES:
        raise ValueError(f"block size {size} is none of {', '.join(map(str, BLOCK_SIZES))}")
    return size


class RecordedRegion(RegionRequest):
    """A region set, whole or synthetic."""

    opts: RecordedOpts
    blocks_per_extent: Annotated[int, Field(ge=0)]
    extent_count: Annotated[int, Field(ge=0, lt=2**32)]

    @field_validator("block_size")
    @classmethod
    def _block_size(cls, size: int) -> int:
        return _known_block_size(size)


class RecordedVolume(VolumeRequest):
    """A volume of recorded parts."""

    type: Literal["volume"]
    sub_volumes: tuple[RecordedRequest, ...]
    read_only_parent: RecordedRequest | None = None

    @field_validator("block_size")
    @classmethod
    def _block_size(cls, size: int) -> int:
        return _known_block_size(size)


RecordedRequest = Annotated[RecordedVolume | RecordedRegion | UrlRequest | FileRequest, Field(discriminator="type")]
RecordedVolume.model_rebuild()


class _Document(BaseModel):
    request: RecordedRequest


def parse(text: str, source: str = "the volume") -> VolumeConstructionRequest:
    """The document in ``volume.data``. Raises :class:`MalformedVolume`, which names the place and never a key."""
    try:
        whole = json.dumps({"request": json.loads(text)})
        found = _Document.model_validate_json(whole, strict=True).request
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the document"
        raise MalformedVolume(f"{source}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, RecursionError) as error:
        # Not chained: a JSON error carries the whole document, and with it the key.
        raise MalformedVolume(f"{source} is not a VCR: {type(error).__name__}") from None
    return found


def write(request: VolumeConstructionRequest) -> str:
    """The text for ``volume.data``, keys in clear: a secret."""
    return dumps(request)


def _one_set(volume_id: UUID, targets: tuple[Address, ...], *, read_only: bool) -> VolumeConstructionRequest:
    """The fixed tiny volume around one region set; ``volume_id`` is the set's id, too: it is never constructed."""
    region = RecordedRegion(
        type="region",
        block_size=SYNTHETIC_BLOCK_SIZE,
        blocks_per_extent=1,
        extent_count=1,
        gen=1,
        opts=RecordedOpts(id=volume_id, target=tuple(map(str, targets)), read_only=read_only),
    )
    return RecordedVolume(type="volume", id=volume_id, block_size=SYNTHETIC_BLOCK_SIZE, sub_volumes=(region,))


def read_write_stash(volume_id: UUID, old: Address) -> VolumeConstructionRequest:
    """Owns a read/write region that was replaced, so that deleting the volume destroys it (§6.1)."""
    return _one_set(volume_id, (old,), read_only=False)


def snapshot_stash(volume_id: UUID) -> VolumeConstructionRequest:
    """Will take over the reference to a read-only target; names nothing until then, or it would hold one more (R6)."""
    return _one_set(volume_id, (), read_only=True)


def kept_target(volume_id: UUID, target: Address) -> VolumeConstructionRequest:
    """Keeps one reference to a read-only target: the holder volume (R5), and a stash once the swap is done (R7)."""
    return _one_set(volume_id, (target,), read_only=True)


def blank(volume_id: UUID) -> VolumeConstructionRequest:
    """Nothing, yet: where a read-only parent is put when it is taken from a volume."""
    return RecordedVolume(type="volume", id=volume_id, block_size=SYNTHETIC_BLOCK_SIZE, sub_volumes=())


def with_parent(volume_id: UUID, parent: VolumeConstructionRequest) -> VolumeConstructionRequest:
    """A volume of a read-only parent alone."""
    return blank(volume_id).model_copy(update={"read_only_parent": parent})
