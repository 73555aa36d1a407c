"""The numbers both ends of a connection must agree on (wire-protocol.md §1.2, §5, §6.5, §7.1, §10.1, §12).

What it is for: what one side alone decides (how much it keeps in flight, when it gives up) stands with that side; here
stands only what the bytes and the two programs together depend on, and the room in the socket between them.
"""

from __future__ import annotations

VERSION = 13
"""Number of the message protocol (§5)."""

FIRST_JOB_ID = 1000
"""Job id with which an Upstairs starts to count (§7.1)."""

REPAIR_PORT_OFFSET = 4000
"""Port of the repair service minus port of the data service of one Downstairs (§10.1)."""

PING_INTERVAL_S = 5.0
"""An Upstairs sends Ruok in this rhythm (§6.5)."""

RECEIVE_SILENCE_S_MAX = 45.0
"""Either side closes a connection on which no complete frame came for this long (§6.5)."""

UNIX_SEND_BUFFER_BYTES = 4 * 1024 * 1024
"""What a unix socket may hold, on either side, for a peer that is slower, as far as the system allows it.
*Optimisation*: the usual 208 KiB cut a frame of 1 MiB into six pieces, each with a trip through the loop on both
sides."""

FRAME_BYTES_MAX = 100 * 1024 * 1024
"""The longest frame, length prefix included (§1.2)."""

BLOCKS_MAX = FRAME_BYTES_MAX // 512
"""No frame has room for the data of more blocks than this, so nobody needs to believe in a greater count."""

LIST_ITEMS_MAX = 1 << 20
"""Longest list of job ids, versions or clients we take or send.

The real program knows no such limit. A job depends on what came after the last flush or barrier, which is some ten
thousand jobs (§7.8); the limit keeps a frame of 100 MiB from becoming half a gigabyte of Python integers.
"""

_WRITE_FIXED_BYTES = 104  # a Write frame with one dependency and nothing else (§1.3)
_SEALED_CONTEXT_BYTES = 37


def max_io_blocks(block_size: int) -> int:
    """The most blocks of ``block_size`` bytes that one Write carries, with encrypted contexts and one dependency.

    It is the true limit. The real helper finds it by bisection and answers one block more for 8192 and 32768 bytes,
    which no frame could hold; for 512 and 4096 bytes (§12) the two agree.
    """
    return (FRAME_BYTES_MAX - _WRITE_FIXED_BYTES) // (_SEALED_CONTEXT_BYTES + block_size)


READS_PATH_SUFFIX = ".reads"
"""Beside the unix socket of a Downstairs there may be one with this behind its path, where an Upstairs asks to read
what is at hand by itself, and to have the data of its writes looked for in its own memory. Nothing of that is in the
original."""

BY_REFERENCE_TAG = 1 << 31
"""Tag of a Write whose data are not in the frame, but in memory that was shown at that socket; not in the original."""
