"""Which HTTP status says what went wrong (apis-and-tools.md §2.4).

What it is for: the pantry fails in two vocabularies: the errors of the disk (:data:`STATUS_OF_ERROR`) and situations
of its own (:data:`STATUS_OF_SITUATION`). Both tables are literal; a control plane decides by the status whether to ask
again (503), to give up (400, 404, 500), or that somebody else has the disk now (410).
"""

from __future__ import annotations

from enum import Enum

from crucible_emu import errors

STATUS_OF_ERROR: dict[type[errors.CrucibleError], int] = {
    errors.BlockSizeMismatch: 400,
    errors.DataLenUnaligned: 400,
    errors.InvalidNumberOfBlocks: 400,
    errors.ModifyingReadOnlyRegion: 400,
    errors.OffsetInvalid: 400,
    errors.OffsetUnaligned: 400,
    errors.RegionIncompatible: 400,
    errors.ReplaceRequestInvalid: 400,
    errors.Unsupported: 400,
    errors.IoError: 503,
    errors.SnapshotFailed: 503,
    errors.UpstairsInactive: 503,
}
"""All other errors of the disk are 500."""


class Situation(Enum):
    """What the pantry itself refuses for."""

    UNKNOWN_VOLUME = "no volume of that id is attached"
    UNKNOWN_JOB = "there is no job of that id"
    TAKEN = "the volume was active here, and is not any more"
    CONFLICT = "the id is in use for something else"
    BAD_INPUT = "what is asked for cannot be"
    LEAVING = "the volume is being detached"
    FULL = "a limit of the pantry is reached"
    NOT_BUILT = "the volume could not be put together"
    NOT_ATTACHED = "a foreground attach failed, for whatever reason"
    JOB_DIED = "the job ended without a result"


STATUS_OF_SITUATION: dict[Situation, tuple[int, int]] = {
    Situation.UNKNOWN_VOLUME: (404, 404),
    Situation.UNKNOWN_JOB: (404, 404),
    Situation.TAKEN: (410, 410),
    Situation.CONFLICT: (400, 400),
    Situation.BAD_INPUT: (400, 400),
    Situation.LEAVING: (503, 503),
    Situation.FULL: (503, 503),
    Situation.NOT_BUILT: (500, 400),
    Situation.NOT_ATTACHED: (500, 409),
    Situation.JOB_DIED: (500, 500),
}
"""Status of a faithful pantry, and otherwise: the real one blames itself for a volume that cannot be."""


class Refused(Exception):
    """The pantry does not do what was asked; the message is a sentence for a person and holds no secret."""

    def __init__(self, situation: Situation, message: str) -> None:
        super().__init__(message)
        self.situation = situation


def status_of(error: errors.CrucibleError | Refused, *, faithful: bool) -> int:
    """The HTTP status for ``error``."""
    if isinstance(error, Refused):
        really, otherwise = STATUS_OF_SITUATION[error.situation]
        return really if faithful else otherwise
    return STATUS_OF_ERROR.get(type(error), 500)
