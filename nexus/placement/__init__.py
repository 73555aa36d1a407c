"""Placement: which datasets the regions of a volume are put on, and what they cost there (nexus.md §7).

``geometry`` makes extents of a size, ``choice`` is the rules without a database, ``allocation`` the one transaction
that places regions, ``release`` the one that gives their places back.
"""

from nexus.placement.allocation import AllocatedRegion, Allocation, regions_allocate, regions_of
from nexus.placement.choice import InsufficientCapacity, Shortage
from nexus.placement.geometry import Geometry, InvalidSize, Sizes
from nexus.placement.release import regions_hard_delete

__all__ = [
    "AllocatedRegion",
    "Allocation",
    "Geometry",
    "InsufficientCapacity",
    "InvalidSize",
    "Shortage",
    "Sizes",
    "regions_allocate",
    "regions_hard_delete",
    "regions_of",
]
