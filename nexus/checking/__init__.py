"""Finding faults in a rack that is in use: what ``nexus check`` says.

:func:`check` looks at everything. ``records`` what the database alone tells, ``holdings`` what an agent holds against
what is recorded, ``business`` what running sagas explain.
"""

from nexus.checking.check import check
from nexus.volumes.invariants import Finding

__all__ = ["Finding", "check"]
