"""One connection at a model Downstairs: negotiation, reconciliation, and the order of messages.

What it guarantees: it answers as the specification says (wire-protocol.md §6, §8), and any message that an Upstairs
must not send ends the history: one out of order, an id used twice, a flush number that does not rise, a job before the
negotiation is done, a replay that skips, a step of reconciliation with jobs under way.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from crucible_emu import errors
from crucible_emu.sim.upstairs.execution import Execution
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import VERSION

if TYPE_CHECKING:
    from crucible_emu.sim.upstairs.downstairs import ModelDownstairs
    from crucible_emu.sim.upstairs.network import Wire

RECONCILIATION = (m.ExtentFlush, m.ExtentClose, m.ExtentRepair, m.ExtentReopen)
NOBODY = UUID(int=0)


class Stage(Enum):
    OPEN = "HereIAm"
    CONNECTED = "PromoteToActive"
    PROMOTED = "RegionInfoPlease"
    SENT_REGION_INFO = "ExtentVersionsPlease or LastFlush"
    RUNNING = "jobs"


class Connection(Execution):
    """The server's end. ``wire`` carries what it answers."""

    def __init__(self, downstairs: ModelDownstairs, wire: Wire, number: int) -> None:
        super().__init__(downstairs, wire)
        self.number = number
        self.stage = Stage.OPEN
        self.upstairs_id = self.session_id = NOBODY
        self.generation = 0
        self._repair_id = -1

    def handle(self, message: m.Message) -> None:
        """Take one message."""
        if isinstance(message, m.JobRequest):
            self._expect(Stage.RUNNING, message)
            if (message.upstairs_id, message.session_id) != (self.upstairs_id, self.session_id):
                self.violation(f"job {message.job_id} carries ids that were not negotiated")
            self.take_job(message)
        elif isinstance(message, m.Ruok):
            self.reply(m.Imok())
        elif isinstance(message, RECONCILIATION):
            self._expect(Stage.RUNNING, message)
            self._reconcile(message)
        else:
            self._negotiate(message)

    def violation(self, text: str) -> None:
        self.downstairs.world.violation(f"{self.downstairs}, connection {self.number}: {text}")

    def _expect(self, stage: Stage, message: m.Message) -> None:
        if self.stage is not stage:
            self.violation(f"got {type(message).__name__} where it expects {self.stage.value}")

    def _negotiate(self, message: m.Message) -> None:
        downstairs = self.downstairs
        match message:
            case m.HereIAm():
                self._expect(Stage.OPEN, message)
                if message.version != VERSION or message.read_only or message.encrypted:
                    self.violation(f"got {message}")
                self.upstairs_id, self.session_id = message.upstairs_id, message.session_id
                self.stage = Stage.CONNECTED
                self.reply(m.YesItsMe(VERSION, downstairs.repair_address))
            case m.PromoteToActive():
                self._expect(Stage.CONNECTED, message)
                if (message.upstairs_id, message.session_id) != (self.upstairs_id, self.session_id):
                    self.violation("is promoted with other ids than it was introduced with")
                self.generation = message.generation
                if not downstairs.promote(self):
                    self.wire.close_far_end()
                    return
                self.stage = Stage.PROMOTED
                self.reply(m.YouAreNowActive(self.upstairs_id, self.session_id, self.generation))
            case m.RegionInfoPlease():
                self._expect(Stage.PROMOTED, message)
                self.stage = Stage.SENT_REGION_INFO
                self.reply(m.RegionInfo(downstairs.definition))
            case m.ExtentVersionsPlease():
                self._expect(Stage.SENT_REGION_INFO, message)
                self.stage = Stage.RUNNING
                storage = downstairs.storage
                self.reply(
                    m.ExtentVersions(
                        np.array(storage.gen, np.uint64),
                        np.array(storage.flush, np.uint64),
                        np.array(storage.dirty, np.bool_),
                    )
                )
            case m.LastFlush():
                self._expect(Stage.SENT_REGION_INFO, message)
                self.stage = Stage.RUNNING
                last = message.last_flush_number
                done = downstairs.flushes_done.get(self.session_id, set())
                if last is not None and last not in done:
                    self.violation(f"is told that its last flush was job {last}, which it never acknowledged")
                downstairs.world.count("replays")
                self.begin_replay(last)
            case _:
                self.violation(f"got {type(message).__name__}, which an Upstairs does not send")

    def say_goodbye(self, winner: Connection) -> None:
        """Another Upstairs takes over: say so, drop everything, close."""
        self.reply(m.YouAreNoLongerActive(winner.upstairs_id, winner.session_id, winner.generation))
        self.wire.close_far_end()

    # -- reconciliation (§8) ------------------------------------------------------------------------------------------

    def _reconcile(self, message: m.Message) -> None:
        assert isinstance(message, RECONCILIATION)
        downstairs, extent_id = self.downstairs, message.extent_id
        if self.received:
            self.violation(f"got {type(message).__name__} after jobs")
        if not 0 <= extent_id < downstairs.definition.extent_count:
            self.violation(f"got {type(message).__name__} of extent {extent_id}, which does not exist")
        if message.repair_id <= self._repair_id:
            self.violation(f"got repair step {message.repair_id} after {self._repair_id}")
        self._repair_id = message.repair_id
        closed = extent_id in downstairs.closed_extents
        if closed is not isinstance(message, m.ExtentRepair | m.ExtentReopen):
            self.violation(f"got {type(message).__name__} of extent {extent_id} while it is {_how(closed)}")
        problem = "the disk fails" if downstairs.fails_now() else self._reconcile_extent(message)
        if problem is None:
            self.reply(m.RepairAckId(message.repair_id))
        else:
            downstairs.in_trouble()
            self.reply(m.ExtentError(message.repair_id, extent_id, errors.RepairRequestError(problem)))

    def _reconcile_extent(self, message: m.Message) -> str | None:
        downstairs = self.downstairs
        match message:
            case m.ExtentFlush():
                self.stamp(message.extent_id, message.flush_number, message.gen_number)
            case m.ExtentClose():
                downstairs.closed_extents.add(message.extent_id)
            case m.ExtentReopen():
                downstairs.closed_extents.discard(message.extent_id)
            case m.ExtentRepair():
                return downstairs.fetch(message.extent_id, message.source_repair_address)
        return None


def _how(closed: bool) -> str:
    return "closed" if closed else "open"
