"""The command ``nexus`` before the control plane has parts: honest, and of no use."""

import pytest

from crucible_emu import __version__
from nexus.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nexus {__version__}\n"


def test_help_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "holds the data plane only" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["disk", "create"], ["--version", "now"]])
def test_anything_else_is_refused_in_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert " ".join(arguments) in heard.err
    assert heard.err.count("\n") == 1
    assert heard.err.endswith("this version knows --help and --version only.\n")
