"""What the control API shows of an Upstairs, as the pure functions make it: info, work, trace."""

from __future__ import annotations

import json
from typing import Any

import pytest
from upstairs_rig import SESSION, UPSTAIRS, Rig

from crucible_emu import errors
from crucible_emu.upstairs import status
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import CONNECTING, ClientState, Mode, Phase, StopReason, UpstairsState
from crucible_emu.upstairs.summary import COMPLETED_MAX, JOB_TYPES

ACTIVE = {"type": "active"}


def plain(document: Any) -> Any:
    """The document as it arrives over HTTP."""
    return json.loads(json.dumps(document))


# -- states -----------------------------------------------------------------------------------------------------------


def test_every_state_of_a_client_has_its_json() -> None:
    assert status.client_state(ClientState(Phase.WAIT_CONNECT)) == {
        "type": "connecting",
        "value": {"state": {"type": "wait_connect"}, "mode": "new"},
    }
    assert status.client_state(ClientState(Phase.START, Mode.OFFLINE))["value"] == {
        "state": {"type": "start"},
        "mode": "offline",
    }
    assert status.client_state(ClientState(Phase.ACTIVE, Mode.REPLACED)) == ACTIVE
    assert status.client_state(ClientState(Phase.LIVE_REPAIR, Mode.FAULTED)) == {"type": "live_repair"}
    stopping = {
        reason: status.client_state(ClientState(Phase.STOPPING, Mode.NEW, reason))["value"] for reason in StopReason
    }
    assert stopping[StopReason.IO_ERROR] == {"type": "fault", "value": "i_o_error"}
    assert stopping[StopReason.FAILED_RECONCILE] == {"type": "negotiation_failed", "value": "failed_reconcile"}
    assert stopping[StopReason.REPLACING] == {"type": "replacing"}
    assert len({json.dumps(value) for value in stopping.values()}) == len(StopReason)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (ClientState(Phase.WAIT_CONNECT), "New"),
        (ClientState(Phase.WAIT_FOR_PROMOTE, Mode.OFFLINE), "Offline"),
        (ClientState(Phase.START, Mode.FAULTED), "Faulted"),
        (ClientState(Phase.GET_EXTENT_VERSIONS, Mode.REPLACED), "Replaced"),
        (ClientState(Phase.WAIT_QUORUM), "WaitQuorum"),
        (ClientState(Phase.RECONCILE), "Reconcile"),
        (ClientState(Phase.LIVE_REPAIR_READY, Mode.FAULTED), "LiveRepairReady"),
        (ClientState(Phase.ACTIVE), "Active"),
        (ClientState(Phase.LIVE_REPAIR, Mode.FAULTED), "LiveRepair"),
        (ClientState(Phase.STOPPING, Mode.NEW, StopReason.REPLACING), "Replacing"),
        (ClientState(Phase.STOPPING, Mode.NEW, StopReason.DISABLED), "Disabled"),
        (ClientState(Phase.STOPPING, Mode.NEW, StopReason.DEACTIVATED), "Deactivated"),
        (ClientState(Phase.STOPPING, Mode.NEW, StopReason.INCOMPATIBLE_VERSION), "NegotiationFailed"),
        (ClientState(Phase.STOPPING, Mode.NEW, StopReason.OFFLINE_DEACTIVATED), "Faulted"),
    ],
)
def test_short_names(state: ClientState, name: str) -> None:
    assert status.short_name(state) == name


def test_every_state_and_kind_is_covered() -> None:
    assert set(status.PHASE_TYPES) == set(Phase)
    assert set(status.STOP_REASONS) == set(StopReason)
    assert set(status.UPSTAIRS_STATES) == set(UpstairsState)
    assert set(JOB_TYPES) == set(JobKind)
    for phase in CONNECTING:
        assert status.client_state(ClientState(phase))["value"]["state"] == {"type": status.PHASE_TYPES[phase]}


# -- info -------------------------------------------------------------------------------------------------------------


def test_info_of_a_disk_that_is_not_active_yet() -> None:
    found = status.info(Rig().core)
    assert found["state"] == "initializing"
    assert [state["type"] for state in found["ds_state"]] == ["connecting"] * 3


