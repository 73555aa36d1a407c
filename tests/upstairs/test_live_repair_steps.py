"""The four jobs of each extent under live repair: who is sent what, what waits for what, and what a failure leaves.

Small regions, as in the real project's tests: four extents of three blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from upstairs_rig import Replica, Rig

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs.live_repair import LiveRepair, Stage, extents_ahead
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Mode, Phase
from crucible_emu.wire import messages as m

EXTENT, EXTENTS = 3, 4
CLOSE, FETCH, SETTLE, OPEN = range(4)
ACTIVE = [Phase.ACTIVE] * 3


class StepRig(Rig):
    """A rig in which replica ``fail[0]`` fails step ``fail[1]`` of extent ``fail[2]``."""

    def __init__(self) -> None:
        super().__init__(RegionDefinition(512, EXTENT, EXTENTS, UUID(int=9)))
        self.fail: tuple[int, int, int] | None = None

    def _answer_live(self, client: int, message: m.JobRequest, error: errors.CrucibleError | None) -> None:
        for extent in [] if self.core.repair is None else self.core.repair.under_way:
            if message.job_id not in extent.ids:
                continue
            if self.fail == (client, extent.ids.index(message.job_id), extent.extent_id):
                self.fail, error = None, errors.IoError("the medium is worn out")
        super()._answer_live(client, message, error)

    @property
    def repair(self) -> LiveRepair:
        assert self.core.repair is not None
        return self.core.repair

    @property
    def ids(self) -> range:
        """The four jobs of the first extent under way."""
        return self.repair.under_way[0].ids

    @property
    def phases(self) -> list[Phase]:
        return [client.state.phase for client in self.core.clients]

    def hold(self, *, held: bool = True) -> None:
        """Let every replica keep the jobs of a live repair until the test answers them; or not any more."""
        for replica in self.replicas:
            replica.answers_repairs = not held
        if not held:
            for client in CLIENTS:
                self.answer_live(client)

    def begin(self, target: int) -> LiveRepair:
        """Replica ``target`` was away and is to be repaired; nothing is answered."""
        self.hold()
        self.fault(target)
        self.reconnect()
        return self.repair

    def step(self, step: int) -> None:
        """Every replica does one of the four jobs of the first extent under way."""
        job_id = self.ids[step]
        for client in CLIENTS:
            self.do(client, job_id)

    def do(self, client: int, job_id: int) -> None:
        """A replica does one job of the repair, if it was sent it."""
        replica = self.replicas[client]
        for message in self.of_ids(client, [job_id]):
            replica.live.remove(message)
            replica.lived.append(message)
            replica.completed.add(job_id)
            self._answer_live(client, message, None)

    def go_to(self, extent_id: int) -> None:
        """Let extent ``extent_id`` be the first under way; it is being closed."""
        while self.repair.under_way[0].extent_id < extent_id:
            for step in (CLOSE, FETCH, SETTLE, OPEN):
                self.step(step)

    def closing(self, client: int) -> set[int]:
        """What the closing of the first extent under way waits for on a replica."""
        job_id = self.ids[CLOSE]
        (found,) = [message for message in self.replicas[client].live if message.job_id == job_id]
        return set(found.dependencies)

    def steps(self, client: int, extent_id: int = 0) -> list[type]:
        """What a replica did for an extent, in this order, as far as the messages name it."""
        return [
            type(message) for message in self.replicas[client].lived if getattr(message, "extent_id", -1) == extent_id
        ]

    def of_ids(self, client: int, ids: Sequence[int]) -> list[m.JobRequest]:
        """What a replica has not done yet of these jobs, in the order in which it was sent."""
        return [message for message in self.replicas[client].live if message.job_id in ids]

    def waiting(self, client: int, kind: type) -> m.JobRequest:
        (found,) = [message for message in self.replicas[client].live if isinstance(message, kind)]
        return found


def healthy(target: int) -> list[int]:
    return [client for client in CLIENTS if client != target]


def spoil(replica: Replica, extent_id: int) -> None:
    replica.flush[extent_id] = 99


# -- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("differing", [(), (0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("target", CLIENTS)
def test_every_extent_is_closed_fetched_settled_and_opened(target: int, differing: tuple[int, ...]) -> None:
    rig = StepRig().active()
    for extent_id in differing:
        spoil(rig.replicas[target], extent_id)
    rig.fault(target)
    rig.answer_all()
    first = rig.core.next_job_id
    rig.reconnect()
    assert [type(job) for job in rig.replicas[healthy(target)[0]].jobs] != [], "the last flush"
    rig.answer_all()
    assert rig.phases == ACTIVE and rig.core.repair is None
    for extent_id in range(EXTENTS):
        for client in healthy(target):
            assert rig.steps(client, extent_id) == [m.ExtentLiveFlushClose, m.ExtentLiveReopen]
        fetched = [m.ExtentLiveRepair] if extent_id in differing else []
        assert rig.steps(target, extent_id) == [m.ExtentLiveClose, *fetched, m.ExtentLiveReopen]
    for client in CLIENTS:
        ids = [message.job_id for message in rig.replicas[client].lived if not isinstance(message, m.Flush)]
        assert sorted(ids) == list(range(first, first + 4 * EXTENTS)), "all ids are used"
        for extent in range(EXTENTS):
            own = range(first + 4 * extent, first + 4 * extent + 4)
            assert [job_id for job_id in ids if job_id in own] == list(own), "one after the other"
    repaired = rig.core.clients[target]
    assert (repaired.extents_repaired, repaired.extents_confirmed) == (len(differing), EXTENTS - len(differing))
    flushes = {bytes(replica.flush) for replica in rig.replicas}
    assert len(flushes) == 1, "all replicas are equal"


@pytest.mark.parametrize("differs", [False, True])
@pytest.mark.parametrize("target", CLIENTS)
def test_the_four_jobs_of_an_extent_as_each_replica_gets_them(target: int, differs: bool) -> None:
    rig = StepRig().active()
    if differs:
        spoil(rig.replicas[target], 0)
    flush_number = rig.core.next_flush
    rig.begin(target)
    close, fetch, settle, reopen = rig.ids
    source = max(healthy(target))
    who = rig.core.identity
    for client in CLIENTS:
        opening, closing = rig.replicas[client].live
        assert opening == m.ExtentLiveReopen(who.upstairs_id, who.session_id, reopen, (settle,), 0)
        assert (closing.job_id, getattr(closing, "extent_id", None)) == (close, 0)
        assert type(closing) is (m.ExtentLiveClose if client == target else m.ExtentLiveFlushClose)
        if isinstance(closing, m.ExtentLiveFlushClose):
            assert (closing.flush_number, closing.gen_number) == (flush_number, 1)
    rig.step(CLOSE)
    for client in CLIENTS:
        fetching = rig.of_ids(client, (close, fetch, settle, reopen))[-1]
        assert (fetching.job_id, fetching.dependencies) == (fetch, (close,))
        if client == target and differs:
            assert isinstance(fetching, m.ExtentLiveRepair)
            assert (fetching.source_client_id, fetching.source_repair_address) == (
                source,
                rig.core.clients[source].repair_address,
            )
        else:
            assert isinstance(fetching, m.ExtentLiveNoOp)
    rig.step(FETCH)
    for client in CLIENTS:
        settling = rig.of_ids(client, (close, fetch, settle, reopen))[-1]
        assert isinstance(settling, m.ExtentLiveNoOp)
        assert (settling.job_id, settling.dependencies) == (settle, (fetch,))


def stages(rig: StepRig) -> list[tuple[int, Stage]]:
    return [(extent.extent_id, extent.stage) for extent in rig.repair.under_way]


def test_the_next_extent_is_closed_while_one_is_fetched_and_no_two_are_fetched_at_once() -> None:
    rig = StepRig().active()
    rig.core.extents_ahead = 2
    spoil(rig.replicas[1], 0)
    spoil(rig.replicas[1], 1)
    rig.begin(1)
    assert stages(rig) == [(0, Stage.CLOSING), (1, Stage.CLOSING)]
    rig.step(CLOSE)
    next_one = rig.repair.under_way[1].ids
    for client in CLIENTS:
        rig.do(client, next_one[CLOSE])
    assert stages(rig) == [(0, Stage.FETCHING), (1, Stage.CLOSING)]
    assert not rig.of_ids(1, [next_one[FETCH]]), "the first is still being fetched"
    rig.step(FETCH)
    assert stages(rig) == [(0, Stage.SETTLING), (1, Stage.FETCHING)]
    (fetching,) = rig.of_ids(1, [next_one[FETCH]])
    assert isinstance(fetching, m.ExtentLiveRepair) and fetching.extent_id == 1
    rig.step(SETTLE)
    rig.step(OPEN)
    assert stages(rig) == [(1, Stage.FETCHING), (2, Stage.CLOSING)]


def test_extents_that_need_no_fetch_wait_for_none() -> None:
    rig = StepRig().active()
    rig.core.extents_ahead = EXTENTS
    spoil(rig.replicas[1], 0)
    rig.begin(1)
    for extent in list(rig.repair.under_way):
        for client in CLIENTS:
            rig.do(client, extent.ids[CLOSE])
    assert stages(rig) == [(extent_id, Stage.FETCHING) for extent_id in range(EXTENTS)]
    kinds = {type(rig.of_ids(1, [extent.ids[FETCH]])[0]) for extent in rig.repair.under_way[1:]}
    assert kinds == {m.ExtentLiveNoOp}


@pytest.mark.parametrize(("extent_mib", "ahead"), [(1024, 2), (16, 2), (4, 8), (1, 16)])
def test_how_many_extents_are_under_way_depends_on_their_size(extent_mib: int, ahead: int) -> None:
    assert extents_ahead(extent_mib << 20) == ahead


def reconnect_first(rig: Rig, clients: tuple[int, ...]) -> None:
    later = [action for action in rig.reconnecting if action.client not in clients]
    rig.reconnecting = [action for action in rig.reconnecting if action.client in clients]
    rig.reconnect()
    rig.reconnecting += later


DIFFERENCES = {
    "equal": (5, 5, False, False),
    "dirty": (5, 5, True, True),
    "a lower generation": (4, 5, False, True),
    "a higher generation": (6, 5, False, True),
    "a lower flush number": (5, 4, False, True),
    "a higher flush number": (5, 6, False, True),
}


@pytest.mark.parametrize("targets", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_who_fetches_an_extent(difference: str, targets: tuple[int, ...]) -> None:
    """One or two replicas are repaired at a time; the first of them has the difference."""
    gen, flush, dirty, needed = DIFFERENCES[difference]
    rig = StepRig().active()
    for replica in rig.replicas:
        replica.gen[0], replica.flush[0] = 5, 5
    differing = rig.replicas[targets[0]]
    differing.gen[0], differing.flush[0], differing.dirty[0] = gen, flush, dirty
    if len(targets) == 1:
        rig.fault(targets[0])
        rig.reconnect()
    else:  # both are ready while the source is away: they begin together when it is back
        (source,) = set(CLIENTS) - set(targets)
        rig.drop(source)
        for target in targets:
            rig.fault(target)
        reconnect_first(rig, targets)
        assert rig.core.repair is None, "there is no source"
        rig.reconnect()
        assert rig.repair.source.index == source
    rig.answer_all()
    assert rig.phases == ACTIVE
    assert [(c.extents_repaired, c.extents_confirmed) for c in (rig.core.clients[target] for target in targets)] == [
        (int(needed), EXTENTS - int(needed)),
        (0, EXTENTS),
    ][: len(targets)]
    assert m.ExtentLiveRepair not in {kind for client in CLIENTS for kind in rig.steps(client, 1)}
    fetched = [client for client in CLIENTS if m.ExtentLiveRepair in rig.steps(client)]
    assert fetched == ([targets[0]] if needed else [])


# -- what waits for what ----------------------------------------------------------------------------------------------


def test_the_closing_waits_for_what_is_on_its_extent() -> None:
    """For writes, reads and flushes on it, also those that reach over its borders; for nothing else."""
    rig = StepRig().active()
    rig.write(9, 3)
    rig.flush("flush")
    flush_id = rig.core.next_job_id - 1
    inside, across, elsewhere = rig.write(1), rig.write(2, 3), rig.write(7, 2)
    read = rig.read("read", 5, client=0)
    rig.begin(1)
    fault_id = elsewhere.first_id + 2
    wanted = [
        {inside.first_id, across.first_id, fault_id},
        {across.first_id, read.first_id, flush_id},
        {elsewhere.first_id, flush_id},
        {flush_id},
    ]
    for extent_id in range(EXTENTS):
        rig.go_to(extent_id)
        assert rig.closing(0) == wanted[extent_id]
        assert rig.closing(2) == wanted[extent_id] - {read.first_id}, "it was not sent the read"
        assert rig.closing(1) == set(), "it was sent nothing of that"


def test_what_comes_later_waits_for_the_reopening() -> None:
    rig = StepRig().active()
    before = rig.write(4)
    rig.begin(1)
    opening = rig.ids[OPEN]
    write, beyond, read = rig.write(0, 2), rig.write(4), rig.read("read", 2, client=0)
    assert rig.dependencies(write) == rig.dependencies(read) == [opening]
    assert rig.dependencies(write, 1) == [opening]
    assert rig.dependencies(beyond) == [before.first_id]
    assert not beyond.in_progress[1]
    again = rig.write(1)
    assert rig.dependencies(again) == [write.first_id]
    rig.flush("flush")
    flush = rig.replicas[0].jobs[-1]
    assert set(rig.dependencies(flush)) == {write.first_id, again.first_id, read.first_id, beyond.first_id, opening}
    assert rig.dependencies(rig.write(0)) == [flush.first_id]
    rig.go_to(1)
    assert rig.closing(0) == {flush.first_id}, "a flush is on every extent"


def test_the_replica_under_repair_waits_for_nothing_that_it_was_not_sent() -> None:
    rig = StepRig().active()
    rig.write(0)
    rig.begin(1)
    skipped = rig.write(6)
    rig.flush("flush")
    flush_id = skipped.first_id + 1
    limited = rig.waiting(1, m.Flush)
    assert limited.dependencies == (rig.ids[OPEN],)
    assert skipped.first_id in rig.dependencies(rig.replicas[0].jobs[-1], 0)
    rig.go_to(2)
    assert [rig.closing(client) for client in CLIENTS] == [{flush_id}] * 3, "the flush was sent to it as well"
    later = rig.write(6)
    assert [rig.dependencies(later, client) for client in CLIENTS] == [[rig.ids[OPEN]]] * 3


# -- what guests do meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
@pytest.mark.parametrize("under_way", range(EXTENTS))
def test_a_write_goes_to_the_replica_under_repair_up_to_the_extent_under_way(under_way: int, kind: JobKind) -> None:
    rig = StepRig().active()
    rig.begin(1)
    rig.go_to(under_way)
    for extent_id in range(EXTENTS):
        for block in range(extent_id * EXTENT, (extent_id + 1) * EXTENT):
            job = rig.core.new_job(kind, [block], [1], 512, None)
            rig.core.write(job)
            rig.run()
            assert [job in replica.jobs for replica in rig.replicas] == [True, extent_id <= under_way, True]
            assert bool(job.skipped[1]) == (extent_id > under_way)
        assert rig.core.reader(extent_id * EXTENT) != 1, "nor is it read from"


@pytest.mark.parametrize("under_way", range(EXTENTS))
def test_a_flush_is_limited_only_for_the_replica_under_repair(under_way: int) -> None:
    rig = StepRig().active()
    rig.begin(1)
    rig.go_to(under_way)
    number = rig.core.next_flush
    rig.flush("flush")
    limited = rig.waiting(1, m.Flush)
    assert isinstance(limited, m.Flush)
    assert (limited.extent_limit, limited.flush_number) == (under_way, number)
    flushes = [rig.replicas[client].jobs[-1] for client in (0, 2)]
    assert flushes[0] is flushes[1] and flushes[0].kind is JobKind.FLUSH and flushes[0].first_id == limited.job_id
    rig.answer_all()
    assert rig.answers == {"flush": None}


# -- beginning and ending ---------------------------------------------------------------------------------------------


def test_live_repair_begins_only_when_it_is_due() -> None:
    rig = StepRig().active()
    rig.core.check_live_repair()
    assert rig.core.repair is None
    first = rig.begin(1)
    rig.core.check_live_repair()
    assert rig.core.repair is first, "one at a time"
    assert rig.phases == [Phase.ACTIVE, Phase.LIVE_REPAIR, Phase.ACTIVE]
    rig.hold(held=False)
    rig.answer_all()
    assert rig.core.repair is None and rig.phases == ACTIVE
    rig.core.check_live_repair()
    assert (rig.core.repair, rig.core.repairs_begun) == (None, 1)


def test_a_replica_that_is_ready_while_another_is_repaired_comes_next() -> None:
    rig = StepRig().active()
    rig.hold()
    rig.fault(0)
    rig.fault(1)
    reconnect_first(rig, (0,))
    assert [client.index for client in rig.repair.clients] == [0]
    rig.reconnect()
    assert rig.phases == [Phase.LIVE_REPAIR, Phase.LIVE_REPAIR_READY, Phase.ACTIVE]
    rig.hold(held=False)
    while rig.phases != ACTIVE:
        rig.answer_all()
    assert rig.core.repairs_begun == 2
    assert [client.live_repair_completed for client in rig.core.clients] == [1, 1, 0]


@pytest.mark.parametrize("leaving", CLIENTS)
def test_a_connection_that_ends_during_a_live_repair_leaves_a_faulted_replica(leaving: int) -> None:
    """Also that of a healthy one: what it would be replayed could wait for jobs of the repair that it never got."""
    rig = StepRig().active()
    repair = rig.begin(1)
    assert repair.source.index == 2
    rig.drop(leaving)
    assert repair.aborted == (leaving != 0), (
        "without its source or its target it cannot go on, without the third it can"
    )
    assert rig.core.clients[leaving].state.mode is Mode.FAULTED
    assert rig.core.clients[leaving].state.phase is Phase.START
    rig.hold(held=False)
    for _ in range(4):
        rig.answer_all()
        rig.reconnect()
    assert rig.phases == ACTIVE and rig.core.repair is None


@pytest.mark.parametrize("extent_id", [0, EXTENTS - 1])
@pytest.mark.parametrize("step", [CLOSE, FETCH, SETTLE, OPEN], ids=["close", "fetch", "settle", "open"])
@pytest.mark.parametrize("failing", CLIENTS)
@pytest.mark.parametrize("target", CLIENTS)
def test_whoever_fails_a_step_ends_the_repair(target: int, failing: int, step: int, extent_id: int) -> None:
    rig = StepRig().active()
    for each in range(EXTENTS):
        spoil(rig.replicas[target], each)
    rig.fault(target)
    rig.answer_all()
    first = rig.core.next_job_id
    rig.fail = (failing, step, extent_id)
    rig.reconnect()
    rig.answer_all()
    assert rig.fail is None, "it failed"
    assert rig.core.repair is None
    assert [client.live_repair_aborted for client in rig.core.clients] == [1, 1, 1]
    gone = {target, failing}
    assert {client.index for client in rig.core.clients if client.state.mode is Mode.FAULTED} == gone
    for client in set(CLIENTS) - gone:
        assert rig.core.clients[client].state.phase is Phase.ACTIVE
        lived = [message for message in rig.replicas[client].lived if not isinstance(message, m.Flush)]
        ids = sorted(message.job_id for message in lived)
        begun = len(ids) // 4
        assert ids == list(range(first, first + 4 * begun)), "every id of what was begun was sent"
        assert begun == extent_id + 1, "and no more"
        kinds = [type(message) for message in sorted(lived, key=lambda message: message.job_id)][-4:]
        assert kinds == [m.ExtentLiveFlushClose, m.ExtentLiveNoOp, m.ExtentLiveNoOp, m.ExtentLiveReopen]
    assert rig.news[-1].what == "finish" and rig.news[-1].aborted
    rig.reconnect()
    for _ in range(3):
        rig.answer_all()
    assert rig.phases == ACTIVE, "the next repair makes good for it"
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers["flush"] is None and len(rig.core.jobs) == 0


def test_after_an_abort_the_next_repair_begins_at_extent_0() -> None:
    rig = StepRig().active()
    rig.begin(1)
    rig.go_to(2)
    rig.drop(1)
    for step in (CLOSE, FETCH, SETTLE, OPEN):
        rig.step(step)
    rig.answer_all()
    assert rig.core.repair is None
    number = rig.core.next_flush
    rig.reconnect()
    opening = rig.replicas[1].live[0]
    assert isinstance(opening, m.ExtentLiveReopen) and opening.extent_id == 0
    assert (rig.repair.number, rig.repair.extent_id, rig.core.next_flush) == (2, 0, number + 1)


@pytest.mark.parametrize("late", CLIENTS)
@pytest.mark.parametrize("fails", [False, True])
def test_answers_that_come_early_are_used(late: int, fails: bool) -> None:
    """The race: two replicas have settled and opened the extent before the third has settled, or failed to."""
    rig = StepRig().active()
    repair = rig.begin(1)
    rig.step(CLOSE)
    rig.step(FETCH)
    for client in healthy(late):
        rig.answer_live(client)
        assert m.ExtentLiveReopen in rig.steps(client)
    assert repair.under_way[0].extent_id == 0 and rig.core.repair is repair
    if fails:
        rig.fail = (late, SETTLE, 0)
    rig.hold(held=False)
    rig.answer_all()
    if fails:
        assert rig.core.clients[late].live_repair_aborted == 1
        assert rig.core.clients[late].state.mode is Mode.FAULTED
        assert rig.core.repair is None
        rig.reconnect()
    for _ in range(3):
        rig.answer_all()
    assert rig.phases == ACTIVE


@pytest.mark.parametrize("failing", CLIENTS)
def test_an_error_report_about_a_repair_job_ends_the_repair(failing: int) -> None:
    """A real Downstairs reports a fetch that failed, and may go on; it is not waited for."""
    rig = StepRig().active()
    spoil(rig.replicas[1], 0)
    repair = rig.begin(1)
    rig.step(CLOSE)
    who, job_id = rig.core.identity, rig.ids[FETCH]
    message = m.ErrorReport(who.upstairs_id, who.session_id, job_id, errors.RepairRequestError("nobody there"))
    rig.core.message(failing, rig.core.clients[failing].connection_id, message)
    rig.run()
    assert failing in rig.hung_up
    rig.hold(held=False)
    rig.answer_all()
    assert repair.aborted and rig.core.repair is None and set(rig.hung_up) == {1, failing}
    rig.reconnect()
    for _ in range(3):
        rig.answer_all()
    assert rig.phases == ACTIVE and rig.core.clients[1].live_repair_completed == 1
