"""Disks that are looked at while they are in use: real Downstairs on loopback, a real receiver, real commands."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import urllib.request
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from command_rig import one_sentence, outcome, refusal, running, unix_uri
from disk_rig import KEY, digests, make_regions, pattern, region_set, until, write
from nbd_plain_client import PlainClient
from receiver_rig import Received, receive

from crucible_emu import logs
from crucible_emu.control.observation import listen_at, observing
from crucible_emu.control.server import BODY_BYTES_MAX
from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.volume.construction import build
from crucible_emu.volume.in_service import in_service
from crucible_emu.volume.vcr import RegionRequest, dumps

ANYWHERE = "127.0.0.1:0"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_replacement_is_asked_for_watched_and_told(tmp_path: Path, expect_log: Any) -> None:
    """POST /replace begins a live repair; GET /info shows it; the control plane hears its start, progress and end."""
    paths = make_regions(tmp_path, extent_count=40, count=4)
    received: list[Received] = []
    expect_log("connection ended", at_least=0)
    async with trio.open_nursery() as nursery:
        receiver = await nursery.start(receive, received)
        async with region_set(paths[:3]) as servers, observing(ANYWHERE, receiver) as observation:
            request = servers.request()
            upstairs = build(request, reconnect_delay_s=0.05, observe=observation.watch)
            servers.paths.append(paths[3])
            async with in_service(upstairs, timeout_s=30) as disk, httpx2.AsyncClient() as http:
                url = observation.urls[0]
                assert (await http.get(f"{url}/info")).json()["state"] == "active"
                await write(disk, 0, pattern(512))
                newcomer = await servers.start(3)
                old, new = request.opts.target[1], newcomer.target
                answer = await http.post(f"{url}/replace", json={"old": old, "new": new})
                assert answer.json() == {"result": "started"}
                seen = []
                with trio.fail_after(60):
                    while not seen or seen[-1]["live_repair_completed"][1] == 0:
                        seen.append((await http.get(f"{url}/info")).json())
                during = [info for info in seen if info["ds_state"][1] == {"type": "live_repair"}]
                assert during, "a repair of 40 extents takes longer than a request"
                limits = [info["extent_limit"][1] for info in during]
                assert limits == sorted(limits) and 0 <= limits[0] <= limits[-1] < 40
                assert (await http.get(f"{url}/metrics")).text.count("live_repair_completed_total{") == 3
        nursery.cancel_scope.cancel()
    assert len(digests([paths[0], paths[2], paths[3]])) == 1
    base = f"/crucible/0/upstairs/{request.opts.id}"
    first, *later = received
    # The end goes before progress that is still waiting to be sent.
    (last,) = [one for one in later if one[0] == f"{base}/repair-finish"]
    middle = [one for one in later if one is not last]
    assert first[0] == f"{base}/repair-start"
    region_uuid = str(RegionDefinition.from_json(json.loads((paths[3] / "region.json").read_text())).uuid)
    under_repair = [{"region_uuid": region_uuid, "target_addr": new}]
    assert first[1]["repairs"] == last[1]["repairs"] == under_repair
    assert (last[1]["aborted"], last[1]["repair_type"]) == (False, "live")
    progress = f"{base}/repair/{first[1]['repair_id']}/progress"
    assert [(path, body["current_item"], body["total_items"]) for path, body in middle] == [
        (progress, extent, 40) for extent in range(40)
    ]
    assert all(body["time"].endswith("Z") for _, body in received)


async def test_a_lost_connection_and_the_reconciliation_before_it_are_told(tmp_path: Path, expect_log: Any) -> None:
    paths = make_regions(tmp_path)
    received: list[Received] = []
    async with trio.open_nursery() as nursery:
        receiver = await nursery.start(receive, received)
        async with region_set(paths) as servers:
            async with servers.disk() as disk:
                await write(disk, 0, pattern(512))
                await servers.members[0].stop()  # its extent 0 stays behind
                with expect_log("connection ended"):
                    await until(lambda: len(disk.upstairs.core.readers) == 2)
            await servers.start(0)
            async with observing(notify=receiver) as observation:
                upstairs = build(servers.request(2), reconnect_delay_s=0.05, observe=observation.watch)
                async with in_service(upstairs, timeout_s=30) as disk:
                    with expect_log("connection ended"):
                        await servers.members[2].stop()
                        await until(lambda: len(disk.upstairs.core.readers) == 2)
        nursery.cancel_scope.cancel()
    words = [path.rsplit("/", 1)[1] for path, _ in received]
    assert words[0] == "repair-start"
    assert sorted(words) == sorted(["repair-start", *["progress"] * 4, "repair-finish", "stopped"])
    assert received[0][1]["repair_type"] == "reconciliation" and len(received[0][1]["repairs"]) == 3
    assert [body["reason"] for path, body in received if path.endswith("/stopped")] == ["finished"]


async def test_region_sets_that_name_one_address_share_it(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with region_set(make_regions(tmp_path)) as servers, observing() as observation:
        request = servers.request()
        opts = request.opts.model_copy(update={"control": address})
        request = RegionRequest(**(request.model_dump() | {"opts": opts}))
        build(request, observe=observation.watch)
        build(request, observe=observation.watch)
        assert observation.urls == [f"http://{address}"]
        async with httpx2.AsyncClient() as http:
            text = (await http.get(f"http://{address}/metrics")).text
        assert 'crucible_upstairs_active{region_set="1"' in text


async def test_the_option_and_the_request_may_name_one_address(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with region_set(make_regions(tmp_path)) as servers, observing(address) as observation:
        observation.watch(servers.upstairs(), address)
        assert observation.urls == [f"http://{address}"]
        async with httpx2.AsyncClient() as http:
            text = (await http.get(f"http://{address}/metrics")).text
        assert text.count("crucible_upstairs_active{") == 1


@pytest.mark.parametrize(("method", "size"), [("GET", BODY_BYTES_MAX + 1), ("POST", 3_000_000)])
async def test_a_body_that_is_too_long_is_refused_and_the_next_request_is_answered(method: str, size: int) -> None:
    async with observing(ANYWHERE) as observation, httpx2.AsyncClient(base_url=observation.urls[0]) as http:
        with contextlib.suppress(httpx2.WriteError):  # it may not be listened to until its end
            answer = await http.request(method, "/replace" if method == "POST" else "/metrics", content=b"x" * size)
            assert answer.status_code == 400
            assert answer.json()["message"] == "request body exceeded maximum size of 1024 bytes"
        assert (await http.get("/metrics")).status_code == 200


async def test_a_defect_in_an_answer_is_logged_and_the_server_lives_on(expect_log: Any) -> None:
    def broken() -> Any:
        raise RuntimeError("a defect")

    async with observing(ANYWHERE) as observation, httpx2.AsyncClient(base_url=observation.urls[0]) as http:
        observation.volume_info = broken
        expect_log("a defect")
        assert (await http.get("/volume-info")).status_code == 500
        assert (await http.get("/metrics")).status_code == 200


@pytest.mark.parametrize("address", ["", "7777", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:x", "127.0.0.1:999999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="control API"):
        listen_at(address)


def test_an_address_that_is_taken_is_refused() -> None:
    with listen_at(ANYWHERE) as taken:
        host, port = taken.getsockname()
        with pytest.raises(UsageError, match=r"the control API cannot listen on 127\.0\.0\.1 port"):
            listen_at(f"{host}:{port}")


# -- the commands -----------------------------------------------------------------------------------------------------


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


async def write_and_read(client: PlainClient) -> None:
    await client.write(0, pattern(8192))
    assert await client.read(0, 8192) == pattern(8192)


def test_serve_shows_the_disk_its_downstairs_and_its_door(tmp_path: Path) -> None:
    nbd = unix_uri(tmp_path / "disk.sock")
    with running(
        *("serve", tmp_path / "disk", "--size", "4MiB", "--nbd", nbd, "--control", ANYWHERE, "--json")
    ) as command:
        (url,) = command.ready["control"]
        command.talk(write_and_read)
        assert json.loads(fetch(f"{url}/info"))["state"] == "active"
        text = fetch(f"{url}/metrics")
        command.end_well()
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name.partition("{")[0]] = float(value)
    assert samples["crucible_upstairs_write_total"] == 1
    assert samples["crucible_upstairs_write_bytes_total"] == samples["crucible_upstairs_read_bytes_total"] == 8192
    assert samples["crucible_nbd_written_bytes_total"] == samples["crucible_nbd_read_bytes_total"] == 8192
    assert samples["crucible_downstairs_blocks_written_total"] == 2
    assert samples["crucible_region_staged_bytes"] == 8192
    assert samples["crucible_nbd_connections_total"] == 1


def test_attach_answers_where_the_request_and_where_the_option_says(tmp_path: Path) -> None:
    asked = f"127.0.0.1:{free_port()}"
    paths = make_regions(tmp_path)
    processes = [("downstairs", "run", path, "--port", 0, "--repair-port", 0, "--json") for path in paths]
    with running(*processes[0]) as one, running(*processes[1]) as two, running(*processes[2]) as three:
        targets = [f"127.0.0.1:{command.ready['port']}" for command in (one, two, three)]
        opts = {"id": one.ready["region_uuid"], "target": targets, "lossy": False, "read_only": False, "control": asked}
        region = {"type": "region", "block_size": 512, "blocks_per_extent": 8, "extent_count": 4, "gen": 1}
        (tmp_path / "disk.json").write_text(json.dumps({**region, "opts": opts}))
        arguments = ("attach", tmp_path / "disk.json", "--nbd", unix_uri(tmp_path / "disk.sock"))
        with running(*arguments, "--control", ANYWHERE) as command:
            line = command.process.stdout.readline()  # type: ignore[union-attr]
            assert line.startswith("Control API: http://127.0.0.1:")
            url = line.split()[2].removesuffix("/info")
            assert fetch(f"{url}/info") == fetch(f"http://{asked}/info")
            (part,) = json.loads(fetch(f"{url}/volume-info"))["volume"]["sub_volumes"]
            assert [found["target_addr"] for found in part["upstairs"]["targets"]] == targets
            command.end_well()
        taken = socket.create_server(("127.0.0.1", int(asked.rpartition(":")[2])))
        with taken:
            code, _, err = outcome(*arguments)
        assert code == 2 and "the control API cannot listen on" in one_sentence(err)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--control", "7777"), "'7777' is no address"), (("--notify", "nexus:80"), "'nexus:80' is no receiver")],
)
def test_options_that_are_wrong_are_refused_before_a_disk_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, sentence = refusal(capsys, "serve", tmp_path / "disk", "--size", "1MiB", *options)
    assert code == 2 and words in sentence
    assert not (tmp_path / "disk").exists()


# -- no key shows -----------------------------------------------------------------------------------------------------


async def test_no_key_shows_in_any_log_or_answer(tmp_path: Path, expect_log: Any) -> None:
    """Everything that is logged from DEBUG on, by us and by the libraries, and everything the control API answers."""
    paths = make_regions(tmp_path, encrypted=True)
    heard, answers = StringIO(), ""
    handler = logging.StreamHandler(heard)
    handler.setFormatter(logs.JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    expect_log(".", at_least=0)
    for name in ("crucible_emu", "httpx2", "hypercorn", None):
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        async with region_set(paths) as servers, observing(ANYWHERE) as observation:
            request = servers.request(key=KEY)
            logs.get_logger("crucible_emu.test").debug("request", request=request, document=json.loads(dumps(request)))
            upstairs = build(request, reconnect_delay_s=0.05, observe=observation.watch)
            async with in_service(upstairs, timeout_s=30) as disk, httpx2.AsyncClient() as http:
                await write(disk, 0, pattern(1024))
                with pytest.raises(UsageError):
                    build(servers.request(key=KEY[:-8]))
                await servers.members[1].stop()
                await until(lambda: len(disk.upstairs.core.readers) == 2)
                for path in ("info", "work", "trace", "metrics"):
                    answers += (await http.get(f"{observation.urls[0]}/{path}")).text
    finally:
        root.removeHandler(handler)
        for name in ("httpx2", "hypercorn"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    said = heard.getvalue() + answers
    assert "connection ended" in said and "extents_repaired" in said
    raw = base64.b64decode(KEY)
    for shown in (KEY, KEY[:-8], raw.hex(), repr(raw), str(list(raw)), str(raw)[2:-1]):
        assert shown not in said
