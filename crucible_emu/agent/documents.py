"""The documents of the agent's API, as in ``crucible-agent-1.0.0.json`` (apis-and-tools.md §1.2).

What it is for: requests are checked against these models, answers are made of them, clients read with them; the region
and running-snapshot models are also the entries of the data file. Unknown members are ignored everywhere, as in the
real program. :class:`DigestStatus` is an addition of this project.

Members stand in the real program's order, which is that of its data file.
"""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

U16 = Annotated[int, Field(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def split_address(text: str) -> tuple[str, int]:
    """IP and port of ``ip:port`` or ``[ip]:port``. Raises :class:`ValueError`."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        address = None
    if address is None or (address.version == 6) != bracketed or _PORT.fullmatch(port) is None or int(port) > 65535:
        raise ValueError("an address is written ip:port, or [ip]:port for IPv6")
    return bare, int(port)


def _checked_address(text: str) -> str:
    split_address(text)
    return text


SocketAddr = Annotated[str, AfterValidator(_checked_address)]


class State(Enum):
    """State of a region or of a running snapshot, as clients see it."""

    REQUESTED = "requested"
    CREATED = "created"
    TOMBSTONED = "tombstoned"
    DESTROYED = "destroyed"
    FAILED = "failed"


class Document(BaseModel):
    """What all of them are: values that never change; a repr never shows a key."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CreateRegion(Document):
    """A wish for a region. Sizes: ``block_size`` in bytes, ``extent_size`` in blocks."""

    id: str
    block_size: U64
    extent_size: U64
    extent_count: U32
    encrypted: bool
    cert_pem: str | None = None
    key_pem: str | None = Field(default=None, repr=False)
    root_pem: str | None = None
    source: SocketAddr | None = None


class Region(Document):
    """A region as it is. ``port_number`` is that of its Downstairs."""

    id: str
    state: State
    block_size: U64
    extent_size: U64
    extent_count: U32
    encrypted: bool
    port_number: U16
    cert_pem: str | None = None
    key_pem: str | None = Field(default=None, repr=False)
    root_pem: str | None = None
    source: SocketAddr | None = None
    read_only: bool = False


class Snapshot(Document):
    """A snapshot of a region; ``created`` as RFC 3339."""

    name: str
    created: str


class RunningSnapshot(Document):
    """A snapshot that a read-only Downstairs serves; ``id`` is the region's."""

    id: str
    name: str
    port_number: U16
    state: State


class GetSnapshotResponse(Document):
    """Snapshots of a region, and what was ever run of them."""

    snapshots: list[Snapshot]
    running_snapshots: dict[str, RunningSnapshot]


class DigestStatus(Document):
    """How far the digest of a region or snapshot is, and what it is (:mod:`crucible_emu.region.digest`).

    ``extents`` has one entry per extent, BLAKE3 in hex, null while unknown; ``digest`` is that of the whole. Where the
    region can be written, both are of *flushed* contents: those after the flush ``flush_number`` of ``generation``,
    the newest that any extent carries. ``extents_waiting`` hold writes in their files that no flush has covered yet:
    their digest exists after the next flush. ``error``: why there is no digest, where ``state`` says ``failed``.
    """

    state: Literal["computing", "done", "failed"]
    extents_done: int
    extent_count: int
    extents_waiting: int
    extents: list[str | None]
    digest: str | None
    immutable: bool
    generation: int | None = None
    flush_number: int | None = None
    error: str | None = None
