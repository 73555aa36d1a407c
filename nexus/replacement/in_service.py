"""Two copies lost under an Upstairs that is in service: what an operator has to do, in words (W54).

What it is for: an Upstairs takes one new copy at a time, and none while it misses another one (upstairs-volume.md §9),
for the copy that is to go might be the one that has everything. So of two copies that are declared lost while they
still serve, one is replaced after the other under a running guest; and also where the second is lost while the first
is being repaired, for one good copy is enough to repair from. But where two do not answer before either is replaced,
nothing is repaired until the guest is stopped. None of this is an error, and none may look like nothing at all.

What it guarantees (*liveness*, of people): who waits for an Upstairs names the disk, who has it, and the copy.
"""

from __future__ import annotations

from collections.abc import Collection

from nexus.replacement.owners import Owner
from nexus.volumes import Address

TAKES_ONE = "an Upstairs has the volume, and takes one new copy at a time"


def takes_one_at_a_time(owner: Owner, awaited: Collection[Address]) -> str:
    """Why a swap waits for the new copies at ``awaited``."""
    return f"{TAKES_ONE}: this needs {given_up(owner)}, or {copies(awaited)} repaired first"


def takes_none(needed: str, lost: Collection[Address], told: str) -> str:
    """Why an Upstairs did not take the new copy: it misses those at ``lost``, too. ``told``: what it said itself."""
    missed = f"{copies(lost)} is lost, too, and an Upstairs that misses a copy takes no new one"
    return f"this needs {needed}: {missed} ({told})"


def not_activated(lost: Collection[Address]) -> str:
    """Why a pantry does not come to an end with the volume."""
    return f"{copies(lost)} is lost, too: a volume is activated with three copies, and waits until that is replaced"


def given_up(owner: Owner) -> str:
    """What has to happen so that nobody has the volume."""
    disk_id = "of nobody" if owner.disk is None else owner.disk.id
    if owner.pantry is not None:
        return import_ended(disk_id)
    return guest_stopped(disk_id, None if owner.vmm is None else owner.vmm.vmm.instance_id)


def guest_stopped(disk_id: str, instance_id: str | None) -> str:
    """``instance_id`` is ``None`` where it has no process yet, or no more."""
    named = "" if instance_id is None else f", instance {instance_id},"
    return f"the guest of disk {disk_id}{named} stopped"


def import_ended(disk_id: str) -> str:
    return f"the import of disk {disk_id} ended"


def copies(addresses: Collection[Address]) -> str:
    """The copies, in the order of their addresses."""
    return " and ".join(f"the copy at {each}" for each in sorted(map(str, addresses)))
