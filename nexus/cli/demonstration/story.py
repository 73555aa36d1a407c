"""What happens in the demonstration, act by act.

A disk holds a real file system; there is a snapshot of it, a disk and an image made from that, and a blank disk beside
them. Two guests write all the while, to the disk from the snapshot and to the blank one. A sled is killed and expunged
that has a copy of nearly everything. While replacements are under way the source disk and the snapshot are deleted. In
the end every byte that survives is proved to be what it has to be, three times over, and nothing is left behind.

No time is lost with waiting: whoever tells this story has the background tasks look again as soon as they have looked,
where in a real rack they come by every thirty seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import trio

from crucible_emu.cli.demonstration.source import Source
from crucible_emu.cli.sizes import format_size
from nexus.api.external_documents import (
    BlankSource,
    DiskCreate,
    DiskSource,
    DistributedBackend,
    ImageCreate,
    SnapshotCreate,
    SnapshotOfImage,
    SnapshotSource,
)
from nexus.cli import disk_data, disk_places
from nexus.cli.demonstration.guests import Writer
from nexus.cli.demonstration.image import as_on_a_disk, digest_on_a_disk
from nexus.cli.demonstration.proving import sleds_under, survivor
from nexus.cli.demonstration.stage import kill_sled
from nexus.cli.demonstration.telling import Telling
from nexus.cli.demonstration.verdict import Measured, Survivor
from nexus.cli.replacement_watch import Followed
from nexus.cli.session import Session, all_of

SOURCE, SNAPSHOT, COPY, BLANK, IMAGE = "source", "before", "copy", "blank", "golden"
BLANK_BYTES = 16 * 1024 * 1024
LOOK_S = 0.5
ACTIVATE_S = 1.0
MENDING = ("lookup_region_port", "resume_volume_deletion")
"""Background tasks that have a part in it, and are not called by the name of it."""
WRITE_FIRST_S = 1.5
REPLACED_S_MAX = 90.0
LEFT_S_MAX = 20.0
SEED = 7


@dataclass
class Scene:
    """Where the story is. ``ids``: of everything, by name. ``tasks``: those that are told to look again and again."""

    nexus: Session
    root: Path
    source: Source
    telling: Telling
    ids: dict[str, str] = field(default_factory=dict)
    guests: list[Writer] = field(default_factory=list)
    followed: Followed = field(default_factory=Followed)
    tasks: tuple[str, ...] = ()


async def tell_story(scene: Scene) -> Measured:
    """All acts; what was measured."""
    await prepare(scene)
    async with trio.open_nursery() as nursery:
        await open_guests(scene, nursery)
        await trio.sleep(WRITE_FIRST_S)
        serial = await lose_a_sled(scene)
        deleted = await replace_and_delete(scene)
        async with trio.open_nursery() as stopping:
            for guest in scene.guests:
                stopping.start_soon(guest.stop)
        nursery.cancel_scope.cancel()
    measured = Measured(
        image=digest_on_a_disk(scene.source),
        sled=serial,
        deleted=deleted,
        replacements=dict(Counter(each.kind for each in scene.followed.requests.values())),
        not_complete=sum(each.state != "complete" for each in scene.followed.requests.values()),
        lost=len((await scene.nexus.emulator.replacement_to_do()).copies),
        guests=tuple(each.told() for each in scene.guests),
    )
    return await prove(scene, measured)


# -- before -----------------------------------------------------------------------------------------------------------


async def prepare(scene: Scene) -> None:
    """Everything that is lost or survives."""
    nexus, say = scene.nexus, scene.telling.say
    wanted = disk_data.Wanted(SOURCE, "a real file system", None, 512)
    filled = await disk_data.fill(nexus, wanted, scene.source.path, None, shown=False)
    scene.ids[SOURCE] = str(filled.disk.id)
    say(f"Disk {SOURCE}: {scene.source.about}, {format_size(scene.source.length)}")
    say(f"             BLAKE3 {scene.source.blake3}")
    wish = SnapshotCreate(name=SNAPSHOT, description="", disk=SOURCE)
    kept = await nexus.external.snapshot_create(wish, nexus.project)
    scene.ids[SNAPSHOT] = str(kept.id)
    copied = SnapshotSource(type="snapshot", snapshot_id=kept.id, read_only=False)
    await _make_disk(scene, COPY, filled.disk.size, copied)
    await _make_disk(scene, BLANK, BLANK_BYTES, BlankSource(type="blank", block_size=512))
    made_from = SnapshotOfImage(type="snapshot", id=kept.id)
    image = ImageCreate(name=IMAGE, description="", os="linux", version="1", source=made_from)
    scene.ids[IMAGE] = str((await nexus.external.image_create(image, nexus.project)).id)
    say(f"Snapshot {SNAPSHOT} of it; disk {COPY} and image {IMAGE} from that, without copying; a blank disk {BLANK}")


async def _make_disk(scene: Scene, name: str, size_bytes: int, source: DiskSource) -> None:
    backend = DistributedBackend(type="distributed", disk_source=source)
    wish = DiskCreate(name=name, description="", size=size_bytes, disk_backend=backend)
    scene.ids[name] = str((await scene.nexus.external.disk_create(wish, scene.nexus.project)).id)


async def open_guests(scene: Scene, nursery: trio.Nursery) -> None:
    """Two guests that write from now on."""
    beginnings = {COPY: as_on_a_disk(scene.source), BLANK: bytearray(BLANK_BYTES)}
    for number, (name, model) in enumerate(beginnings.items()):
        place = await disk_places.place(scene.nexus, scene.ids[name], None)
        guest = Writer(name, place.uri, model, Random(SEED + number))
        scene.guests.append(guest)
        nursery.start_soon(guest.run)
    nursery.start_soon(_picture, scene)
    scene.telling.say(f"Guests write to {COPY} and {BLANK} through NBD from now on, and read it back in between")


async def _picture(scene: Scene) -> None:
    """While guests write."""
    while True:
        scene.telling.show(scene.guests, scene.followed)
        await trio.sleep(LOOK_S)


# -- the loss ---------------------------------------------------------------------------------------------------------


async def lose_a_sled(scene: Scene) -> str:
    """Kill one that has much of everything and no guest, and say that it is gone for good; its serial."""
    nexus = scene.nexus
    under: Counter[str] = Counter()
    for name in (SOURCE, SNAPSHOT, COPY, BLANK):
        under.update(sleds_under(await nexus.emulator.volume_view(scene.ids[name])))
    snapshot_sleds = set(sleds_under(await nexus.emulator.volume_view(scene.ids[SNAPSHOT])))
    with_guests = {Path(each.uri.partition("socket=")[2]).parents[1].name for each in scene.guests}
    sleds = [each for each in await all_of(nexus.emulator.sled_list()) if each.serial not in with_guests]
    victim = max(sleds, key=lambda each: (str(each.id) in snapshot_sleds, under[str(each.id)], each.serial))
    await kill_sled(scene.root, victim.serial)
    scene.telling.say(f"{victim.serial} is killed: {under[str(victim.id)]} copies are gone")
    await nexus.emulator.sled_expunge(victim.id)
    scene.telling.say(f"{victim.serial} is expunged: Nexus replaces what was on it")
    for guest in scene.guests:
        guest.counts_meanwhile = True
    return victim.serial


async def replace_and_delete(scene: Scene) -> dict[str, tuple[str, ...]]:
    """Until all is replaced; what was deleted, and how far replacements were just then."""
    known = await scene.nexus.lockstep.bgtask_list()
    scene.tasks = tuple(sorted(name for name in known if "replacement" in name or name in MENDING))
    deleted: dict[str, tuple[str, ...]] = {}
    deletions: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        (f"disk {SOURCE}", lambda: scene.nexus.external.disk_delete(scene.ids[SOURCE])),
        (f"snapshot {SNAPSHOT}", lambda: scene.nexus.external.snapshot_delete(scene.ids[SNAPSHOT])),
    ]
    activated = -ACTIVATE_S
    with trio.move_on_after(REPLACED_S_MAX):
        while True:
            if trio.current_time() - activated >= ACTIVATE_S:
                activated = trio.current_time()
                await scene.nexus.lockstep.bgtask_activate(scene.tasks)
            await scene.followed.look(scene.nexus)
            states = tuple(sorted(each.request.state for each in scene.followed.report.requests))
            if deletions and any(state != "requested" for state in states):
                what, delete = deletions.pop(0)
                await delete()
                deleted[what] = states
                scene.telling.say(f"{what} is deleted while replacements are {', '.join(states)}")
            elif not scene.followed.open_left and scene.followed.requests:
                break  # what is not deleted by now is not deleted in the middle, and that is told in the end
            await trio.sleep(LOOK_S)
        for guest in scene.guests:
            guest.counts_meanwhile = False
        scene.telling.show(scene.guests, scene.followed)
        scene.telling.say(f"All {len(scene.followed.requests)} replacements are complete")
    return deleted


# -- the proof --------------------------------------------------------------------------------------------------------


async def prove(scene: Scene, measured: Measured) -> Measured:
    """What survives, as three witnesses see it; then everything is deleted, and nothing may be left."""
    nexus, say = scene.nexus, scene.telling.say
    found: dict[str, Survivor] = {}

    async def look_at(name: str, kind: str, expected: str, read: str | None) -> None:
        if kind == "disk":
            await disk_places.leave(nexus, scene.ids[name])
        found[name] = await survivor(nexus, name, kind, scene.ids[name], expected, read)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at, IMAGE, "image", measured.image, None)
        for guest in scene.guests:
            nursery.start_soon(look_at, guest.name, "disk", guest.expected, guest.read_back)
    survivors = [found[name] for name in (COPY, BLANK, IMAGE)]
    for each in survivors:
        say(f"{each.kind.capitalize()} {each.name}: BLAKE3 {each.verified}, {each.copies_compared} copies compared")
    findings = await _findings(nexus)
    await nexus.external.image_delete(scene.ids[IMAGE])
    for guest in scene.guests:
        await nexus.external.disk_delete(scene.ids[guest.name])
    left = await _bytes_left(scene)
    say(f"Everything is deleted: {format_size(left) if left else 'nothing'} is left")
    return replace(
        measured,
        survivors=tuple(survivors),
        findings=findings,
        bytes_left=left,
        findings_at_the_end=await _findings(nexus),
    )


async def _findings(nexus: Session) -> tuple[str, ...]:
    return tuple(f"{each.rule}: {each.sentence}" for each in (await nexus.emulator.check()).findings)


async def _bytes_left(scene: Scene) -> int:
    """Reserved for regions on any disk, the dead ones as well, when nothing changes any more."""
    left = 0
    with trio.move_on_after(LEFT_S_MAX):
        while True:
            disks = await all_of(scene.nexus.emulator.physical_disk_list())
            left = sum(each.size_used or 0 for each in disks)
            if left == 0:
                break
            await scene.nexus.lockstep.bgtask_activate(scene.tasks)
            await trio.sleep(LOOK_S)
    return left
