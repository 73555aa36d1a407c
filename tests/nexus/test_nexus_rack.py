"""A rack with a Nexus, from commands alone: a disk's whole life, what dies in between, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from blake3 import blake3
from nexus_commands import environment, nexus, outcome, program, said, sentence

from crucible_emu.client import sync
from nexus.cli.access import here
from nexus.cli.session import session

STEP = 1 << 20
IMAGE_BYTES = STEP + 70_000
"""No whole number of blocks, and in its second half zeros."""
WAIT_S = 60


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def processes_of(root: Path) -> set[int]:
    """Those with the rack on their command line."""
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        if str(root).encode() in line and int(entry) != os.getpid() and alive(int(entry)):
            found.add(int(entry))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def rack() -> Iterator[Path]:
    """A rack that runs; each test leaves it running. Where it is has a short name, for the sockets in it."""
    with TemporaryDirectory(prefix="rack-") as place:
        yield from running(Path(place, "r"))


def running(root: Path) -> Iterator[Path]:
    up = nexus("rack", "up", root, "--sleds", 3, "--pantries", 1, "--size-step", "1MiB", "--extent-size", "64KiB")
    assert {each["state"] for each in up["services"]} == {"ready"}
    yield root
    code, _, err = outcome("rack", "down", root)
    for pid in processes_of(root):
        os.kill(pid, signal.SIGKILL)
    assert (code, err) == (0, "")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "some.img"
    half = IMAGE_BYTES // 2
    path.write_bytes(Random(1).randbytes(half) + bytes(IMAGE_BYTES - half - 4) + b"end.")
    return path


def items(*arguments: object, cwd: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = nexus(*arguments, cwd=cwd)["items"]
    return found


def used(rack: Path) -> int:
    """Bytes that are reserved for regions."""
    return sum(each["size_used"] for each in items("physical-disk", "list", cwd=rack))


def test_the_life_of_a_disk(rack: Path, image: Path, tmp_path: Path) -> None:
    """Imported, attached and written, kept as a snapshot, copied, made an image of, verified, deleted in any order."""
    imported = nexus("disk", "import", "first", image, cwd=rack)
    digest = blake3(image.read_bytes()).hexdigest()
    assert imported["file"] == {"size_bytes": IMAGE_BYTES, "data_bytes": IMAGE_BYTES, "blake3": digest}
    assert imported["disk"]["size"] == 2 * STEP and imported["disk"]["state"]["state"] == "detached"

    place = nexus("disk", "attach", "first", cwd=rack)
    assert place["instance"] == "first"
    assert said("disk", "attach", "first", cwd=rack).strip() == place["uri"]
    with sync.open(place["uri"]) as disk:
        assert disk.read(0, IMAGE_BYTES) == image.read_bytes()
        disk.write(0, b"\x17" * 4096)
        disk.flush()
        # Taken while the guest has the disk; what the guest writes afterwards is not in it.
        assert nexus("snapshot", "create", "kept", "--disk", "first", cwd=rack)["state"] == "ready"
        disk.write(0, b"\x18" * 4096)
        disk.flush()
    assert nexus("disk", "detach", "first", cwd=rack)["disk"]["state"] == {"state": "detached"}
    assert said("disk", "detach", "first", cwd=rack) == "Disk first is detached.\n"

    kept = b"\x17" * 4096 + image.read_bytes()[4096:] + bytes(2 * STEP - IMAGE_BYTES)
    made = nexus("image", "create", "golden", "--snapshot", "kept", "--os", "debian", "--version", "13", cwd=rack)
    assert (made["size"], made["os"]) == (2 * STEP, "debian")
    nexus("disk", "create", "copy", "--from-snapshot", "kept", cwd=rack)
    frozen = nexus("disk", "create", "frozen", "--from-image", "golden", "--read-only", cwd=rack)
    assert frozen["read_only"]
    for name in ("copy", "frozen"):
        out = tmp_path / name
        exported = nexus("disk", "export", name, out, cwd=rack)
        assert exported["file"]["blake3"] == blake3(kept).hexdigest() == blake3(out.read_bytes()).hexdigest()

    tree = nexus("volume", "tree", "copy", cwd=rack)["tree"]
    assert tree["read_only_parent"] is not None
    assert "of disk copy" in said("volume", "show", "copy", cwd=rack)
    assert nexus("volume", "show", "copy", cwd=rack)["owner"]["name"] == "copy"
    shown = said("volume", "tree", "copy", cwd=rack)
    assert "of disk copy" in shown and "read-only parent" in shown and shown.count("created") == 6
    for name in ("copy", "first"):
        report = nexus("volume", "verify", name, cwd=rack)
        assert (report["findings"], report["not_looked_at"], report["bytes_read"]) == ([], [], 2 * STEP)
    assert report["digest"] != blake3(kept).hexdigest()
    report = nexus("volume", "verify", made["id"], cwd=rack)
    assert (report["findings"], report["digest"]) == ([], blake3(kept).hexdigest())
    assert nexus("volume", "lock-holder", "copy", cwd=rack)["holder"] is None
    assert nexus("volume", "check", "copy", cwd=rack) == nexus("check", cwd=rack) == {"findings": []}

    nexus("snapshot", "delete", "kept", cwd=rack)
    nexus("image", "delete", "golden", cwd=rack)
    for name in ("first", "frozen", "copy"):
        nexus("disk", "delete", name, cwd=rack)
    for what in ("disk", "snapshot", "image"):
        assert items(what, "list", cwd=rack) == []
    wait_until(lambda: used(rack) == 0)
    assert said("check", cwd=rack) == "Nothing is wrong.\n"


def test_an_import_that_is_interrupted_leaves_no_disk(rack: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(Random(2).randbytes(1 << 20) * 256)  # a second of writing; to be heard of takes milliseconds

    async def until_it_is_imported() -> None:
        async with session(here(rack)) as it:
            while True:
                with trio.fail_after(WAIT_S):
                    states = [disk.state.state async for disk in it.external.disk_list(it.project)]
                if "importing_from_bulk_writes" in states:
                    return

    words = [sys.executable, "-m", "nexus", "disk", "import", "half", str(large)]
    with subprocess.Popen(
        words, cwd=rack, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        trio.run(until_it_is_imported)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=WAIT_S)
    assert (command.returncode, out, err) == (130, "", "")
    assert items("disk", "list", cwd=rack) == []


@pytest.mark.real_client
def test_qemu_and_libnbd_through_the_printed_address(
    rack: Path, image: Path, tmp_path: Path, require_program: Any
) -> None:
    copy, convert = require_program("nbdcopy"), require_program("qemu-img")
    nexus("disk", "create", "scratch", "--size", "2MiB", cwd=rack)
    uri = said("disk", "attach", "scratch", "--instance", "guest", cwd=rack).strip()
    image.write_bytes(image.read_bytes()[: IMAGE_BYTES // 4096 * 4096])  # nbdcopy writes no part of a block
    for command in (
        [copy, str(image), uri],
        [convert, "convert", "-f", "raw", "-O", "raw", uri, str(tmp_path / "back")],
    ):
        assert program(*command) == (0, "", "")
    assert (tmp_path / "back").read_bytes()[: image.stat().st_size] == image.read_bytes()
    nexus("disk", "detach", "scratch", cwd=rack)
    nexus("disk", "delete", "scratch", cwd=rack)


def test_refusals_are_sentences(rack: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(2 * STEP))
    for arguments, code, words in (
        (("disk", "show", "nothing"), 1, "there is no disk nothing"),
        (("disk", "create", "Bad", "--size", "1MiB"), 2, "name: a name is up to 63 letters, digits and hyphens"),
        (("disk", "create", "odd", "--size", "1MiB", "--from-snapshot", "none"), 1, "none"),
        (("disk", "create", "odd", "--size", "1000"), 1, "a disk of 1000 bytes is not possible: take whole MiB"),
        (("disk", "import", "small", large, "--size", "1MiB"), 2, "give a --size that holds it"),
        (("disk", "import", "small", tmp_path / "absent"), 1, "absent: no such file or directory"),
        (("disk", "list", "--project", "other"), 1, "other"),
        (("sled", "expunge", "none"), 2, "there is no sled 'none': nexus sled list shows all"),
        (("physical-disk", "expunge", "none"), 2, "there is no physical disk 'none'"),
        (("project", "delete", "none"), 2, "there is no project 'none'"),
        (("task", "activate", "none"), 1, "none"),
        (("saga", "show", "none"), 1, "none"),
        (("rack", "up", rack, "--sleds", 9), 2, "holds a rack already: leave --sleds out"),
    ):
        assert words in sentence(*arguments, code=code, cwd=rack), arguments
    assert items("disk", "list", cwd=rack) == []


def test_every_listing_as_json_and_as_a_table(rack: Path) -> None:
    for group, length in (
        ("sled", 3),
        ("physical-disk", 3),
        ("project", 1),
        ("token", 1),
        ("saga", None),
        ("task", None),
    ):
        found = items(group, "list", cwd=rack)
        assert length in (None, len(found)), group
        assert len(said(group, "list", cwd=rack).splitlines()) == len(found) + 1
    task = items("task", "list", cwd=rack)[0]["name"]
    assert nexus("task", "activate", task, cwd=rack) == {"activated": [task]}
    assert nexus("rack", "status", cwd=rack)["ready"]


def test_projects_and_tokens(rack: Path, tmp_path: Path) -> None:
    """A tenant's token opens its own project and no other."""
    nexus("project", "create", "second", cwd=rack)
    token = tmp_path / "second.token"
    given = nexus("token", "create", token, "--project", "second", cwd=rack)
    assert "token" not in given and stat.S_IMODE(token.stat().st_mode) == 0o600
    external = nexus("rack", "status", cwd=rack)["services"]
    (url,) = [each["urls"]["external"] for each in external if each["kind"] == "command"]
    as_second = environment(NEXUS_URL=url, NEXUS_TOKEN_FILE=str(token), NEXUS_PROJECT="second")
    assert nexus("disk", "list", env=as_second)["items"] == []
    assert sentence("disk", "list", "--project", "demo", env=as_second, code=1)
    nexus("token", "delete", given["id"], cwd=rack)
    assert "token" in sentence("disk", "list", env=as_second, code=1)
    nexus("project", "delete", "second", cwd=rack)


