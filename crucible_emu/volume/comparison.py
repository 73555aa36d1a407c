"""May this description of a disk take the place of that one? (upstairs-volume.md §13)

What it is for: a control plane sends a running disk a new volume construction request. Either the disk moves to another
host (*migration*: nothing may differ but generations), or one Downstairs was replaced (*target replacement*: exactly
one target differs). Everything else is refused with the reason.

How it decides: the two documents are compared part by part (:func:`compare`), which refuses on the spot what neither
purpose allows; what is left, a tree of region sets that are the same, have a higher generation, or have one other
target, is judged as a whole. Nothing is done here, and nothing but the two documents is looked at.

Where the real one looks at the first sub-volume only to decide whether it is the parent whose generation was raised,
this looks at all, and a volume without sub-volumes is judged like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from crucible_emu.errors import ReplaceRequestInvalid
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest, VolumeConstructionRequest, VolumeRequest

GEOMETRY = ("block_size", "blocks_per_extent", "extent_count")
SECRET = frozenset({"key"})


class TargetChange(NamedTuple):
    """One Downstairs has another address."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Same:
    """A region set that is the same in every member."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A region set that has a higher generation and is otherwise the same."""


@dataclass(frozen=True, slots=True)
class Target:
    """A region set of which one target differs; its generation is the same or higher."""

    change: TargetChange


@dataclass(frozen=True, slots=True)
class NewMissing:
    """The replacement has no parent (any more): a scrub may have made it superfluous."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A volume: the outcomes of its parts."""

    sub_volumes: tuple[Outcome, ...]
    parent: Outcome


Outcome = Same | Generation | Target | NewMissing | Parts


def compare(original: VolumeConstructionRequest, replacement: VolumeConstructionRequest) -> Outcome:
    """How ``replacement`` differs (§13.1). Raises :class:`ReplaceRequestInvalid` where no purpose allows it."""
    if isinstance(original, RegionRequest) and isinstance(replacement, RegionRequest):
        return _compare_regions(original, replacement)
    if isinstance(original, VolumeRequest) and isinstance(replacement, VolumeRequest):
        _equal("ID", original.id, replacement.id)
        _equal("block_size", original.block_size, replacement.block_size)
        _equal("subvolume len", len(original.sub_volumes), len(replacement.sub_volumes))
        pairs = zip(original.sub_volumes, replacement.sub_volumes)
        sub_volumes = tuple(compare(before, after) for before, after in pairs)
        return Parts(sub_volumes, _compare_parents(original.read_only_parent, replacement.read_only_parent))
    raise ReplaceRequestInvalid(f"Cannot replace VCR: a {original.type} by a {replacement.type}")


def _compare_parents(
    original: VolumeConstructionRequest | None, replacement: VolumeConstructionRequest | None
) -> Outcome:
    if replacement is None:
        return NewMissing()
    if original is None:
        raise ReplaceRequestInvalid("VCR added where there should not be one: the original has no read-only parent")
    return compare(original, replacement)


def _compare_regions(original: RegionRequest, replacement: RegionRequest) -> Same | Generation | Target:
    """Two region sets (§13.2)."""
    if original == replacement:
        return Same()
    for name in GEOMETRY:
        _equal(name, getattr(original, name), getattr(replacement, name))
    for name in CrucibleOpts.model_fields:
        if name != "target":
            _equal(name, getattr(original.opts, name), getattr(replacement.opts, name), shown=name not in SECRET)
    if replacement.gen < original.gen:
        raise ReplaceRequestInvalid(f"New sub_volume generation too low: {replacement.gen} after {original.gen}")
    pairs = zip(original.opts.target, replacement.opts.target, strict=True)
    changes = [TargetChange(old, new) for old, new in pairs if old != new]
    if len(changes) > 1:
        raise ReplaceRequestInvalid(f"multiple different targets: {', '.join(f'{c.old} to {c.new}' for c in changes)}")
    return Target(changes[0]) if changes else Generation()


def _equal(name: str, original: object, replacement: object, *, shown: bool = True) -> None:
    if original != replacement:
        values = f": {original} and {replacement}" if shown else ""
        raise ReplaceRequestInvalid(f"{name} mismatch{values}")


def _region_sets(outcome: Outcome) -> Iterator[Same | Generation | Target]:
    """The outcomes of all region sets, sub-volumes before parents."""
    if isinstance(outcome, Parts):
        for part in (*outcome.sub_volumes, outcome.parent):
            yield from _region_sets(part)
    elif not isinstance(outcome, NewMissing):
        yield outcome


def compare_vcr_for_update(
    original: VolumeConstructionRequest, replacement: VolumeConstructionRequest
) -> TargetChange | None:
    """The one target that differs, or ``None`` where only generations are higher (§13.3).

    Raises :class:`ReplaceRequestInvalid` for everything else, equal documents included.
    """
    outcome = compare(original, replacement)
    found = list(_region_sets(outcome))
    changes = [each.change for each in found if isinstance(each, Target)]
    if len(changes) > 1:
        raise ReplaceRequestInvalid(f"Multiple target changes: {', '.join(change.old for change in changes)}")
    if all(isinstance(each, Same) for each in found):
        raise ReplaceRequestInvalid("The VCRs have no difference")
    if isinstance(outcome, Parts):
        if not changes and all(isinstance(each, Same) for part in outcome.sub_volumes for each in _region_sets(part)):
            raise ReplaceRequestInvalid("ROP has generation bump!")
        if changes and any(isinstance(part, Parts) for part in outcome.sub_volumes):
            raise ReplaceRequestInvalid("Unsupported multi level CompareResult: a sub-volume is a volume itself")
    return changes[0] if changes else None


def compare_vcr_for_migration(original: VolumeConstructionRequest, replacement: VolumeConstructionRequest) -> None:
    """Returns where ``replacement`` may take over from ``original`` on another host: only generations are higher.

    Raises :class:`ReplaceRequestInvalid` otherwise.
    """
    change = compare_vcr_for_update(original, replacement)
    if change is not None:
        raise ReplaceRequestInvalid(f"VCR targets are different: {change.old} and {change.new}")


def compare_vcr_for_target_replacement(
    original: VolumeConstructionRequest, replacement: VolumeConstructionRequest
) -> TargetChange | None:
    """The one target to replace, or ``None`` where the targets are the same already ("ReplacementMatchesOriginal").

    Raises :class:`ReplaceRequestInvalid` for everything else, equal documents included.
    """
    return compare_vcr_for_update(original, replacement)
