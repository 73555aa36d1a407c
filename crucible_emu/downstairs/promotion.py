"""Who may be active: the takeover rules of a Downstairs (wire-protocol.md §6.4).

What it guarantees: a read-write region has at most one active connection, and the one with the higher generation wins.
A read-only region takes any number, one per Upstairs id. A record belongs to a *connection*, never to an Upstairs id:
when a connection ends, only its own record goes. The real program erases by Upstairs id; there a second client with
the same id and a lower generation is refused once and accepted ten seconds later, while the first, still running, is
not told. That is two writers on one disk, hence not imitated.

The Downstairs does not compare generations with those in its extents; only the Upstairs does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Claim:
    """What a connection asks for with PromoteToActive."""

    connection_id: int
    upstairs_id: UUID
    session_id: UUID
    generation: int

    def same_session(self, other: Claim) -> bool:
        return (self.upstairs_id, self.session_id) == (other.upstairs_id, other.session_id)


class Rule(Enum):
    """Every situation that a claim can meet."""

    NOBODY_ACTIVE = "nobody is active"
    HIGHER_GENERATION = "the active connection has a lower generation"
    SAME_SESSION = "equal generation, and the same process comes back before its old connection was noticed dead"
    EQUAL_GENERATION = "equal generation of somebody else"
    LOWER_GENERATION = "the active connection has a higher generation"
    READ_ONLY_NEW = "read-only, no connection of this Upstairs"
    READ_ONLY_AGAIN = "read-only, another connection of this Upstairs"


ACCEPTED: dict[Rule, bool] = {
    Rule.NOBODY_ACTIVE: True,
    Rule.HIGHER_GENERATION: True,
    Rule.SAME_SESSION: True,
    Rule.EQUAL_GENERATION: False,
    Rule.LOWER_GENERATION: False,
    Rule.READ_ONLY_NEW: True,
    Rule.READ_ONLY_AGAIN: True,
}
"""Whether the claim is granted. Where it is, the connection that it met is evicted; where not, it is closed unheard."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``accepted``; by which ``rule``; whom it ``evicts`` (never the claimant)."""

    accepted: bool
    rule: Rule
    evicts: int | None = None


class ActiveConnections:
    """The connections that are active now."""

    def __init__(self, read_only: bool) -> None:
        self.read_only = read_only
        self._claims: dict[int, Claim] = {}
        self._highest: Claim | None = None

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self._claims

    @property
    def writer(self) -> Claim | None:
        """Who is active on a read-write region."""
        return None if self.read_only else next(iter(self._claims.values()), None)

    def promote(self, claim: Claim) -> Verdict:
        """Decide about ``claim`` and, if it is granted, put it in the place of whom it evicts."""
        rule, met = self._situation(claim)
        if not ACCEPTED[rule]:
            return Verdict(False, rule)
        evicts = met.connection_id if met is not None else None
        if evicts is not None:
            del self._claims[evicts]
        self._claims[claim.connection_id] = claim
        if self._highest is None or claim.generation >= self._highest.generation:
            self._highest = claim
        return Verdict(True, rule, evicts)

    def may_replay(self, generation: int) -> bool:
        """Whether a session of ``generation`` may go on where an earlier connection of it ended.

        *Safety*: not when one with a higher generation was active meanwhile, even if that has left: the replay would
        write old data over its own. The real program forgets who was active when a connection ends, and lets it.
        """
        return self.read_only or self._highest is None or generation >= self._highest.generation

    def closed(self, connection_id: int) -> None:
        """A connection ended; its own record goes, and no other."""
        self._claims.pop(connection_id, None)

    def _situation(self, claim: Claim) -> tuple[Rule, Claim | None]:
        if self.read_only:
            for other in self._claims.values():
                if other.upstairs_id == claim.upstairs_id:
                    return Rule.READ_ONLY_AGAIN, other
            return Rule.READ_ONLY_NEW, None
        if not self._claims:
            return Rule.NOBODY_ACTIVE, None
        (active,) = self._claims.values()  # *safety*: never two, else this raises
        if claim.generation < active.generation:
            return Rule.LOWER_GENERATION, active
        if claim.generation > active.generation:
            return Rule.HIGHER_GENERATION, active
        return (Rule.SAME_SESSION if claim.same_session(active) else Rule.EQUAL_GENERATION), active
