"""Who may come in, and what he sees: on every route of every API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_rig import OPERATOR, Served, Things, disk_wish, served, some_things, token_for
from db_rig import open_database

from crucible_emu.service import Operation, application
from nexus.api.callers import Doors
from nexus.api.external import external_api
from nexus.api.internal import internal_api
from nexus.api.lockstep import lockstep_api
from nexus.db import Database, schema
from nexus.objects import tenants

FEW = {"sleds": 1, "checked": False}


@pytest.fixture
def in_memory() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


def body_of(operation: Operation, theirs: Things) -> Any:
    """A body that makes sense, about ``theirs`` where it is about anything."""
    new = {"name": "new", "description": ""}
    return {
        "disk_create": disk_wish("new"),
        "disk_bulk_write_import": {"offset": 0, "base64_encoded_data": ""},
        "disk_finalize_import": {},
        "snapshot_create": new | {"disk": theirs.disk},
        "image_create": new | {"os": "o", "version": "1", "source": {"type": "snapshot", "id": theirs.snapshot}},
        "instance_create": new | {"hostname": "vm", "ncpus": 1, "memory": 0, "start": False},
        "instance_disk_attach": {"disk": theirs.disk},
        "instance_disk_detach": {"disk": theirs.disk},
        "project_create": new,
        "sled_set_provision_policy": {"state": "provisionable"},
    }.get(operation.operation_id)


def paths_of(operation: Operation, theirs: Things, project_id: str) -> list[tuple[str, dict[str, str]]]:
    """Path and query of requests that are about another's things: by id, by name and project's name, by name and
    project's id."""
    ids = {"disk": theirs.disk, "snapshot": theirs.snapshot, "image": theirs.image, "instance": theirs.instance}
    if "{project}" in operation.path:
        return [(operation.path.format(project=each), {}) for each in (project_id, "project")]
    if operation.path.endswith("demote"):
        ids = {key: value for key, value in ids.items() if key == "image"}
        return [(operation.path.format(**ids), {"project": each}) for each in ("project", project_id)]
    if "{" not in operation.path:
        return [(operation.path, {"project": each}) for each in (project_id, "project")]
    by_name = dict.fromkeys(ids, theirs.name)
    return [
        (operation.path.format(**ids), {}),
        (operation.path.format(**by_name), {"project": "project"}),
        (operation.path.format(**by_name), {"project": project_id}),
        (operation.path.format(**by_name), {}),
    ]


def counts(it: Served) -> dict[str, Any]:
    tables = (schema.disk, schema.snapshot, schema.image, schema.instance, schema.project, schema.saga)
    return {each.name: it.rack.run(lambda c, t=each: [tuple(row) for row in c.execute(t.select())]) for each in tables}


NOT_ABOUT_A_TENANT = ("ping", "project_list", "project_create")


