"""Every operation of the documents is routed, what else is routed is listed, and each of them succeeds once."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
import trio
from fuzz_judge import World
from fuzz_worlds import WORLDS
from openapi_document import load
from openapi_recorded import Validated, validated
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_emu import http_errors
from crucible_emu.control.server import ROUTES as CONTROL_ROUTES
from crucible_emu.downstairs.repair_service import ROUTES as REPAIR_ROUTES
from crucible_emu.supervisor.control import ROUTES as DSC_ROUTES

OURS: dict[str, set[tuple[str, str]]] = {
    "repair": set(),
    "control": {("GET", "/trace"), ("GET", "/metrics"), ("GET", "/volume-info"), ("POST", "/replace")},
    "dsc": {("POST", "/signal/cid/{cid}/{name}"), ("GET", "/members"), ("GET", "/vcr")},
}
"""What this project routes beyond the documents."""
ROUTED = {
    "repair": {("GET", path) for path, _ in REPAIR_ROUTES},
    "control": {(method, path) for method, path, _ in CONTROL_ROUTES},
    "dsc": {(method, path) for method, path, _ in DSC_ROUTES},
}


@pytest.mark.parametrize("service", ROUTED)
def test_what_is_routed_is_what_the_document_has(service: str) -> None:
    document = {operation.route for operation in load(service).operations.values()}
    assert ROUTED[service] - OURS[service] == document
    assert OURS[service] <= ROUTED[service]


@pytest.mark.parametrize("service", ROUTED)
async def test_every_operation_succeeds_with_an_answer_that_the_document_allows(service: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with WORLDS[service](tmp_path) as world:
            document = world.making.document
            transport = validated(httpx2.AsyncHTTPTransport(), document)
            async with httpx2.AsyncClient(transport=transport, base_url=world.url) as http:
                await ask_everything(world, http)
    assert operations_that_succeeded(transport) == set(document.operations)


@pytest.mark.parametrize(("service", "path"), [("repair", "region-mode"), ("control", "info"), ("dsc", "regioncount")])
async def test_empty_segments_count_for_nothing_and_there_is_no_head(service: str, path: str, tmp_path: Path) -> None:
    async with WORLDS[service](tmp_path) as world, httpx2.AsyncClient(base_url=world.url, trust_env=False) as http:
        for form in (f"/{path}", f"/{path}/", f"//{path}//"):
            assert (await http.get(world.url + form)).status_code == 200, form
        for method, target, status in (("HEAD", path, 405), ("PUT", path, 405), ("GET", f"{path}/x", 404)):
            answer = await http.request(method, f"/{target}")
            assert (answer.status_code, bool(answer.headers["x-request-id"])) == (status, True)


async def test_what_nobody_meant_to_raise_is_a_refusal_of_the_same_form() -> None:
    async def broken(_request: Request) -> Response:
        raise ZeroDivisionError("a secret")

    app = http_errors.application([Route("/broken", broken)])
    transport = validated(
        httpx2.ASGITransport(app=app, raise_app_exceptions=False), load("dsc"), allowed=frozenset({500})
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://broken.example") as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    assert answer.json()["message"] == "Internal Server Error" and answer.json()["error_code"] == "Internal"


async def ask_everything(world: World, http: httpx2.AsyncClient) -> None:
    """Every operation without a body, of something that exists; what ends the service last."""
    operations = world.making.document.operations
    for operation in [*world.making.operations, *(operations[name] for name in world.last)]:
        path = operation.path
        for name in operation.path_parameters:
            path = path.replace(f"{{{name}}}", world.known(operation, name, 0) or "0")
        await http.request(operation.method, path)


def operations_that_succeeded(transport: Validated) -> set[str]:
    return {operation_id for operation_id, status in transport.seen if status < 300}
