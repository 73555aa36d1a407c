"""What is interfered with: for each family of sagas a set-up and a story in which they run.

A *set-up* makes a rack at rest and is kept as an image. A *story* is what happens to it; where it waits for background
tasks it runs them in rounds. The points to be explored are not written down anywhere: a run without interference says
which nodes of which sagas there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio
from sqlalchemy import delete, insert, update

from nexus.db import schema
from nexus.explore import users, verdicts
from nexus.explore.processes import Process, run_saga
from nexus.placement import AllocatedRegion, regions_of
from nexus.replacement.read_only import read_only_replacement_request
from nexus.replacement.region import RequestResult
from nexus.replacement.survivors import NEEDS_DECISION
from nexus.saga import SagaFailed
from nexus.sagas import volume_verify
from nexus.volumes import ReadOnlyRegion, RegionSnapshot
from nexus.volumes.repair_lock import OVERTAKEN_MAX

Story = Callable[[Process], Awaitable[Any]]


async def _nothing(process: Process) -> None:
    """The rack alone."""


async def _disk(process: Process) -> None:
    await users.create_disk(process, "disk")
    await users.write(process, "disk", 0, 5, 9)


async def _snapshot(process: Process) -> None:
    await _disk(process)
    await users.create_snapshot(process, "snapshot", "disk")


async def _copy(process: Process) -> None:
    await _snapshot(process)
    await users.create_disk(process, "copy", "snapshot")
    await users.write(process, "copy", 1)


async def _family(process: Process) -> None:
    await _copy(process)
    await users.create_image(process, "image", "snapshot")


async def _guest(process: Process) -> None:
    await _disk(process)
    await users.create_instance(process, "instance")
    await users.attach(process, "instance", "disk")


async def _replaced(process: Process) -> None:
    """A snapshot of which one copy is a read-only region by now, and the disk that it was taken of is gone."""
    await _copy(process)
    await _ask_for_snapshot(process)
    await _until_replaced(process)


# -- replacements -----------------------------------------------------------------------------------------------------

ROUNDS_MAX = 30
ROUND_S = 15.0


async def _until_replaced(process: Process) -> None:
    """Rounds of the tasks that have to do with replacements, until no request is open."""
    for _ in range(ROUNDS_MAX):
        for name in process.tasks:
            if "replacement" in name:
                await process.activate(name)
        if not await process.rack.database.read(verdicts.open_requests):
            return
        await trio.sleep(ROUND_S)


async def _after(process: Process, begin: Story) -> None:
    await begin(process)
    await _until_replaced(process)


async def _ask_for_region(process: Process) -> None:
    """An operator wants the first region of the disk replaced, which is as good as the others."""
    await users.replace_first_region(process, "disk")


async def _ask_for_snapshot(process: Process) -> None:
    """An operator wants the first copy of the snapshot replaced."""
    rack = process.rack
    region = users.first_region(rack, rack.things["disk"].volume_id)
    target = RegionSnapshot(region.dataset_id, region.region_id, rack.things["snapshot"].id)
    await rack.database.transact(
        lambda c: read_only_replacement_request(c, rack.world.locks, target, rack.now()) and None
    )


async def _ask_for_read_only_region(process: Process) -> None:
    """An operator wants the copy replaced that a replacement has made."""
    rack = process.rack
    region = users.first_region(rack, rack.things["snapshot"].volume_id)
    await rack.database.transact(
        lambda c: (
            read_only_replacement_request(c, rack.world.locks, ReadOnlyRegion(region.region_id), rack.now()) and None
        )
    )


async def _lose(process: Process) -> None:
    """The sled of the disk's first region is lost, with all that is on it."""
    rack = process.rack
    await rack.lose_sled(rack.sled_of_region(users.first_region(rack, rack.things["disk"].volume_id).region_id))


async def _guest_with_copy(process: Process) -> None:
    await _copy(process)
    await users.create_instance(process, "instance")
    await users.attach(process, "instance", "copy")


async def _behind(process: Process) -> None:
    """A disk of which the last copy has missed a write that was acknowledged, and nobody knows."""
    await _disk(process)
    await users.write(process, "disk", 7, missed_by=_sleds_of(process, "disk")[-1])


