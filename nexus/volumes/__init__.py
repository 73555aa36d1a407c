"""Volumes: the documents that say which regions make up a disk, and who counts on what in them (nexus.md §5, §6).

Documents: ``recorded`` the VCR as the database holds it, ``walks`` what it names and what becomes of it. Rows:
``regions`` what agents said, ``resolution`` from an address to a resource and its users, ``rows`` making and finding
volumes, ``checkout`` handing one out, ``deletion`` its end, ``freed`` what that set free, ``replacing`` one target for
another, ``parents`` taking a parent away, ``repair_lock`` who may change a volume, ``at_rest`` what was proved of one,
``search`` who names an address.
Proof: ``census`` reads all of it, ``invariants`` says what must hold. ``refusals``: why something is not done.

Everything that takes a connection is a body of a transaction, or part of one (:meth:`nexus.db.Database.transact`).
"""

from nexus.volumes.checkout import (
    CopyAndModify,
    InstanceMigrate,
    InstanceStart,
    Pantry,
    ReadOnlyCopy,
    Repair,
    volume_checkout,
    volume_checkout_randomize_ids,
)
from nexus.volumes.deletion import (
    deletions_to_finish,
    find_deleted_volume_regions,
    region_snapshot_remove,
    soft_delete_volume,
    volume_hard_delete,
    volume_hard_delete_when_done,
)
from nexus.volumes.freed import CrucibleResources, regions_to_delete, snapshots_to_delete
from nexus.volumes.parents import volume_remove_rop
from nexus.volumes.recorded import Address, MalformedVolume
from nexus.volumes.refusals import BrokenInvariant, ResourceGone, TargetNotFound
from nexus.volumes.regions import region_record_port, region_snapshot_create, region_snapshot_give_up
from nexus.volumes.repair_lock import FairLocks, LockHeld, LockResult, RepairLocks, TryLocks
from nexus.volumes.replacing import (
    ReadOnlyTarget,
    VolumeRegion,
    VolumeReplaceResult,
    volume_replace_region,
    volume_replace_snapshot,
)
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot, read_only_target_to_resource, volumes_using
from nexus.volumes.rows import Deletion, volume_create, volume_deleted, volume_get, volume_state

__all__ = [
    "Address",
    "BrokenInvariant",
    "CopyAndModify",
    "CrucibleResources",
    "Deletion",
    "FairLocks",
    "InstanceMigrate",
    "InstanceStart",
    "LockHeld",
    "LockResult",
    "MalformedVolume",
    "Pantry",
    "ReadOnlyCopy",
    "ReadOnlyRegion",
    "ReadOnlyTarget",
    "RegionSnapshot",
    "Repair",
    "RepairLocks",
    "ResourceGone",
    "TargetNotFound",
    "TryLocks",
    "VolumeRegion",
    "VolumeReplaceResult",
    "deletions_to_finish",
    "find_deleted_volume_regions",
    "read_only_target_to_resource",
    "region_record_port",
    "region_snapshot_create",
    "region_snapshot_give_up",
    "region_snapshot_remove",
    "regions_to_delete",
    "snapshots_to_delete",
    "soft_delete_volume",
    "volume_checkout",
    "volume_checkout_randomize_ids",
    "volume_create",
    "volume_deleted",
    "volume_get",
    "volume_hard_delete",
    "volume_hard_delete_when_done",
    "volume_remove_rop",
    "volume_replace_region",
    "volume_replace_snapshot",
    "volume_state",
    "volumes_using",
]
