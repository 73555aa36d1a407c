"""Each kind of thing from its making to its end, over HTTP, on real agents with real bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from api_rig import OPERATOR, SIZE_BYTES, Served, disk_wish, served
from blake3 import blake3
from db_rig import open_database
from sqlalchemy import select

from nexus.db import Database, schema

BYTES = bytes(range(256)) * 4


@pytest.fixture
def in_memory() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


async def test_a_disk_from_its_making_to_its_end(tmp_path: Path, database: Database) -> None:
    async with served(tmp_path, database) as it:
        made = await it.disk("data")
        it.watch_keys()
        assert it.secrets
        assert made["state"] == {"state": "detached"} and made["size"] == SIZE_BYTES and not made["read_only"]
        assert made["project_id"] == it.rack.project_id and made["device_path"] == "/mnt/data"
        assert await it.user.ask("GET", "/v1/disks/data") == made
        assert await it.user.ask("GET", f"/v1/disks/{made['id'].upper()}") == made
        assert await it.operator.ask("GET", "/v1/disks/data", project="project") == made
        assert (await it.user.ask("GET", "/v1/disks"))["items"] == [made]
        tree = await it.lockstep.ask("GET", f"/emulator/v1/volumes/{_volume_of(it, made['id'])}")
        (part,) = tree["tree"]["sub_volumes"]
        assert tree["owner"]["name"] == "data" and part["encrypted"]
        assert [each["agent_state"] for each in part["targets"]] == ["created"] * 3
        assert len({each["sled_id"] for each in part["targets"]}) == 3
        await it.user.ask("DELETE", "/v1/disks/data", status=204)
        await it.user.ask("GET", "/v1/disks/data", status=404)
        await it.user.ask("GET", f"/v1/disks/{made['id']}", status=404)
        await it.rack.require_empty()


def _volume_of(it: Served, disk_id: str) -> str:
    crucible = schema.disk_type_crucible
    found: str = it.rack.run(
        lambda c: c.execute(crucible.select().where(crucible.c.disk_id == disk_id)).one().volume_id
    )
    return found


async def written(it: Served, name: str, **finalize: Any) -> Any:
    """A disk whose first bytes are :data:`BYTES`."""
    await it.disk(name, disk_backend=disk_wish(name, {"type": "importing_blocks", "block_size": 512})["disk_backend"])
    assert (await it.user.ask("GET", f"/v1/disks/{name}"))["state"] == {"state": "import_ready"}
    await it.user.ask("POST", f"/v1/disks/{name}/bulk-write-start", status=204)
    body = {"offset": 0, "base64_encoded_data": base64.b64encode(BYTES).decode()}
    await it.user.ask("POST", f"/v1/disks/{name}/bulk-write", body, 204)
    await it.user.ask("POST", f"/v1/disks/{name}/bulk-write-stop", status=204)
    await it.user.ask("POST", f"/v1/disks/{name}/finalize", finalize, 204)
    return await it.user.ask("GET", f"/v1/disks/{name}")


async def test_import_snapshot_image_and_disks_of_them(
    tmp_path: Path, in_memory: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with served(tmp_path, in_memory) as it:
        source = await written(it, "source", snapshot_name="imported")
        assert source["state"] == {"state": "detached"}
        imported = await it.user.ask("GET", "/v1/snapshots/imported")
        assert imported["disk_id"] == source["id"] and imported["state"] == "ready"
        wish = {"name": "second", "description": "", "disk": "source"}
        second = await it.user.ask("POST", "/v1/snapshots", wish, 201)
        await it.user.ask("POST", "/v1/snapshots", wish, 400)
        assert [each["name"] for each in (await it.user.ask("GET", "/v1/snapshots"))["items"]] == ["imported", "second"]
        wish = {"name": "os", "description": "", "os": "helios", "version": "1"}
        wish["source"] = {"type": "snapshot", "id": imported["id"]}
        image = await it.user.ask("POST", "/v1/images", wish, 201, project="project")
        assert image["project_id"] == it.rack.project_id and image["size"] == SIZE_BYTES
        of_snapshot = {"type": "snapshot", "snapshot_id": second["id"]}
        of_image = {"type": "image", "image_id": image["id"], "read_only": True}
        copy = await it.user.ask("POST", "/v1/disks", disk_wish("copy", of_snapshot), 201)
        frozen = await it.user.ask("POST", "/v1/disks", disk_wish("frozen", of_image), 201)
        assert (copy["snapshot_id"], copy["read_only"]) == (second["id"], False)
        assert (frozen["image_id"], frozen["read_only"]) == (image["id"], True)
        it.watch_keys()
        for disk in ("source", "copy", "frozen"):
            found = await it.user.ask("GET", f"/v1/disks/{disk}")
            tree = await it.lockstep.ask("GET", f"/emulator/v1/volumes/{_volume_of(it, found['id'])}")
            assert "key" not in str(tree)
        await it.lockstep.ask("GET", "/sagas")
        for saga in (await it.lockstep.ask("GET", "/emulator/v1/sagas"))["items"]:
            await it.lockstep.ask("GET", f"/emulator/v1/sagas/{saga['id']}")
        assert (await it.lockstep.ask("GET", "/emulator/v1/check"))["findings"] == []
        report = await it.lockstep.ask("POST", f"/emulator/v1/volumes/{_volume_of(it, copy['id'])}/verify")
        assert (report["findings"], report["not_looked_at"]) == ([], [])
        assert report["digest"] == blake3(BYTES + bytes(SIZE_BYTES - len(BYTES))).hexdigest() and report["ledgers"]
        for path in (
            "snapshots/imported",
            "snapshots/second",
            "images/os",
            "disks/source",
            "disks/frozen",
            "disks/copy",
        ):
            query = {"project": "project"} if path.startswith("images") else {}
            await it.user.ask("DELETE", f"/v1/{path}", status=204, **query)
        await it.rack.require_empty()


def require_no_secret(it: Served, caplog: pytest.LogCaptureFixture) -> None:
    """No key and no token is in a log, nor in anything that sagas have written down."""
    saga, event = schema.saga, schema.saga_event
    texts = it.rack.run(
        lambda c: [*c.execute(select(saga.c.params)).scalars(), *c.execute(select(event.c.data)).scalars()]
    )
    texts += [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    secrets = it.secrets | set(it.tokens.values()) | {OPERATOR}
    assert len(texts) > 100 and len(secrets) > 5
    assert not [secret for secret in secrets for text in texts if text and secret in text]


async def test_a_client_that_leaves_changes_nothing(tmp_path: Path, in_memory: Database) -> None:
    """Its disk is made to the end, and found in the list."""
    async with served(tmp_path, in_memory) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.disk, "data")
            while not it.nexus.executor.in_hand:  # noqa: ASYNC110 - only looking tells
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert it.nexus.executor.in_hand
        while it.nexus.executor.in_hand:  # noqa: ASYNC110 - only looking tells
            await trio.sleep(0.01)
        (found,) = (await it.user.ask("GET", "/v1/disks"))["items"]
        assert found["state"] == {"state": "detached"}
        await it.user.ask("DELETE", "/v1/disks/data", status=204)
        await it.rack.require_empty()


async def test_an_image_is_promoted_and_demoted(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory) as it:
        await it.disk("data")
        snapshot = await it.user.ask("POST", "/v1/snapshots", {"name": "s", "description": "", "disk": "data"}, 201)
        wish = {"name": "os", "description": "", "os": "o", "version": "1"}
        wish["source"] = {"type": "snapshot", "id": snapshot["id"]}
        await it.user.ask("POST", "/v1/images", wish, 403)
        image = await it.user.ask("POST", "/v1/images", wish, 201, project="project")
        await it.other.ask("GET", f"/v1/images/{image['id']}", status=404)
        await it.user.ask("POST", "/v1/images/os/promote", status=403, project="project")
        promoted = await it.operator.ask("POST", f"/v1/images/{image['id']}/promote", status=202)
        assert promoted["project_id"] is None
        assert await it.other.ask("GET", "/v1/images/os") == promoted
        assert (await it.other.ask("GET", "/v1/images"))["items"] == [promoted]
        await it.other.ask("DELETE", "/v1/images/os", status=403)
        of_image = {"type": "image", "image_id": image["id"]}
        await it.other.ask("POST", "/v1/disks", disk_wish("theirs", of_image), 201)
        await it.operator.ask("POST", "/v1/images/os/demote", status=400)
        demoted = await it.operator.ask("POST", "/v1/images/os/demote", status=202, project="project")
        assert demoted["project_id"] == it.rack.project_id
        await it.other.ask("GET", "/v1/images/os", status=404)
        await it.other.ask("DELETE", "/v1/disks/theirs", status=204)
        await it.user.ask("DELETE", f"/v1/images/{image['id']}", status=204)


async def test_an_instance_with_its_disks(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory) as it:
        await it.disk("first")
        wish = {"name": "vm", "description": "", "hostname": "vm", "ncpus": 1, "memory": 1 << 30, "start": False}
        create = {"type": "create"} | disk_wish("second")
        wish |= {"boot_disk": {"type": "attach", "name": "first"}, "disks": [create]}
        made = await it.user.ask("POST", "/v1/instances", wish, 201)
        assert made["run_state"] == "stopped"
        disks = (await it.user.ask("GET", "/v1/instances/vm/disks"))["items"]
        assert {each["name"] for each in disks} == {"first", "second"}
        assert all(each["state"] == {"state": "attached", "instance": made["id"]} for each in disks)
        await it.user.ask("DELETE", "/v1/disks/first", status=400)
        assert (await it.user.ask("POST", "/v1/instances/vm/start", status=202))["run_state"] == "running"
        assert (await it.user.ask("GET", "/v1/instances"))["items"][0]["run_state"] == "running"
        await it.user.ask("POST", "/v1/instances/vm/disks/detach", {"disk": "first"}, 409)
        snapshot = {"name": "live", "description": "", "disk": "first"}
        assert (await it.user.ask("POST", "/v1/snapshots", snapshot, 201))["state"] == "ready"
        await it.user.ask("DELETE", "/v1/instances/vm", status=409)
        assert (await it.user.ask("POST", "/v1/instances/vm/stop", status=202))["run_state"] == "stopped"
        detached = await it.user.ask("POST", "/v1/instances/vm/disks/detach", {"disk": "first"}, 202)
        assert detached["state"] == {"state": "detached"}
        attached = await it.user.ask("POST", "/v1/instances/vm/disks/attach", {"disk": detached["id"]}, 202)
        assert attached["state"]["state"] == "attached"
        await it.user.ask("DELETE", "/v1/instances/vm", status=204)
        await it.user.ask("GET", "/v1/instances/vm", status=404)
        for path in ("disks/first", "disks/second", "snapshots/live"):
            await it.user.ask("DELETE", f"/v1/{path}", status=204)
        await it.rack.require_empty()


async def test_an_instance_that_cannot_have_its_disks_is_not_made(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory) as it:
        wish = {"name": "vm", "description": "", "hostname": "vm", "ncpus": 1, "memory": 0}
        disks = [{"type": "create"} | disk_wish("made"), {"type": "attach", "name": "none"}]
        await it.user.ask("POST", "/v1/instances", wish | {"disks": disks}, 404)
        assert (await it.user.ask("GET", "/v1/instances"))["items"] == []
        await it.rack.require_empty()
        many = [{"type": "attach", "name": f"d{number}"} for number in range(13)]
        await it.user.ask("POST", "/v1/instances", wish | {"disks": many}, 400)
        await it.user.ask("POST", "/v1/instances", wish | {"disks": [disks[1], disks[1]]}, 400)


async def test_projects_come_and_go(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory) as it:
        wish = {"name": "third", "description": "d"}
        await it.user.ask("POST", "/v1/projects", wish, 403)
        made = await it.operator.ask("POST", "/v1/projects", wish, 201)
        assert (await it.operator.ask("POST", "/v1/projects", wish, 400))["error_code"] == "ObjectAlreadyExists"
        assert await it.operator.ask("GET", "/v1/projects/third") == made
        assert [each["name"] for each in (await it.user.ask("GET", "/v1/projects"))["items"]] == ["project"]
        assert len((await it.operator.ask("GET", "/v1/projects"))["items"]) == 3
        await it.operator.ask("POST", "/v1/disks", disk_wish("data"), 201, project="third")
        told = await it.operator.ask("DELETE", "/v1/projects/third", status=400)
        assert "contains a disk: data" in told["message"]
        await it.operator.ask("DELETE", "/v1/disks/data", status=204, project="third")
        await it.user.ask("DELETE", "/v1/projects/third", status=404)
        await it.user.ask("DELETE", "/v1/projects/project", status=403)
        await it.operator.ask("DELETE", "/v1/projects/third", status=204)
        await it.operator.ask("GET", "/v1/projects/third", status=404)