def test_replacements_are_asked_for_shown_and_watched(rack: Path) -> None:
    """On three sleds there is no room for a fourth copy, so a request waits, until the disk is deleted."""
    assert said("replacement", "list", cwd=rack).startswith("WHAT")
    assert nexus("replacement", "to-do", cwd=rack) == {"items": []}
    assert said("replacement", "waiting", cwd=rack) == "No replacement is open.\n"
    assert said("replacement", "watch", cwd=rack) == "Nothing is to be replaced.\n"
    disk = nexus("disk", "create", "data", "--size", "1MiB", cwd=rack)
    tree = nexus("volume", "tree", "data", cwd=rack)
    (part,) = tree["tree"]["sub_volumes"]
    region = part["targets"][0]["region_id"]

    made = nexus("replacement", "request", "--region", region, cwd=rack)
    assert (made["kind"], made["old_region_id"], made["volume_id"]) == ("region", region, tree["id"])
    assert "is being replaced already" in sentence("replacement", "request", "--region", region, code=1, cwd=rack)
    other = part["targets"][1]["region_id"]
    assert "stands in line for it" in sentence("replacement", "request", "--region", other, code=1, cwd=rack)
    for arguments, code, words in (
        (("request",), 2, "give --region or --snapshot-region"),
        (("request", "--region", disk["id"]), 1, "there is no region"),
        (("request", "--region", "odd"), 2, "region_id: "),
        (("request", "--snapshot-region", region, region, region), 1, "region_snapshot"),
        (("show", disk["id"]), 1, "there is no replacement"),
        (("list", "--state", "odd"), 1, "state is one of requested, "),
        (("believe", tree["id"], disk["id"]), 1, "there is no region"),
        (("believe", disk["id"], region), 1, "is no copy of volume"),
    ):
        assert words in sentence("replacement", *arguments, code=code, cwd=rack), arguments

    assert [each["id"] for each in items("replacement", "list", cwd=rack)] == [made["id"]]
    assert nexus("replacement", "show", made["id"], cwd=rack)["repairs"] == []
    assert made["id"] in said("replacement", "list", cwd=rack) and "░" in said(
        "replacement", "show", made["id"], cwd=rack
    )
    waiting = nexus("replacement", "waiting", cwd=rack)
    assert waiting["requests"][0]["reasons"] and [each["volume_id"] for each in waiting["locks"]] == [tree["id"]]
    told = said("replacement", "waiting", cwd=rack)
    assert "  since " in told and "Holds up 1: replacement" in told
    assert outcome("replacement", "watch", "--timeout", "1", cwd=rack)[0] == 1

    nexus("disk", "delete", "data", cwd=rack)
    nexus("task", "activate", "region_replacement", cwd=rack)
    watched = nexus("replacement", "watch", "--timeout", WAIT_S, cwd=rack)
    assert watched["complete"] and {each["state"] for each in watched["items"]} <= {"complete"}
    assert items("replacement", "list", "--all", cwd=rack)[0]["state"] == "complete"
    wait_until(lambda: used(rack) == 0)
    assert said("check", cwd=rack) == "Nothing is wrong.\n"


