"""region-replacement-drive: have somebody copy into the new region, and find out whether it is whole (nexus.md §3.2).

One turn of a wheel that a task keeps turning: what became of the last step, whom to ask now, ask, write down who was
asked. *Only an Upstairs may say that the volume is whole*; what follows from what it says, and from everything else,
are the tables of :mod:`nexus.replacement.driving`.

An Upstairs that serves a guest is believed (R29): when it notifies, or when it says on being asked that all its copies
are in service. A volume that nobody has is repaired by an Upstairs that a pantry makes. It is not believed: the pantry
lets go, the agents say what each copy holds, and only when that is the same, and nobody was given the document
meanwhile, the request goes on to have the old region destroyed. Else it stays as it is, keeps everything, and says why.

What may happen between the nodes: instances start, stop and move (R30, R31; who comes with a later document takes the
volume over, and is asked the next time); the volume is deleted (R46: there is nothing to repair, and the pantry is told
to let go before the new region's port is another's); further members are lost and replaced (W41, W54: the document is
another one then, and is given to the pantry anew); the notification comes (R28: it finds the request in this saga's
hand, and is read afterwards); this Nexus dies.

Why each node may run again: CHECK and PREPARE look, EXECUTE asks for what is perhaps done, COMMIT writes the
breadcrumb that EXECUTE recorded (that of a pantry is written before it is asked), VERIFY looks, FINISH_SAGA finds that
it let go. The undo of asking is nothing: it cannot be taken back, and all of it may be repeated.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection

from crucible_emu.logs import get_logger
from nexus.db import Conflict
from nexus.db.schema import RegionReplacementState
from nexus.objects.refusals import told_to_users
from nexus.replacement.driving import (
    ANOTHER_REPAIRS,
    LAST_PANTRY,
    NEXT,
    UNLIKE,
    Check,
    PantrySaid,
    Prepared,
    VmmFacts,
    asked_again_from,
    check_vmm,
    next_asked,
)
from nexus.replacement.in_service import not_activated
from nexus.replacement.machine import move
from nexus.replacement.notes import waiting_no_more, waiting_of, waiting_since
from nexus.replacement.owners import CONSTRUCTED, Owner, Situation, owner_of
from nexus.replacement.proof import Proof, copies_proved, rest_recorded, still_holds
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    DriveStep,
    PantryStep,
    PropolisStep,
    RegionEdge,
    RegionReplacement,
    pantries_asked,
    region_replacement_get,
    region_replacements_of_volume,
    step_newest,
    step_record,
)
from nexus.replacement.survivors import drives_at_a_pantry, lost_beside, members
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.saga.identities import derived
from nexus.sagas import upstairs_repair
from nexus.sagas.upstairs_repair import Said, pantry_says, step_read, step_written
from nexus.services import World
from nexus.volumes import Address, volume_deleted

log = get_logger(__name__)


class Params(BaseModel):
    """The request, and the volume that it is about."""

    request_id: str
    volume_id: str


async def set_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who has the request has it (R1)."""
    world, request_id = _world(saga), saga.params.request_id
    with told_to_users():
        await world.database.transact(
            lambda c: move(c, REGION_REPLACEMENT, RegionEdge.DRIVE, request_id, saga_id=saga.saga_id)
        )


