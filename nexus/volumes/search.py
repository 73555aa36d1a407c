"""Who names an address (nexus.md §5.13).

What it is for: replacement finds the volumes that count on a lost resource by ``volume_resource_usage``
(:func:`nexus.volumes.resolution.volumes_using`) and the owner of a read/write region by its row (:func:`region_owner`):
no volume that is not affected is ever read (W20). The scans here read every document; they are the audit of those rows,
and an operator's question.

Why a scan compares addresses and not text: R49, see :mod:`nexus.volumes.walks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network

from sqlalchemy import Connection, select

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import schema
from nexus.volumes import recorded, walks
from nexus.volumes.recorded import Address
from nexus.volumes.rows import volume_get

_VOLUME = schema.volume
_REGION = schema.region
PAGE_ROWS = 500


def region_owner(connection: Connection, region_id: str) -> str | None:
    """The volume that a region belongs to; ``None`` where there is no such region."""
    query = select(_REGION.c.volume_id).where(_REGION.c.id == region_id)
    return connection.execute(query).scalar_one_or_none()


def volume_references_read_only_target(connection: Connection, volume_id: str, address: Address) -> bool | None:
    """Whether the volume reads from there; a soft-deleted one answers from its document. ``None``: it is gone."""
    volume = volume_get(connection, volume_id)
    return None if volume is None else walks.contains_read_only_target(volume.request, address)


def every_volume(connection: Connection) -> Iterator[tuple[str, bool, VolumeConstructionRequest]]:
    """Id, whether it is deleted, and document of every row, page by page in the order of ids. Raises
    :class:`~nexus.volumes.recorded.MalformedVolume` at one that cannot be read."""
    after = ""
    while True:
        query = (
            select(_VOLUME.c.id, _VOLUME.c.time_deleted, _VOLUME.c.data)
            .where(_VOLUME.c.id > after)
            .order_by(_VOLUME.c.id)
            .limit(PAGE_ROWS)
        )
        rows = connection.execute(query).all()
        if not rows:
            return
        for row in rows:
            yield row.id, row.time_deleted is not None, recorded.parse(row.data, f"volume {row.id}")
        after = rows[-1].id


def _matching(connection: Connection, wanted: Callable[[Address], bool]) -> list[str]:
    found = []
    for volume_id, _, request in every_volume(connection):
        named = (*walks.read_write_targets(request), *walks.read_only_targets(request))
        if any(map(wanted, named)):
            found.append(volume_id)
    return found


def find_volumes_referencing_socket_addr(connection: Connection, address: Address) -> list[str]:
    """Every volume, soft-deleted ones too, that writes to or reads from ``address``."""
    return _matching(connection, lambda each: each == address)


def find_volumes_referencing_ipv6_addr(connection: Connection, ip: IPv6Address) -> list[str]:
    """Every volume, soft-deleted ones too, with a target at ``ip``."""
    return _matching(connection, lambda each: IPv6Address(each.ip) == ip)


def find_volumes_referencing_ipv6_net(connection: Connection, net: IPv6Network) -> list[str]:
    """Every volume, soft-deleted ones too, with a target in ``net``."""
    return _matching(connection, lambda each: IPv6Address(each.ip) in net)
