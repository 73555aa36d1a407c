"""``crucible-emu downstairs run-many``: real Downstairs under one command, its control API, its end and its death."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import httpx2
from command_rig import END_S, Command, one_sentence, outcome, pattern, refusal, running, unix_uri
from many_rig import SMALL, free_base, wait_until
from nbd_plain_client import PlainClient

from crucible_emu.cli.supervised_disk import Disk
from crucible_emu.nbd import protocol as p
from crucible_emu.supervisor import layout
from crucible_emu.volume import vcr

KEY = base64.b64encode(bytes(range(32))).decode()


def call(command: Command, method: str, path: str) -> Any:
    answer = httpx2.request(method, command.ready["control"] + path, trust_env=False)
    assert answer.status_code in (200, 204), answer.text
    return answer.json() if answer.status_code == 200 else None


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A child of a dead parent may wait for init to take note of its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_disk_from_run_many_is_attached_and_survives_stop_and_restart(tmp_path: Path) -> None:
    file, uri = tmp_path / "disk.json", unix_uri(tmp_path / "nbd.sock")
    data = pattern(4096)

    async def write(client: PlainClient) -> None:
        await client.write(8192, data)
        assert (await client.call(p.Command.FLUSH)).errno == 0

    async def read(client: PlainClient) -> bytes:
        return await client.read(8192, 4096)

    with running("downstairs", "run-many", tmp_path / "ds", *SMALL, "--vcr", file, "--port-base", free_base()) as many:
        assert many.ready["vcr"] == json.loads(file.read_text())
        with running("attach", file, "--nbd", uri, "--json") as attached:
            attached.talk(write)
            before = call(many, "GET", "/pid/cid/1")
            call(many, "POST", "/enablerestart/cid/1")
            call(many, "POST", "/stop/cid/1")
            wait_until(lambda: call(many, "GET", "/pid/cid/1") not in (None, before))
            wait_until(lambda: call(many, "GET", "/allrunning"))
            call(many, "POST", "/signal/cid/2/stop")
            assert attached.talk(read) == data
            call(many, "POST", "/signal/cid/2/cont")
            assert attached.end()[0] == 0
        code, out, err = many.end()
        assert (code, err) == (0, "")
        states = [json.loads(line) for line in out.splitlines()]
        assert {each["state"] for each in states if each["cid"] == 1} >= {"stopping", "exit", "starting", "running"}
        assert all(each["event"] == "state" for each in states)
    # The next start knows which generation is due, and its document can be attached again.
    with running(
        "downstairs",
        "run-many",
        tmp_path / "ds",
        *SMALL[1:],
        "--vcr",
        file,
        "--port-base",
        many.ready["downstairs"][0]["port"],
    ) as many:
        with running("attach", file, "--nbd", uri, "--json") as attached:
            assert attached.talk(read) == data
            attached.end_well()
        many.end_well()


def test_death_of_the_supervisor_takes_every_downstairs_along(tmp_path: Path) -> None:
    with running("downstairs", "run-many", tmp_path / "ds", *SMALL, "--port-base", free_base()) as many:
        pids = [each["pid"] for each in many.ready["downstairs"]]
        # One of them stands still at that time: it goes when it goes on.
        call(many, "POST", "/signal/cid/2/stop")
        many.process.kill()
        wait_until(lambda: gone(pids[0]) and gone(pids[1]))
        assert not gone(pids[2])
        os.kill(pids[2], signal.SIGCONT)
        wait_until(lambda: gone(pids[2]))


def test_shutdown_over_http_and_an_encrypted_disk(tmp_path: Path) -> None:
    file, key = tmp_path / "disk.json", tmp_path / "key"
    key.write_text(KEY)
    arguments = (tmp_path / "ds", *SMALL, "--encrypt", key, "--vcr", file, "--port-base", free_base(4), "--count", 4)
    with running("downstairs", "run-many", *arguments) as many:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (region_set,) = vcr.load(file).sub_volumes  # type: ignore[union-attr]
        assert isinstance(region_set, vcr.RegionRequest)
        assert region_set.opts.key is not None and region_set.opts.key.get_secret_value() == KEY
        assert call(many, "GET", "/regioncount") == 4  # the fourth is a spare
        assert call(many, "GET", "/vcr")["sub_volumes"][0]["gen"] > region_set.gen
        call(many, "POST", "/shutdown")
        assert many.process.wait(END_S) == 0


def test_a_port_in_use_is_one_sentence_and_nothing_stays_running(tmp_path: Path) -> None:
    base = free_base()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 10))
        taken.listen()
        code, out, err = outcome("downstairs", "run-many", tmp_path / "ds", *SMALL, "--port-base", base)
    assert (code, out) == (2, "")
    assert one_sentence(err) == (
        f"Downstairs 1 (port {base + 10}) did not become ready: "
        f"the Downstairs cannot listen on 127.0.0.1 port {base + 10}: address already in use"
    )


def test_refusals_of_run_many(tmp_path: Path, capsys: Any) -> None:
    many = ("downstairs", "run-many")
    made = layout.places([tmp_path / "made"], 3, layout.PORT_BASE)
    layout.make_regions(made, block_size=512, blocks_per_extent=4, extent_count=2, encrypted=True)
    for arguments, words in (
        ((tmp_path / "none",), "there is no region in"),
        ((tmp_path / "none", "--cleanup"), "say both"),
        ((tmp_path / "none", "--count", 0), "at least 1"),
        ((tmp_path / "a", tmp_path / "b"), "2 directories were given for 3 regions"),
        ((tmp_path / "none", "--random-stop", "9"), "'9' is no window of random stops"),
        ((tmp_path / "none", "--random-stop", "9-9"), "write MIN-MAX in seconds"),
        ((tmp_path / "none", "--control", "here"), "--control: 'here' is not an address"),
        ((tmp_path / "none", "--create", "--block-size", 1000), "block size 1000 is not usable"),
        ((tmp_path / "made",), "the regions are encrypted: give their key"),
        ((tmp_path / "made", "--create"), "say --cleanup"),
        ((tmp_path / "made", "--encrypt", tmp_path / "no-key"), "cannot read the key file"),
    ):
        code, sentence = refusal(capsys, *many, *arguments)
        assert code in (1, 2)
        assert words in sentence
    assert not (tmp_path / "none").exists()


def test_every_three_regions_are_a_sub_volume(tmp_path: Path) -> None:
    places = layout.places([tmp_path], 7, 9000)
    layout.make_regions(places, block_size=512, blocks_per_extent=4, extent_count=2)
    disk = Disk(layout.definitions(places), places, "::1", True, None)
    first, second = disk.request(), disk.request()
    assert first is not None and second is not None
    targets = [each.opts.target for each in first.sub_volumes]  # type: ignore[union-attr]
    assert targets == [tuple(f"[::1]:{port}" for port in ports) for ports in ((9000, 9010, 9020), (9030, 9040, 9050))]
    assert [each.gen for each in second.sub_volumes] == [2, 2]  # type: ignore[union-attr]
    assert all(each.opts.read_only for each in first.sub_volumes)  # type: ignore[union-attr]
    assert vcr.parse(vcr.dumps(first)) == first
    assert Disk(disk.definitions[:2], places[:2], "::1", False, None).request() is None


def test_a_downstairs_ends_with_its_standard_input(tmp_path: Path) -> None:
    (place,) = layout.places([tmp_path], 1, 9000)
    layout.make_regions([place], block_size=512, blocks_per_extent=4, extent_count=2)
    run = ("downstairs", "run", place.region, "--port", 0, "--repair-port", 0, "--until-eof", "--json")
    with running(*run, stdin=subprocess.PIPE) as command:
        assert command.process.stdin is not None
        command.process.stdin.write("words that nobody reads\n")
        command.process.stdin.close()
        assert command.process.wait(END_S) == 0
    with running(*run, stdin=subprocess.DEVNULL) as command:
        assert command.process.wait(END_S) == 0


def test_a_reader_that_leaves_does_not_end_the_downstairs(tmp_path: Path) -> None:
    with running("downstairs", "run-many", tmp_path / "ds", *SMALL, "--port-base", free_base()) as many:
        assert many.process.stdout is not None
        many.process.stdout.close()
        call(many, "POST", "/enablerestart/all")
        call(many, "POST", "/stop/cid/0")
        wait_until(lambda: call(many, "GET", "/state/cid/0") == "running")
        assert call(many, "GET", "/allrunning")
        many.process.send_signal(signal.SIGTERM)
        assert many.process.wait(END_S) == 0
