"""By what right a volume is handed out: every reason against every state of the disk's instance (nexus.md §5.4)."""

from __future__ import annotations

from uuid import UUID

import pytest
from volumes_rig import Rack

from nexus.db import Conflict, Database, schema
from nexus.volumes.checkout import (
    Attachment,
    CopyAndModify,
    InstanceMigrate,
    InstanceStart,
    Pantry,
    ReadOnlyCopy,
    Reason,
    Repair,
    attachment,
    refusal,
    volume_checkout,
)
from nexus.volumes.recorded import blank

VMM, OTHER, TARGET = "vmm", "other", "target"
START, MIGRATE = InstanceStart(VMM), InstanceMigrate(VMM, TARGET)

DETACHED = None
LOST = Attachment("i", instance_found=False)
STOPPED = Attachment("i", True)
RUNNING = Attachment("i", True, VMM)
ELSEWHERE = Attachment("i", True, OTHER)
MOVING = Attachment("i", True, VMM, TARGET)
MOVING_ELSEWHERE = Attachment("i", True, VMM, OTHER)
ONLY_TARGET = Attachment("i", True, None, TARGET)
STATES = [DETACHED, LOST, STOPPED, RUNNING, ELSEWHERE, MOVING, MOVING_ELSEWHERE, ONLY_TARGET]

ALLOWED: list[tuple[Reason, list[Attachment | None]]] = [
    (CopyAndModify(), STATES),
    (ReadOnlyCopy(), STATES),
    (START, [RUNNING]),
    (MIGRATE, [MOVING]),
    (Pantry(), [DETACHED, STOPPED, ONLY_TARGET]),
    (Repair(), [DETACHED, STOPPED, ONLY_TARGET]),
]


@pytest.mark.parametrize(("reason", "allowed"), ALLOWED, ids=lambda each: type(each).__name__)
def test_who_may_check_out_what(reason: Reason, allowed: list[Attachment | None]) -> None:
    empty = blank(UUID(int=1))
    assert [state for state in STATES if refusal(reason, empty, state) is None] == allowed


@pytest.fixture
def rack(database: Database) -> Rack:
    rack = Rack(database)
    for _ in range(3):
        rack.add_sled()
    return rack


def test_the_instance_of_a_volumes_disk_is_asked(rack: Rack) -> None:
    volume_id = rack.disk().volume_id
    assert rack.run(attachment, volume_id) is None, "no disk"
    disk_id = rack.user_disk(volume_id)
    assert rack.run(attachment, volume_id) is None, "not attached"
    vmm = rack.id()
    instance = rack.add(
        schema.instance,
        project_id=rack.id(),
        name="instance",
        description="",
        state_generation=1,
        active_propolis_id=vmm,
    )
    rack.set(schema.disk, disk_id, disk_state="attached", attach_instance_id=instance)
    assert rack.run(attachment, volume_id) == Attachment(instance, True, vmm)
    assert rack.run(volume_checkout, volume_id, InstanceStart(vmm), rack.now()).id == volume_id
    with pytest.raises(Conflict, match=r"cannot be checked out for Pantry: instance .* runs"):
        rack.run(volume_checkout, volume_id, Pantry(), rack.now())
    rack.set(schema.instance, instance, time_deleted=rack.now())
    assert rack.run(attachment, volume_id) == Attachment(instance, False)
    with pytest.raises(Conflict, match="which does not exist"):
        rack.run(volume_checkout, volume_id, Pantry(), rack.now())


def test_a_disk_that_is_written_to_is_no_read_only_copy(rack: Rack) -> None:
    with pytest.raises(Conflict, match="it is written to"):
        rack.run(volume_checkout, rack.disk().volume_id, ReadOnlyCopy(), rack.now())
