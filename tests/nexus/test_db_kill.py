"""SIGKILL in the midst of transactions: what was acknowledged is there, and nothing is there by half."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from db_rig import open_database, uuid
from sqlalchemy import select

from nexus.db.schema import volume

HERE = Path(__file__).parent
VICTIM = HERE / "db_victim.py"
ROUNDS = 4


def test_a_killed_process_leaves_whole_transactions_and_all_that_it_was_told_of(database_url: str) -> None:
    seen = ":".join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    for acknowledged_min in range(1, ROUNDS + 1):
        command = [sys.executable, str(VICTIM), database_url]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": seen}
        ) as victim:
            assert victim.stdout is not None
            heard = [victim.stdout.readline() for _ in range(acknowledged_min)]
            victim.kill()
            heard += victim.stdout.readlines()
        acknowledged = max(int(line) for line in heard if line.strip())
        with open_database(database_url) as database:
            rows = set(database.transact_blocking(lambda connection: connection.scalars(select(volume.c.id)).all()))
            wanted = {uuid(number) for number in range(2, 2 * acknowledged + 2)}
            assert wanted <= rows, "what was acknowledged is there"
            assert len(rows) in (2 * acknowledged, 2 * acknowledged + 2), "whole pairs, at most one not acknowledged"
            database.transact_blocking(lambda connection: connection.execute(volume.delete()))
