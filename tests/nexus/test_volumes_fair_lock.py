"""First come, first served: the lock of a volume that nobody waits for in vain (W2; nexus.md §5.10, §10.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest
from db_rig import open_database
from nexus_rig import EPOCH
from sqlalchemy import Connection

from nexus.db import Database
from nexus.volumes import FairLocks, LockResult, RepairLocks, TryLocks
from nexus.volumes.repair_lock import (
    OVERTAKEN_MAX,
    PATIENCE,
    forget_who_does_not_come_back,
    hand_on,
    holder,
    wait_no_more,
    waiters,
)

TAKEN, HAD_IT, REFUSED = LockResult.TAKEN, LockResult.HAD_IT, LockResult.HELD_BY_ANOTHER
PERIOD = timedelta(seconds=30)
"""After which a background task comes back."""
ROUNDS = 100
SEEDS = range(8)


def name(number: int) -> str:
    return str(UUID(int=number))


VOLUME, OTHER = name(1), name(2)
FIRST, SECOND, THIRD, SNAPSHOT = name(11), name(12), name(13), name(14)


@dataclass
class Door:
    """A database with nothing but locks in it, and a clock that a test moves."""

    database: Database
    locks: RepairLocks = field(default_factory=FairLocks)
    now: datetime = EPOCH

    def run(self, body: Callable[..., Any], *args: Any) -> Any:
        return self.database.transact_blocking(lambda connection: body(connection, *args))

    def ask(self, who: str, volume: str = VOLUME) -> LockResult:
        self.now += timedelta(seconds=1)
        found: LockResult = self.run(self.locks.volume_repair_insert, volume, who, self.now)
        return found

    def overtake(self, who: str, volume: str = VOLUME) -> LockResult:
        self.now += timedelta(seconds=1)
        found: LockResult = self.run(self.locks.volume_repair_overtake, volume, who, self.now)
        return found

    def leave(self, who: str, volume: str = VOLUME) -> None:
        self.run(self.locks.volume_repair_delete, volume, who)

    def line(self, volume: str | None = VOLUME) -> list[str]:
        return [each.repair_id for each in self.run(waiters, volume)]

    def holder(self) -> str | None:
        found = self.run(holder, VOLUME)
        return None if found is None else str(found.repair_id)


@pytest.fixture
def door(database: Database) -> Door:
    return Door(database)


@pytest.fixture
def quick() -> Iterator[Database]:
    with open_database("sqlite://", inline=True) as opened:
        yield opened


def test_first_come_first_served(door: Door) -> None:
    assert door.ask(FIRST) is TAKEN
    assert (door.ask(SECOND), door.ask(THIRD)) == (REFUSED, REFUSED)
    assert (door.line(), door.holder()) == ([SECOND, THIRD], FIRST)
    door.leave(FIRST)
    assert door.ask(THIRD) is REFUSED, "the lock is free, and another has waited longer"
    assert door.ask(SECOND) is TAKEN
    assert door.ask(SECOND) is HAD_IT, "a node may run again"
    door.leave(SECOND)
    assert door.ask(THIRD) is TAKEN
    assert door.line() == []


def test_who_waits_since_when_and_how_often_it_was_overtaken(door: Door) -> None:
    door.ask(FIRST)
    door.ask(SECOND)
    queued = door.now
    for _ in range(3):
        door.now += PERIOD
        door.ask(SECOND)
    door.leave(FIRST)
    door.overtake(SNAPSHOT)
    (found,) = door.run(waiters, VOLUME)
    assert (found.repair_id, found.time_queued, found.overtaken) == (SECOND, queued, 1)
    assert found.time_asked > queued + 2 * PERIOD, "to ask again does not send to the end of the line"


def test_each_volume_has_a_line_of_its_own(door: Door) -> None:
    door.ask(FIRST)
    door.ask(SECOND)
    assert door.ask(SECOND, OTHER) is TAKEN
    assert door.ask(THIRD, OTHER) is REFUSED
    assert (door.line(), door.line(OTHER), sorted(door.line(None))) == ([SECOND], [THIRD], sorted([SECOND, THIRD]))
    door.run(wait_no_more, THIRD)
    assert door.line(None) == [SECOND]


def test_a_snapshot_overtakes_so_and_so_many_times_and_then_no_more(door: Door) -> None:
    door.ask(FIRST)
    door.ask(SECOND)
    door.ask(THIRD)
    door.leave(FIRST)
    for number in range(OVERTAKEN_MAX):
        assert door.overtake(name(100 + number)) is TAKEN
        assert door.overtake(name(100 + number)) is HAD_IT, "a node that runs again is no second snapshot"
        assert door.overtake(name(200 + number)) is REFUSED
        door.leave(name(100 + number))
    assert door.overtake(SNAPSHOT) is REFUSED, "the lock is free, and kept for who has waited long enough"
    assert SNAPSHOT not in door.line(), "who does not come back does not stand in line"
    assert door.ask(THIRD) is REFUSED
    assert door.ask(SECOND) is TAKEN
    door.leave(SECOND)
    assert door.overtake(SNAPSHOT) is REFUSED, "who stood behind was overtaken as often"
    assert door.ask(THIRD) is TAKEN
    door.leave(THIRD)
    assert door.overtake(SNAPSHOT) is TAKEN


def test_a_waiter_that_never_comes_back_blocks_nobody_for_ever(door: Door) -> None:
    door.ask(FIRST)
    door.ask(SECOND)
    door.leave(FIRST)
    last = door.now
    while door.ask(THIRD) is REFUSED:
        door.now += PERIOD
        assert door.now < last + 2 * PATIENCE
    assert door.now - last > PATIENCE, "whose turn it is has the time that it needs"
    assert (door.holder(), door.line()) == (THIRD, [])
    assert door.ask(SECOND) is REFUSED, "whoever comes back too late begins at the end of the line"


def test_who_waits_for_the_lock_of_a_volume_that_is_gone_is_forgotten_too(door: Door) -> None:
    """Nobody else asks for it any more; the background task sees to it."""
    door.ask(FIRST)
    door.ask(SECOND)
    door.leave(FIRST)
    for later, left in ((PATIENCE / 2, [SECOND]), (PATIENCE, [])):
        door.now += later
        door.run(forget_who_does_not_come_back, door.now)
        assert door.line() == left


def test_nobody_is_forgotten_who_comes_back(door: Door) -> None:
    """However long the one before holds the lock."""
    door.ask(FIRST)
    door.ask(SECOND)
    for _ in range(int(3 * PATIENCE / PERIOD)):
        door.now += PERIOD
        assert door.ask(SECOND) is REFUSED
    door.leave(FIRST)
    assert door.ask(THIRD) is REFUSED
    assert door.ask(SECOND) is TAKEN


def test_a_lock_that_is_handed_on_is_never_free(door: Door) -> None:
    """Of requests that share the lock of a volume the next one has it when the first is complete (W41, W54)."""
    door.ask(FIRST)
    door.ask(THIRD)
    door.run(hand_on, VOLUME, FIRST, SECOND)
    assert (door.holder(), door.line()) == (SECOND, [THIRD])
    door.leave(FIRST)
    assert (door.holder(), door.ask(SECOND)) == (SECOND, HAD_IT)


# -- starving ---------------------------------------------------------------------------------------------------------


def rounds_until_served(door: Door) -> int | None:
    """A user takes one snapshot after the other, as fast as Nexus allows; a replacement comes by every thirty seconds,
    and always while a snapshot is being made. After how many of its rounds it has the lock."""
    making = name(1000)
    assert door.overtake(making) is TAKEN
    for number in range(ROUNDS):
        if door.ask(FIRST) is TAKEN:
            return number
        door.leave(making)
        making = name(1001 + number)
        door.overtake(making)
        door.now += PERIOD
    return None


def test_the_original_rule_lets_a_replacement_starve(quick: Database) -> None:
    """W2 on the rule of the real one: whoever comes when the lock is free."""
    assert rounds_until_served(Door(quick, TryLocks())) is None


def test_under_the_fair_rule_it_is_served_after_a_bounded_number_of_snapshots(quick: Database) -> None:
    served = rounds_until_served(Door(quick))
    assert served is not None and served <= OVERTAKEN_MAX + 1


def test_steps_of_others_starve_one_under_the_original_rule_only(quick: Database) -> None:
    """Two who take turns, each there in the moment in which the other leaves; a third comes a little later."""

    def served(locks: RepairLocks, volume: str) -> bool:
        door = Door(quick, locks)
        inside, outside = FIRST, SECOND
        assert door.ask(inside, volume) is TAKEN
        for _ in range(ROUNDS):
            if door.ask(THIRD, volume) is TAKEN:
                return True
            door.leave(inside, volume)
            if door.ask(outside, volume) is TAKEN:
                inside, outside = outside, inside
        return False

    assert not served(TryLocks(), VOLUME)
    assert served(FairLocks(), OTHER)


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_comes_back_is_served_within_a_bound_whatever_others_do(quick: Database, seed: int) -> None:
    """Random crowds. No waiter that comes back is passed by more than those before it in line and so many snapshots."""
    random, door = Random(seed), Door(quick)
    crowd = [name(10 + number) for number in range(6)]
    inside: str | None = None
    passed: dict[str, int] = {}
    bound: dict[str, int] = {}
    snapshots = 0
    for _ in range(200):
        door.now += timedelta(seconds=random.randrange(20))
        if inside is not None and random.random() < 0.5:
            door.leave(inside)
            inside = None
        snapshot = random.random() < 0.4
        snapshots += snapshot
        who = name(10_000 + snapshots) if snapshot else random.choice(crowd)
        if who == inside:
            continue
        before = door.line()
        found = door.overtake(who) if snapshot else door.ask(who)
        assert (found is TAKEN) == (door.holder() == who)
        if found is TAKEN:
            assert inside is None, "one holder at a time"
            inside = who
            for waiting in door.line():
                passed[waiting] = passed.get(waiting, 0) + 1
                assert passed[waiting] <= bound[waiting]
            passed.pop(who, None)
        elif not snapshot and who not in before:
            passed[who], bound[who] = 0, len(before) + OVERTAKEN_MAX
        # Those who were not here for too long are forgotten; the bound is for those who come back.
        for gone in set(passed) - set(door.line()):
            del passed[gone]


def test_of_many_who_come_at_once_one_has_it_and_all_others_stand_in_line(several: Any) -> None:
    """Each through its own connection, as Nexus processes do."""
    crowd = [name(50 + number) for number in range(4)]
    found: dict[str, LockResult] = {}
    databases = {who: several() for who in crowd}
    barrier = Barrier(len(crowd))

    def come(who: str) -> None:
        def body(connection: Connection) -> LockResult:
            return FairLocks().volume_repair_insert(connection, VOLUME, who, EPOCH)

        barrier.wait()
        found[who] = databases[who].transact_blocking(body)

    threads = [Thread(target=come, args=(who,)) for who in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.name for each in found.values()) == [REFUSED.name] * 3 + [TAKEN.name]
    (winner,) = [who for who, result in found.items() if result is TAKEN]
    door = Door(next(iter(databases.values())))
    assert (door.holder(), door.line()) == (winner, sorted(set(crowd) - {winner}))
