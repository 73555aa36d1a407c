"""What the agents say that copies hold: one BLAKE3 digest for each extent.

Equal digests mean equal bytes and equal proofs of them, as an Upstairs could read them; the agent reckons them from its
files, so a byte that rotted on one disk shows although the other two would cover for it.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from crucible_emu.client.failures import ServiceUnreachable
from nexus.saga import ActionFailed
from nexus.services import Agents, Gone, ServiceRefused
from nexus.verification.comparison import Holding
from nexus.verification.copies import Copy

ANSWER_TIMEOUT_S = 5.0
"""*Liveness*: who looks for faults does not wait for an agent that is one."""


async def asked(agents: Agents, copies: list[Copy]) -> list[Holding]:
    """What each copy holds, in their order, all asked at once. Agents are waited for until they answer, or are gone for
    good. What an agent cannot read, or does not have, is a problem of the copy."""
    found: dict[int, Holding] = {}

    async def one(number: int, copy: Copy) -> None:
        found[number] = await _asked(agents, copy)

    async with trio.open_nursery() as nursery:
        for number, copy in enumerate(copies):
            nursery.start_soon(one, number, copy)
    return [found[number] for number in range(len(copies))]


async def asked_if_present(agents: Agents, copies: list[Copy]) -> list[Holding]:
    """As :func:`asked`; an agent that does not answer at once is not waited for, and the others read the bytes again:
    what an agent knows of a snapshot that never changes was true once."""
    silent = [copy for copy in copies if not await _answers(agents, copy)]
    present = [copy for copy in copies if copy not in silent]
    for copy in present:
        with suppress(ActionFailed):  # what it does not have, or who is gone, is heard from the next question
            snapshot_id = None if copy.snapshot is None else copy.snapshot.snapshot_id
            await agents.digest_forget(copy.dataset, copy.region_id, snapshot_id)
    holdings = iter(await asked(agents, present))
    return [
        Holding(copy.name, problem="its agent does not answer", absent=True) if copy in silent else next(holdings)
        for copy in copies
    ]


async def _answers(agents: Agents, copy: Copy) -> bool:
    with trio.move_on_after(ANSWER_TIMEOUT_S):
        try:
            await agents.regions_list(copy.dataset)
        except ServiceUnreachable:
            return False
        except ActionFailed:
            return True  # it answers, and what it has to say is heard when it is asked for the digest
        return True
    return False


async def _asked(agents: Agents, copy: Copy) -> Holding:
    try:
        if copy.snapshot is None:
            status = await agents.region_digest(copy.dataset, copy.region_id)
        else:
            status = await agents.snapshot_digest(copy.dataset, copy.snapshot)
    except Gone:
        return Holding(copy.name, problem="its disk is gone for good", absent=True)
    except ServiceRefused as error:
        return Holding(copy.name, problem=str(error))
    if status.state != "done":
        return Holding(copy.name, problem=status.error or f"its digest is {status.state}")
    return Holding(copy.name, tuple(status.extents))
