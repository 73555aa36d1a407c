"""``crucible-emu serve``: the ready line, clean ends, what is there the next time, and refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from command_rig import COMMAND, END_S, one_sentence, outcome_here, pattern, refusal, running, talk, unix_uri
from nbd_plain_client import PlainClient

from crucible_emu.encryption import Cipher
from crucible_emu.nbd import protocol as p
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView
from crucible_emu.volume import local_disk

MEGABYTE = 1 << 20


def test_a_disk_loads_no_library_that_it_does_not_use() -> None:
    """Ciphers, HTTP, documents and bars are 14 MiB and a tenth of the time until a disk without them answers."""
    heavy = ("cryptography", "httpx2", "starlette", "hypercorn", "sqlalchemy", "pydantic", "sqlite3", "rich.progress")
    script = f"import sys, crucible_emu.cli.serve; print(sorted(set({heavy!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def writes(*blocks: tuple[int, bytes], flush: bool = False) -> Callable[[PlainClient], Any]:
    """A client that writes and, unless told to flush, just leaves."""

    async def script(client: PlainClient) -> None:
        for offset, data in blocks:
            await client.write(offset, data)
        if flush:
            assert (await client.call(p.Command.FLUSH)).errno == 0

    return script


def reads(offset: int, length: int) -> Callable[[PlainClient], Any]:
    async def script(client: PlainClient) -> bytes:
        return await client.read(offset, length)

    return script


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """Where the disk shall be, and its socket."""
    return tmp_path / "disk", tmp_path / "disk.sock"


def stored(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / local_disk.DISK_FILE).read_text())
    return found


# -- ready, and a clean end -------------------------------------------------------------------------------------------


def test_ready_line_as_text(place: tuple[Path, Path]) -> None:
    directory, path = place
    with running("serve", directory, "--size", "16MiB", "--nbd", unix_uri(path)) as command:
        assert command.line == f"Ready: a disk of 16 MiB at nbd+unix:///?socket={path}\n"
        assert path.is_socket()
        code, out, err = command.end(signal.SIGINT)
    assert (code, out, err) == (0, "Ctrl-C flushes and leaves.\n", "")
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_flushes_what_nobody_flushed_and_the_next_start_finds_it(
    place: tuple[Path, Path], number: signal.Signals
) -> None:
    directory, path = place
    arguments = ("serve", directory, "--nbd", unix_uri(path), "--json")
    with running(*arguments, "--size", "16MiB") as command:
        assert command.ready == {
            "ready": True,
            "uri": unix_uri(path),
            "uris": [unix_uri(path)],
            "size_bytes": 16 * MEGABYTE,
            "block_size": 4096,
            "read_only": False,
            "pid": command.process.pid,
            "regions": [str(directory / f"region-{client}") for client in range(3)],
        }
        # Not a whole number of blocks, so that the door has to read and write around it.
        command.talk(writes((5 * MEGABYTE + 7, pattern(100_000)), (0, pattern(512, 2))))
        command.end_well(number)
    assert not path.exists()
    for region in (directory / f"region-{client}" for client in range(3)):
        with Region.open(region, read_only=True) as found:
            assert not found.extent_versions()[2].any(), "all is flushed"
    assert stored(directory)["generation"] == 1
    with running(*arguments) as command:
        assert command.talk(reads(5 * MEGABYTE + 7, 100_000)) == pattern(100_000)
        assert command.talk(reads(0, 1024)) == pattern(512, 2) + bytes(512)
        command.end_well()
    assert stored(directory)["generation"] == 2


def test_a_client_that_stays_connected_does_not_keep_it_alive(place: tuple[Path, Path]) -> None:
    directory, path = place
    with running("serve", directory, "--size", "1MiB", "--nbd", unix_uri(path), "--json") as command:

        async def stay(client: PlainClient) -> None:
            await client.write(0, pattern(4096))
            command.process.send_signal(signal.SIGTERM)
            with pytest.raises(EOFError):
                await client.read_exactly(1)

        command.talk(stay)
        _, err = command.process.communicate(timeout=30)
        assert (command.process.returncode, err) == (0, "")
    assert not path.exists()


def test_after_a_kill_the_socket_is_taken_over_and_what_was_flushed_is_there(place: tuple[Path, Path]) -> None:
    directory, path = place
    arguments = ("serve", directory, "--nbd", unix_uri(path), "--json")
    with running(*arguments, "--size", "4MiB") as command:
        command.talk(writes((0, pattern(8192)), flush=True))
        command.end(signal.SIGKILL)
    assert path.exists(), "nobody was left to remove it"
    with running(*arguments) as command:
        assert command.talk(reads(0, 8192)) == pattern(8192)
        command.end_well()
    assert len({region_digest(RegionView.open(directory / f"region-{n}")).region for n in range(3)}) == 1


def test_a_second_serve_of_the_same_disk_is_refused_and_the_first_goes_on(place: tuple[Path, Path]) -> None:
    directory, path = place
    with running("serve", directory, "--size", "4MiB", "--nbd", unix_uri(path), "--json") as command:
        for other in (path, path.with_name("other.sock")):
            code, out, err = outcome_here("serve", directory, "--nbd", unix_uri(other))
            assert (code, out) == (2, "")
            assert "open read-write elsewhere" in one_sentence(err)
        command.talk(writes((0, pattern(4096))))
        assert command.talk(reads(0, 4096)) == pattern(4096)
        command.end_well()
    assert stored(directory)["generation"] == 1


def test_a_socket_that_is_in_use_is_refused_and_its_owner_goes_on(place: tuple[Path, Path], tmp_path: Path) -> None:
    directory, path = place
    with running("serve", directory, "--size", "4MiB", "--nbd", unix_uri(path), "--json") as command:
        code, out, err = outcome_here("serve", tmp_path / "other", "--size", "1MiB", "--nbd", unix_uri(path))
        assert (code, out) == (2, "")
        assert str(path) in one_sentence(err)
        assert command.talk(reads(0, 512)) == bytes(512)
        command.end_well()


def test_little_memory_for_what_is_not_flushed(place: tuple[Path, Path]) -> None:
    directory, path = place
    arguments = ("serve", directory, "--size", "16MiB", "--unflushed", "1MiB", "--nbd", unix_uri(path), "--json")
    with running(*arguments) as command:
        command.talk(writes(*[(at * MEGABYTE, pattern(MEGABYTE)) for at in range(8)]))
        assert command.talk(reads(7 * MEGABYTE, MEGABYTE)) == pattern(MEGABYTE)
        command.end_well()


def test_several_addresses_and_a_name(place: tuple[Path, Path]) -> None:
    directory, path = place
    uris = ("--nbd", unix_uri(path, "my disk"), "--nbd", "nbd://127.0.0.1:0/my%20disk")
    with running("serve", directory, "--size", "1MiB", *uris, "--json") as command:
        found = command.ready["uris"]
        assert found[0] == unix_uri(path, "my%20disk")
        assert found[1].startswith("nbd://127.0.0.1:") and found[1].endswith("/my%20disk")
        command.talk(writes((0, pattern(512))), found[0])
        assert command.talk(reads(0, 512), found[1]) == pattern(512)
        command.end_well()


def test_read_only(place: tuple[Path, Path]) -> None:
    directory, path = place
    with running("serve", directory, "--size", "1MiB", "--nbd", unix_uri(path), "--read-only", "--json") as command:
        assert command.ready["read_only"] is True

        async def script(client: PlainClient) -> tuple[int, int, bytes]:
            refused = await client.call(p.Command.WRITE, 0, data=bytes(512))
            return client.flags & p.TransmissionFlag.READ_ONLY, refused.errno, await client.read(0, 512)

        flag, errno, found = command.talk(script)
        assert flag and errno == p.Errno.EPERM and found == bytes(512)
        command.end_well()


def test_tls(place: tuple[Path, Path], tmp_path: Path) -> None:
    directory, _ = place
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    with running("serve", directory, "--size", "1MiB", "--nbd", "nbds://127.0.0.1:0/", *files, "--json") as command:
        assert command.ready["uri"].startswith("nbds://127.0.0.1:")
        with pytest.raises(AssertionError):  # the client in the clear is refused
            talk(command.ready["uri"].replace("nbds:", "nbd:"), reads(0, 512))
        command.end_well()


# -- keys -------------------------------------------------------------------------------------------------------------


def test_encryption_makes_a_key_and_needs_it_again(
    place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, path = place
    key = tmp_path / "key"
    arguments = ("serve", directory, "--nbd", unix_uri(path), "--json")
    with running(*arguments, "--size", "1MiB", "--encrypt", key) as command:
        command.talk(writes((0, pattern(8192))))
        code, _, err = command.end()
        assert code == 0
        assert err == f"Made a new key in {key}: without it the disk cannot be read.\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    text = key.read_text()
    Cipher.from_base64(text)
    for file in directory.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert text.strip().encode() not in content and pattern(8192)[:64] not in content
    code, sentence = refusal(capsys, *arguments)
    assert code == 2 and "give its key" in sentence
    key.rename(tmp_path / "away")
    code, sentence = refusal(capsys, *arguments, "--encrypt", key)
    assert code == 2 and str(key) in sentence
    assert not key.exists(), "no new key for an old disk"
    key.write_text("A" * 43 + "=")
    code, sentence = refusal(capsys, *arguments, "--encrypt", key)
    assert code == 2 and "key" in sentence and "AAAA" not in sentence
    (tmp_path / "away").rename(key)
    with running(*arguments, "--encrypt", key) as command:
        assert command.talk(reads(0, 8192)) == pattern(8192)
        command.end_well()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 44, b"A" * 400])
def test_a_key_file_that_holds_none_is_named_and_not_shown(
    place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    code, sentence = refusal(capsys, "serve", place[0], "--size", "1MiB", "--encrypt", key)
    assert code == 2 and str(key) in sentence
    assert not content or content.decode("latin-1")[:4] not in sentence
    assert key.read_bytes() == content
    assert not place[0].exists()


# -- images -----------------------------------------------------------------------------------------------------------


def test_an_image_is_copied_in(place: tuple[Path, Path], tmp_path: Path) -> None:
    directory, path = place
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.write(pattern(MEGABYTE + 700))
        file.truncate(3 * MEGABYTE + 700)
    with running("serve", directory, "--image", image, "--nbd", unix_uri(path), "--json") as command:
        size = command.ready["size_bytes"]
        assert 3 * MEGABYTE + 700 <= size < 4 * MEGABYTE and size % 4096 == 0
        assert command.talk(reads(0, size)) == image.read_bytes() + bytes(size - 3 * MEGABYTE - 700)
        command.end_well()
    with running("serve", directory, "--nbd", unix_uri(path), "--json") as command:
        assert command.talk(reads(0, MEGABYTE)) == pattern(MEGABYTE)
        command.end_well()


def test_an_image_whose_copying_was_interrupted_must_be_given_again(
    place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, path = place
    image = tmp_path / "image.raw"
    image.write_bytes(pattern(MEGABYTE))
    local_disk.create(directory, 2 * MEGABYTE, fill_from=image)
    code, sentence = refusal(capsys, "serve", directory, "--nbd", unix_uri(path))
    assert code == 2 and f"give --image {image}" in sentence
    with running("serve", directory, "--image", image, "--nbd", unix_uri(path), "--json") as command:
        assert command.talk(reads(0, 2 * MEGABYTE)) == pattern(MEGABYTE) + bytes(MEGABYTE)
        command.end_well()
    code, sentence = refusal(capsys, "serve", directory, "--image", image, "--nbd", unix_uri(path))
    assert code == 2 and "already" in sentence


def test_an_image_that_finds_no_room_is_begun_and_can_be_given_again(place: tuple[Path, Path], tmp_path: Path) -> None:
    """Files that may not be written past their first 512 KiB stand for a file system that is full."""
    directory, path = place
    image = tmp_path / "image.raw"
    image.write_bytes(pattern(4 * MEGABYTE))
    local_disk.create(directory, 4 * MEGABYTE, blocks_per_extent=256, fill_from=image)
    arguments = ("serve", directory, "--image", image, "--nbd", unix_uri(path))
    full = ["prlimit", f"--fsize={MEGABYTE // 2}", *COMMAND, *map(str, arguments)]
    failed = subprocess.run(full, capture_output=True, text=True, timeout=END_S)
    *warnings, sentence = failed.stderr.splitlines()
    assert (failed.returncode, failed.stdout) == (1, "")
    assert any("File too large" in json.loads(line).get("error", "") for line in warnings)
    assert f"copying {image} in failed" in sentence and "give the same command again" in sentence
    with running(*arguments, "--json") as command:
        assert command.talk(reads(0, 4 * MEGABYTE)) == pattern(4 * MEGABYTE)
        command.end_well()


# -- refusals ---------------------------------------------------------------------------------------------------------

NEW: list[tuple[list[str], str]] = [
    ([], "--size"),
    (["--size", "much"], "'much' is not a size"),
    (["--size", "0"], "size 0"),
    (["--size", "-1"], "size"),
    (["--size", "1000"], "size 1000"),
    (["--size", "1MiB", "--block-size", "500"], "block size 500"),
    (["--size", "1MiB", "--block-size", "64KiB"], "block size 65536"),
    (["--size", "1MiB", "--block-size", "0"], "block size 0"),
    (["--size", "1MiB", "--block-size", "0", "--extent-size", "64KiB"], "block size 0"),
    (["--image", "{image}", "--block-size", "0"], "block size 0"),
    (["--image", "{image}", "--block-size", "0", "--extent-size", "4"], "block size 0"),
    (["--image", "{image}", "--extent-size", "0"], "extent size 0"),
    (["--size", "1MiB", "--extent-size", "0"], "extent size 0"),
    (["--size", "1MiB", "--extent-size", "3"], "multiple of 12288"),
    (["--size", "1MiB", "--extent-size", "5000"], "is not a whole number of"),
    (["--size", "8GiB", "--extent-size", "1GiB"], "extent size"),
    (["--image", "{folder}/none.raw"], "none.raw"),
    (["--image", "{folder}"], "is not a file"),
    (["--image", "{image}", "--size", "4096"], "more than --size 4096"),
    (["--size", "1MiB", "--nbd", "http://x/"], "is not an NBD address"),
    (["--size", "1MiB", "--nbd", "nbd+unix:///"], "socket"),
    (["--size", "1MiB", "--nbd", "nbd+unix:///a?socket={folder}/s", "--nbd", "nbd://127.0.0.1:0/b"], "one disk"),
    (["--size", "1MiB", "--nbd", "nbds://127.0.0.1:0/"], "--tls-cert and --tls-key"),
    (["--size", "1MiB", "--tls-cert", "{image}"], "--tls-cert and --tls-key"),
    (["--size", "1MiB", "--nbd", "nbds://[::1]:0/", "--tls-cert", "{image}", "--tls-key", "{image}"], "TLS files"),
    (["--size", "1MiB", "--sise", "1"], "--sise"),
    (["--size", "1MiB", "--unflushed", "1000KiB"], "give at least 1MiB"),
    (["--size", "1MiB", "--unflushed", "much"], "is not a size"),
]


@pytest.mark.parametrize(
    ("options", "words"), NEW, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_disk_that_cannot_be_made_is_refused_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(pattern(10_000))
    filled = [option.format(folder=tmp_path, image=image) for option in options]
    code, sentence = refusal(capsys, "serve", tmp_path / "disk", *filled)
    assert code == 2 and words in sentence
    assert sorted(os.listdir(tmp_path)) == ["image.raw"]


EXISTING: list[tuple[list[str], str]] = [
    (["--size", "2MiB"], "has 1048576 bytes, not 2MiB"),
    (["--block-size", "512"], "blocks of 4096 bytes"),
    (["--extent-size", "128"], "blocks per extent"),
    (["--extent-size", "1MB"], "is not a whole number of blocks"),
    (["--image", "{folder}/image.raw"], "a disk in"),
    (["--encrypt", "{folder}/key"], "cannot read the key file"),
]


@pytest.mark.parametrize(("options", "words"), EXISTING, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_other_options_than_the_disk_has_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    directory = tmp_path / "disk"
    local_disk.create(directory, MEGABYTE)
    before = stored(directory)
    code, sentence = refusal(capsys, "serve", directory, *[option.format(folder=tmp_path) for option in options])
    assert code == 2 and words in sentence
    assert stored(directory) == before
    assert os.listdir(tmp_path) == ["disk"]


def test_the_options_that_the_disk_has_are_no_contradiction(place: tuple[Path, Path]) -> None:
    directory, path = place
    options = ("--size", "1MiB", "--block-size", "512", "--extent-size", "128KiB", "--nbd", unix_uri(path), "--json")
    for _ in range(2):
        with running("serve", directory, *options) as command:
            assert command.ready["block_size"] == 512
            command.end_well()


def test_places_that_are_no_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter").write_text("dear")
    for directory, words in ((tmp_path, "not empty"), (tmp_path / "letter", "letter")):
        code, sentence = refusal(capsys, "serve", directory, "--size", "1MiB")
        assert code == 2 and words in sentence
    assert os.listdir(tmp_path) == ["letter"]


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, sentence = refusal(
            capsys, "serve", tmp_path / "disk", "--size", "1MiB", "--nbd", f"nbd://127.0.0.1:{port}/"
        )
    assert code == 2 and str(port) in sentence


@pytest.mark.parametrize("name", ["nowhere.invalid", 70 * "a" + ".invalid"])
def test_a_name_that_nobody_knows_is_named_before_a_disk_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, sentence = refusal(capsys, "serve", tmp_path / "disk", "--size", "1MiB", "--nbd", f"nbd://{name}/")
    assert code == 2 and name in sentence
    assert os.listdir(tmp_path) == []


def test_a_name_that_no_machine_can_have_is_refused_for_the_control_api(
    place: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, path = place
    name = 70 * "a" + ".invalid"
    options = ("--size", "1MiB", "--nbd", unix_uri(path), "--control", f"{name}:1234")
    code, sentence = refusal(capsys, "serve", directory, *options)
    assert code == 2 and name in sentence