def test_info_of_a_disk_in_use() -> None:
    rig = Rig().active()
    rig.write()
    rig.read("read", 3)
    rig.flush("flush")
    assert plain(status.info(rig.core)) == {
        "state": "active",
        "ds_state": [ACTIVE] * 3,
        "up_jobs": 2,  # the read and the flush; nobody waits for the write
        "ds_jobs": 3,
        "reconcile_done": 0,
        "reconcile_needed": 0,
        "extents_repaired": [0, 0, 0],
        "extents_confirmed": [0, 0, 0],
        "extent_limit": [None, None, None],
        "live_repair_completed": [0, 0, 0],
        "live_repair_aborted": [0, 0, 0],
    }


def test_info_while_the_disk_is_deactivated() -> None:
    rig = Rig().active()
    rig.write()
    rig.core.deactivate("leave")
    rig.run()
    assert status.info(rig.core)["state"] == "deactivating"


def test_info_during_a_reconciliation_counts_tasks() -> None:
    rig = Rig()
    rig.replicas[1].gen[2] = 5
    rig.replicas[0].answers_repairs = False
    rig.core.activate("activate", 7)
    rig.run()
    found = status.info(rig.core)
    assert found["ds_state"][0]["value"] == {"state": {"type": "reconcile"}, "mode": "new"}
    # Closing waits for replica 0; the flush of the source, replica 1, is done.
    assert (found["reconcile_done"], found["reconcile_needed"]) == (1, 3)


def test_info_after_a_reconciliation() -> None:
    rig = Rig(generation=7)
    rig.replicas[1].gen[2] = 5
    rig.active()
    found = status.info(rig.core)
    assert (found["reconcile_done"], found["reconcile_needed"]) == (4, 0)


def test_info_during_a_live_repair_names_the_extent_for_the_client_under_repair() -> None:
    rig = Rig().active()
    rig.fault(1)
    rig.replicas[0].answers_repairs = False
    rig.reconnect()
    found = status.info(rig.core)
    assert found["ds_state"][1] == {"type": "live_repair"}
    assert found["extent_limit"] == [None, 0, None]
    rig.replicas[0].answers_repairs = True
    rig.answer_live(0)
    rig.answer_all()
    found = status.info(rig.core)
    assert found["extent_limit"] == [None, None, None]
    assert found["live_repair_completed"] == [0, 1, 0]
    assert found["extents_confirmed"][1] + found["extents_repaired"][1] == 4


# -- work -------------------------------------------------------------------------------------------------------------


def test_work_shows_each_operation_of_a_train_with_what_became_of_it() -> None:
    rig = Rig().active()
    train = rig.core.new_job(JobKind.WRITE, [0, 5], [2, 1], 3 * 512, None)
    rig.core.write(train)
    rig.run()
    rig.core.done(train, 0, 0b01)
    rig.drop(2)
    rig.read("read", 5, client=0)
    first = train.first_id
    found = plain(status.work(rig.core))
    assert found["completed"] == []
    assert found["jobs"] == [
        {
            "id": first,
            "replay": False,
            "job_type": "Write",
            "num_blocks": 2,
            "deps": [],
            "ack_status": "acked",
            "state": ["Done", "Sent", "Sent"],
        },
        {
            "id": first + 1,
            "replay": False,
            "job_type": "Write",
            "num_blocks": 1,
            "deps": [],
            "ack_status": "acked",
            "state": ["Sent", "Sent", "Sent"],
        },
        {
            "id": first + 2,
            "replay": False,
            "job_type": "Read",
            "num_blocks": 1,
            "deps": [first + 1],
            "ack_status": "not_acked",
            "state": ["Sent", "Skip", "Skip"],
        },
    ]


def test_work_shows_errors_with_the_blank_of_the_real_one_and_replays() -> None:
    rig = Rig().active()
    job = rig.write()
    rig.answer(0)
    rig.answer(1)
    rig.answer(2, errors.IoError("worn out"))
    assert status.work(rig.core)["jobs"][0]["state"] == ["Done", "Done", " Err"]
    rig = Rig().active()
    job = rig.write()
    rig.drop(1)
    rig.reconnect()
    (shown,) = status.work(rig.core)["jobs"]
    assert (shown["id"], shown["replay"]) == (job.first_id, True)


