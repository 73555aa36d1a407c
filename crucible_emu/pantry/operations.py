"""The pantry's API over HTTP: fourteen operations of the real one, and one of ours (apis-and-tools.md §2.1).

What it is for: each operation is one row of :func:`api` and one method of :class:`Operations`, which turns documents
into calls of :class:`~crucible_emu.pantry.driver.Pantry`. What fails is answered as
:mod:`~crucible_emu.pantry.refusals` says.

What it guarantees: nothing that a client sends reaches a volume before its size and form were checked; no answer shows
a key. A bulk write that was answered is durable, and found by whoever has the volume next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.pantry import chunks, documents, work
from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.refusals import Refused, Situation, status_of
from crucible_emu.pantry.states import JobKind
from crucible_emu.region.snapshot import check_name
from crucible_emu.service import Api, Call, Operation, Refusal, Versions
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.image import submit
from crucible_emu.volume.info import VolumeInfo, VolumeNode, VolumeParts
from crucible_emu.volume.volume import Volume

BASE = "/crucible/pantry/0"
BODY_BYTES_MAX = 1024 + 2 * chunks.CHUNK_BYTES_MAX
VERSIONS = Versions(("1.0.0", "2.0.0"))
WITH_INFO = (2, 0, 0)
"""From this version on, the status of a volume says what it is made of."""

Handler = Callable[[Call], Awaitable[object]]


class Operations:
    """What the operations of the API do with ``pantry``."""

    def __init__(self, pantry: Pantry) -> None:
        self._pantry = pantry

    async def pantry_status(self, _call: Call) -> object:
        ledger = self._pantry.ledger
        return documents.PantryStatus(volumes=tuple(ledger.volumes), num_job_handles=len(ledger.jobs))

    async def volume_status(self, call: Call) -> object:
        held = await self._pantry.look(call.path["id"])
        status = documents.VolumeStatusV1(
            active=held.active,
            seen_active=held.entry.seen_active,
            num_job_handles=len(self._pantry.ledger.jobs_of(held.entry.volume_id)),
        )
        if call.version < WITH_INFO:
            return status
        info = held.built.volume_info() if call.faithful else known_info(held.built)
        return documents.VolumeStatus(**status.model_dump(), info=info)

    async def attach(self, call: Call) -> object:
        await self._pantry.attach(call.path["id"], call.body.volume_construction_request)
        return documents.AttachResult(id=call.path["id"])

    async def attach_activate_background(self, call: Call) -> object:
        body: documents.AttachBackgroundRequest = call.body
        await self._pantry.attach_in_background(call.path["id"], body.job_id, body.volume_construction_request)
        return None

    async def replace(self, call: Call) -> object:
        return (await self._pantry.replace(call.path["id"], call.body.volume_construction_request)).value

    async def detach(self, call: Call) -> object:
        await self._pantry.detach(call.path["id"])
        return None

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def is_job_finished(self, call: Call) -> object:
        return documents.JobPollResponse(job_is_finished=self._pantry.job(call.path["id"]).finished)

    async def job_result_ok(self, call: Call) -> object:
        return documents.JobResultOkResponse(job_result_ok=await self._pantry.job_ok(call.path["id"]))

    async def job_status(self, call: Call) -> object:
        job = self._pantry.job(call.path["id"])
        return documents.JobStatus(
            kind=job.kind, state=job.state, done_bytes=job.done_bytes, total_bytes=job.total_bytes, error=job.error
        )

    async def import_from_url(self, call: Call) -> object:
        body: documents.ImportFromUrlRequest = call.body
        sha256 = None if body.expected_digest is None else body.expected_digest.sha256
        run = partial(work.import_from_url, url=body.url, sha256=sha256)
        job = await self._pantry.start(call.path["id"], JobKind.IMPORT, run)
        return documents.ImportFromUrlResponse(job_id=job.id)

    async def scrub(self, call: Call) -> object:
        job = await self._pantry.start(call.path["id"], JobKind.SCRUB, work.scrub)
        return documents.ScrubResponse(job_id=job.id)

    async def validate(self, call: Call) -> object:
        body: documents.ValidateRequest = call.body
        run = partial(work.validate, sha256=body.expected_digest.sha256, size=body.size_to_validate)
        job = await self._pantry.start(call.path["id"], JobKind.VALIDATE, run)
        return documents.ValidateResponse(job_id=job.id)

    # -- blocks -------------------------------------------------------------------------------------------------------

    async def snapshot(self, call: Call) -> object:
        name = call.body.snapshot_id
        async with self._pantry.using(call.path["id"]) as volume:
            try:
                # *Safety*: a name that no replica takes would cost all three their place in the set.
                check_name(name)
            except errors.SnapshotFailed as error:
                raise Refused(Situation.BAD_INPUT, str(error)) from None
            await volume.snapshot(name)
        return None

    async def bulk_write(self, call: Call) -> object:
        body: documents.BulkWriteRequest = call.body
        async with self._pantry.using(call.path["id"]) as volume:
            data = memoryview(bytearray(chunks.decode(body.base64_encoded_data)))
            chunks.check_range(body.offset, len(data), volume.size_bytes, volume.block_size)
            # *Safety*: the API has no flush, so what is answered must be durable: it would be lost when another client
            # takes the volume. Alone, a chunk of 512 KiB takes 20 ms instead of 5; eight at a time, 7 instead of 5.
            await submit(volume, Request(Kind.WRITE, body.offset, len(data), data, fua=True))
        return None

    async def bulk_read(self, call: Call) -> object:
        body: documents.BulkReadRequest = call.body
        async with self._pantry.using(call.path["id"]) as volume:
            chunks.check_length(body.size)
            chunks.check_range(body.offset, body.size, volume.size_bytes, volume.block_size)
            data = bytearray(body.size)
            await submit(volume, Request(Kind.READ, body.offset, body.size, memoryview(data)))
        return documents.BulkReadResponse(base64_encoded_data=chunks.encode(data))


def known_info(volume: Volume) -> VolumeInfo:
    """What ``volume`` is made of, without its files and URLs, which the documents have no word for. (The real pantry
    then has no status at all.)"""

    def parts_of(parts: list[Backend]) -> list[VolumeInfo]:
        found: list[VolumeInfo] = []
        for part in parts:
            try:
                found.append(known_info(part) if isinstance(part, Volume) else part.volume_info())
            except errors.Unsupported:
                continue
        return found

    parent = parts_of([] if volume.parent is None else [volume.parent])
    sub_volumes = tuple(parts_of(volume.sub_volumes))
    return VolumeNode(volume=VolumeParts(sub_volumes=sub_volumes, read_only_parent=parent[0] if parent else None))


def answering(handler: Handler) -> Handler:
    """``handler``, with what it raises turned into statuses."""

    async def answer(call: Call) -> object:
        try:
            return await handler(call)
        except (Refused, errors.CrucibleError) as error:
            taken = isinstance(error, Refused) and error.situation is Situation.TAKEN
            raise Refusal(
                status_of(error, faithful=call.faithful), str(error), str(error) if taken else None
            ) from error

    return answer


def api(pantry: Pantry, *, faithful: bool = False, lenient: bool = False) -> Api:
    """The API of ``pantry``, which must be running. ``faithful``: hide what the real one hides; ``lenient``: take a
    missing ``api-version`` for the newest."""
    do, volume, job = Operations(pantry), f"{BASE}/volume/{{id}}", f"{BASE}/job/{{id}}"

    def row(name: str, method: str, path: str, success: int = 200, body: Any = None) -> Operation:
        return Operation(name, method, path, answering(getattr(do, name)), body=body, success=success)

    rows = (
        row("pantry_status", "GET", BASE),
        row("volume_status", "GET", volume),
        row("attach", "POST", volume, body=documents.AttachRequest),
        row("attach_activate_background", "POST", f"{volume}/background", 204, documents.AttachBackgroundRequest),
        row("replace", "POST", f"{volume}/replace", body=documents.ReplaceRequest),
        row("is_job_finished", "GET", f"{job}/is-finished"),
        row("job_result_ok", "GET", f"{job}/ok"),
        row("import_from_url", "POST", f"{volume}/import-from-url", body=documents.ImportFromUrlRequest),
        row("snapshot", "POST", f"{volume}/snapshot", 204, documents.SnapshotRequest),
        row("bulk_write", "POST", f"{volume}/bulk-write", 204, documents.BulkWriteRequest),
        row("bulk_read", "POST", f"{volume}/bulk-read", body=documents.BulkReadRequest),
        row("scrub", "POST", f"{volume}/scrub"),
        row("validate", "POST", f"{volume}/validate", body=documents.ValidateRequest),
        row("detach", "DELETE", volume, 204),
        row("job_status", "GET", job),
    )
    return Api("pantry", rows, BODY_BYTES_MAX, VERSIONS, faithful=faithful, lenient=lenient)
