"""The walks over a VCR: what they find, that a replacement and its inverse cancel, that ids and originals stay."""

from __future__ import annotations

import itertools
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vcr_drawing import KEY, region, requests, volume

from crucible_emu.volume.vcr import RegionRequest, UrlRequest, VolumeConstructionRequest, VolumeRequest
from nexus.volumes import recorded, walks
from nexus.volumes.recorded import Address, MalformedVolume


def numbered(number: int) -> UUID:
    return UUID(int=number)


def at(number: int) -> Address:
    return Address.of("fd00::9", number)


A, B, C, N = at(1), at(2), at(3), at(4)
ID = numbered(1)


def nodes(request: VolumeConstructionRequest) -> list[VolumeConstructionRequest]:
    found = [request]
    if isinstance(request, VolumeRequest):
        for each in (*request.sub_volumes, request.read_only_parent):
            found += nodes(each) if each is not None else []
    return found


def parents(request: VolumeConstructionRequest) -> list[VolumeConstructionRequest]:
    found = (each.read_only_parent for each in nodes(request) if isinstance(each, VolumeRequest))
    return [each for each in found if each is not None]


def ids(request: VolumeConstructionRequest) -> list[UUID]:
    return [each.opts.id if isinstance(each, RegionRequest) else each.id for each in nodes(request)]


def without_generations(request: VolumeConstructionRequest) -> object:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {name: strip(each) for name, each in value.items() if name != "gen"}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return strip(json.loads(recorded.write(request)))


# -- the document -----------------------------------------------------------------------------------------------------


@given(requests())
def test_what_is_written_is_read_back(request: VolumeConstructionRequest) -> None:
    assert recorded.parse(recorded.write(request)) == request


def test_volume_construction_request_region_gen_serialization() -> None:
    request = volume(ID, region(ID, [A, B, C], read_only=False, gen=7))
    (part,) = json.loads(recorded.write(request))["sub_volumes"]
    assert part["gen"] == 7
    assert "generation" not in part


@pytest.mark.parametrize("make", [recorded.snapshot_stash, recorded.blank])
def test_synthetic_volumes_that_name_nothing(make: type) -> None:
    request = recorded.parse(recorded.write(make(ID)))
    assert walks.read_only_targets(request) == walks.read_write_targets(request) == []


def test_synthetic_volumes_that_name_one_target() -> None:
    stash = recorded.parse(recorded.write(recorded.read_write_stash(ID, A)))
    assert (walks.read_write_targets(stash), walks.read_only_targets(stash)) == ([A], [])
    kept = recorded.parse(recorded.write(recorded.kept_target(ID, A)))
    assert (walks.read_write_targets(kept), walks.read_only_targets(kept)) == ([], [A])


@pytest.mark.parametrize("damage", ["", "[", "null", '{"type": "disk"}', "[" * 100_000])
def test_a_damaged_document_is_refused(damage: str) -> None:
    with pytest.raises(MalformedVolume):
        recorded.parse(damage)


def test_no_error_shows_a_key() -> None:
    good = json.loads(recorded.write(volume(ID, region(ID, [A, B, C], read_only=False))))
    good["sub_volumes"][0]["opts"]["target"] = [1, 2]
    for text in (json.dumps(good), json.dumps(good)[:-1]):
        with pytest.raises(MalformedVolume) as caught:
            recorded.parse(text)
        assert KEY not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert KEY not in repr(recorded.parse(recorded.write(volume(ID, region(ID, [A], read_only=True)))))


def test_a_region_set_of_four_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3"):
        region(ID, [A, B, C, N], read_only=True)


@pytest.mark.parametrize("text", ["127.0.0.1:5", "[::1]", "::1:5", "[::1]:0", "[::1]:65536", "host:1", ""])
def test_only_ipv6_with_a_port_is_an_address(text: str) -> None:
    with pytest.raises(MalformedVolume):
        Address.parse(text)


def test_an_address_has_one_value_in_every_spelling() -> None:
    assert Address.parse("[FD00:0:0::9]:1") == A
    assert str(Address.parse("[fd00:0::0:9]:1")) == "[fd00::9]:1"
    assert Address.parse("[fd00::9]:11") != A


# -- finding ----------------------------------------------------------------------------------------------------------