def test_the_last_retired_jobs_are_remembered_oldest_first() -> None:
    rig = Rig().active()
    written = [rig.write(number).first_id for number in range(10)]
    rig.answer_all()
    assert status.work(rig.core)["completed"] == [], "they are kept for a replay"
    rig.flush("flush")
    rig.answer_all()
    found = status.work(rig.core)
    assert found["jobs"] == []
    assert [shown["id"] for shown in found["completed"]] == [*written[-7:], written[-1] + 1]
    assert [shown["job_type"] for shown in found["completed"]] == ["Write"] * 7 + ["Flush"]
    assert {tuple(shown["state"]) for shown in found["completed"]} == {("Done",) * 3}


def test_a_long_train_does_not_make_the_ring_longer() -> None:
    rig = Rig().active()
    train = rig.core.new_job(JobKind.WRITE, list(range(20)), [1] * 20, 20 * 512, None)
    rig.core.write(train)
    rig.flush("flush")
    rig.answer_all()
    completed = status.work(rig.core)["completed"]
    assert len(completed) == COMPLETED_MAX
    assert completed[-1]["job_type"] == "Flush" and completed[-2]["id"] == train.first_id + 19


def test_reads_are_remembered_too_and_nothing_of_the_guest_is_held() -> None:
    rig = Rig().active()
    rig.read("read", 4)
    rig.answer_all()
    (shown,) = status.work(rig.core)["completed"]
    assert (shown["job_type"], shown["num_blocks"], shown["ack_status"]) == ("Read", 1, "acked")
    assert not hasattr(rig.core.completed[0], "handle") and not hasattr(rig.core.completed[0], "rows")


def test_jobs_of_a_live_repair_show_their_extent() -> None:
    rig = Rig().active()
    rig.fault(1)
    rig.replicas[0].answers_repairs = False
    rig.reconnect()
    shown = {job["job_type"]: job["num_blocks"] for job in status.work(rig.core)["jobs"] if job["job_type"] != "Write"}
    assert shown == {"FClose": 0, "Reopen": 0}


def test_a_disk_in_this_process_remembers_its_flushes() -> None:
    rig = Rig(remote=False).active()
    rig.write()
    rig.flush("flush")
    rig.answer_all()
    assert [shown["job_type"] for shown in status.work(rig.core)["completed"]] == ["Flush"]
    assert status.work(rig.core)["completed"][0]["deps"] == []


# -- trace and counters -----------------------------------------------------------------------------------------------


def test_the_tracing_record() -> None:
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    rig.answer(0)
    found = plain(status.trace(rig.core, (0, 5, 7)))
    assert found["upstairs_id"] == str(UPSTAIRS) and found["session_id"] == str(SESSION)
    assert found["ds_state"] == ["Active"] * 3
    assert found["ds_io_count"] == {
        "in_progress": [1, 2, 2],
        "done": [1, 0, 0],
        "skipped": [0, 0, 0],
        "error": [0, 0, 0],
    }
    assert (found["up_count"], found["ds_count"]) == (1, 2)
    assert found["write_bytes_out"] == 512
    assert found["ds_delay_us"] == [0, 5, 7]
    assert found["ds_connected"] == [1, 1, 1]
    assert found["ds_extent_limit"] == 0
    assert found["next_job_id"] == rig.core.next_job_id


def test_jobs_are_counted_once_when_they_are_acknowledged() -> None:
    rig = Rig().active()
    rig.read("read")
    rig.flush("flush")
    assert rig.core.acknowledged[JobKind.FLUSH] == 0
    rig.answer_all()
    assert (rig.core.acknowledged[JobKind.READ], rig.core.acknowledged[JobKind.FLUSH]) == (1, 1)
    rig.fault(1)
    rig.reconnect()
    rig.answer_all()
    extents = rig.definition.extent_count
    for kind in (JobKind.EXTENT_CLOSE, JobKind.EXTENT_REPAIR, JobKind.EXTENT_NO_OP, JobKind.EXTENT_REOPEN):
        assert rig.core.acknowledged[kind] == extents
    assert rig.core.acknowledged[JobKind.FLUSH] == 2, "and the flush that ends the repair"
    rig.read("failed")
    for client in CLIENTS:
        rig.drop(client)
        rig.core.clients[client].state = ClientState(Phase.START, Mode.FAULTED)
    rig.core.try_waiting_reads()
    rig.run()
    assert isinstance(rig.answers["failed"], errors.IoError)
    assert rig.core.acknowledged[JobKind.READ] == 2
