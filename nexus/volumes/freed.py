"""What deleting a volume set free, as it is kept in ``volume.resources_to_clean_up`` (nexus.md §5.7).

What it is for: the one transaction that soft-deletes a volume learns which resources nobody counts on any more; the
saga that destroys them, and each of its reruns, reads that here. Three versions of the text exist. V1 and V2 have whole
rows in them and are read only; V3 has ids.

Why ids: what is to be destroyed is looked up when it is (*safety*). A row that is gone by then was destroyed by an
earlier run and is skipped; the embedded row of an old version may be out of date, but it is all that is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from nexus.db import schema
from nexus.volumes.refusals import BrokenInvariant
from nexus.volumes.resolution import OF_SNAPSHOT, RegionSnapshot, key_of

_DATASET = schema.crucible_dataset
_REGION = schema.region
_SNAPSHOT = schema.region_snapshot


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, and where its agent listens."""

    id: str
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class FreedRegion:
    """A region to be destroyed."""

    dataset: Dataset
    region_id: str


@dataclass(frozen=True, slots=True)
class FreedSnapshot:
    """A region snapshot to be destroyed."""

    dataset: Dataset
    snapshot: RegionSnapshot


@dataclass(frozen=True, slots=True)
class CrucibleResources:
    """What was freed. Of V3 the ids; V1 and V2 came with rows, which ``stored_regions`` and the rest hold."""

    regions: tuple[str, ...] = ()
    region_snapshots: tuple[RegionSnapshot, ...] = ()
    stored_regions: tuple[FreedRegion, ...] = ()
    stored_snapshots: tuple[FreedSnapshot, ...] = ()
    snapshots_of_known_datasets: tuple[RegionSnapshot, ...] = ()

    @property
    def all_snapshots(self) -> tuple[RegionSnapshot, ...]:
        """The region snapshots in it, of whichever version it is."""
        stored = tuple(each.snapshot for each in self.stored_snapshots)
        return (*self.region_snapshots, *stored, *self.snapshots_of_known_datasets)

    @property
    def empty(self) -> bool:
        return self == CrucibleResources()


def write(resources: CrucibleResources) -> str:
    """The text of version 3."""
    if resources.stored_regions or resources.stored_snapshots or resources.snapshots_of_known_datasets:
        raise BrokenInvariant("resources of an old version are read, and never written again")
    snapshots = [
        {"dataset": each.dataset_id, "region": each.region_id, "snapshot": each.snapshot_id}
        for each in resources.region_snapshots
    ]
    return json.dumps({"V3": {"regions": list(resources.regions), "region_snapshots": snapshots}})


def parse(text: str | None) -> CrucibleResources:
    """What a text of any version says; nothing was freed where there is none. Raises :class:`BrokenInvariant`."""
    if text is None:
        return CrucibleResources()
    try:
        ((version, content),) = json.loads(text).items()
        return _READERS[version](content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenInvariant(f"resources_to_clean_up cannot be read: {type(error).__name__}") from error


def _identity(row: Mapping[str, Any]) -> str:
    return str(row["identity"]["id"] if "identity" in row else row["id"])


def _dataset(row: Mapping[str, Any]) -> Dataset:
    return Dataset(_identity(row), row["ip"], int(row["port"]))


def _snapshot(row: Mapping[str, Any]) -> RegionSnapshot:
    return RegionSnapshot(row["dataset_id"], row["region_id"], row["snapshot_id"])


def _stored_regions(content: Mapping[str, Any]) -> tuple[FreedRegion, ...]:
    pairs = content["datasets_and_regions"] or ()
    return tuple(FreedRegion(_dataset(dataset), _identity(region)) for dataset, region in pairs)


def _first_version(content: Mapping[str, Any]) -> CrucibleResources:
    pairs = content["datasets_and_snapshots"] or ()
    snapshots = tuple(FreedSnapshot(_dataset(dataset), _snapshot(row)) for dataset, row in pairs)
    return CrucibleResources(stored_regions=_stored_regions(content), stored_snapshots=snapshots)


def _second_version(content: Mapping[str, Any]) -> CrucibleResources:
    rows = tuple(_snapshot(row) for row in content["snapshots_to_delete"] or ())
    return CrucibleResources(stored_regions=_stored_regions(content), snapshots_of_known_datasets=rows)


def _third_version(content: Mapping[str, Any]) -> CrucibleResources:
    rows = content.get("region_snapshots") or ()
    return CrucibleResources(
        regions=tuple(content.get("regions") or ()),
        region_snapshots=tuple(RegionSnapshot(row["dataset"], row["region"], row["snapshot"]) for row in rows),
    )


_READERS = {"V1": _first_version, "V2": _second_version, "V3": _third_version}


# -- what to destroy now ----------------------------------------------------------------------------------------------


_DATASET_OF = select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port).where(_DATASET.c.id == bindparam("dataset"))
_SNAPSHOT_THERE = select(_SNAPSHOT.c.region_id).where(OF_SNAPSHOT)
_AMONG = _REGION.c.id.in_(bindparam("regions", expanding=True))
_REGION_THERE = select(_REGION.c.id).where(_AMONG)
_REGIONS = (
    select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.id)
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .where(_AMONG)
    .order_by(_REGION.c.id)
)


def dataset_get(connection: Connection, dataset_id: str) -> Dataset | None:
    """A dataset, forgotten or not: an agent that is gone is recognised by its physical disk, not by a missing row."""
    row = connection.execute(_DATASET_OF, {"dataset": dataset_id}).one_or_none()
    return None if row is None else Dataset(*row)


def regions_to_delete(connection: Connection, resources: CrucibleResources) -> list[FreedRegion]:
    """The freed regions that still have a row, in the order of their ids."""
    asked = {"regions": list(resources.regions)}
    rows = connection.execute(_REGIONS, asked).all() if resources.regions else []
    return [*resources.stored_regions, *(FreedRegion(Dataset(*row[:3]), row[3]) for row in rows)]


def snapshots_to_delete(connection: Connection, resources: CrucibleResources) -> list[FreedSnapshot]:
    """The freed region snapshots that still have a row. Raises :class:`BrokenInvariant` where a text of version 2 names
    a dataset that is unknown."""
    found = list(resources.stored_snapshots)
    for each in resources.snapshots_of_known_datasets:
        dataset = dataset_get(connection, each.dataset_id)
        if dataset is None:
            raise BrokenInvariant(f"the dataset of the {each} is unknown")
        found.append(FreedSnapshot(dataset, each))
    for each in resources.region_snapshots:
        row = connection.execute(_SNAPSHOT_THERE, key_of(each)).one_or_none()
        dataset = dataset_get(connection, each.dataset_id)
        if row is not None and dataset is not None:
            found.append(FreedSnapshot(dataset, each))
    return found


def left_to_destroy(connection: Connection, resources: CrucibleResources) -> bool:
    """Whether any of it still has a row. *Safety*: a volume's row is the only place where it is written down what is to
    be destroyed, and must outlive that."""
    regions = [*resources.regions, *(each.region_id for each in resources.stored_regions)]
    if connection.execute(_REGION_THERE, {"regions": regions}).first() is not None:
        return True
    return any(
        connection.execute(_SNAPSHOT_THERE, key_of(each)).first() is not None for each in resources.all_snapshots
    )
