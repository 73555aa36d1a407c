"""The explorer: every scenario is clean by itself, a slice of all cases finds nothing, and what is broken is found."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from nexus_commands import environment, outcome

from nexus.explore import campaign, matrix, plan
from nexus.explore.cases import Case, Interference, Moment, parse
from nexus.explore.run import run_case
from nexus.explore.scenarios import ALONE, SCENARIOS
from nexus.explore.without import UnknownSafeguard, removals, removed

GUIDE = Path(__file__).parents[2] / "docs" / "explorer.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HAS_FOUND = ["||", "test", "$?", "=", "1"]
"""Behind a command of the guide that finds something."""
SLICE = 2999
"""A case of so many is run in the suite; all of them are a long run of their own."""
QUICK = ("create-image", "delete-image", "create-read-only-disk")


def nexus(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus", "explore", *arguments],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_by_itself_leaves_nothing_wrong(name: str) -> None:
    outcome = run_case(Case(name))
    assert outcome.violations == []
    assert {each.saga for each in outcome.passed} >= set(SCENARIOS[name].sagas) - set(ALONE)


def test_a_slice_of_all_cases_finds_nothing() -> None:
    cases = [case for each in SCENARIOS.values() for case in plan.every_nth(plan.one(each), SLICE)]
    report = campaign.run(cases, processes=1)
    assert report.runs >= len(SCENARIOS)
    assert [(each.violation, each.replay) for each in report.findings] == []


def test_every_operation_is_tried_at_every_node_of_a_deletion() -> None:
    scenario = SCENARIOS["delete-snapshot"]
    cells = {
        (each.moment.label, each.operation)
        for case in plan.one(scenario)
        for each in case.interferences
        if each.moment.saga == "snapshot-delete"
    }
    labels = {label for label, _ in cells}
    assert {"DELETE_SNAPSHOT_RECORD", "DELETE_VOLUME/DECREASE_COUNT"} <= labels
    for label in labels:
        assert {(label, operation) for operation in scenario.operations} <= cells


def test_a_case_is_read_as_it_was_written() -> None:
    moment = Moment("disk-delete", "DELETE_VOLUME(params)", "after-effect", 2)
    case = Case("delete-disk", (Interference(moment, "crash"), Interference(moment, "delete-copy")))
    assert parse(str(case)) == case
    assert parse("delete-disk") == Case("delete-disk")
    with pytest.raises(ValueError, match="no interference"):
        parse("delete-disk: something")


RACES = {
    "nexus_dies_while_an_operator_tells_it_that_a_sled_is_lost": (
        "delete-disk: disk-delete#DELETE_VOLUME/DELETE_REGIONS@after-effect=expunge-another; "
        "disk-delete#DELETE_VOLUME/DELETE_RUNNING_SNAPSHOTS@after-effect=crash"
    ),
    "volume_deleted_while_a_pantry_that_cannot_flush_repairs_it": (
        "create-snapshot-of-guest: snapshot-create-attached#REGIONS_ENSURE@after-record=expunge-another; "
        "snapshot-create-attached#SPACE_ACCOUNT@after-effect=all-tasks"
    ),
    "nexus_dies_while_a_user_waits_for_another_saga_of_it": (
        "delete-snapshot: snapshot-delete#DELETE_DESTINATION_VOLUME(params)@after-effect=snapshot-copy; "
        "snapshot-delete#DELETE_VOLUME/FIND_FREED_REGIONS@after-record=crash-and-restart"
    ),
    "snapshot_undone_after_a_region_of_its_destination_was_replaced": (
        "create-snapshot: snapshot-create-detached#CREATE_DESTINATION_VOLUME_RECORD@after-record=lost-and-replaced; "
        "snapshot-create-detached#SPACE_ACCOUNT@before-effect=error"
    ),
    "disk_undone_after_a_region_of_its_volume_was_replaced": (
        "create-disk: disk-create#CREATE_VOLUME_RECORD@after-record=lost-and-replaced; "
        "disk-create#FINALIZE_DISK_RECORD@before-effect=error"
    ),
    "import_ended_after_two_of_its_copies_were_lost": (
        "import-disk: finalize-disk-with-snapshot#SNAPSHOT/LOOK_AT_DISK@after-effect=expunge-another; "
        "finalize-disk-with-snapshot#SNAPSHOT/REGIONS_ENSURE_UNDO@after-effect=expunge-another"
    ),
    "guest_writes_a_block_before_and_after_the_moment_of_a_snapshot": (
        "create-snapshot-of-guest: snapshot-create-attached#CREATE_SNAPSHOT_RECORD@after-record=guest-writes; "
        "snapshot-create-attached#RECORD_LEDGER@after-effect=guest-writes"
    ),
    "last_good_copy_is_not_lost_to_chance": (
        "lose-region: region-replacement-start#GET_OLD_REGION_ADDRESS@after-effect=expunge-another; "
        "region-replacement-start#REPLACE_REGION_IN_VOLUME@after-effect=expunge-another"
    ),
}
"""Of two interferences, found once. Without the mends of the first two a region was destroyed that a stash still named;
the others are about what a person has to do, and what nobody can do anything about."""


@pytest.mark.parametrize("case", RACES.values(), ids=RACES)
def test_a_race_of_two_interferences_ends_well(case: str) -> None:
    outcome = run_case(parse(case))
    assert outcome.result().fired
    assert outcome.violations == [], "\n".join(outcome.story)


def test_no_sled_is_lost_that_has_the_last_good_copy() -> None:
    story = run_case(parse(RACES["last_good_copy_is_not_lost_to_chance"])).story
    assert story.count("expunge-another: done") == 1 and story.count("expunge-another: refused") == 1


def test_no_sled_is_lost_where_three_copies_would_not_find_three_sleds() -> None:
    """No request can end then, and nobody is to blame."""
    moments = (
        "REGIONS_ENSURE_UNDO@after-effect",
        "CREATE_DESTINATION_VOLUME_RECORD@after-record",
        "SPACE_ACCOUNT@after-record",
        "CREATE_SNAPSHOT_RECORD@before-undo",
    )
    drawn = "; ".join(f"snapshot-create-attached#{moment}=expunge-another" for moment in moments)
    outcome = run_case(parse(f"create-snapshot-of-guest: {drawn}"))
    assert outcome.story.count("expunge-another: done") == 3, outcome.story
    assert outcome.story.count("expunge-another: refused") == 1
    assert outcome.violations == []


def test_chance_draws_from_what_can_be_interfered_with() -> None:
    """Some scenarios are a story that is told once, with no moment in it."""
    for each in SCENARIOS.values():
        assert each.operations or each.sagas == ALONE, each.name
    named = [SCENARIOS[name] for name in ("lose-two-copies", "stranger", "delete-image")]
    drawn = list(plan.chance(20, 1, named))
    assert {case.scenario for case in drawn} == {"delete-image"}
    assert all(2 <= len(case.interferences) <= 4 for case in drawn)


def test_the_same_cases_leave_the_same_trace_however_they_are_split_and_hashed() -> None:
    """Two processes and one; and under two seeds of Python's hashes."""
    arguments = ("--scenario", "create-image", "--scenario", "verify", "--every", "60", "--json")
    found = [
        json.loads(nexus(*arguments, "--processes", processes, **{"PYTHONHASHSEED": seed}).stdout)
        for processes, seed in (("1", "1"), ("2", "2"))
    ]
    assert found[0]["runs"] == found[1]["runs"] > 5
    assert found[0]["trace_blake3"] == found[1]["trace_blake3"]
    assert found[0]["violations"] == []


