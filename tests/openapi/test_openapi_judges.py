"""The judges find what is wrong: a service that does everything badly, and models that differ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fuzz_judge import Run, World, running
from fuzz_requests import Making
from fuzz_services import main
from openapi_document import Document, load
from openapi_models import model_differences
from pydantic import BaseModel, Field

from crucible_emu.service import Api, Call, Exposure, Operation, Versions, serving

REGIONS = "/crucible/0/regions"


async def fail(_call: Call) -> object:
    raise ZeroDivisionError


async def lie(_call: Call) -> object:
    return {"id": 5}


async def agree(call: Call) -> object:
    return {"id": call.request_id}


@asynccontextmanager
async def bad(_folder: Path) -> AsyncIterator[World]:
    """An agent that fails, lies and takes anything."""
    rows = [
        Operation("region_list", "GET", REGIONS, fail),
        Operation("region_get", "GET", f"{REGIONS}/{{id}}", lie),
        Operation("region_delete", "DELETE", f"{REGIONS}/{{id}}", agree, success=200),
        Operation("region_create", "POST", REGIONS, agree),
    ]
    api = Api("bad", rows, 10_240, Versions(("1.0.0",), missing="newest"))
    async with serving(api, Exposure("127.0.0.1:0")) as url:
        others = frozenset(load("agent").operations) - {each.operation_id for each in rows}
        making = Making(load("agent"), 10_240, versioned=True, skipped=others)
        yield World(url, making, lambda operation, name, n: "known")


def test_the_fuzz_finds_what_is_wrong(tmp_path: Path, expect_log: Callable[..., Any]) -> None:
    expect_log("request failed", at_least=1)
    with running(bad, tmp_path) as world:
        report = Run("bad", world).fuzz(150, 0)
    found = {(operation, sentence) for operation, sentence in report.defects}
    for defect in (
        ("region_list", "status 500"),
        ("region_list", "logged as an error: request failed: ZeroDivisionError()"),
        ("region_delete", "region_delete does not know status 200"),
        ("region_create", "status 200 for wrong: it is to be [400]"),
        ("region_list", "status 500 for no api-version: it is to be [400]"),
    ):
        assert defect in found, "\n".join(report.lines())
    assert any(operation == "region_get" and "is a required property" in sentence for operation, sentence in found)
    assert report.errors_500 > 0 and "DEFECT" in "\n".join(report.lines())


def test_the_command_reports_and_its_code_says_whether_all_is_well(capsys: Any) -> None:
    assert main(["--service", "repair", "--examples", "20"]) == 0
    out = capsys.readouterr().out
    assert "repair: 20 examples" in out and "no defect; 0 answers 500" in out


# -- models -----------------------------------------------------------------------------------------------------------


def small(body: dict[str, Any], answer: dict[str, Any]) -> Document:
    """A document of one operation, which takes a Wish and answers with a Thing."""
    content = {
        name: {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
        for name in ("Wish", "Thing")
    }
    operation = {"operationId": "make", "requestBody": content["Wish"], "responses": {"200": content["Thing"]}}
    raw = {"paths": {"/": {"post": operation}}, "components": {"schemas": {"Wish": body, "Thing": answer}}}
    return Document("small", raw)


COLOUR = {"type": "string", "enum": ["red", "blue"]}
WISH = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "size": {"type": "integer", "nullable": True}, "colour": COLOUR},
    "required": ["name", "colour"],
}
THING = {
    "oneOf": [
        {"type": "object", "properties": {"type": {"type": "string", "enum": [name]}}, "required": ["type"]}
        for name in ("door", "wall")
    ]
}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Wish(BaseModel):
    name: str
    size: int | None = None
    colour: Colour


class Thing(BaseModel):
    type: Literal["door", "wall"]


def differences(wish: type, thing: type) -> list[str]:
    module = ModuleType("models")
    vars(module).update({"Wish": wish, "Thing": thing})
    return model_differences([module], small(WISH, THING), ["make"])


def test_models_that_say_the_same_do_not_differ() -> None:
    assert differences(Wish, Thing) == []


def test_each_difference_is_told() -> None:
    class Green(Enum):
        RED = "red"
        GREEN = "green"

    class OtherWish(BaseModel):
        name: str = ""
        size: str
        colour: Green
        more: int = Field(default=0)

    class OtherThing(BaseModel):
        type: Literal["door"]

    assert differences(OtherWish, OtherThing) == [
        "Wish: members ['more'] are on one side only",
        "Wish: ['name', 'size'] required on one side only",
        "Wish.colour: words ['blue', 'green'] are on one side only",
        "Wish.size: string in place of integer",
        "Thing: variants ['type=wall'] are on one side only",
    ]


def test_a_model_that_is_not_there_is_told() -> None:
    assert model_differences([], small(WISH, THING), ["make"]) == [
        "make: there is no model Wish",
        "make: there is no model Thing",
    ]
