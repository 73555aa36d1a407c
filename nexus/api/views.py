"""Rows as the external API shows them. What a row has beside this (volumes, generations, pantries) is nobody's outside.

Pure: a row goes in, a document comes out.
"""

from __future__ import annotations

import json
from typing import Any, Literal, cast
from uuid import UUID

from nexus.api import external_documents as documents
from nexus.api.instance_documents import Instance
from nexus.db.schema import DiskPolicy, DiskState, SledPolicy, VmmState
from nexus.objects.disks import Disk
from nexus.objects.images import Image

WITH_INSTANCE = frozenset({DiskState.ATTACHING, DiskState.ATTACHED, DiskState.DETACHING})
DEVICE_PATHS = "/mnt"

RUN_STATES: dict[VmmState, str] = {
    VmmState.CREATING: "starting",
    VmmState.STARTING: "starting",
    VmmState.RUNNING: "running",
    VmmState.REBOOTING: "rebooting",
    VmmState.MIGRATING: "migrating",
    VmmState.STOPPING: "stopping",
    # Until its instance lets go of it, which is the last thing that happens.
    VmmState.STOPPED: "stopping",
    VmmState.DESTROYED: "stopping",
    VmmState.SAGA_UNWOUND: "stopping",
    VmmState.FAILED: "failed",
}
"""How an instance is that runs in a vmm of this state; without a vmm it is stopped."""


def identity(row: Any) -> dict[str, Any]:
    """What everything that users make has."""
    return {
        "id": UUID(row.id),
        "name": row.name,
        "description": row.description,
        "time_created": row.time_created,
        "time_modified": row.time_modified,
    }


def _id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def project(row: Any) -> documents.Project:
    return documents.Project(**identity(row))


def disk(row: Disk) -> documents.Disk:
    return documents.Disk(
        **identity(row),
        project_id=UUID(row.project_id),
        snapshot_id=_id(row.origin_snapshot),
        image_id=_id(row.origin_image),
        size=row.size_bytes,
        block_size=cast(Literal[512, 2048, 4096], row.block_size),
        state=disk_state(row),
        device_path=f"{DEVICE_PATHS}/{row.name}",
        disk_type="distributed",
        read_only=row.read_only,
    )


def disk_state(row: Disk) -> documents.DiskState:
    """How far a disk is, with its instance where it has one."""
    if row.state in WITH_INSTANCE:
        assert row.attach_instance_id is not None
        with_instance = cast(Literal["attaching", "attached", "detaching"], row.state.value)
        return documents.StateWithInstance(state=with_instance, instance=UUID(row.attach_instance_id))
    return documents.StateAtRest.model_validate({"state": row.state.value})


def snapshot(row: Any) -> documents.Snapshot:
    return documents.Snapshot(
        **identity(row),
        project_id=UUID(row.project_id),
        disk_id=UUID(row.disk_id),
        size=row.size_bytes,
        state=row.state.value,
    )


def image(row: Image) -> documents.Image:
    return documents.Image(
        **identity(row),
        project_id=_id(row.project_id),
        size=row.size_bytes,
        block_size=cast(Literal[512, 2048, 4096], row.block_size),
        os=row.os,
        version=row.version,
        digest=None if row.digest is None else documents.Digest.model_validate(json.loads(row.digest)),
    )


def instance(row: Any) -> Instance:
    """``row`` has ``vmm_state`` and ``time_vmm_modified`` of the vmm that the instance runs in, or ``None``."""
    run_state = "stopped" if row.vmm_state is None else RUN_STATES[VmmState(row.vmm_state)]
    return Instance.model_validate(
        identity(row)
        | {
            "project_id": row.project_id,
            "run_state": run_state,
            "time_run_state_updated": row.time_vmm_modified or row.time_modified,
            "hostname": row.name,
            "memory": 0,
            "ncpus": 0,
            "auto_restart_enabled": False,
            "enable_jumbo_frames": False,
        }
    )


def sled_policy(policy: SledPolicy) -> documents.SledPolicy:
    match policy:
        case SledPolicy.EXPUNGED:
            return documents.Expunged()
        case SledPolicy.IN_SERVICE:
            return documents.SledInService(provision_policy="provisionable")
        case SledPolicy.NO_PROVISION:
            return documents.SledInService(provision_policy="non_provisionable")


def sled(row: Any) -> documents.Sled:
    return documents.Sled(
        id=UUID(row.id),
        time_created=row.time_created,
        time_modified=row.time_modified,
        baseboard=documents.Baseboard(serial=row.serial_number, part=row.part_number, revision=row.revision),
        policy=sled_policy(SledPolicy(row.sled_policy)),
        rack_id=UUID(row.rack_id),
        state=row.sled_state.value,
        usable_hardware_threads=0,
        usable_physical_ram=0,
    )


def physical_disk(row: Any) -> documents.PhysicalDisk:
    lost = row.disk_policy == DiskPolicy.EXPUNGED
    return documents.PhysicalDisk(
        id=UUID(row.id),
        time_created=row.time_created,
        time_modified=row.time_modified,
        form_factor=row.variant.value,
        vendor=row.vendor,
        serial=row.serial,
        model=row.model,
        policy=documents.Expunged() if lost else documents.InService(),
        sled_id=UUID(row.sled_id),
        state=row.disk_state.value,
    )
