"""What the tester of random histories expects of each block."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from crucible_emu.geometry import RegionDefinition
from crucible_emu.sim.upstairs.registers import Op, Outcome, Registers
from crucible_emu.sim.upstairs.world import World

DEFINITION = RegionDefinition(512, 1, 1, UUID(int=1))


class Held:
    """A replica that holds ``value`` durably."""

    def __init__(self, value: int) -> None:
        self.value = value

    def durable(self, _block: int) -> int:
        return self.value


def test_a_loss_is_measured_against_what_the_last_good_flush_made_durable() -> None:
    """The race: all replicas were away once without a loss, a write was flushed, and then they are away again."""
    registers = Registers(World(0, DEFINITION))
    registers.doubt(to_report=True)
    op = Op(registers.next_number(), Outcome.PENDING)
    registers.write(op, 0, [7])
    op.outcome = Outcome.DONE
    replicas: list[Any] = [Held(7), Held(7)]
    registers.flushed(registers.next_number(), registers.epoch, replicas, 2)
    registers.doubt(to_report=True)
    assert not registers.loss_to_report, "nothing was un-flushed"
    registers.flushed(registers.next_number(), registers.epoch, replicas, 2)
