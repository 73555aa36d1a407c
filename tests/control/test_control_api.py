"""The control API over HTTP: the shapes of the real one, our additions, and bad requests."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from upstairs_rig import UPSTAIRS, Rig

from crucible_emu.control.metrics import CLIENT_COUNTERS
from crucible_emu.control.server import BODY_BYTES_MAX, Control, application, replacement
from crucible_emu.errors import UsageError
from crucible_emu.nbd.protocol import Command
from crucible_emu.nbd.statistics import Statistics as NbdStatistics
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.links import Connector

USED = [f"127.0.0.1:{4000 + client}" for client in range(3)]
NEW = "127.0.0.1:5001"


class Nowhere:
    """The way to a Downstairs that nobody goes."""

    in_process = False

    def __init__(self, target: str) -> None:
        self.target = target

    async def run(self, port: object) -> str:
        raise AssertionError("nobody connects here")


class Unmoved(Upstairs):
    """An Upstairs that carries out nothing: what it would do is another test's."""

    def perform(self) -> None:
        self.core.take_actions()


def upstairs_of(rig: Rig) -> Upstairs:
    def connector_for(_client: int, target: str) -> Connector:
        return Nowhere(target)

    return Unmoved(rig.core, [Nowhere(target) for target in USED], connector_for=connector_for)


def client_of(*upstairs: Upstairs, **settings: Any) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(application(Control(list(upstairs), **settings)))
    return httpx2.AsyncClient(transport=transport, base_url="http://control.example")


# -- the real paths ---------------------------------------------------------------------------------------------------

INFO_MEMBERS: dict[str, type] = {
    "state": str,
    "ds_state": list,
    "up_jobs": int,
    "ds_jobs": int,
    "reconcile_done": int,
    "reconcile_needed": int,
    "extents_repaired": list,
    "extents_confirmed": list,
    "extent_limit": list,
    "live_repair_completed": list,
    "live_repair_aborted": list,
}
WORK_MEMBERS: dict[str, type] = {
    "id": int,
    "replay": bool,
    "job_type": str,
    "num_blocks": int,
    "deps": list,
    "ack_status": str,
    "state": list,
}


async def test_info_and_work_have_the_members_of_the_real_api() -> None:
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    rig.answer_all()
    rig.write(5)
    async with client_of(upstairs_of(rig)) as http:
        info, work = await http.get("/info"), await http.get("/work")
    assert info.status_code == work.status_code == 200
    assert info.headers["content-type"] == "application/json" and UUID(info.headers["x-request-id"])
    assert {name: type(value) for name, value in info.json().items()} == INFO_MEMBERS
    assert all(len(value) == 3 for value in info.json().values() if isinstance(value, list))
    found = work.json()
    assert found.keys() == {"jobs", "completed"}
    assert (len(found["jobs"]), len(found["completed"])) == (1, 2)
    for summary in (*found["jobs"], *found["completed"]):
        assert {name: type(value) for name, value in summary.items()} == WORK_MEMBERS


async def test_a_disk_of_two_region_sets_answers_for_the_first_or_the_one_that_is_named() -> None:
    first, second = Rig().active(), Rig()
    other = UUID(int=77)
    second.core.identity = type(second.core.identity)(other, other)
    async with client_of(upstairs_of(first), upstairs_of(second)) as http:
        states = [
            (await http.get("/info", params=query)).json()["state"]
            for query in ({}, {"upstairs": str(UPSTAIRS)}, {"upstairs": str(other)})
        ]
        unknown = await http.get("/info", params={"upstairs": "x" * 100})
    assert states == ["active", "active", "initializing"]
    assert unknown.status_code == 400 and "no region set here" in unknown.json()["message"]
    assert len(unknown.json()["message"]) < 120


async def test_before_there_is_a_disk_it_says_so() -> None:
    async with client_of() as http:
        for answer in (await http.get("/info"), await http.post("/replace", json={"old": USED[0], "new": NEW})):
            assert answer.status_code == 400 and "no disk is being attached yet" in answer.json()["message"]
        assert (await http.get("/metrics")).status_code == 200


async def test_the_tracing_record_has_the_delays() -> None:
    upstairs = upstairs_of(Rig().active())
    upstairs.delays_us = (0, 3, 4)
    async with client_of(upstairs) as http:
        assert (await http.get("/trace")).json()["ds_delay_us"] == [0, 3, 4]


async def test_volume_info_of_what_is_no_volume_yet() -> None:
    async with client_of(upstairs_of(Rig())) as http:
        answer = await http.get("/volume-info")
    assert answer.status_code == 400 and "nothing is known here of a volume" in answer.json()["message"]


# -- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "words"),
    [
        ("GET", "/nowhere", b"", 404, "Not Found"),
        ("POST", "/info", b"", 405, "Method Not Allowed"),
        ("GET", "/replace", b"", 405, "Method Not Allowed"),
        ("POST", "/replace", b"", 400, "no JSON object"),
        ("POST", "/replace", b"[" * 1000, 400, "no JSON object"),
        ("POST", "/replace", b"[1]", 400, "no JSON object"),
        ("POST", "/replace", b'{"old": 5, "new": "127.0.0.1:1"}', 400, '"old" is missing or no string'),
        ("POST", "/replace", b'{"old": "127.0.0.1:1"}', 400, '"new" is missing or no string'),
        ("POST", "/replace", b'{"old": "localhost:1", "new": "127.0.0.1:1"}', 400, "'localhost:1' is not an address"),
    ],
)
async def test_bad_requests_are_answered_with_a_sentence(
    method: str, path: str, body: bytes, code: int, words: str
) -> None:
    async with client_of(upstairs_of(Rig().active())) as http:
        answer = await http.request(method, path, content=body)
    assert answer.status_code == code
    assert answer.json().keys() == {"message", "request_id"}
    assert words in answer.json()["message"]
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