def test_lists_go_breadth_first_and_keep_to_their_side() -> None:
    deep = volume(ID, region(ID, [at(20)], read_only=True), parent=volume(ID, region(ID, [at(30)], read_only=True)))
    nested = volume(ID, region(ID, [at(12)], read_only=False))
    request = volume(ID, nested, region(ID, [at(10), at(11)], read_only=False), parent=deep)
    assert walks.read_write_targets(request) == [at(10), at(11), at(12)]
    assert walks.read_only_targets(request) == [at(20), at(30)]
    assert walks.region_sets(request) == [[at(10), at(11)], [at(12)], [at(20)], [at(30)]]


def test_read_only_target_in_vcr() -> None:
    request = volume(
        ID,
        region(ID, [A], read_only=True),
        region(ID, [N], read_only=False),
        parent=volume(ID, region(ID, [B], read_only=True)),
    )
    assert walks.contains_read_only_target(request, A), "in a sub-volume"
    assert walks.contains_read_only_target(request, B), "in a parent"
    assert not walks.contains_read_only_target(request, C)
    assert not walks.contains_read_only_target(request, N), "a read/write target is no read-only one"
    assert walks.contains_region(request, A) and walks.contains_region(request, N)
    assert not walks.contains_region(request, B), "a parent is not written to"


def test_neighbouring_addresses_are_not_confused() -> None:
    request = volume(ID, region(ID, [Address.parse("[::1]:12345")], read_only=True))
    assert not walks.contains_read_only_target(request, Address.parse("[::1]:1234"))


def test_a_read_write_set_below_a_parent_is_refused() -> None:
    request = volume(ID, parent=volume(ID, region(ID, [A], read_only=False)))
    with pytest.raises(MalformedVolume, match="below a read-only parent"):
        walks.contains_read_only_target(request, A)
    with pytest.raises(MalformedVolume, match="below a read-only parent"):
        walks.replace_read_only_target(request, A, N)


def test_ipv4_is_refused_by_every_walk_that_meets_it() -> None:
    four = region(ID, [A], read_only=True)
    four = four.model_copy(update={"opts": four.opts.model_copy(update={"target": ("127.0.0.1:1",)})})
    request = volume(ID, four)
    for walk in (
        walks.read_only_targets,
        walks.region_sets,
        lambda it: walks.contains_region(it, A),
        lambda it: walks.contains_read_only_target(it, A),
        lambda it: walks.replace_read_only_target(it, A, N),
        lambda it: walks.replace_region(it, A, N),
    ):
        with pytest.raises(MalformedVolume, match="IPv4"):
            walk(request)


# -- replacing --------------------------------------------------------------------------------------------------------


@given(requests(), st.data())
def test_replacing_a_region_and_back_changes_generations_only(request: VolumeRequest, data: st.DataObject) -> None:
    request = volume(ID, request, region(ID, [A, B, C], read_only=False))
    old, new = data.draw(st.sampled_from(walks.read_write_targets(request))), N
    text = recorded.write(request)
    there = walks.replace_region(request, old, new)
    assert recorded.write(request) == text, "the original is untouched"
    assert ids(there) == ids(request)
    assert walks.contains_region(there, new) and not walks.contains_region(there, old)
    back = walks.replace_region(there, new, old)
    assert without_generations(back) == without_generations(request)
    assert parents(back) == parents(request), "to the generation"
    for before, after in zip(reached(request), reached(back), strict=True):
        assert after.gen == before.gen + 2


def reached(request: VolumeConstructionRequest) -> list[RegionRequest]:
    if isinstance(request, RegionRequest):
        return [request]
    return [r for each in request.sub_volumes for r in reached(each)] if isinstance(request, VolumeRequest) else []


@given(requests(read_only=True), st.data())
def test_replacing_a_read_only_target_and_back_is_nothing(request: VolumeRequest, data: st.DataObject) -> None:
    writes = region(ID, [at(5), at(6), at(7)], read_only=False)
    request = volume(ID, writes, parent=volume(ID, request, region(ID, [A, B, C], read_only=True)))
    old, new = data.draw(st.sampled_from(walks.read_only_targets(request))), N
    there, count = walks.replace_read_only_target(request, old, new)
    assert count == 1
    assert there != request
    assert ids(there) == ids(request)
    assert walks.replace_read_only_target(there, new, old) == (request, 1)


