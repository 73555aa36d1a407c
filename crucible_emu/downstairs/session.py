"""One connection's negotiation, as a table which the code runs (wire-protocol.md §6.2).

What it is for: from the first HereIAm to the moment when jobs are taken, a connection goes through five states. Every
message that means something in one of them is one :class:`Row` of :data:`TRANSITIONS`: which checks it must pass, in
order, what is answered, what the rest of the Downstairs must do, and the state after it. :meth:`Session.receive` looks
rows up; nothing else changes a state.

What it guarantees: a message that is out of order closes this connection, without an answer; one that has no place in
a negotiation at all is ignored. While a promotion is being carried out (``PROMOTING``) no message is taken, so nobody
can see a region that still belongs to the Upstairs before. That state has no counterpart in the real program, which
does everything in one loop; on the wire the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from crucible_emu.geometry import RegionDefinition
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import VERSION


class State(Enum):
    """Where a connection is."""

    OPEN = "Open"
    CONNECTED = "Connected"
    PROMOTING = "Promoting"
    PROMOTED = "Promoted"
    SENT_REGION_INFO = "SentRegionInfo"
    RUNNING = "Running"
    CLOSED = "Closed"


class Need(Enum):
    """What a row asks of the rest of the Downstairs."""

    PROMOTION = "decide about the takeover, then make the region ready"
    EXTENT_VERSIONS = "answer with what the extents say of themselves"
    COMPLETED_SET = "start with the last flush as the completed set"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message closes the connection, and what is answered before (``None``: nothing)."""

    reason: str
    reply: m.Message | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one message: at most one answer, perhaps a need, perhaps the end of the connection."""

    reply: m.Message | None = None
    need: Need | None = None
    close: str | None = None


@dataclass(frozen=True, slots=True)
class ServedRegion:
    """What a session must know of the region behind it."""

    definition: RegionDefinition
    read_only: bool


class Session:
    """The negotiation of one connection. ``repair_address`` goes out with YesItsMe.

    ``upstairs_id`` and ``session_id`` are those of HereIAm, ``generation`` that of PromoteToActive once it came.
    """

    __slots__ = (
        "connection_id",
        "generation",
        "last_flush",
        "region",
        "repair_address",
        "session_id",
        "state",
        "upstairs_id",
    )

    def __init__(self, connection_id: int, region: ServedRegion, repair_address: m.SocketAddress) -> None:
        self.connection_id = connection_id
        self.region = region
        self.repair_address = repair_address
        self.state = State.OPEN
        self.upstairs_id = self.session_id = UUID(int=0)
        self.generation = 0
        self.last_flush: int | None = None

    def receive(self, message: m.Message) -> Step:
        """Take one message that is neither a job nor a reconciliation step of a running session."""
        if type(message) is m.Ruok:
            return Step(m.Imok())
        row = _ROWS.get((self.state, type(message)))
        if row is None:
            return self._unlisted(message)
        for check in row.checks:
            refusal = check(self, message)
            if refusal is not None:
                self.state = State.CLOSED
                return Step(refusal.reply, close=refusal.reason)
        if row.learn is not None:
            row.learn(self, message)
        self.state = row.after
        return Step(row.reply(self) if row.reply is not None else None, row.need)

    def promoted(self) -> Step:
        """The promotion was carried out. Raises :class:`RuntimeError` outside of PROMOTING."""
        if self.state is not State.PROMOTING:
            raise RuntimeError(f"a connection in state {self.state.value} cannot be promoted")
        self.state = State.PROMOTED
        return Step(m.YouAreNowActive(self.upstairs_id, self.session_id, self.generation))

    def _unlisted(self, message: m.Message) -> Step:
        name = type(message).__name__
        if self.state is State.RUNNING or type(message) in NEGOTIATION_MESSAGES:
            reason = f"{name} has no place in state {self.state.value}"
            self.state = State.CLOSED
            return Step(close=reason)
        return Step()


def _same_version(_session: Session, message: m.HereIAm) -> Refusal | None:
    if VERSION in (message.version, *message.alternate_versions):
        return None
    return Refusal(f"the Upstairs speaks version {message.version}", m.VersionMismatch(VERSION))


def _same_mode(session: Session, message: m.HereIAm) -> Refusal | None:
    own = session.region.read_only
    if message.read_only == own:
        return None
    asked, served = ("read-only", "read-write") if message.read_only else ("read-write", "read-only")
    return Refusal(f"the Upstairs asks for {asked}, this Downstairs is {served}", m.ReadOnlyMismatch(own))


def _same_encryption(session: Session, message: m.HereIAm) -> Refusal | None:
    own = session.region.definition.encrypted
    if message.encrypted == own:
        return None
    asked, served = ("encrypted", "plain") if message.encrypted else ("plain", "encrypted")
    return Refusal(f"the Upstairs is {asked}, this region is {served}", m.EncryptedMismatch(own))


def _same_ids(session: Session, message: m.PromoteToActive) -> Refusal | None:
    if (message.upstairs_id, message.session_id) == (session.upstairs_id, session.session_id):
        return None
    # Also when only the session differs, the expected id is that of the Upstairs (§6.2).
    return Refusal("PromoteToActive carries other ids than HereIAm did", m.UuidMismatch(session.upstairs_id))


def _learn_ids(session: Session, message: m.HereIAm) -> None:
    session.upstairs_id, session.session_id = message.upstairs_id, message.session_id
    session.generation = message.generation


def _learn_generation(session: Session, message: m.PromoteToActive) -> None:
    session.generation = message.generation


def _learn_last_flush(session: Session, message: m.LastFlush) -> None:
    session.last_flush = message.last_flush_number


def _yes_its_me(session: Session) -> m.Message:
    return m.YesItsMe(VERSION, session.repair_address)


def _region_info(session: Session) -> m.Message:
    return m.RegionInfo(session.region.definition)


@dataclass(frozen=True, slots=True)
class Row:
    """In state ``before``, on a message of this type: pass ``checks`` in order, ``learn``, answer ``reply``, have
    ``need`` done, go to ``after``."""

    before: State
    message: type[m.Message]
    after: State
    checks: tuple[Callable[..., Refusal | None], ...] = ()
    learn: Callable[..., None] | None = None
    reply: Callable[[Session], m.Message] | None = None
    need: Need | None = None


TRANSITIONS: tuple[Row, ...] = (
    Row(
        State.OPEN,
        m.HereIAm,
        State.CONNECTED,
        checks=(_same_version, _same_mode, _same_encryption),
        learn=_learn_ids,
        reply=_yes_its_me,
    ),
    Row(
        State.CONNECTED,
        m.PromoteToActive,
        State.PROMOTING,
        checks=(_same_ids,),
        learn=_learn_generation,
        need=Need.PROMOTION,
    ),
    Row(State.PROMOTED, m.RegionInfoPlease, State.SENT_REGION_INFO, reply=_region_info),
    Row(State.SENT_REGION_INFO, m.ExtentVersionsPlease, State.RUNNING, need=Need.EXTENT_VERSIONS),
    Row(State.SENT_REGION_INFO, m.LastFlush, State.RUNNING, learn=_learn_last_flush, need=Need.COMPLETED_SET),
)
"""Every message that moves a connection. A ping is answered in every state and moves nothing; :meth:`Session.promoted`
leads from PROMOTING to PROMOTED; every state may end in CLOSED."""

NEGOTIATION_MESSAGES: frozenset[type[m.Message]] = frozenset(row.message for row in TRANSITIONS)
"""Out of order these close the connection; any other message is ignored until the session runs."""

_ROWS: dict[tuple[State, type[m.Message]], Row] = {(row.before, row.message): row for row in TRANSITIONS}
