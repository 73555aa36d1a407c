"""The state of a rack at rest as one digest: rows, bytes, who listens where, and what users have.

What it is for: most interferences change nothing in the end, so thousands of runs end in the same few states. What
becomes of a state in which no saga runs, what is to be said of it at rest, and that everything can be deleted from
there, is found out once (*optimisation*). The digest is also what a trace ends with.

What it guarantees: two states with one digest are alike up to the names of things: each id and session is called by the
place at which it first stands. Times count as minutes from now. Left out is what no later step depends on: logs of
sagas, notifications that were read, and row ids that nobody looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from blake3 import blake3
from sqlalchemy import Column, Connection

from crucible_emu.agent.documents import State
from nexus.db import schema
from nexus.db.schema.columns import Moment
from nexus.explore.rack import Rack, Thing
from nexus.explore.storage import Contents
from nexus.explore.upstairs import LightVolume

_LEFT_OUT = {
    *("saga", "saga_event", "saga_lease", "nexus_instance", "schema_version", "upstairs_repair_notification"),
    "upstairs_repair_progress",
}
_COLUMNS_LEFT_OUT = {"rcgen", "usage_id", "state_generation", "gen"}
_TIMED = {"volume_repair_queue", "region_replacement_step"}
"""Where it matters how long ago something was."""
_UNDER_WAY = "SELECT 1 FROM saga WHERE state NOT IN ('done', 'unwound') LIMIT 1"
_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|session-\d+")


def _queries() -> Iterator[tuple[str, str]]:
    for table in sorted(schema.METADATA.tables.values(), key=lambda each: each.name):
        if table.name in _LEFT_OUT:
            continue
        columns = [_column(table.name, each) for each in table.columns if each.name not in _COLUMNS_LEFT_OUT]
        listed = ", ".join(filter(None, columns))
        gone = '"time_deleted" IS NULL' if "time_deleted" in table.columns else "NULL"
        yield table.name, f'SELECT {listed}, {gone} FROM "{table.name}" ORDER BY {listed}'


def _column(table: str, column: Column[Any]) -> str | None:
    if not isinstance(column.type, Moment):
        return f'"{column.name}"'
    return f'round((julianday(:now) - julianday("{column.name}")) * 1440)' if table in _TIMED else None


_QUERIES = list(_queries())


def digest_of(rack: Rack) -> str | None:
    """BLAKE3 of all that counts; ``None`` while a saga is under way, for what it knows is not looked at."""
    now = rack.now().isoformat(sep=" ")

    def rows(connection: Connection) -> list[str] | None:
        driver: Any = connection.connection.driver_connection
        if driver.execute(_UNDER_WAY).fetchone():
            return None
        return [f"{name}{driver.execute(query, {'now': now}).fetchall()}" for name, query in _QUERIES]

    found = rack.run(rows)
    return None if found is None else blake3(_without_names("\n".join((*found, *_memory(rack)))).encode()).hexdigest()


def _without_names(text: str) -> str:
    """The same for all states that differ in names alone: each is called by its place."""
    names: dict[str, str] = {}
    return _NAME.sub(lambda found: names.setdefault(found[0], f"#{len(names)}"), text)


def _memory(rack: Rack) -> Iterator[str]:
    for sled in rack.fabric.sleds:
        yield f"sled {sled.number} {sled.alive}"
        for region in sorted(sled.regions.values(), key=lambda each: each.id):
            if region.state is State.DESTROYED:
                continue
            yield f"{region.id} {region.port} {region.state} {region.writer} {_contents(region.contents)}"
            for name in sorted(region.snapshots):
                yield f"{name} {_contents(region.snapshots[name])}"
            for name in sorted(region.served):
                yield f"{name} {region.served[name].port} {region.served[name].state}"
    for ip, pantry in rack.switchboard.pantries.items():
        for name, held in sorted(pantry.held.items()):
            yield f"pantry {ip} {name} {held.succeeded} {_volume(held.volume)}"
    for ip, host in rack.switchboard.hosts.items():
        for name, guest in sorted(host.guests.items()):
            disks = [(disk_id, _volume(volume)) for disk_id, volume in sorted(guest.disks.items())]
            yield f"host {ip} {name} {guest.state.value} {disks}"
    yield f"wrong orders {rack.fabric.wrong_orders}"
    for thing in sorted(rack.things.values(), key=lambda each: each.name):
        yield f"{thing.name} {thing.living} {thing.sure} {_expected(thing)}"


def _expected(thing: Thing) -> str:
    """What its user must find. *Safety*: of two states with the same bytes, one may lack a write that the other never
    had."""
    either = [(block, sorted(data)) for block, data in sorted(thing.either.items())]
    return blake3(repr((sorted(thing.contents.items()), either)).encode()).hexdigest()


def _contents(contents: Contents) -> list[tuple[str, Any]]:
    return [(contents.digest(extent), contents.marks[extent]) for extent in range(contents.extent_count)]


def _volume(volume: LightVolume) -> tuple[Any, ...]:
    sets = [
        (each.session, each.active, [(member.address, member.state, member.replaced) for member in each.members])
        for each in volume.every_set()
    ]
    return volume.taken, sets
