"""``crucible-emu region``: what it prints, what it leaves behind, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from crucible_emu.cli import main as root
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region, layout, snapshot
from crucible_emu.region.storage import OsStorage

DATA = Path(__file__).parent.parent / "data" / "region_tools"
UUID = "12345678-1111-2222-3333-123456789999"


@pytest.fixture
def run(capfdbinary, tmp_path, monkeypatch):
    """Run a command in ``tmp_path``: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments, binary=False):
        with pytest.raises(SystemExit) as left:
            root.main(["region", *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return left.value.code, out if binary else out.decode(), err.decode()

    return call


@pytest.fixture
def made(run):
    """A region ``r0`` of three extents of 100 blocks of 512 bytes."""
    options = ("--block-size", "512", "--extent-size", "100", "--extent-count", "3", "--uuid", UUID)
    assert run("create", "r0", *options)[0] == 0
    return Path("r0")


def image(content: bytes) -> Path:
    path = Path("disk.raw")
    path.write_bytes(content)
    return path


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def one_sentence(err: str) -> str:
    """The only line on standard error, without its ``Error: ``."""
    lines = [line for line in err.splitlines() if not line.startswith("Try '")]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in err
    return lines[0].removeprefix("Error: ")


class TestCreate:
    def test_region_opens(self, run, made):
        with closing(Region.open(made)) as region:
            assert str(region.definition.uuid) == UUID
            assert (region.definition.blocks_per_extent, region.definition.extent_count) == (100, 3)

    def test_says_what_it_made(self, run):
        code, out, err = run("create", "r", "--size", "1GiB", "--uuid", UUID)
        assert (code, err) == (0, "")
        assert out == f"Made r: 1 GiB in 16 extents of 16384 blocks of 4096 bytes, UUID {UUID}\n"

    def test_json(self, run):
        code, out, _ = run("create", "r", "--size", "10MiB", "--encrypted", "--json")
        found = json.loads(out)
        assert code == 0
        assert found["directory"] == "r"
        assert found["encrypted"] is True
        assert found["size_bytes"] == 10 << 20
        assert found["extent_size"] == {"value": 2560, "shift": 12}

    def test_uuid_is_random(self, run):
        found = {json.loads(run("create", name, "--size", "1MiB", "--json")[1])["uuid"] for name in ("a", "b")}
        assert len(found) == 2

    @pytest.mark.parametrize(
        ("options", "blocks", "extents"),
        [
            (("--size", "100MiB"), 12800, 2),
            (("--size", "100MiB", "--extent-size", "4MiB"), 1024, 25),
            (("--size", "64KiB", "--block-size", "512"), 128, 1),
            (("--extent-count", "3"), 16384, 3),
            (("--extent-count", "3", "--extent-size", "10"), 10, 3),
        ],
    )
    def test_sizes(self, run, options, blocks, extents):
        found = json.loads(run("create", "r", *options, "--json")[1])
        assert (found["extent_size"]["value"], found["extent_count"]) == (blocks, extents)

    def test_import_fills_it(self, run):
        content = noise(10_000)
        image(content)
        code, out, err = run("create", "r", "--import", "disk.raw")
        assert (code, err) == (0, "")
        assert out.splitlines()[1] == "Imported 10000 bytes into 3 blocks"
        assert run("export", "r", "-", binary=True)[1] == content.ljust(3 * 4096, b"\0")

    def test_import_makes_a_given_region_grow(self, run):
        image(noise(5 * 4096))
        found = json.loads(
            run("create", "r", "--import", "disk.raw", "--extent-size", "2", "--extent-count", "1", "--json")[1]
        )
        assert found["extent_count"] == 3
        assert found["imported"] == {"read_bytes": 20480, "written_blocks": 5, "skipped_blocks": 0}

    def test_sparse_import_leaves_zeros_unwritten(self, run):
        image(bytes(8 * 4096) + noise(4096))
        out = run("create", "r", "--import", "disk.raw", "--sparse")[1]
        assert out.splitlines()[1] == "Imported 36864 bytes into 1 blocks, 8 blocks of zeros left unwritten"

    def test_an_empty_directory_is_taken(self, run):
        Path("r").mkdir()
        assert run("create", "r", "--size", "1MiB")[0] == 0

    def test_missing_parents_are_made(self, run):
        assert run("create", "a/b/r", "--size", "1MiB")[0] == 0

    @pytest.mark.parametrize(
        ("options", "code", "sentence"),
        [
            ((), 2, "how large shall the region be?"),
            (("--size", "big"), 2, "'big' is not a size"),
            (("--size", "1000"), 2, "size 1000 is not a positive multiple of the block size 4096"),
            (("--size", "0"), 2, "size 0 is not a positive multiple"),
            (("--size", "1MiB", "--extent-count", "2"), 2, "give one of them"),
            (("--size", "1MiB", "--block-size", "1000"), 1, "block size 1000 is not usable: take a power of two"),
            (("--size", "10MiB", "--extent-size", "3MiB"), 2, "take 12 MiB, or another --extent-size"),
            (("--size", "1GiB", "--extent-size", "1GiB"), 1, "take at most 131072 blocks"),
            (("--extent-count", "0"), 2, "Invalid value for '--extent-count'"),
            (("--size", "1MiB", "--uuid", "x"), 2, "Invalid value for '--uuid'"),
            (("--import", "nothing"), 1, "nothing: no such file or directory"),
            (("--import", "."), 1, ".: is a directory"),
            (("--size", "1MiB", "--encrypted", "--import", "disk.raw"), 2, "an encrypted region takes no plain image"),
        ],
    )
    def test_wrong_options_are_one_sentence_and_make_nothing(self, run, options, code, sentence):
        image(noise(4096))
        got, out, err = run("create", "r", *options)
        assert (got, out) == (code, "")
        assert sentence in one_sentence(err)
        assert os.listdir() == ["disk.raw"]

    @pytest.mark.parametrize("name", ["r0", "file", "full"])
    def test_what_exists_is_not_touched(self, run, made, name):
        Path("file").write_text("mine")
        Path("full").mkdir()
        Path("full/mine").write_text("mine")
        before = sorted(Path().rglob("*"))
        code, _, err = run("create", name, "--size", "1MiB")
        assert code == 2
        assert f"{name} exists" in one_sentence(err)
        assert sorted(Path().rglob("*")) == before

    @pytest.mark.parametrize("operation", ["ftruncate", "pwrite", "fsync", "rename"])
    def test_full_disk_leaves_nothing_behind(self, run, monkeypatch, operation):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        image(noise(100_000))
        monkeypatch.setattr(OsStorage, operation, staticmethod(full))
        code, out, err = run("create", "r", "--import", "disk.raw", "--extent-size", "2")
        assert (code, out) == (1, "")
        assert "No space left on device" in one_sentence(err)
        assert os.listdir() == ["disk.raw"]

    def test_interrupt_leaves_nothing_behind(self, run, monkeypatch):
        image(noise(100_000))
        monkeypatch.setattr(Region, "write", interrupt)
        code, out, err = run("create", "r", "--import", "disk.raw")
        assert (code, out, err) == (130, "", "")
        assert os.listdir() == ["disk.raw"]

    def test_no_permission(self, run, public):
        Path("locked").mkdir(mode=0o555)
        with as_ordinary_user():
            code, _, err = run("create", "locked/r", "--size", "1MiB")
        assert code == 1
        assert one_sentence(err) == f"{public}/locked: permission denied"

    def test_no_permission_to_make_a_file(self, run, public):
        Path("locked").mkdir(mode=0o555)
        with as_ordinary_user():
            code, _, err = run("export", "r0", "locked/out")
        assert code == 1
        assert one_sentence(err) == f"{public}/locked: permission denied"

    def test_missing_directory_of_a_file(self, run, made):
        code, _, err = run("export", made, "nowhere/out")
        assert code == 1
        assert "nowhere: no such file or directory" in one_sentence(err)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def public(run, monkeypatch):
    """A working directory that every user may enter, with the region ``r0`` in it."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        monkeypatch.chdir(directory)
        run("create", "r0", "--block-size", "512", "--extent-size", "100", "--extent-count", "3")
        yield Path(directory)


@contextmanager
def as_ordinary_user():
    """Root may read and write everything; inside this block it may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestImport:
    def test_image_goes_in(self, run, made):
        content = noise(300 * 512)
        code, out, err = run("import", made, image(content))
        assert (code, out, err) == (0, "Imported 153600 bytes into 300 blocks\n", "")
        assert run("export", made, "-", binary=True)[1] == content

    def test_region_grows(self, run, made):
        code, out, _ = run("import", made, image(noise(301 * 512)), "--json")
        assert code == 0
        assert json.loads(out)["extent_count"] == 4

    def test_pipe_is_no_image(self, run, made):
        os.mkfifo("pipe")
        descriptor = os.open("pipe", os.O_RDWR)
        try:
            code, _, err = run("import", made, "pipe")
        finally:
            os.close(descriptor)
        assert code == 2
        assert "pipe is a stream" in one_sentence(err)

    def test_region_that_is_served(self, run, made):
        with closing(Region.open(made)):
            code, _, err = run("import", made, image(b"x"))
        assert code == 2
        assert "open read-write elsewhere" in one_sentence(err)

    def test_no_region(self, run):
        code, _, err = run("import", "nothing", image(b"x"))
        assert code == 2
        assert one_sentence(err).startswith("nothing is no region")
        assert os.listdir() == ["disk.raw"]


class TestExport:
    @pytest.fixture
    def filled(self, run, made):
        run("import", made, image(noise(300 * 512)))
        return made

    def test_to_a_file(self, run, filled):
        code, out, err = run("export", filled, "out", "--skip", "150", "--count", "20")
        assert (code, out, err) == (0, "Exported 10240 bytes to out\n", "")
        assert Path("out").read_bytes() == noise(300 * 512)[150 * 512 : 170 * 512]

    def test_equals_the_image_by_digest(self, run, filled):
        run("export", filled, "out")
        wanted = blake3(Path("disk.raw").read_bytes()).hexdigest()
        assert blake3(Path("out").read_bytes()).hexdigest() == wanted
        assert run("digest", "--volume", filled)[1] == f"{wanted}  {filled}\n"

    def test_json(self, run, filled):
        found = json.loads(run("export", filled, "out", "--json")[1])
        assert found == {"directory": "r0", "file": "out", "exported_bytes": 153600}

    def test_holes_stay_holes(self, run):
        run("create", "r", "--size", "64MiB")
        assert run("export", "r", "out")[0] == 0
        assert (os.stat("out").st_size, os.stat("out").st_blocks) == (64 << 20, 0)

    def test_existing_file_needs_force(self, run, filled):
        Path("out").write_text("mine")
        code, _, err = run("export", filled, "out")
        assert code == 2
        assert "say --force" in one_sentence(err)
        assert Path("out").read_text() == "mine"
        assert run("export", filled, "out", "--force")[0] == 0
        assert Path("out").stat().st_size == 153600

    def test_device_is_written_where_it_is(self, run, filled):
        assert run("export", filled, "/dev/null")[0] == 0
        code, _, err = run("export", filled, "/dev/full")
        assert code == 1
        assert "no space left on device" in one_sentence(err)

    def test_range_beyond_the_end_makes_no_file(self, run, filled):
        code, _, err = run("export", filled, "out", "--skip", "290", "--count", "11")
        assert code == 2
        assert "blocks 290 to 300 go beyond the region, whose blocks are 0 to 299" in one_sentence(err)
        assert not Path("out").exists()

    def test_missing_extent_makes_no_file(self, run, filled):
        layout.extent_path(filled, 1).unlink()
        code, _, err = run("export", filled, "out", "--force")
        assert code == 1
        assert "r0/00/000/001: no such file or directory" in one_sentence(err)
        assert sorted(os.listdir()) == ["disk.raw", "r0"]

    def test_ciphertext_is_announced(self, run):
        run("create", "r", "--size", "1MiB", "--encrypted")
        code, _, err = run("export", "r", "out")
        assert (code, err) == (0, "Warning: r is encrypted: what is exported is ciphertext\n")

    def test_json_needs_a_file(self, run, filled):
        code, out, err = run("export", filled, "-", "--json")
        assert (code, out) == (2, "")
        assert "cannot both go to standard output" in one_sentence(err)

    def test_reader_that_leaves(self, filled):
        program = "from crucible_emu.cli.main import main; main()"
        shell = f'{sys.executable} -c "{program}" region export {filled} - | head -c 1 > /dev/null'
        assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False).stderr == ""


class TestInfo:
    def test_text_is_that_of_the_real_program(self, run, made):
        made.rename("DIR")
        assert run("info", "DIR", "-b", "5-17")[:2] == (
            0,
            (DATA / "extent_info_512x100_blocks_5-17.txt").read_text(),
        )

    def test_json(self, run, made):
        found = json.loads(run("info", made, "--json")[1])
        assert found["definition"]["uuid"] == UUID
        assert found["extent_file_bytes"] == 60845

    def test_wrong_blocks(self, run, made):
        code, _, err = run("info", made, "-b", "100")
        assert code == 2
        assert "block 100 is outside the extent" in one_sentence(err)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("", "is not JSON"),
            ("{", "is not JSON"),
            ("[]", "holds no JSON object"),
            ("{}", '"extent_size" is missing'),
        ],
    )
    def test_foreign_definition(self, run, made, content, sentence):
        (made / "region.json").write_text(content)
        code, _, err = run("info", made)
        assert code == 2
        assert one_sentence(err)
        assert sentence in err or "block_size" in err


