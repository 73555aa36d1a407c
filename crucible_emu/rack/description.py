"""A rack as ``rack status`` shows it, whether it runs or not.

What it is for: one document for people, scripts and a control plane: every service with its sled, kind and URL. What it
guarantees: members are the same in every state of the rack; a service of this machine has the same URL whether it runs,
was killed or is stopped. A service elsewhere has the state ``elsewhere`` until somebody has looked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crucible_emu.rack import plan
from crucible_emu.rack.core import RackCore, Service
from crucible_emu.rack.document import RackFile, SledElsewhere
from crucible_emu.rack.plan import Planned
from crucible_emu.rack.state import RackState
from crucible_emu.rack.states import ServiceState

ELSEWHERE, MIXED = "elsewhere", "mixed"


def describe(
    root: Path, rack: RackFile, state: RackState, *, core: RackCore | None = None, pid: int | None = None
) -> dict[str, Any]:
    """The document. ``core`` and ``pid`` (of the supervisor) where the rack runs."""
    planned = plan.services(rack, root)
    services = [_here(each, root, rack, state, core) for each in planned]
    services += [service for sled in rack.elsewhere for service in _elsewhere(sled)]
    return {
        "running": core is not None,
        "ready": core is not None and core.all_ready,
        "directory": str(root),
        "pid": pid,
        "sleds": [
            {"name": sled.name, "state": _together([s["state"] for s in services if s["sled"] == sled.name])}
            for sled in rack.sleds
        ],
        "services": services,
    }


def _here(each: Planned, root: Path, rack: RackFile, state: RackState, core: RackCore | None) -> dict[str, Any]:
    if core is None:
        dead = ServiceState.KILLED if each.sled in state.killed else ServiceState.STOPPED
        service = Service(each.name, each.kind, each.sled, dead)
    else:
        service = core.service(each.name)
    pool = state.pools.get(each.name)
    return {
        "name": each.name,
        "kind": each.kind,
        "sled": each.sled or None,
        "state": service.state.value,
        "url": plan.url(each, rack, state),
        "urls": plan.urls(each, rack, state),
        "pid": service.pid,
        "restarts": service.restarts,
        "said": service.said or None,
        "disk": each.disk,
        "disk_size": each.disk_size,
        "low_port": None if pool is None else pool.low,
        "ports": None if pool is None else pool.count,
        "directory": None if each.directory is None else str(each.directory),
        "log": str(plan.log_path(root, each.name)),
    }


def _elsewhere(sled: SledElsewhere) -> list[dict[str, Any]]:
    found = [("agent", f"disk{index}", url, index) for index, url in enumerate(sled.agents)]
    others = (("pantry", sled.pantry), ("host", sled.host))
    rows = [*found, *((kind, kind, url, None) for kind, url in others if url is not None)]
    empty = dict.fromkeys(("pid", "disk_size", "low_port", "ports", "directory", "log", "said"))
    return [
        {
            **empty,
            "name": f"{sled.name}-{suffix}",
            "kind": kind,
            "sled": sled.name,
            "state": ELSEWHERE,
            "url": url,
            "urls": {},
            "restarts": 0,
            "disk": disk,
        }
        for kind, suffix, url, disk in rows
    ]


def _together(states: list[str]) -> str:
    return states[0] if len(set(states)) == 1 else MIXED
