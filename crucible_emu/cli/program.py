"""What the programs of this distribution have in common: groups that are imported when they are called, and how a
failure looks.

What it guarantees: a group's module is imported only when one of its commands runs, so that ``--help`` and
``--version`` answer at once although some groups need numpy and Trio. An error that a person can do something about
leaves one line on standard error that starts with ``Error: `` and an exit code of 1, or 2 where the command line itself
is wrong; a traceback appears only for what nobody foresaw, where it is what the report of a defect needs.

A group is a module of the program's package with a Typer app named ``app``, and one row in the program's table.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from crucible_emu import __version__, errors
from crucible_emu.client.failures import ServiceError, ServiceUnreachable

COMPLETION_OPTIONS = ("install_completion", "show_completion")
USAGE_EXIT, FAILURE_EXIT, INTERRUPT_EXIT = 2, 1, 130
SERVER_ERROR = 500

# Typer carries its own copy of Click since 0.26; the class is reached through what both generations export.
CLICK_ERROR: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
FORESEEN = (
    CLICK_ERROR,
    errors.UsageError,
    errors.CrucibleError,
    errors.RemoteError,
    ServiceError,
    ServiceUnreachable,
    OSError,
    ValueError,  # for the GeometryError among them, whose module is not imported before it is needed
    BaseExceptionGroup,
)


class LazyGroups(TyperGroup):
    """The root: shows a placeholder with its line for every group, imports a group's module when it is called.

    A program derives from it and says its ``PACKAGE`` and ``GROUPS``; what is not installed is not listed.
    """

    PACKAGE: str
    GROUPS: Mapping[str, str]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in self.GROUPS.items():
            if importlib.util.find_spec(self._module(name)) is not None:
                self.add_command(TyperGroup(name=name, help=line), name)

    def _module(self, name: str) -> str:
        return f"{self.PACKAGE}.{name.replace('-', '_')}"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or name is None:
            return name, placeholder, rest
        command = typer.main.get_command(importlib.import_module(self._module(name)).app)
        command.name = name
        # Completion is installed for the whole program, not for each group.
        command.params = [each for each in command.params if each.name not in COMPLETION_OPTIONS]
        for each in (command, *getattr(command, "commands", {}).values()):
            each.help = _reflowed(each.help)
        return name, command, rest


def _reflowed(help_text: str | None) -> str | None:
    """The text with the lines of each paragraph joined, so that they are broken to the width of the terminal."""
    if help_text is None:
        return None
    paragraphs = inspect.cleandoc(help_text).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else part.replace("\n", " ") for part in paragraphs)


def show_version(program: str, wanted: bool) -> None:
    """What ``--version`` does."""
    if wanted:
        typer.echo(f"{program} {__version__}")
        raise typer.Exit()


def run(app: typer.Typer, program: str, arguments: list[str] | None) -> None:
    """Run the command line and leave with its exit code."""
    command = typer.main.get_command(app)
    try:
        outcome = command.main(args=arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        code = outcome if isinstance(outcome, int) else 0
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing is wrong, and nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILURE_EXIT
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPT_EXIT
    except FORESEEN as error:
        code = report(error)
    sys.exit(code)


def report(error: BaseException) -> int:
    """Say on standard error what went wrong; the exit code that goes with it. Raises what nobody foresaw again."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPT_EXIT
    if isinstance(error, CLICK_ERROR):
        _explain_usage(error)
        return USAGE_EXIT
    sentence = sentence_for(error)
    if sentence is None:
        raise error
    print(f"Error: {sentence}", file=sys.stderr)
    return USAGE_EXIT if isinstance(error, errors.UsageError) else FAILURE_EXIT


def _explain_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help page stands there already
        return
    print(f"Error: {error.format_message()}", file=sys.stderr)
    if error.ctx is not None:
        print(f"Try '{error.ctx.command_path} --help'.", file=sys.stderr)


def sentence_for(error: BaseException) -> str | None:
    """The one sentence for an error that somebody foresaw, else ``None``."""
    from crucible_emu.geometry import GeometryError  # here, because numpy stands behind it

    if isinstance(error, ServiceError):
        # What a service does not tell is in its log, under this id.
        request = f" (request {error.request_id})" if error.status == SERVER_ERROR and error.request_id else ""
        return f"{' '.join(error.message.split())}{request}"
    said = (errors.UsageError, errors.CrucibleError, errors.RemoteError, ServiceUnreachable, GeometryError)
    if isinstance(error, said):
        return str(error)
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(named)}: {reason}" if named else reason
    return None