def _sleds_of(process: Process, disk: str) -> list[int]:
    """The sleds of the disk's copies, in the order of their numbers."""
    rack = process.rack
    owned: list[AllocatedRegion] = rack.run(regions_of, rack.things[disk].volume_id)
    return sorted(rack.sled_of_region(each.region_id) for each in owned)


async def _lose_two(process: Process) -> None:
    """The two copies that have everything are lost. Nexus asks whether the third is to be believed; the operator, who
    knows that it is not, gives the disk up."""
    for sled in _sleds_of(process, "disk")[:2]:
        await process.rack.lose_sled(sled)
    for name in ("region_replacement", "region_replacement"):
        await process.activate(name)
    waiting = await process.rack.database.read(verdicts.open_requests)
    if any(NEEDS_DECISION in each for each in waiting):
        await users.delete(process, "disk")


class StillOpen(Exception):
    """A request that nothing keeps from ending has not ended."""


async def _lose_unheard(process: Process) -> None:
    """The same, and what the guest's Upstairs tells of its repair is lost. Nobody stops the guest, which may run for
    years: the request has to end while it does."""
    process.rack.mute = 1
    await _lose(process)
    for _ in range(3):
        await _until_replaced(process)
    left = await process.rack.database.read(verdicts.open_requests)
    if left:
        raise StillOpen(left[0])


SETUPS: dict[str, Story] = {
    "nothing": _nothing,
    "disk": _disk,
    "snapshot": _snapshot,
    "copy": _copy,
    "family": _family,
    "guest": _guest,
    "behind": _behind,
    "guest-with-copy": _guest_with_copy,
    "replaced": _replaced,
}

DELETES = ("delete-disk", "delete-snapshot", "delete-everything")
FAMILY = (*DELETES, "delete-image", "delete-copy", "remove-parent", "copy-snapshot", "snapshot-copy", "make-image")
RACK = (
    *("expunge-another", "expunge-pantry", "slow-agents", "silent-agents", "lost-answers", "refused-answers"),
    "all-tasks",
)
GUEST = ("start-guest", "stop-guest", "restart-guest", "guest-writes")


ALONE = ("no saga",)
"""Of a scenario that is one case: its story is the interference."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``prelude``: what has to run before the story, and is not interfered with. ``sagas``: those whose nodes this
    scenario is for; empty for all that run in it. ``operations``: of users and misfortunes, by name. ``stride``: where
    other scenarios go through the same nodes already, one case in so many is enough."""

    name: str
    setup: str
    story: Story
    operations: tuple[str, ...]
    sagas: tuple[str, ...]
    prelude: Story = _nothing
    stride: int = 1


VARIATION = 5


def _verify(process: Process) -> Awaitable[Any]:
    params = volume_verify.Params(volume_id=process.rack.things["disk"].volume_id)
    return run_saga(process, volume_verify.VOLUME_VERIFY, params)


async def _start(process: Process) -> None:
    """On a sled that has none of the disk's copies."""
    rack = process.rack
    idle = [sled for sled in rack.fabric.sleds if sled.alive and not sled.regions]
    await users.start(process, "instance", (idle or [rack.fabric.sleds[-1]])[-1].sled_id)


