"""The ``api-version`` header (apis-and-tools.md §0.3).

What it is for: a client says which version of the API it was made for, and gets the answers of that version. What it
guarantees: a version newer than the newest, or one that cannot be read, is refused; a missing one is refused or taken
for the newest, as the service's policy says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from crucible_emu.service.answers import Refusal

HEADER = "api-version"
Version = tuple[int, int, int]

_NUMBER = r"(0|[1-9][0-9]{0,15})"
_SEMVER = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")


def parse(text: str) -> Version:
    """``1.0.0``; what may follow a hyphen or plus is let go. Raises :class:`ValueError`."""
    found = _SEMVER.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no version: write three numbers, as in 1.0.0")
    major, minor, patch = (int(number) for number in found.groups())
    return major, minor, patch


@dataclass(frozen=True, slots=True)
class Versions:
    """What a service speaks: ``supported`` in any order; ``missing``: what a request without the header gets."""

    supported: tuple[str, ...]
    missing: Literal["refused", "newest"] = "refused"

    @property
    def newest(self) -> Version:
        return max(parse(text) for text in self.supported)

    def negotiate(self, header: str | None, *, lenient: bool = False) -> Version:
        """The version to answer in. ``lenient``: a missing header is taken for the newest, whatever the policy.
        Raises :class:`Refusal` (400)."""
        if header is None:
            if lenient or self.missing == "newest":
                return self.newest
            newest = ".".join(map(str, self.newest))
            raise Refusal(400, f'missing expected header "{HEADER}": send {HEADER}: {newest}')
        try:
            wanted = parse(header.strip())
        except ValueError as error:
            raise Refusal(400, f'bad value for header "{HEADER}": {error}') from None
        if wanted > self.newest:
            newest = ".".join(map(str, self.newest))
            raise Refusal(400, f"this service does not speak version {header.strip()}: the newest is {newest}")
        return wanted
