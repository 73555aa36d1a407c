"""The state of a rack at rest as one digest: rows, bytes, who listens where, and what users have.

What it is for: most interferences change nothing in the end, so thousands of runs come to rest in the same few states.
What is to be said of a state, and that everything can be deleted from there, is found out once (*optimisation*). The
digest is also what a trace ends with.

Left out is what no later step depends on: times, logs of sagas, notifications that were read, and row ids that nobody
looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blake3 import blake3

from crucible_emu.agent.documents import State
from nexus.db import schema
from nexus.db.schema.columns import Moment
from nexus.explore.rack import Rack
from nexus.explore.storage import Contents
from nexus.explore.upstairs import targets_of

_LEFT_OUT = {
    *("saga", "saga_event", "saga_lease", "nexus_instance", "schema_version", "upstairs_repair_notification"),
    *("upstairs_repair_progress", "region_replacement_step", "vmm"),
}
_COLUMNS_LEFT_OUT = {"rcgen", "usage_id", "state_generation", "gen"}


def _queries() -> Iterator[tuple[str, str]]:
    for table in sorted(schema.METADATA.tables.values(), key=lambda each: each.name):
        if table.name in _LEFT_OUT:
            continue
        columns = [
            f'"{each.name}"'
            for each in table.columns
            if not isinstance(each.type, Moment) and each.name not in _COLUMNS_LEFT_OUT
        ]
        gone = '"time_deleted" IS NULL' if "time_deleted" in table.columns else "NULL"
        listed = ", ".join(columns)
        yield table.name, f'SELECT {listed}, {gone} FROM "{table.name}" ORDER BY {listed}'


_QUERIES = list(_queries())


def digest_of(rack: Rack) -> str:
    """BLAKE3 of all that counts."""
    hasher = blake3()
    pooled = rack.database.engines[0].raw_connection()
    try:
        driver: Any = pooled.driver_connection
        for name, query in _QUERIES:
            hasher.update(f"{name}{driver.execute(query).fetchall()}".encode())
    finally:
        pooled.close()
    for line in _memory(rack):
        hasher.update(line.encode())
    return hasher.hexdigest()


def _memory(rack: Rack) -> Iterator[str]:
    for sled in rack.fabric.sleds:
        yield f"sled {sled.number} {sled.alive}"
        for region in sorted(sled.regions.values(), key=lambda each: each.id):
            if region.state is State.DESTROYED:
                continue
            yield f"{region.id} {region.port} {region.state} {_digests(region.contents)}"
            for name in sorted(region.snapshots):
                yield f"{name} {_digests(region.snapshots[name])}"
            for name in sorted(region.served):
                yield f"{name} {region.served[name].port} {region.served[name].state}"
    for ip, pantry in rack.switchboard.pantries.items():
        yield f"pantry {ip} {sorted((name, targets_of(held.request)) for name, held in pantry.held.items())}"
    for ip, host in rack.switchboard.hosts.items():
        yield f"host {ip} {sorted((name, guest.state.value) for name, guest in host.guests.items())}"
    yield from rack.fabric.contradictions
    for thing in sorted(rack.things.values(), key=lambda each: each.name):
        yield f"{thing.name} {thing.living} {thing.sure} {sorted(thing.contents)} {sorted(thing.either)}"


def _digests(contents: Contents) -> list[str]:
    return [contents.digest(extent) for extent in range(contents.extent_count)]
