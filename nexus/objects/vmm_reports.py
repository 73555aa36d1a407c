"""What sled agents say of the processes that run instances, written down.

A report carries a generation, and of two the higher is newer: one that comes late changes nothing, and that is no error
(*safety*: reports overtake each other on their way). A process that has ended stays so. When one is gone, its instance
does not run in it any more, and its disks can be taken by the next.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select, update

from nexus.db import schema
from nexus.db.schema import VmmState
from nexus.objects.instances import vmm_deactivate
from nexus.objects.refusals import not_found

_VMM = schema.vmm
GONE = frozenset({VmmState.DESTROYED, VmmState.FAILED})
"""A process in one of these states writes nothing any more."""


def vmm_reported(connection: Connection, vmm_id: str, state: VmmState, generation: int, now: datetime) -> bool:
    """Whether the report was news. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = connection.execute(select(_VMM.c.instance_id, _VMM.c.time_deleted).where(_VMM.c.id == vmm_id)).one_or_none()
    if row is None:
        raise not_found("vmm", vmm_id)
    if row.time_deleted is not None:
        return False
    new = {"state": state, "state_generation": generation, "time_modified": now}
    if state is VmmState.DESTROYED:
        new["time_deleted"] = now
    newer = (_VMM.c.id == vmm_id, _VMM.c.state_generation < generation)
    if connection.execute(update(_VMM).where(*newer).values(**new)).rowcount == 0:
        return False
    if state in GONE:
        vmm_deactivate(connection, row.instance_id, vmm_id, now)
    return True
