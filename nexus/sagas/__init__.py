"""What Nexus does in many steps: a recipe per module (nexus.md §3).

``identities`` has the ids that sagas make. Every other module is one saga, or the nodes that several share, and opens
with what may happen between its nodes and why each may run again. ``ALL_SAGAS`` is what an executor has to know: a
recipe that is not in it cannot be gone on with after a crash.
"""

from nexus.saga import Saga
from nexus.sagas.volume_delete import VOLUME_DELETE

ALL_SAGAS: tuple[Saga, ...] = (
    # What takes things away.
    VOLUME_DELETE,
)

__all__ = ["ALL_SAGAS"]
