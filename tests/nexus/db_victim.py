"""A process that is going to be killed: writes two volumes per transaction, and says so when it is told that both are
there. Its one argument is the database."""

from __future__ import annotations

import sys
from itertools import count

import trio
from db_rig import add_volume
from sqlalchemy import Connection

from nexus.db import Database


async def write_pairs(url: str) -> None:
    with Database.open(url) as database:
        for number in count(1):

            def pair(connection: Connection) -> None:
                add_volume(connection, 2 * number)  # noqa: B023 - awaited
                add_volume(connection, 2 * number + 1)  # noqa: B023 - awaited

            await database.transact(pair)
            print(number, flush=True)


if __name__ == "__main__":
    trio.run(write_pairs, sys.argv[1])
