"""The OpenAPI documents of the real services, as judges of our answers.

What it is for: ``tests/data/openapi/`` holds the documents byte for byte. A :class:`Document` lists their operations,
finds the one that a request means, and says what is wrong with an answer: its status, its content type, its body.

What it guarantees: answers are held to more than the document says. Members that it does not list are wrong too, unless
they are named as an extension of this project; every answer has an ``x-request-id``; an error's envelope has that id.
Integers are held to the range of their format. Requests are held to the document only, for the real servers ignore
members that they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema_rs

FOLDER = Path(__file__).resolve().parent.parent / "data" / "openapi"
FILES = {
    "agent": "crucible-agent-1.0.0.json",
    "pantry": "crucible-pantry-2.0.0.json",
    "host": "propolis-server-5.0.0.json",
    "repair": "downstairs-repair-1.0.0.json",
    "control": "crucible-control.json",
    "dsc": "dsc-control.json",
    "nexus-external": "nexus-external-2026081901.0.0.json",
    "nexus-internal": "nexus-internal-1.0.0.json",
    "nexus-lockstep": "nexus-lockstep.json",
}
METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
WIDTHS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, "uint": 64, "int8": 8, "int16": 16, "int32": 32}
VIOLATIONS_TOLD = 3
JSON_TYPE = "application/json"
_PARAMETER = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Operation:
    """One operation of a document, with its references resolved one level deep."""

    operation_id: str
    method: str
    path: str
    parameters: tuple[Mapping[str, Any], ...]
    body: Mapping[str, Any] | None
    """The schema of the request's JSON; ``None`` where there is no body, or one of another kind."""
    responses: Mapping[str, Mapping[str, Any]]

    @property
    def route(self) -> tuple[str, str]:
        return self.method, self.path

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        pieces = re.split(r"\{[^}]+\}", self.path)
        return re.compile("[^/]+".join(re.escape(piece) for piece in pieces))

    @property
    def path_parameters(self) -> list[str]:
        return _PARAMETER.findall(self.path)

    @property
    def success(self) -> set[int]:
        """The statuses below 400 that the document names."""
        return {int(status) for status in self.responses if status.isdigit() and int(status) < 400}

    def response(self, status: int) -> Mapping[str, Any] | None:
        """What the document says of an answer with ``status``."""
        for key in (str(status), f"{status // 100}XX", "default"):
            if key in self.responses:
                return self.responses[key]
        return None


