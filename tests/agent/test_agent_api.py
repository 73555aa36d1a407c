"""The API as its document has it: routes, members, statuses, the version header, and the faithful oddities of §9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_rig import PARAMETERS, REGIONS, VERSION, A, B, serving_agent, wish

from crucible_emu.agent import documents
from crucible_emu.agent.agent import Agent
from crucible_emu.agent.api import STATUSES, agent_api
from crucible_emu.agent.core import Reason

DOCUMENT = json.loads((Path(__file__).parent.parent / "data" / "agent_api.json").read_text())
"""What ``crucible-agent-1.0.0.json`` says: operations (method, path, status of success), members of schemas, states."""
EXTENSIONS = {"region_digest", "snapshot_digest", "region_digest_forget", "snapshot_digest_forget"}


def test_every_operation_of_the_document_is_there_and_four_more() -> None:
    api = agent_api(Agent.__new__(Agent))
    ours = {each.operation_id: [each.method, each.path, each.success] for each in api.operations}
    assert {name: ours.pop(name) for name in EXTENSIONS}
    assert ours == DOCUMENT["operations"]


def test_body_of_a_post_is_that_of_the_document() -> None:
    api = agent_api(Agent.__new__(Agent))
    assert {each.operation_id: each.body for each in api.operations if each.body} == {
        "region_create": documents.CreateRegion
    }
    assert api.body_bytes_max == 10_240


@pytest.mark.parametrize("name", DOCUMENT["schemas"])
def test_members_are_those_of_the_document(name: str) -> None:
    ours, theirs = getattr(documents, name).model_json_schema(), DOCUMENT["schemas"][name]
    assert sorted(ours["properties"]) == theirs["members"]
    assert sorted(ours["required"]) == theirs["required"]


def test_states_are_those_of_the_document() -> None:
    assert [state.value for state in documents.State] == DOCUMENT["states"]


# Oddities


async def ask(http: httpx2.AsyncClient, method: str, path: str, **settings: Any) -> tuple[int, dict[str, Any]]:
    answer = await http.request(method, REGIONS + path, headers=VERSION, **settings)
    members = answer.json()
    assert answer.headers["x-request-id"] == members.pop("request_id")
    return answer.status_code, members


INTERNAL = {"error_code": "Internal", "message": "Internal Server Error"}


async def test_faithful_statuses(tmp_path: Path) -> None:
    """§9 rows 1, 2 and 8: a bare 500 for mistakes of the client, and no reason in a 404."""
    async with serving_agent(tmp_path, faithful=True) as served:
        await served.made(A)
        http = served.http
        assert await ask(http, "DELETE", f"/{B}") == (500, INTERNAL)
        assert await ask(http, "POST", "", json=wish(A, extent_count=5)) == (500, INTERNAL)
        assert await ask(http, "DELETE", f"/{A}/snapshots/s/run") == (500, INTERNAL)
        assert await ask(http, "GET", f"/{B}") == (404, {"message": "Not Found"})
        await served.fill(A, 1, snapshot="s")
        await served.run(A, "s")
        assert await ask(http, "DELETE", f"/{A}/snapshots/s") == (500, INTERNAL)
        status, members = await ask(http, "DELETE", f"/{A}")
        assert (status, members["message"]) == (400, f"region {A!r} has snapshots: delete them first")


async def test_friendly_statuses(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        sentences = {
            ("DELETE", f"/{B}"): (404, f"there is no region {B!r}"),
            ("GET", f"/{B}"): (404, f"there is no region {B!r}"),
            ("GET", f"/{B}/snapshots"): (404, f"there is no region {B!r}"),
            ("GET", f"/{A}/snapshots/s"): (404, f"region {A!r} has no snapshot 's'"),
            ("GET", f"/{A}/snapshots/s/digest"): (404, f"region {A!r} has no snapshot 's'"),
            ("POST", f"/{A}/snapshots/s/run"): (404, f"region {A!r} has no snapshot 's'"),
            ("POST", f"/{B}/snapshots/s/run"): (404, f"there is no region {B!r}"),
            ("DELETE", f"/{A}/snapshots/s/run"): (404, f"no snapshot of region {A!r} was ever run"),
        }
        for (method, path), (status, sentence) in sentences.items():
            assert await ask(served.http, method, path) == (status, {"message": sentence})


def test_every_reason_has_a_status_and_friendly_ones_are_the_clients() -> None:
    assert STATUSES.keys() == set(Reason)
    assert {friendly for _, friendly in STATUSES.values()} == {400, 404, 409, 503}
    assert STATUSES[Reason.CLONING] == (503, 503), "the control plane waits for 503, and for nothing else"


async def test_version_header(tmp_path: Path) -> None:
    strictly, leniently = serving_agent(tmp_path / "strict"), serving_agent(tmp_path / "lenient", lenient=True)
    async with strictly as strict, leniently as lenient:
        assert (await strict.http.get(REGIONS)).status_code == 400
        assert (await lenient.http.get(REGIONS)).json() == []
        for version, status in (("1.0.0", 200), ("2.0.0", 400), ("one", 400)):
            assert (await strict.http.get(REGIONS, headers={"api-version": version})).status_code == status


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "localhost:80"}, "source: Value error, an address is written ip:port"),
        ({"source": "::1:80"}, "source: Value error, an address is written ip:port"),
        ({"source": "127.0.0.1:70000"}, "source: Value error, an address is written ip:port"),
        ({"block_size": -1}, "block_size: Input should be greater than or equal to 0"),
        ({"extent_count": 2**32}, "extent_count: Input should be less than or equal to 4294967295"),
        ({"block_size": "512"}, "block_size: Input should be a valid integer"),
        ({"encrypted": 0}, "encrypted: Input should be a valid boolean"),
        ({"id": None}, "id: Input should be a valid string"),
    ],
)
async def test_bodies_that_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    async with serving_agent(tmp_path) as served:
        assert said in (await served.post(A, 400, **changes))["message"]
        body = json.dumps({**wish(A), "cert_pem": "x" * 10_240})
        answer = await served.http.post(REGIONS, content=body, headers=VERSION)
        assert answer.status_code == 400
        assert await served.states() == {}


async def test_unknown_members_are_ignored(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        answer = await served.post(A, colour="blue")
        assert "colour" not in answer
        assert {name: answer[name] for name in PARAMETERS} == PARAMETERS


async def test_trouble_of_the_disk_is_500_with_its_reason(tmp_path: Path, expect_log, monkeypatch) -> None:
    expect_log("request failed.*region_delete_snapshot.*could not be deleted")
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 1, snapshot="s")
        (tmp_path / "regions" / A / ".zfs" / "snapshot" / ".deleting-s").symlink_to("/nowhere")

        def broken(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(served.agent.datasets._storage, "rename", broken)
        await served.ask("DELETE", f"/{A}/snapshots/s", 500)
