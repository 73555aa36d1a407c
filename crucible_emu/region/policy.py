"""When a write reaches its file, and what is synced before what: one table.

What it is for: the file format survives power cuts only under rules about order (on-disk-format.md §6). Which rules
are needed depends on what the file system promises; a :class:`SyncPolicy` names a set of them, :data:`RULES` says
which. All policies write files that the real program accepts, and all keep an extent dirty until the sync of its
clean metadata has succeeded (the real program forgets that, §4.5).

| policy | for | un-flushed writes are | syncs beside the flush's own |
|---|---|---|---|
| ``ZFS`` | file systems that keep the order of writes | in the file | before overwriting an unsynced block |
| ``ORDERED_FLUSH`` | the same, never clean but wrong | in the file | and before clean metadata |
| ``STRICT`` | any, each write in its file at once | in the file | and between contexts and data |
| ``STAGED`` (default) | any, fast | in memory | three per flush, one if journaled, none per write |

``ZFS`` leaves the files byte for byte as the real program does.
``STAGED`` is right because nothing of a file changes before its flush, and the flush syncs contexts before data and
data before clean metadata. Its price: when the process dies, writes since the last flush are gone. They were promised
to nobody, and an Upstairs sends them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SyncPolicy(Enum):
    """A set of ordering rules; see :data:`RULES`."""

    ZFS = "zfs"
    ORDERED_FLUSH = "ordered-flush"
    STRICT = "strict"
    STAGED = "staged"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy does; sections are those of on-disk-format.md.

    ``staged``: writes wait in memory for the flush (§6.3 remedy 3). ``sync_before_clean``: the new bitmap goes first
    and is synced, then the 32 bytes that say "clean" (remedy 1). ``sync_contexts``: contexts are durable before data
    (remedy 2). ``defragment``: count how scattered the active slots are, and gather them (§2.7).
    """

    staged: bool
    sync_before_clean: bool
    sync_contexts: bool
    defragment: bool


RULES = {
    SyncPolicy.ZFS: Rules(staged=False, sync_before_clean=False, sync_contexts=False, defragment=True),
    SyncPolicy.ORDERED_FLUSH: Rules(staged=False, sync_before_clean=True, sync_contexts=False, defragment=False),
    SyncPolicy.STRICT: Rules(staged=False, sync_before_clean=True, sync_contexts=True, defragment=False),
    SyncPolicy.STAGED: Rules(staged=True, sync_before_clean=True, sync_contexts=True, defragment=False),
}

DEFRAGMENT_RATIO = 3
"""A mean of more than this many extra pieces per access makes a flush defragment the extent (§2.7)."""
