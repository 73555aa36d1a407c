"""The Downstairs itself: sessions, takeover, jobs and the order of work, with no I/O, clock or chance of its own.

What it is for: messages go in (:meth:`Downstairs.receive`), outcomes of work go in (:meth:`Downstairs.work_done`),
actions come out: send this, close that, run this work. A shell carries them out, over sockets (``server``) or for an
Upstairs in the same process (``local``); a test or a simulation carries them out as it likes, and may choose any order
in which work that was handed out ends.

What it guarantees: per connection, an answer leaves after the work it speaks of has ended and before any job that
depends on it starts. Nothing of a connection that ended is answered, and nothing of it runs once another one is
promoted. What a peer does wrong costs one answer or its own connection, by the table in ``admission``.

A job that fails is answered with its error, whereupon the Upstairs repairs this replica; ``faithful`` does what the
real program does instead: ErrorReport, and the same job again, though after a pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crucible_emu.downstairs.admission import Admission, Refused, compare_ids
from crucible_emu.downstairs.answers import answer
from crucible_emu.downstairs.in_order import InOrderJobs
from crucible_emu.downstairs.jobs import JobLimits, JobQueue
from crucible_emu.downstairs.lane import LAST_WRITE, Lane
from crucible_emu.downstairs.promotion import ActiveConnections, Claim
from crucible_emu.downstairs.session import Need, ServedRegion, Session, State, Step
from crucible_emu.downstairs.statistics import Statistics
from crucible_emu.downstairs.work import (
    DROPPED,
    NO_ROOM,
    Abandon,
    Action,
    Close,
    Kind,
    Resume,
    Run,
    Send,
    SendTrain,
    Work,
    keep_little,
)
from crucible_emu.errors import CrucibleError, RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.wire import messages as m
from crucible_emu.wire.hot import Identities, make_ack

RETRY_PAUSE_S = 1.0
"""Between two tries of a failing job in ``faithful`` mode. The real program does not pause at all."""


class Connection:
    """What the Downstairs keeps for one connection; ``known`` holds the ids that its jobs must carry."""

    __slots__ = ("in_order", "jobs", "known", "paused", "session")

    def __init__(self, session: Session, limits: JobLimits, in_order: bool) -> None:
        self.session = session
        self.in_order = in_order
        self.jobs = JobQueue(limits)
        self.paused = False
        self.known = Identities()

    def answer(self, message: m.Message, outcome: Any) -> m.Message:
        """The answer to ``message``, whose work ended with ``outcome``."""
        return answer(message, outcome, self.known.upstairs_id, self.known.session_id)


class Downstairs:
    """One region's Downstairs. Connections are known by numbers which the shell gives and never uses twice."""

    def __init__(
        self,
        definition: RegionDefinition,
        *,
        read_only: bool = False,
        limits: JobLimits | None = None,
        faithful: bool = False,
    ) -> None:
        self.region = ServedRegion(definition, read_only)
        self.limits = limits if limits is not None else JobLimits()
        self.faithful = faithful
        self.statistics = Statistics()
        self.admission = Admission(definition, read_only)
        self.lane = Lane(definition.blocks_per_extent)
        self.active = ActiveConnections(read_only)
        self._connections: dict[int, Connection] = {}
        self._sequence = 0

    # Connections

    def opened(self, connection_id: int, repair_address: m.SocketAddress, in_order: bool = False) -> None:
        """A connection was made; ``repair_address`` is where its peer reaches our repair service.

        ``in_order``: the peer relies on the order of its messages instead of dependencies (module ``in_order``).
        """
        if connection_id in self._connections:
            raise RuntimeError(f"connection {connection_id} is open already")
        session = Session(connection_id, self.region, repair_address)
        self._connections[connection_id] = Connection(session, self.limits, in_order)
        self.statistics.connections += 1

    def closed(self, connection_id: int) -> list[Action]:
        """A connection ended, whoever ended it. What it had asked for and was not started is forgotten."""
        actions: list[Action] = []
        self._forget(connection_id, actions)
        return actions

    def state(self, connection_id: int) -> State:
        """Where the connection's session is; CLOSED when there is none."""
        connection = self._connections.get(connection_id)
        return connection.session.state if connection is not None else State.CLOSED

    # Messages

    def receive(self, connection_id: int, message: m.Message) -> list[Action]:
        """Take one message. Raises :class:`RuntimeError` where the connection has no room (see ``receive_train``)."""
        taken, actions = self.receive_train(connection_id, (message,))
        if not taken:
            raise RuntimeError(f"connection {connection_id} has no room for another message")
        return actions

    def receive_train(
        self, connection_id: int, messages: Sequence[m.Message], first: int = 0
    ) -> tuple[int, list[Action]]:
        """Take ``messages[first:]`` in order until the connection's memory is used up: ``(how many, actions)``.

        While a promotion is carried out nothing is taken either. The rest is to be offered again after a
        :class:`Resume` action for the connection, or at once if carrying the actions out made room. Messages of a
        connection that was closed are taken and dropped.
        """
        actions: list[Action] = []
        connection = self._connections.get(connection_id)
        jobs_max, bytes_max = self.limits.jobs_max, self.limits.bytes_max
        index, end = first, len(messages)
        while index < end and connection is not None:
            jobs, state = connection.jobs, connection.session.state
            if jobs.outstanding_jobs >= jobs_max or jobs.outstanding_bytes >= bytes_max or state is State.PROMOTING:
                connection.paused = True
                break
            message = messages[index]
            index += 1
            try:
                if state is State.RUNNING:
                    self._running(connection, message, actions)
                else:
                    self._step(connection, connection.session.receive(message), actions)
            except RemoteError as error:
                self._close(connection_id, str(error), actions)
            if connection.session.state is State.CLOSED:
                connection = None
        if connection is None:
            index = end
        elif connection.paused:
            self._check_stuck(connection, actions)
        return index - first, actions

    def _running(self, connection: Connection, message: m.Message, actions: list[Action]) -> None:
        build = self.admission.jobs.get(type(message))
        if build is not None:
            self._job(connection, message, build, actions)
            return
        build = self.admission.steps.get(type(message))
        if build is not None:
            self._reconciliation_step(connection, message, build, actions)
        else:
            self._step(connection, connection.session.receive(message), actions)

    def _job(self, connection: Connection, message: Any, build: Any, actions: list[Action]) -> None:
        connection_id = connection.session.connection_id
        known = connection.known
        if message.upstairs_id is not known.upstairs_id or message.session_id is not known.session_id:
            expected = compare_ids(known, message)
            if expected is not None:
                actions.append(Send(connection_id, m.UuidMismatch(expected)))
                return
        self.statistics.jobs += 1
        try:
            work = build(connection_id, message)
        except Refused as refused:
            self._refuse(connection, message, refused.error, actions)
            return
        self._sequence = work.sequence = self._sequence + 1
        if connection.jobs.admit(work):
            self._start(connection, work, actions)
        else:
            keep_little(work)

    def _refuse(
        self, connection: Connection, message: m.JobRequest, error: CrucibleError, actions: list[Action]
    ) -> None:
        """Answer with ``error`` instead of doing anything."""
        connection_id = connection.session.connection_id
        self.statistics.jobs_failed += 1
        actions.append(Send(connection_id, connection.answer(message, error)))
        refused = Work(Kind.NO_OP, connection_id, message, message.job_id)
        connection.jobs.take(refused)
        if type(message) is m.ReadRequest:
            self._completed(connection, [refused], actions)
        else:
            connection.jobs.failed(refused)

    def _reconciliation_step(
        self, connection: Connection, message: m.Message, build: Any, actions: list[Action]
    ) -> None:
        connection_id = connection.session.connection_id
        self.statistics.reconciliation_steps += 1
        try:
            work = build(connection_id, message)
        except Refused as refused:
            actions.append(Send(connection_id, connection.answer(message, refused.error)))
            return
        connection.jobs.take(work)
        self._admit(work, actions)

    def _step(self, connection: Connection, step: Step, actions: list[Action]) -> None:
        """Carry out what the negotiation decided."""
        connection_id = connection.session.connection_id
        if step.reply is not None:
            actions.append(Send(connection_id, step.reply))
        if step.close is not None:
            self._close(connection_id, step.close, actions)
        elif step.need is Need.PROMOTION:
            self._promote(connection, actions)
        elif step.need is Need.EXTENT_VERSIONS:
            connection.jobs = self._new_jobs(connection)
            self._admit(Work(Kind.EXTENT_VERSIONS, connection_id), actions)
        elif step.need is Need.COMPLETED_SET:
            if self.active.may_replay(connection.session.generation):
                connection.jobs = self._new_jobs(connection)
            else:
                reason = "a replay for an Upstairs that was superseded meanwhile"
                self._close(connection_id, reason, actions)

    def _new_jobs(self, connection: Connection) -> JobQueue:
        last_flush = connection.session.last_flush
        if connection.in_order:
            return InOrderJobs(self.limits, last_flush, self.region.definition.blocks_per_extent)
        return JobQueue(self.limits, last_flush)

    # Takeover

    def _promote(self, connection: Connection, actions: list[Action]) -> None:
        session = connection.session
        connection.known.upstairs_id, connection.known.session_id = session.upstairs_id, session.session_id
        claim = Claim(session.connection_id, session.upstairs_id, session.session_id, session.generation)
        verdict = self.active.promote(claim)
        if not verdict.accepted:
            self.statistics.refused_promotions += 1
            self._close(session.connection_id, f"promotion refused: {verdict.rule.value}", actions)
            return
        if verdict.evicts is not None:
            self.statistics.evictions += 1
            news = m.YouAreNoLongerActive(session.upstairs_id, session.session_id, session.generation)
            actions.append(Send(verdict.evicts, news))
            self._close(verdict.evicts, "another Upstairs took over", actions)
        if self.region.read_only:
            self._promoted(connection, actions)
        else:
            # *Safety*: this waits until nothing that an Upstairs before asked for is still running.
            self._admit(Work(Kind.REOPEN_ALL, session.connection_id), actions)

    def _promoted(self, connection: Connection, actions: list[Action]) -> None:
        self.statistics.promotions += 1
        self._step(connection, connection.session.promoted(), actions)
        self._made_room(connection, actions)

    # Work

    def _start(self, connection: Connection, work: Work, actions: list[Action]) -> None:
        """A job whose dependencies are complete as it arrives."""
        if work.kind > LAST_WRITE and self._needs_no_work(work):
            self._answer(connection, work, None, actions)
            self._completed(connection, [work], actions)
        else:
            self._admit(work, actions)

    def _needs_no_work(self, work: Work) -> bool:
        return work.kind >= Kind.BARRIER or (self.region.read_only and work.kind is Kind.FLUSH)

    def _admit(self, work: Work, actions: list[Action]) -> None:
        if self.lane.admit(work):
            self._run(work, actions)
        else:
            keep_little(work)

    def _run(self, work: Work, actions: list[Action]) -> None:
        if work.kind is Kind.FLUSH:
            connection = self._connections.get(work.connection_id)
            if connection is not None:
                connection.jobs.flush_begun(work)
        actions.append(Run(work))

    def _run_all(self, works: Sequence[Work], actions: list[Action]) -> None:
        for work in works:
            self._run(work, actions)

    def flush_fixed(self, work: Work) -> list[Action]:
        """A flush that a :class:`Run` handed out has fixed what it covers: what is written from now on is behind it."""
        actions: list[Action] = []
        connection = None if work.abandoned else self._connections.get(work.connection_id)
        if connection is not None:
            self._start_ready(connection, connection.jobs.flush_fixed(work), actions)
        return actions

    def work_done(self, work: Work, outcome: Any) -> list[Action]:
        """Work that a :class:`Run` handed out has ended."""
        return self.works_done([work], [outcome])

    def works_done(self, works: Sequence[Work], outcomes: Sequence[Any]) -> list[Action]:
        """As :meth:`work_done`, for several that ended together, in order of their start."""
        actions: list[Action] = []
        stalled: list[Work] = []
        for work, outcome in zip(works, outcomes):
            if outcome is NO_ROOM:
                stalled.append(work)
            else:
                self._ended(work, outcome, actions)
        if stalled:
            for work in stalled:
                keep_little(work)
            self._run_all(self.lane.stall(stalled), actions)
        return actions

    def train_written(self, works: list[Work]) -> list[Action]:
        """As :meth:`works_done`, for writes of one kind and connection that all succeeded; *optimisation*."""
        actions: list[Action] = []
        connection = self._connections.get(works[0].connection_id)
        started = self.lane.finish_writes(works)
        if connection is not None and not works[0].abandoned:
            ack = m.WriteAck if works[0].kind is Kind.WRITE else m.WriteUnwrittenAck
            known = connection.known
            acks: list[m.Message] = [make_ack(ack, known, work.message.job_id, None) for work in works]
            actions.append(SendTrain(works[0].connection_id, acks))
            self.statistics.blocks_written += sum([work.count for work in works])
            self._start_ready(connection, connection.jobs.complete_train(works), actions)
        self._run_all(started, actions)
        return actions

    def _ended(self, work: Work, outcome: Any, actions: list[Action]) -> None:
        failed = isinstance(outcome, CrucibleError)
        connection = None if work.abandoned else self._connections.get(work.connection_id)
        if failed and self.faithful and connection is not None and work.job_id is not None:
            if self._reported(connection, work, outcome, actions):
                return
            connection = self._connections.get(work.connection_id)
        if work.kind is Kind.DESTAGE:
            self.statistics.destages += 1
            if failed:
                self._give_up_stalled(outcome, actions)
        started = self.lane.finish(work, failed or outcome is DROPPED)
        if connection is not None and outcome is not DROPPED:
            self._finished(connection, work, outcome, actions)
        self._run_all(started, actions)

    def _finished(self, connection: Connection, work: Work, outcome: Any, actions: list[Action]) -> None:
        """Work for a connection that is still there has ended: answer, and start what waited for it."""
        if work.kind is Kind.REOPEN_ALL or work.kind is Kind.EXTENT_VERSIONS:
            if isinstance(outcome, CrucibleError):
                self._close(work.connection_id, f"the region cannot be served: {outcome}", actions)
            elif work.kind is Kind.REOPEN_ALL:
                self._promoted(connection, actions)
            else:
                actions.append(Send(work.connection_id, m.ExtentVersions(*outcome)))
            return
        self._answer(connection, work, outcome, actions)
        if work.job_id is None:
            connection.jobs.released(work)
        elif isinstance(outcome, CrucibleError) and work.kind is not Kind.READ:
            connection.jobs.failed(work)
        else:
            self._completed(connection, [work], actions)
            return
        self._made_room(connection, actions)

    def _answer(self, connection: Connection, work: Work, outcome: Any, actions: list[Action]) -> None:
        if isinstance(outcome, CrucibleError):
            self.statistics.jobs_failed += 1
        else:
            self.statistics.count(work)
        actions.append(Send(work.connection_id, connection.answer(work.message, outcome)))

    def _reported(self, connection: Connection, work: Work, error: CrucibleError, actions: list[Action]) -> bool:
        """``faithful``: say that the job failed. Whether it is tried again; a repair costs the connection instead."""
        assert work.job_id is not None
        report = m.ErrorReport(connection.known.upstairs_id, connection.known.session_id, work.job_id, error)
        actions.append(Send(work.connection_id, report))
        if work.kind is Kind.REPAIR:
            self._close(work.connection_id, f"a live repair failed: {error}", actions)
            return False
        actions.append(Run(work, RETRY_PAUSE_S))
        return True

    def _completed(self, connection: Connection, works: Sequence[Work], actions: list[Action]) -> None:
        """These jobs were answered: they are complete, and what waited for them may run."""
        self._start_ready(connection, connection.jobs.complete(works), actions)

    def _start_ready(self, connection: Connection, ready: list[Work], actions: list[Action]) -> None:
        """Start jobs that do not wait any more, and in turn those that waited for them and need no work."""
        # A loop, not a recursion: thousands of barriers may form one chain.
        while ready:
            done: list[Work] = []
            for work in ready:
                if work.kind is Kind.WRITE_RUN:
                    actions.append(Run(work))  # as it would have been done on arrival: past the lane
                elif self._needs_no_work(work):
                    self._answer(connection, work, None, actions)
                    done.append(work)
                else:
                    self._admit(work, actions)
            ready = connection.jobs.complete(done) if done else []
        if connection.jobs.completed.range_count > self.limits.ranges_max:
            self._close(connection.session.connection_id, "too many jobs without a flush or barrier", actions)
        elif connection.paused:
            self._made_room(connection, actions)

    def _made_room(self, connection: Connection, actions: list[Action]) -> None:
        if connection.paused:
            if connection.jobs.full:
                self._check_stuck(connection, actions)
            else:
                connection.paused = False
                actions.append(Resume(connection.session.connection_id))

    def _check_stuck(self, connection: Connection, actions: list[Action]) -> None:
        if connection.jobs.stuck:
            reason = f"{connection.jobs.waiting} jobs wait for jobs that never came"
            self._close(connection.session.connection_id, reason, actions)

    def _give_up_stalled(self, error: CrucibleError, actions: list[Action]) -> None:
        """The staging area cannot be relieved, so the writes that wait for room fail as the destage did."""
        for work in self.lane.give_up_stalled():
            connection = self._connections.get(work.connection_id)
            if connection is not None:
                self._finished(connection, work, error, actions)

    def relieve(self) -> list[Action]:
        """The region's staging area is getting full; *optimisation*: room is made before a write has to wait."""
        actions: list[Action] = []
        self._run_all(self.lane.relieve(), actions)
        return actions

    # Ends

    def _close(self, connection_id: int, reason: str, actions: list[Action]) -> None:
        actions.append(Close(connection_id, reason))
        self._forget(connection_id, actions)

    def _forget(self, connection_id: int, actions: list[Action]) -> None:
        connection = self._connections.pop(connection_id, None)
        if connection is None:
            return
        connection.session.state = State.CLOSED
        self.active.closed(connection_id)
        _, running = self.lane.drop(connection_id)
        actions.extend(Abandon(work) for work in running)
        self._run_all(self.lane.advance(), actions)

    # Trains and runs that are done at once

    def connection(self, connection_id: int) -> Connection | None:
        """What is kept for an open connection."""
        return self._connections.get(connection_id)

    def run_done(
        self, connection: Connection, answers: m.Message, job_ids: Sequence[int], *, written: int = 0, read: int = 0
    ) -> list[Action]:
        """Jobs that nothing stood in the way of were done as they arrived; ``answers`` are those to all of them."""
        self.statistics.jobs += len(job_ids)
        self.statistics.blocks_written += written
        self.statistics.blocks_read += read
        actions: list[Action] = [Send(connection.session.connection_id, answers)]
        self._start_ready(connection, connection.jobs.complete_ids(job_ids), actions)
        return actions

    def hold_run(self, connection: Connection, work: Work, job_ids: Sequence[int]) -> None:
        """Writes that are done together, by a :class:`Run`, once what they wait for has completed."""
        self._sequence = work.sequence = self._sequence + 1
        connection.jobs.hold(work, job_ids)

    def take_counted(self, connection_id: int, messages: Sequence[m.Message]) -> list[Action]:
        """Take messages for which there is room, because they have been counted until now."""
        actions: list[Action] = []
        for message in messages:
            connection = self._connections.get(connection_id)
            if connection is not None:
                self._running(connection, message, actions)
        return actions

    def running_in_order(self, connection_id: int) -> InOrderJobs | None:
        """The jobs of a connection whose session runs and which relies on the order of its messages, else ``None``."""
        connection = self._connections.get(connection_id)
        if connection is None or connection.session.state is not State.RUNNING or self.lane.stalled:
            return None
        return connection.jobs if isinstance(connection.jobs, InOrderJobs) else None

    def train_done(self, jobs: InOrderJobs, first_job_id: int, count: int, blocks: int) -> None:
        """``count`` writes with consecutive ids were done at once."""
        jobs.train_done(first_job_id, count)
        self.statistics.jobs += count
        self.statistics.blocks_written += blocks
