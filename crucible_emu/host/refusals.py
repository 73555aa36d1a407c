"""Why the host does not do what it is asked (apis-and-tools.md §6.1, §6.3): one class per row of the contract.

What it is for: what decides raises these; whoever answers over HTTP turns :attr:`Refused.status`, the sentence and
:attr:`Refused.error_code` into the envelope of the real servers.

What it guarantees: a sentence never holds a volume construction request or a key.
"""

from __future__ import annotations

from typing import ClassVar


class Refused(Exception):
    """The answer is ``status`` with the message as sentence."""

    status: ClassVar[int]

    @property
    def error_code(self) -> str | None:
        return None


class BadSpec(Refused):
    """The instance that is asked for cannot be meant."""

    status = 400


class NotPossible(Refused):
    """The disk refuses what it is asked."""

    status = 400

    @property
    def error_code(self) -> str | None:
        # As in the real one, which puts its sentence there.
        return str(self)


class Forbidden(Refused):
    """The state of the instance does not allow it."""

    status = 403


class NoDisk(Refused):
    """The instance has no Crucible backend of that name."""

    status = 404


class NoDiskToChange(NoDisk):
    """The same, where a VCR is to be replaced."""

    @property
    def error_code(self) -> str | None:
        # In faithful mode a 404 has no sentence of its own; clients of the real one read it here (§9, row 8).
        return str(self)


class AlreadyInitialized(Refused):
    """There is an instance, and it is not at its end."""

    status = 409

    @property
    def error_code(self) -> str | None:
        return "AlreadyInitialized"


class Gone(Refused):
    """The instance ended while the request waited."""

    status = 410


class NoInstance(Refused):
    """There is no instance (yet)."""

    status = 424

    @property
    def error_code(self) -> str | None:
        return "NoInstance"


class CouldNotStart(Refused):
    """The instance could not be made for a reason that lies outside of the request."""

    status = 500


class Full(Refused):
    """A bound of this program is reached."""

    status = 503
