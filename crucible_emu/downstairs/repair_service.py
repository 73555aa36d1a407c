"""The repair service: other Downstairs fetch whole extents here (wire-protocol.md §10.1, on-disk-format.md §7.1).

What it is for: plain HTTP/1.1 beside the data port, six routes, read-only. A mirror that has to be repaired asks which
files an extent has, streams them, and then asks whether the extent held still (``repair-ready``: it is closed, or the
region is read-only). This module knows the routes; ``repair_http`` moves the bytes.

What it guarantees: a file is answered as it is on disk. Like the real service it hands out the file of an open extent,
too, which then may change meanwhile: it is the question afterwards that makes the procedure right. Errors are JSON
with a ``request_id``, which is also the header ``x-request-id`` of every answer. An extent that does not exist is an
error 400, where the real one's task dies.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from crucible_emu.downstairs.core import Downstairs
from crucible_emu.logs import get_logger
from crucible_emu.region import Region
from crucible_emu.region.layout import extent_path
from crucible_emu.region.repair_files import FileType, present_files

EXTENT_ID_MAX = 2**32 - 1
_REASONS = {404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}

log = get_logger(__name__)


@dataclass(slots=True)
class Answer:
    """What is answered: ``body`` as JSON text, or the first ``size_bytes`` of the open file ``descriptor``, which the
    receiver closes."""

    status: int
    body: bytes = b""
    descriptor: int | None = None
    size_bytes: int = 0
    request_id: str = ""

    def __post_init__(self) -> None:
        self.request_id = self.request_id or str(uuid4())

    @property
    def headers(self) -> list[tuple[str, str]]:
        is_file = self.descriptor is not None
        return [
            ("content-type", "application/octet-stream" if is_file else "application/json"),
            ("content-length", str(self.size_bytes if is_file else len(self.body))),
            ("x-request-id", self.request_id),
        ]


class Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RepairService:
    """The routes of one region's repair service. ``core`` is what ``/work`` shows."""

    def __init__(self, region: Region, core: Downstairs) -> None:
        self.region = region
        self._core = core

    def answer(self, method: str, path: str) -> Answer:
        """The answer to a request for ``path`` (without a query, percent signs resolved). Does no more I/O than
        opening a file; raises nothing. Like the real server it takes no notice of empty segments."""
        path = "/" + "/".join(segment for segment in path.split("/") if segment)
        try:
            for pattern, handler in _PATTERNS:
                found = pattern.fullmatch(path)
                if found is not None:
                    if method != "GET":
                        raise Refused(405, _REASONS[405])
                    return handler(self, *found.groups())
            raise Refused(404, _REASONS[404])
        except Refused as refused:
            return error_answer(refused.status, str(refused))
        except OSError as error:
            answer = error_answer(500, _REASONS[500], "Internal")
            log.warning("repair service failed", path=path, request_id=answer.request_id, error=str(error))
            return answer

    def _files(self, eid: str) -> Answer:
        path = extent_path(self.region.path, self._extent_id(eid))
        names = present_files(self.region.storage, path)
        if path.name not in names:
            raise Refused(400, f"EBADF: {path.name} is missing")
        return _json(names)

    def _file(self, eid: str, file_type: str) -> Answer:
        path = extent_path(self.region.path, self._extent_id(eid))
        try:
            name = FileType(file_type).name_of(path)
        except ValueError:
            known = ", ".join(kind.value for kind in FileType)
            raise Refused(400, f"{file_type!r} is no file type: take one of {known}") from None
        try:
            descriptor = os.open(path.with_name(name), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise Refused(400, f"{name} cannot be read: {error.strerror}") from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise Refused(400, f"{name} is no file")
        return Answer(200, descriptor=descriptor, size_bytes=found.st_size)

    def _repair_ready(self, eid: str) -> Answer:
        extent_id = self._extent_id(eid)
        return _json(self.region.read_only or self.region.extent_is_closed(extent_id))

    def _region_info(self) -> Answer:
        return _json(self.region.definition.as_json())

    def _region_mode(self) -> Answer:
        return _json(self.region.read_only)

    def _work(self) -> Answer:
        log.info("work was asked for", running=[repr(work) for work in self._core.lane.running])
        return _json(True)

    def _extent_id(self, text: str) -> int:
        digits = text.isascii() and text.isdigit() and len(text) <= 10
        if not digits or int(text) > EXTENT_ID_MAX:
            raise Refused(400, f"bad parameter in URL path: {text!r} is no extent number")
        if int(text) >= self.region.definition.extent_count:
            last = self.region.definition.extent_count - 1
            raise Refused(400, f"there is no extent {text}: the last of this region is {last}")
        return int(text)


ROUTES: tuple[tuple[str, Callable[..., Answer]], ...] = (
    ("/extent/{eid}/files", RepairService._files),
    ("/extent/{eid}/repair-ready", RepairService._repair_ready),
    ("/newextent/{eid}/{file_type}", RepairService._file),
    ("/region-info", RepairService._region_info),
    ("/region-mode", RepairService._region_mode),
    ("/work", RepairService._work),
)
"""The whole API; each of them is a GET."""
_PATTERNS = tuple((re.compile(re.sub(r"\{[a-z_]+\}", "([^/]+)", path)), handler) for path, handler in ROUTES)


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value, separators=(",", ":")).encode())


def error_answer(status: int, message: str, code: str | None = None) -> Answer:
    """An error in the form of all these services (apis-and-tools.md §0.1)."""
    request_id = str(uuid4())
    members = {"request_id": request_id, "message": message} | ({"error_code": code} if code else {})
    return Answer(status, json.dumps(members).encode(), request_id=request_id)
