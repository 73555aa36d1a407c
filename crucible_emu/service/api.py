"""The declaration of an HTTP API: a table of operations, and how a request finds its own.

What it is for: agent, pantry and host are each one such table, under the operation ids and paths of the real documents,
so that a test can hold table and document side by side. What it guarantees: a path is split into segments before they
are decoded, so an id may hold any character; empty segments count for nothing, as in the real servers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel

from crucible_emu.service.answers import Refusal
from crucible_emu.service.versions import Version, Versions, parse

_PARAMETER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, understood: parameters of the path and query, the body as its model, the version to answer in."""

    operation: Operation
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    version: Version
    request_id: str
    faithful: bool
    caller: Any = None
    """Who asks, as the API's ``identify`` made it out."""


@dataclass(frozen=True, slots=True)
class Knock:
    """What is known of who asks, before anything that was sent is looked at. ``peer``: the address it comes from."""

    method: str
    authorization: str | None = field(repr=False)
    origin: str | None
    peer: str | None


Identify = Callable[[Knock], Awaitable[object]]
"""Who it is that asks. Raises :class:`Refusal` (401, 403)."""

Handler = Callable[[Call], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of an API.

    ``body``: the pydantic model of the request's JSON, ``None`` where a body is not looked at. ``success``: 200, 201 or
    202 with JSON, or 204 without a body. ``since``: the first version that has it, ``None`` for all.
    """

    operation_id: str
    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    success: int = 200
    since: str | None = None

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """The parameters of this path in ``segments``, ``None`` where it is another path."""
        pattern = [segment for segment in self.path.split("/") if segment]
        if len(pattern) != len(segments):
            return None
        found: dict[str, str] = {}
        for wanted, segment in zip(pattern, segments):
            parameter = _PARAMETER.fullmatch(wanted)
            if parameter is not None:
                found[parameter[1]] = segment
            elif wanted != segment:
                return None
        return found


@dataclass(frozen=True, slots=True)
class Api:
    """A service's whole API. ``name`` is for logs; ``versions``: ``None`` where the header is not looked at."""

    name: str
    operations: Sequence[Operation]
    body_bytes_max: int
    versions: Versions | None = None
    faithful: bool = False
    lenient: bool = False
    identify: Identify | None = None
    """Where callers differ in what they may do: it is asked in place of the one token of the service."""
    _by_length: dict[int, list[Operation]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for operation in self.operations:
            length = len([segment for segment in operation.path.split("/") if segment])
            self._by_length.setdefault(length, []).append(operation)
        for rows in self._by_length.values():
            # A literal segment goes before a parameter in the same place.
            rows.sort(key=lambda row: [segment.startswith("{") for segment in row.path.split("/") if segment])

    def find(self, method: str, raw_path: bytes, version: Version) -> tuple[Operation, dict[str, str]]:
        """The operation that is asked for, and its path parameters. Raises :class:`Refusal` (400, 404, 405)."""
        segments = split_path(raw_path)
        elsewhere = False
        for operation in self._by_length.get(len(segments), ()):
            parameters = operation.match(segments)
            if parameters is None or (operation.since is not None and version < parse(operation.since)):
                continue
            if operation.method == method:
                return operation, parameters
            elsewhere = True
        if elsewhere:
            raise Refusal(405, "Method Not Allowed")
        raise Refusal(404, "Not Found")


def split_path(raw_path: bytes) -> list[str]:
    """The segments of a request's path, decoded. Raises :class:`Refusal` (400)."""
    segments = []
    for raw in raw_path.partition(b"?")[0].split(b"/"):
        if not raw:
            continue
        if _BAD_ESCAPE.search(raw):
            raise Refusal(400, "bad path: a percent sign is followed by two hexadecimal digits")
        try:
            segment = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise Refusal(400, "bad path: it is no UTF-8") from None
        if segment in (".", ".."):
            raise Refusal(400, "bad path: dot segments are not permitted")
        segments.append(segment)
    return segments
