"""Safeguards of who may act at all: locks of requests, the document that is read, and the word of an Upstairs.

What stands in the place of some of them needs a moment in which the world may change: :data:`WINDOW_S`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import trio
from sqlalchemy import Connection, select, update

from nexus.db import schema
from nexus.db.schema import RegionReplacementState
from nexus.explore.removal import Removal
from nexus.explore.safeguards.instead import answers, does_nothing
from nexus.explore.safeguards.sagas import DRIVE, REGION_START, START, STEP
from nexus.objects.refusals import told_to_users
from nexus.objects.sources import origin_of
from nexus.placement import regions_of
from nexus.replacement.driving import Check, PantrySaid, Prepared
from nexus.replacement.owners import Situation, owner_of
from nexus.replacement.region import region_replacements_in
from nexus.saga.identities import derived
from nexus.sagas import region_replacement_start, region_snapshot_replacement_start
from nexus.sagas.disk_create import regions_of_the_disk
from nexus.sagas.regions import KEY_BYTES, addresses_made, read_write_volume
from nexus.sagas.upstairs_repair import once
from nexus.sagas.volume_delete import undo_volume
from nexus.tasks.region_replacement_driver import was_notified
from nexus.volumes import Address, LockResult, ResourceGone, VolumeReplaceResult, recorded, volume_create, volume_get
from nexus.volumes.deletion import soft_delete_as_read
from nexus.volumes.walks import randomized_ids, replace_region

_VOLUME, _REQUEST = schema.volume, schema.region_replacement
WINDOW_S = 900.0
"""Longer than ``time-passes``, and shorter than anybody waits for a saga."""


# -- locks ------------------------------------------------------------------------------------------------------------


def _only_of_what_is_there(original: Any) -> Any:
    """The lock of a volume that has no row is refused."""

    def locked(connection: Connection, locks: Any, volume_id: str, request_id: str, now: Any) -> LockResult:
        if volume_get(connection, volume_id) is None:
            return LockResult.HELD_BY_ANOTHER
        found: LockResult = original(connection, locks, volume_id, request_id, now)
        return found

    return locked


def _and_how_many_there_are(original: Any) -> Any:
    """With how many copies of the snapshot were made so far."""

    async def params(saga: Any) -> dict[str, Any]:
        found: dict[str, Any] = await original(saga)
        made = await saga.world.database.read(lambda c: regions_of(c, found["snapshot_volume_id"]))
        return found | {"made": len(made)}

    return params


def _the_next_one(original: Any) -> Any:
    """The new region is the snapshot's next one, whoever makes it."""

    def new_region_id(saga: Any) -> str:
        try:
            asked = saga.output("GET_ALLOC_REGION_PARAMS")
        except KeyError:
            return str(original(saga))
        return derived(asked["snapshot_volume_id"], "new region", str(asked["made"]))

    return new_region_id


# -- documents --------------------------------------------------------------------------------------------------------


def _read_before(original: Any) -> Any:
    """The document is read first, and the volume deleted later, by what was in it."""

    async def soft_delete(world: Any, volume_id: str) -> str | None:
        before = await world.database.read(lambda c: volume_get(c, volume_id))
        await trio.sleep(WINDOW_S)
        if before is not None and not before.deleted:
            await world.database.transact(lambda c: soft_delete_as_read(c, before, world.now()) and None)
        found: str | None = await original(world, volume_id)
        return found

    return soft_delete


_copied: dict[str, Any] = {}
"""The volumes that disks are to be copies of, by disk, as they were when that was asked for. (A saga's log is no place
for them: they have keys.)"""


def _copied_early(original: Any) -> Any:
    """The source's document is copied by the node that makes the disk's record."""

    async def create_disk_record(saga: Any) -> None:
        def body(connection: Connection) -> Any:
            origin = origin_of(connection, saga.params.project_id, saga.params.source)
            return None if origin is None else volume_get(connection, origin.volume_id)

        _copied[saga.params.disk_id] = await saga.world.database.read(body)
        await original(saga)

    return create_disk_record


def _inserted_late(original: Any) -> Any:
    """The volume is made of what was copied then."""

    async def create_volume_record(saga: Any) -> None:
        world, copied = saga.world, _copied[saga.params.disk_id]
        wanted, targets = await regions_of_the_disk(saga), addresses_made(saga)
        parent = None
        if copied is not None:
            parent = randomized_ids(copied.request, lambda: UUID(world.new_id()))
        geometry = world.sizes.geometry(wanted.size_bytes, wanted.block_size)
        key = world.draw_bytes(KEY_BYTES)
        request = read_write_volume(saga.params.disk_id, geometry, targets, key, parent)

        def body(connection: Connection) -> None:
            if volume_get(connection, wanted.volume_id) is None:
                volume_create(connection, wanted.volume_id, request, world.now())

        with told_to_users():
            await world.database.transact(body)

    return create_volume_record


