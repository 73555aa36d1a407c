"""The root of the command line: groups, the version, and how failures look."""

from __future__ import annotations

import subprocess
import sys

import pytest

from crucible_emu import __version__, errors
from crucible_emu.cli import main as root
from crucible_emu.cli import program
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.geometry import GeometryError


@pytest.fixture
def run(capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            root.main(list(arguments))
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call


def test_version(run):
    assert run("--version") == (0, f"crucible-emu {__version__}\n", "")


def test_help_lists_the_groups(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "region" in out
    assert root.GROUPS["region"] in out


def test_no_arguments_show_the_help(run):
    code, out, err = run()
    assert code == 2
    assert "Usage: crucible-emu" in out + err


def test_unknown_group_is_one_sentence(run):
    code, out, err = run("regoin")
    assert (code, out) == (2, "")
    assert err.startswith("Error: No such command 'regoin'.")


def test_help_and_version_import_nothing_heavy():
    program = (
        "import sys; from crucible_emu.cli import main\n"
        "try:\n    main.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print(sorted(set(sys.modules) & {'numpy', 'trio', 'blake3', 'crucible_emu.region'}))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_reader_that_leaves_is_no_error():
    found = subprocess.run(
        [sys.executable, "-c", "from crucible_emu.cli.main import main; main(['region', '--help'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0
    shell = f"{sys.executable} -c 'from crucible_emu.cli.main import main; main()' region --help | true"
    assert subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False).stderr == ""


class TestReport:
    @pytest.mark.parametrize(
        ("error", "code", "sentence"),
        [
            (errors.UsageError("take another"), 2, "take another"),
            (errors.HashMismatch(), 1, errors.HashMismatch.SENTENCE),
            (errors.RemoteError("the peer lies"), 1, "the peer lies"),
            (GeometryError("no such geometry"), 1, "no such geometry"),
            (ServiceError(404, "there is no disk a", "ObjectNotFound", "r1"), 1, "there is no disk a"),
            (ServiceError(500, "Internal Server Error", "Internal", "r1"), 1, "Internal Server Error (request r1)"),
            (ServiceUnreachable("http://[::1]:1", "refused"), 1, "no answer from http://[::1]:1: refused"),
            (FileNotFoundError(2, "No such file or directory", "/a/b"), 1, "/a/b: no such file or directory"),
            (OSError(28, "No space left on device"), 1, "no space left on device"),
            (OSError(18, "Invalid cross-device link", "a", None, "b"), 1, "a -> b: invalid cross-device link"),
            (ExceptionGroup("", [ExceptionGroup("", [errors.UsageError("inside")])]), 2, "inside"),
        ],
    )
    def test_foreseen_errors_are_one_line(self, capsys, error, code, sentence):
        assert program.report(error) == code
        assert capsys.readouterr() == ("", f"Error: {sentence}\n")

    @pytest.mark.parametrize(
        "error", [KeyError("x"), ValueError("x"), ExceptionGroup("", [ValueError("a"), KeyError("b")])]
    )
    def test_unforeseen_errors_keep_their_traceback(self, error):
        with pytest.raises(type(error)):
            program.report(error)

    def test_interrupt_inside_a_group_is_an_interrupt(self, capsys):
        assert program.report(BaseExceptionGroup("", [KeyboardInterrupt()])) == 130
        assert capsys.readouterr() == ("", "")
