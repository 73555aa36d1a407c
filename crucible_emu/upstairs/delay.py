"""How much the faster replicas are slowed down, so that none falls too far behind (upstairs-volume.md §6.14).

What it is for: writes are acknowledged before they are sent, so a replica that is slower than the others collects a
queue; when that is full, the guest stalls in bursts. :func:`delays_us` looks at how far ahead of the slowest each
replica is, and says how long its connection sleeps before a message. The delay grows with the square of the gap, so
that it is nothing between equal replicas and clearly felt before the queue is full.

*Optimisation*: nothing depends on it but how even the load is.
"""

from __future__ import annotations

from collections.abc import Sequence

GAP_JOBS_FREE = 100
GAP_BYTES_FREE = 25 * 1024 * 1024
"""A replica may be this far ahead and is not slowed down."""
JOB_SCALE = 0.04
BYTE_SCALE = 5e-7
DELAY_US_MAX = 100_000

NO_DELAYS = (0, 0, 0)


def matters(jobs: Sequence[int], size_bytes: Sequence[int]) -> bool:
    """Whether any client has so much in progress that :func:`delays_us` could be other than zero."""
    return max(jobs) > GAP_JOBS_FREE or max(size_bytes) > GAP_BYTES_FREE


def delays_us(jobs: Sequence[int], size_bytes: Sequence[int], active: Sequence[int]) -> tuple[int, ...]:
    """Microseconds to sleep before a message, by client, from the ``jobs`` and bytes in progress of each.

    Only the ``active`` clients are compared, and the least of their delays is taken off all of them: somebody has to be
    fastest, and it makes no sense to wait for nobody.
    """
    if not active:
        return (0,) * len(jobs)
    most_jobs = max(jobs[client] for client in active)
    most_bytes = max(size_bytes[client] for client in active)
    wanted = {client: _delay_us(most_jobs - jobs[client], most_bytes - size_bytes[client]) for client in active}
    least = min(wanted.values())
    return tuple(wanted.get(client, least) - least for client in range(len(jobs)))


def _delay_us(gap_jobs: int, gap_bytes: int) -> int:
    job_term = (max(0, gap_jobs - GAP_JOBS_FREE) * JOB_SCALE) ** 2
    byte_term = (max(0, gap_bytes - GAP_BYTES_FREE) * BYTE_SCALE) ** 2
    return min(int(max(job_term, byte_term)), DELAY_US_MAX)