class Document:
    """One service's document. ``extra_members``: schema name to members which our answers have beyond it."""

    def __init__(self, name: str, raw: dict[str, Any], extra_members: Mapping[str, set[str]] | None = None) -> None:
        self.name = name
        self.raw = raw
        self.schemas: dict[str, Any] = raw["components"]["schemas"]
        self._extra_members = extra_members or {}
        self._validators: dict[str, Any] = {}
        self.operations = {operation.operation_id: operation for operation in self._operations()}
        # A literal segment goes before a parameter in the same place.
        self._search = sorted(self.operations.values(), key=lambda each: [p[:1] == "{" for p in each.path.split("/")])

    @property
    def version(self) -> str:
        return str(self.raw["info"]["version"])

    def _operations(self) -> Iterator[Operation]:
        for path, item in self.raw["paths"].items():
            for method in METHODS:
                if method not in item:
                    continue
                found = item[method]
                body = self.resolved(found["requestBody"]) if "requestBody" in found else None
                yield Operation(
                    found["operationId"],
                    method.upper(),
                    path,
                    tuple(self.resolved(each) for each in (*item.get("parameters", ()), *found.get("parameters", ()))),
                    body["content"].get(JSON_TYPE, {}).get("schema") if body else None,
                    {status: self.resolved(each) for status, each in found["responses"].items()},
                )

    def resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """What ``node`` refers to, or itself."""
        while "$ref" in node:
            found: Any = self.raw
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node

    def find(self, method: str, target: str) -> Operation | None:
        """The operation that a request for ``target`` (a path, perhaps with a query) means."""
        path = target.partition("?")[0]
        for operation in self._search:
            if operation.method == method and operation.pattern.fullmatch(path):
                return operation
        return None

    def known_paths(self, target: str) -> set[str]:
        """The methods which the document has for this path."""
        path = target.partition("?")[0]
        return {operation.method for operation in self._search if operation.pattern.fullmatch(path)}

    # -- judging ------------------------------------------------------------------------------------------------------

    def violations(
        self, operation: Operation | None, status: int, headers: Mapping[str, str], body: bytes
    ) -> list[str]:
        """What is wrong with an answer. ``operation``: ``None`` for a request that the document does not know."""
        found = []
        if not headers.get("x-request-id"):
            found.append("the answer has no x-request-id")
        if status >= 400:
            return found + self._error_violations(status, headers, body)
        if operation is None:
            return found
        response = operation.response(status)
        if response is None:
            return [*found, f"{operation.operation_id} does not know status {status}"]
        content = response.get("content")
        if content is None:
            return found + ([f"status {status} has a body of {len(body)} bytes"] if body else [])
        return found + self._content_violations(content, headers, body)

    def _content_violations(self, content: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> list[str]:
        kind = _media_type(headers)
        if "*/*" in content:
            return [] if kind else ["the answer has no content type"]
        if kind not in content:
            return [f"content type {kind!r} in place of {', '.join(content)}"]
        return self.schema_violations(content[kind]["schema"], body)

    def _error_violations(self, status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
        if _media_type(headers) != JSON_TYPE:
            return [f"an error {status} of content type {_media_type(headers)!r}"]
        found = self.schema_violations({"$ref": "#/components/schemas/Error"}, body)
        if not found and json.loads(body)["request_id"] != headers.get("x-request-id"):
            found.append("request_id is not x-request-id")
        return found

    def schema_violations(self, schema: Mapping[str, Any], body: bytes) -> list[str]:
        """What is wrong with an answer's ``body``, by ``schema``."""
        try:
            value = json.loads(body)
        except ValueError as error:
            return [f"the body is no JSON: {error}"]
        errors = self._validator(schema, closed=True).iter_errors(value)
        return [
            f"{'.'.join(map(str, error.instance_path)) or 'the body'}: {error.message[:200]}"
            for error, _ in zip(errors, range(VIOLATIONS_TOLD))
        ]

    def accepts(self, schema: Mapping[str, Any], value: object) -> bool:
        """Whether a request may have ``value``."""
        return bool(self._validator(schema, closed=False).is_valid(value))

    def _validator(self, schema: Mapping[str, Any], *, closed: bool) -> Any:
        key = f"{closed} {json.dumps(schema, sort_keys=True)}"
        if key not in self._validators:
            schemas = {
                name: as_json_schema(each, closed, self._extra_members.get(name, set()))
                for name, each in self.schemas.items()
            }
            root = {**as_json_schema(schema, closed), "components": {"schemas": schemas}}
            self._validators[key] = jsonschema_rs.Draft202012Validator(root, validate_formats=True)
        return self._validators[key]


def load(service: str, extra_members: Mapping[str, set[str]] | None = None) -> Document:
    """The document of ``service``, a key of :data:`FILES`."""
    return Document(service, json.loads((FOLDER / FILES[service]).read_text()), extra_members)


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def as_json_schema(schema: Any, closed: bool, extra: frozenset[str] | set[str] = frozenset()) -> Any:
    """A schema of OpenAPI 3.0 as JSON schema: ``nullable`` and the widths of integers in its words.

    ``closed``: members that are not listed (nor ``extra``) are wrong where nothing is said of them.
    """
    if isinstance(schema, list):
        return [as_json_schema(each, closed) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("enum") == [None]:
        return {"type": "null"}  # written down as a string without words
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: as_json_schema(each, closed) for name, each in value.items()}
        elif key in ("items", "additionalProperties", "not", "allOf", "oneOf", "anyOf"):
            made[key] = as_json_schema(value, closed)
        elif key not in ("nullable", "example", "default", "description", "title"):
            made[key] = value
    if made.get("type") == "integer":
        _with_range(made)
    if closed and "properties" in made and "additionalProperties" not in made:
        made["properties"] |= {name: {} for name in extra}
        made["additionalProperties"] = False
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") else made


def _with_range(schema: dict[str, Any]) -> None:
    width = WIDTHS.get(schema.pop("format", ""))
    if width is not None and schema.get("minimum", -1) >= 0:
        schema.setdefault("maximum", 2**width - 1)
