"""What the agent decides: each request and each piece of news, as a function of its records (apis-and-tools.md §1).

What it is for: everything that can be said without looking at a disk, a clock or a socket. A function either returns
the records after the change, the same object where nothing changes, or raises :class:`Refused`. Who calls it writes
the result to disk before anybody hears of it.

What it guarantees: an id is used once (a record is never erased); a port is given to one record at a time, the lowest
that is free; a POST that is repeated changes nothing, which is how the control plane waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from crucible_emu.agent.documents import CreateRegion, RunningSnapshot, State
from crucible_emu.agent.records import Records, RegionRecord, run_after
from crucible_emu.agent.states import RegionEvent, RegionState, RunEvent


class Reason(Enum):
    """Why a request is refused; ``api`` says with which status."""

    UNKNOWN_REGION = "unknown region"
    UNKNOWN_REGION_TO_DELETE = "unknown region to delete"
    OTHER_PARAMETERS = "other parameters"
    NO_FREE_PORT = "no free port"
    HAS_SNAPSHOTS = "has snapshots"
    CLONING = "cloning"
    UNKNOWN_SNAPSHOT = "unknown snapshot"
    SNAPSHOT_IN_USE = "snapshot in use"
    NO_DATASET = "no dataset"
    NEVER_RUN = "never run"
    RUN_FAILED = "run failed"
    NOT_CREATED = "not created"


class Refused(Exception):
    """A request that is refused; the message is a sentence without secrets."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PortPool:
    """Ports ``low`` to ``low + count - 1`` (§1.5)."""

    low: int
    count: int

    def lowest_free(self, taken: Collection[int]) -> int:
        """Raises :class:`Refused` where all are taken."""
        for port in range(self.low, self.low + self.count):
            if port not in taken:
                return port
        raise Refused(Reason.NO_FREE_PORT, f"all {self.count} ports from {self.low} on are taken: delete a region")


# Regions


def region(records: Records, region_id: str) -> RegionRecord:
    """The record of a region. Raises :class:`Refused`."""
    record = records.regions.get(region_id)
    if record is None:
        raise Refused(Reason.UNKNOWN_REGION, f"there is no region {region_id!r}")
    return record


COMPARED = (
    ("block_size", "block size"),
    ("extent_size", "extent size"),
    ("extent_count", "extent count"),
    ("encrypted", "encryption flag"),
    ("cert_pem", "certificate"),
    ("key_pem", "key"),
    ("root_pem", "root certificate"),
    ("source", "source"),
)
"""What must be equal when a POST is repeated, in the order in which the first difference is looked for (§1.3)."""
SAID = frozenset({"block_size", "extent_size", "extent_count", "encrypted", "source"})
"""Members whose values a sentence may hold."""


def create_region(records: Records, wish: CreateRegion, pool: PortPool) -> Records:
    """POST of a region (§1.3). Raises :class:`Refused`."""
    existing = records.regions.get(wish.id)
    if existing is None:
        port = pool.lowest_free(records.ports())
        return records.with_region(RegionRecord(wish, port, RegionState.REQUESTED, wish.source is not None))
    for member, name in COMPARED:
        had, wanted = getattr(existing.wish, member), getattr(wish, member)
        if had != wanted:
            values = f" {had}, not {wanted}" if member in SAID else ""
            raise Refused(Reason.OTHER_PARAMETERS, f"region {wish.id!r} exists with another {name}{values}")
    return records


def delete_region(records: Records, region_id: str, *, has_snapshots: bool) -> Records:
    """DELETE of a region (§1.1 row 4). Raises :class:`Refused`."""
    record = records.regions.get(region_id)
    if record is None:
        raise Refused(Reason.UNKNOWN_REGION_TO_DELETE, f"there is no region {region_id!r}")
    if has_snapshots:
        raise Refused(Reason.HAS_SNAPSHOTS, f"region {region_id!r} has snapshots: delete them first")
    after = _region_sees(records, region_id, RegionEvent.DELETE)
    if record.state is RegionState.CREATING:
        raise Refused(Reason.CLONING, f"region {region_id!r} is being cloned: come back when that has ended")
    return after


def region_news(records: Records, region_id: str, event: RegionEvent) -> Records:
    """What the worker or a clone has to say of a region."""
    return _region_sees(records, region_id, event)


