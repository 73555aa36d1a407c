"""``saga_recovery``: no saga is left lying, whichever Nexus died and whenever.

What it finds: sagas of this Nexus that nobody runs, for the database was away while they ran; and unfinished sagas of a
Nexus that has no lease, for it died, or stands still for so long that it may as well have.

Why it is safe to take a saga from a Nexus that only seems dead: the fence. Whoever had it can write nothing more, and
finds that out at its next record; the node that it is in is run again here, which every node bears. Of several that
want one saga the database lets one have it.
"""

from __future__ import annotations

from nexus.db.sagas import Leases
from nexus.saga import Executor
from nexus.tasks.task import Status, told


class SagaRecovery:
    """Each activation goes on with what it finds, and does not wait for its end."""

    name = "saga_recovery"
    description = "goes on with sagas that nobody runs, and takes over those of a Nexus that is dead"
    period_s = 10.0

    def __init__(self, executor: Executor, leases: Leases) -> None:
        self._executor = executor
        self._leases = leases

    async def activate(self) -> Status:
        recovered, taken, errors = await self._executor.recover(), [], []
        for dead in await self._leases.dead_instances():
            if dead == self._executor.executor_id:
                # Its own lease ran out. What is still its own it goes on with; the rest it hears of by the fence.
                continue
            try:
                taken += await self._executor.take_over(dead)
            except Exception as error:  # noqa: BLE001 - the next one's sagas are wanted all the same
                errors.append(f"sagas of {dead}: {told(error)}")
        forgotten = await self._leases.forget_dead()
        return {
            "recovered": recovered,
            "taken_over": taken,
            "forgotten": list(forgotten),
            "errors": errors,
        }