_SCENARIOS = (
    Scenario(
        "create-disk",
        "snapshot",
        lambda process: users.create_disk(process, "copy", "snapshot"),
        (*DELETES, "delete-copy", "snapshot-disk", "lost-and-replaced", *RACK),
        ("disk-create",),
    ),
    Scenario(
        "create-read-only-disk",
        "snapshot",
        lambda process: users.create_disk(process, "copy", "snapshot", read_only=True),
        (*DELETES, "delete-copy", *RACK),
        ("disk-create-read-only",),
    ),
    Scenario(
        "import-disk",
        "nothing",
        lambda process: users.import_disk(process, "disk"),
        ("delete-disk", "lost-and-replaced", *RACK),
        ("disk-create-importing", "finalize-disk-with-snapshot"),
    ),
    Scenario(
        "create-snapshot",
        "copy",
        lambda process: users.create_snapshot(process, "third-snapshot", "copy"),
        (*DELETES, "delete-copy", "remove-parent", "snapshot-copy", "replace-regions", "lost-and-replaced", *RACK),
        ("snapshot-create-detached",),
    ),
    Scenario(
        "create-snapshot-of-guest",
        "guest",
        lambda process: users.create_snapshot(process, "snapshot", "disk"),
        ("delete-disk", "detach-disk", *GUEST, "snapshot-disk", "replace-regions", "lost-and-replaced", *RACK),
        ("snapshot-create-attached",),
        _start,
    ),
    Scenario(
        "create-image",
        "snapshot",
        lambda process: users.create_image(process, "image", "snapshot"),
        (*DELETES, "delete-image", "make-image", *RACK),
        ("image-create",),
    ),
    Scenario(
        "start-guest",
        "guest",
        _start,
        ("delete-disk", "detach-disk", *GUEST, "snapshot-disk", *RACK),
        ("instance-start",),
    ),
    Scenario(
        "stop-guest",
        "guest",
        lambda process: users.stop(process, "instance"),
        ("delete-disk", "detach-disk", *GUEST, "snapshot-disk", *RACK),
        ("instance-stop",),
        _start,
    ),
    Scenario("verify", "disk", _verify, ("delete-disk", "snapshot-disk", *RACK), ("volume-verify",)),
    Scenario(
        "delete-disk",
        "copy",
        lambda process: users.delete(process, "disk"),
        (*DELETES, "delete-copy", "remove-parent", "copy-snapshot", "snapshot-disk", "snapshot-copy", *RACK),
        ("disk-delete",),
    ),
    Scenario(
        "delete-snapshot",
        "copy",
        lambda process: users.delete(process, "snapshot"),
        (*FAMILY, *RACK),
        ("snapshot-delete",),
    ),
    Scenario(
        "delete-image", "family", lambda process: users.delete(process, "image"), (*FAMILY, *RACK), ("image-delete",)
    ),
    Scenario(
        "remove-parent",
        "copy",
        lambda process: users.remove_parent(process, "copy"),
        (*FAMILY, *RACK),
        ("volume-remove-read-only-parent",),
    ),
)

DRIVE = "region-replacement-drive"
REGION = ("region-replacement-start", DRIVE, "region-replacement-finish")
READ_ONLY = tuple(
    f"region-snapshot-replacement-{each}"
    for each in ("start", "garbage-collect", "step", "step-garbage-collect", "finish")
)
REPLACEMENT_TASKS = tuple(
    f"task-{each}"
    for each in (
        *("region-replacement", "region-replacement-driver"),
        *("region-snapshot-replacement-start", "region-snapshot-replacement-garbage-collection"),
        *("region-snapshot-replacement-step", "region-snapshot-replacement-finish"),
        *("read-only-region-replacement-start", "lease-reaper", "resume-volume-deletion"),
    )
)

_REPLACEMENTS = (
    Scenario(
        "replace-region",
        "disk",
        lambda process: _after(process, _ask_for_region),
        ("delete-disk", "snapshot-disk", *RACK, *REPLACEMENT_TASKS),
        REGION,
    ),
    Scenario(
        "replace-region-of-guest",
        "guest",
        lambda process: _after(process, _ask_for_region),
        ("another-disk", *GUEST, "lost-notification", "expunge-another"),
        REGION,
        _start,
        stride=VARIATION,
    ),
    Scenario("lose-two-copies", "behind", _until_replaced, (), ALONE, _lose_two),
    Scenario(
        "lose-region",
        "disk",
        lambda process: _after(process, _lose),
        ("delete-disk", "snapshot-disk", "expunge-successor", *RACK, *REPLACEMENT_TASKS),
        REGION,
        stride=VARIATION,
    ),
    Scenario(
        "lose-region-of-guest",
        "guest",
        lambda process: _after(process, _lose),
        ("detach-disk", *GUEST, "snapshot-disk", "lost-notification", *RACK, *REPLACEMENT_TASKS),
        REGION,
        _start,
    ),
    Scenario("lose-notification", "guest", _lose_unheard, ("stop-guest",), (DRIVE,), _start, stride=2 * VARIATION),
    Scenario(
        "lose-region-of-idle-guest",
        "guest",
        lambda process: _after(process, _lose),
        ("detach-disk", "start-guest", "restart-guest", "snapshot-disk", *RACK),
        REGION,
        stride=VARIATION,
    ),
    Scenario(
        "replace-snapshot",
        "copy",
        lambda process: _after(process, _ask_for_snapshot),
        (
            *(*DELETES, "delete-copy", "remove-parent", "copy-snapshot", "snapshot-copy", "make-image"),
            *(*RACK, *REPLACEMENT_TASKS),
        ),
        READ_ONLY,
    ),
    Scenario(
        "replace-snapshot-of-guest",
        "guest-with-copy",
        lambda process: _after(process, _ask_for_snapshot),
        (*GUEST, "detach-copy", "delete-snapshot", "snapshot-copy", "expunge-another"),
        READ_ONLY,
        _start,
        stride=VARIATION * VARIATION,
    ),
    Scenario(
        "replace-copies",
        "copy",
        lambda process: _after(process, lambda one: users.replace_copies(one, "snapshot")),
        ("delete-snapshot", "delete-copy", "expunge-another"),
        READ_ONLY,
        stride=VARIATION * VARIATION,
    ),
    Scenario(
        "replace-read-only-region",
        "replaced",
        lambda process: _after(process, _ask_for_read_only_region),
        (*DELETES, "delete-copy", "remove-parent", "copy-snapshot", *RACK),
        READ_ONLY,
        stride=VARIATION,
    ),
    Scenario(
        "lose-sled",
        "copy",
        lambda process: _after(process, _lose),
        (*DELETES, "delete-copy", "remove-parent", "copy-snapshot", "snapshot-copy", *RACK),
        (),
        stride=VARIATION,
    ),
)

