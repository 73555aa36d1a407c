"""Having an Upstairs repair a volume, and being told how it is (nexus.md §3.2): what the drive saga does with others.

An instance, or a pantry that has the volume for an import, is asked how its copies are, and is sent the volume's
document if it does not have the new one yet (:func:`instance_asked`, :func:`import_asked`). Where nobody has the
volume, a pantry makes an Upstairs for it (:func:`given_to_a_pantry`), in a job, for that may take hours (R34).

Each question is asked once and not waited for longer than :data:`ANSWER_TIMEOUT_S` (*liveness*): a drive that waited
for a silent host would hold its request, and whoever finds the instance elsewhere meanwhile could not go on with it.
The task that drives asks again. To ask twice is harmless: a copy that is being repaired is being repaired.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from sqlalchemy import Connection

from crucible_emu.client.failures import ServiceUnreachable
from crucible_emu.logs import get_logger
from crucible_emu.pantry.documents import ReplaceResult
from crucible_emu.volume.info import VolumeInfo
from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.objects.instances import ActiveVmm
from nexus.objects.refusals import told_to_users
from nexus.replacement import in_service
from nexus.replacement.driving import ANSWERS, Answer, PantrySaid, is_done
from nexus.replacement.health import single_upstairs_health, upstairs_with, written_targets
from nexus.replacement.region import (
    PantryStep,
    PropolisStep,
    pantries_asked,
    region_replacements_of_volume,
    step_record,
)
from nexus.replacement.survivors import lost_beside, members
from nexus.saga import ActionFailed
from nexus.services import World
from nexus.services.refusals import REFUSED, ServiceRefused, told_of
from nexus.volumes import Address, Repair, volume_checkout, volume_deleted, volume_get

ANSWER_TIMEOUT_S = 30.0

log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Said:
    """``done``: the Upstairs says that all its copies are whole. Otherwise ``reason`` says what is the matter, if
    something is."""

    done: bool
    reason: str | None = None


async def once(what: str, request: Callable[[], Awaitable[T]]) -> T:
    """The answer to one question. Raises :class:`~nexus.saga.ActionFailed`, also where none comes."""
    try:
        with told_of(what), trio.fail_after(ANSWER_TIMEOUT_S):
            return await request()
    except (ServiceUnreachable, trio.TooSlowError) as error:
        raise ActionFailed(f"{what}: it does not answer", REFUSED) from error


async def document_of(world: World, volume_id: str) -> VolumeConstructionRequest:
    """R41: what is sent to who has the volume is its document as it is recorded, and no checkout: that would give a
    right to take the volume from the very one that it is sent to (R33)."""
    volume = await world.database.read(lambda c: volume_get(c, volume_id))
    if volume is None or volume.deleted:
        raise ActionFailed(f"volume {volume_id} is deleted: nobody is told of it", REFUSED)
    return volume.request


# -- who has the volume already ---------------------------------------------------------------------------------------


async def instance_asked(world: World, active: ActiveVmm, disk_id: str, volume_id: str, target: Address) -> Said:
    """Have the instance that has the disk make ``target``, its new copy, whole, or hear that it is."""
    host, what = world.hosts.client(active.vmm), f"disk {disk_id} of instance {active.vmm.instance_id}"

    async def look() -> VolumeInfo:
        return (await once(what, lambda: host.disk_volume_status(disk_id))).volume_info

    async def tell(document: VolumeConstructionRequest) -> ReplaceResult:
        return await once(what, lambda: host.instance_issue_crucible_vcr_request(disk_id, document))

    needed = in_service.guest_stopped(disk_id, active.vmm.instance_id)
    return await _asked(world, volume_id, _Asked(what, needed, look, tell), target)


async def import_asked(world: World, pantry: Address, disk_id: str, volume_id: str, target: Address) -> Said:
    """W9: the same for a disk that is being imported, at its pantry."""
    client, what = world.pantries.client(pantry), f"disk {disk_id} at the pantry {pantry}"

    async def look() -> VolumeInfo:
        return (await once(what, lambda: client.volume_status(disk_id))).info

    async def tell(document: VolumeConstructionRequest) -> ReplaceResult:
        return await once(what, lambda: client.replace(disk_id, document))

    return await _asked(world, volume_id, _Asked(what, in_service.import_ended(disk_id), look, tell), target)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who has the volume. ``needed``: what has to happen that nobody has it, in words."""

    what: str
    needed: str
    look: Callable[[], Awaitable[VolumeInfo]]
    tell: Callable[[VolumeConstructionRequest], Awaitable[ReplaceResult]]


async def _asked(world: World, volume_id: str, who: _Asked, target: Address) -> Said:
    """An Upstairs that has the new copy is not sent the document again: it would refuse one in which nothing is new. It
    was told before, or was made from the document as it is now."""
    what, look = who.what, who.look
    lost = await world.database.read(lambda c: lost_beside(c, volume_id, target))
    there = upstairs_with(await look(), target)
    if there is None:
        try:
            answer = ANSWERS[await who.tell(await document_of(world, volume_id))]
        except ServiceRefused as error:
            if not lost:
                raise
            return Said(False, in_service.takes_none(who.needed, lost, str(error)))
        if answer is Answer.FAILED:
            return Said(False, f"{what}: it does not have the copy that was replaced")
        if answer is Answer.UNDER_WAY:
            return Said(False)
        there = upstairs_with(await look(), target)
    if there is None:
        return Said(False, f"{what}: none of its Upstairs has the new copy")
    health = single_upstairs_health(there, lost)
    return Said(True) if is_done(Answer.ASK_HEALTH, health) else Said(False, f"{what}: {health.value}")


