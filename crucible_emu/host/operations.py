"""The host over HTTP: the operations of ``propolis-server-5.0.0.json`` that have to do with disks, and ours.

What it is for: :func:`api` is the table of a host's operations. Those of ``/instance`` are the document's. A host that
is not *faithful* has each of them once more below ``/hosts/0/instances/{instance_id}``, for as many instances as a rack
wants of one process, with a list of the instances and one of the doors of an instance's disks. Bodies, answers and
handlers are the same: a handler finds its instance by the path, and knows nothing else of the difference.

What it guarantees: what the contract gives a status is answered with it (apis-and-tools.md §6.3); a request that
cannot be meant is refused before anything is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel

from crucible_emu.host import documents as d
from crucible_emu.host.documents import written
from crucible_emu.host.host import Host
from crucible_emu.host.refusals import Refused
from crucible_emu.service import Api, Call, Operation, Refusal, Versions
from crucible_emu.service.api import Handler

VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0")
INFO_SINCE = (5, 0, 0)
"""Before this version the status of a disk is one bit."""
BODY_BYTES_MAX = 1 << 20
ONE = "/instance"
MANY = "/hosts/0/instances"

Answer = Callable[[Host, Call], Awaitable[object]]


class Row(NamedTuple):
    """An operation on an instance: ``path`` follows that of the instance."""

    operation_id: str
    method: str
    path: str
    answer: Answer
    body: type[BaseModel] | None = None
    success: int = 200


# -- what each does ---------------------------------------------------------------------------------------------------


def _key(call: Call) -> UUID | None:
    """Which instance is meant, ``None`` for the one of ``/instance``."""
    text = call.path.get("instance_id")
    return None if text is None else _uuid(text, "instance_id")


def _uuid(text: str, what: str) -> UUID:
    try:
        if len(text) != 36:
            raise ValueError
        return UUID(text)
    except ValueError:
        raise Refusal(400, f"bad parameter in URL path: {what} is {text[:60]!r}, and must be a UUID") from None


async def _ensure(host: Host, call: Call) -> object:
    return await host.ensure(_key(call), call.body)


async def _get(host: Host, call: Call) -> object:
    return host.machine(_key(call)).instance.get()


async def _get_spec(host: Host, call: Call) -> object:
    return written(host.machine(_key(call)).instance.get_spec())


async def _put_state(host: Host, call: Call) -> object:
    host.machine(_key(call)).request(call.body.root)
    return None


async def _monitor(host: Host, call: Call) -> object:
    return await host.machine(_key(call)).monitor(call.body.gen)


async def _migration_status(host: Host, call: Call) -> object:
    return host.machine(_key(call)).instance.seen().migration


async def _snapshot(host: Host, call: Call) -> object:
    snapshot_id = _uuid(call.path["snapshot_id"], "snapshot_id")
    await host.machine(_key(call)).snapshot(call.path["id"], snapshot_id)
    return None


async def _status(host: Host, call: Call) -> object:
    machine = host.machine(_key(call))
    if call.version < INFO_SINCE:
        return d.VolumeActive(active=machine.disk(call.path["id"]).volume.active)
    return machine.volume_status(call.path["id"])


async def _replace(host: Host, call: Call) -> object:
    return (await host.machine(_key(call)).replace(call.path["id"], call.body.vcr_json)).value


async def _list(host: Host, _call: Call) -> object:
    return host.describe()


async def _list_disks(host: Host, call: Call) -> object:
    return {"disks": host.machine(_key(call)).describe().disks}


# -- the table --------------------------------------------------------------------------------------------------------

ROWS = (
    Row("instance_ensure", "PUT", "", _ensure, d.InstanceEnsureRequest, 201),
    Row("instance_get", "GET", "", _get),
    Row("instance_spec_get", "GET", "/spec", _get_spec),
    Row("instance_state_put", "PUT", "/state", _put_state, d.StateRequest, 204),
    Row("instance_state_monitor", "GET", "/state-monitor", _monitor, d.InstanceStateMonitorRequest),
    Row("instance_migrate_status", "GET", "/migration-status", _migration_status),
    Row("instance_issue_crucible_snapshot_request", "POST", "/disk/{id}/snapshot/{snapshot_id}", _snapshot),
    Row("disk_volume_status", "GET", "/disk/{id}/status", _status),
    Row("instance_issue_crucible_vcr_request", "PUT", "/disk/{id}/vcr", _replace, d.InstanceVCRReplace),
)
"""The operations of the document."""

OWN_ROWS = (Row("instance_disks_list", "GET", "/disks", _list_disks),)
"""Ours, on an instance."""


def api(host: Host, *, faithful: bool = False, lenient: bool = False) -> Api:
    """All operations of ``host``; a *faithful* one has those of the document only."""

    def handler(answer: Answer) -> Handler:
        async def handle(call: Call) -> object:
            try:
                return await answer(host, call)
            except Refused as refused:
                raise Refusal(refused.status, str(refused), refused.error_code) from None

        return handle

    def at(prefix: str, row: Row, beginning: str = "") -> Operation:
        name = beginning + row.operation_id
        return Operation(name, row.method, prefix + row.path, handler(row.answer), row.body, row.success)

    operations = [at(ONE, row) for row in ROWS]
    if not faithful:
        operations += [at(ONE, row) for row in OWN_ROWS]
        operations += [at(f"{MANY}/{{instance_id}}", row, "hosted_") for row in (*ROWS, *OWN_ROWS)]
        operations.append(Operation("hosted_instances_list", "GET", MANY, handler(_list)))
    return Api("host", operations, BODY_BYTES_MAX, versions=Versions(VERSIONS), faithful=faithful, lenient=lenient)