async def clear_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who let go has let go."""
    world, request_id = _world(saga), saga.params.request_id
    await world.database.transact(
        lambda c: move(c, REGION_REPLACEMENT, RegionEdge.DRIVE_ENDED, request_id, saga_id=saga.saga_id)
    )


# -- what became of the last step -------------------------------------------------------------------------------------


async def check(saga: Context[Params]) -> dict[str, Any]:
    """Safe to rerun: the world is looked at again."""
    world, params = _world(saga), saga.params

    def body(connection: Connection) -> tuple[bool, Any, Owner, set[Address]]:
        written = {each.address for each in members(connection, params.volume_id)}
        owner = owner_of(connection, params.volume_id)
        return (
            nothing_to_repair(connection, params.volume_id),
            step_newest(connection, params.request_id),
            owner,
            written,
        )

    deleted, newest, owner, written = await world.database.read(body)
    if deleted:
        return {"check": Check.DONE, "deleted": True}
    if newest is None:
        return {"check": Check.ACTION_REQUIRED, "deleted": False}
    step, asked_at = newest
    if isinstance(step, PropolisStep):
        return {"check": check_vmm(_vmm_facts(step, owner, world.now() - asked_at)), "deleted": False}
    said = PantrySaid.TAKEN_OVER
    if owner.situation not in CONSTRUCTED:
        said = await pantry_says(world, step, params.volume_id, written)
    return {"check": LAST_PANTRY[said], "deleted": False, "pantry": step_written(step)}


def nothing_to_repair(connection: Connection, volume_id: str) -> bool:
    """R46, *liveness*: a volume that is deleted is repaired by nobody, and its request ends as if it were."""
    return volume_deleted(connection, volume_id)


def _vmm_facts(step: PropolisStep, owner: Owner, silent: Any) -> VmmFacts:
    now = None if owner.vmm is None else owner.vmm
    return VmmFacts(
        asked_vmm_id=step.vmm_id,
        now_vmm_id=None if now is None else now.vmm.vmm_id,
        now_state=None if now is None else now.state,
        migrating=owner.situation is Situation.MIGRATING,
        silent=silent,
    )


# -- whom to ask now --------------------------------------------------------------------------------------------------


async def prepare(saga: Context[Params]) -> dict[str, Any]:
    """Safe to rerun: what counts is what was recorded."""
    world, params = _world(saga), saga.params
    if saga.output("CHECK")["check"] != Check.ACTION_REQUIRED:
        return {"ask": Prepared.NOBODY, "reason": None}

    def body(connection: Connection) -> tuple[Owner, str | None, str | None]:
        drives = drives_at_a_pantry(connection, params.volume_id)
        return owner_of(connection, params.volume_id), drives, _unlike(connection, params, world.now())

    owner, drives, unlike = await world.database.read(body)
    asked = next_asked(owner.situation, others_turn=drives not in (None, params.request_id))
    match asked:
        case Prepared.PROPOLIS:
            assert owner.vmm is not None
            return {"ask": asked, "vmm_id": owner.vmm.vmm.vmm_id, "reason": None}
        case Prepared.PANTRY if unlike is not None:
            return {"ask": Prepared.NOBODY, "reason": unlike}
        case Prepared.PANTRY:
            try:
                pantry = await world.pantries.choose(saga.saga_id)
            except ActionFailed as error:
                return {"ask": Prepared.NOBODY, "reason": str(error)}
            return {"ask": asked, "pantry": str(pantry), "reason": None}
        case Prepared.IMPORT:
            return {"ask": asked, "pantry": str(owner.pantry), "reason": None}
        case Prepared.NOBODY:
            others = next_asked(owner.situation, others_turn=False) is Prepared.PANTRY
            return {"ask": asked, "reason": ANOTHER_REPAIRS if others else owner.situation.value}


def _unlike(connection: Connection, params: Params, now: datetime) -> str | None:
    """*Optimisation*: where the copies are not alike, the reason, for as long as no pantry is asked again."""
    noted, newest = waiting_of(connection, params.request_id), step_newest(connection, params.request_id)
    if noted is None or newest is None or not noted.reason.startswith(UNLIKE):
        return None
    return noted.reason if now < asked_again_from(noted.time_since, newest[1]) else None


# -- asking -----------------------------------------------------------------------------------------------------------


async def execute(saga: Context[Params]) -> dict[str, Any]:
    """Who was asked, and whether the volume is whole. Safe to rerun: it begins with letting go (R34), and to be asked
    for what one does already is harmless."""
    world, params, prepared = _world(saga), saga.params, saga.output("PREPARE")
    asked = Prepared(prepared["ask"])
    if asked is Prepared.NOBODY:
        return {"step": None, "done": False, "reason": prepared["reason"], "new_region_id": None}
    request, owner, target = await world.database.read(partial(_now, params=params))
    outcome: dict[str, Any] = {"step": None, "done": False, "new_region_id": request.new_region_id}
    if target is None:
        return outcome | {"reason": "the new region is not in the volume any more"}
    try:
        await _let_go_before(saga)
        step: DriveStep | None
        match asked:
            case Prepared.PROPOLIS:
                step, said = await _ask_instance(saga, owner, target)
            case Prepared.IMPORT:
                step, said = await _ask_import(saga, owner, target)
            case Prepared.PANTRY:
                step, said = None, await _give_to_pantry(saga, target)  # it is written down already
    except ActionFailed as error:
        return outcome | {"reason": str(error)}
    written = None if step is None else step_written(step)
    return outcome | {"step": written, "done": said.done, "reason": said.reason}


def _now(connection: Connection, params: Params) -> tuple[RegionReplacement, Owner, Address | None]:
    """The request, who has the volume, and where the new region listens that has to become whole."""
    request = region_replacement_get(connection, params.request_id)
    assert request.new_region_id is not None
    target = upstairs_repair.region_address(connection, params.volume_id, request.new_region_id)
    return request, owner_of(connection, params.volume_id), target


async def _let_go_before(saga: Context[Params]) -> None:
    """A pantry that was asked before, and has been overtaken by events, gives the volume up."""
    found = saga.output("CHECK").get("pantry")
    if found is None:
        return
    step = step_read(found)
    assert isinstance(step, PantryStep)
    # If it does not: its writer loses against the next one, and in the end all that were asked are asked again.
    await upstairs_repair.given_up_by_pantry(_world(saga), step, saga.params.volume_id)


async def _ask_instance(saga: Context[Params], owner: Owner, target: Address) -> tuple[PropolisStep | None, Said]:
    """One that is starting is not written down (*liveness*): what it was told may go under with an attempt to start,
    and it would be left alone as one that is at it. When it runs it is asked as one that never was."""
    require_same_vmm(owner, saga.output("PREPARE")["vmm_id"])
    assert owner.vmm is not None and owner.disk is not None
    said = await _said(
        upstairs_repair.instance_asked(_world(saga), owner.vmm, owner.disk.id, saga.params.volume_id, target)
    )
    if owner.situation is Situation.STARTING:
        return None, said
    return PropolisStep(owner.vmm.vmm.instance_id, owner.vmm.vmm.vmm_id), said


def require_same_vmm(owner: Owner, vmm_id: str) -> None:
    """R31, *safety* of the breadcrumb: the process that is asked is the one that is written down; and R30: it does not
    move meanwhile. Raises :class:`~nexus.saga.ActionFailed`."""
    asked = NEXT[owner.situation] is Prepared.PROPOLIS
    if not asked or owner.vmm is None or owner.vmm.vmm.vmm_id != vmm_id:
        raise ActionFailed(f"vmm {vmm_id} is not the one that has the volume any more: {owner.situation.value}")


async def _ask_import(saga: Context[Params], owner: Owner, target: Address) -> tuple[PantryStep, Said]:
    if owner.pantry is None or owner.disk is None:
        raise ActionFailed("the import has ended")
    said = await _said(
        upstairs_repair.import_asked(_world(saga), owner.pantry, owner.disk.id, saga.params.volume_id, target)
    )
    # There is no job: the next check finds that out, and asks again.
    return PantryStep(owner.pantry.ip, owner.pantry.port, derived(saga.saga_id, "no job")), said


async def _said(answer: Any) -> Said:
    """A refusal is an answer, too: who was asked is written down."""
    try:
        found: Said = await answer
    except ActionFailed as error:
        return Said(False, str(error))
    return found


async def _give_to_pantry(saga: Context[Params], target: Address) -> Said:
    world, params = _world(saga), saga.params
    address = Address.parse(saga.output("PREPARE")["pantry"])
    step = PantryStep(address.ip, address.port, derived(saga.saga_id, "job"))
    await upstairs_repair.given_to_a_pantry(world, params.request_id, step, params.volume_id)
    lost = await world.database.read(lambda c: lost_beside(c, params.volume_id, target))
    return Said(False, not_activated(lost) if lost else None)


async def commit(saga: Context[Params]) -> None:
    """Safe to rerun: one more breadcrumb of the same step is harmless. Not undone: it was asked."""
    world, written = _world(saga), saga.output("EXECUTE")["step"]
    if written is not None:
        await world.database.transact(lambda c: step_record(c, saga.params.request_id, step_read(written), world.now()))


# -- is it whole? -----------------------------------------------------------------------------------------------------


async def verify(saga: Context[Params]) -> dict[str, Any] | None:
    """The proof, where a pantry says that the volume is whole; before that it has let go of the volume. Safe to rerun:
    it looks."""
    world, params, found = _world(saga), saga.params, saga.output("CHECK")
    done = found["check"] == Check.DONE
    if not done and not saga.output("EXECUTE")["done"]:
        return None
    for number, step in enumerate(await world.database.read(lambda c: pantries_asked(c, params.request_id))):
        if number or not done or found["deleted"]:
            await upstairs_repair.given_up_by_pantry(world, step, params.volume_id)
            continue
        try:
            await upstairs_repair.taken_from_pantry(world, step, params.volume_id)
        except ActionFailed as error:
            return _written(Proof(0, reason=str(error)))
    if not done or found["deleted"]:
        return None
    return _written(await copies_proved(world, params.volume_id))


def _written(proof: Proof) -> dict[str, Any]:
    return {"generation": proof.generation, "regions": list(proof.regions), "reason": proof.reason}


async def finish_saga(saga: Context[Params]) -> bool:
    """Whether the request goes on. Safe to rerun: a request that it let go of it does not touch."""
    world = _world(saga)
    return await world.database.transact(lambda c: _finish(c, saga, world.now()))


def _finish(connection: Connection, saga: Context[Params], now: datetime) -> bool:
    params = saga.params
    row = region_replacement_get(connection, params.request_id)
    if row.operating_saga_id != saga.saga_id:
        return row.state is not RegionReplacementState.RUNNING
    reason = _not_whole(connection, saga, row)
    if reason is not None:
        move(connection, REGION_REPLACEMENT, RegionEdge.DRIVE_ENDED, row.id, saga_id=saga.saga_id)
        waiting_no_more(connection, row.id) if not reason else waiting_since(connection, row.id, reason, now)
        return False
    move(connection, REGION_REPLACEMENT, RegionEdge.DRIVEN, row.id, saga_id=saga.saga_id)
    waiting_no_more(connection, row.id)
    proof = saga.output("VERIFY")
    if proof is not None:
        _proved(connection, params.volume_id, Proof(proof["generation"], tuple(proof["regions"])), now)
    return True


def _not_whole(connection: Connection, saga: Context[Params], row: RegionReplacement) -> str | None:
    """Why the request does not go on yet, an empty sentence where nothing is the matter; ``None``: it goes on."""
    executed, proof = saga.output("EXECUTE"), saga.output("VERIFY")
    if nothing_to_repair(connection, row.volume_id):
        return None
    if executed["done"] and executed["new_region_id"] == row.new_region_id:
        return None
    if proof is None:
        return executed["reason"] or _still(connection, saga)
    if proof["reason"] is not None:
        return str(proof["reason"])
    found = Proof(proof["generation"], tuple(proof["regions"]))
    if row.new_region_id not in found.regions or not still_holds(connection, row.volume_id, found):
        return ""  # another region is the new one by now, or somebody has the volume: the next turn asks
    return None


def _still(connection: Connection, saga: Context[Params]) -> str:
    """What was said before, where nobody was asked anything new; and that copies are unlike, until they are compared
    again. Who waits for long is not to look as if it did not every other turn."""
    noted, asked = waiting_of(connection, saga.params.request_id), saga.output("PREPARE")["ask"]
    if noted is None:
        return ""
    still = asked == Prepared.NOBODY or (asked == Prepared.PANTRY and noted.reason.startswith(UNLIKE))
    return noted.reason if still else ""


def _proved(connection: Connection, volume_id: str, proof: Proof, now: datetime) -> None:
    """All that were compared are whole: other requests of the volume are done with it as well."""
    rest_recorded(connection, volume_id, proof, now)
    for each in region_replacements_of_volume(connection, volume_id):
        if each.state is RegionReplacementState.RUNNING and each.new_region_id in proof.regions:
            try:
                move(connection, REGION_REPLACEMENT, RegionEdge.NOTIFIED, each.id)
            except Conflict:  # somebody has it in hand, and finds the same
                continue
            waiting_no_more(connection, each.id)


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


REGION_REPLACEMENT_DRIVE = Saga(
    "region-replacement-drive",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=clear_saga_id),
    Node("CHECK", check),
    Node("PREPARE", prepare),
    Node("EXECUTE", execute),
    Node("COMMIT", commit),
    Node("VERIFY", verify),
    Node("FINISH_SAGA", finish_saga),
)
