"""The pantry's core without a loop: tables, conflicts, take-over, limits."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import errors
from crucible_emu.pantry import chunks, ledger
from crucible_emu.pantry.ledger import Entry, Ledger
from crucible_emu.pantry.refusals import STATUS_OF_ERROR, STATUS_OF_SITUATION, Refused, Situation, status_of
from crucible_emu.pantry.states import (
    ADMISSION,
    ENTRY_TRANSITIONS,
    JOB_TRANSITIONS,
    EntryEvent,
    EntryState,
    JobEvent,
    JobKind,
    JobState,
    Use,
)
from crucible_emu.volume.vcr import FileRequest


def vcr(number: int) -> FileRequest:
    return FileRequest(type="file", id=UUID(int=number), block_size=512, path="disk.raw")


def attached(book: Ledger, volume: str = "v", job: str = "j", number: int = 1) -> Entry:
    """A volume that was built and activated."""
    entry = book.attach(volume, job, vcr(number), active=False)
    book.happened(entry, EntryEvent.BUILT)
    book.ended(entry.activation, JobEvent.SUCCEEDED)
    book.observe(entry, active=True)
    return entry


# -- tables -----------------------------------------------------------------------------------------------------------


def test_the_status_of_every_error_of_the_disk() -> None:
    assert {kind for kind in errors.ERRORS if status_of(_made(kind), faithful=False) == 400} == {
        errors.BlockSizeMismatch,
        errors.DataLenUnaligned,
        errors.InvalidNumberOfBlocks,
        errors.ModifyingReadOnlyRegion,
        errors.OffsetInvalid,
        errors.OffsetUnaligned,
        errors.RegionIncompatible,
        errors.ReplaceRequestInvalid,
        errors.Unsupported,
    }
    assert {kind for kind in errors.ERRORS if status_of(_made(kind), faithful=False) == 503} == {
        errors.IoError,
        errors.SnapshotFailed,
        errors.UpstairsInactive,
    }
    rest = set(errors.ERRORS) - set(STATUS_OF_ERROR)
    assert {status_of(_made(kind), faithful=False) for kind in rest} == {500} and len(rest) == 30


def _made(kind: type[errors.CrucibleError]) -> errors.CrucibleError:
    error = kind.__new__(kind)
    Exception.__init__(error)
    return error


def test_every_situation_has_a_status() -> None:
    assert set(STATUS_OF_SITUATION) == set(Situation)
    assert status_of(Refused(Situation.TAKEN, "x"), faithful=False) == 410


def test_what_may_be_asked_is_said_for_every_state_in_which_a_volume_is_known() -> None:
    assert set(ADMISSION) == set(product(set(EntryState) - {EntryState.GONE}, Use))


def test_every_state_is_left_and_reached() -> None:
    assert {state for state, _ in ENTRY_TRANSITIONS} == set(EntryState) - {EntryState.GONE}
    assert set(ENTRY_TRANSITIONS.values()) == set(EntryState) - {EntryState.BUILDING}
    assert {event for _, event in ENTRY_TRANSITIONS} == set(EntryEvent)
    assert {event for _, event in JOB_TRANSITIONS} == set(JobEvent)
    assert set(JOB_TRANSITIONS.values()) == set(JobState) - {JobState.RUNNING}


def test_a_detach_is_listed_wherever_it_is_admitted() -> None:
    """No request may cause a transition that the table does not list."""
    for state in set(EntryState) - {EntryState.GONE}:
        admitted = ADMISSION[state, Use.DETACH].value == "yes"
        assert admitted == ((state, EntryEvent.DETACH) in ENTRY_TRANSITIONS)


# -- attach -----------------------------------------------------------------------------------------------------------


def test_a_repetition_is_the_same_entry() -> None:
    book = Ledger()
    entry = book.attach("v", "j", vcr(1), active=False)
    assert book.attach("v", "j", vcr(1), active=False) is entry
    book.happened(entry, EntryEvent.BUILT)
    assert book.attach("v", "j", vcr(1), active=True) is entry
    assert list(book.jobs) == ["j"]


@pytest.mark.parametrize(("volume", "job", "number"), [("v", "j", 2), ("v", "k", 1), ("w", "j", 1)])
@pytest.mark.parametrize("built", [False, True])
def test_anything_else_is_a_conflict(volume: str, job: str, number: int, built: bool) -> None:
    book = Ledger()
    entry = book.attach("v", "j", vcr(1), active=False)
    if built:
        book.happened(entry, EntryEvent.BUILT)
    with pytest.raises(Refused, match="unsupported") as refused:
        book.attach(volume, job, vcr(number), active=False)
    assert refused.value.situation is Situation.CONFLICT
    assert book.volumes == ["v"] and list(book.jobs) == ["j"]


def test_what_could_not_be_built_leaves_its_ids_free() -> None:
    book = Ledger()
    book.happened(book.attach("v", "j", vcr(1), active=False), EntryEvent.NOT_BUILT)
    assert book.volumes == [] and book.jobs == {}
    book.attach("w", "j", vcr(2), active=False)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "VOLUMES_MAX", 2)
    monkeypatch.setattr(ledger, "JOBS_MAX", 3)
    book = Ledger()
    first = attached(book, "a", "a")
    attached(book, "b", "b")
    with pytest.raises(Refused, match="2 volumes") as refused:
        book.attach("c", "c", vcr(1), active=False)
    assert status_of(refused.value, faithful=False) == 503
    book.start(first, JobKind.SCRUB, "s", active=True)
    with pytest.raises(Refused, match="3 jobs"):
        book.start(first, JobKind.SCRUB, "t", active=True)
    book.happened(first, EntryEvent.DETACH)
    book.happened(first, EntryEvent.LEFT)
    book.attach("c", "c", vcr(1), active=False)


# -- use --------------------------------------------------------------------------------------------------------------


def test_a_volume_is_taken_only_when_it_was_active_once() -> None:
    book = Ledger()
    entry = book.attach("v", "j", vcr(1), active=False)
    book.happened(entry, EntryEvent.BUILT)
    book.admit(entry, Use.DATA, active=False)
    assert not entry.seen_active
    book.admit(entry, Use.LOOK, active=True)
    assert entry.seen_active
    with pytest.raises(Refused) as refused:
        book.admit(entry, Use.DATA, active=False)
    assert refused.value.situation is Situation.TAKEN
    book.admit(entry, Use.LOOK, active=False)
    book.admit(entry, Use.DETACH, active=False)
    with pytest.raises(errors.Unsupported, match="detach it here"):
        book.attach("v", "j", vcr(1), active=False)
    book.admit(entry, Use.DATA, active=True)


def test_while_a_volume_leaves() -> None:
    book = Ledger()
    entry = attached(book)
    book.happened(entry, EntryEvent.DETACH)
    with pytest.raises(errors.UpstairsDeactivating):
        book.admit(entry, Use.DATA, active=True)
    for use in (Use.DETACH, Use.ATTACH):
        with pytest.raises(Refused, match="call again"):
            book.admit(entry, use, active=True)
    book.admit(entry, Use.LOOK, active=True)
    book.happened(entry, EntryEvent.STAYED)
    book.admit(entry, Use.DATA, active=True)


def test_jobs_go_with_their_volume_and_no_other() -> None:
    book = Ledger()
    one, other = attached(book, "v", "j"), attached(book, "w", "k")
    for number, entry in enumerate((one, other, one)):
        book.ended(book.start(entry, JobKind.VALIDATE, str(number), active=True), JobEvent.REFUSED, "no")
    assert len(book.jobs_of("v")) == 3 and len(book.jobs_of("w")) == 2
    book.happened(one, EntryEvent.DETACH)
    assert len(book.jobs_of("v")) == 3
    book.happened(one, EntryEvent.LEFT)
    assert sorted(book.jobs) == ["1", "k"] and book.volumes == ["w"]
    with pytest.raises(Refused, match="no job '0'"):
        book.job("0")
    assert not book.job("1").ok


def test_a_job_has_one_end() -> None:
    book = Ledger()
    job = book.start(attached(book), JobKind.SCRUB, "s", active=True)
    assert not job.finished
    book.ended(job, JobEvent.CRASHED, "RuntimeError")
    with pytest.raises(Refused, match="died"):
        _ = job.ok
    with pytest.raises(KeyError):
        book.ended(job, JobEvent.SUCCEEDED)


STEPS = st.one_of(
    st.tuples(st.just("attach"), st.sampled_from("vw"), st.sampled_from("jk"), st.integers(1, 2), st.booleans()),
    st.tuples(st.sampled_from(list(EntryEvent)), st.sampled_from("vw")),
    st.tuples(st.just("start"), st.sampled_from("vw"), st.booleans()),
)


@given(st.lists(STEPS, max_size=40))
def test_ids_mean_one_thing_whatever_is_asked(steps: list[tuple[object, ...]]) -> None:
    """Whatever comes, every job has its volume, every volume its activation, and no two volumes share a job."""
    book = Ledger()
    started = 0
    for step in steps:
        entry = book.entries.get(str(step[1]))
        try:
            if step[0] == "attach":
                _, volume, job, number, active = step
                book.attach(str(volume), str(job), vcr(int(str(number))), active=bool(active))
            elif step[0] == "start" and entry is not None and entry.state is not EntryState.BUILDING:
                started += 1
                book.start(entry, JobKind.SCRUB, f"s{started}", active=bool(step[2]))
            elif entry is not None and (entry.state, step[0]) in ENTRY_TRANSITIONS:
                assert isinstance(step[0], EntryEvent)
                book.happened(entry, step[0])
        except (Refused, errors.CrucibleError):
            pass
        assert all(job.volume_id in book.entries for job in book.jobs.values())
        activations = [each.activation for each in book.entries.values()]
        assert all(book.jobs[job.id] is job for job in activations)
        assert len({job.id for job in activations}) == len(activations)


# -- chunks -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3 * chunks.CHUNK_BYTES_MAX + 5))
def test_pieces_cover_all_without_a_gap(length: int) -> None:
    end = 0
    for offset, size in chunks.pieces(length):
        assert offset == end and 0 < size <= chunks.CHUNK_BYTES_MAX
        end += size
    assert end == length


@given(st.binary(max_size=3000), st.sampled_from([512, 4096]))
def test_padding_adds_zeros_and_less_than_a_block(data: bytes, block_size: int) -> None:
    whole = chunks.padded(data, block_size)
    assert whole.startswith(data) and not any(whole[len(data) :])
    assert len(whole) % block_size == 0 and len(whole) - len(data) < block_size


@given(st.binary(max_size=3000))
def test_text_of_bytes_and_back(data: bytes) -> None:
    assert chunks.decode(chunks.encode(data)) == data


# -- what is written about it -----------------------------------------------------------------------------------------


def test_each_difference_that_is_written_down_names_tests_that_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "pantry.md").read_text()))
    tests = {
        name for path in root.glob("tests/pantry/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named and named <= tests, named - tests