def _nothing_is_gone(original: Any) -> Any:
    """A target that cannot be found is named all the same."""

    def require(connection: Connection, address: Address) -> Any:
        try:
            return original(connection, address)
        except ResourceGone:
            return None

    return require


def _if_anything(original: Any) -> Any:
    """What was not found is not counted on."""

    def insert_usage(connection: Connection, volume_id: str, resource: Any) -> None:
        if resource is not None:
            original(connection, volume_id, resource)

    return insert_usage


def _names_the_clone(original: Any) -> Any:
    """The stash names the new target from the beginning."""

    async def create(saga: Any) -> None:
        volume_id = region_snapshot_replacement_start.stash_id(saga)
        request = recorded.kept_target(UUID(volume_id), Address.parse(saga.output("NEW_REGION_ENSURE")))
        with told_to_users():
            await saga.world.database.transact(
                lambda c: volume_create(c, volume_id, request, saga.world.now()) and None
            )

    return create


def _those_there_before(original: Any) -> Any:
    """Of the volumes that name the target, those that did so when its replacement was asked for."""

    def affected(connection: Connection, request: Any) -> list[str]:
        made = select(_VOLUME.c.id).where(_VOLUME.c.time_created < request.request_time)
        before = set(connection.execute(made).scalars())
        return [each for each in original(connection, request) if each in before]

    return affected


# -- the old region, and who is told when -----------------------------------------------------------------------------


def _destroyed_at_once(original: Any) -> Any:
    """The old region is destroyed when no document names it any more."""

    async def replace_in_volume(saga: Any) -> str:
        found: str = await original(saga)
        await undo_volume(saga.world, region_replacement_start.stash_id(saga.saga_id))
        return found

    return replace_in_volume


def _told_before(original: Any) -> Any:
    """Who has the volume is sent the document before it is the volume's."""

    async def ensure(saga: Any) -> str:
        world, params = saga.world, saga.params
        made: str = await original(saga)
        old = await world.agents.region_address(params.old_region_id)

        def body(connection: Connection) -> tuple[Any, Any]:
            return owner_of(connection, params.volume_id), volume_get(connection, params.volume_id)

        owner, volume = await world.database.read(body)
        if owner.situation is Situation.RUNNING:
            document = replace_region(volume.request, old, Address.parse(made))
            client = world.hosts.client(owner.vmm.vmm)
            await once("the guest", lambda: client.instance_issue_crucible_vcr_request(owner.disk.id, document))
        return made

    return ensure


# -- the word of an Upstairs ------------------------------------------------------------------------------------------


def _also_in_a_sagas_hand(original: Any) -> Any:
    """The requests that run, whoever has them."""

    async def at_rest(self: Any, state: RegionReplacementState) -> list[Any]:
        if state is not RegionReplacementState.RUNNING:
            found: list[Any] = await original(self, state)
            return found
        states = [state, RegionReplacementState.DRIVING]
        running: list[Any] = await self._world.database.read(lambda c: region_replacements_in(c, states))
        return running

    return at_rest


def _done_whoever_has_it(original: Any) -> Any:
    """What was told is believed at once, and the request is taken out of the saga's hand."""

    def marked_done(connection: Connection, request: Any) -> bool:
        if not was_notified(connection, request):
            return False
        done = {"replacement_state": RegionReplacementState.REPLACEMENT_DONE, "operating_saga_id": None}
        connection.execute(update(_REQUEST).where(_REQUEST.c.id == request.id).values(**done))
        return True

    return marked_done


def _with_lines(lines: dict[Any, Any]) -> Any:
    """The table with these lines instead of its own."""
    return lambda original: original | lines


def _whether_it_moves_or_not(original: Any) -> Any:
    return lambda facts: original(replace(facts, migrating=False))


