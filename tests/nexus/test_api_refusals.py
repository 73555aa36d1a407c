"""What cannot be done is answered as documented, on every route (apis-and-tools.md §0.1, §5.1)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from api_rig import SIZE_BYTES, disk_wish, served, some_disk, some_things
from db_rig import open_database
from nexus_rig import CAPACITY_BYTES, EXTENT_BYTES

from crucible_emu.service import Call, Operation, Refusal
from nexus.api.refusals import STATUSES, answering
from nexus.db import Conflict, Contention, Database, NotFound, OutcomeUnknown, Unreachable, schema
from nexus.db.schema.user_visible import TokenRole
from nexus.objects.refusals import (
    CAPACITY,
    CONFLICT,
    GONE,
    INVALID_REQUEST,
    NOT_FOUND,
    OBJECT_ALREADY_EXISTS,
    UNAVAILABLE,
)
from nexus.objects.tenants import Bearer
from nexus.saga import ActionFailed, Fenced, SagaFailed, SagaStuck
from nexus.saga.execution import Failure

FEW = {"sleds": 1, "checked": False}
UNKNOWN_ID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def in_memory() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


# -- the table --------------------------------------------------------------------------------------------------------


def failed(kind: str) -> Failure:
    return Failure("NODE", f"sentence about {kind}", kind)


RAISED = [
    (ActionFailed("no", INVALID_REQUEST), 400, "InvalidRequest"),
    (ActionFailed("no", OBJECT_ALREADY_EXISTS), 400, "ObjectAlreadyExists"),
    (ActionFailed("no", NOT_FOUND), 404, "ObjectNotFound"),
    (ActionFailed("no", CONFLICT), 409, "Conflict"),
    (ActionFailed("no", CAPACITY), 507, "InsufficientCapacity"),
    (ActionFailed("no", UNAVAILABLE), 503, "ServiceNotAvailable"),
    (ActionFailed("no", GONE), 500, "Internal"),
    (ActionFailed("no", "refused"), 500, "Internal"),
    (SagaFailed("s", failed(CAPACITY)), 507, "InsufficientCapacity"),
    (SagaFailed("s", failed("unexpected")), 500, "Internal"),
    (SagaStuck("s", failed("failed")), 500, "Internal"),
    (Fenced("of another"), 503, "ServiceNotAvailable"),
    (NotFound("disk", "d"), 404, "ObjectNotFound"),
    (Conflict("not now"), 409, "Conflict"),
    (Contention("lost"), 503, "ServiceNotAvailable"),
    (Unreachable("away"), 503, "ServiceNotAvailable"),
    (OutcomeUnknown("who knows"), 500, "Internal"),
    (Refusal(418, "tea", "Pot"), 418, "Pot"),
]


@pytest.mark.parametrize(("error", "status", "code"), RAISED, ids=lambda each: getattr(each, "kind", str(each)))
async def test_each_failure_has_its_status(error: Exception, status: int, code: str) -> None:
    async def handler(_call: Call) -> object:
        raise error

    operation = Operation("o", "GET", "/o", answering(handler))
    with pytest.raises(Refusal) as caught:
        await operation.handler(Call(operation, {}, {}, None, (0, 0, 0), "r", False))
    assert (caught.value.status, caught.value.error_code) == (status, code)


@pytest.mark.parametrize("role", TokenRole)
async def test_why_the_rack_failed_is_told_to_operators_only(role: TokenRole) -> None:
    async def handler(_call: Call) -> object:
        raise SagaFailed("s", Failure("NODE", "the agent at [::1]:7000 is gone", GONE))

    operation = Operation("o", "GET", "/o", answering(handler))
    with pytest.raises(Refusal) as caught:
        await operation.handler(Call(operation, {}, {}, None, (0, 0, 0), "r", False, Bearer("t", role, None)))
    assert ("agent" in str(caught.value)) == (role is TokenRole.OPERATOR)
    assert caught.value.status == 500


def test_an_error_that_nobody_meant_is_not_quoted() -> None:
    assert "unexpected" not in STATUSES

    async def handler(_call: Call) -> object:
        raise SagaFailed("s", Failure("NODE", "the key is hunter2", "unexpected"))

    async def ask() -> None:
        operation = Operation("o", "GET", "/o", answering(handler))
        await operation.handler(Call(operation, {}, {}, None, (0, 0, 0), "r", False))

    with pytest.raises(Refusal, match="Internal Server Error"):
        trio.run(ask)


# -- bodies -----------------------------------------------------------------------------------------------------------

NAMES = ("", "Upper", "1digit", "ends-", "a b", "a" * 64, UNKNOWN_ID.replace("1", "a"), "ä", "a\n", None, 7)


async def test_names_that_nothing_may_have(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        for name in NAMES:
            for path, body in (
                ("/v1/disks", disk_wish("x")),
                ("/v1/snapshots", {"description": "", "disk": "x"}),
                ("/v1/instances", {"description": "", "hostname": "h", "ncpus": 1, "memory": 0}),
            ):
                await it.user.ask("POST", path, body | {"name": name}, 400)
            await it.operator.ask("POST", "/v1/projects", {"name": name, "description": ""}, 400)
        await it.user.ask("POST", "/v1/disks", disk_wish("x", description="\0"), 400)
        await it.user.ask("POST", "/v1/disks", disk_wish("x", description="d" * 513), 400)


WRONG_DISKS: list[tuple[dict[str, Any], int, str]] = [
    ({"size": 0}, 400, "InvalidRequest"),
    ({"size": EXTENT_BYTES + 1}, 400, "InvalidRequest"),
    ({"size": 2000 * EXTENT_BYTES}, 400, "InvalidRequest"),
    ({"size": 2**64 - 1}, 400, "InvalidRequest"),
    ({"disk_backend": {"type": "local"}}, 400, "InvalidRequest"),
    ({"disk_backend": disk_wish("x", {"type": "snapshot", "snapshot_id": UNKNOWN_ID})["disk_backend"]}, 404, ""),
    ({"disk_backend": disk_wish("x", {"type": "image", "image_id": UNKNOWN_ID})["disk_backend"]}, 404, ""),
    ({"disk_backend": disk_wish("x", {"type": "blank", "block_size": 1024})["disk_backend"]}, 400, ""),
    ({"disk_backend": disk_wish("x", {"type": "url", "url": "http://a"})["disk_backend"]}, 400, ""),
    ({"disk_backend": {"type": "distributed"}}, 400, ""),
    ({"size": "2"}, 400, ""),
    ({"size": -1}, 400, ""),
    ({"name": "taken"}, 400, "ObjectAlreadyExists"),
]


async def test_disks_that_cannot_be_made(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        some_disk(it.rack, it.rack.project_id, "taken")
        for changed, status, code in WRONG_DISKS:
            told = await it.user.ask("POST", "/v1/disks", disk_wish("new") | changed, status)
            assert not code or told["error_code"] == code, changed
        await it.operator.ask("POST", "/v1/disks", disk_wish("new"), 400)
        await it.operator.ask("POST", "/v1/disks", disk_wish("new"), 404, project="no-such")
        answer = await it.user.http.post("/v1/disks", content=b"{", headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert it.rack.count(schema.saga, schema.saga.c.name.like("disk-%")) == 0, "refused before there was a saga"


async def test_sources_that_do_not_fit(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        mine = some_things(it.rack, it.rack.project_id, "mine")
        for source in ({"type": "snapshot", "snapshot_id": mine.snapshot}, {"type": "image", "image_id": mine.image}):
            await it.user.ask("POST", "/v1/disks", disk_wish("new", source, size=EXTENT_BYTES), 400)
            frozen = source | {"read_only": True}
            await it.user.ask("POST", "/v1/disks", disk_wish("new", frozen, size=2 * SIZE_BYTES), 400)
        it.rack.set(schema.snapshot, mine.snapshot, state="creating")
        await it.user.ask(
            "POST", "/v1/disks", disk_wish("new", {"type": "snapshot", "snapshot_id": mine.snapshot}), 400
        )


async def test_no_room_is_507(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, sleds=3) as it:
        told = await it.user.ask("POST", "/v1/disks", disk_wish("big", size=CAPACITY_BYTES), 507)
        assert told["error_code"] == "InsufficientCapacity"
        await it.rack.require_empty()


async def test_too_few_sleds_is_507(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, sleds=2) as it:
        assert (await it.user.ask("POST", "/v1/disks", disk_wish("data"), 507))["error_code"] == "InsufficientCapacity"
        await it.rack.require_empty()


# -- states -----------------------------------------------------------------------------------------------------------


async def test_a_disk_in_the_wrong_state_is_a_bad_request(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        block = {"offset": 0, "base64_encoded_data": base64.b64encode(bytes(512)).decode()}
        for state in (
            "creating",
            "detached",
            "import_ready",
            "importing_from_bulk_writes",
            "finalizing",
            "maintenance",
        ):
            disk = some_disk(it.rack, it.rack.project_id, state.replace("_", "-"), disk_state=state)
            wrong = {
                "bulk-write-start": state != "import_ready",
                "bulk-write": state != "importing_from_bulk_writes",
                "bulk-write-stop": state != "importing_from_bulk_writes",
                "finalize": state != "import_ready",
            }
            bodies = {"bulk-write": block, "finalize": {}}
            for action, refused in wrong.items():
                if refused:
                    await it.user.ask("POST", f"/v1/disks/{disk}/{action}", bodies.get(action), 400)
            if state != "detached":
                await it.user.ask("DELETE", f"/v1/disks/{disk}", status=400)
            found = await it.user.ask("GET", f"/v1/disks/{disk}")
            assert found["state"] == {"state": state}


async def test_blocks_that_cannot_be_written(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        disk = some_disk(it.rack, it.rack.project_id, "data", disk_state="importing_from_bulk_writes")
        for offset, data in (
            (0, "!!!!"),
            (0, "AA"),
            (0, "é"),
            (1, base64.b64encode(bytes(512)).decode()),
            (0, base64.b64encode(bytes(513)).decode()),
            (0, base64.b64encode(bytes(512 * 1024 + 512)).decode()),
            (SIZE_BYTES, base64.b64encode(bytes(512)).decode()),
            (2**63, base64.b64encode(bytes(512)).decode()),
            (2**64, base64.b64encode(bytes(512)).decode()),
            (-512, base64.b64encode(bytes(512)).decode()),
        ):
            body = {"offset": offset, "base64_encoded_data": data}
            await it.user.ask("POST", f"/v1/disks/{disk}/bulk-write", body, 400)
        await it.user.ask("POST", f"/v1/disks/{disk}/bulk-write", "x" * (9 << 20), 400)


async def test_what_is_not_there_is_404(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        for kind in ("disks", "snapshots", "images", "instances", "projects"):
            for name in ("none", UNKNOWN_ID):
                told = await it.user.ask("GET", f"/v1/{kind}/{name}", status=404)
                assert told["error_code"] == "ObjectNotFound" and name in told["message"]
            await it.user.ask("GET", f"/v1/{kind}/No!Name", status=400)
        await it.user.ask("POST", "/v1/snapshots", {"name": "s", "description": "", "disk": "none"}, 404)
        hardware = "/v1/system/hardware"
        for path in (f"{hardware}/sleds", f"{hardware}/disks"):
            await it.operator.ask("GET", f"{path}/{UNKNOWN_ID}", status=404)
            await it.operator.ask("GET", f"{path}/none", status=400)
        await it.operator.ask("GET", f"{hardware}/sleds/{UNKNOWN_ID}/disks", status=404)
        await it.operator.ask("PUT", f"{hardware}/sleds/{UNKNOWN_ID}/provision-policy", {"state": "provisionable"}, 404)
        assert (await it.user.http.get("/v1/nothing")).status_code == 404
        assert (await it.user.http.put("/v1/disks")).status_code == 405


async def test_operators_hear_the_same(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        ask = it.lockstep.ask
        await ask("GET", "/bgtasks/view/none", status=404)
        await ask("POST", "/bgtasks/activate", {"bgtask_names": ["none"]}, 404)
        await ask("POST", "/bgtasks/activate", {"bgtask_names": "none"}, 400)
        await ask("POST", "/physical-disk/expunge", {"disk_id": UNKNOWN_ID}, 404)
        await ask("POST", "/physical-disk/expunge", {"disk_id": "x"}, 400)
        await ask("POST", "/sleds/expunge", {"sled": UNKNOWN_ID}, 404)
        await ask("GET", f"/sagas/{UNKNOWN_ID}", status=404)
        await ask("GET", "/sagas/x", status=400)
        base = "/emulator/v1"
        for path in ("volumes/{0}", "volumes/{0}/lock-holder", "sagas/{0}"):
            await ask("GET", f"{base}/{path.format(UNKNOWN_ID)}", status=404)
        for path in ("sleds/{0}/expunge", "physical-disks/{0}/expunge", "sagas/{0}/resume"):
            await ask("POST", f"{base}/{path.format(UNKNOWN_ID)}", status=404)
        await ask("GET", f"{base}/volumes/x", status=400)
        sled = {"serial": "s", "host": {"ip": "127.0.0.1", "port": 1}}
        await ask("POST", f"{base}/sleds", sled, 400)
        await ask("POST", f"{base}/sleds", {"serial": "s", "host": {"ip": "::1", "port": 0}}, 400)


async def test_a_stuck_saga_is_500_and_is_shown(tmp_path: Path, in_memory: Database) -> None:
    """The words of the lockstep API for each end of a saga."""
    async with served(tmp_path, in_memory, **FEW) as it:
        common = {"name": "r", "params": "{}", "labels": "[]", "executor_id": "x", "fence": 0, "event_count": 0}
        ids = {state: it.rack.add(schema.saga, state=state, **common) for state in ("done", "unwound", "stuck")}
        for state in ("unwound", "stuck"):
            data = '{"message": "no room", "kind": "capacity"}'
            it.rack.add(
                schema.saga_event, saga_id=ids[state], number=0, label="A", kind="failed", data=data, time=it.rack.now()
            )
        data = '{"message": "an agent refuses", "kind": "refused"}'
        it.rack.add(
            schema.saga_event, saga_id=ids["stuck"], number=1, label="B", kind="undo_failed", data=data,
            time=it.rack.now(),
        )  # fmt: skip
        assert (await it.lockstep.ask("GET", f"/sagas/{ids['done']}"))["state"] == {"state": "succeeded"}
        failed = (await it.lockstep.ask("GET", f"/sagas/{ids['unwound']}"))["state"]
        assert (failed["state"], failed["error_node_name"]) == ("failed", "A")
        assert failed["error_info"] == {
            "error": "action_failed",
            "source_error": {"message": "no room", "kind": "capacity"},
        }
        stuck = (await it.lockstep.ask("GET", f"/sagas/{ids['stuck']}"))["state"]
        assert (stuck["state"], stuck["undo_error_node_name"]) == ("stuck", "B")
        told = await it.lockstep.ask("POST", f"/emulator/v1/sagas/{ids['stuck']}/resume", status=409)
        assert "recipe" in told["message"]


async def test_while_the_database_is_away_nobody_comes_in(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:

        def away(_connection: Any) -> None:
            raise Unreachable("away")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nexus.api.callers.bearer_of", lambda connection, *_: away(connection))
            assert (await it.user.ask("GET", "/v1/disks", status=503))["error_code"] == "ServiceNotAvailable"
            await it.operator.ask("GET", "/v1/system/hardware/sleds")


# -- operators --------------------------------------------------------------------------------------------------------


async def test_sleds_are_added_once_and_lost_for_good(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        ask, base = it.lockstep.ask, "/emulator/v1"
        agent = {"ip": "::1", "port": 7000, "size_bytes": 1 << 30, "serial": "d"}
        wish = {"serial": "new", "host": {"ip": "::1", "port": 7001}, "agents": [agent]}
        made = await ask("POST", f"{base}/sleds", wish, 201)
        assert await ask("POST", f"{base}/sleds", wish, 201) == made and made["pantry"] is None
        more = wish | {"pantry": {"ip": "::1", "port": 7002}, "agents": [agent, agent | {"port": 7003, "serial": "e"}]}
        more_made = await ask("POST", f"{base}/sleds", more, 201)
        assert (more_made["id"], more_made["physical_disks"], more_made["pantry"]) == (made["id"], 2, "[::1]:7002")
        for wrong in (
            {"serial": "other", "host": {"ip": "::1", "port": 7004}, "agents": [agent]},
            {"serial": "other", "host": {"ip": "::1", "port": 7004}, "pantry": {"ip": "::1", "port": 7002}},
            {"serial": "other", "host": {"ip": "::1", "port": 7004}, "agents": [agent | {"serial": "f"}]},
            {"serial": "new", "host": {"ip": "::1", "port": 7005}},
            wish | {"agents": [agent | {"port": 7006}]},
        ):
            await ask("POST", f"{base}/sleds", wrong, 400)
        listed = (await ask("GET", f"{base}/physical-disks"))["items"]
        mine = [each for each in listed if each["sled_id"] == made["id"]]
        assert {each["agent"] for each in mine} == {"[::1]:7000", "[::1]:7003"}
        assert all(each["size_bytes"] == 1 << 30 and each["policy"] == "in_service" for each in mine)
        lost = await ask("POST", f"{base}/physical-disks/{mine[0]['id']}/expunge")
        assert lost["policy"] == "expunged"
        for _ in range(2):
            gone = await ask("POST", f"{base}/sleds/{made['id']}/expunge")
            assert (gone["policy"], gone["pantry"]) == ("expunged", None)
        policies = {each["policy"] for each in (await ask("GET", f"{base}/physical-disks"))["items"]}
        assert policies == {"in_service", "expunged"}
        await ask("POST", f"{base}/sleds", wish, 400)
        path = f"/v1/system/hardware/sleds/{made['id']}/provision-policy"
        await it.operator.ask("PUT", path, {"state": "provisionable"}, 400)


async def test_who_holds_a_volumes_lock(tmp_path: Path, in_memory: Database) -> None:
    async with served(tmp_path, in_memory, **FEW) as it:
        volume, holder = it.rack.id(), it.rack.id()
        path = f"/emulator/v1/volumes/{volume}/lock-holder"
        it.rack.add(schema.volume_repair, volume_id=volume, repair_id=holder, time_taken=it.rack.now())
        it.rack.add(schema.saga_lease, holder_id=holder, saga_id="a-saga", time_taken=it.rack.now())
        found = await it.lockstep.ask("GET", path)
        assert (found["holder"]["holder_id"], found["holder"]["saga_id"]) == (holder, "a-saga")
