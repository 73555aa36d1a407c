"""What Nexus does in many steps: a recipe per module (nexus.md §3).

Every module is one saga, or the nodes that several share, and opens with what may happen between its nodes and why each
may run again. ``ALL_SAGAS`` is what an executor has to know: a recipe that is not in it cannot be gone on with after a
crash.
"""

from nexus.saga import Saga
from nexus.sagas.disk_create import DISK_CREATE, DISK_CREATE_IMPORTING, DISK_CREATE_READ_ONLY
from nexus.sagas.disk_delete import DISK_DELETE
from nexus.sagas.finalize_disk import FINALIZE_DISK, FINALIZE_DISK_WITH_SNAPSHOT
from nexus.sagas.image_create import IMAGE_CREATE
from nexus.sagas.image_delete import IMAGE_DELETE
from nexus.sagas.instance_start import INSTANCE_START
from nexus.sagas.instance_stop import INSTANCE_STOP
from nexus.sagas.region_replacement_drive import REGION_REPLACEMENT_DRIVE
from nexus.sagas.region_replacement_finish import REGION_REPLACEMENT_FINISH
from nexus.sagas.region_replacement_start import REGION_REPLACEMENT_START
from nexus.sagas.region_snapshot_replacement_finish import REGION_SNAPSHOT_REPLACEMENT_FINISH
from nexus.sagas.region_snapshot_replacement_garbage_collect import REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT
from nexus.sagas.region_snapshot_replacement_start import REGION_SNAPSHOT_REPLACEMENT_START
from nexus.sagas.region_snapshot_replacement_step import REGION_SNAPSHOT_REPLACEMENT_STEP
from nexus.sagas.region_snapshot_replacement_step_garbage_collect import (
    REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT,
)
from nexus.sagas.remove_read_only_parent import REMOVE_READ_ONLY_PARENT
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_ATTACHED, SNAPSHOT_CREATE_DETACHED
from nexus.sagas.snapshot_delete import SNAPSHOT_DELETE
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.sagas.volume_verify import VOLUME_VERIFY

ALL_SAGAS: tuple[Saga, ...] = (
    # What makes disks.
    DISK_CREATE,
    DISK_CREATE_IMPORTING,
    DISK_CREATE_READ_ONLY,
    FINALIZE_DISK,
    FINALIZE_DISK_WITH_SNAPSHOT,
    # What makes snapshots, and images of them.
    SNAPSHOT_CREATE_ATTACHED,
    SNAPSHOT_CREATE_DETACHED,
    IMAGE_CREATE,
    # What runs guests.
    INSTANCE_START,
    INSTANCE_STOP,
    # What replaces read-only targets that are lost.
    REGION_SNAPSHOT_REPLACEMENT_START,
    REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT,
    REGION_SNAPSHOT_REPLACEMENT_STEP,
    REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT,
    REGION_SNAPSHOT_REPLACEMENT_FINISH,
    # What only looks.
    VOLUME_VERIFY,
    # What replaces a read/write region that is lost.
    REGION_REPLACEMENT_START,
    REGION_REPLACEMENT_DRIVE,
    REGION_REPLACEMENT_FINISH,
    # What takes things away.
    VOLUME_DELETE,
    REMOVE_READ_ONLY_PARENT,
    DISK_DELETE,
    SNAPSHOT_DELETE,
    IMAGE_DELETE,
)

__all__ = ["ALL_SAGAS"]
