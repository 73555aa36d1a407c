"""SIGKILL of a Nexus in the midst of a saga: another takes it over, and every node is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trio
from nexus_victim import NODES, long_saga
from sqlalchemy import func, select

from nexus.db.schema import volume
from nexus.running import Conduct, Settings, running_nexus
from nexus.saga import SagaState

HERE = Path(__file__).parent
PATIENCE_S = 30
NODES_HEARD = 3


def killed_in_the_midst(database_url: str, saga_id: str) -> None:
    """A Nexus runs the saga for a few nodes."""
    seen = ":".join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    command = [sys.executable, str(HERE / "nexus_victim.py"), database_url, saga_id]
    environment = {**os.environ, "PYTHONPATH": seen}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as victim:
        assert victim.stdout is not None
        heard = [victim.stdout.readline() for _ in range(NODES_HEARD)]
        victim.kill()
        heard += victim.stdout.readlines()
    assert len(heard) < NODES, "it was killed before the end"


async def test_saga_of_a_killed_process_is_gone_on_with(database_url: str) -> None:
    saga_id = "22222222-2222-4222-8222-222222222222"
    await trio.to_thread.run_sync(killed_in_the_midst, database_url, saga_id)
    conduct = Conduct(periods_s={"saga_recovery": 0.05}, sagas=[long_saga(pause_s=0)])
    async with running_nexus(Settings(database_url, conduct=conduct)) as nexus:
        with trio.fail_after(PATIENCE_S):
            while True:
                record, events = await nexus.store.load(saga_id)
                if record.state is SagaState.DONE:
                    break
                await trio.sleep(0.02)
        rows = await nexus.world.database.read(lambda c: c.execute(select(func.count()).select_from(volume)).scalar())
    assert (record.executor_id, record.fence, rows) == (nexus.id, 1, NODES)
    again = [each.label for each in events if each.kind.value == "started"]
    assert len(again) <= NODES + 1, "only the node that it was in was done again"
