"""How a run stands at a moment: to see whether an operation has changed anything, and if not, to take it for undone.

Many operations come at a moment at which they are refused or find nothing to do. What follows is then what would have
followed anyway, but for ids that were drawn and not used. Those are put back, so that it is the same to the last byte,
and need not be run again (*optimisation*).

What it guarantees: *nothing has changed* is said only if no row was written, no time went by, and nothing is different
in the memory of sleds, pantries, hosts, users, tasks and processes. What is missed costs a run and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import trio

from crucible_emu.sim.trio_seed import scheduling_state, set_scheduling_state
from nexus.explore.fabric import Sled
from nexus.explore.processes import Process, Processes
from nexus.explore.rack import Rack
from nexus.explore.storage import Contents, Region, Writer
from nexus.explore.upstairs import LightVolume


@dataclass(frozen=True, slots=True)
class Standing:
    """``world``: all that a later step may depend on. ``drawn``: how far ids, ticks and chance are used up."""

    world: tuple[Any, ...]
    drawn: Any
    scheduling: Any

    @classmethod
    def of(cls, rack: Rack, processes: Processes) -> Standing:
        return cls(_world(rack, processes), rack.drawn, scheduling_state())

    def changed(self, rack: Rack, processes: Processes) -> bool:
        """Whether anything is different now; if not, what was drawn since is put back."""
        if _world(rack, processes) != self.world:
            return True
        rack.drawn = self.drawn
        set_scheduling_state(self.scheduling)
        return False


def _world(rack: Rack, processes: Processes) -> tuple[Any, ...]:
    things = rack.things.values()
    return (
        rack.database.statistics().rows_written,
        trio.current_time(),
        len(rack.nursery.child_tasks),
        rack.mute,
        rack.fabric.sessions,
        [_sled(each) for each in rack.fabric.sleds],
        [replace(each, own=dict(each.own), beneath=dict(each.beneath), either=dict(each.either)) for each in things],
        dict(rack.switchboard.handed_out.known),
        list(_services(rack)),
        tuple((each.name, each.alive, tuple(sorted(each.executor.in_hand)), _memory(each)) for each in processes.known),
    )


def _sled(sled: Sled) -> tuple[Any, ...]:
    regions = [
        (
            *(each.id, each.port, each.state, each.ready_s, _writer(each), _contents(each.contents)),
            {name: _contents(contents) for name, contents in each.snapshots.items()},
            {name: replace(served) for name, served in each.served.items()},
        )
        for each in sled.regions.values()
    ]
    return sled.alive, replace(sled.trouble), regions


def _writer(region: Region) -> Writer | None:
    return None if region.writer is None else replace(region.writer)


def _contents(contents: Contents) -> tuple[Any, ...]:
    return dict(contents.blocks), list(contents.marks)


def _services(rack: Rack) -> Iterator[tuple[Any, ...]]:
    for ip, pantry in rack.switchboard.pantries.items():
        for volume_id, held in pantry.held.items():
            yield ip, volume_id, held.job_id, held.seen_active, held.succeeded, _volume(held.volume)
    for ip, host in rack.switchboard.hosts.items():
        for name, guest in host.guests.items():
            disks = [(disk_id, _volume(volume)) for disk_id, volume in guest.disks.items()]
            yield ip, name, guest.state, guest.generation, disks


def _volume(volume: LightVolume) -> tuple[Any, ...]:
    sets = [
        (each.session, [replace(member) for member in each.members], each.active, each.flushes)
        for each in volume.every_set()
    ]
    return volume.taken, sets


def _memory(process: Process) -> str:
    """What tasks know from one activation to the next."""
    task: Any = process.tasks.get("resume_volume_deletion")
    return "" if task is None else f"{task._left} {task._pauses}"
