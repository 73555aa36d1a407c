"""The volume construction request (VCR): the document that says what a disk is made of (upstairs-volume.md §12).

What it is for: the models read and write the JSON of the real programs. A person's or a control plane's document comes
in through :func:`load`, which answers a bad one with a sentence that names the place.

What it guarantees: nullable members may be left out and unknown ones are ignored, as in the real one; what is written
has every member, in its order. The key never shows: not in ``repr``, not in an error.
"""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from crucible_emu.errors import UsageError
from crucible_emu.geometry import check_block_size

TARGETS = 3
ADDRESS_CHARACTERS_MAX = 100
SOCKET_PATH_BYTES_MAX = 107
"""Linux takes no longer path for a unix socket."""
PLACE_CHARACTERS_MAX = 120
_ADDRESS = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})", re.ASCII)


def _required_in_json(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema["properties"] if name in ("id", "target", "lossy", "read_only")]


class CrucibleOpts(BaseModel):
    """How to reach a region set. ``target`` holds three addresses, ``ip:port`` or ``[ip]:port``, in client order. Of a
    Downstairs on this machine it may be the path of its unix socket instead, which begins with a slash.

    Code may leave ``lossy`` and ``read_only`` out, a JSON document may not, as in the real one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_required_in_json)

    id: UUID
    target: tuple[str, ...]
    lossy: bool = False
    flush_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    key: SecretStr | None = None
    cert_pem: str | None = None
    key_pem: str | None = None
    root_cert_pem: str | None = None
    control: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> CrucibleOpts:
        for name in ("lossy", "read_only"):
            if info.mode == "json" and name not in self.model_fields_set:
                raise ValueError(f"{name} is missing: write true or false")
        return self

    @field_validator("target")
    @classmethod
    def _three_targets(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        if len(target) != TARGETS:
            raise ValueError(f"a region set has exactly {TARGETS} targets, this one has {len(target)}")
        for address in target:
            check_target(address)
        return target

    @field_serializer("key")
    def _write_key(self, key: SecretStr | None) -> str | None:
        return None if key is None else key.get_secret_value()


class RegionRequest(BaseModel):
    """A region set."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["region"]
    block_size: int
    blocks_per_extent: Annotated[int, Field(ge=1)]
    extent_count: Annotated[int, Field(ge=1, lt=2**32)]
    opts: CrucibleOpts
    gen: Annotated[int, Field(ge=0, lt=2**64)]

    @field_validator("block_size")
    @classmethod
    def _block_size(cls, size: int) -> int:
        return check_block_size(size)


class UrlRequest(BaseModel):
    """Blocks read from a URL."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["url"]
    id: UUID
    block_size: int
    url: str


class FileRequest(BaseModel):
    """Blocks of a local file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["file"]
    id: UUID
    block_size: int
    path: str


class VolumeRequest(BaseModel):
    """Sub-volumes one after the other, and what reads fall through to where they are unwritten."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["volume"]
    id: UUID
    block_size: int
    sub_volumes: tuple[VolumeConstructionRequest, ...]
    read_only_parent: VolumeConstructionRequest | None = None

    @field_validator("block_size")
    @classmethod
    def _block_size(cls, size: int) -> int:
        return check_block_size(size)


VolumeConstructionRequest = Annotated[
    VolumeRequest | RegionRequest | UrlRequest | FileRequest, Field(discriminator="type")
]
VolumeRequest.model_rebuild()


def targets(request: VolumeConstructionRequest) -> list[str]:
    """The addresses of all Downstairs of the sub-volumes, in order; those of read-only parents are not among them."""
    if isinstance(request, VolumeRequest):
        return [address for part in request.sub_volumes for address in targets(part)]
    return list(request.opts.target) if isinstance(request, RegionRequest) else []


class _Document(BaseModel):
    request: VolumeConstructionRequest


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``ip:port`` or ``[ip]:port``. Raises :class:`ValueError`."""
    match = _ADDRESS.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        host = str(IPv6Address(match["six"]) if match["six"] is not None else IPv4Address(match["four"]))
        port = int(match["port"])
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        shown = text if len(text) <= ADDRESS_CHARACTERS_MAX else text[:ADDRESS_CHARACTERS_MAX] + "..."
        raise ValueError(f"{shown!r} is not an address: write ip:port, or [ip]:port for IPv6") from None
    return host, port


def is_socket_path(target: str) -> bool:
    """Whether a target is the path of a unix socket."""
    return target.startswith("/")


def check_target(target: str) -> None:
    """Raises :class:`ValueError` where nothing could be reached at ``target``, whatever listens."""
    if not is_socket_path(target):
        parse_address(target)
    elif "\0" in target or len(target.encode()) > SOCKET_PATH_BYTES_MAX:
        shown = target if len(target) <= ADDRESS_CHARACTERS_MAX else target[:ADDRESS_CHARACTERS_MAX] + "..."
        raise ValueError(f"{shown!r} is no path of a unix socket: it has at most {SOCKET_PATH_BYTES_MAX} bytes")


def parse(text: str | bytes, source: str = "the VCR") -> VolumeConstructionRequest:
    """The request in a JSON text. Raises :class:`UsageError` that names ``source``, the place, and never a key."""
    try:
        members = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply to be a VCR") from None
    try:
        # As JSON once more, because only there "strict" knows that a UUID is written as a string.
        return _Document.model_validate_json(json.dumps({"request": members}), strict=True).request
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the document"
        if len(place) > PLACE_CHARACTERS_MAX:
            place = "..." + place[-PLACE_CHARACTERS_MAX:]
        raise UsageError(f"{source}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def load(path: Path) -> VolumeConstructionRequest:
    """The request in the file ``path``. Raises :class:`UsageError`."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read the VCR {path}: {(error.strerror or str(error)).lower()}") from None


def dumps(request: BaseModel) -> str:
    """The request as JSON, with its keys in clear: treat the text as a secret."""
    return json.dumps(request.model_dump(mode="json"), indent=2) + "\n"