REQUESTS: tuple[Removal, ...] = (
    Removal(
        "R2",
        "a lost copy is exchanged only where what stays may be believed",
        ("nexus.replacement.survivors:swap_refused",),
        answers(None),
        "two copies are lost, the third has missed writes that were acknowledged, and is taken for good",
        ("lose-two-copies", "lose-region-of-guest"),
        ("lose-two-copies",),
    ),
    Removal(
        "R3",
        "requests for two copies of one snapshot do not run at once",
        ("nexus.replacement.read_only:snapshot_locked",),
        answers(LockResult.TAKEN),
        "both sagas count the copies and get the same new region, and redundancy is lost",
        ("replace-copies",),
        covered="each saga knows its new region by an id of its own (W35), so two of them make two; without both the"
        " unwinding of one destroys the other's, see below",
    ),
    Removal(
        "R3, W35",
        "two copies of one snapshot do not get one successor: by the lock, and by its id",
        (
            "nexus.replacement.read_only:snapshot_locked",
            "nexus.sagas.region_snapshot_replacement_start:get_alloc_region_params",
            "nexus.sagas.region_snapshot_replacement_start:new_region_id",
        ),
        (answers(LockResult.TAKEN), _and_how_many_there_are, _the_next_one),
        "both sagas count the copies and get the same new region, and the one that unwinds destroys it",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#ALLOC_NEW_REGION@before-node=replace-copies",),
    ),
    Removal(
        "R4",
        "the lock of a volume that is gone can be taken",
        ("nexus.replacement.read_only:snapshot_locked",),
        _only_of_what_is_there,
        "the snapshot is deleted, and the copies that were made of it are never mended",
        ("lose-sled",),
        (
            f"lose-sled: {START}#SET_SAGA_ID@before-node=delete-snapshot;"
            f" {START}#UPDATE_REQUEST_RECORD@after-record=expunge-another",
        ),
    ),
    Removal(
        "R6",
        "a stash names nothing before the swap",
        ("nexus.sagas.region_snapshot_replacement_start:create_fake_volume",),
        _names_the_clone,
        "the snapshot is deleted, the swap does not come, and with the stash the new region goes",
        ("replace-read-only-region",),
        covered="the holder counts on the new region as long as the request is open (R5); without both it is destroyed,"
        " see below",
    ),
    Removal(
        "R5, R6",
        "the new region is not freed with the stash: a holder counts on it, and the stash does not",
        (
            "nexus.sagas.region_snapshot_replacement_start:new_region_volume_create",
            "nexus.sagas.region_snapshot_replacement_start:create_fake_volume",
        ),
        (lambda original: does_nothing, _names_the_clone),
        "the snapshot is deleted, the swap does not come, and with the stash the new region goes",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#REPLACE_SNAPSHOT_IN_VOLUME@before-node=delete-snapshot",),
    ),
    Removal(
        "R8",
        "the old region is destroyed when nobody uses it any more, and not with the swap",
        ("nexus.sagas.region_replacement_start:replace_region_in_volume",),
        _destroyed_at_once,
        "its port is another disk's, and the guest, which was not told yet, goes on writing there",
        ("replace-region-of-guest",),
        (
            f"replace-region-of-guest: {REGION_START}#REPLACE_REGION_IN_VOLUME@after-record=another-disk;"
            f" {REGION_START}#REPLACE_REGION_IN_VOLUME@after-record=guest-writes",
        ),
    ),
    Removal(
        "R11",
        "a volume is deleted by the document that it has in that transaction",
        ("nexus.sagas.volume_delete:_soft_delete",),
        _read_before,
        "a step swaps a target meanwhile: the old one is let go of twice, and the new one never",
        ("replace-snapshot",),
        (
            f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@before-node=begin-deleting-copy;"
            f" {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@before-node=time-passes",
        ),
    ),
    Removal(
        "R12",
        "what nobody counts on any more is marked in the transaction that finds that out",
        ("nexus.volumes.deletion:flag_deleting",),
        answers(None),
        "somebody names it while it is being destroyed",
        ("delete-snapshot",),
        covered="whoever names it copies it out of a volume that counts on it, in one transaction (R26), or has a"
        " holder (R5): nobody names what nobody counts on. Without R26 it is named, see below",
    ),
    Removal(
        "R12, R26",
        "nobody names what is being destroyed: it is marked, and not copied out of what was read before",
        (
            "nexus.volumes.deletion:flag_deleting",
            "nexus.sagas.disk_create:create_disk_record",
            "nexus.sagas.disk_create:create_volume_record",
        ),
        (answers(None), _copied_early, _inserted_late),
        "a new disk counts on what is destroyed the next moment",
        ("create-disk",),
        (
            "create-disk: disk-create#REGIONS_ENSURE@after-record=delete-snapshot;"
            " snapshot-delete#DELETE_VOLUME/DECREASE_COUNT@after-record=crash",
        ),
    ),
    Removal(
        "R21",
        "nobody is told of a volume that is deleted",
        ("nexus.replacement.notice:SWAPPED",),
        lambda original: frozenset(VolumeReplaceResult),
        "who looks for its reader finds none, fails, and tries for ever",
        ("replace-snapshot-of-guest",),
        (f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@before-node=delete-copy",),
        covered="it is an optimisation: the tables have no reader of a volume whose disk is deleted, for a disk that a"
        " guest has is not deleted, and who finds no reader tells nobody and does not fail",
    ),
    Removal(
        "R25",
        "volumes that name the target are looked for as long as the request runs",
        ("nexus.replacement.affected:affected_volumes",),
        _those_there_before,
        "a copy that was being made is never mended, and the request never ends",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#SET_SAGA_ID@before-node=copy-snapshot",),
    ),
    Removal(
        "R26",
        "what a new volume names is found, copied and counted in one transaction",
        (
            "nexus.sagas.disk_create:create_disk_record",
            "nexus.sagas.disk_create:create_volume_record",
            "nexus.volumes.rows!require_resource",
            "nexus.volumes.rows!insert_usage",
        ),
        (_copied_early, _inserted_late, _nothing_is_gone, _if_anything),
        "the source is deleted meanwhile, and the disk names what is destroyed",
        ("create-disk",),
        ("create-disk: disk-create#CREATE_CRUCIBLE_DISK_RECORD@after-record=delete-everything",),
    ),
    Removal(
        "R27",
        "a guest is told of a new region when that is in the document for good",
        ("nexus.sagas.region_replacement_start:ensure_new_region",),
        _told_before,
        "the saga unwinds, and the guest writes to a region that is destroyed, or to who got its port",
        ("replace-region-of-guest",),
        (
            f"replace-region-of-guest: {REGION_START}#REPLACE_REGION_IN_VOLUME@before-effect=error;"
            f" {REGION_START}#SET_SAGA_ID@after-undo=another-disk;"
            f" {REGION_START}#SET_SAGA_ID@after-undo=guest-writes",
        ),
    ),
    Removal(
        "R28",
        "a request that a saga has in hand is not moved on by what was told",
        (
            "nexus.tasks.region_replacement_driver:RegionReplacementDriver._at_rest",
            "nexus.tasks.region_replacement_driver:marked_done",
        ),
        (_also_in_a_sagas_hand, _done_whoever_has_it),
        "the request is finished under the saga, which gives the volume to a pantry that nobody asks again",
        ("replace-region-of-guest",),
        (
            f"replace-region-of-guest: {DRIVE}#FINISH_SAGA@after-record=task-region-replacement-driver;"
            f" {DRIVE}*2#SET_SAGA_ID@after-record=time-passes; {DRIVE}*2#SET_SAGA_ID@after-record=stop-guest;"
            f" {DRIVE}*2#PREPARE@after-record=task-region-replacement-driver",
        ),
    ),
    Removal(
        "R29",
        "that an Upstairs has the volume whole is also found by asking",
        ("nexus.replacement.driving:is_done", "nexus.replacement.driving:LAST_PANTRY"),
        (answers(False), _with_lines({PantrySaid.SEEN_ACTIVE: Check.ACTION_REQUIRED})),
        "the notification is lost, the guest stops, and the request never ends",
        ("lose-region-of-guest",),
        (
            f"lose-region-of-guest: {DRIVE}#EXECUTE@before-node=lost-notification;"
            f" {DRIVE}#FINISH_SAGA@after-record=stop-guest",
        ),
    ),
    Removal(
        "R30",
        "a guest that moves is not told",
        ("nexus.replacement.driving:NEXT", "nexus.replacement.driving:check_vmm"),
        (_with_lines({Situation.MIGRATING: Prepared.PROPOLIS}), _whether_it_moves_or_not),
        "the process that it moves from is told, and the one that it moves to has the old document",
        ("lose-region-of-guest",),
        (),
        covered="it is an optimisation, as the specification says: who is told at the wrong end of a move is asked"
        " again, for the process is another one afterwards. Guests do not move yet: no saga does it, and the tables are"
        " tested by themselves",
    ),
    Removal(
        "R31",
        "the process that is asked is the one that was looked at",
        ("nexus.sagas.region_replacement_drive:require_same_vmm",),
        answers(None),
        "the guest stops meanwhile, and a process is to be asked that is not there",
        ("lose-region-of-guest",),
        (f"lose-region-of-guest: {DRIVE}#PREPARE@after-record=stop-guest",),
    ),
)