class TestDump:
    @pytest.fixture
    def pair(self, run, made):
        run("create", "r1", "--block-size", "512", "--extent-size", "100", "--extent-count", "3")
        with closing(Region.open("r1")) as region:
            rows = np.frombuffer(noise(512), np.uint8)[None, :]
            region.write(np.array([205]), rows, BlockContexts.plain(hash_blocks(rows)))
            region.flush(7, 2)
        return "r0", "r1"

    def test_summary(self, run, pair):
        code, out, err = run("dump", *pair, "--no-color")
        assert code == 1
        assert one_sentence(err) == "Difference in extent metadata found!"
        assert out.splitlines() == [
            "EXT  BLOCKS GEN0 GEN1  FL0 FL1  D0 D1 DIFF",
            "  0 000-099    0    0    0   0   F  F",
            "  1 100-199    0    0    0   0   F  F",
            "  2 200-299    0    2    0   7   F  F <---",
            "Max gen: 2,  Max flush: 7",
        ]

    def test_one_directory_has_no_difference(self, run, pair):
        assert run("dump", "r1")[0] == 0

    def test_no_colours_unless_it_is_a_terminal(self, run, pair):
        assert "\x1b" not in run("dump", *pair)[1]
        assert "\x1b[31m" in run("dump", *pair, "--color")[1]

    def test_extent(self, run, pair):
        code, out, err = run("dump", *pair, "-e", "2", "-o")
        assert (code, one_sentence(err)) == (1, "Difference found!")
        assert out.splitlines()[-1] == "205   A  B   A  B"
        assert run("dump", *pair, "-e", "1")[0] == 0

    def test_block(self, run, pair):
        code, out, err = run("dump", *pair, "-b", "205")
        assert (code, err) == (0, "")
        assert out.startswith("Extent 2 Block in extent 5  Actual block 205\n")

    @pytest.mark.parametrize("options", [(), ("-e", "2"), ("-b", "205")])
    def test_json(self, run, pair, options):
        code, out, _ = run("dump", *pair, *options, "--json")
        assert code == (0 if "-b" in options else 1)
        assert json.loads(out)["different"] is True

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("r0", "-e", "0"), "Need more than one region directory"),
            (("r0", "r1", "-e", "3"), "Requested extent 3 is a higher index than valid (3)"),
            (("r0", "r1", "-b", "300"), "Requested block 300 > max block 299"),
            (("r0", "r1", "-b", "3", "-e", "0"), "give one of them"),
            (("r0",) * 4, "4 directories cannot be shown"),
            (("r0", "nothing"), "nothing is no region"),
        ],
    )
    def test_wrong_requests(self, run, pair, arguments, sentence):
        code, out, err = run("dump", *arguments)
        assert (code, out) == (2, "")
        assert sentence in one_sentence(err)

    def test_unreadable_extent_is_a_warning_and_a_failure(self, run, pair):
        layout.extent_path(Path("r1"), 0).unlink()
        code, out, err = run("dump", "r1")
        assert code == 1
        assert "  0 column 0 bad " in out.splitlines()
        warning, error = err.splitlines()
        assert warning.startswith("Warning: extent 0 of r1 cannot be read: ")
        assert error == "Error: not everything could be read"


