"""Writes of single blocks: the way without a job, when it is taken, and what happens where it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from disk_rig import KEY, Batch, digests, do, everything, flush, pattern, write, write_request, zeroes_request

from crucible_emu import errors
from crucible_emu.encryption import Cipher
from crucible_emu.region import Region
from crucible_emu.upstairs.dispatcher import Dispatcher
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.healing import Healer
from crucible_emu.volume.local_disk import open_disk, region_path

SIZE = 4096
Fresh = Callable[..., Path]


class Jobs:
    """The kinds of the jobs that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        new_job = Dispatcher.new_job

        def noted(core: Dispatcher, kind, *rest):
            self.made.append(kind.value)
            return new_job(core, kind, *rest)

        monkeypatch.setattr(Dispatcher, "new_job", noted)


KINDS = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(monkeypatch)


@asynccontextmanager
async def opened(directory: Path, encrypted: bool = False) -> AsyncIterator[Guest]:
    """The disk; when it is left, all three replicas hold the same."""
    async with open_disk(directory, cipher=Cipher.from_base64(KEY) if encrypted else None) as disk:
        yield disk
    assert len(digests([region_path(directory, client) for client in range(3)])) == 1


def singles(blocks: list[int], seed: int = 1) -> list:
    return [write_request(block * SIZE, pattern(SIZE, seed + place)) for place, block in enumerate(blocks)]


@KINDS
async def test_single_writes_make_no_job_and_count_as_unflushed(fresh_disk: Fresh, jobs: Jobs, encrypted: bool) -> None:
    async with opened(fresh_disk(SIZE, encrypted), encrypted) as disk:
        core = disk.upstairs.core
        first = core.next_job_id
        await do(disk, *singles([5, 1, 9]))
        assert (jobs.made, core.next_job_id, core.need_flush) == ([], first + 3, True)
        assert disk.upstairs.statistics.writes == 3
        await flush(disk)
        assert (jobs.made, core.need_flush) == (["Flush"], False)


@KINDS
async def test_of_a_block_that_is_written_twice_in_a_batch_the_last_stays(
    fresh_disk: Fresh, jobs: Jobs, encrypted: bool
) -> None:
    async with opened(fresh_disk(SIZE, encrypted), encrypted) as disk:
        await do(disk, *singles([3, 4, 3], seed=10))
        held = await everything(disk)
    assert held[3 * SIZE : 5 * SIZE] == pattern(SIZE, 12) + pattern(SIZE, 11)
    assert "Write" not in jobs.made


@KINDS
async def test_replica_that_fails_in_the_midst_has_the_train_sent_as_a_job_to_all(
    fresh_disk: Fresh, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    """Encrypted once more then: the one that has written already must not keep another ciphertext."""
    real, calls = Region.write_singles, []

    def second_fails(region: Region, blocks, data, proofs) -> None:
        calls.append(region.path.name)
        if len(calls) == 2:
            raise errors.IoError("no")
        real(region, blocks, data, proofs)

    monkeypatch.setattr(Region, "write_singles", second_fails)
    async with opened(fresh_disk(SIZE, encrypted), encrypted) as disk:
        await do(disk, *singles([7, 8]))
        assert (len(calls), jobs.made) == (2, ["Write"])
        assert [client.errors for client in disk.upstairs.core.clients] == [0, 0, 0]
        await flush(disk)
        assert (await everything(disk))[7 * SIZE : 9 * SIZE] == pattern(SIZE, 1) + pattern(SIZE, 2)


async def test_nobody_is_written_to_where_one_replica_has_no_room(
    fresh_disk: Fresh, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Region, "admits_singles", lambda region, count: region.path.name != "region-2")
    monkeypatch.setattr(Region, "write_singles", lambda *_: pytest.fail("written before all were asked"))
    directory = fresh_disk(SIZE)
    assert [region_path(directory, client).name for client in range(3)][2] == "region-2"
    async with opened(directory) as disk:
        await do(disk, *singles([1]))
    assert "Write" in jobs.made


async def test_write_that_has_to_be_durable_is_flushed(fresh_disk: Fresh, jobs: Jobs) -> None:
    async with opened(fresh_disk(SIZE)) as disk:
        await write(disk, 0, pattern(SIZE), fua=True)
        assert jobs.made == ["Write", "Flush"]


async def test_healing_hears_of_each_write(fresh_disk: Fresh, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Safety*: a block that is being healed is not put back over what the guest writes meanwhile."""
    heard = []
    monkeypatch.setattr(Healer, "watching", property(lambda healer: True))
    monkeypatch.setattr(Healer, "written", lambda healer, starts, counts: heard.append((starts, counts)))
    async with opened(fresh_disk(SIZE)) as disk:
        await do(disk, *singles([6]))
    assert heard == [([6], [1])]


async def test_zeros_on_their_way_hear_of_each_write(
    fresh_disk: Fresh, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """*Safety*: what is written after a large request of zeros was admitted is not zeroed by its later pieces."""
    from crucible_emu.upstairs import guest

    monkeypatch.setattr(guest, "ZEROES_BYTES", SIZE)
    async with opened(fresh_disk(SIZE)) as disk:
        zeros = Batch(disk, [zeroes_request(0, 16 * SIZE)])
        await do(disk, *singles([15], seed=3))
        await zeros.wait()
        assert (await everything(disk))[: 16 * SIZE] == bytes(15 * SIZE) + pattern(SIZE, 3)


async def test_read_only_region_and_what_lies_beyond_are_refused_as_ever(fresh_disk: Fresh) -> None:
    async with opened(fresh_disk(SIZE)) as disk:
        beyond = write_request(disk.size_bytes, pattern(SIZE))
        await Batch(disk, [*singles([1]), beyond, *singles([2])]).wait()
        assert isinstance(beyond.error, errors.OffsetInvalid)
        assert (await everything(disk))[SIZE : 3 * SIZE] == pattern(SIZE, 1) + pattern(SIZE, 1)
