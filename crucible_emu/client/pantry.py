"""A pantry over HTTP (apis-and-tools.md §2.1).

What it is for: one method for each operation of ``crucible-pantry-2.0.0.json``, and this project's progress of a job.
Bytes go in and out as bytes; the coding that the document asks for is done here.
"""

from __future__ import annotations

import base64
import binascii

from pydantic import TypeAdapter

from crucible_emu.client.service import ServiceClient, segment
from crucible_emu.errors import RemoteError
from crucible_emu.pantry.documents import (
    AttachBackgroundRequest,
    AttachRequest,
    AttachResult,
    BulkReadRequest,
    BulkReadResponse,
    BulkWriteRequest,
    ExpectedDigest,
    ImportFromUrlRequest,
    ImportFromUrlResponse,
    JobPollResponse,
    JobResultOkResponse,
    JobStatus,
    PantryStatus,
    ReplaceRequest,
    ReplaceResult,
    ScrubResponse,
    SnapshotRequest,
    ValidateRequest,
    ValidateResponse,
    VolumeStatus,
)
from crucible_emu.volume.vcr import VolumeConstructionRequest

BASE = "/crucible/pantry/0"
CHUNK_BYTES_MAX = 512 << 10
"""The most that one bulk operation moves (§2.4)."""

_PANTRY = TypeAdapter(PantryStatus)
_VOLUME = TypeAdapter(VolumeStatus)
_ATTACHED = TypeAdapter(AttachResult)
_REPLACED: TypeAdapter[ReplaceResult] = TypeAdapter(ReplaceResult)
_FINISHED = TypeAdapter(JobPollResponse)
_OK = TypeAdapter(JobResultOkResponse)
_JOB = TypeAdapter(JobStatus)
_IMPORT = TypeAdapter(ImportFromUrlResponse)
_READ = TypeAdapter(BulkReadResponse)
_SCRUB = TypeAdapter(ScrubResponse)
_VALIDATE = TypeAdapter(ValidateResponse)


class PantryClient(ServiceClient):
    """Volumes and jobs of one pantry; what each raises is in :mod:`crucible_emu.client.service`.

    A volume that another client took over is refused with status 410 (§2.4).
    """

    VERSION = "2.0.0"

    async def pantry_status(self) -> PantryStatus:
        return await self._ask("GET", BASE, _PANTRY)

    async def volume_status(self, volume_id: str) -> VolumeStatus:
        return await self._ask("GET", _volume(volume_id), _VOLUME)

    async def attach(self, volume_id: str, request: VolumeConstructionRequest) -> AttachResult:
        """Attach, and return when the volume is active."""
        body = AttachRequest(volume_construction_request=request)
        return await self._ask("POST", _volume(volume_id), _ATTACHED, body, waits=True)

    async def attach_activate_background(self, volume_id: str, job_id: str, request: VolumeConstructionRequest) -> None:
        """Attach; the job ``job_id`` activates the volume."""
        body = AttachBackgroundRequest(job_id=job_id, volume_construction_request=request)
        await self._tell("POST", f"{_volume(volume_id)}/background", body)

    async def replace(self, volume_id: str, request: VolumeConstructionRequest) -> ReplaceResult:
        body = ReplaceRequest(volume_construction_request=request)
        return await self._ask("POST", f"{_volume(volume_id)}/replace", _REPLACED, body)

    async def is_job_finished(self, job_id: str) -> bool:
        return (await self._ask("GET", f"{_job(job_id)}/is-finished", _FINISHED)).job_is_finished

    async def job_result_ok(self, job_id: str) -> bool:
        """Return when the job has ended: whether it succeeded."""
        return (await self._ask("GET", f"{_job(job_id)}/ok", _OK, waits=True)).job_result_ok

    async def job_status(self, job_id: str) -> JobStatus:
        """How far a job is; this project's pantries only."""
        return await self._ask("GET", _job(job_id), _JOB)

    async def import_from_url(self, volume_id: str, url: str, sha256: str | None = None) -> str:
        """Fill the volume from ``url``: the id of the job that does it."""
        digest = None if sha256 is None else ExpectedDigest(sha256=sha256)
        body = ImportFromUrlRequest(url=url, expected_digest=digest)
        return (await self._ask("POST", f"{_volume(volume_id)}/import-from-url", _IMPORT, body)).job_id

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        await self._tell("POST", f"{_volume(volume_id)}/snapshot", SnapshotRequest(snapshot_id=snapshot_id))

    async def bulk_write(self, volume_id: str, offset: int, data: bytes | memoryview) -> None:
        """Write at most :data:`CHUNK_BYTES_MAX` bytes; offset and length in whole blocks."""
        body = BulkWriteRequest(offset=offset, base64_encoded_data=base64.b64encode(data).decode())
        await self._tell("POST", f"{_volume(volume_id)}/bulk-write", body)

    async def bulk_read(self, volume_id: str, offset: int, size: int) -> bytes:
        """Read at most :data:`CHUNK_BYTES_MAX` bytes; offset and length in whole blocks."""
        body = BulkReadRequest(offset=offset, size=size)
        answer = await self._ask("POST", f"{_volume(volume_id)}/bulk-read", _READ, body)
        try:
            data = base64.b64decode(answer.base64_encoded_data, validate=True)
        except binascii.Error:
            raise RemoteError(f"{self.url} answers a bulk read with something that is not base64") from None
        if len(data) != size:
            raise RemoteError(f"{self.url} answers a bulk read of {size} bytes with {len(data)}")
        return data

    async def scrub(self, volume_id: str) -> str:
        """Copy the read-only parent into the volume: the id of the job that does it."""
        return (await self._ask("POST", f"{_volume(volume_id)}/scrub", _SCRUB)).job_id

    async def validate(self, volume_id: str, sha256: str, size_to_validate: int | None = None) -> str:
        """Compare the volume (its first bytes) with a digest: the id of the job that does it."""
        body = ValidateRequest(expected_digest=ExpectedDigest(sha256=sha256), size_to_validate=size_to_validate)
        return (await self._ask("POST", f"{_volume(volume_id)}/validate", _VALIDATE, body)).job_id

    async def detach(self, volume_id: str) -> None:
        """Deactivate and forget the volume; one that is not there is fine."""
        await self._tell("DELETE", _volume(volume_id))


def _volume(volume_id: str) -> str:
    return f"{BASE}/volume/{segment(volume_id)}"


def _job(job_id: str) -> str:
    return f"{BASE}/job/{segment(job_id)}"