def test_death_of_anything(rack: Path, image: Path) -> None:
    """Nexus killed, then everything at once: the rack is the same one again, and so are its disks."""
    nexus("disk", "import", "survivor", image, cwd=rack)
    token = (rack / "nexus" / "tenant.token").read_text()
    up = nexus("rack", "status", cwd=rack)
    (control,) = [each for each in up["services"] if each["kind"] == "command"]
    os.kill(control["pid"], signal.SIGKILL)
    wait_until(lambda: outcome("disk", "show", "survivor", cwd=rack)[0] == 0)
    nexus("disk", "attach", "survivor", cwd=rack)
    for pid in (up["pid"], *processes_of(rack)):
        with suppress(ProcessLookupError):  # what dies takes others along
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(rack))
    again = nexus("rack", "up", rack)
    assert [each["url"] for each in again["services"]] == [each["url"] for each in up["services"]]
    assert (rack / "nexus" / "tenant.token").read_text() == token
    assert len(items("sled", "list", cwd=rack)) == 3
    # Its instance ended with its host; Nexus still holds it for running, until it is stopped.
    nexus("disk", "detach", "survivor", cwd=rack)
    place = nexus("disk", "attach", "survivor", cwd=rack)
    with sync.open(place["uri"]) as disk:
        assert disk.read(0, IMAGE_BYTES) == image.read_bytes()
    nexus("disk", "detach", "survivor", cwd=rack)
    nexus("disk", "delete", "survivor", cwd=rack)