@pytest.mark.parametrize("safeguard", ["R14", "R15", "W24"])
def test_what_is_taken_out_is_missed(safeguard: str) -> None:
    removal = removals()[safeguard]
    cases = (case for each in plan.scenarios_named(removal.scenarios) for case in plan.one(each))
    report = campaign.run(cases, processes=1, without=safeguard, stop_at_first=True)
    assert report.findings, f"nothing misses {safeguard}"
    again = run_case(parse(report.findings[0].case))
    assert again.violations == [], "it is back"


def test_an_unknown_safeguard_is_told() -> None:
    with pytest.raises(UnknownSafeguard, match="R14"), removed("R99"):
        pass


def test_a_finding_is_told_by_its_shortest_story() -> None:
    """Of two interferences, one has nothing to do with it."""
    at = "image-delete#DELETE_IMAGE_RECORD@after-effect"
    with removed("R14"):
        result = campaign.result_of(f"delete-image: {at}=delete-copy; {at}=time-passes; {at}=crash")
        assert result.violations
        shortest = campaign.shrunk(result)
        assert shortest.violations and "time-passes" not in shortest.case
        case = parse(shortest.case)
        for number in range(len(case.interferences)):
            assert not campaign.result_of(str(case.without(number))).violations


def test_the_matrix_is_green_or_has_a_story(tmp_path: Path) -> None:
    good = campaign.Result(f"{QUICK[0]}: image-create#A@after-effect=crash", (), (), "", True)
    bad = campaign.Result(f"{QUICK[0]}: image-create#B@after-effect=crash", ("I1: <wrong>",), ("first",), "", True)
    page = matrix.as_html([good, bad])
    assert '<td class="g">1</td>' in page and '<a href="#f1">1/1</a>' in page
    assert "first\nFOUND I1: &lt;wrong&gt;" in page
    pytest.importorskip("matplotlib")
    matrix.draw([good, bad], tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_the_guide_is_as_it_is_told(tmp_path: Path) -> None:
    """Its commands, as they stand there, but in this process: to import what the explorer needs takes two seconds."""
    told = ""
    for line in "".join(BLOCK.findall(GUIDE.read_text())).splitlines():
        words = shlex.split(line)
        expected = 0
        if words[-5:] == HAS_FOUND:
            words, expected = words[:-5], 1
        assert words[:2] == ["nexus", "explore"], line
        code, out, err = outcome(*words[1:], cwd=tmp_path)
        assert (code, err) == (expected, ""), (line, out)
        told += out
    assert (tmp_path / "matrix.html").read_text().startswith("<!doctype html>")
    assert "nothing is wrong" in told and "nexus explore --replay" in told
