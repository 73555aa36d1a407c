"""Every operation of the three APIs of Nexus once, so that it succeeds."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from api_rig import Served, disk_wish

TIME = "2026-01-01T00:00:00Z"
UPSTAIRS, REPAIR, REGION, SESSION = (str(UUID(int=number)) for number in range(9001, 9005))


async def do_everything(it: Served) -> None:
    """One thing after the other; at the end nothing of it is left."""
    disk_id, volume_id = await _disks_and_what_is_made_of_them(it)
    vmm_id = await _instances(it)
    await _internal(it, disk_id, volume_id, vmm_id)
    await _ends(it)
    await _lockstep(it)
    await _hardware(it)


async def _disks_and_what_is_made_of_them(it: Served) -> tuple[str, str]:
    user, importing = it.user, {"type": "importing_blocks", "block_size": 512}
    await user.ask("GET", "/v1/ping")
    made = await user.ask("POST", "/v1/disks", disk_wish("data", importing), 201)
    await user.ask("GET", "/v1/disks")
    await user.ask("GET", "/v1/disks/data")
    await user.ask("POST", "/v1/disks/data/bulk-write-start", status=204)
    block = {"offset": 512, "base64_encoded_data": base64.b64encode(bytes(512)).decode()}
    await user.ask("POST", "/v1/disks/data/bulk-write", block, 204)
    await user.ask("POST", "/v1/disks/data/bulk-write-stop", status=204)
    await user.ask("POST", "/v1/disks/data/finalize", {}, 204)
    wish: dict[str, Any] = {"name": "frozen", "description": "", "disk": "data"}
    snapshot = await user.ask("POST", "/v1/snapshots", wish, 201)
    await user.ask("GET", "/v1/snapshots")
    await user.ask("GET", "/v1/snapshots/frozen")
    wish = {"name": "os", "description": "", "os": "o", "version": "1"}
    wish["source"] = {"type": "snapshot", "id": snapshot["id"]}
    await user.ask("POST", "/v1/images", wish, 201, project="project")
    await user.ask("GET", "/v1/images", project="project")
    await user.ask("GET", "/v1/images/os", project="project")
    await it.operator.ask("POST", "/v1/images/os/promote", status=202, project="project")
    await it.operator.ask("POST", "/v1/images/os/demote", status=202, project="project")
    tables = it.rack.run(
        lambda c: [tuple(row) for row in c.exec_driver_sql("SELECT disk_id, volume_id FROM disk_type_crucible")]
    )
    return made["id"], dict(tables)[made["id"]]


async def _instances(it: Served) -> str:
    wish = {"name": "vm", "description": "", "hostname": "vm", "ncpus": 1, "memory": 0, "start": False}
    await it.user.ask("POST", "/v1/instances", wish, 201)
    await it.user.ask("GET", "/v1/instances")
    await it.user.ask("POST", "/v1/instances/vm/disks/attach", {"disk": "data"}, 202)
    await it.user.ask("GET", "/v1/instances/vm/disks")
    await it.user.ask("POST", "/v1/instances/vm/start", status=202)
    made = await it.user.ask("GET", "/v1/instances/vm")
    query = "SELECT active_propolis_id FROM instance WHERE id = ?"
    found: str = it.rack.run(lambda c: c.exec_driver_sql(query, (made["id"],)).scalar_one())
    await it.user.ask("POST", "/v1/instances/vm/stop", status=202)
    await it.user.ask("POST", "/v1/instances/vm/disks/detach", {"disk": "data"}, 202)
    return found


async def _internal(it: Served, disk_id: str, volume_id: str, vmm_id: str) -> None:
    tell, upstairs = it.internal.ask, f"/crucible/0/upstairs/{UPSTAIRS}"
    repairs = [{"region_uuid": REGION, "target_addr": "[fd00::1]:19000"}]
    told: dict[str, Any] = {"time": TIME, "repair_id": REPAIR, "session_id": SESSION, "repair_type": "live"}
    told["repairs"] = repairs
    await tell("GET", "/v1/ping")
    await tell("POST", f"{upstairs}/repair-start", told, 204)
    progress = {"time": TIME, "current_item": 1, "total_items": 2}
    await tell("POST", f"{upstairs}/repair/{REPAIR}/progress", progress, 204)
    await tell("POST", f"{upstairs}/repair-finish", told | {"aborted": False}, 204)
    await tell("POST", f"{upstairs}/downstairs/{REGION}/stop-request", {"time": TIME, "reason": "replacing"}, 204)
    await tell("POST", f"{upstairs}/downstairs/{REGION}/stopped", {"time": TIME, "reason": "finished"}, 204)
    await tell("POST", f"/disk/{disk_id}/remove-read-only-parent", status=204)
    await tell("POST", f"/volume/{volume_id}/remove-read-only-parent", status=204)
    state = {"vmm_state": {"gen": 100, "state": "destroyed", "time_updated": TIME}}
    await tell("PUT", f"/vmms/{vmm_id}", state, 204)


async def _ends(it: Served) -> None:
    for path in ("instances/vm", "snapshots/frozen", "disks/data"):
        await it.user.ask("DELETE", f"/v1/{path}", status=204)
    await it.user.ask("DELETE", "/v1/images/os", status=204, project="project")
    await it.operator.ask("POST", "/v1/projects", {"name": "third", "description": ""}, 201)
    await it.operator.ask("GET", "/v1/projects")
    await it.operator.ask("GET", "/v1/projects/third")
    await it.operator.ask("DELETE", "/v1/projects/third", status=204)
    await it.rack.require_empty()


async def _lockstep(it: Served) -> None:
    ask = it.lockstep.ask
    await ask("GET", "/v1/ping")
    tasks = await ask("GET", "/bgtasks")
    for name in tasks:
        await ask("GET", f"/bgtasks/view/{name}")
    await ask("POST", "/bgtasks/activate", {"bgtask_names": sorted(tasks)}, 204)
    for saga in (await ask("GET", "/sagas"))["items"]:
        await ask("GET", f"/sagas/{saga['id']}")


async def _hardware(it: Served) -> None:
    base = "/v1/system/hardware"
    sleds = (await it.operator.ask("GET", f"{base}/sleds"))["items"]
    disks = (await it.operator.ask("GET", f"{base}/disks"))["items"]
    one, two = sleds[0]["id"], sleds[1]["id"]
    await it.operator.ask("GET", f"{base}/sleds/{one}")
    await it.operator.ask("GET", f"{base}/sleds/{one}/disks")
    await it.operator.ask("GET", f"{base}/disks/{disks[0]['id']}")
    changed = await it.operator.ask("PUT", f"{base}/sleds/{one}/provision-policy", {"state": "non_provisionable"})
    assert changed == {"old_state": "provisionable", "new_state": "non_provisionable"}
    await it.lockstep.ask("POST", "/physical-disk/expunge", {"disk_id": disks[0]["id"]}, 204)
    before = await it.lockstep.ask("POST", "/sleds/expunge", {"sled": two}, 200)
    assert before == {"kind": "in_service", "provision_policy": "provisionable"}
