"""Requests for the fuzz: such as the document allows, and such as nobody should send.

What it is for: schemathesis makes the values that a document's schemas allow, and those that they do not; around them
this module builds whole requests. Three families: *allowed* (the document and, half of the time, ids that exist and
bodies that make sense here), *wrong* (a body of wrong types, a missing member) and *hostile* (broken JSON, deep and
long JSON, other content types, bad versions, bad percent signs, other methods, other paths).

What it guarantees: an id of something that exists is drawn as a number and looked up when the request is sent, so what
the services hold does not change what Hypothesis draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import schemathesis
from hypothesis import strategies as st
from openapi_document import Document, Operation
from schemathesis import GenerationMode

JSON_HEADERS = {"content-type": "application/json"}
SHARE_KNOWN = 0.7
TEXT_MAX = 40
DEEP = 100_000

Known = Callable[[Operation, str, int], str | None]
"""Looks up the ``n``-th existing id for a parameter of an operation; ``None`` where there is none."""


@dataclass(frozen=True)
class Extension:
    """An operation of ours beyond the document: its answers are held to the envelope."""

    method: str
    path: str
    body: st.SearchStrategy[Any] | None = None


@dataclass(frozen=True)
class Parameter:
    """A path parameter: the ``n``-th known one, or ``text`` as it goes into the path."""

    name: str
    text: str
    n: int | None = None


@dataclass(frozen=True)
class Request:
    """A request before it is sent. ``family``: allowed, wrong or hostile; ``expected``: statuses it must be answered
    with, empty for any below 500."""

    operation: Operation
    parameters: tuple[Parameter, ...]
    headers: Mapping[str, str]
    body: bytes | None = None
    family: str = "allowed"
    method: str = ""
    suffix: str = ""
    expected: frozenset[int] = frozenset()
    note: str = ""

    def target(self, known: Known) -> str:
        """The path as it goes over the wire."""
        path = self.operation.path
        for parameter in self.parameters:
            text = None
            if parameter.n is not None:
                found = known(self.operation, parameter.name, parameter.n)
                text = None if found is None else quote(found, safe="")
            path = path.replace(f"{{{parameter.name}}}", text or parameter.text)
        return path + self.suffix


@dataclass
class Making:
    """How requests for one service are made. ``bodies``: by operation id, bodies that make sense there.

    ``body_bytes_max``: the limit beyond which a body is refused. ``versioned``: the header ``api-version`` is
    looked at. ``skipped``: operations that are left out, since they end the service.
    """

    document: Document
    body_bytes_max: int
    versioned: bool
    bodies: Mapping[str, st.SearchStrategy[Any]] = field(default_factory=dict)
    extensions: Sequence[Extension] = ()
    skipped: frozenset[str] = frozenset()
    strict_bodies: bool = True
    """Whether a body that the schema refuses must be refused."""

    def __post_init__(self) -> None:
        self.bodies = {
            **self.bodies,
            **{_as_operation(e).operation_id: e.body for e in self.extensions if e.body is not None},
        }
        schema = schemathesis.openapi.from_dict(self.document.raw)
        found = (result.ok() for result in schema.get_all_operations())
        self._generated = {each.definition.raw["operationId"]: each for each in found}

    @property
    def operations(self) -> list[Operation]:
        """The document's that are asked for, in its order."""
        return [each for name, each in self.document.operations.items() if name not in self.skipped]

    def headers(self, operation: Operation) -> dict[str, str]:
        """What a correct client sends."""
        version = {"api-version": self.document.version} if self.versioned else {}
        return version | (JSON_HEADERS if operation.body is not None else {})

    # -- strategies ---------------------------------------------------------------------------------------------------

    def strategies(self) -> list[st.SearchStrategy[Request]]:
        """For each operation its requests, of all families."""
        operations = [*self.operations, *map(_as_operation, self.extensions)]
        # The number makes every request another one to Hypothesis: the services remember, so the same again is not.
        return [
            st.tuples(self._for_operation(operation), st.integers(0, 2**64)).map(lambda pair: pair[0])
            for operation in operations
        ]

    def _for_operation(self, operation: Operation) -> st.SearchStrategy[Request]:
        allowed = self.allowed(operation)
        families = [allowed, allowed, allowed, allowed.flatmap(lambda request: self._hostile(request))]
        if operation.body is not None:
            families += [self._wrong(operation), allowed.flatmap(lambda request: self._hostile_body(request))]
        return st.one_of(families)

    def allowed(self, operation: Operation) -> st.SearchStrategy[Request]:
        """Requests as the document has them."""
        return st.builds(
            lambda parameters, body: Request(
                operation, tuple(parameters), self.headers(operation), None if body is None else _encoded(body)
            ),
            st.tuples(*(self._parameter(operation, name) for name in operation.path_parameters)),
            self._body(operation),
        )

    def _parameter(self, operation: Operation, name: str) -> st.SearchStrategy[Parameter]:
        schema = next((each["schema"] for each in operation.parameters if each["name"] == name), {})
        schema = self.document.resolved(schema)
        if "enum" in schema:
            text = st.sampled_from([*schema["enum"], "nothing"])
        elif schema.get("type") == "integer":
            text = st.one_of(st.integers(0, 9), st.integers(-(2**70), 2**70)).map(str) | _odd_text()
        else:
            text = _odd_text() | st.uuids().map(str)
        known = st.integers(0, 15).map(lambda n: Parameter(name, "0", n))
        return st.one_of(known, known, text.map(lambda made: Parameter(name, quote(made, safe="") or "x")))

    def _body(self, operation: Operation) -> st.SearchStrategy[Any]:
        sensible = self.bodies.get(operation.operation_id)
        if operation.body is None or operation.operation_id not in self._generated:
            return st.none() if sensible is None else sensible
        generated = self._generated[operation.operation_id].as_strategy(generation_mode=GenerationMode.POSITIVE)
        bodies = generated.map(lambda case: case.body)
        return st.one_of(sensible, sensible, bodies) if sensible is not None else bodies

    def _wrong(self, operation: Operation) -> st.SearchStrategy[Request]:
        """Bodies that the schema refuses: made by schemathesis, or a sensible one with one member changed."""
        pieces: list[st.SearchStrategy[Any]] = []
        if operation.operation_id in self._generated:
            case = self._generated[operation.operation_id].as_strategy(generation_mode=GenerationMode.NEGATIVE)
            pieces.append(case.map(lambda made: made.body))
        if operation.operation_id in self.bodies:
            pieces.append(st.tuples(self.bodies[operation.operation_id], st.integers(0, 99), _JSON).map(_changed))
        if not pieces:
            return self.allowed(operation)
        expected = frozenset({400}) if self.strict_bodies else frozenset()

        def made(request: Request, body: Any) -> Request:
            fits = not isinstance(body, bytes) and self.document.accepts(operation.body or {}, body)
            return replace(request, body=_encoded(body), family="wrong", expected=frozenset() if fits else expected)

        return st.builds(made, self.allowed(operation), st.one_of(pieces))

    def _hostile(self, request: Request) -> st.SearchStrategy[Request]:
        hostile = replace(request, family="hostile")
        headers = dict(request.headers)
        longer = self.body_bytes_max + 1
        paths = [
            "/",
            "//",
            "/none",
            "/%",
            "/%zz",
            "/%ff",
            "/..",
            "/%2e%2e/%2e%2e",
            "/%00",
            "?x=%",
            "?%ff=%ff&a=b",
            ";a",
        ]
        changes = [
            st.sampled_from(["PUT", "PATCH", "DELETE", "POST", "GET", "OPTIONS", "TRACE", "HEAD", "BREW"]).map(
                lambda method: replace(hostile, method=method, note=f"method {method}")
            ),
            st.sampled_from(paths).map(lambda suffix: replace(hostile, suffix=suffix, note=f"path {suffix}")),
            st.just(replace(hostile, body=b"x" * longer, note="long body")),
            st.sampled_from(["*/*", "text/html", '"', "a" * 3000, "application/json;q=x"]).map(
                lambda kind: replace(hostile, headers=headers | {"accept": kind}, note=f"accept {kind[:20]}")
            ),
        ]
        versions = ["", "1", "1.0", "x", "99.0.0", "1.0.0.0", "-1.0.0", "1.0.0, 1.0.0", "9" * 4000, "\xff", "01.0.0"]
        if self.versioned:
            gone = {key: value for key, value in headers.items() if key != "api-version"}
            only_400 = frozenset({400})
            changes += [
                st.just(replace(hostile, headers=gone, expected=only_400, note="no api-version")),
                st.sampled_from(versions).map(
                    lambda version: replace(
                        hostile,
                        headers=headers | {"api-version": version},
                        expected=only_400,
                        note=f"api-version {version[:10]}",
                    )
                ),
            ]
        else:
            changes.append(
                st.sampled_from(versions).map(
                    lambda version: replace(hostile, headers=headers | {"api-version": version}, note="api-version")
                )
            )
        return st.one_of(changes)

    def _hostile_body(self, request: Request) -> st.SearchStrategy[Request]:
        hostile = replace(request, family="hostile")
        only_400 = frozenset({400})
        limit = self.body_bytes_max
        depth = min(DEEP, limit // 2 - 1)
        broken = [
            b"", b"{", b"nul", b"NaN", b"\xff\xfe\x00", b"\x00", b'{"a": 1}}', b"[" * depth, b'{"a":' * (limit // 6),
            b"[" * depth + b"]" * depth, b"1" * min(limit, 8000), b'"\\ud800"', b"\xef\xbb\xbf{}", b'{"a": Infinity}',
        ]  # fmt: skip
        kinds = [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/jso",
            "",
            "\xff",
        ]
        return st.one_of(
            st.sampled_from(broken).map(
                lambda body: replace(hostile, body=body, expected=only_400, note=f"body {body[:12]!r}")
            ),
            st.just(replace(hostile, body=b" " * (limit + 1), expected=only_400, note="long body")),
            st.sampled_from(kinds).map(
                lambda kind: replace(
                    hostile,
                    headers={**request.headers, "content-type": kind},
                    note=f"content-type {kind!r}",
                    expected=only_400 if request.operation.responses else frozenset(),  # ours takes what curl -d sends
                )
            ),
            _JSON.map(lambda body: replace(hostile, body=_encoded(body), note="any JSON")),
        )


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=TEXT_MAX),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _odd_text() -> st.SearchStrategy[str]:
    odd = ["..", ".", " ", "%", "a/b", "\x00", "\u202e", "0" * 300, "-1", "0x1", "1e3", "\u0661", "None", "null", "'"]
    return st.sampled_from(odd) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=TEXT_MAX)


def _changed(parts: tuple[Any, int, Any]) -> Any:
    """A body with one member, at some depth, made another value or taken away."""
    body, n, value = parts
    body = json.loads(json.dumps(body))
    here = body
    while isinstance(here, dict | list) and here:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = keys[n % len(keys)]
        n //= 3
        if n % 2 or not isinstance(here[key], dict | list) or not here[key]:
            if n % 5 == 0:
                del here[key]
            else:
                here[key] = value
            return body
        here = here[key]
    return value


def _encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def _as_operation(extension: Extension) -> Operation:
    return Operation(
        f"(ours) {extension.method} {extension.path}", extension.method, extension.path, (),
        {} if extension.body is not None else None, {},
    )  # fmt: skip