def test_replace_read_only_target_in_vcr() -> None:
    in_both = volume(ID, region(ID, [A], read_only=True), parent=volume(ID, region(ID, [A], read_only=True)))
    sub = volume(ID, region(ID, [A, B, C], read_only=True))
    parent = volume(ID, region(ID, [B], read_only=False), parent=volume(ID, region(ID, [A], read_only=True)))
    assert walks.replace_read_only_target(sub, A, N) == (volume(ID, region(ID, [N, B, C], read_only=True)), 1)
    assert walks.replace_read_only_target(parent, A, N)[1] == 1
    assert walks.replace_read_only_target(in_both, A, N)[1] == 2, "for the caller to refuse"


def test_what_is_not_there_cannot_be_replaced() -> None:
    request = volume(ID, region(ID, [A, B, C], read_only=False))
    with pytest.raises(MalformedVolume, match="no target"):
        walks.replace_region(request, N, at(9))
    with pytest.raises(MalformedVolume, match="no read-only target"):
        walks.replace_read_only_target(request, A, N)


# -- handing out and copying ------------------------------------------------------------------------------------------


@given(requests())
def test_a_checkout_bumps_direct_region_sets_only(request: VolumeRequest) -> None:
    kept = walks.checked_out(request)
    assert isinstance(kept, VolumeRequest)
    assert kept.read_only_parent == request.read_only_parent
    for before, after in zip(request.sub_volumes, kept.sub_volumes, strict=True):
        if isinstance(before, RegionRequest):
            assert after == before.model_copy(update={"gen": before.gen + 1})
        else:
            assert after == before


def test_a_bare_region_is_no_volume() -> None:
    with pytest.raises(MalformedVolume, match="bare region"):
        walks.checked_out(region(ID, [A], read_only=True))


@given(requests(read_only=True))
def test_a_copy_has_new_ids_and_nothing_else_new(request: VolumeRequest) -> None:
    numbers = itertools.count(1)
    copy = walks.randomized_ids(request, lambda: numbered(next(numbers)))
    assert len(set(ids(copy))) == len(ids(copy)), "no two nodes share one"
    assert set(ids(copy)).isdisjoint(ids(request))
    assert walks.region_sets(copy) == walks.region_sets(request)
    assert [each.gen for each in reached(copy)] == [each.gen for each in reached(request)]


def test_a_volume_that_is_written_to_cannot_be_copied() -> None:
    request = volume(ID, region(ID, [A], read_only=True), region(ID, [B], read_only=False))
    with pytest.raises(MalformedVolume, match="cannot be in two volumes"):
        walks.randomized_ids(request, lambda: ID)


@given(requests(read_only=False))
def test_a_snapshot_volume_reads_the_running_snapshots_and_the_parents_of_the_disk(request: VolumeRequest) -> None:
    mapped = {each: Address.of("fd00::ffff", n) for n, each in enumerate(walks.read_write_targets(request), 1)}
    numbers = itertools.count(1)
    made = walks.snapshot_of_disk(request, mapped, lambda: numbered(next(numbers)))
    assert walks.read_write_targets(made) == []
    wanted = [mapped[each] for each in walks.read_write_targets(request)]
    assert sorted(walks.read_only_targets(made)) == sorted([*wanted, *walks.read_only_targets(request)])
    assert set(ids(made)).isdisjoint(ids(request))
    assert walks.read_only_targets(made) == [
        mapped.get(each, each) for sets in walks.region_sets(request) for each in sets
    ]


def test_a_snapshot_volume_needs_every_running_snapshot() -> None:
    request = volume(ID, region(ID, [A, B], read_only=False))
    with pytest.raises(MalformedVolume, match=r"\[fd00::9\]:2"):
        walks.snapshot_of_disk(request, {A: N}, lambda: ID)


def test_what_counts_as_read_only() -> None:
    assert walks.is_read_only(volume(ID, region(ID, [A], read_only=True)))
    assert not walks.is_read_only(volume(ID, region(ID, [A], read_only=True), region(ID, [B], read_only=False)))
    url = UrlRequest(type="url", id=ID, block_size=512, url="http://images.example/x")
    for odd in (url, region(ID, [A], read_only=True), volume(ID, url), volume(ID, volume(ID))):
        with pytest.raises(MalformedVolume):
            walks.is_read_only(odd)
