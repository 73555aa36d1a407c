"""Background tasks: what Nexus does unasked, again and again (nexus.md §4).

``task`` what a task is, ``schedule`` when one is due, ``scheduler`` runs them. Every other module is one task, and
opens with what it finds and why what it does is safe. :func:`all_tasks` is what a Nexus runs.
"""

from nexus.db.sagas import Leases
from nexus.saga import Executor
from nexus.services import World
from nexus.tasks.decommissioned_disk_cleaner import DecommissionedDiskCleaner
from nexus.tasks.lease_reaper import LeaseReaper
from nexus.tasks.lookup_region_port import LookupRegionPort
from nexus.tasks.lost_instances import LostInstances
from nexus.tasks.phantom_disks import PhantomDisks
from nexus.tasks.read_only_region_replacement_start import ReadOnlyRegionReplacementStart
from nexus.tasks.region_replacement import RegionReplacementDetector
from nexus.tasks.region_replacement_driver import RegionReplacementDriver
from nexus.tasks.region_snapshot_replacement_finish import RegionSnapshotReplacementFinish
from nexus.tasks.region_snapshot_replacement_garbage_collection import RegionSnapshotReplacementGarbageCollection
from nexus.tasks.region_snapshot_replacement_start import RegionSnapshotReplacementStart
from nexus.tasks.region_snapshot_replacement_step import RegionSnapshotReplacementStep
from nexus.tasks.resume_volume_deletion import ResumeVolumeDeletion
from nexus.tasks.saga_recovery import SagaRecovery
from nexus.tasks.schedule import Reason
from nexus.tasks.scheduler import Scheduler, UnknownTask
from nexus.tasks.task import Status, Task

__all__ = ["Reason", "Scheduler", "Status", "Task", "UnknownTask", "all_tasks"]


def all_tasks(world: World, executor: Executor, leases: Leases) -> list[Task]:
    """Every background task of one Nexus."""
    return [
        LookupRegionPort(world),
        PhantomDisks(world),
        DecommissionedDiskCleaner(world),
        SagaRecovery(executor, leases),
        ResumeVolumeDeletion(world, executor),
        LeaseReaper(world),
        RegionSnapshotReplacementStart(world, executor),
        RegionSnapshotReplacementGarbageCollection(world, executor),
        RegionSnapshotReplacementStep(world, executor),
        RegionSnapshotReplacementFinish(world, executor),
        ReadOnlyRegionReplacementStart(world),
        LostInstances(world, executor),
        RegionReplacementDetector(world, executor),
        RegionReplacementDriver(world, executor),
    ]
