"""Counters and levels of running disks as Prometheus text (upstairs-volume.md §15.1, §15.2).

What it is for: ``GET /metrics``. The metrics of the real system's target ``crucible_upstairs`` keep their names; what
each client, each Downstairs and region in this process, and the NBD server count comes beside them.

What it costs: nothing until somebody asks; everything is read from counters that are kept anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crucible_emu.statistics import Snapshot
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.local_link import LocalConnector
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.status import short_name

PREFIX = "crucible"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ACKNOWLEDGED: dict[str, tuple[JobKind, ...]] = {
    "flush": (JobKind.FLUSH, JobKind.SNAPSHOT_FLUSH),
    "flush_close": (JobKind.EXTENT_CLOSE,),
    "extent_repair": (JobKind.EXTENT_REPAIR,),
    "extent_noop": (JobKind.EXTENT_NO_OP,),
    "extent_reopen": (JobKind.EXTENT_REOPEN,),
}
"""The metrics that count acknowledged jobs, and of which kinds."""

CLIENT_COUNTERS = {
    "downstairs_errors": "errors",
    "extents_repaired": "extents_repaired",
    "extents_confirmed": "extents_confirmed",
    "live_repair_completed": "live_repair_completed",
    "live_repair_aborted": "live_repair_aborted",
    "ro_lr_skipped": "ro_lr_skipped",
    "connected": "connected",
    "replaced": "replaced",
}
"""The per-client statistics of §15.2, and the members of a client that hold them."""

Labels = dict[str, str]
Sample = tuple[str, Labels, int, bool]
"""Name, labels, number, and whether it only grows."""


def upstairs_counters(upstairs: Upstairs) -> dict[str, int]:
    """The metrics of §15.1 by their names."""
    core, counted = upstairs.core, upstairs.statistics
    return {
        "activated": core.activations,
        "write": counted.writes,
        "write_bytes": counted.written_bytes,
        "read": counted.reads,
        "read_bytes": counted.read_bytes,
        **{name: sum(core.acknowledged[kind] for kind in kinds) for name, kinds in ACKNOWLEDGED.items()},
    }


def samples(all_upstairs: Sequence[Upstairs], others: Iterable[Snapshot]) -> Iterator[Sample]:
    """Every number, with the labels that tell it apart."""
    for number, upstairs in enumerate(all_upstairs):
        # The same id twice in one volume is allowed, and two samples with the same labels are not.
        labels = {"upstairs_uuid": str(upstairs.core.identity.upstairs_id), "region_set": str(number)}
        yield from _of_upstairs(upstairs, labels)
        for client, connector in enumerate(upstairs.connectors):
            if isinstance(connector, LocalConnector):
                for snapshot in connector.snapshots():
                    yield from _of_snapshot(snapshot, {**labels, "client": str(client)})
    for snapshot in others:
        yield from _of_snapshot(snapshot, {})


def _of_upstairs(upstairs: Upstairs, labels: Labels) -> Iterator[Sample]:
    core = upstairs.core
    for name, value in upstairs_counters(upstairs).items():
        yield f"upstairs_{name}", labels, value, True
    counters = upstairs.statistics.snapshot().counters
    for name in ("writes_unwritten", "reads_at_hand", "writes_by_reference", "damaged_reads", "healed_blocks"):
        yield f"upstairs_{name}", labels, counters[name], True
    yield "upstairs_reconciliations_aborted", labels, core.reconciliations_aborted, True
    yield "upstairs_jobs_tracked", labels, len(core.jobs), False
    yield "upstairs_active", labels, int(upstairs.active), False
    for client in core.clients:
        mine = {**labels, "client": str(client.index)}
        for name, member in CLIENT_COUNTERS.items():
            yield f"upstairs_client_{name}", mine, getattr(client, member), True
        yield "upstairs_client_state", {**mine, "state": short_name(client.state)}, 1, False
    for index in CLIENTS:
        mine = {**labels, "client": str(index)}
        yield "upstairs_client_jobs_in_progress", mine, core.jobs.jobs_in_progress[index], False
        yield "upstairs_client_bytes_in_progress", mine, core.jobs.bytes_in_progress[index], False
        yield "upstairs_client_delay_us", mine, upstairs.delays_us[index], False


def _of_snapshot(snapshot: Snapshot, labels: Labels) -> Iterator[Sample]:
    for numbers, grows in ((snapshot.counters, True), (snapshot.levels, False)):
        for name, value in numbers.items():
            yield f"{snapshot.component}_{name}", labels, value, grows
    for (name, label), table in snapshot.tables.items():
        for key, value in table.items():
            yield f"{snapshot.component}_{name}", {**labels, label: key}, value, True


class _Samples(Collector):
    """Samples, gathered by name as the text format wants them."""

    def __init__(self, found: Iterable[Sample]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, labels, value, grows in self._found:
            family = families.get(name)
            if family is None:
                kind = CounterMetricFamily if grows else GaugeMetricFamily
                family = families[name] = kind(f"{PREFIX}_{name}", name.replace("_", " "))
            full = f"{family.name}_total" if grows else family.name
            family.add_sample(full, labels, value)
        yield from families.values()


def text(all_upstairs: Sequence[Upstairs], others: Iterable[Callable[[], Snapshot]]) -> bytes:
    """All metrics as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples(all_upstairs, [take() for take in others])))
    return generate_latest(registry)
