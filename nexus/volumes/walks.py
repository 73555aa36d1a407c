"""The walks over a VCR: what it names, and the document that it is after a change (nexus.md §6).

What it is for: everything Nexus knows or changes about a volume's content is one of these functions. They are pure: a
document goes in, another or an answer comes out, and no document is ever changed.

How they walk: breadth first, in the order of the document. A walk that looks for what a volume *writes to* enters
sub-volumes only; one that looks for what it *reads from* enters read-only parents, too. Addresses are compared by
value, never as text (R49: a substring search found ``[::1]:123`` in ``[::1]:12345``).

Why ids never change in a replacement: an Upstairs takes a new VCR in the place of its own only if exactly one target
differs, with equal or higher generations of its sub-volumes and unchanged ones in its parents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

from crucible_emu.volume.vcr import FileRequest, RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.volumes.recorded import Address, MalformedVolume

NewId = Callable[[], UUID]
Change = Callable[[RegionRequest, bool], RegionRequest]
"""What becomes of a region set; the second argument: whether it is below a read-only parent."""


def _regions(request: VolumeConstructionRequest, *, parents: bool) -> Iterator[tuple[RegionRequest, bool]]:
    """Every region set, breadth first, and whether it is below a read-only parent."""
    queue: deque[tuple[VolumeConstructionRequest, bool]] = deque([(request, False)])
    while queue:
        part, below = queue.popleft()
        if isinstance(part, RegionRequest):
            yield part, below
        elif isinstance(part, VolumeRequest):
            queue.extend((each, below) for each in part.sub_volumes)
            if parents and part.read_only_parent is not None:
                queue.append((part.read_only_parent, True))


def _changed(
    request: VolumeConstructionRequest, change: Change, *, parents: bool, below: bool = False
) -> VolumeConstructionRequest:
    """A copy in which each region set that the walk reaches is what ``change`` makes of it."""
    if isinstance(request, RegionRequest):
        return change(request, below)
    if not isinstance(request, VolumeRequest):
        return request
    update: dict[str, object] = {
        "sub_volumes": tuple(_changed(each, change, parents=parents, below=below) for each in request.sub_volumes)
    }
    if parents and request.read_only_parent is not None:
        update["read_only_parent"] = _changed(request.read_only_parent, change, parents=True, below=True)
    return request.model_copy(update=update)


def _addresses(region: RegionRequest) -> list[Address]:
    return [Address.parse(text) for text in region.opts.target]


def _with_targets(region: RegionRequest, addresses: list[Address]) -> RegionRequest:
    """The set with these targets; a target that stays keeps its spelling."""
    texts = tuple(
        text if Address.parse(text) == address else str(address)
        for text, address in zip(region.opts.target, addresses, strict=True)
    )
    return region.model_copy(update={"opts": region.opts.model_copy(update={"target": texts})})


# -- what a volume names ----------------------------------------------------------------------------------------------


def read_only_targets(request: VolumeConstructionRequest) -> list[Address]:
    """Every target of a read-only region set, in sub-volumes and parents of any depth."""
    found = (each for each, _ in _regions(request, parents=True) if each.opts.read_only)
    return [address for region in found for address in _addresses(region)]


def read_write_targets(request: VolumeConstructionRequest) -> list[Address]:
    """Every target of a read/write region set of the sub-volumes."""
    found = (each for each, _ in _regions(request, parents=False) if not each.opts.read_only)
    return [address for region in found for address in _addresses(region)]


def region_sets(request: VolumeConstructionRequest) -> list[list[Address]]:
    """The targets of every region set, read-only or not, of sub-volumes and parents."""
    return [_addresses(each) for each, _ in _regions(request, parents=True)]


def contains_region(request: VolumeConstructionRequest, address: Address) -> bool:
    """Whether a region set of the sub-volumes, of whichever kind, has this target."""
    return any(address in _addresses(each) for each, _ in _regions(request, parents=False))


def _readable(region: RegionRequest, below: bool) -> bool:
    """Whether a walk over read-only sets looks at this one. A read/write set below a parent is no VCR of ours."""
    if below and not region.opts.read_only:
        raise MalformedVolume("there is a read/write region set below a read-only parent")
    return region.opts.read_only


def contains_read_only_target(request: VolumeConstructionRequest, address: Address) -> bool:
    """Whether a read-only region set, at any depth, has this target. Raises :class:`MalformedVolume`."""
    sets = [_addresses(each) for each, below in _regions(request, parents=True) if _readable(each, below)]
    return any(address in each for each in sets)


def is_read_only(request: VolumeConstructionRequest) -> bool:
    """Whether all direct sub-volumes are read-only region sets. Raises :class:`MalformedVolume` where that cannot be
    said: of a URL, of a bare region set, of a volume in a volume."""
    if isinstance(request, FileRequest):
        return True
    if not isinstance(request, VolumeRequest):
        raise MalformedVolume(f"a volume that is a bare {request.type} is neither read-only nor not")
    for part in request.sub_volumes:
        if not isinstance(part, RegionRequest):
            raise MalformedVolume(f"a sub-volume is a {part.type}, where a region belongs")
        if not part.opts.read_only:
            return False
    return True


# -- a volume after a change ------------------------------------------------------------------------------------------


def replace_region(request: VolumeConstructionRequest, old: Address, new: Address) -> VolumeConstructionRequest:
    """``new`` in the place of ``old`` in the sub-volumes, and a generation more in every region set there: the writer
    that has this document wins over the one that has the old. Raises :class:`MalformedVolume` if nobody has ``old``."""
    if not contains_region(request, old):
        raise MalformedVolume(f"there is no target {old} to be replaced")

    def change(region: RegionRequest, _: bool) -> RegionRequest:
        addresses = [new if each == old else each for each in _addresses(region)]
        return _with_targets(region, addresses).model_copy(update={"gen": region.gen + 1})

    return _changed(request, change, parents=False)


def replace_read_only_target(
    request: VolumeConstructionRequest, old: Address, new: Address
) -> tuple[VolumeConstructionRequest, int]:
    """``new`` in the place of ``old`` in read-only region sets of any depth, and in how many places. Generations stay:
    an Upstairs refuses a document in which those of a parent differ. Raises :class:`MalformedVolume` for none."""
    count = 0

    def change(region: RegionRequest, below: bool) -> RegionRequest:
        nonlocal count
        if not _readable(region, below):
            return region
        addresses = _addresses(region)
        count += addresses.count(old)
        return _with_targets(region, [new if each == old else each for each in addresses])

    changed = _changed(request, change, parents=True)
    if count == 0:
        raise MalformedVolume(f"there is no read-only target {old} to be replaced")
    return changed, count


def checked_out(request: VolumeConstructionRequest) -> VolumeConstructionRequest:
    """What the database keeps when the document is handed out: a generation more in every region set that is a direct
    sub-volume, whether it is read-only or not; parents and nested volumes stay. The same object if there is none.
    Raises :class:`MalformedVolume` for a bare region set."""
    if isinstance(request, RegionRequest):
        raise MalformedVolume("a recorded volume cannot be a bare region")
    if not isinstance(request, VolumeRequest) or not any(isinstance(p, RegionRequest) for p in request.sub_volumes):
        return request
    parts = tuple(
        part.model_copy(update={"gen": part.gen + 1}) if isinstance(part, RegionRequest) else part
        for part in request.sub_volumes
    )
    return request.model_copy(update={"sub_volumes": parts})


def _with_new_ids(
    request: VolumeConstructionRequest, new_id: NewId, change: Change, below: bool = False
) -> VolumeConstructionRequest:
    """A copy in which everything that has an id has a new one, and each region set is what ``change`` makes of it."""
    if isinstance(request, RegionRequest):
        region = change(request, below)
        return region.model_copy(update={"opts": region.opts.model_copy(update={"id": new_id()})})
    if not isinstance(request, VolumeRequest):
        return request.model_copy(update={"id": new_id()})
    update: dict[str, object] = {
        "id": new_id(),
        "sub_volumes": tuple(_with_new_ids(each, new_id, change, below) for each in request.sub_volumes),
    }
    if request.read_only_parent is not None:
        update["read_only_parent"] = _with_new_ids(request.read_only_parent, new_id, change, True)
    return request.model_copy(update=update)


def randomized_ids(request: VolumeConstructionRequest, new_id: NewId) -> VolumeConstructionRequest:
    """A read-only copy that may be constructed beside its original: the id of an Upstairs is its identity with a
    Downstairs. Raises :class:`MalformedVolume` if there is a read/write region set, which two must not have."""

    def change(region: RegionRequest, _: bool) -> RegionRequest:
        if not region.opts.read_only:
            raise MalformedVolume("a read/write region set cannot be in two volumes: copy a read-only volume")
        return region

    return _with_new_ids(request, new_id, change)


def snapshot_of_disk(
    request: VolumeConstructionRequest, snapshots: Mapping[Address, Address], new_id: NewId
) -> VolumeConstructionRequest:
    """The read-only volume of a disk's snapshot: in the sub-volumes each target is what ``snapshots`` says that its
    running snapshot listens on; below parents, targets stay. Raises :class:`MalformedVolume` for one without."""

    def change(region: RegionRequest, below: bool) -> RegionRequest:
        frozen = region.model_copy(update={"opts": region.opts.model_copy(update={"read_only": True, "control": None})})
        if below:
            return frozen
        missing = [each for each in _addresses(region) if each not in snapshots]
        if missing:
            raise MalformedVolume(f"no running snapshot is known of the target {missing[0]}")
        return _with_targets(frozen, [snapshots[each] for each in _addresses(region)])

    return _with_new_ids(request, new_id, change)


# -- comparing --------------------------------------------------------------------------------------------------------


def same_volume(recorded: VolumeConstructionRequest, made: VolumeConstructionRequest) -> bool:
    """Whether ``recorded`` can be what has become of ``made``. Ids, keys and sizes stay for ever; targets and
    generations are changed by replacements and checkouts; a parent may be put in or taken away."""
    if isinstance(recorded, VolumeRequest) and isinstance(made, VolumeRequest):
        parents = (recorded.read_only_parent, made.read_only_parent)
        return (
            (recorded.id, recorded.block_size) == (made.id, made.block_size)
            and len(recorded.sub_volumes) == len(made.sub_volumes)
            and all(map(same_volume, recorded.sub_volumes, made.sub_volumes))
            and (parents[0] is None or parents[1] is None or same_volume(parents[0], parents[1]))
        )
    if isinstance(recorded, RegionRequest) and isinstance(made, RegionRequest):
        opts = made.opts.model_copy(update={"target": recorded.opts.target})
        same = made.model_copy(update={"gen": recorded.gen, "opts": opts})
        return recorded.model_dump() == same.model_dump()
    return recorded.model_dump() == made.model_dump()
