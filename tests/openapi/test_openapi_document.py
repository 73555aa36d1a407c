"""The judge itself: what it lets through, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from openapi_document import FILES, Document, load
from openapi_recorded import validated

AGENT = load("agent")
REGION: dict[str, Any] = {
    "block_size": 512,
    "encrypted": False,
    "extent_count": 4,
    "extent_size": 8,
    "id": "x",
    "port_number": 19000,
    "read_only": False,
    "state": "created",
}
ID = {"x-request-id": "a"}
JSON = {"content-type": "application/json", **ID}


def judged(operation_id: str, status: int, value: object, headers: dict[str, str] = JSON) -> list[str]:
    return AGENT.violations(AGENT.operations[operation_id], status, headers, json.dumps(value).encode())


@pytest.mark.parametrize("service", FILES)
def test_every_document_is_read(service: str) -> None:
    document = load(service)
    assert len(document.operations) == {
        "agent": 9,
        "pantry": 14,
        "host": 13,
        "repair": 6,
        "control": 2,
        "dsc": 23,
        "nexus-external": 317,
        "nexus-internal": 19,
        "nexus-lockstep": 50,
    }.get(service)
    for operation in document.operations.values():
        assert operation.response(404) is not None
        sample = operation.path.replace("{", "").replace("}", "")
        assert document.find(operation.method, sample + "?a=b") is operation


def test_a_literal_segment_goes_before_a_parameter() -> None:
    found = load("dsc").find("POST", "/stop/rand")
    assert found is not None and found.operation_id == "dsc_stop_rand"
    assert AGENT.find("GET", "/crucible/0/regions/a/b") is None
    assert AGENT.known_paths("/crucible/0/regions/a") == {"GET", "DELETE"}


def test_a_right_answer_has_nothing_wrong() -> None:
    assert judged("region_get", 200, REGION) == []
    assert judged("region_get", 200, REGION | {"key_pem": None, "source": "[::1]:1"}) == []
    assert judged("region_get", 404, {"request_id": "a", "message": "m"}) == []
    assert AGENT.violations(AGENT.operations["region_delete"], 204, ID, b"") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "creating"}, "state"),
        ({"port_number": 65536}, "port_number"),
        ({"extent_count": -1}, "extent_count"),
        ({"id": 5}, "id"),
        ({"encrypted": None}, "encrypted"),
        ({"secret": 1}, "secret"),
    ],
)
def test_a_wrong_member_is_told(change: dict[str, Any], words: str) -> None:
    (found,) = judged("region_get", 200, REGION | change)
    assert words in found


def test_a_missing_member_is_told() -> None:
    assert judged("region_get", 200, {name: REGION[name] for name in REGION if name != "state"})


@pytest.mark.parametrize(
    ("operation_id", "status", "headers", "body"),
    [
        ("region_get", 201, JSON, json.dumps(REGION)),
        ("region_get", 200, {"content-type": "text/plain", **ID}, json.dumps(REGION)),
        ("region_get", 200, {"content-type": "application/json"}, json.dumps(REGION)),
        ("region_get", 200, JSON, "{"),
        ("region_get", 404, JSON, '{"request_id": "b", "message": "m"}'),
        ("region_get", 404, JSON, '{"message": "m"}'),
        ("region_get", 500, {"content-type": "text/plain", **ID}, "Internal Server Error"),
        ("region_delete", 204, ID, "null"),
        ("region_delete", 200, JSON, "null"),
    ],
)
def test_a_wrong_answer_is_told(operation_id: str, status: int, headers: dict[str, str], body: str) -> None:
    assert AGENT.violations(AGENT.operations[operation_id], status, headers, body.encode())


def test_extensions_are_let_through_where_they_are_named() -> None:
    document = Document("agent", AGENT.raw, {"Region": {"progress"}})
    body = json.dumps(REGION | {"progress": 3}).encode()
    assert document.violations(document.operations["region_get"], 200, JSON, body) == []


def test_requests_may_have_members_that_nobody_knows() -> None:
    operation = AGENT.operations["region_create"]
    assert operation.body is not None
    wanted = {name: REGION[name] for name in ("block_size", "encrypted", "extent_count", "extent_size", "id")}
    assert AGENT.accepts(operation.body, wanted | {"more": 1})
    assert not AGENT.accepts(operation.body, wanted | {"block_size": "512"})


async def test_a_recorded_exchange_is_held_to_the_document() -> None:
    answers = {
        "/crucible/0/regions": httpx2.Response(200, headers=ID, json=[REGION]),
        "/crucible/0/regions/x": httpx2.Response(200, headers=ID, json={}),
        "/crucible/0/regions/y": httpx2.Response(500, headers=ID, json={"request_id": "a", "message": "m"}),
        "/ours": httpx2.Response(200, headers=ID, text="whatever"),
    }
    transport = validated(httpx2.MockTransport(lambda request: answers[request.url.path]), AGENT)
    async with httpx2.AsyncClient(transport=transport, base_url="http://agent.example") as http:
        assert (await http.get("/crucible/0/regions")).json() == [REGION]
        assert (await http.get("/ours")).text == "whatever"
        with pytest.raises(AssertionError, match="is a required property"):
            await http.get("/crucible/0/regions/x")
        with pytest.raises(AssertionError, match="status 500"):
            await http.get("/crucible/0/regions/y")
    assert transport.seen["region_list", 200] == 1
