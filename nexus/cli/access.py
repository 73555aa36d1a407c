"""Where the Nexus is that a command speaks with, and as whom.

What it is for: inside the directory of a rack that ``nexus rack up`` has made, or below it, commands need no word on
that; elsewhere ``--rack DIR`` or ``NEXUS_RACK`` names one. A Nexus without such a directory is named by
:data:`VARIABLES`.

What it guarantees: a token is read from a file and nowhere else, so that none is in a command line or an environment,
where others can see it. A file that others may read is refused (*safety*).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.service.exposure import read_token

DIRECTORY, FILE = "nexus", "access.json"
"""Where in a rack's directory all of this is."""
OPERATOR_TOKEN, TENANT_TOKEN = "operator.token", "tenant.token"
RACK_VARIABLE = "NEXUS_RACK"
URL_VARIABLE, OPERATOR_URL_VARIABLE = "NEXUS_URL", "NEXUS_OPERATOR_URL"
TOKEN_VARIABLE, OPERATOR_TOKEN_VARIABLE = "NEXUS_TOKEN_FILE", "NEXUS_OPERATOR_TOKEN_FILE"
PROJECT_VARIABLE, AUTHORITIES_VARIABLE = "NEXUS_PROJECT", "NEXUS_CA_FILE"
VARIABLES = (URL_VARIABLE, OPERATOR_URL_VARIABLE, TOKEN_VARIABLE, OPERATOR_TOKEN_VARIABLE, AUTHORITIES_VARIABLE)
SIZE_STEP_BYTES = 1 << 30
"""Disks of the real Nexus are whole gibibytes."""
READABLE_BY_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Access:
    """``external`` and ``operator``: the URLs of the Nexus, of several each that of the same one. Token files may be
    absent where a Nexus asks for none."""

    external: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    project: str | None = None
    token_file: Path | None = None
    operator_token_file: Path | None = None
    authorities: Path | None = None
    size_step_bytes: int = SIZE_STEP_BYTES

    def token(self) -> str | None:
        """That of a user."""
        return private_token(self.token_file)

    def operator_token(self) -> str | None:
        """That of an operator."""
        return private_token(self.operator_token_file)


def private_token(path: Path | None) -> str | None:
    """The token in a file that only its owner may read. Raises :class:`UsageError`."""
    if path is not None and path.exists() and path.stat().st_mode & READABLE_BY_OTHERS:
        raise UsageError(f"others may read the token in {path}: take that from them with chmod 600 {path}")
    return read_token(path)


def found_access(given: Path | None, start: Path, environment: Mapping[str, str]) -> Access:
    """That of the rack ``given``, or what the environment names, or of the rack around ``start``.

    Raises :class:`UsageError` where there is none.
    """
    if given is None and environment.get(URL_VARIABLE):
        return _of_environment(environment)
    return of_rack(find_rack(given, start, environment.get(RACK_VARIABLE)))


def find_rack(given: Path | None, start: Path, named: str | None) -> Path:
    """The directory of a rack with a Nexus. Raises :class:`UsageError` where there is none."""
    wanted = given if given is not None else Path(named) if named else None
    if wanted is not None:
        if not (wanted / DIRECTORY / FILE).is_file():
            raise UsageError(f"there is no rack with a Nexus in {wanted}: make one with nexus rack up {wanted}")
        return wanted.absolute()
    for directory in (start.absolute(), *start.absolute().parents):
        if (directory / DIRECTORY / FILE).is_file():
            return directory
    raise UsageError(
        f"there is no Nexus here: go into its rack's directory, give --rack, or set {RACK_VARIABLE} or {URL_VARIABLE}"
    )


def of_rack(root: Path) -> Access:
    """What ``nexus rack up`` has left in ``root``. Raises :class:`UsageError`."""
    directory = root / DIRECTORY
    try:
        document = json.loads((directory / FILE).read_text())
        return Access(
            tuple(map(str, document["external"])),
            tuple(map(str, document["operator"])),
            str(document["project"]),
            directory / TENANT_TOKEN,
            directory / OPERATOR_TOKEN,
            size_step_bytes=int(document["size_step_bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{directory / FILE} cannot be read ({type(error).__name__}): nexus rack up {root} writes it anew"
        ) from None


def as_json(access: Access) -> str:
    """What :func:`of_rack` reads; without a word of the tokens."""
    kept = ("external", "operator", "project", "size_step_bytes")
    return json.dumps({name: value for name, value in asdict(access).items() if name in kept}, indent=2) + "\n"


def _of_environment(environment: Mapping[str, str]) -> Access:
    def path(name: str) -> Path | None:
        value = environment.get(name)
        return Path(value) if value else None

    operator = environment.get(OPERATOR_URL_VARIABLE)
    return Access(
        (environment[URL_VARIABLE],),
        (operator,) if operator else (),
        environment.get(PROJECT_VARIABLE) or None,
        path(TOKEN_VARIABLE),
        path(OPERATOR_TOKEN_VARIABLE),
        path(AUTHORITIES_VARIABLE),
    )


def here(rack: Path | None) -> Access:
    """For a command that runs here and now. Raises :class:`UsageError`."""
    return found_access(rack, Path.cwd(), os.environ)
