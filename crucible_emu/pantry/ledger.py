"""Which volumes a pantry has, which jobs, and what may be asked of them: the core (apis-and-tools.md §2.4 to §2.6).

What it is for: every decision that takes more than one volume's blocks: is this attach a repetition or a conflict, has
somebody else taken the volume, may it be detached now, what is a job's result. It is synchronous and has neither clock
nor randomness: ids of jobs are handed in, and so is whether a volume is active.

What it guarantees:

* A volume id and a job id mean one thing at a time. A repetition with the same arguments succeeds, everything else is a
  conflict, so two callers who race for one id cannot both be told that they have it.
* A volume that was active once and is not any more stays *taken* until it is detached: whoever holds it with a higher
  generation is never disturbed by a second activation from here.
* A job's result stays until its volume is detached; then all jobs of that volume are forgotten together with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from crucible_emu import errors
from crucible_emu.pantry.refusals import Refused, Situation
from crucible_emu.pantry.states import (
    ADMISSION,
    ENTRY_TRANSITIONS,
    JOB_TRANSITIONS,
    Admission,
    EntryEvent,
    EntryState,
    JobEvent,
    JobKind,
    JobState,
    Use,
)
from crucible_emu.volume.vcr import VolumeConstructionRequest

VOLUMES_MAX = 1024
JOBS_MAX = 16_384
"""Finished ones included, which are kept until their volume is detached."""


@dataclass(slots=True, eq=False)
class Job:
    """One job. ``total_bytes``: ``None`` while, or where, that is not known; ``error``: why it failed."""

    id: str
    volume_id: str
    kind: JobKind
    state: JobState = JobState.RUNNING
    done_bytes: int = 0
    total_bytes: int | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.state is not JobState.RUNNING

    @property
    def ok(self) -> bool:
        """The result. Raises :class:`Refused` for a job that died."""
        if self.state is JobState.DIED:
            raise Refused(Situation.JOB_DIED, f"the job {self.id!r} died: {self.error}")
        return self.state is JobState.OK


@dataclass(slots=True, eq=False)
class Entry:
    """One volume. ``vcr``: what it was attached with, or what the last replacement made of that."""

    volume_id: str
    vcr: VolumeConstructionRequest
    activation: Job
    state: EntryState = EntryState.BUILDING
    seen_active: bool = False


class Ledger:
    """All volumes and jobs of a pantry."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.jobs: dict[str, Job] = {}

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def volumes(self) -> list[str]:
        """The ids of all volumes, sorted."""
        return sorted(self.entries)

    def jobs_of(self, volume_id: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.volume_id == volume_id]

    def entry(self, volume_id: str) -> Entry:
        """Raises :class:`Refused`."""
        entry = self.entries.get(volume_id)
        if entry is None:
            raise Refused(Situation.UNKNOWN_VOLUME, f"no volume {volume_id!r} is attached here")
        return entry

    def job(self, job_id: str) -> Job:
        """Raises :class:`Refused`."""
        job = self.jobs.get(job_id)
        if job is None:
            raise Refused(Situation.UNKNOWN_JOB, f"there is no job {job_id!r} here")
        return job

    def observe(self, entry: Entry, *, active: bool) -> None:
        """``entry`` was found to be active, or not."""
        entry.seen_active = entry.seen_active or active

    def admit(self, entry: Entry, use: Use, *, active: bool) -> None:
        """May ``entry`` be used so? Raises :class:`Refused` or :class:`errors.CrucibleError` where not.

        A volume that is being built is not asked for: the caller waits until it is.
        """
        self.observe(entry, active=active)
        match ADMISSION[entry.state, use]:
            case Admission.DEACTIVATING:
                raise errors.UpstairsDeactivating()
            case Admission.CALL_AGAIN:
                raise Refused(Situation.LEAVING, f"the volume {entry.volume_id!r} is being detached: call again")
            case Admission.NOT_WHEN_TAKEN if entry.seen_active and not active:
                raise Refused(
                    Situation.TAKEN,
                    f"the volume {entry.volume_id!r} is no longer active here: another client took it over",
                )
            case Admission.YES | Admission.NOT_WHEN_TAKEN | Admission.WAIT:
                pass

    # -- attaching ----------------------------------------------------------------------------------------------------

    def attach(self, volume_id: str, job_id: str, vcr: VolumeConstructionRequest, *, active: bool) -> Entry:
        """The entry for this attach: a new one, :attr:`EntryState.BUILDING`, or the one of an earlier attach that this
        one repeats. ``active``: whether that volume is.

        Raises :class:`Refused` for a conflict, :class:`errors.Unsupported` for a volume that was taken from us.
        """
        entry = self.entries.get(volume_id)
        if entry is None:
            return self._new_entry(volume_id, job_id, vcr)
        if entry.vcr != vcr:
            raise Refused(
                Situation.CONFLICT,
                f"unsupported: the volume {volume_id!r} is attached with another volume construction request",
            )
        if entry.activation.id != job_id:
            raise Refused(
                Situation.CONFLICT,
                f"unsupported: the volume {volume_id!r} is being activated by the job {entry.activation.id!r}, "
                f"not {job_id!r}",
            )
        try:
            self.admit(entry, Use.ATTACH, active=active)
        except Refused as refused:
            if refused.situation is not Situation.TAKEN:
                raise
            raise errors.Unsupported(f"{refused}; detach it here, then attach it anew") from None
        return entry

    def _new_entry(self, volume_id: str, job_id: str, vcr: VolumeConstructionRequest) -> Entry:
        if job_id in self.jobs:
            raise Refused(Situation.CONFLICT, f"unsupported: the job id {job_id!r} is in use for something else")
        if len(self.entries) >= VOLUMES_MAX:
            raise Refused(Situation.FULL, f"{VOLUMES_MAX} volumes are attached, which is all: detach one")
        entry = Entry(volume_id, vcr, self._new_job(volume_id, job_id, JobKind.ACTIVATE))
        self.entries[volume_id] = entry
        return entry

    def _new_job(self, volume_id: str, job_id: str, kind: JobKind) -> Job:
        if len(self.jobs) >= JOBS_MAX:
            raise Refused(Situation.FULL, f"there are {JOBS_MAX} jobs, which is all: detach a volume")
        job = self.jobs[job_id] = Job(job_id, volume_id, kind)
        return job

    def happened(self, entry: Entry, event: EntryEvent) -> EntryState:
        """``event`` happened to ``entry``; the state after it. What is gone is forgotten with its jobs."""
        entry.state = ENTRY_TRANSITIONS[entry.state, event]
        if entry.state is EntryState.GONE:
            del self.entries[entry.volume_id]
            for job in self.jobs_of(entry.volume_id):
                del self.jobs[job.id]
        return entry.state

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def start(self, entry: Entry, kind: JobKind, job_id: str, *, active: bool) -> Job:
        """A new job on ``entry``. Raises what :meth:`admit` does."""
        self.admit(entry, Use.DATA, active=active)
        return self._new_job(entry.volume_id, job_id, kind)

    def ended(self, job: Job, event: JobEvent, error: str | None = None) -> None:
        """``job`` has ended."""
        job.state = JOB_TRANSITIONS[job.state, event]
        job.error = error
