"""The external API: what users say to Nexus (apis-and-tools.md §5.1). Its table of operations is put together here.

For who has a token. A request without ``api-version`` is answered as the newest, as in the real one.
"""

from __future__ import annotations

from crucible_emu.service import Api, Versions
from nexus.api import disks, hardware, images, imports, instances, projects, snapshots
from nexus.api.callers import Doors
from nexus.running import Nexus

NAME = "nexus-external"
VERSION = "2026081901.0.0"
BODY_BYTES_MAX = 8 << 20
"""A bulk write may be that long; the pantry behind it takes less."""


def external_api(nexus: Nexus, doors: Doors, *, faithful: bool = False) -> Api:
    """The API of ``nexus``. ``faithful``: hide what the real one hides, and ask for what it asks for."""
    groups = (projects, disks, imports, snapshots, images, instances, hardware)
    operations = [operation for group in groups for operation in group.operations(nexus)]
    versions = Versions((VERSION,), missing="newest")
    return Api(NAME, operations, BODY_BYTES_MAX, versions, faithful=faithful, identify=doors.anybody)
