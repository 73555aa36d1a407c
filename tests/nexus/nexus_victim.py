"""A Nexus that is going to be killed: runs one long saga, and says which node it is at. Its arguments are the database
and the saga's id. Imported, the recipe of that saga."""

from __future__ import annotations

import sys
from typing import Any

import trio
from db_rig import EPOCH, uuid
from saga_rig import Params

from nexus.db.schema import volume
from nexus.db.transitions import insert_if_absent
from nexus.running import Conduct, Settings, running_nexus
from nexus.saga import Context, Node, Saga

NODES = 12
PAUSE_S = 0.3
LEASE_S = 0.5


def long_saga(pause_s: float) -> Saga:
    """The same recipe for whoever runs it, and at whichever pace."""
    return Saga("long", Params, *(_node(number, pause_s) for number in range(1, NODES + 1)))


def _node(number: int, pause_s: float) -> Node:
    """Makes one row, and can make it again."""

    async def act(saga: Context[Params]) -> Any:
        row = {"id": uuid(number), "time_created": EPOCH, "time_modified": EPOCH, "data": "{}"}
        await saga.world.database.transact(lambda c: insert_if_absent(c, volume, row))
        print(number, flush=True)
        await trio.sleep(pause_s)
        return number

    return Node(f"ROW_{number}", act)


async def run(url: str, saga_id: str) -> None:
    saga = long_saga(PAUSE_S)
    async with running_nexus(Settings(url, conduct=Conduct(lease_s=LEASE_S, sagas=[saga]))) as nexus:
        await nexus.executor.start(saga, Params(), saga_id)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(run, *sys.argv[1:])
