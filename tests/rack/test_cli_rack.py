"""The commands of a rack where nothing has to run: what they refuse, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crucible_emu.cli import main as root
from crucible_emu.cli import rack as rack_commands
from crucible_emu.rack.description import describe
from crucible_emu.rack.document import parse
from crucible_emu.rack.state import RackState


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        root.main(["rack", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("Try '")]
    assert len(lines) == 1 and lines[0].startswith("Error: "), err
    return lines[0].removeprefix("Error: ")


def test_refusals(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new, there, broken, text = (tmp_path / name for name in ("new", "there", "broken", "text.toml"))
    for folder, words in ((there, '[[sled]]\nname = "a"\n'), (broken, "[[sled]]\ndisk = 1\n")):
        folder.mkdir()
        (folder / "rack.toml").write_text(words)
    text.write_bytes(b"\xff\xfe")
    for arguments, words in (
        (("up",), "there is no rack here: go into its directory, name it, or set CRUCIBLE_RACK"),
        (("up", new), f"there is no rack in {new}: make one with crucible-emu rack up {new} --sleds 5"),
        (("up", "--sleds", 5), "a new rack needs a directory: crucible-emu rack up DIR --sleds 5"),
        (("up", new, "--pantries", 1), "how many sleds a new rack has is not said: give --sleds"),
        (("up", new, "--sleds", 0), "--sleds is 0: take 1 to 64"),
        (("up", new, "--sleds", 1, "--pantries", 2), "2 pantries do not fit on 1 sleds"),
        (("up", new, "--sleds", 1, "--disk-size", "big"), "'big' is not a size"),
        (("up", new, "--sleds", 1, "--file", text), f"{text} says what the rack is: leave --sleds out"),
        (("up", new, "--file", text), f"{text} is no text"),
        (("up", there, "--rack", new), f"two racks are named, {there} and {new}: name one"),
        (("up", there, "--sleds", 2), f"{there / 'rack.toml'} says otherwise about --sleds"),
        (("up", broken), f"{broken / 'rack.toml'}: sled 'sled0': 'disk' is no setting"),
        (("status", new), "there is no rack in"),
        (("down",), "there is no rack here"),
        (("kill", there, 0), f"the rack in {there} is not running"),
        (("start", "0"), "there is no rack here"),
        (("kill", there, 0, 1), "3 words were given: give a sled, and before it the rack's directory"),
    ):
        assert words in refusal(capsys, *arguments)
    assert not new.exists()


def test_table(tmp_path: Path, capsys: Any) -> None:
    rack = parse('[[sled]]\ndisks = 1\n[[sled]]\nname = "far"\npantry = "http://[fd00::7]:17001"\n')
    found = describe(tmp_path, rack, RackState({"sled0-disk0": 40000}, killed={"sled0"}))
    found["services"][0]["said"] = "a reason"
    rack_commands._print(found, as_json=False)
    assert capsys.readouterr().out == (
        f"The rack in {tmp_path} is not running; dead until somebody starts them: sled0.\n"
        "NAME         KIND    SLED   STATE      URL\n"
        "sled0-disk0  agent   sled0  killed     http://[::1]:40000\n"
        "sled0-host   host    sled0  killed     -\n"
        "far-pantry   pantry  far    elsewhere  http://[fd00::7]:17001\n"
        "sled0-disk0 ended: a reason\n"
    )
    assert len({frozenset(each) for each in found["services"]}) == 1  # the same members, wherever it runs


def test_a_rack_that_is_down_is_down(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "rack.toml").write_text("[[sled]]\n")
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            root.main(["rack", "down", str(tmp_path)])
        assert left.value.code == 0
        assert capsys.readouterr().out == f"The rack in {tmp_path} is down.\n"