class TestVerify:
    @pytest.fixture
    def filled(self, run, made):
        run("import", made, image(noise(300 * 512)))
        return made

    def test_sound(self, run, filled):
        assert run("verify", filled) == (0, "r0 is sound: 3 extents, 300 blocks\n", "")

    def test_one_line_per_failure(self, run, filled):
        for extent, block in ((0, 3), (2, 99)):
            damage(layout.extent_path(filled, extent), block * 512)
        code, out, err = run("verify", filled)
        assert code == 1
        assert one_sentence(err) == "Region failed to verify"
        assert out.splitlines() == [
            "validation failed for extent 0 (file r0/00/000/000): block 3 has an active slot with mismatched hash",
            "validation failed for extent 2 (file r0/00/000/002): block 99 has an active slot with mismatched hash",
        ]

    def test_json(self, run, filled):
        assert json.loads(run("verify", filled, "--json")[1]) == {"directory": "r0", "sound": True, "failures": []}
        damage(layout.extent_path(filled, 1), 0)
        code, out, _ = run("verify", filled, "--json")
        found = json.loads(out)
        assert (code, found["sound"]) == (1, False)
        assert found["failures"][0]["extent"] == 1
        assert found["failures"][0]["blocks"] == [{"first": 0, "last": 0}]

    def test_interrupted_repair_is_mentioned(self, run, filled):
        layout.extent_path(filled, 1).with_name("001.replace").mkdir()
        code, _, err = run("verify", filled)
        assert code == 0
        assert err == "Warning: a repair of extent 1 of r0 was cut off (001.replace): serving it finishes that\n"

    def test_raw(self, run, filled):
        path = layout.extent_path(filled, 0)
        code, out, err = run("verify", "--raw", path)
        assert (code, err) == (0, "")
        assert out == "bs:512 bytes  bc:   100  dirty:false gen:0 flush_number:     1 ext_ver:2 bonus_sync:0 defrag:0\n"
        assert len(run("verify", "--raw", path, "-v")[1].splitlines()) == 101
        damage(path, 7 * 512)
        code, out, err = run("verify", "--raw", path)
        assert code == 1
        assert one_sentence(err) == "verification failed: 1 of 100 blocks in r0/00/000/000 are bad"
        assert out.splitlines()[1].startswith("Error at block      7:  slot B [selected]: Err(SlotHashMismatch)")

    def test_raw_csv(self, run, filled):
        out = run("verify", "--raw", layout.extent_path(filled, 0), "--csv")[1]
        assert len(out.splitlines()) == 102
        assert out.splitlines()[1].startswith("file,block,dirty,status,slot_a_result")
        assert out.splitlines()[2].startswith("r0/00/000/000,0,false,ok,EmptySlotWithNonzeroData,,,HashMatch,0,")

    def test_raw_json(self, run, filled):
        damage(layout.extent_path(filled, 0), 7 * 512)
        code, out, _ = run("verify", "--raw", layout.extent_path(filled, 0), "--json")
        assert code == 1
        assert json.loads(out)["bad_blocks"] == [7]

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (("disk.raw",), 2, "disk.raw is a file: say --raw"),
            (("--raw", "disk.raw"), 1, "disk.raw is no raw extent file"),
            (("--raw", "nothing"), 1, "nothing: no such file or directory"),
            (("--raw", "r0"), 1, "r0: is a directory"),
            (("r0", "--csv"), 2, "go with --raw"),
            (("--raw", "x", "--csv", "--json"), 2, "choose one"),
            (("nothing",), 2, "nothing is no region"),
        ],
    )
    def test_wrong_requests(self, run, filled, arguments, code, sentence):
        got, out, err = run("verify", *arguments)
        assert (got, out) == (code, "")
        assert sentence in one_sentence(err)

    def test_no_permission_to_read(self, run, public):
        layout.extent_path(Path("r0"), 1).chmod(0)
        with as_ordinary_user():
            code, out, _ = run("verify", "r0")
        assert code == 1
        assert out == "validation failed for extent 1 (file r0/00/000/001): Permission denied\n"


