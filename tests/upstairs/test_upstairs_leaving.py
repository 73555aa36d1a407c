"""How a disk comes into service and leaves it, with replicas that are there, away, slow, or read-only."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from upstairs_rig import Rig

from crucible_emu import errors
from crucible_emu.upstairs import dispatcher
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.wire import messages as m


def phases(rig: Rig) -> list[Phase]:
    return [client.state.phase for client in rig.core.clients]


def deactivate(rig: Rig) -> None:
    rig.core.deactivate("leave")
    rig.run()


# -- coming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 2])
def test_an_activation_may_give_the_generation(generation: int) -> None:
    rig = Rig(generation=1)
    rig.activate("activate", generation)
    assert rig.answers == {"activate": None} and rig.core.generation == generation
    for replica in rig.replicas:
        (promotion,) = [message for message in replica.seen if isinstance(message, m.PromoteToActive)]
        assert promotion.generation == generation


@pytest.mark.parametrize("there", list(chain.from_iterable(combinations(CLIENTS, n) for n in (1, 2, 3))), ids=str)
def test_a_read_only_set_activates_with_any_of_its_replicas(there: tuple[int, ...]) -> None:
    rig = Rig(read_only=True)
    for client in CLIENTS:
        rig.replicas[client].reachable = client in there
    rig.activate()
    assert rig.answers.pop("activate") is None
    assert rig.core.readers == list(there)
    rig.read("read", 7)
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers == {"read": None, "flush": None}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_faulted_replica_of_a_read_only_set_joins_again_without_repair(client: int) -> None:
    rig = Rig(read_only=True).active()
    rig.core.can_replay = False
    rig.drop(client)
    assert rig.core.clients[client].state.mode is Mode.FAULTED
    rig.reconnect()
    assert phases(rig) == [Phase.ACTIVE] * 3
    assert rig.core.clients[client].ro_lr_skipped == 1
    assert rig.core.repair is None and not rig.replicas[client].lived
    rig.read("read", client=client)
    rig.answer_all()
    assert rig.answers == {"read": None} and len(rig.core.jobs) == 0


@pytest.mark.parametrize("limit", ["jobs", "bytes"])
def test_a_replica_that_falls_silent_and_owes_too_much_is_faulted_at_once(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """As long as it answers pings it stays, whatever it owes."""
    monkeypatch.setattr(dispatcher, "OFFLINE_JOBS_MAX", 5 if limit == "jobs" else 1000)
    monkeypatch.setattr(dispatcher, "OFFLINE_BYTES_MAX", 5 * 512 if limit == "bytes" else 10**9)
    rig = Rig().active()
    for block in range(20):
        rig.write(block)
        rig.answer(0)
        rig.answer(2)
    assert phases(rig) == [Phase.ACTIVE] * 3
    rig.drop(1, "silent for 45 s")
    assert rig.core.clients[1].state.mode is Mode.FAULTED
    assert rig.core.jobs.jobs_in_progress[1] == 0
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == [Phase.ACTIVE] * 3
    assert rig.core.clients[1].live_repair_completed == 1


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_a_disk_with_nothing_to_do_leaves_without_a_flush() -> None:
    rig = Rig().active()
    rig.core.deactivate("leave")
    hangups = rig.core.take_actions()
    assert [type(action).__name__ for action in hangups] == ["Hangup"] * 3
    for left in (2, 1, 0):
        assert rig.core.state is UpstairsState.DEACTIVATING
        client = rig.core.clients[left]
        rig.core.stopped(left, client.connection_id, "asked to")
    rig.run()
    assert rig.core.state is UpstairsState.INITIALIZING
    assert rig.answers == {"leave": None}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_each_replica_is_let_go_when_it_has_done_everything(kind: JobKind, order: tuple[int, ...]) -> None:
    """One by one; none comes back before the next activation, and then all do."""
    rig = Rig().active()
    rig.core.write(rig.core.new_job(kind, [0], [1], 512, None))
    rig.run()
    deactivate(rig)
    for gone, client in enumerate(order):
        assert rig.answers == {}
        assert [job.kind for job in rig.replicas[client].jobs] == [kind, JobKind.FLUSH]
        rig.answer(client)
        assert rig.hung_up == list(order[:gone])
        rig.answer(client)
        assert rig.hung_up == list(order[: gone + 1])
        assert rig.core.clients[client].state.parked
        rig.activate(f"meanwhile {gone}")
        assert rig.reconnecting == []
        expected = errors.UpstairsDeactivating() if gone < 2 else None
        assert rig.answers.pop(f"meanwhile {gone}") == expected
    assert rig.answers == {"leave": None}
    assert phases(rig) == [Phase.ACTIVE] * 3, "the last activation has brought all back"


@pytest.mark.parametrize("away", [(0,), (0, 1), (0, 1, 2)], ids=str)
def test_deactivation_with_replicas_away_and_nothing_to_do(away: tuple[int, ...]) -> None:
    rig = Rig().active()
    for client in away:
        rig.drop(client)
    deactivate(rig)
    assert rig.answers == {"leave": None}
    assert rig.core.state is UpstairsState.INITIALIZING
    rig.activate("again", 2)
    rig.reconnect()
    assert rig.answers["again"] is None and phases(rig) == [Phase.ACTIVE] * 3


def test_deactivation_with_all_replicas_away_fails_what_is_under_way() -> None:
    rig = Rig().active()
    rig.write()
    rig.read("read")
    for client in CLIENTS:
        rig.drop(client)
    rig.flush("flush")
    assert rig.answers == {}, "all three are expected back"
    deactivate(rig)
    assert isinstance(rig.answers["read"], errors.IoError)
    assert isinstance(rig.answers["flush"], errors.IoError)
    assert rig.answers["leave"] is None
    assert len(rig.core.jobs) == 0


def test_a_read_only_replica_that_comes_late_is_let_go_with_the_others() -> None:
    """The race: it is being negotiated with while the disk is leaving."""
    rig = Rig(read_only=True)
    late = rig.replicas[2]
    negotiate = late.negotiate
    late.negotiate = lambda message: []  # type: ignore[method-assign]
    rig.active()
    rig.read("read", client=0)
    rig.core.deactivate("leave")
    late.negotiate = negotiate  # type: ignore[method-assign]
    hello = late.seen[-1]
    for reply in negotiate(hello):
        rig.core.message(2, rig.core.clients[2].connection_id, reply)
    rig.run()
    rig.answer_all()
    assert rig.answers == {"read": None, "leave": None}
    assert rig.core.state is UpstairsState.INITIALIZING
    assert all(client.state.parked for client in rig.core.clients)


def test_a_flush_under_way_when_the_disk_leaves_is_answered_when_all_three_have_done_it() -> None:
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    deactivate(rig)
    for client in (0, 1):
        for _ in range(3):
            rig.answer(client)
        assert rig.answers == {}
    rig.answer(2)
    rig.answer(2)
    assert rig.answers == {"flush": None}
    rig.answer(2)
    assert rig.answers == {"flush": None, "leave": None}
