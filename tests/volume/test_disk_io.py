"""A mirrored disk against a plain list of blocks: every kind of request, in this process and over TCP."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk_model import Model, Reopen, Submit, programs, run
from disk_rig import KEY, region_set
from hypothesis import HealthCheck, given, settings

from crucible_emu.integrity import Cipher
from crucible_emu.region import Region
from crucible_emu.region import region as region_module
from crucible_emu.upstairs import guest as guest_module
from crucible_emu.volume.local_disk import open_disk, region_path

Program = list[Submit | Reopen]
Fresh = Callable[..., Path]

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SHAPES = pytest.mark.parametrize(
    ("block_size", "encrypted"), [(512, False), (4096, False), (32768, False), (512, True), (4096, True)]
)


@contextmanager
def small_limits(block_size: int) -> Iterator[None]:
    """Every bound of the guest so low that small programs run into it: cut requests, trains, zeroes, admission."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_module, "JOBS_IN_PROGRESS_MAX", 4)
        patch.setattr(guest_module, "BYTES_IN_PROGRESS_MAX", 8 * block_size)
        patch.setattr(guest_module, "TRANSFER_BYTES_MAX", 2 * block_size)
        patch.setattr(guest_module, "TRAIN_BYTES_MAX", 6 * block_size)
        patch.setattr(guest_module, "ZEROES_BYTES", 4 * block_size)
        patch.setattr(guest_module, "ALLOCATION_BLOCKS_MAX", 5)
        yield


@contextmanager
def cold_replicas() -> Iterator[None]:
    """Nothing is ever at hand: every read of a region waits for the device; and there is little room to stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Region, "read_cached", lambda self, start, count, out: None)
        real = Region.read_blocks_cached

        def nothing(self: Region, blocks: Any, outs: Any) -> Any:
            return real(self, blocks, outs)[0], list(range(len(blocks)))

        patch.setattr(Region, "read_blocks_cached", nothing)
        patch.setattr(region_module, "STAGED_BLOCKS_MIN", 1)
        yield


async def run_locally(
    program: Program, directory: Path, block_size: int, encrypted: bool, piece: int = 1 << 30
) -> None:
    cipher = Cipher.from_base64(KEY) if encrypted else None
    try:
        model = Model(block_size, zero_piece_blocks=piece)
        await run(program, model, lambda: open_disk(directory, cipher=cipher))
    finally:
        shutil.rmtree(directory)


@SHAPES
@FEW
@given(program=programs)
async def test_a_disk_in_this_process_is_a_list_of_blocks(
    fresh_disk: Fresh, program: Program, block_size: int, encrypted: bool
) -> None:
    await run_locally(program, fresh_disk(block_size, encrypted), block_size, encrypted)


@FEW
@given(program=programs)
async def test_limits_cut_requests_and_change_nothing(fresh_disk: Fresh, program: Program) -> None:
    with small_limits(512):
        await run_locally(program, fresh_disk(512), 512, False, piece=4)


@FEW
@given(program=programs)
async def test_replicas_that_must_wait_for_their_device_keep_the_order(fresh_disk: Fresh, program: Program) -> None:
    with cold_replicas():
        await run_locally(program, fresh_disk(512), 512, False)


@FEW
@given(program=programs)
async def test_limits_and_cold_replicas_together(fresh_disk: Fresh, program: Program) -> None:
    with cold_replicas(), small_limits(512):
        await run_locally(program, fresh_disk(512), 512, False, piece=4)


async def run_over_tcp(
    program: Program, directory: Path, block_size: int, encrypted: bool, piece: int = 1 << 30
) -> None:
    generation = 0
    key = KEY if encrypted else None
    try:
        async with region_set([region_path(directory, client) for client in range(3)]) as servers:

            def open_remote() -> Any:
                nonlocal generation
                generation += 1
                return servers.disk(generation, key=key)

            await run(program, Model(block_size, trims=False, zero_piece_blocks=piece), open_remote)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(("block_size", "encrypted"), [(512, False), (4096, True), (32768, False)])
@settings(FEW, max_examples=12)
@given(program=programs)
async def test_a_disk_over_tcp_is_a_list_of_blocks(
    fresh_disk: Fresh, program: Program, block_size: int, encrypted: bool
) -> None:
    await run_over_tcp(program, fresh_disk(block_size, encrypted), block_size, encrypted)


@settings(FEW, max_examples=12)
@given(program=programs)
async def test_limits_cut_requests_over_tcp_and_change_nothing(fresh_disk: Fresh, program: Program) -> None:
    with small_limits(512):
        await run_over_tcp(program, fresh_disk(512), 512, False, piece=4)