# -- stories that no interference makes -------------------------------------------------------------------------------


class Starved(Exception):
    """Somebody asked again and again, and others came first each time."""


async def _asked_while_busy(process: Process) -> None:
    """A user takes one snapshot of the disk after another. An operator wants a region of it replaced, and asks while
    each of them is being taken. Raises :class:`Starved`."""
    sleds = process.rack.fabric.sleds
    for sled in sleds:
        sled.trouble.slow_s = 5.0
    for number in range(OVERTAKEN_MAX + 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_snapshot_if_it_may_be, process, f"snapshot-{number}")
            await trio.sleep(1.0)
            asked = await users.replace_first_region(process, "disk")
        if asked is RequestResult.MADE:
            break
    else:
        raise Starved(f"a replacement was asked for {number + 1} times, and a snapshot came first each time")
    for sled in sleds:
        sled.trouble.slow_s = 0.0
    await _until_replaced(process)


async def _snapshot_if_it_may_be(process: Process, name: str) -> None:
    with suppress(SagaFailed):
        await users.create_snapshot(process, name, "disk")


async def _beside_a_stranger(process: Process) -> None:
    """There is a volume that has nothing to do with it, with a document that nobody can read: whoever looks through all
    volumes fails."""
    rack, stranger, now = process.rack, process.rack.id(), process.rack.now()
    row = {"id": stranger, "data": "no document", "time_created": now, "time_modified": now}
    rack.run(lambda c: c.execute(insert(schema.volume).values(**row)) and None)
    try:
        await _after(process, _ask_for_snapshot)
        await process.activate("region_replacement")
    finally:
        rack.run(lambda c: c.execute(delete(schema.volume).where(schema.volume.c.id == stranger)) and None)


async def _lose_without_port(process: Process) -> None:
    """Nobody ever wrote down where the lost region listened."""
    rack, region = process.rack, schema.region
    lost = users.first_region(rack, rack.things["disk"].volume_id).region_id
    rack.run(lambda c: c.execute(update(region).where(region.c.id == lost).values(port=None)) and None)
    await _lose(process)


_CORNERS = (
    Scenario("busy-disk", "disk", _asked_while_busy, (), ALONE),
    Scenario("stranger", "copy", _beside_a_stranger, (), ALONE),
    Scenario("lose-region-without-port", "disk", lambda process: _after(process, _lose_without_port), (), ALONE),
    Scenario(
        "replace-older-snapshot",
        "copy",
        lambda process: _after(process, _ask_for_snapshot),
        ("snapshot-disk",),
        ("region-snapshot-replacement-step-garbage-collect",),
        lambda process: users.write(process, "disk", 3),
        stride=VARIATION,
    ),
)
SCENARIOS = {each.name: each for each in (*_SCENARIOS, *_REPLACEMENTS, *_CORNERS)}
