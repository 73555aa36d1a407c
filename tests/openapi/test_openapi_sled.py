"""Agent, pantry and host beside their documents: what is routed, the models, and a success of every operation."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import httpx2
import pytest
import trio
from fuzz_judge import World
from fuzz_sled import (
    BLOCK,
    DISK_BYTES,
    NOT_OFFERED,
    REGIONS,
    RUNNING,
    SLED_WORLDS,
    SNAPSHOTS,
    WRITTEN,
    file_of,
    volume_of,
    written,
)
from host_rig import DISK, ensure_body
from openapi_document import load
from openapi_models import model_differences
from openapi_recorded import Validated, validated

from crucible_emu.agent import agent_api
from crucible_emu.agent import documents as agent_documents
from crucible_emu.host import api as host_api
from crucible_emu.host import documents as host_documents
from crucible_emu.pantry import documents as pantry_documents
from crucible_emu.pantry.operations import api as pantry_api
from crucible_emu.service import Api
from crucible_emu.upstairs import replacement
from crucible_emu.volume import vcr

NOBODY = cast(Any, None)
APIS: dict[str, Api] = {"agent": agent_api(NOBODY), "pantry": pantry_api(NOBODY), "host": host_api(NOBODY)}
FAITHFUL = {"agent": agent_api(NOBODY, faithful=True), "host": host_api(NOBODY, faithful=True)}
MODELS: dict[str, tuple[ModuleType, ...]] = {
    "agent": (agent_documents,),
    "pantry": (pantry_documents,),
    "host": (host_documents, replacement),
}
ONE_HOSTED = "/hosts/0/instances/{instance_id}"
OURS: dict[str, set[str]] = {
    "agent": {"region_digest", "snapshot_digest", "region_digest_forget", "snapshot_digest_forget"},
    "pantry": {"job_status"},
    "host": {"instance_disks_list", "hosted_instances_list"},
}
"""What the services have beyond their documents; and every operation of ``/instance`` once more, for many instances."""


def offered(service: str) -> set[str]:
    """The operations of the document that the service has."""
    return set(load(service).operations) - (NOT_OFFERED if service == "host" else set())


# -- what is declared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", APIS)
def test_what_is_routed_is_what_the_document_has(service: str) -> None:
    document = load(service)
    routed = {each.operation_id: each for each in APIS[service].operations}
    more = routed.keys() - offered(service)
    assert offered(service) <= routed.keys()
    assert {name for name in more if not routed[name].path.startswith(ONE_HOSTED)} == OURS[service]
    for name in offered(service):
        meant = document.operations[name]
        assert (routed[name].method, routed[name].path) == meant.route
        assert {routed[name].success} == meant.success, name
        assert (routed[name].body is None) == (meant.body is None), name


def test_a_host_has_every_operation_again_for_many_instances() -> None:
    routed = {(each.method, each.path) for each in APIS["host"].operations}
    for name in offered("host"):
        method, path = load("host").operations[name].route
        assert (method, path.replace("/instance", ONE_HOSTED, 1)) in routed


def test_a_faithful_host_has_the_operations_of_the_document_only() -> None:
    assert {each.operation_id for each in FAITHFUL["host"].operations} == offered("host")


@pytest.mark.parametrize("service", APIS)
def test_members_words_and_what_is_required_are_those_of_the_document(service: str) -> None:
    assert model_differences(MODELS[service], load(service), sorted(offered(service))) == []


# -- what is answered -------------------------------------------------------------------------------------------------


class Asking:
    """A client whose every exchange is held to the document."""

    def __init__(self, world: World, http: httpx2.AsyncClient, seen: Validated) -> None:
        self._world = world
        self.behind = world.behind
        self._http = http
        self._seen = seen

    async def ask(self, operation_id: str, body: Any = None, **parameters: str) -> Any:
        """The JSON of a success."""
        operation = self._world.making.document.operations[operation_id]
        headers = self._world.making.headers(operation)
        path = operation.path.format(**parameters)
        answer = await self._http.request(operation.method, path, json=body, headers=headers)
        assert answer.status_code in operation.success, f"{operation_id}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def succeeded(self) -> set[str]:
        return {name for name, status in self._seen.seen if status < 300}


@asynccontextmanager
async def asking(service: str, folder: Path) -> AsyncIterator[Asking]:
    """The service as the fuzz has it."""
    with trio.fail_after(120):
        async with SLED_WORLDS[service](folder) as world:
            transport = validated(httpx2.AsyncHTTPTransport(), world.making.document)
            async with httpx2.AsyncClient(transport=transport, base_url=world.url, timeout=60) as http:
                yield Asking(world, http, transport)


async def until(look: Any, good: Any) -> Any:
    """What ``look`` finds as soon as it is ``good``."""
    while not good(found := await look()):  # noqa: ASYNC110 - only asking tells
        await trio.sleep(0.01)
    return found


async def test_every_operation_of_the_agent_succeeds(tmp_path: Path) -> None:
    async with asking("agent", tmp_path) as it:
        wish = {"id": REGIONS[5], "block_size": 512, "extent_size": 8, "extent_count": 2, "encrypted": False}
        await it.ask("region_create", wish)
        made = await until(lambda: it.ask("region_get", id=REGIONS[5]), lambda region: region["state"] == "created")
        assert made["port_number"] in {each["port_number"] for each in await it.ask("region_list")}
        found = await it.ask("region_get_snapshots", id=WRITTEN)
        assert [each["name"] for each in found["snapshots"]] == SNAPSHOTS
        assert found["running_snapshots"][RUNNING]["state"] == "created"
        at = {"id": WRITTEN, "name": RUNNING}
        await it.ask("region_get_snapshot", **at)
        await it.ask("region_run_snapshot", **at)
        await it.ask("region_delete_running_snapshot", **at)

        async def run() -> str:
            listed = await it.ask("region_get_snapshots", id=WRITTEN)
            return str(listed["running_snapshots"][RUNNING]["state"])

        await until(run, lambda state: state == "destroyed")
        await it.ask("region_delete_snapshot", **at)
        await it.ask("region_delete", id=REGIONS[5])
        await until(lambda: it.ask("region_get", id=REGIONS[5]), lambda region: region["state"] == "destroyed")
        assert it.succeeded() == offered("agent")


async def test_every_operation_of_the_pantry_succeeds(tmp_path: Path, expect_log: Any) -> None:
    expect_log("cannot connect", at_least=0)  # to the third, whom nobody put there
    async with asking("pantry", tmp_path) as it:
        disk = written(volume_of(file_of(tmp_path, "another")))
        await it.ask("attach_activate_background", {"volume_construction_request": disk, "job_id": "j"}, id="another")
        assert await it.ask("job_result_ok", id="j") == {"job_result_ok": True}
        assert await it.ask("is_job_finished", id="j") == {"job_is_finished": True}
        assert "another" in (await it.ask("pantry_status"))["volumes"]
        data = bytes(range(1, 17)) * (BLOCK // 16)
        text = base64.b64encode(data).decode()
        await it.ask("bulk_write", {"offset": BLOCK, "base64_encoded_data": text}, id="held")
        read = await it.ask("bulk_read", {"offset": BLOCK, "size": BLOCK}, id="held")
        assert read == {"base64_encoded_data": text}
        digest = hashlib.sha256(bytes(BLOCK) + data).hexdigest()
        validate = {"expected_digest": {"sha256": digest}, "size_to_validate": 2 * BLOCK}
        jobs = [await it.ask("validate", validate, id="held"), await it.ask("scrub", id="held")]
        await it.ask("snapshot", {"snapshot_id": "a-snapshot"}, id="held")
        zeros = hashlib.sha256(bytes(DISK_BYTES)).hexdigest()
        imported = {"url": it.behind["image"], "expected_digest": {"sha256": zeros}}
        jobs.append(await it.ask("import_from_url", imported, id="another"))
        for job in jobs:
            assert await it.ask("job_result_ok", id=job["job_id"]) == {"job_result_ok": True}
        status = await it.ask("volume_status", id="held")
        (part,) = status["info"]["volume"]["sub_volumes"]
        assert status["active"] and part["upstairs"]["state"] == "active"
        await it.ask("attach", {"volume_construction_request": written(it.behind["held"])}, id="held")
        other = {"volume_construction_request": written(it.behind["replaced"])}
        assert await it.ask("replace", other, id="held") == "started"
        await it.ask("detach", id="another")
        assert it.succeeded() == offered("pantry")


async def test_every_operation_of_the_host_succeeds(tmp_path: Path) -> None:
    async with asking("host", tmp_path) as it:
        first, second = it.behind["requests"][:2]
        await it.ask("instance_ensure", ensure_body(first))
        await it.ask("instance_state_put", "Run")
        generation = 0

        async def state() -> str:
            nonlocal generation
            seen = await it.ask("instance_state_monitor", {"gen": generation})
            generation = seen["gen"] + 1
            return str(seen["state"])

        await until(state, lambda found: found == "Running")
        assert (await it.ask("instance_get"))["instance"]["state"] == "Running"
        assert (await it.ask("instance_spec_get"))["spec"]["type"] == "Present"
        await it.ask("instance_migrate_status")
        assert await it.ask("instance_issue_crucible_snapshot_request", id=DISK, snapshot_id=REGIONS[0]) is None
        (part,) = (await it.ask("disk_volume_status", id=DISK))["volume_info"]["volume"]["sub_volumes"]
        assert part["upstairs"]["state"] == "active"
        request = {"vcr_json": vcr.dumps(second)}
        assert await it.ask("instance_issue_crucible_vcr_request", request, id=DISK) == "vcr_matches"
        assert it.succeeded() == offered("host")


async def test_what_a_host_does_not_offer_is_refused_as_unknown(tmp_path: Path) -> None:
    async with asking("host", tmp_path) as it:
        for name in sorted(NOT_OFFERED):
            with pytest.raises(AssertionError, match=f"{name}: 404"):
                await it.ask(name, migration_id=REGIONS[0])