async def test_another_tenants_things_do_not_exist_on_any_route(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        theirs = some_things(it.rack, it.rack.project_id, "theirs")
        before = counts(it)
        routes = list(external_api(it.nexus, Doors(it.rack.world)).operations)
        asked = 0
        for operation in routes:
            if operation.operation_id in NOT_ABOUT_A_TENANT or "/system/" in operation.path:
                continue
            for path, query in paths_of(operation, theirs, it.rack.project_id):
                body = body_of(operation, theirs)
                await it.other.ask(operation.method, path, body, 404, **query)
                asked += 1
        assert asked > 80
        assert counts(it) == before


async def test_another_tenants_things_are_no_source_and_no_disk_of_an_instance(
    tmp_path: Path, in_memory: Database
) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        theirs = some_things(it.rack, it.rack.project_id, "theirs")
        mine = some_things(it.rack, it.other_project, "mine")
        before = counts(it)
        for source in (
            {"type": "snapshot", "snapshot_id": theirs.snapshot},
            {"type": "image", "image_id": theirs.image},
        ):
            await it.other.ask("POST", "/v1/disks", disk_wish("new", source), 404)
        wish = {"name": "new", "description": "", "disk": theirs.disk}
        await it.other.ask("POST", "/v1/snapshots", wish, 404)
        wish = {"name": "new", "description": "", "os": "", "version": ""}
        wish["source"] = {"type": "snapshot", "id": theirs.snapshot}
        await it.other.ask("POST", "/v1/images", wish, 404, project="other-project")
        for way in ("attach", "detach"):
            await it.other.ask("POST", f"/v1/instances/{mine.instance}/disks/{way}", {"disk": theirs.disk}, 404)
        for kind in ("disks", "snapshots", "instances", "images"):
            items = (await it.other.ask("GET", f"/v1/{kind}", project="other-project"))["items"]
            assert [each["name"] for each in items] == ["mine"]
        assert counts(it) == before


async def test_nobody_comes_in_without_a_token(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        theirs = some_things(it.rack, it.rack.project_id, "theirs")
        doors = Doors(it.rack.world, tenants.digest_of(OPERATOR))
        apis = [make(it.nexus, doors) for make in (external_api, internal_api, lockstep_api)]
        revoked, expired = token_for(it.rack, it.rack.project_id), token_for(it.rack, it.rack.project_id)
        for token, column in ((revoked, "time_revoked"), (expired, "time_expires")):
            table = schema.access_token
            change = table.update().where(table.c.digest == tenants.digest_of(token)).values({column: it.rack.now()})
            it.rack.run(lambda c, statement=change: c.execute(statement) and None)
        offered = [{}, {"authorization": "Bearer nobodys"}, {"authorization": f"Basic {OPERATOR}"}]
        offered += [{"authorization": f"Bearer {each}"} for each in (revoked, expired)]
        asked = 0
        for api in apis:
            transport = httpx2.ASGITransport(app=application(api), client=("2001:db8::1", 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://nexus") as http:
                for operation in api.operations:
                    path = operation.path.replace("{", "").replace("}", "")
                    for headers in offered:
                        answer = await http.request(operation.method, path, headers=headers, content=b"{")
                        assert answer.status_code == 401, operation.operation_id
                        assert answer.json()["error_code"] == "Unauthorized" and theirs.name not in answer.text
                        asked += 1
        assert asked > 300


async def test_what_is_an_operators_is_no_tenants(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        doors = Doors(it.rack.world)
        for operation in external_api(it.nexus, doors).operations:
            if "/system/" in operation.path:
                path = operation.path.format(sled_id=it.rack.id(), disk_id=it.rack.id())
                await it.user.ask(operation.method, path, {"state": "provisionable"}, 403)
        for operation in lockstep_api(it.nexus, doors).operations:
            path = operation.path.replace("{", "").replace("}", "")
            told = await it.lockstep_user.ask(operation.method, path, None, 403)
            assert told["error_code"] == "Forbidden"


async def test_programs_of_this_machine_need_no_token_for_the_internal_api(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        api = internal_api(it.nexus, Doors(it.rack.world))
        headers = {"api-version": "1.0.0"}
        for peer, more, status in (
            ("::1", {}, 200),
            ("127.0.0.1", {}, 200),
            ("::1", {"origin": "http://a.page"}, 403),
            ("::1", {"authorization": "Bearer wrong"}, 401),
            ("::1", {"authorization": f"Bearer {it.tokens['user']}"}, 403),
            ("2001:db8::1", {}, 401),
        ):
            transport = httpx2.ASGITransport(app=application(api), client=(peer, 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://nexus") as http:
                assert (await http.get("/v1/ping", headers=headers | more)).status_code == status


async def test_a_tenants_project_need_not_be_said_but_to_a_faithful_service(
    tmp_path: Path, in_memory: Database
) -> None:
    async with served(tmp_path / "ours", in_memory, **FEW) as it:
        mine = some_things(it.rack, it.rack.project_id, "mine")
        await it.user.ask("GET", "/v1/disks")
        await it.user.ask("GET", f"/v1/disks/{mine.disk}", project="project")
        await it.user.ask("GET", f"/v1/disks/{mine.disk}", project="other-project", status=404)
        await it.operator.ask("GET", "/v1/disks", status=400)
        await it.operator.ask("GET", "/v1/disks/mine", status=400)
        await it.operator.ask("GET", f"/v1/disks/{mine.disk}", project="other-project", status=404)
        assert it.nexus.id
    with open_database("sqlite://", inline=True) as fresh:
        async with served(tmp_path / "real", fresh, faithful=True, **FEW) as it:
            mine = some_things(it.rack, it.rack.project_id, "mine")
            await it.user.ask("GET", "/v1/disks", status=400)
            await it.user.ask("GET", "/v1/disks/mine", status=400)
            await it.user.ask("GET", f"/v1/disks/{mine.disk}", project="project", status=400)
            told = await it.user.ask("GET", "/v1/disks/none", project="project", status=404)
            assert told["message"] == "Not Found"


async def test_tokens_are_given_out_once_and_taken_back(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        silo = await it.lockstep.ask("POST", "/emulator/v1/silos", {"name": "second"}, 201)
        await it.lockstep.ask("POST", "/emulator/v1/silos", {"name": "second"}, 400)
        wish = {"name": "project", "silo_id": silo["id"]}
        project = await it.lockstep.ask("POST", "/emulator/v1/projects", wish, 201)
        await it.lockstep.ask("POST", "/emulator/v1/projects", {"name": "third"}, 400)
        wish = {"role": "tenant", "project_id": project["id"]}
        made = await it.lockstep.ask("POST", "/emulator/v1/tokens", wish, 201)
        assert len(made["token"]) > 60
        headers = {"authorization": f"Bearer {made['token']}"}
        found = await it.nobody.http.get("/v1/projects", headers=headers)
        assert [each["id"] for each in found.json()["items"]] == [project["id"]]
        it.secrets |= {made["token"], tenants.digest_of(made["token"])}
        listed = (await it.lockstep.ask("GET", "/emulator/v1/tokens"))["items"]
        assert made["id"] in {each["id"] for each in listed} and "token" not in listed[0]
        for _ in range(2):
            await it.lockstep.ask("DELETE", f"/emulator/v1/tokens/{made['id']}", status=204)
        assert (await it.nobody.http.get("/v1/projects", headers=headers)).status_code == 401
        await it.lockstep.ask("DELETE", f"/emulator/v1/tokens/{it.rack.id()}", status=404)
        for bad in (
            {"role": "tenant"},
            {"role": "operator", "project_id": project["id"]},
            {"role": "root"},
            {"role": "tenant", "project_id": project["id"], "time_expires": "2026-01-01T00:00:00"},
        ):
            await it.lockstep.ask("POST", "/emulator/v1/tokens", bad, 400)
        await it.lockstep.ask("POST", "/emulator/v1/tokens", {"role": "tenant", "project_id": it.rack.id()}, 404)
        made = await it.lockstep.ask("POST", "/emulator/v1/tokens", {"role": "operator"}, 201)
        headers = {"authorization": f"Bearer {made['token']}"}
        assert (await it.nobody.http.get("/v1/system/hardware/sleds", headers=headers)).status_code == 200
