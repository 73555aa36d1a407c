"""What is interfered with: for each family of sagas a set-up and a story in which they run.

A *set-up* makes a rack at rest and is kept as an image. A *story* is what happens to it; where it waits for background
tasks it runs them in rounds. The points to be explored are not written down anywhere: a run without interference says
which nodes of which sagas there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from nexus.explore import users, verdicts
from nexus.explore.processes import Process, run_saga
from nexus.replacement.read_only import read_only_replacement_request
from nexus.sagas import volume_verify
from nexus.volumes import ReadOnlyRegion, RegionSnapshot

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


class StillOpen(Exception):
    """A request that nothing keeps from ending has not ended."""


async def _lose_unheard(process: Process) -> None:
    """The same, and what the guest's Upstairs tells of its repair is lost. Nobody stops the guest, which may run for
    years: the request has to end while it does."""
    process.rack.mute = 1
    await _after(process, _lose)
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
    "replaced": _replaced,
}

DELETES = ("delete-disk", "delete-snapshot", "delete-everything")
FAMILY = (*DELETES, "delete-image", "delete-copy", "remove-parent", "copy-snapshot", "snapshot-copy", "make-image")
RACK = (
    *("expunge-another", "expunge-pantry", "slow-agents", "silent-agents", "lost-answers", "refused-answers"),
    "all-tasks",
)
GUEST = ("start-guest", "stop-guest", "restart-guest", "guest-writes")


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
        (*DELETES, "delete-copy", "snapshot-disk", *RACK),
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
        ("delete-disk", *RACK),
        ("disk-create-importing", "finalize-disk-with-snapshot"),
    ),
    Scenario(
        "create-snapshot",
        "copy",
        lambda process: users.create_snapshot(process, "third-snapshot", "copy"),
        (*DELETES, "delete-copy", "remove-parent", "snapshot-copy", "replace-regions", *RACK),
        ("snapshot-create-detached",),
    ),
    Scenario(
        "create-snapshot-of-guest",
        "guest",
        lambda process: users.create_snapshot(process, "snapshot", "disk"),
        ("delete-disk", "detach-disk", *GUEST, "snapshot-disk", "replace-regions", *RACK),
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
        "lose-region",
        "disk",
        lambda process: _after(process, _lose),
        ("delete-disk", "snapshot-disk", *RACK, *REPLACEMENT_TASKS),
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
SCENARIOS = {each.name: each for each in (*_SCENARIOS, *_REPLACEMENTS)}
