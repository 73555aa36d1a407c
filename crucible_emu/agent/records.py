"""What the agent knows of its regions and running snapshots, and its text on disk (apis-and-tools.md §1.7).

What it is for: :class:`Records` is everything that must survive a restart. It never changes; a change makes a new one,
which becomes *the* records only after it is on disk. So nobody ever answers from, or acts on, what a crash could take
back.

What it guarantees: :func:`dumps` writes ``crucible.json`` as the real program does (indented, a final newline, ids in
order), :func:`loads` reads it, also with members that nobody here knows and without those that older files lack.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from crucible_emu.agent.documents import CreateRegion, Document, Region, RunningSnapshot
from crucible_emu.agent.states import OCCUPIES_PORT, RegionEvent, RegionState, RunEvent, after_region, after_run
from crucible_emu.errors import UsageError


@dataclass(frozen=True, slots=True)
class RegionRecord:
    """A region: what was asked for, its port, its state."""

    wish: CreateRegion
    port_number: int
    state: RegionState
    read_only: bool

    @property
    def id(self) -> str:
        return self.wish.id

    def after(self, event: RegionEvent) -> RegionRecord:
        """The record after ``event``. Raises :class:`LocalError`."""
        return replace(self, state=after_region(self.state, event))

    def document(self) -> Region:
        """As clients and the data file see it."""
        wish = self.wish
        return Region(
            id=wish.id,
            state=self.state.shown,
            block_size=wish.block_size,
            extent_size=wish.extent_size,
            extent_count=wish.extent_count,
            encrypted=wish.encrypted,
            port_number=self.port_number,
            cert_pem=wish.cert_pem,
            key_pem=wish.key_pem,
            root_pem=wish.root_pem,
            source=wish.source,
            read_only=self.read_only,
        )

    @classmethod
    def of(cls, region: Region) -> RegionRecord:
        """The record that looks like ``region``."""
        wish = CreateRegion(
            id=region.id,
            block_size=region.block_size,
            extent_size=region.extent_size,
            extent_count=region.extent_count,
            encrypted=region.encrypted,
            cert_pem=region.cert_pem,
            key_pem=region.key_pem,
            root_pem=region.root_pem,
            source=region.source,
        )
        return cls(wish, region.port_number, RegionState(region.state.value), region.read_only)


@dataclass(frozen=True, slots=True)
class Records:
    """All records: regions by id, running snapshots by region id and name."""

    regions: Mapping[str, RegionRecord] = field(default_factory=dict)
    running: Mapping[str, Mapping[str, RunningSnapshot]] = field(default_factory=dict)

    def with_region(self, record: RegionRecord) -> Records:
        """These records with ``record`` in the place of what had its id."""
        return replace(self, regions={**self.regions, record.id: record})

    def with_run(self, run: RunningSnapshot) -> Records:
        """These records with ``run`` in the place of what had its region and name."""
        of_region = {**self.running.get(run.id, {}), run.name: run}
        return replace(self, running={**self.running, run.id: of_region})

    def run(self, region_id: str, name: str) -> RunningSnapshot | None:
        """The record of a running snapshot, if it was ever asked for."""
        return self.running.get(region_id, {}).get(name)

    def runs(self) -> Iterator[RunningSnapshot]:
        """All running snapshots, by region id and name."""
        for region_id in sorted(self.running):
            for name in sorted(self.running[region_id]):
                yield self.running[region_id][name]

    def in_order(self) -> list[RegionRecord]:
        """All regions, by id."""
        return [self.regions[region_id] for region_id in sorted(self.regions)]

    def ports(self) -> set[int]:
        """Ports that are taken."""
        taken = {record.port_number for record in self.regions.values() if record.state.shown in OCCUPIES_PORT}
        return taken | {run.port_number for run in self.runs() if run.state in OCCUPIES_PORT}


def run_after(run: RunningSnapshot, event: RunEvent) -> RunningSnapshot:
    """A running snapshot after ``event``. Raises :class:`LocalError`."""
    return run.model_copy(update={"state": after_run(run.state, event)})


class _DataFile(Document):
    regions: dict[str, Region] = {}
    running_snapshots: dict[str, dict[str, RunningSnapshot]] = {}


def dumps(records: Records) -> str:
    """``crucible.json``."""
    regions = {record.id: record.document().model_dump(mode="json") for record in records.in_order()}
    running: dict[str, dict[str, object]] = {}
    for run in records.runs():
        running.setdefault(run.id, {})[run.name] = run.model_dump(mode="json")
    return json.dumps({"regions": regions, "running_snapshots": running}, indent=2, ensure_ascii=False) + "\n"


def loads(text: str, name: str) -> Records:
    """The records in ``text``, the contents of the file ``name``. Raises :class:`UsageError`, which quotes nothing of
    it: it may hold keys."""
    try:
        file = _DataFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{name} is no data file of an agent: {place}: {first['msg']}") from None
    for key, region in file.regions.items():
        if key != region.id:
            raise UsageError(f"{name} is no data file of an agent: the region under {key!r} has another id")
    for key, runs in file.running_snapshots.items():
        if any(run.id != key or run.name != snapshot for snapshot, run in runs.items()):
            raise UsageError(f"{name} is no data file of an agent: a running snapshot of {key!r} has another name")
    records = Records({key: RegionRecord.of(region) for key, region in file.regions.items()}, file.running_snapshots)
    _check_ports(records, name)
    return records


def _check_ports(records: Records, name: str) -> None:
    """*Safety*: two Downstairs cannot have one port. Raises :class:`UsageError`."""
    taken: dict[int, str] = {}
    states = [(record.id, record.port_number, record.state.shown) for record in records.in_order()]
    states += [(f"{run.id}@{run.name}", run.port_number, run.state) for run in records.runs()]
    for who, port, state in states:
        if state in OCCUPIES_PORT and taken.setdefault(port, who) != who:
            raise UsageError(f"{name} is no data file of an agent: {taken[port]} and {who} both have port {port}")