def _region_sees(records: Records, region_id: str, event: RegionEvent) -> Records:
    record = records.regions[region_id]
    after = record.after(event)
    return records if after == record else records.with_region(after)


# Running snapshots


def run_snapshot(records: Records, region_id: str, name: str, pool: PortPool) -> Records:
    """POST run of a snapshot that exists (§1.4). Raises :class:`Refused`."""
    if records.run(region_id, name) is not None:
        return records
    port = pool.lowest_free(records.ports())
    return records.with_run(RunningSnapshot(id=region_id, name=name, port_number=port, state=State.REQUESTED))


def stop_snapshot(records: Records, region_id: str, name: str) -> Records:
    """DELETE run (§1.1 row 9). Raises :class:`Refused`."""
    region(records, region_id)
    if not records.running.get(region_id):
        raise Refused(Reason.NEVER_RUN, f"no snapshot of region {region_id!r} was ever run")
    run = records.run(region_id, name)
    if run is None:
        return records
    if run.state is State.FAILED:
        raise Refused(Reason.RUN_FAILED, f"snapshot {name!r} of region {region_id!r} failed to run, which is final")
    return run_news(records, region_id, name, RunEvent.STOP)


def run_news(records: Records, region_id: str, name: str, event: RunEvent) -> Records:
    """What the worker has to say of a running snapshot."""
    run = records.running[region_id][name]
    after = run_after(run, event)
    return records if after == run else records.with_run(after)


def may_delete_snapshot(records: Records, region_id: str, name: str, *, has_dataset: bool) -> bool:
    """Whether a DELETE of a snapshot has anything to do (§1.4, the second table). Raises :class:`Refused`."""
    record = region(records, region_id)
    run = records.run(region_id, name)
    if run is not None and run.state is not State.DESTROYED:
        raise Refused(Reason.SNAPSHOT_IN_USE, f"snapshot {name!r} is {run.state.value} as a running snapshot: stop it")
    if not has_dataset and record.state not in (RegionState.TOMBSTONED, RegionState.DESTROYED):
        raise Refused(Reason.NO_DATASET, f"region {region_id!r} is {record.state.shown.value} and has no files")
    return has_dataset


# What is to be done


class Task(Enum):
    """Kinds of work, the most urgent first (§1.6)."""

    REMOVE_REGION = "remove a region"
    MAKE_REGION = "make a region"
    STOP_SNAPSHOT = "stop a running snapshot"
    START_SNAPSHOT = "start a running snapshot"


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work; ``name`` is the snapshot's, where it is about one."""

    task: Task
    region_id: str
    name: str | None = None


REGION_WORK = ((RegionState.TOMBSTONED, Task.REMOVE_REGION), (RegionState.REQUESTED, Task.MAKE_REGION))
RUN_WORK = ((State.TOMBSTONED, Task.STOP_SNAPSHOT), (State.REQUESTED, Task.START_SNAPSHOT))


def work_to_do(records: Records) -> Iterator[Work]:
    """All work, the most urgent first. A clone under way is none: somebody is at it."""
    for state, task in REGION_WORK:
        for record in records.in_order():
            if record.state is state:
                yield Work(task, record.id)
    for run_state, task in RUN_WORK:
        for run in records.runs():
            if run.state is run_state:
                yield Work(task, run.id, run.name)


def next_work(records: Records, resting: Collection[Work] = ()) -> Work | None:
    """The most urgent work that is not ``resting``: what failed a moment ago does not hold up the rest."""
    return next((work for work in work_to_do(records) if work not in resting), None)


# Which Downstairs run


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Downstairs that shall run: for a region, or for the snapshot ``snapshot`` of it."""

    region_id: str
    snapshot: str | None
    port: int
    read_only: bool
    tls: bool


def wanted_services(records: Records) -> dict[str, Wanted]:
    """All Downstairs that shall run, by the real program's names for their services (§1.6)."""
    wanted = {}
    for record in records.in_order():
        if record.state is RegionState.CREATED:
            wish = record.wish
            tls = None not in (wish.cert_pem, wish.key_pem, wish.root_pem)
            wanted[f"downstairs-{record.id}"] = Wanted(record.id, None, record.port_number, record.read_only, tls)
    for run in records.runs():
        if run.state in (State.REQUESTED, State.CREATED):
            wanted[f"snapshot-{run.id}-{run.name}"] = Wanted(run.id, run.name, run.port_number, True, False)
    return wanted