# -- nobody has it ----------------------------------------------------------------------------------------------------


async def given_to_a_pantry(world: World, request_id: str, step: PantryStep, volume_id: str) -> None:
    """Attach the volume there, and have the job activate it, which makes all its copies alike. R34: it begins with
    detaching, for a pantry takes neither another job nor another document for one volume; and nobody waits for the
    job. Raises :class:`~nexus.saga.ActionFailed`, also where somebody else has the volume by now (R33).

    *Safety*: who is asked is written down in the transaction that hands the document out. Whoever deletes the volume
    afterwards knows where it may be, and has it given up before its regions are destroyed."""
    await taken_from_pantry(world, step, volume_id)

    def body(connection: Connection) -> VolumeConstructionRequest:
        request = volume_checkout(connection, volume_id, Repair(), world.now()).request
        step_record(connection, request_id, step, world.now())
        return request

    with told_to_users():
        request = await world.database.transact(body)
    client, what = world.pantries.client(_address(step)), f"volume {volume_id} at the pantry {_address(step)}"
    await once(what, lambda: client.attach_activate_background(volume_id, step.job_id, request))
    if await world.database.read(lambda c: volume_deleted(c, volume_id)):
        # Who deleted it has looked for pantries already, perhaps before this one had it.
        await taken_from_pantry(world, step, volume_id)


async def taken_from_pantry(world: World, step: PantryStep, volume_id: str) -> None:
    """It is not attached there any more; at one that is gone nothing is. Raises :class:`~nexus.saga.ActionFailed`."""
    address = _address(step)
    if await world.pantries.is_gone(address):
        return
    client = world.pantries.client(address)
    await once(f"volume {volume_id} at the pantry {address}", lambda: client.detach(volume_id))


async def given_up_by_pantries(world: World, volume_id: str) -> None:
    """The volume is deleted and its regions are about to be destroyed: no pantry repairs it any more. *Safety* (#6353):
    it would write to whatever gets their ports; and it could never flush again, and never let go. A pantry that does
    not answer holds nobody up."""

    def body(connection: Connection) -> list[PantryStep]:
        open_ones = region_replacements_of_volume(connection, volume_id)
        return [step for each in open_ones for step in pantries_asked(connection, each.id)]

    for step in await world.database.read(body):
        await given_up_by_pantry(world, step, volume_id)


async def given_up_by_pantry(world: World, step: PantryStep, volume_id: str) -> None:
    """What the pantry holds of it is worth nothing any more. One that does not answer holds nobody up.

    It is asked twice: of a volume with lost copies it says that it cannot be flushed. It has taken it out of service by
    then, and lets go of it when it is asked again."""
    for _ in range(2):
        try:
            await taken_from_pantry(world, step, volume_id)
            return
        except ActionFailed as error:
            log.info("a pantry does not let go", volume=volume_id, reason=str(error))


async def pantry_says(world: World, step: PantryStep, volume_id: str, written: set[Address]) -> PantrySaid:
    """How far the pantry is that was asked. ``written``: where the volume's copies are now, by its document."""
    client, what = world.pantries.client(_address(step)), f"volume {volume_id} at the pantry"
    try:
        finished = await once(what, lambda: client.is_job_finished(step.job_id))
    except ActionFailed:
        return PantrySaid.NO_ANSWER
    try:
        status = await once(what, lambda: client.volume_status(volume_id))
    except ActionFailed:
        return PantrySaid.NO_STATUS if finished else PantrySaid.NO_ANSWER
    if written_targets(status.info) != written:
        return PantrySaid.OTHER_DOCUMENT
    if not finished:
        return PantrySaid.RUNNING
    return PantrySaid.SEEN_ACTIVE if status.seen_active else PantrySaid.NOT_ACTIVE


def _address(step: PantryStep) -> Address:
    return Address.of(step.ip, step.port)


# -- what is recorded of it -------------------------------------------------------------------------------------------


def step_written(step: PropolisStep | PantryStep) -> dict[str, object]:
    """A step as the output of a node."""
    kind = "propolis" if isinstance(step, PropolisStep) else "pantry"
    return {"kind": kind} | {name: getattr(step, name) for name in step.__dataclass_fields__}


def step_read(written: dict[str, object]) -> PropolisStep | PantryStep:
    """What :func:`step_written` wrote."""
    values: dict[str, Any] = {name: value for name, value in written.items() if name != "kind"}
    return PropolisStep(**values) if written["kind"] == "propolis" else PantryStep(**values)


def region_address(connection: Connection, volume_id: str, region_id: str) -> Address | None:
    """Where a member of the volume listens, as the document has it."""
    return next((each.address for each in members(connection, volume_id) if each.region_id == region_id), None)
