"""Ids that a saga makes, the same ones however often it runs.

A node may run twice, and another Nexus may run it the second time. An id that it drew at random would be another one
then, and what the first run made would belong to nobody. So every id that is not among a saga's parameters is reckoned
from the saga's own: whoever runs the node, before or after a crash, and its undo as well, comes to the same id without
anything having to be written down first (W35).

*Safety*: the ids of two sagas differ, for those of the sagas do; within one they differ by their names, which must not
have a ``/`` in them or ("a", "b") and ("a/b",) would be one.
"""

from __future__ import annotations

from uuid import UUID, uuid5

NAMESPACE = UUID("6f1c3f0e-7a3b-5d52-9c55-3f3c1b6a9d10")


def derived(saga_id: str, *names: str) -> str:
    """The id that the saga ``saga_id`` means by ``names``."""
    if not names or any("/" in name for name in names):
        raise ValueError(f"an id is derived from names without a slash, not from {names!r}")
    return str(uuid5(NAMESPACE, "/".join((saga_id, *names))))
