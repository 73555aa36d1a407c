"""Whether the bytes of a volume are what they must be (data, not only rows).

``copies`` finds who holds each region set of a volume, ``digests`` asks their agents what they hold, ``comparison``
says who differs, ``reading`` reads a volume through an Upstairs at a pantry, ``report`` is what a person is told.

Nothing here changes a byte or a row. The sagas that use it see to it that nobody writes meanwhile.
"""

from nexus.verification.comparison import Difference, Holding, compared
from nexus.verification.copies import Copy, RegionSet, region_sets_of
from nexus.verification.digests import asked, asked_if_present
from nexus.verification.reading import ReadThrough, read_through
from nexus.verification.report import Report

__all__ = [
    "Copy",
    "Difference",
    "Holding",
    "ReadThrough",
    "RegionSet",
    "Report",
    "asked",
    "asked_if_present",
    "compared",
    "read_through",
    "region_sets_of",
]