class TestDigest:
    def test_replicas_agree(self, run):
        image(noise(50_000))
        for name in ("a", "b"):
            run("create", name, "--import", "disk.raw")
        run("import", "b", "disk.raw")
        first, second = (run("digest", name)[1].split()[0] for name in ("a", "b"))
        assert first == second
        assert len(first) == 64

    def test_extents_and_json(self, run, made):
        found = json.loads(run("digest", made, "--extents", "--json")[1])
        assert len(found["extents"]) == 3
        lines = run("digest", made, "--extents")[1].splitlines()
        assert lines[0] == f"{found['region_digest']}  r0"
        assert lines[3] == f"{found['extents'][2]}  extent 2"
        assert list(json.loads(run("digest", made, "--volume", "--json")[1])) == ["directory", "volume_digest"]

    def test_wrong_requests(self, run, made):
        assert "give one of them" in one_sentence(run("digest", made, "--volume", "--extents")[2])
        run("create", "e", "--size", "1MiB", "--encrypted")
        assert "needs the key" in one_sentence(run("digest", "e", "--volume")[2])


class TestClone:
    @pytest.fixture
    def filled(self, run, made):
        run("import", made, image(noise(300 * 512)))
        return made

    def test_new(self, run, filled):
        code, out, err = run("clone", filled, "copy", "--uuid", UUID.replace("1", "2"))
        assert (code, out, err) == (0, f"Cloned r0 to copy, UUID {UUID.replace('1', '2')}\n", "")
        assert run("digest", "copy")[1].split()[0] == run("digest", filled)[1].split()[0]
        assert run("verify", "copy")[0] == 0

    def test_of_a_snapshot(self, run, filled):
        with closing(Region.open(filled)) as region:
            region.snapshot("monday")
        before = run("digest", filled)[1].split()[0]
        run("import", filled, image(noise(512, seed=2)))
        assert run("clone", filled, "copy", "--snapshot", "monday")[0] == 0
        assert run("digest", "copy")[1].split()[0] == before
        assert snapshot.list_snapshots(Path("copy")) == []

    def test_overwrite(self, run, filled):
        run("create", "r1", "--block-size", "512", "--extent-size", "100", "--extent-count", "3")
        code, out, _ = run("clone", filled, "r1", "--overwrite", "--json")
        assert code == 0
        assert json.loads(out)["uuid"] != UUID
        assert run("dump", filled, "r1")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (("nothing", "copy"), 2, "nothing is no region"),
            (("r0", "copy", "--snapshot", "friday"), 2, "r0 has no snapshot 'friday'; its snapshots are: none"),
            (("r0", "copy", "--snapshot", "../x"), 1, "'../x' cannot name a snapshot"),
            (("r0", "r0"), 2, "r0 exists and is not empty"),
            (("r0", "r0", "--overwrite"), 2, "open read-write elsewhere"),
            (("r0", "other", "--overwrite"), 1, "makes one no copy of the other: extent_count"),
            (("r0", "other", "--overwrite", "--uuid", UUID), 2, "keeps the UUID that it has"),
            (("r0", "copy", "--uuid", UUID), 1, "UUIDs are the same"),
        ],
    )
    def test_wrong_requests_change_nothing(self, run, filled, arguments, code, sentence):
        run("create", "other", "--block-size", "512", "--extent-size", "100", "--extent-count", "2")
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        got, out, err = run("clone", *arguments)
        assert (got, out) == (code, "")
        assert sentence in one_sentence(err)
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    def test_source_that_is_served(self, run, filled):
        with closing(Region.open(filled)):
            code, _, err = run("clone", filled, "copy")
        assert code == 2
        assert "open read-write elsewhere" in one_sentence(err)
        assert not Path("copy").exists()

    def test_damaged_source_leaves_nothing_behind(self, run, filled):
        damage(layout.extent_path(filled, 1), 0)
        code, _, err = run("clone", filled, "copy")
        assert code == 1
        assert "block 0 is not what its context says" in one_sentence(err)
        assert sorted(os.listdir()) == ["disk.raw", "r0"]


@pytest.mark.parametrize("command", ["create", "import", "export", "clone", "info", "dump", "verify", "digest"])
def test_help_teaches_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"crucible-emu region {command} " in out.split("Example")[1]
