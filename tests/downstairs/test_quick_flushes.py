"""Small flushes to the journal are done on the loop where that takes no time, and in a thread where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from crucible_emu import errors
from crucible_emu.downstairs.flushes import QUICK_BLOCKS_MAX, QUICK_FLUSHES_MIN, QUICK_S_MAX, Flushes
from crucible_emu.downstairs.work import Kind, Work, outcome_of
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.region.journal import Journal
from crucible_emu.wire import messages as m

U, S = UUID(int=1), UUID(int=2)


class Flushing:
    """Flushes of ``region``, by a clock of its own: each takes ``takes_s``. ``threads``: how many were sent to one."""

    def __init__(self, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
        self.region = region
        self.takes_s = 0.0
        self.threads = 0
        self._now_s = 100.0
        self._number = 0
        self.flushes = Flushes(region, self._in_thread, lambda: self._now_s)
        real = Journal.write

        def timed(journal: Journal, *arguments: Any) -> Any:
            self._now_s += self.takes_s
            return real(journal, *arguments)

        monkeypatch.setattr(Journal, "write", timed)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.threads += 1
        return outcome_of(function, *arguments)

    async def flush(self, blocks: int = 1) -> Any:
        """Write and flush so many; whether it went to a thread, and what came of it."""
        rows = np.full((blocks, 512), self._number % 256, np.uint8)
        self.region.write(np.arange(blocks), rows, BlockContexts.plain(hash_blocks(rows)))
        self._number += 1
        work = Work(Kind.FLUSH, 0, m.Flush(U, S, self._number, (), self._number, 1, None, None), self._number)
        before, flush = self.threads, self.flushes.begin(work)
        if self.flushes.is_quick(work, flush):
            outcome = self.flushes.finish_at_once(work, flush)
        else:
            outcome = await self.flushes.finish(work, flush)
        return self.threads > before, outcome


@pytest.fixture
def flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flushing]:
    with Region.create(tmp_path / "r", RegionDefinition(512, 4096, 1, UUID(int=7))) as region:
        yield Flushing(region, monkeypatch)


async def quick(flushing: Flushing) -> None:
    """The first flush is not to the journal; so many later, they are known to be quick."""
    assert [await flushing.flush() for _ in range(1 + QUICK_FLUSHES_MIN)] == [(True, None)] * (1 + QUICK_FLUSHES_MIN)


async def test_where_they_are_quick_no_thread_is_asked(flushing: Flushing) -> None:
    await quick(flushing)
    assert [await flushing.flush() for _ in range(3)] == [(False, None)] * 3
    assert await flushing.flush(QUICK_BLOCKS_MAX) == (False, None)
    assert await flushing.flush(QUICK_BLOCKS_MAX + 1) == (True, None)
    assert await flushing.flush() == (False, None)


async def test_one_that_takes_long_sends_the_next_ones_to_a_thread(flushing: Flushing) -> None:
    await quick(flushing)
    flushing.takes_s = 1.5 * QUICK_S_MAX
    assert await flushing.flush() == (False, None), "nobody knew"
    assert [await flushing.flush() for _ in range(2 * QUICK_FLUSHES_MIN)] == [(True, None)] * 2 * QUICK_FLUSHES_MIN
    flushing.takes_s = 0
    assert [await flushing.flush() for _ in range(QUICK_FLUSHES_MIN)] == [(True, None)] * QUICK_FLUSHES_MIN
    assert await flushing.flush() == (False, None)


async def test_one_that_fails_on_the_loop_fails_as_in_a_thread(
    flushing: Flushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await quick(flushing)

    def broken(*_: Any) -> None:
        raise errors.IoError("the medium is worn out")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", broken)
        went, outcome = await flushing.flush()
    assert (went, type(outcome)) == (False, errors.IoError)
    assert not flushing.region.flush_under_way
    assert (await flushing.flush())[1] is None
