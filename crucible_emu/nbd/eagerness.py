"""When a short way is tried that may be in vain.

What it is for: some ways are much shorter where they work, and cost something where they do not. Whoever has such a
choice on every occasion, a thousand times a second, asks here. What it guarantees: a way that never works is tried on
one occasion in :data:`UNASKED_MAX` or so, and one that works again is taken again soon.
"""

from __future__ import annotations

UNASKED_MAX = 256
"""After this many occasions at most it is tried again, however often that was in vain."""


class Eagerness:
    """Whether a short way pays that may be in vain, such as asking the socket again: each time that it is, twice as
    many occasions pass until the next try."""

    __slots__ = ("_skip", "_vain")

    def __init__(self) -> None:
        self._skip = 0
        self._vain = 1

    def willing(self) -> bool:
        """Whether to try on this occasion."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def asked(self, found: bool) -> None:
        """It was tried, and worked or did not."""
        if found:
            self._vain = 1
        else:
            self._vain = min(self._vain * 2, UNASKED_MAX)
            self._skip = self._vain
