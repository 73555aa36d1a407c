"""What comes of a case, in words that travel between processes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from blake3 import blake3

from nexus.explore.cases import Case

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ADDRESS = re.compile(r"\[[0-9a-f:]+\]:\d+")


def kind_of(violation: str) -> str:
    """A violation without what differs from run to run."""
    return _ADDRESS.sub("ADDRESS", _ID.sub("ID", violation))


@dataclass(frozen=True, slots=True)
class Result:
    """``course``: digest of the moments that the sagas came by, and of the state that they ended in. ``fired``: all
    interferences of the case happened. ``afterwards``: the place in the story of what came after that state; it may be
    told in the names of another run that came to the same state, and so is no part of the trace."""

    case: str
    violations: tuple[str, ...]
    story: tuple[str, ...]
    course: str
    fired: bool
    afterwards: int = 0

    @property
    def trace(self) -> str:
        """BLAKE3 of all that happened."""
        kinds = map(kind_of, self.violations)
        lines = [self.case, *self.story[: self.afterwards], *kinds, self.course]
        return blake3("\n".join(lines).encode()).hexdigest()

    def with_nothing_more(self, case: Case, place: int, lines: tuple[str, ...]) -> Result:
        """The same course, of a case in which something more was tried and changed nothing: ``lines`` of the story,
        at ``place``."""
        story = (*self.story[:place], *lines, *self.story[place:])
        return replace(self, case=str(case), story=story, afterwards=self.afterwards + len(lines))