def test_down_leaves_nothing_and_up_brings_it_back(rack: Path) -> None:
    nexus("disk", "create", "kept", "--size", "1MiB", cwd=rack)
    assert said("rack", "down", cwd=rack) == f"The rack in {rack} is down.\n"
    assert processes_of(rack) == set()
    assert [path for path in rack.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)] == []
    assert sentence("disk", "list", cwd=rack, code=1).startswith("no answer from ")
    assert not nexus("rack", "status", cwd=rack)["running"]
    nexus("rack", "up", cwd=rack)
    assert [each["name"] for each in items("disk", "list", cwd=rack)] == ["kept"]
    nexus("disk", "delete", "kept", cwd=rack)
    # The plain command knows the rack, too.
    code, out, err = program(sys.executable, "-m", "crucible_emu", "rack", "status", "--json", cwd=rack)
    assert (code, err) == (0, "") and json.loads(out)["ready"]


def test_several_nexus_on_one_database(postgres_url: str) -> None:
    """Each answers for all of them; where one is dead another does, and nobody's disks are lost."""
    with TemporaryDirectory(prefix="rack-") as place:
        root = Path(place, "r")
        few = ("--sleds", 3, "--size-step", "1MiB", "--extent-size", "64KiB")
        up = nexus("rack", "up", root, *few, "--nexus", 2, "--database", postgres_url)
        try:
            assert postgres_url not in (root / "rack.toml").read_text()
            nexus("disk", "create", "first", "--size", "1MiB", cwd=root)
            (first, second) = [each for each in up["services"] if each["kind"] == "command"]
            os.kill(first["pid"], signal.SIGSTOP)  # the harder death: its port is open, and nobody answers
            nexus("disk", "create", "second", "--size", "1MiB", cwd=root)
            os.kill(first["pid"], signal.SIGKILL)
            url, token = first["urls"]["external"], root / "nexus" / "tenant.token"
            as_tenant = environment(NEXUS_URL=url, NEXUS_TOKEN_FILE=str(token), NEXUS_PROJECT="demo")
            wait_until(lambda: outcome("disk", "list", env=as_tenant)[0] == 0)
            assert {each["name"] for each in nexus("disk", "list", env=as_tenant)["items"]} == {"first", "second"}
            for name in ("first", "second"):
                nexus("disk", "delete", name, cwd=root)
            assert said("check", cwd=root) == "Nothing is wrong.\n"
            assert second["urls"]["external"] != url
        finally:
            nexus("rack", "down", root)
        assert processes_of(root) == set()
