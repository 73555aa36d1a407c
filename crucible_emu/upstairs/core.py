"""The Upstairs as a pure state machine: one region set, three replicas, one disk (upstairs-volume.md §1 to §7).

What it is for: every decision of an Upstairs is made here, synchronously: who is connected and may be sent work, which
numbers jobs get, when the guest is answered, what happens when a replica fails, and how three replicas are made equal
before the first request. Events come in as method calls; what shall happen goes out as a list of actions
(:mod:`crucible_emu.upstairs.actions`). There is no I/O, no clock and no randomness, so any run can be replayed.

What it guarantees:

* A flush is acknowledged when two replicas hold all that was acknowledged before it (three for a snapshot).
* The Upstairs becomes active only when all three replicas hold the same bytes, and never with a generation that is not
  above every generation stored.
* A replica that was away is sent what it missed; one that missed too much is out until it was repaired, extent by
  extent, while the disk goes on with the others.
* A message that does not fit costs its sender the connection; it never stops the disk.

States change through the tables of :mod:`crucible_emu.upstairs.states`; acknowledgement follows the table of
:mod:`crucible_emu.upstairs.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs.actions import Answer, Connect, Hangup, RepairNews
from crucible_emu.upstairs.dispatcher import Dispatcher
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.members import Client, Identity
from crucible_emu.upstairs.negotiation import HANDLERS
from crucible_emu.upstairs.reconciliation import Collation, Reconciliation, Step, collate
from crucible_emu.upstairs.replacement import ReplaceResult, decide
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import (
    FAULTS,
    ClientEvent,
    IllegalTransition,
    Mode,
    Phase,
    StopReason,
    UpstairsEvent,
    UpstairsState,
    next_client_state,
    next_upstairs_state,
)
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import AckRun, ReadResponseRun

CALLS_MISSED_MAX = 3
"""As often may a replica that went away not be reached until a live repair of another begins without it: half a minute,
by the pauses between calls."""
REFUSALS_MAX = 2
"""After so many refused promotions in a row a replica counts as taken by another Upstairs."""


class UpstairsCore(Dispatcher):
    """The state of one Upstairs; see the module's essay. Take what it wants done with :meth:`take_actions`."""

    def __init__(self, identity: Identity, generation: int, definition: RegionDefinition | None = None) -> None:
        super().__init__(identity, generation, definition)
        self.reconciliation: Reconciliation | None = None
        self.reconciled_extents = self.reconciliations_aborted = 0
        self.repair: LiveRepair | None = None
        self.extents_ahead: int | None = None
        """How many extents a live repair has under way at a time; ``None``: as many as suits their size."""
        self.repairs_begun = self.repairs_failed = self.activations = 0
        self.disabled_by: errors.CrucibleError | None = None
        self._collation = Collation(1, 1, ())
        self._activation: Any = None
        self._deactivation: Any = None
        self._progressing = False
        self._stamped = False
        """Whether a reconciliation of this activation has stamped extents with our generation, so that it is no sign
        of another Upstairs when it is found in them."""

    # -- requests of the guest about the disk as a whole --------------------------------------------------------------

    def activate(self, handle: Any, generation: int | None = None) -> None:
        """Begin to activate; ``handle`` is answered once. Refusals follow the table of §3."""
        refusal = self._refuse_activation(generation)
        if refusal is not None:
            self._actions.append(Answer(handle, refusal))
            return
        if self.state is UpstairsState.ACTIVE:
            self._actions.append(Answer(handle, None))
            return
        if generation is not None:
            self.generation = generation
        self.state = next_upstairs_state(self.state, UpstairsEvent.ACTIVATE)
        self.disabled_by = None
        self._stamped = False
        self._activation = handle
        for client in self.clients:
            client.refusals = 0
            if client.state.phase is Phase.WAIT_CONNECT:
                self.move(client, ClientEvent.ACTIVATION_REQUESTED)
                self._actions.append(Connect(client.index, client.connection_id, again=False))

    def _refuse_activation(self, generation: int | None) -> errors.CrucibleError | None:
        if self.state is UpstairsState.DEACTIVATING:
            return errors.UpstairsDeactivating()
        if self.state in (UpstairsState.ACTIVE, UpstairsState.GO_ACTIVE):
            if generation is not None and generation != self.generation:
                return errors.GenerationNumberInvalid()
            if self.state is UpstairsState.GO_ACTIVE:
                return errors.UpstairsActivateInProgress()
        return None

    def deactivate(self, handle: Any) -> None:
        """Begin to deactivate: a last flush, then close (§4.6); ``handle`` is answered once."""
        if self.state is UpstairsState.DEACTIVATING:
            self._actions.append(Answer(handle, errors.UpstairsDeactivating()))
        elif self.state is not UpstairsState.ACTIVE:
            self._actions.append(Answer(handle, errors.UpstairsInactive()))
        else:
            if self.need_flush or len(self.jobs):
                self.submit_flush(None)
            self._deactivation = handle
            self.state = next_upstairs_state(self.state, UpstairsEvent.DEACTIVATE)
            self.progress()

    def abandon(self, error: errors.CrucibleError) -> None:
        """Give up an activation that is under way, for example because the caller will not wait longer."""
        if self.state is UpstairsState.GO_ACTIVE:
            self.disable(error)

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        """Put the Downstairs at ``new`` in place of the one at ``old`` (§9), in any state. Raises
        :class:`errors.ReplaceRequestInvalid`."""
        targets, states = [c.target for c in self.clients], [c.state for c in self.clients]
        result, leaving = decide(targets, states, old, new)
        if leaving is not None:
            client = self.clients[leaving]
            client.target = new
            client.replaced += 1
            client.region_uuid = None
            self.report("info", "replica is replaced", client=leaving, old=old, new=new)
            self.stop_client(client, StopReason.REPLACING)
            self.progress()
        return result

    # -- clients coming and going -------------------------------------------------------------------------------------

    def stopped(self, index: int, connection_id: int, why: str) -> None:
        """The connection's task of client ``index`` has ended, asked for or not (§2.4)."""
        client = self.clients[index]
        if connection_id != client.connection_id:
            return
        level = "info" if client.stop_requested else "warning"
        self.report(level, "connection ended", client=index, state=str(client.state), why=why)
        if client.state.phase is Phase.WAIT_FOR_PROMOTE:
            client.refusals += 1
        client.calls_missed = 0 if client.state.phase is Phase.ACTIVE else client.calls_missed + 1
        was_reconciling = client.state.phase is Phase.RECONCILE
        self._come_to_rest(client)
        if client.state.mode is Mode.OFFLINE:
            self.hand_over_reads(client)
            if self.owes_too_much(client):
                self.fall_behind(client)
        else:
            self.skip_jobs(client)
        if was_reconciling or any(other.state.phase is Phase.RECONCILE for other in self.clients):
            self.abort_reconciliation(f"client {index}: {why}")
        self._check_refusals()
        self.progress()

    def _check_refusals(self) -> None:
        """*Liveness*: a Downstairs that serves an Upstairs with a higher generation closes the connection and says
        nothing (§4.4). When two have done so again and again, waiting longer is of no use."""
        refusing = [client.index for client in self.clients if client.refusals >= REFUSALS_MAX]
        if self.state is UpstairsState.GO_ACTIVE and len(refusing) >= 2:
            names = " and ".join(map(str, refusing))
            self.disable(
                errors.IoError(
                    f"replicas {names} refuse generation {self.generation}: another Upstairs with one at least "
                    "as high is active; activate with a higher one to take over"
                )
            )

    def _come_to_rest(self, client: Client) -> None:
        # *Safety*: a replica that may have done a flush of which we do not know is not replayed to. It would do older
        # writes again, over what that flush made durable, under the numbers of that flush; if we ended in the middle of
        # it, its extents would be taken for as good as those of the others, or for better.
        in_doubt = client.state.phase is Phase.ACTIVE and self.flush_under_way(client)
        replayable = self.identity.remote and self.can_replay and self.repair is None and not in_doubt
        self.move(client, ClientEvent.STOPPED, replayable=replayable)
        client.connection_id += 1
        client.stop_requested = False
        client.repair_address = None
        client.versions = None
        if client.state.phase is Phase.START:
            self._actions.append(Connect(client.index, client.connection_id, again=True))

    def stop_client(self, client: Client, reason: StopReason) -> None:
        """Close the connection for ``reason``; a second request while one is pending changes nothing (§2.3)."""
        if client.stop_requested:
            return
        connected = client.state.phase is not Phase.WAIT_CONNECT
        self.move(client, ClientEvent.STOP, reason)
        if connected:
            client.stop_requested = True
            self._actions.append(Hangup(client.index, client.connection_id))
            if reason in FAULTS and reason is not StopReason.OFFLINE_DEACTIVATED:
                self.report("warning", "replica faulted", client=client.index, reason=reason.value)
            self.skip_jobs(client)
        else:
            self.skip_jobs(client)
            self._come_to_rest(client)

    def fall_behind(self, client: Client) -> None:
        self.report("info", "replica is too far behind to be replayed to", client=client.index)
        self.move(client, ClientEvent.FELL_BEHIND)
        self.skip_jobs(client)
        self.try_waiting_reads()

    def move(
        self, client: Client, event: ClientEvent, reason: StopReason | None = None, *, replayable: bool = False
    ) -> None:
        client.state = next_client_state(client.state, event, self.state, replayable=replayable, reason=reason)
        self.members_changed()

    @property
    def busy(self) -> bool:
        return self.repair is not None or self.state is UpstairsState.DEACTIVATING

    def progress(self) -> None:
        """After an event: push on a live repair, begin one that is due, push on a deactivation. Entered again from
        within, it leaves the rest to the call further out."""
        if self._progressing:
            return
        self._progressing = True
        try:
            self.try_waiting_reads()
            self.check_live_repair()
            if self.repair is not None:
                self.repair.advance()
            if self.state is UpstairsState.DEACTIVATING and self.repair is None:
                self._progress_deactivation()
        finally:
            self._progressing = False

    def _progress_deactivation(self) -> None:
        """Close the connections of the replicas that have done everything (§4.6)."""
        for client in self.clients:
            if client.state.connecting and client.state.mode is Mode.OFFLINE:
                self.stop_client(client, StopReason.OFFLINE_DEACTIVATED)
            if not client.state.parked and not self.jobs.jobs_in_progress[client.index]:
                self.stop_client(client, StopReason.DEACTIVATED)
        self.try_waiting_reads()  # nobody is expected back any more
        if all(client.state.parked for client in self.clients):
            self.state = next_upstairs_state(self.state, UpstairsEvent.DEACTIVATED)
            self.all_were_away()  # where the last flush failed: what it did not cover is nowhere for sure
            self.forget_history()
            handle, self._deactivation = self._deactivation, None
            self._actions.append(Answer(handle, None))

    # -- what replicas hold -------------------------------------------------------------------------------------------

    def settled(self, client: int, blocks: Sequence[int]) -> bool:
        """Whether a replica in another process has acknowledged all that may change these blocks. Then what it holds of
        them is what a read of them must give. A job depends on those before it on its blocks, so the last one tells."""
        jobs = self.jobs
        if not jobs.changes_in_progress[client]:
            return True
        if self.repair is not None:
            return False
        for job_id in map(self.tracker.blocking, blocks):
            job = None if job_id is None else jobs.find(job_id)
            if job is not None and job_id is not None and job.in_progress[client] >> (job_id - job.first_id) & 1:
                return False
        return True

    # -- live repair --------------------------------------------------------------------------------------------------

    def repair_reaches(self, job: Job) -> bool:
        return self.repair is None or self.repair.reaches(job)

    def limited_flush(self, job: Job, client: Client) -> m.Flush:
        assert self.repair is not None
        return self.repair.limited_flush(job, client)

    def is_of_repair(self, job_id: int) -> bool:
        return self.repair is not None and self.repair.owns(job_id)

    def disable(self, error: errors.CrucibleError) -> None:
        """Stop using the disk for a reason that trying again does not cure by itself (§3). Whoever waits is told."""
        if self.state is UpstairsState.INITIALIZING:
            return
        self.report("warning", "disk disabled", error=str(error))
        self.state = next_upstairs_state(self.state, UpstairsEvent.DISABLE)
        self.disabled_by = error
        if self.reconciliation is not None:
            self._tell_reconciliation("finish", self.reconciliation, aborted=True)
        if self.repair is not None:
            self.repair.dropped()
        self.reconciliation = self.repair = None
        self.all_were_away()
        for waiter in (self._activation, self._deactivation):
            if waiter is not None:
                self._actions.append(Answer(waiter, error))
        self._activation = self._deactivation = None
        self.need_flush = False
        for job in self.jobs:
            if not job.acked and job.handle is not None:
                job.acked = True
                self._actions.append(Answer(job.handle, error))
            for index in CLIENTS:
                self.jobs.settle(job, index, job.full, job.skipped)
        self._waiting_reads.clear()
        self.forget_history()
        for client in self.clients:
            if not client.state.parked:
                self.stop_client(client, StopReason.DISABLED)

    # -- quorum and reconciliation ------------------------------------------------------------------------------------

    def check_quorum(self) -> None:
        """A client reached the quorum point: join, begin to reconcile, or go on waiting (§4.2, §4.3)."""
        if self.identity.read_only:
            if self.state in (UpstairsState.GO_ACTIVE, UpstairsState.ACTIVE):
                for client in self.clients:
                    if client.state.phase is Phase.WAIT_QUORUM:
                        self.move(client, ClientEvent.JOINED)
                self._become_active()
            return
        if self.state is not UpstairsState.GO_ACTIVE:
            return
        if not all(client.state.phase is Phase.WAIT_QUORUM for client in self.clients):
            return
        collation = collate([client.versions for client in self.clients if client.versions is not None])
        detail: errors.NegotiationDetail | None = None
        if self.generation == 0:
            detail = errors.GenerationZeroIsIllegal()
        elif self.generation < collation.max_gen - self._stamped:
            detail = errors.GenerationNumberTooLow(self.generation, collation.max_gen)
        if detail is not None:
            self.disable(errors.NegotiationError(detail))
            return
        self._reconcile(collation, ClientEvent.MISMATCHES_FOUND)

    def check_live_repair(self) -> None:
        """Whether replicas are ready for live repair: read-only ones just join, all three at once are reconciled, one
        or two are repaired from one that is active (§8.1)."""
        if self.state is not UpstairsState.ACTIVE or self.repair is not None:
            return
        ready = [client for client in self.clients if client.state.phase is Phase.LIVE_REPAIR_READY]
        if not ready:
            return
        if self.identity.read_only:
            for client in ready:
                client.ro_lr_skipped += 1
                self.move(client, ClientEvent.LIVE_REPAIR_SKIPPED)
        elif len(ready) == len(self.clients):
            self.all_were_away()
            collation = collate([client.versions for client in ready if client.versions is not None])
            self._reconcile(collation, ClientEvent.ALL_NEED_REPAIR)
        elif self.readers and not any(map(self._may_come_back, self.clients)):
            self._begin_live_repair(ready)

    @staticmethod
    def _may_come_back(client: Client) -> bool:
        """*Liveness*: a repair gives up whoever is away. What guests have under way would fail then, for one replica of
        three is left; where the one that is away comes back in a moment and is replayed to, nothing fails (not in the
        original, §8.1). One that is not there call after call is not waited for."""
        away = client.state.connecting and client.state.mode is Mode.OFFLINE
        return away and client.calls_missed < CALLS_MISSED_MAX

    def _begin_live_repair(self, ready: list[Client]) -> None:
        for client in self.clients:
            if client.state.connecting and client.state.mode is Mode.OFFLINE:
                # *Safety*: jobs that it would be sent late could depend on jobs of the repair that it was never sent.
                self.fall_behind(client)
        for client in ready:
            client.knows_from = self.next_job_id
            client.last_flush = None
            self.move(client, ClientEvent.LIVE_REPAIR_STARTED)
        self.repairs_begun += 1
        # *Liveness*: what one source holds may be damaged, and is refused then; another one is asked the next time.
        source = self.readers[-1 - self.repairs_failed % len(self.readers)]
        self.repair = LiveRepair(self, self.repairs_begun, self.clients[source], ready)
        self.repair.begin()

    def _reconcile(self, collation: Collation, event: ClientEvent) -> None:
        """Make the replicas equal where they differ; they join when they are."""
        # *Safety*: one above the number that a mended extent is stamped with. With the same number (§4.2), an extent
        # that only one replica flushed before a crash would look like the mended one on the others, and differ from it.
        self.next_flush = max(self.next_flush, collation.max_flush + bool(collation.mends))
        if not collation.mends:
            self._all_joined()
            return
        self.report("info", "reconciliation begins", extents=len(collation.mends))
        for client in self.clients:
            self.move(client, event)
        self._stamped = collation.max_gen >= self.generation
        self._collation = collation
        self.repairs_begun += 1
        self.reconciliation = Reconciliation(collation.mends)
        self._tell_reconciliation("start", self.reconciliation)
        self.next_reconciliation_step()

    def _all_joined(self) -> None:
        self.forget_history()
        for client in self.clients:
            self.move(client, ClientEvent.JOINED)
        self._become_active()

    def _become_active(self) -> None:
        if self.state is UpstairsState.GO_ACTIVE:
            self.state = next_upstairs_state(self.state, UpstairsEvent.QUORUM)
            self.activations += 1
            handle, self._activation = self._activation, None
            self._actions.append(Answer(handle, None))

    def next_reconciliation_step(self) -> None:
        work = self.reconciliation
        assert work is not None
        clients = work.advance()
        if clients is None:
            self.reconciliation = None
            self.reconciled_extents = work.done // 4
            self._tell_reconciliation("finish", work)
            self.report("info", "reconciliation done", extents=self.reconciled_extents)
            self._all_joined()
            return
        assert work.mend is not None
        address = self.clients[work.mend.source].repair_address
        assert address is not None
        self._tell_reconciliation("progress", work)
        # *Safety*: not above our own generation, which later flushes carry: they must not look older than this. (It
        # would be where all replicas were away while the disk was in service, and hold our own generation already.)
        generation = min(self._collation.max_gen, self.generation)
        message = reconciliation_message(work, self._collation.max_flush, generation, address)
        for client in clients:
            self.send(client, message)

    def abort_reconciliation(self, why: str) -> None:
        """Start again from the beginning; extents that were mended compare equal then (§7.5)."""
        self.report("warning", "reconciliation aborted", why=why)
        self.reconciliations_aborted += 1
        if self.reconciliation is not None:
            self._tell_reconciliation("finish", self.reconciliation, aborted=True)
        self.reconciliation = None
        for client in self.clients:
            if client.state.phase is Phase.RECONCILE:
                self.stop_client(client, StopReason.FAILED_RECONCILE)

    def _tell_reconciliation(self, what: str, work: Reconciliation, *, aborted: bool = False) -> None:
        self.notify(
            RepairNews(what, "reconciliation", self.repairs_begun, CLIENTS, work.done, work.needed, aborted=aborted)
        )

    # -- messages -----------------------------------------------------------------------------------------------------

    def hears(self, index: int, connection_id: int, message: m.JobReply | ReadResponseRun | AckRun) -> bool:
        """Whether what came on this connection of client ``index`` concerns us."""
        client, who = self.clients[index], self.identity
        if connection_id != client.connection_id or client.stop_requested:
            return False
        return message.upstairs_id == who.upstairs_id and message.session_id == who.session_id

    def expected_read(self, index: int, connection_id: int, message: m.ReadResponse) -> Job | None:
        """The read that ``message`` answers, ``None`` where nobody waits for it any more. The driver verifies the data
        and reports :meth:`done` or :meth:`failed`."""
        if not self.hears(index, connection_id, message):
            return None
        job = self.jobs.find(message.job_id)
        if job is None or job.kind is not JobKind.READ:
            return None
        return job if job.in_progress[index] >> (message.job_id - job.first_id) & 1 else None

    def message(self, index: int, connection_id: int, message: m.Message) -> None:
        """A message came from client ``index``. Whatever does not fit costs the client its connection."""
        client = self.clients[index]
        if connection_id != client.connection_id or client.stop_requested:
            return
        handler = HANDLERS.get(type(message))
        try:
            if handler is None:
                raise errors.RemoteError(f"sent {type(message).__name__}, which only an Upstairs may send")
            handler(self, client, message)
        except (errors.RemoteError, IllegalTransition) as error:
            self.report("warning", "replica broke the protocol", client=index, error=str(error))
            if not client.stop_requested:
                self.stop_client(client, StopReason.BAD_NEGOTIATION_ORDER)
            self.progress()


def reconciliation_message(
    work: Reconciliation, flush_number: int, gen_number: int, source_address: m.SocketAddress
) -> m.Message:
    """The message of the current step (§7.2)."""
    mend = work.mend
    assert mend is not None
    match work.step:
        case Step.FLUSH:
            return m.ExtentFlush(work.repair_id, mend.extent_id, mend.source, flush_number, gen_number)
        case Step.CLOSE:
            return m.ExtentClose(work.repair_id, mend.extent_id)
        case Step.REPAIR:
            return m.ExtentRepair(work.repair_id, mend.extent_id, mend.source, source_address, mend.destinations)
        case Step.REOPEN:
            return m.ExtentReopen(work.repair_id, mend.extent_id)
