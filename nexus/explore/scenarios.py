"""What is interfered with: for each family of sagas a set-up and a story in which they run.

A *set-up* makes a rack at rest and is kept as an image. A *story* is what happens to it; where it waits for background
tasks it runs them in rounds. The points to be explored are not written down anywhere: a run without interference says
which nodes of which sagas there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nexus.explore import users
from nexus.explore.processes import Process, run_saga
from nexus.sagas import volume_verify

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


SETUPS: dict[str, Story] = {
    "nothing": _nothing,
    "disk": _disk,
    "snapshot": _snapshot,
    "copy": _copy,
    "family": _family,
    "guest": _guest,
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
    scenario is for; empty for all that run in it. ``operations``: of users and misfortunes, by name."""

    name: str
    setup: str
    story: Story
    operations: tuple[str, ...]
    sagas: tuple[str, ...]
    prelude: Story = _nothing


def _verify(process: Process) -> Awaitable[Any]:
    params = volume_verify.Params(volume_id=process.rack.things["disk"].volume_id)
    return run_saga(process, volume_verify.VOLUME_VERIFY, params)


def _start(process: Process) -> Awaitable[None]:
    return users.start(process, "instance")


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
        (*DELETES, "delete-copy", "remove-parent", "snapshot-copy", *RACK),
        ("snapshot-create-detached",),
    ),
    Scenario(
        "create-snapshot-of-guest",
        "guest",
        lambda process: users.create_snapshot(process, "snapshot", "disk"),
        ("delete-disk", "detach-disk", *GUEST, "snapshot-disk", *RACK),
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
        "delete-snapshot", "copy", lambda process: users.delete(process, "snapshot"), (*FAMILY, *RACK), ("snapshot-delete",)
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

SCENARIOS = {each.name: each for each in _SCENARIOS}
