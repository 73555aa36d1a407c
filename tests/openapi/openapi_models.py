"""Our pydantic models beside the document's schemas, member by member.

What it is for: answers that validate say nothing of a state that no test reached, nor of a request's member that we
take for optional. So the models are compared as such: members, which of them are required, words of enumerations,
kinds of values, the variants of a choice.

How: it starts at the bodies and answers of the operations, where a model stands for the schema of its name, and goes
down both sides together; each named schema is compared once for each direction. References, single ``allOf`` and
``nullable`` are resolved first, a choice between nothing but words is an enumeration, a variant whose tag has several
words is as many variants. A request must require what the document requires, no less and no more; an answer must always
have what the document requires, and may always have what it leaves open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from openapi_document import Document, Operation
from pydantic import TypeAdapter

Direction = Literal["validation", "serialization"]
"""pydantic's words for a request that is taken, and an answer that is made."""

TAGS = ("type", "method", "component", "state", "kind", "error", "current_status", "last_result")
"""The names of members that tell the variants of a choice apart."""


@dataclass(frozen=True)
class Side:
    """A schema and the document that its references start in."""

    schema: Mapping[str, Any]
    root: Mapping[str, Any]
    name: str = ""
    """The name of the last reference that led here."""

    def at(self, schema: Mapping[str, Any]) -> Side:
        """Another schema of the same document."""
        return Side(schema, self.root)

    def resolved(self) -> Side:
        """Without references, single ``allOf`` and the choice of nothing."""
        schema, name = self.schema, self.name
        while True:
            choices = [each for each in schema.get("anyOf", schema.get("oneOf", ())) if each.get("type") != "null"]
            if "$ref" in schema:
                name = schema["$ref"].rpartition("/")[2]
                found: Any = self.root
                for step in schema["$ref"].removeprefix("#/").split("/"):
                    found = found[step]
                schema = found
            elif len(schema.get("allOf", ())) == 1:
                schema = schema["allOf"][0]
            elif len(choices) == 1:
                schema = choices[0]
            else:
                return Side(schema, self.root, name)

    @property
    def words(self) -> set[str] | None:
        """The words of an enumeration, ``None`` where it is none. Of a resolved side."""
        if "const" in self.schema:
            return {self.schema["const"]}
        return set(self.schema["enum"]) if "enum" in self.schema else None

    @property
    def members(self) -> dict[str, Side]:
        return {name: self.at(each) for name, each in self.schema.get("properties", {}).items()}

    def variants(self) -> list[Side]:
        """What may be chosen from; a choice in a choice is one. Of a resolved side."""
        choices = self.schema.get("oneOf", self.schema.get("anyOf"))
        if choices is None:
            return [self]
        return [
            variant for each in choices if each.get("type") != "null" for variant in self.at(each).resolved().variants()
        ]


@dataclass(frozen=True)
class Shape:
    """What a value may be, one level deep."""

    kind: str
    words: frozenset[str] = frozenset()
    members: Mapping[str, Side] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    each: Side | None = None
    variants: Mapping[str, Side] = field(default_factory=dict)


def shape_of(side: Side) -> Shape:
    """The shape of a resolved side."""
    schema = side.schema
    if side.words is not None:
        return Shape("words", words=frozenset(side.words))
    if "oneOf" in schema or "anyOf" in schema:
        return _choice(side.variants())
    kind = schema.get("type", "anything")
    if kind == "object" and "properties" in schema:
        return Shape("object", members=side.members, required=frozenset(schema.get("required", ())))
    if kind == "object":
        inner = schema.get("additionalProperties")
        return Shape("map", each=side.at(inner if isinstance(inner, dict) else {}))
    if kind == "array":
        return Shape("array", each=side.at(schema.get("items", {})))
    return Shape(kind)


def _choice(sides: list[Side]) -> Shape:
    shapes = [shape_of(each) for each in sides]
    kinds = {shape.kind for shape in shapes}
    if kinds == {"words"}:
        return Shape("words", words=frozenset().union(*(shape.words for shape in shapes)))
    if len(kinds) == 1 and kinds <= {"string", "integer", "number", "boolean"}:
        return Shape(kinds.pop())
    return Shape("choice", variants={tag: side for side, shape in zip(sides, shapes) for tag in tags(shape)})


