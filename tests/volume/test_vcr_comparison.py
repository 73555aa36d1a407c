"""Which request may take the place of which: the decision table over 1 to 3 sub-volumes and every position."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from disk_rig import KEY, OTHER_KEY

from crucible_emu import errors
from crucible_emu.volume import vcr
from crucible_emu.volume.comparison import (
    TargetChange,
    compare_vcr_for_migration,
    compare_vcr_for_target_replacement,
    compare_vcr_for_update,
)

ID = "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f00"
Document = dict[str, Any]
POSITIONS = pytest.mark.parametrize(("count", "which"), [(n, w) for n in (1, 2, 3) for w in range(n)])


def region(number: int, gen: int = 5) -> Document:
    opts = {
        "id": f"{ID}{number}",
        "target": [f"127.0.{number}.{client}:9000" for client in (1, 2, 3)],
        "lossy": False,
        "flush_timeout": None,
        "key": KEY,
        "cert_pem": "/cert.pem",
        "key_pem": "/key.pem",
        "root_cert_pem": "/root.pem",
        "control": None,
        "read_only": False,
    }
    return {
        "type": "region",
        "block_size": 512,
        "blocks_per_extent": 8,
        "extent_count": 4,
        "gen": gen,
        "opts": opts,
    }


def volume(*sub_volumes: Document, parent: Document | None = None) -> Document:
    return {
        "type": "volume",
        "id": f"{ID}9",
        "block_size": 512,
        "sub_volumes": list(sub_volumes),
        "read_only_parent": parent,
    }


def disk(count: int) -> Document:
    """So many sub-volumes over a parent that has a parent itself."""
    deepest = volume(region(8))
    return volume(*(region(number) for number in range(count)), parent=volume(region(7), parent=deepest))


Change = Callable[[Document, int], None]


def raise_gens(new: Document, which: int) -> None:
    for part in new["sub_volumes"]:
        part["gen"] += 1


def raise_one_gen(new: Document, which: int) -> None:
    new["sub_volumes"][which]["gen"] += 1


def lower_gen(new: Document, which: int) -> None:
    new["sub_volumes"][which]["gen"] -= 1


def drop_parent(new: Document, which: int) -> None:
    new["read_only_parent"] = None


def move(part: Document, client: int) -> None:
    part["opts"]["target"][client] = "127.9.9.9:9"


def move_target(new: Document, which: int) -> None:
    move(new["sub_volumes"][which], which)


def parent_region(new: Document) -> Document:
    found: Document = new["read_only_parent"]["sub_volumes"][0]
    return found


def move_parent_target(new: Document, which: int) -> None:
    move(parent_region(new), which)


def move_deep_target(new: Document, which: int) -> None:
    move(new["read_only_parent"]["read_only_parent"]["sub_volumes"][0], which)


def raise_parent_gen(new: Document, which: int) -> None:
    parent_region(new)["gen"] += 1


def lower_parent_gen(new: Document, which: int) -> None:
    parent_region(new)["gen"] -= 1


def move_two_targets(new: Document, which: int) -> None:
    part = new["sub_volumes"][which]
    part["opts"]["target"][:2] = ["127.9.9.9:9", "127.9.9.9:8"]


OK, MATCHES, VALID = "ok", "replacement matches original", "valid"
TABLE: dict[str, tuple[tuple[Change, ...], str, str]] = {
    # what changes: migration, target replacement (an error's words, where it is refused)
    "nothing": ((), "have no difference", "have no difference"),
    "the generations of all sub-volumes": ((raise_gens,), OK, MATCHES),
    "the generation of one sub-volume": ((raise_one_gen,), OK, MATCHES),
    "the parent dropped": ((drop_parent,), "have no difference", "have no difference"),
    "the parent dropped, generations": ((drop_parent, raise_gens), OK, MATCHES),
    "one target": ((move_target,), "VCR targets are different", VALID),
    "one target, its generation": ((move_target, raise_one_gen), "VCR targets are different", VALID),
    "one target, all generations": ((move_target, raise_gens), "VCR targets are different", VALID),
    "one target, its generation lower": ((move_target, lower_gen), "generation too low", "generation too low"),
    "one target, the parent dropped": ((move_target, drop_parent), "VCR targets are different", VALID),
    "one target of the parent": ((move_parent_target,), "VCR targets are different", VALID),
    "one target of the parent's parent": ((move_deep_target,), "VCR targets are different", VALID),
    "one target of the parent, generations": ((move_parent_target, raise_gens), "VCR targets are different", VALID),
    "one target of the parent, its generation": (
        (move_parent_target, raise_parent_gen),
        "VCR targets are different",
        VALID,
    ),
    "a target of the parent and one of a sub-volume": (
        (move_target, move_parent_target),
        "Multiple target changes",
        "Multiple target changes",
    ),
    "targets of both parents": (
        (move_parent_target, move_deep_target),
        "Multiple target changes",
        "Multiple target changes",
    ),
    "two targets": ((move_two_targets,), "multiple different targets", "multiple different targets"),
    "the parent's generation": ((raise_parent_gen,), "ROP has generation bump!", "ROP has generation bump!"),
    "the parent's generation and another": ((raise_parent_gen, raise_one_gen), OK, MATCHES),
    "the parent's generation lower": ((lower_parent_gen,), "generation too low", "generation too low"),
    "a generation lower": ((lower_gen,), "generation too low", "generation too low"),
}


def parsed(document: Document) -> Any:
    return vcr.parse(json.dumps(document))


def judge(original: Document, replacement: Document) -> tuple[str, str]:
    """What both purposes say: the words of the table, or the refusal."""
    old, new = parsed(original), parsed(replacement)
    try:
        compare_vcr_for_migration(old, new)
        migration = OK
    except errors.ReplaceRequestInvalid as error:
        migration = error.detail
    try:
        found = compare_vcr_for_target_replacement(old, new)
        target = MATCHES if found is None else VALID
    except errors.ReplaceRequestInvalid as error:
        target = error.detail
    return migration, target


@POSITIONS
@pytest.mark.parametrize("row", TABLE)
def test_the_decision_table(row: str, count: int, which: int) -> None:
    changes, migration, replacement = TABLE[row]
    original = disk(count)
    changed = copy.deepcopy(original)
    for change in changes:
        change(changed, which)
    found = judge(original, changed)
    assert migration in found[0] and replacement in found[1], found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_parent_that_is_added_is_refused(count: int) -> None:
    original = disk(count)
    original["read_only_parent"] = None
    for changes in ((), (raise_gens,)):
        changed = disk(count)
        for change in changes:
            change(changed, 0)
        assert all("VCR added where there should not be one" in words for words in judge(original, changed))


def test_targets_of_two_sub_volumes_are_refused() -> None:
    changed = disk(2)
    for which in (0, 1):
        move_target(changed, which)
    assert all("Multiple target changes" in words for words in judge(disk(2), changed))


MEMBERS: list[tuple[str, Any]] = [
    ("blocks_per_extent", 16),
    ("extent_count", 5),
    ("opts.id", f"{ID}6"),
    ("opts.lossy", True),
    ("opts.flush_timeout", 1.5),
    ("opts.key", OTHER_KEY),
    ("opts.key", None),
    ("opts.cert_pem", "/other.pem"),
    ("opts.key_pem", "/other.pem"),
    ("opts.root_cert_pem", "/other.pem"),
    ("opts.control", "127.0.0.1:1"),
    ("opts.read_only", True),
]


@POSITIONS
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("member", "value"), MEMBERS)
def test_any_other_member_of_a_region_that_differs_is_refused_by_name(
    member: str, value: Any, moved: bool, count: int, which: int
) -> None:
    changed = disk(count)
    raise_gens(changed, which)
    if moved:
        move_target(changed, which)
    part = changed["sub_volumes"][which]
    name = member.removeprefix("opts.")
    (part["opts"] if name != member else part)[name] = value
    for words in judge(disk(count), changed):
        assert words.startswith(f"{name} mismatch")
        assert KEY not in words and OTHER_KEY not in words


@POSITIONS
def test_blocks_of_another_size_are_refused(count: int, which: int) -> None:
    changed = disk(count)
    changed["sub_volumes"][which]["block_size"] = 4096
    assert all("block_size mismatch: 512 and 4096" in words for words in judge(disk(count), changed))


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("id", f"{ID}6", "ID mismatch"),
        ("block_size", 4096, "block_size mismatch"),
        ("sub_volumes", [region(0)], "subvolume len mismatch: 2 and 1"),
    ],
)
@pytest.mark.parametrize("of_the_parent", [False, True])
def test_any_member_of_a_volume_that_differs_is_refused_by_name(
    member: str, value: Any, words: str, of_the_parent: bool
) -> None:
    original = volume(region(0), region(1), parent=volume(region(2), region(3)))
    changed = copy.deepcopy(original)
    raise_gens(changed, 0)
    (changed["read_only_parent"] if of_the_parent else changed)[member] = value
    assert all(words in found for found in judge(original, changed))


def test_a_volume_with_a_file_or_a_url_is_refused_while_both_have_it() -> None:
    base = {"id": f"{ID}5", "block_size": 512}
    for other in ({"type": "url", "url": "http://x/", **base}, {"type": "file", "path": "/x", **base}):
        original, changed = volume(region(0), parent=other), volume(region(0, 6), parent=other)
        assert all("Cannot replace VCR" in words for words in judge(original, changed))
        assert judge(original, volume(region(0, 6))) == (OK, MATCHES), "dropped after a scrub"
        assert all("Cannot replace VCR" in words for words in judge(region(0), other))


def test_a_region_by_itself() -> None:
    moved = region(0)
    move(moved, 1)
    assert judge(region(0), region(0, 6)) == (OK, MATCHES)
    assert judge(region(0), moved)[1] == VALID
    assert compare_vcr_for_update(parsed(region(0)), parsed(moved)) == TargetChange("127.0.0.2:9000", "127.9.9.9:9")
    assert all("have no difference" in words for words in judge(region(0), region(0)))
    assert all("Cannot replace VCR" in words for words in judge(region(0), volume(region(0))))


def test_a_change_in_any_sub_volume_counts_and_not_only_in_the_first() -> None:
    """The real one takes a generation that is higher in the second sub-volume only for one of the parent."""
    changed = disk(2)
    raise_one_gen(changed, 1)
    assert judge(disk(2), changed) == (OK, MATCHES)


def test_a_volume_without_sub_volumes_is_judged() -> None:
    """The real one looks at its first sub-volume and ends."""
    original, raised, moved = (volume(parent=volume(region(0, gen))) for gen in (5, 6, 5))
    move_parent_target(moved, 0)
    assert all("ROP has generation bump!" in words for words in judge(original, raised))
    assert judge(original, moved)[1] == VALID


def test_too_few_targets_are_refused_before_anything_is_compared() -> None:
    """The real one ends on a list that is shorter than three."""
    short = region(0)
    short["opts"]["target"].pop()
    with pytest.raises(errors.UsageError, match="exactly 3 targets"):
        parsed(short)


def test_a_target_below_a_nested_sub_volume_is_refused_and_generations_there_are_not() -> None:
    original = volume(volume(region(0)))
    moved, raised = copy.deepcopy(original), copy.deepcopy(original)
    move(moved["sub_volumes"][0]["sub_volumes"][0], 2)
    raised["sub_volumes"][0]["sub_volumes"][0]["gen"] += 1
    assert all("Unsupported multi level CompareResult" in words for words in judge(original, moved))
    assert judge(original, raised) == (OK, MATCHES)


def test_the_two_targets_of_a_replacement_are_named() -> None:
    changed = disk(3)
    move_deep_target(changed, 2)
    assert compare_vcr_for_target_replacement(parsed(disk(3)), parsed(changed)) == ("127.0.8.3:9000", "127.9.9.9:9")


@POSITIONS
@pytest.mark.parametrize("client", range(3))
@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("parents", ["both", "the original only", "neither", "the replacement only"])
def test_each_target_of_each_sub_volume_with_and_without_parents(
    parents: str, raised: bool, client: int, count: int, which: int
) -> None:
    original = disk(count)
    changed = copy.deepcopy(original)
    if parents in ("neither", "the replacement only"):
        original["read_only_parent"] = None
    if parents in ("neither", "the original only"):
        changed["read_only_parent"] = None
    part = changed["sub_volumes"][which]
    move(part, client)
    if raised:
        raise_gens(changed, which)
    migration, replacement = judge(original, changed)
    if parents == "the replacement only":
        assert "VCR added where there should not be one" in migration and migration == replacement
        return
    assert "VCR targets are different" in migration and replacement == VALID
    old = original["sub_volumes"][which]["opts"]["target"][client]
    assert compare_vcr_for_target_replacement(parsed(original), parsed(changed)) == (old, "127.9.9.9:9")