async def test_a_web_page_cannot_replace_a_downstairs() -> None:
    """A browser that visits a page of somebody else sends its forms anywhere, and says where they come from."""
    rig = Rig().active()
    async with client_of(upstairs_of(rig)) as http:
        body = {"old": USED[1], "new": NEW}
        answer = await http.post("/replace", json=body, headers={"origin": "https://elsewhere.example"})
    assert answer.status_code == 400 and "web page" in answer.json()["message"]
    assert rig.core.clients[1].target == USED[1]


def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = json.dumps({"old": USED[0], "new": NEW}).encode().ljust(BODY_BYTES_MAX)
    assert replacement(body) == (USED[0], NEW)
    with pytest.raises(UsageError):
        replacement(body[:-1] + b"x")


# -- replacement ------------------------------------------------------------------------------------------------------


async def test_a_downstairs_is_replaced_over_http() -> None:
    rig = Rig().active()
    async with client_of(upstairs_of(rig)) as http:

        async def replace(old: str, new: str, **query: str) -> tuple[int, Any]:
            answer = await http.post("/replace", json={"old": old, "new": new}, params=query)
            return answer.status_code, answer.json().get("result") or answer.json()["message"]

        assert await replace("127.0.0.1:9", "127.0.0.1:10") == (200, "missing")
        assert await replace(USED[1], NEW) == (200, "started")
        assert await replace(USED[1], NEW) == (200, "started_already")
        code, sentence = await replace(USED[2], "127.0.0.1:5002")
        assert code == 400 and "downstairs 1 is Stopping(Replacing)" in sentence
        assert await replace(USED[0], NEW, upstairs="nobody") == (
            400,
            "no region set here is that of Upstairs 'nobody'",
        )
    assert rig.core.clients[1].target == NEW
    assert rig.core.clients[1].replaced == 1


async def test_the_region_set_that_has_the_old_one_is_meant() -> None:
    first, second = Rig().active(), Rig().active()
    everything = [upstairs_of(first), upstairs_of(second)]
    second.core.clients[2].target = "127.0.0.1:6002"
    async with client_of(*everything) as http:
        answer = await http.post("/replace", json={"old": "127.0.0.1:6002", "new": NEW})
    assert answer.json() == {"result": "started"}
    assert second.core.clients[2].target == NEW


# -- metrics ----------------------------------------------------------------------------------------------------------


def numbers(text: str) -> dict[tuple[str, str, str], float]:
    """Samples by name, client and state."""
    return {
        (sample.name, sample.labels.get("client", ""), sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("upstairs_uuid") in (str(UPSTAIRS), None)
    }


async def test_metrics_have_the_real_names_with_the_id_of_the_upstairs() -> None:
    rig = Rig().active()
    rig.read("read")
    rig.flush("flush")
    rig.answer_all()
    rig.fault(1)
    upstairs = upstairs_of(rig)
    upstairs.statistics.writes, upstairs.statistics.written_bytes = 7, 700
    async with client_of(upstairs) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = numbers(answer.text)
    expected = {"activated": 1, "write": 7, "write_bytes": 700, "read": 0, "read_bytes": 0, "flush": 1}
    expected |= dict.fromkeys(("flush_close", "extent_repair", "extent_noop", "extent_reopen"), 0)
    for name, value in expected.items():
        assert found[f"crucible_upstairs_{name}_total", "", ""] == value, name
    for name in CLIENT_COUNTERS:
        assert (f"crucible_upstairs_client_{name}_total", "2", "") in found
    assert found["crucible_upstairs_client_downstairs_errors_total", "1", ""] == 1
    assert found["crucible_upstairs_client_connected_total", "0", ""] == 1
    assert found["crucible_upstairs_client_state", "0", "Active"] == 1
    assert found["crucible_upstairs_client_state", "1", "Faulted"] == 1
    assert found["crucible_upstairs_active", "", ""] == 1
    assert not any("barrier" in name for name, _, _ in found), "counted, and not exported"


async def test_metrics_of_two_region_sets_with_one_id_are_told_apart() -> None:
    async with client_of(upstairs_of(Rig().active()), upstairs_of(Rig())) as http:
        text = (await http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
    assert len(set(keys)) == len(keys)
    active = {s.labels["region_set"]: s.value for s in samples if s.name == "crucible_upstairs_active"}
    assert active == {"0": 1, "1": 0}


async def test_metrics_show_the_door_as_well() -> None:
    door = NbdStatistics(connections=3, connections_open=2)
    door.requests[int(Command.READ)] = 5
    door.errors["EIO"] = 1
    door.batches[3] = 4
    async with client_of(snapshots=[door.snapshot]) as http:
        text = (await http.get("/metrics")).text
    assert "crucible_nbd_connections_total 3.0" in text
    assert "crucible_nbd_connections_open 2.0" in text
    assert 'crucible_nbd_requests_total{command="READ"} 5.0' in text
    assert 'crucible_nbd_errors_total{error="EIO"} 1.0' in text
    assert 'crucible_nbd_batches_total{size="<8"} 4.0' in text
    assert door.snapshot().as_dict()["requests"] == {"READ": 5}