def tags(shape: Shape) -> Iterator[str]:
    """What tells a variant of a choice from the others: the words of its tag, else the names of its members."""
    for name in TAGS:
        words = shape.members[name].resolved().words if name in shape.members else None
        if words:
            yield from (f"{name}={word}" for word in sorted(words))
            return
    yield ",".join(sorted(shape.members)) or shape.kind


class Comparison:
    """One direction, from the tops down."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self._compared: set[str] = set()

    def differences(self, ours: Side, theirs: Side, where: str) -> Iterator[str]:
        """In what our side differs from the document's. What the document leaves open may be anything."""
        ours, theirs = ours.resolved(), theirs.resolved()
        if theirs.name:
            if theirs.name in self._compared:
                return
            self._compared.add(theirs.name)
            where = theirs.name
        mine, real = shape_of(ours), shape_of(theirs)
        if (mine.kind, real.kind) == ("object", "choice"):
            mine = _choice([ours])  # one model for variants that differ in their tag only
        yield from self._shapes(mine, real, where)

    def _shapes(self, mine: Shape, real: Shape, where: str) -> Iterator[str]:
        if real.kind == "anything":
            return
        if mine.kind != real.kind:
            yield f"{where}: {mine.kind} in place of {real.kind}"
        elif mine.words != real.words:
            yield f"{where}: words {sorted(mine.words ^ real.words)} are on one side only"
        elif real.kind == "object":
            yield from self._members(mine, real, where)
        elif mine.each is not None and real.each is not None:
            yield from self.differences(mine.each, real.each, f"{where}[]")
        elif real.kind == "choice":
            if mine.variants.keys() != real.variants.keys():
                yield f"{where}: variants {sorted(mine.variants.keys() ^ real.variants.keys())} are on one side only"
            for tag in sorted(mine.variants.keys() & real.variants.keys()):
                yield from self._variants(mine.variants[tag], real.variants[tag], f"{where}({tag})", tag)

    def _variants(self, ours: Side, theirs: Side, where: str, tag: str) -> Iterator[str]:
        mine, real = shape_of(ours.resolved()), shape_of(theirs.resolved())
        if mine.kind == real.kind == "object":
            # The tag chose the variant, so it was there.
            name = tag.partition("=")[0]
            mine, real = _without(mine, name), _without(real, name)
        yield from self._shapes(mine, real, where)

    def _members(self, mine: Shape, real: Shape, where: str) -> Iterator[str]:
        if mine.members.keys() != real.members.keys():
            yield f"{where}: members {sorted(mine.members.keys() ^ real.members.keys())} are on one side only"
        both = mine.members.keys() & real.members.keys()
        missing = real.required - mine.required
        more = frozenset() if self.direction == "serialization" else mine.required - real.required
        if wrong := (missing | more) & both:
            yield f"{where}: {sorted(wrong)} required on one side only"
        for name in sorted(both):
            yield from self.differences(mine.members[name], real.members[name], f"{where}.{name}")


def _without(shape: Shape, name: str) -> Shape:
    if "=" in name or name not in shape.members:
        return shape
    members = {key: each for key, each in shape.members.items() if key != name}
    return Shape("object", members=members, required=shape.required - {name})


def tops(operation: Operation) -> Iterator[tuple[Direction, Mapping[str, Any]]]:
    """The schemas that an operation takes and answers with."""
    if operation.body is not None:
        yield "validation", operation.body
    for status in operation.success:
        for content in (operation.responses[str(status)].get("content") or {}).values():
            yield "serialization", content["schema"]


def model_differences(modules: Iterable[ModuleType], document: Document, operation_ids: Iterable[str]) -> list[str]:
    """In what the models of ``modules`` differ from the schemas of these operations' bodies and answers.

    A body or answer of named schema without a model of that name differs as well.
    """
    found = []
    comparisons: dict[Direction, Comparison] = {
        direction: Comparison(direction) for direction in ("validation", "serialization")
    }
    for operation_id in operation_ids:
        for direction, schema in tops(document.operations[operation_id]):
            if schema.get("type") == "array":
                schema = schema["items"]
            if "$ref" not in schema:
                continue
            name = schema["$ref"].rpartition("/")[2]
            model = next((vars(module)[name] for module in modules if name in vars(module)), None)
            if model is None:
                found.append(f"{operation_id}: there is no model {name}")
                continue
            made = TypeAdapter(model).json_schema(mode=direction)
            found += comparisons[direction].differences(Side(made, made), Side(schema, document.raw), name)
    return found
