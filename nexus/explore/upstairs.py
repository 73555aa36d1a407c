"""The Upstairs of pantries and guests in a light rack: one region set each, byte-true and in one thread.

What it guarantees, as the real one does: a set that is written to is activated when all three members are there, and
not before; the members are made equal first, extent by extent, by the newest mark; who comes with a higher generation
takes the regions from who has them. A write is acknowledged when two members have it. A member in the place of a lost
one is copied from a good one, which takes a while, and only then counts. A set that is only read needs one member.

A volume is its sets and its parent. A new document is taken in the place of its own if exactly one target differs
(:mod:`crucible_emu.volume.comparison`), and not while another member misses something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from crucible_emu.errors import ReplaceRequestInvalid
from crucible_emu.pantry.documents import ReplaceResult
from crucible_emu.volume.comparison import compare_vcr_for_target_replacement
from crucible_emu.volume.info import (
    Connecting,
    Settled,
    TargetInfo,
    UpstairsInfo,
    UpstairsNode,
    VolumeInfo,
    VolumeNode,
    VolumeParts,
)
from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.explore.fabric import Downstairs, Fabric
from nexus.explore.storage import Contents, Writer

REPAIR_S = 2.0
"""How long a live repair takes."""
QUORUM = 2


class Taken(Exception):
    """Somebody with a higher generation has the regions."""


class Unavailable(Exception):
    """Too few members are there."""


@dataclass(slots=True)
class Member:
    """One of three. ``ready_s``: when its repair is over."""

    address: str
    state: Literal["new", "active", "repair", "lost"] = "new"
    replaced: bool = False
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Repaired:
    """A member was made good again. ``live``: while the set was in service."""

    address: str
    region_id: str
    live: bool


class RegionSet:
    """One Upstairs."""

    def __init__(self, fabric: Fabric, request: RegionRequest) -> None:
        self._fabric = fabric
        self.request = request
        self.session = fabric.new_session()
        self.members = [Member(address) for address in request.opts.target]
        self.active = False
        self.flushes = 0
        self.repaired: list[Repaired] = []

    @property
    def read_only(self) -> bool:
        return self.request.opts.read_only

    @property
    def blocks(self) -> int:
        return self.request.blocks_per_extent * self.request.extent_count

    def _there(self, member: Member) -> Downstairs | None:
        found = self._fabric.downstairs(member.address)
        return None if found is None or found.read_only != self.read_only else found

    # -- coming into service ------------------------------------------------------------------------------------------

    def activate(self) -> bool:
        """Whether it is in service. Raises :class:`Taken`."""
        self.check()
        if self.active:
            return True
        found = [self._there(member) for member in self.members]
        if self.read_only:
            self.active = any(each is not None for each in found)
            for member, there in zip(self.members, found, strict=True):
                member.state = "lost" if there is None else "active"
            return self.active
        answering = [each for each in found if each is not None]
        for each in answering:
            writer = each.region.writer
            if writer is not None and writer.session != self.session and writer.generation >= self.request.gen:
                raise Taken
        if len(answering) < len(self.members):
            return False
        for each in answering:
            each.region.writer = Writer(self.request.gen, self.session)
        self._reconcile(answering)
        for member in self.members:
            member.state = "active"
        self.active = True
        return True

    def _reconcile(self, there: list[Downstairs]) -> None:
        """Make the members equal, by the newest mark of each extent."""
        differed = set()
        for extent in range(self.request.extent_count):
            newest = max(there, key=lambda each: each.contents.marks[extent])
            for number, each in enumerate(there):
                same = each.contents.marks[extent] == newest.contents.marks[extent]
                if not same or each.contents.digest(extent) != newest.contents.digest(extent):
                    each.contents.take_extent(extent, newest.contents)
                    differed.add(number)
        self.flushes = max(mark.flush for each in there for mark in each.contents.marks)
        self._flush_all(there)
        for number in sorted(differed):
            self._note(self.members[number], there[number], live=False)

    def _note(self, member: Member, there: Downstairs, *, live: bool) -> None:
        self.repaired.append(Repaired(member.address, there.region.id, live))

    def check(self) -> None:
        """Look whether it was taken, who is lost, and whose repair is over. Raises :class:`Taken`."""
        for member in self.members:
            there = self._there(member)
            if there is None:
                if member.state in ("active", "repair"):
                    member.state = "lost"
                continue
            writer = there.region.writer
            if self.active and not self.read_only and writer is not None and writer.session != self.session:
                if writer.generation > self.request.gen:
                    self.active = False
                    raise Taken
                there.region.writer = Writer(self.request.gen, self.session)
            if self.active and member.state in ("lost", "new"):
                self._begin_repair(member)
            if member.state == "repair" and member.ready_s <= self._fabric.now_s():
                self._end_repair(member, there)

    def _begin_repair(self, member: Member) -> None:
        if self.read_only:
            member.state = "active"
            return
        member.state, member.ready_s = "repair", self._fabric.now_s() + REPAIR_S

    def _end_repair(self, member: Member, there: Downstairs) -> None:
        source = next((each for each in self._in_service() if each is not there), None)
        if source is None:
            return
        there.region.writer = Writer(self.request.gen, self.session)
        for extent in range(self.request.extent_count):
            there.contents.take_extent(extent, source.contents)
        member.state, member.replaced = "active", False
        self._note(member, there, live=True)

    def _in_service(self) -> list[Downstairs]:
        found = [self._there(member) for member in self.members if member.state == "active"]
        return [each for each in found if each is not None]

    # -- bytes --------------------------------------------------------------------------------------------------------

    def read(self, block: int) -> bytes | None:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        self.check()
        there = self._in_service()
        if not self.active or not there:
            raise Unavailable
        return there[0].contents.blocks.get(block)

    def write(self, block: int, data: bytes) -> None:
        """Return when it is acknowledged. Raises :class:`Taken`, :class:`Unavailable`."""
        self.check()
        there = self._in_service()
        if not self.active or self.read_only or len(there) < QUORUM:
            raise Unavailable
        for each in there:
            each.contents.write(block, data, self.request.gen)

    def flush(self) -> None:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        self.check()
        there = self._in_service()
        if not self.active or len(there) < QUORUM:
            raise Unavailable
        self._flush_all(there)

    def _flush_all(self, there: list[Downstairs]) -> None:
        self.flushes += 1
        for each in there:
            each.contents.flush(self.request.gen, self.flushes)

    def snapshot(self, name: str) -> None:
        """Flush, and have each member keep what it has under that name. Raises as :meth:`flush`."""
        self.flush()
        there = self._in_service()
        if len(there) < len(self.members):
            raise Unavailable
        for each in there:
            each.region.snapshots.setdefault(name, each.contents.copy())

    # -- replacement --------------------------------------------------------------------------------------------------

    def replace(self, old: str, new: str) -> ReplaceResult:
        """As the real one decides. Raises :class:`ReplaceRequestInvalid`."""
        addresses = [each.address for each in self.members]
        if new in addresses:
            member = self.members[addresses.index(new)]
            if old in addresses:
                raise ReplaceRequestInvalid(f"Both old {old} and new {new} targets are in use")
            return ReplaceResult.STARTED_ALREADY if member.replaced else ReplaceResult.COMPLETED_ALREADY
        if old not in addresses:
            return ReplaceResult.MISSING
        leaving = addresses.index(old)
        for number, member in enumerate(self.members):
            behind = member.state in ("repair", "lost") or (member.state == "new" and member.replaced)
            if number != leaving and behind and not self.read_only:
                raise ReplaceRequestInvalid(f"Replace {old} failed, downstairs {number} is {member.state}")
        self.members[leaving] = Member(new, replaced=not self.read_only)
        if self.active:
            self._begin_repair(self.members[leaving])
        return ReplaceResult.STARTED

    def info(self) -> UpstairsNode:
        targets = tuple(
            TargetInfo(region_id=None, target_addr=each.address, repair_addr=None, state=_shown(each))
            for each in self.members
        )
        return UpstairsNode(
            upstairs=UpstairsInfo(
                state="active" if self.active else "go_active",
                block_size=self.request.block_size,
                upstairs_id=self.request.opts.id,
                session_id=UUID(int=int(self.session.rpartition("-")[2])),
                generation=self.request.gen,
                read_only=self.read_only,
                encrypted=self.request.opts.key is not None,
                reconcile_in_progress=False,
                live_repair_in_progress=any(each.state == "repair" for each in self.members),
                targets=targets,
            )
        )


def _shown(member: Member) -> Connecting | Settled:
    match member.state:
        case "active":
            return Settled(type="active")
        case "repair":
            return Settled(type="live_repair")
        case "lost":
            return Connecting(state="wait_connect", mode="replaced" if member.replaced else "offline")
        case "new":
            return Connecting(state="wait_connect", mode="replaced" if member.replaced else "new")


class LightVolume:
    """A volume as its document says: sets one after the other, and what lies beneath."""

    def __init__(self, fabric: Fabric, request: VolumeConstructionRequest) -> None:
        self.request = request
        parts = request.sub_volumes if isinstance(request, VolumeRequest) else (request,)
        self.sets = [RegionSet(fabric, part) for part in parts if isinstance(part, RegionRequest)]
        parent = request.read_only_parent if isinstance(request, VolumeRequest) else None
        self.parent = None if parent is None else LightVolume(fabric, parent)
        self.taken = False

    def every_set(self) -> list[RegionSet]:
        return self.sets + ([] if self.parent is None else self.parent.every_set())

    @property
    def blocks(self) -> int:
        return sum(each.blocks for each in self.sets)

    def activate(self) -> bool:
        """Whether all of it is in service. Raises :class:`Taken`."""
        active = [each.activate() for each in self.every_set()]
        return all(active)

    @property
    def active(self) -> bool:
        """Whether it is in service still."""
        if not self.taken:
            try:
                for each in self.every_set():
                    each.check()
            except Taken:
                self.taken = True
        return not self.taken and all(each.active for each in self.every_set())

    def read(self, block: int) -> bytes:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        found, local = self._place(block)
        data = None if found is None else found.read(local)
        if data is not None:
            return data
        size = self.request.block_size
        return bytes(size) if self.parent is None else self.parent.read(block)

    def write(self, block: int, data: bytes) -> None:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        found, local = self._place(block)
        assert found is not None, "a write is inside the volume"
        found.write(local, data)

    def flush(self) -> None:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        for each in self.sets:
            if not each.read_only:
                each.flush()

    def snapshot(self, name: str) -> None:
        """Raises :class:`Taken`, :class:`Unavailable`."""
        for each in self.sets:
            each.snapshot(name)

    def replace(self, request: VolumeConstructionRequest) -> ReplaceResult:
        """Make of it what ``request`` says. Raises :class:`ReplaceRequestInvalid`."""
        change = compare_vcr_for_target_replacement(self.request, request)
        result = ReplaceResult.VCR_MATCHES
        if change is not None:
            result = ReplaceResult.MISSING
            for each in self.every_set():
                result = each.replace(change.old, change.new)
                if result is not ReplaceResult.MISSING:
                    break
            if result is ReplaceResult.MISSING:
                raise ReplaceRequestInvalid(f"nobody has {change.old} to replace")
        self.request = request
        return result

    def info(self) -> VolumeInfo:
        parent = None if self.parent is None else self.parent.info()
        return VolumeNode(
            volume=VolumeParts(sub_volumes=tuple(each.info() for each in self.sets), read_only_parent=parent)
        )

    def _place(self, block: int) -> tuple[RegionSet | None, int]:
        for each in self.sets:
            if block < each.blocks:
                return each, block
            block -= each.blocks
        return None, block


def members_of(fabric: Fabric, request: RegionRequest) -> list[Contents | None]:
    """The bytes behind each target of a set, for who proves that all are the same; nobody is taken over."""
    found = [fabric.downstairs(target) for target in request.opts.target]
    return [None if each is None else each.contents for each in found]


def sets_of(request: VolumeConstructionRequest) -> Iterator[RegionRequest]:
    """Every set of a document, what lies beneath last."""
    if isinstance(request, RegionRequest):
        yield request
    elif isinstance(request, VolumeRequest):
        for part in request.sub_volumes:
            yield from sets_of(part)
        if request.read_only_parent is not None:
            yield from sets_of(request.read_only_parent)


def targets_of(request: VolumeConstructionRequest) -> list[str]:
    """Every address that a document names."""
    return [target for each in sets_of(request) for target in each.opts.target]
