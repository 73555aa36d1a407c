"""One model Downstairs: the process that holds a region, with everything that can befall a process.

What it is for: it accepts connections, promotes one Upstairs at a time by the rules of wire-protocol.md §6.4, serves
copies of closed extents to the others, and can be stalled, killed, cut from power, or answer with errors.

How strict it is: see :mod:`crucible_emu.sim.upstairs.connection`. What the model does to the Upstairs is *trouble*, and
its moment is kept in ``trouble``: an error that reaches the guest must have such a cause.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from crucible_emu.sim.upstairs.connection import Connection
from crucible_emu.sim.upstairs.storage import Storage
from crucible_emu.sim.upstairs.world import World
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import RECEIVE_SILENCE_S_MAX

LATENCIES_MS = (0, 0, 0, 1, 1, 2, 5)
SLOW_LATENCIES_MS = (1, 10, 40, 300)


class ModelDownstairs:
    """The process and its region; ``index`` names it for ever, in whichever place of a set it stands."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.definition = replace(world.definition, uuid=UUID(int=0xD000 + index))
        self.target = f"10.0.0.{index}:9000"
        self.repair_address = m.SocketAddress(f"10.0.0.{index}", 13000)
        self.storage = Storage(self.definition)
        self.backup: Storage | None = None
        self.up = True
        self.stalled = False
        self.refusing = False
        self.error_rate = 0.0
        self.slow = False
        self.trouble = 0
        self.faults = 0
        """As ``trouble``, but for what the model itself did, not what the Upstairs did to it."""
        self.active: Connection | None = None
        self.promoted_generation = 0
        """The real one forgets it with the connection: then an Upstairs that was taken over while it had no connection
        gets in again when the connections of its successor are lost, and writes beside it."""
        self.connections: list[Connection] = []
        self.closed_extents: set[int] = set()
        self.flushes_done: dict[UUID, set[int]] = {}
        """For each session the ids of flushes that were acknowledged here: what LastFlush may name."""
        self.stalls = 0
        self._inbox: list[tuple[Connection, m.Message | None]] = []
        """What a stalled process finds when it goes on; no message: the end of the connection."""

    def __str__(self) -> str:
        return f"D{self.index}"

    def in_trouble(self, *, by_upstairs: bool = False) -> None:
        """Something befell this Downstairs or its connection."""
        self.trouble = self.world.next_event()
        if not by_upstairs:
            self.faults = self.trouble

    def failure_arrives(self) -> None:
        """The Upstairs learns of a failure. Whatever it began since that happened is disturbed by it as well."""
        self.faults = self.world.next_event()

    def latency_s(self) -> float:
        return self.world.rng.choice(SLOW_LATENCIES_MS if self.slow else LATENCIES_MS) / 1000

    # -- connections --------------------------------------------------------------------------------------------------

    def accept(self, connection: Connection) -> None:
        self.connections.append(connection)

    def arrived(self, connection: Connection, message: m.Message) -> None:
        """A message came to the socket; a stalled process reads it later."""
        if self.stalled:
            self._inbox.append((connection, message))
        elif connection.open:
            connection.handle(message)

    def gone(self, connection: Connection) -> None:
        """The end of a connection was noticed here: what it had pending is dropped."""
        if self.stalled:
            self._inbox.append((connection, None))
        elif connection.open:
            self.world.say(f"{self}: connection {connection.number} is gone")
            connection.open = False
            self.connections.remove(connection)
            if self.active is connection:
                self.active = None

    def promote(self, connection: Connection) -> bool:
        """Whether ``connection`` becomes the one active Upstairs (§6.4)."""
        if connection.generation < self.promoted_generation:
            return False
        old = self.active
        if old is not None and old is not connection:
            same = (old.upstairs_id, old.session_id) == (connection.upstairs_id, connection.session_id)
            if old.generation > connection.generation or (old.generation == connection.generation and not same):
                return False
            old.say_goodbye(connection)
        self.active = connection
        self.promoted_generation = connection.generation
        self.closed_extents.clear()
        return True

    # -- trouble ------------------------------------------------------------------------------------------------------

    def stall(self, duration_s: float) -> None:
        if self.up and not self.stalled:
            self.in_trouble()
            self.stalled = True
            self.stalls += 1
            for connection in list(self.connections):
                connection.wire.watch_silence(RECEIVE_SILENCE_S_MAX - self.world.rng.random() * 5)
            self.world.after(duration_s, self.resume, self.stalls)

    def resume(self, stall: int) -> None:
        if self.stalled and stall == self.stalls:
            self.world.say(f"{self} resumes")
            self.in_trouble()
            self.stalled = False
            inbox, self._inbox = self._inbox, []
            for connection, message in inbox:
                if message is None:
                    self.gone(connection)
                elif connection.open:
                    connection.handle(message)
            for connection in list(self.connections):
                connection.work_later()

    def crash(self, *, lose_power: bool) -> None:
        """The process ends; with ``lose_power`` what was not flushed may be lost, block by block."""
        if not self.up:
            return
        self.in_trouble()
        self.up = self.stalled = False
        self.stalls += 1
        self._inbox.clear()
        for connection in list(self.connections):
            if lose_power:
                connection.flush_in_part()
            connection.wire.far_end_died()
            self.gone(connection)
        self.closed_extents.clear()
        if lose_power:
            self.storage.lose_power(self.world.rng)

    def restart(self) -> None:
        if not self.up:
            self.world.say(f"{self} starts")
            self.in_trouble()
            self.up = True

    def heal(self) -> None:
        """All that a person can put right from outside."""
        self.refusing = self.slow = False
        self.error_rate = 0.0
        self.restart()
        self.resume(self.stalls)

    def fails_now(self) -> bool:
        """Whether the job that is about to run shall fail."""
        if self.error_rate and self.world.rng.random() < self.error_rate:
            self.in_trouble()
            self.world.count("errors")
            return True
        return False

    # -- copies for the other replicas --------------------------------------------------------------------------------

    def fetch(self, extent_id: int, address: m.SocketAddress) -> str | None:
        """Replace a closed extent by the one at ``address``; what went wrong, or ``None``."""
        for source in self.world.downstairs:
            if source.repair_address == address:
                if not source.up or source.stalled or source.refusing:
                    return f"{source} does not answer"
                if source is self:
                    self.world.violation(f"{self} is told to repair extent {extent_id} from itself")
                if extent_id not in source.closed_extents:
                    if self._same_session(source):
                        self.world.violation(f"{self} repairs extent {extent_id} from {source}, where it is not closed")
                    return f"extent {extent_id} of {source} is not closed"
                self.storage.copy_extent(extent_id, source.storage)
                self.world.count("repaired extents")
                return None
        self.world.violation(f"{self} is told to repair extent {extent_id} from {address}, where nobody is")

    def _same_session(self, other: ModelDownstairs) -> bool:
        """Whether one Upstairs is connected to both, so that what it asks of one it has asked of the other."""
        mine, theirs = self.active, other.active
        if mine is None or theirs is None or not (mine.wire.near_open and theirs.wire.near_open):
            return False
        return mine.session_id == theirs.session_id
