"""What comes of a case, in words that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blake3 import blake3

from nexus.explore.cases import Case


@dataclass(frozen=True, slots=True)
class Result:
    """``course``: digest of the moments that the sagas came by, and of the state at rest. ``fired``: all interferences
    of the case happened."""

    case: str
    violations: tuple[str, ...]
    story: tuple[str, ...]
    course: str
    fired: bool

    @property
    def trace(self) -> str:
        """BLAKE3 of all that happened."""
        lines = [self.case, *self.story, *self.violations, self.course]
        return blake3("\n".join(lines).encode()).hexdigest()

    def never_came(self, case: Case) -> Result:
        """The same course, of a case with more interferences, for which the moment never came."""
        return replace(self, case=str(case), fired=False)

    def with_nothing_more(self, case: Case, place: int, lines: tuple[str, ...]) -> Result:
        """The same course, of a case in which something more was tried and changed nothing: ``lines`` of the story,
        at ``place``."""
        return replace(self, case=str(case), story=(*self.story[:place], *lines, *self.story[place:]))
