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
