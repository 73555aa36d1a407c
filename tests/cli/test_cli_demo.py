"""``crucible-emu demo``: the proof is computed, and what cannot be shown is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from command_rig import one_sentence, outcome, outcome_here, pattern, refusal

from crucible_emu.cli.demonstration.layers import NOTE
from crucible_emu.cli.demonstration.story import Verdict
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.verify import verify_region
from crucible_emu.region.view import RegionView
from crucible_emu.volume import vcr

MEGABYTE = 1 << 20


def test_the_proof_with_an_image_of_ones_own(tmp_path: Path) -> None:
    """Its name looks like the markup of the console, and its length is no whole number of blocks."""
    image = tmp_path / "my [" / "bold] image.raw"
    image.parent.mkdir()
    with image.open("wb") as file:
        file.write(pattern(3 * MEGABYTE))
        file.seek(8 * MEGABYTE)
        file.write(pattern(2 * MEGABYTE + 123, 2))
    keep = tmp_path / "kept"
    code, out, err = outcome("demo", "--json", "--image", image, "--keep", keep, timeout=120)
    assert code == 0, err
    found = json.loads(out)
    assert found["ok"] is True
    assert found["source_blake3"] == found["read_back_blake3"] == blake3(image.read_bytes()).hexdigest()
    assert f"your image {image}" in err and "Proved:" in err and "Traceback" not in err
    # What is kept proves the same again.
    regions = [RegionView.open(keep / f"region-{number}") for number in (0, 1, 3)]
    digests = [region_digest(region).region for region in regions]
    assert found["region_digests"] == digests
    assert len(set(digests)) == 1
    assert all(not list(verify_region(region)) for region in regions)
    changed = bytearray(image.read_bytes())
    changed[:4096] = (NOTE * 100)[:4096]
    assert found["layered_blake3"] == found["expected_blake3"] == blake3(changed).hexdigest()
    (request,) = vcr.load(keep / "vcr.json").sub_volumes
    definition: RegionDefinition = regions[0].definition
    assert (request.extent_count, request.blocks_per_extent) == (definition.extent_count, definition.blocks_per_extent)
    with Region.open(keep / "region-0") as region:
        buffer = bytearray(4096)
        region.read(0, 1, memoryview(buffer))
        assert buffer == image.read_bytes()[:4096]


GOOD, BEHIND = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("read_back", "digests", "layered", "ok"),
    [
        (GOOD, (GOOD, GOOD, GOOD), GOOD, True),
        (GOOD, (BEHIND, BEHIND, BEHIND), GOOD, True),
        (BEHIND, (GOOD, GOOD, GOOD), GOOD, False),
        (GOOD, (GOOD, BEHIND, GOOD), GOOD, False),
        (GOOD, (GOOD, GOOD, BEHIND), GOOD, False),
        (GOOD, (GOOD, GOOD, GOOD), BEHIND, False),
    ],
)
def test_the_verdict_is_computed(read_back: str, digests: tuple[str, str, str], layered: str, ok: bool) -> None:
    assert Verdict(GOOD, read_back, digests, GOOD, layered).ok is ok


def test_a_failed_proof_is_an_exit_code_and_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from crucible_emu.cli import demo
    from crucible_emu.cli import main as root

    async def nothing_was_healed(*_: Any) -> Verdict:
        return Verdict(GOOD, GOOD, (GOOD, BEHIND, GOOD), GOOD, GOOD)

    monkeypatch.setattr(demo, "tell_story", nothing_was_healed)
    image = tmp_path / "image.raw"
    image.write_bytes(pattern(4096))
    with pytest.raises(SystemExit) as left:
        root.main(["demo", "--json", "--image", str(image)])
    out, err = capsys.readouterr()
    assert left.value.code == 1
    assert json.loads(out)["ok"] is False
    assert "Not proved" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "nothing but zeros"), (bytes(3 * MEGABYTE), "nothing but zeros")],
    ids=["missing", "empty", "zeros"],
)
def test_an_image_that_proves_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    image = tmp_path / "image.raw"
    if content is not None:
        image.write_bytes(content)
    code, sentence = refusal(capsys, "demo", "--json", "--image", image)
    assert code == 2 and words in sentence and str(image) in sentence


def test_an_image_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, sentence = refusal(capsys, "demo", "--image", tmp_path)
    assert code == 2 and str(tmp_path) in sentence


def test_a_folder_that_holds_something_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    code, out, err = outcome_here("demo", "--keep", tmp_path)
    assert (code, out) == (2, "")
    assert "not empty" in one_sentence(err)
    code, out, err = outcome_here("demo", "--keep", tmp_path / "letter")
    assert (code, out) == (2, "")
    assert "letter" in one_sentence(err)
