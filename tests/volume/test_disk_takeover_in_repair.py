"""Another Upstairs takes a disk in the middle of a live repair, with the replaced Downstairs among its targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from disk_rig import digests, everything, failures, flush, make_regions, pattern, read, region_set, until, write

from crucible_emu import errors
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.states import UpstairsState

EXTENTS, STALLED = 12, 5


@pytest.mark.parametrize("replaced", range(3))
async def test_a_takeover_in_the_middle_of_a_replacement_keeps_every_byte(
    tmp_path: Path, expect_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, replaced: int
) -> None:
    """The newcomer finds extents that were repaired, one under way and many that were not, and makes them equal."""
    advance = LiveRepair.advance

    def stalls(self: LiveRepair) -> None:
        if self.extent_id < STALLED:
            advance(self)

    monkeypatch.setattr(LiveRepair, "advance", stalls)
    paths = make_regions(tmp_path, extent_count=EXTENTS, count=4)
    expect_log("another Upstairs took over", at_least=1)
    expect_log("disk disabled error=another Upstairs")
    for perhaps in ("live repair aborted", "replica faulted", "connection ended", "acknowledged writes may be lost"):
        expect_log(perhaps, at_least=0)
    async with region_set(paths[:3]) as servers, servers.disk(1) as first:
        servers.paths.append(paths[3])
        spare = await servers.start(3)
        data = pattern(first.size_bytes)
        await write(first, 0, data)
        await flush(first)
        core = first.upstairs.core
        core.extents_ahead = 1
        old = servers.members[replaced].target
        assert first.upstairs.replace_downstairs(old, spare.target) is ReplaceResult.STARTED
        await until(lambda: core.repair is not None and core.repair.extent_id == STALLED)
        servers.members = [spare if client == replaced else servers.members[client] for client in range(3)]
        async with servers.disk(2) as second:
            with trio.fail_after(30):
                await until(lambda: core.state is UpstairsState.DISABLED)
            assert await everything(second) == data
            await write(second, 0, pattern(512, 2))
            with pytest.raises(errors.UpstairsInactive):
                await read(first, 0, 512)
            assert second.upstairs.core.reconciled_extents > 0
    members = [path for client, path in enumerate(paths) if client != replaced]
    assert len(digests(members)) == 1
    assert all(failures(path) == [] for path in members)
