"""The documents of the pantry's API, by the names and members of its OpenAPI document (versions 1.0.0 and 2.0.0).

What it is for: the service reads and writes these, and so do clients. Requests ignore members that they do not know,
except :class:`ExpectedDigest`. :class:`JobStatus` is of this project only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from crucible_emu.pantry.states import JobKind, JobState
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume.info import VolumeInfo
from crucible_emu.volume.vcr import VolumeConstructionRequest

Uint64 = Annotated[int, Field(ge=0, lt=2**64)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PantryStatus(_Document):
    """The whole service. ``num_job_handles`` counts finished jobs too."""

    volumes: tuple[str, ...]
    num_job_handles: Uint64


class VolumeStatusV1(_Document):
    """One volume, in API version 1.0.0."""

    active: bool
    seen_active: bool
    num_job_handles: Uint64


class VolumeStatus(VolumeStatusV1):
    """One volume, from API version 2.0.0 on."""

    info: VolumeInfo


class AttachRequest(_Document):
    """Attach and wait until the volume is active."""

    volume_construction_request: VolumeConstructionRequest


class AttachResult(_Document):
    """The volume that is attached."""

    id: str


class AttachBackgroundRequest(_Document):
    """Attach; ``job_id`` activates it."""

    job_id: str
    volume_construction_request: VolumeConstructionRequest


class ReplaceRequest(_Document):
    """What the volume shall be made of from now on."""

    volume_construction_request: VolumeConstructionRequest


class JobPollResponse(_Document):
    """Has the job ended?"""

    job_is_finished: bool


class JobResultOkResponse(_Document):
    """Has it succeeded?"""

    job_result_ok: bool


class JobStatus(_Document):
    """How far a job is; an extension of this project. ``total_bytes`` is null where nobody knows."""

    kind: JobKind
    state: JobState
    done_bytes: Uint64
    total_bytes: Uint64 | None
    error: str | None


class ExpectedDigest(BaseModel):
    """A digest in hexadecimal digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str


class ImportFromUrlRequest(_Document):
    """Fill the volume from ``url``."""

    url: str
    expected_digest: ExpectedDigest | None = None


class ImportFromUrlResponse(_Document):
    """The job that does it."""

    job_id: str


class SnapshotRequest(_Document):
    """The name of the snapshot."""

    snapshot_id: str


class BulkWriteRequest(_Document):
    """At most 512 KiB, once decoded; ``offset`` in bytes."""

    offset: Uint64
    base64_encoded_data: str


class BulkReadRequest(_Document):
    """``offset`` and ``size`` in bytes; at most 512 KiB."""

    offset: Uint64
    size: Uint64


class BulkReadResponse(_Document):
    """What was read."""

    base64_encoded_data: str


class ScrubResponse(_Document):
    """The job that does it."""

    job_id: str


class ValidateRequest(_Document):
    """``size_to_validate``: so many bytes from the start; all where it is missing."""

    expected_digest: ExpectedDigest
    size_to_validate: Uint64 | None = None


class ValidateResponse(_Document):
    """The job that does it."""

    job_id: str


__all__ = [
    "AttachBackgroundRequest",
    "AttachRequest",
    "AttachResult",
    "BulkReadRequest",
    "BulkReadResponse",
    "BulkWriteRequest",
    "ExpectedDigest",
    "ImportFromUrlRequest",
    "ImportFromUrlResponse",
    "JobPollResponse",
    "JobResultOkResponse",
    "JobStatus",
    "PantryStatus",
    "ReplaceRequest",
    "ReplaceResult",
    "ScrubResponse",
    "SnapshotRequest",
    "ValidateRequest",
    "ValidateResponse",
    "VolumeInfo",
    "VolumeStatus",
    "VolumeStatusV1",
]
