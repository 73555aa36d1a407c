"""What may happen between two nodes of a saga: a table from names to what is done.

Each operation runs to its end, or until it fails properly, while the saga under test stands still. Those of
:data:`ENGINE` are done by who runs the case, for they are about the saga itself: its process dies or stands still, its
action fails, or runs twice. The others know only a rack and a Nexus.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
from sqlalchemy import select

from nexus.db import DatabaseError, schema
from nexus.explore import users
from nexus.explore.processes import Process
from nexus.explore.rack import Rack
from nexus.explore.redundancy import lose_sled
from nexus.replacement.survivors import UNDER_REPAIR
from nexus.saga import ActionFailed, Fenced, SagaFailed, SagaStuck
from nexus.volumes import Address

Operation = Callable[[Process], Awaitable[object]]

CRASH, CRASH_RESTART, SECOND_NEXUS, COMPETE = "crash", "crash-and-restart", "second-nexus", "competing-saga"
ERROR, TWICE = "error", "twice"
ENGINE = {
    CRASH: "its Nexus dies, and another goes on with what it left",
    CRASH_RESTART: "its Nexus dies, and goes on with what it left when it is started again",
    SECOND_NEXUS: "its Nexus stands still, another takes the saga over and ends it, and then the first goes on",
    COMPETE: "another saga of the same kind for the same record begins and ends",
    ERROR: "its action fails before it has done anything",
    TWICE: "its action runs twice",
}
"""What is about the saga itself."""
REFUSED = "refused-answers"
DRAWN_BY_CALLERS: dict[str, tuple[str, ...]] = {
    "volume-remove-read-only-parent": ("temporary_id",),
    "instance-start": ("vmm_id",),
}
"""Parameters that every caller draws anew, so that a competing saga has others."""
WITHOUT_RIVAL = frozenset(
    {
        *("disk-create", "disk-create-importing", "disk-create-read-only", "image-create"),
        *("snapshot-create-attached", "snapshot-create-detached", "finalize-disk-with-snapshot"),
    }
)
"""Sagas that make something under ids of their own: nobody else ever begins the same. (Another disk or snapshot beside
it is an operation of users.)"""
AT_EFFECT_ONLY = frozenset({ERROR, TWICE})
ROUNDS_TO_REPLACE = 4
"""In so many a lost region is asked for, swapped, repaired, and its request ended."""
_REGION = schema.region


async def _delete_snapshot_meanwhile(process: Process) -> None:
    """A user begins in half a second: between two transactions of a node, if there are two, and else after it."""

    async def later() -> None:
        await trio.sleep(0.5)
        with suppress(ActionFailed, SagaFailed, SagaStuck, Fenced, DatabaseError, trio.TooSlowError):
            await users.delete(process, "snapshot")

    process.rack.nursery.start_soon(later)


async def _delete_everything(process: Process) -> None:
    for thing in list(process.rack.things.values()):
        if thing.living and thing.kind != "instance":
            await users.delete(process, thing.name)


async def _expunge_another(process: Process) -> None:
    await lose_sled(process.rack, spare_sled(process.rack))


async def _expunge_pantry(process: Process) -> None:
    """The sled of the first pantry, on which somebody may be attached."""
    await lose_sled(process.rack, 0)


async def _expunge_successor(process: Process) -> None:
    """The sled of a region that has just taken the place of another, and is not repaired yet."""
    request = schema.region_replacement
    query = select(request.c.new_region_id).where(request.c.replacement_state.in_(sorted(UNDER_REPAIR)))
    for region_id in process.rack.run(lambda c: list(c.execute(query.order_by(request.c.id)).scalars())):
        await lose_sled(process.rack, process.rack.sled_of_region(region_id))


async def _expunge_source(process: Process) -> None:
    """Each sled from which a clone was made."""
    fabric = process.rack.fabric
    sources = {region.wish.source for sled in fabric.sleds for region in sled.regions.values()} - {None}
    for ip in sorted({Address.parse(str(source)).ip for source in sources}):
        await lose_sled(process.rack, next(sled.number for sled in fabric.sleds if sled.ip == ip))


def spare_sled(rack: Rack) -> int:
    """A sled that lives and has copies of something, the one with the highest number: it is lost next."""
    alive = [sled for sled in rack.fabric.sleds if sled.alive]
    holding = [sled for sled in alive if sled.regions]
    return (holding or alive)[-1].number


async def _slow_agents(process: Process) -> None:
    for sled in process.rack.fabric.sleds:
        sled.trouble.slow_s = 5.0


async def _silent_agents(process: Process) -> None:
    """For a minute nobody answers but the database."""
    sleds = process.rack.fabric.sleds
    for sled in sleds:
        sled.trouble.silent = True

    async def speak_again() -> None:
        await trio.sleep(60)
        for sled in sleds:
            sled.trouble.silent = False

    process.rack.nursery.start_soon(speak_again)


async def _lose_answers(process: Process) -> None:
    for sled in process.rack.fabric.sleds:
        sled.trouble.lost_answers = 1


async def _refuse_after(process: Process) -> None:
    for sled in process.rack.fabric.sleds:
        sled.trouble.refusals = 1


async def _mute(process: Process) -> None:
    process.rack.mute = 1


async def _time_passes(process: Process) -> None:
    await trio.sleep(600)


async def _replace_regions(process: Process) -> None:
    """An operator wants a region of each disk replaced, and the tasks begin with it."""
    for disk in process.rack.living("disk"):
        await users.replace_first_region(process, disk.name)
    for _ in range(2):
        await process.activate("region_replacement")
        await process.activate("region_replacement_driver")


async def _start_guest(process: Process) -> None:
    await users.start(process, "instance")


async def _stop_guest(process: Process) -> None:
    await users.stop(process, "instance")


async def _restart_guest(process: Process) -> None:
    await users.stop(process, "instance")
    await users.start(process, "instance")


async def _guest_writes(process: Process) -> None:
    for disk in process.rack.living("disk"):
        await users.guest_writes(process.rack, "instance", disk.name, 3)


async def _another_disk(process: Process) -> None:
    """Somebody else makes disks, which get whatever ports are free, and writes to them."""
    for name in ("stranger", "second-stranger"):
        made = await users.create_disk(process, name)
        await users.write(process, made.name, 3)


async def _replace_copies(process: Process) -> None:
    """An operator wants every copy of the snapshot replaced, and the tasks begin with that."""
    await users.replace_copies(process, "snapshot")
    for _ in range(2):
        await process.activate("region_snapshot_replacement_start")


async def _begin_deleting_copy(process: Process) -> None:
    """A user deletes the copy, and that is under way while other things go on."""

    async def delete() -> None:
        # Whether it is refused its user will be told; what becomes of it is seen when everything has come to rest.
        with suppress(ActionFailed, SagaFailed, SagaStuck, Fenced):
            await users.delete(process, "copy")

    process.rack.nursery.start_soon(delete)


async def _task(name: str, process: Process) -> None:
    await process.activate(name)


USERS: dict[str, Operation] = {
    "delete-disk": lambda process: users.delete(process, "disk"),
    "delete-snapshot": lambda process: users.delete(process, "snapshot"),
    "delete-image": lambda process: users.delete(process, "image"),
    "delete-copy": lambda process: users.delete(process, "copy"),
    "delete-snapshot-meanwhile": _delete_snapshot_meanwhile,
    "delete-everything": _delete_everything,
    "remove-parent": lambda process: users.remove_parent(process, "copy"),
    "copy-snapshot": lambda process: users.create_disk(process, "second-copy", "snapshot"),
    "snapshot-disk": lambda process: users.create_snapshot(process, "second-snapshot", "disk"),
    "snapshot-copy": lambda process: users.create_snapshot(process, "third-snapshot", "copy"),
    "begin-deleting-copy": _begin_deleting_copy,
    "another-disk": _another_disk,
    "make-image": lambda process: users.create_image(process, "second-image", "snapshot"),
    "export-snapshot": lambda process: users.export(process, "export", "snapshot"),
    "ask-for-the-wrong-kind": lambda process: users.replace_first_region(process, "snapshot"),
    "attach-disk": lambda process: users.attach(process, "instance", "disk"),
    "attach-copy": lambda process: users.attach(process, "instance", "copy"),
    "detach-disk": lambda process: users.detach(process, "instance", "disk"),
    "detach-copy": lambda process: users.detach(process, "instance", "copy"),
    "start-guest": _start_guest,
    "stop-guest": _stop_guest,
    "restart-guest": _restart_guest,
    "guest-writes": _guest_writes,
}
MISFORTUNES: dict[str, Operation] = {
    "expunge-another": _expunge_another,
    "expunge-source": _expunge_source,
    "expunge-pantry": _expunge_pantry,
    "expunge-successor": _expunge_successor,
    "slow-agents": _slow_agents,
    "silent-agents": _silent_agents,
    "lost-answers": _lose_answers,
    REFUSED: _refuse_after,
    "lost-notification": _mute,
    "time-passes": _time_passes,
    "replace-regions": _replace_regions,
    "replace-copies": _replace_copies,
}


def task_operations(names: list[str]) -> dict[str, Operation]:
    """Every background task, all of them in a row, and what takes them several times."""

    async def all_of_them(process: Process) -> None:
        for name in names:
            await process.activate(name)

    async def lost_and_replaced(process: Process) -> None:
        """The sled of the region that was made last is lost, and all that it held is replaced."""
        newest = select(_REGION.c.id).order_by(_REGION.c.time_created.desc(), _REGION.c.id)
        region_id = process.rack.run(lambda c: c.execute(newest.limit(1)).scalar_one())
        await lose_sled(process.rack, process.rack.sled_of_region(region_id))
        for _ in range(ROUNDS_TO_REPLACE):
            await all_of_them(process)

    return {f"task-{name.replace('_', '-')}": partial(_task, name) for name in names} | {
        "all-tasks": all_of_them,
        "lost-and-replaced": lost_and_replaced,
    }
