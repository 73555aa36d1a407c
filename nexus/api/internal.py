"""The internal API: what Upstairs and sled agents say to Nexus (apis-and-tools.md §5.3).

For operators and for the programs of this machine. Each notification may come twice, and is then answered in the same
way; what contradicts an earlier one is 409.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from crucible_emu.service import Api, Call, Operation, Versions
from nexus.api import internal_documents as documents
from nexus.api.callers import Doors
from nexus.api.members import SIGNED_MAX, Document
from nexus.api.queries import path_id
from nexus.api.refusals import Handler, answering, bad_request
from nexus.db.schema import RepairNotificationType, RepairType, VmmState
from nexus.db.schema.notifications import StoppedReason, StopRequestReason
from nexus.objects import notifications
from nexus.objects.disks import require_disk
from nexus.objects.notifications import Client, Repair
from nexus.objects.vmm_reports import vmm_reported
from nexus.running import Nexus
from nexus.sagas import remove_read_only_parent
from nexus.volumes import Address

NAME = "nexus-internal"
VERSION = "1.0.0"
BODY_BYTES_MAX = 1 << 20
REGIONS_MAX = 64
"""An Upstairs repairs at most two of three."""

STOP_REQUEST_REASONS = {"i_o_error": StopRequestReason.IO_ERROR}
"""Words that the document spells in another way than the database."""


class Internal:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def ping(self, _call: Call) -> object:
        return documents.Ping(status="ok")

    # -- what Upstairs tell -------------------------------------------------------------------------------------------

    async def repair_started(self, call: Call) -> object:
        return await self._repair(call, RepairNotificationType.STARTED)

    async def repair_finished(self, call: Call) -> object:
        failed = call.body.aborted
        return await self._repair(call, RepairNotificationType.FAILED if failed else RepairNotificationType.SUCCEEDED)

    async def _repair(self, call: Call, what: RepairNotificationType) -> object:
        told: documents.RepairStartInfo = call.body
        if len(told.repairs) > REGIONS_MAX:
            raise bad_request(f"one repair is of at most {REGIONS_MAX} regions")
        repair = Repair(
            time=told.time,
            repair_id=str(told.repair_id),
            repair_type=RepairType(told.repair_type),
            upstairs_id=path_id(call, "upstairs_id"),
            session_id=str(told.session_id),
            regions=tuple((str(each.region_uuid), Address.parse(each.target_addr)) for each in told.repairs),
        )
        return await self._write(lambda c: notifications.repair_notified(c, repair, what))

    async def repair_progressed(self, call: Call) -> object:
        upstairs_id, repair_id = path_id(call, "upstairs_id"), path_id(call, "repair_id")
        told: documents.RepairProgress = call.body
        if told.current_item < 0 or told.total_items < 0:
            raise bad_request("current_item and total_items are not below 0")
        return await self._write(
            lambda c: notifications.repair_progressed(
                c, upstairs_id, repair_id, told.time, told.current_item, told.total_items
            )
        )

    async def stop_requested(self, call: Call) -> object:
        word = call.body.reason
        reason = STOP_REQUEST_REASONS.get(word) or StopRequestReason(word)
        client = _client(call)
        return await self._write(lambda c: notifications.stop_requested(c, client, reason))

    async def stopped(self, call: Call) -> object:
        client, reason = _client(call), StoppedReason(call.body.reason)
        return await self._write(lambda c: notifications.stopped(c, client, reason))

    # -- what hosts tell ----------------------------------------------------------------------------------------------

    async def disk_scrubbed(self, call: Call) -> object:
        disk_id = path_id(call, "disk_id")
        disk = await self._world.database.read(lambda c: require_disk(c, disk_id))
        return await self._remove_parent(disk.volume_id)

    async def volume_scrubbed(self, call: Call) -> object:
        return await self._remove_parent(path_id(call, "volume_id"))

    async def _remove_parent(self, volume_id: str) -> object:
        """A volume without a parent, that is deleted or that is none, has none to be removed: that is done."""
        params = remove_read_only_parent.Params(volume_id=volume_id, temporary_id=self._world.new_id())
        await self._nexus.executor.run(remove_read_only_parent.REMOVE_READ_ONLY_PARENT, params)
        return None

    async def disk_put(self, call: Call) -> object:
        path_id(call, "disk_id")
        raise bad_request("nobody tells the state of a disk: it follows from that of its instance")

    async def vmm_put(self, call: Call) -> object:
        vmm_id, now = path_id(call, "propolis_id"), self._world.now
        told = call.body.vmm_state
        if told.gen > SIGNED_MAX:
            raise bad_request("gen is too large")
        return await self._write(lambda c: vmm_reported(c, vmm_id, VmmState(told.state), told.gen, now()))

    async def _write(self, body: Callable[[Connection], Any]) -> object:
        await self._world.database.transact(body)
        return None


def _client(call: Call) -> Client:
    return Client(call.body.time, path_id(call, "upstairs_id"), path_id(call, "downstairs_id"))


def internal_api(nexus: Nexus, doors: Doors, *, faithful: bool = False, lenient: bool = False) -> Api:
    """The API of ``nexus``. ``lenient``: a request without ``api-version`` is answered, too."""
    do = Internal(nexus)
    upstairs = "/crucible/0/upstairs/{upstairs_id}"
    downstairs, parent = f"{upstairs}/downstairs/{{downstairs_id}}", "remove-read-only-parent"
    started, finished, progress = documents.RepairStartInfo, documents.RepairFinishInfo, documents.RepairProgress
    to_stop, stopped = documents.DownstairsClientStopRequest, documents.DownstairsClientStopped

    def told(name: str, path: str, handler: Handler, body: type[Document] | None, method: str = "POST") -> Operation:
        return Operation(name, method, path, answering(handler), body, 204)

    operations = (
        Operation("ping", "GET", "/v1/ping", answering(do.ping)),
        told("cpapi_upstairs_repair_start", f"{upstairs}/repair-start", do.repair_started, started),
        told("cpapi_upstairs_repair_finish", f"{upstairs}/repair-finish", do.repair_finished, finished),
        told(
            "cpapi_upstairs_repair_progress",
            f"{upstairs}/repair/{{repair_id}}/progress",
            do.repair_progressed,
            progress,
        ),
        told("cpapi_downstairs_client_stop_request", f"{downstairs}/stop-request", do.stop_requested, to_stop),
        told("cpapi_downstairs_client_stopped", f"{downstairs}/stopped", do.stopped, stopped),
        told("cpapi_disk_remove_read_only_parent", f"/disk/{{disk_id}}/{parent}", do.disk_scrubbed, None),
        told("cpapi_volume_remove_read_only_parent", f"/volume/{{volume_id}}/{parent}", do.volume_scrubbed, None),
        told("cpapi_disks_put", "/disks/{disk_id}", do.disk_put, documents.DiskRuntimeState, "PUT"),
        told("cpapi_instances_put", "/vmms/{propolis_id}", do.vmm_put, documents.SledVmmState, "PUT"),
    )
    return Api(
        NAME,
        operations,
        BODY_BYTES_MAX,
        Versions((VERSION,)),
        faithful=faithful,
        lenient=lenient,
        identify=doors.operators_and_neighbours,
    )
