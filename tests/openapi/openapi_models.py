"""Our pydantic models beside the document's schemas, member by member.

What it is for: answers that validate say nothing of a state that no test reached, nor of a request's member that we
take for optional. So the models are compared as such: members, which of them are required, words of enumerations,
kinds of values, and the variants of a choice.

How: both sides become :class:`Shape` trees. References, single ``allOf`` and ``nullable`` are resolved on both sides,
and a choice between nothing but words is an enumeration. A model stands for a schema where it has its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from openapi_document import Document
from pydantic import TypeAdapter

DEPTH_MAX = 6
"""Volumes hold volumes: a difference shows up before that."""


class Shape:
    """What a value may be: ``kind``, and what belongs to that kind."""

    def __init__(self, kind: str, **parts: Any) -> None:
        self.kind = kind
        self.parts = parts


def shape_of(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> Shape:
    """The shape of ``schema``, whose references start at ``root``."""
    while True:
        if "$ref" in schema:
            found: Any = root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            schema = found
        elif len(schema.get("allOf", ())) == 1:
            schema = schema["allOf"][0]
        else:
            break
    if depth > DEPTH_MAX:
        return Shape("anything")
    if "const" in schema:
        return Shape("words", words={schema["const"]})
    if "enum" in schema:
        return Shape("words", words=set(schema["enum"]))
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return _choice([each for each in schema[key] if each.get("type") != "null"], root, depth)
    kind = schema.get("type", "anything")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        members = {name: shape_of(each, root, depth + 1) for name, each in schema["properties"].items()}
        return Shape("object", members=members, required=required)
    if kind == "object":
        inner = schema.get("additionalProperties")
        return Shape("map", each=shape_of(inner, root, depth + 1) if isinstance(inner, dict) else Shape("anything"))
    if kind == "array":
        return Shape("array", each=shape_of(schema.get("items", {}), root, depth + 1))
    return Shape(kind)


def _choice(schemas: list[Mapping[str, Any]], root: Mapping[str, Any], depth: int) -> Shape:
    shapes = [shape_of(each, root, depth) for each in schemas]
    if len(shapes) == 1:
        return shapes[0]
    if all(shape.kind == "words" for shape in shapes):
        return Shape("words", words=set().union(*(shape.parts["words"] for shape in shapes)))
    nested = [inner for shape in shapes for inner in (shape.parts["variants"] if shape.kind == "choice" else [shape])]
    return Shape("choice", variants=nested)


def label(shape: Shape) -> str:
    """What tells one variant of a choice from the others: the words of its members, else their names."""
    if shape.kind != "object":
        return shape.kind
    members = shape.parts["members"]
    tags = [
        f"{name}={'|'.join(sorted(map(str, each.parts['words'])))}"
        for name, each in members.items()
        if each.kind == "words" and len(each.parts["words"]) == 1
    ]
    return ",".join(sorted(tags)) or ",".join(sorted(members))


def differences(ours: Shape, theirs: Shape, where: str) -> Iterator[str]:
    """In what our shape differs from the document's. What the document leaves open may be anything."""
    if theirs.kind == "anything":
        return
    if ours.kind != theirs.kind:
        yield f"{where}: {ours.kind} in place of {theirs.kind}"
    elif theirs.kind == "words":
        if ours.parts["words"] != theirs.parts["words"]:
            yield f"{where}: words {sorted(ours.parts['words'] ^ theirs.parts['words'])} are on one side only"
    elif theirs.kind == "object":
        yield from _member_differences(ours.parts, theirs.parts, where)
    elif theirs.kind in ("array", "map"):
        yield from differences(ours.parts["each"], theirs.parts["each"], f"{where}[]")
    elif theirs.kind == "choice":
        mine = {label(each): each for each in ours.parts["variants"]}
        real = {label(each): each for each in theirs.parts["variants"]}
        if mine.keys() != real.keys():
            yield f"{where}: variants {sorted(mine.keys() ^ real.keys())} are on one side only"
        for name in mine.keys() & real.keys():
            yield from differences(mine[name], real[name], f"{where}({name})")


def _member_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> Iterator[str]:
    mine, real = ours["members"], theirs["members"]
    if mine.keys() != real.keys():
        yield f"{where}: members {sorted(mine.keys() ^ real.keys())} are on one side only"
    both = mine.keys() & real.keys()
    if ours["required"] & both != theirs["required"] & both:
        yield f"{where}: {sorted((ours['required'] ^ theirs['required']) & both)} required on one side only"
    for name in sorted(both):
        yield from differences(mine[name], real[name], f"{where}.{name}")


def model_differences(module: ModuleType, document: Document, names: set[str] | None = None) -> dict[str, list[str]]:
    """For every schema of ``document`` (or those in ``names``): in what the model of that name in ``module`` differs.

    A schema without a model maps to that sentence.
    """
    found: dict[str, list[str]] = {}
    for name, schema in document.schemas.items():
        if names is not None and name not in names:
            continue
        model = getattr(module, name, None)
        if model is None:
            found[name] = [f"{module.__name__} has no {name}"]
            continue
        made = TypeAdapter(model).json_schema(mode="validation")
        wrong = list(differences(shape_of(made, made), shape_of(schema, document.raw), name))
        if wrong:
            found[name] = wrong
    return found
