"""The table of layers on stacks that were made up: one layer for each, and a sum that is what was measured."""

from __future__ import annotations

import importlib
import random

import pytest

from bench import layers
from bench.layers import CALLS, FRAMES, LAYERS, OTHER, Stack, layer_of, table
from bench.sampled import COLLECTOR, MAIN_THREAD, OTHER_THREADS, SAMPLER

LOOP = ("trio._core._run:unrolled_run", "crucible_emu.nbd.connection:Transmission._receive")
SUBMIT = ("crucible_emu.nbd.connection:Transmission._admit", "crucible_emu.upstairs.guest:Guest.submit")
WRITE = (*SUBMIT, "crucible_emu.downstairs.local:LocalConnection.write", "crucible_emu.region.region:Region.write")


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        ((), layers.RECEIVE),
        (("crucible_emu.nbd.transmission:Intake.parse",), layers.RECEIVE),
        (("crucible_emu.nbd.transport:SocketTransport.receive", "[connected.recv_into]"), layers.K_IN),
        (("crucible_emu.nbd.transport:SocketTransport.receive", "[len]"), layers.RECEIVE),
        (("crucible_emu.nbd.transport:SocketTransport.receive", "trio.lowlevel:checkpoint"), layers.LOOP),
        (SUBMIT, layers.GUEST),
        ((*SUBMIT, "numpy:frombuffer", "[frombuffer]"), layers.GUEST),
        ((*SUBMIT, "crucible_emu.upstairs.dispatcher:Dispatcher.write"), layers.JOBS),
        ((*SUBMIT, "crucible_emu.upstairs.local_link:LocalLink.send_job"), layers.ORDER),
        ((*SUBMIT, "crucible_emu.upstairs.single_reads:SingleReads.submit"), layers.READ),
        ((*SUBMIT, "crucible_emu.integrity:hash_blocks", "[np.fromiter]"), layers.HASH),
        (WRITE, layers.WRITE),
        (WRITE[:-1], layers.ORDER),
        ((*WRITE, "crucible_emu.region.contexts:ContextTable.put"), layers.WRITE),
        ((*SUBMIT, "crucible_emu.nbd.replies:Replies.completed"), layers.REPLY),
        (("crucible_emu.nbd.transport:SocketTransport.send_now", "[connected.sendmsg]"), layers.K_OUT),
    ],
)
def test_stack_falls_into_the_layer_of_its_innermost_rule(stack: Stack, layer: str) -> None:
    assert layer_of((MAIN_THREAD, *LOOP, *stack)) == layer


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        ((MAIN_THREAD, "trio._core._io_epoll:EpollIOManager.get_events", "[self._epoll.poll]"), layers.K_WAIT),
        ((MAIN_THREAD, "trio._core._run:unrolled_run", "[task.coro.send]"), layers.LOOP),
        ((OTHER_THREADS, "trio._core._thread_cache:WorkerThread._work", "[lock.acquire]"), layers.THREADS),
        ((OTHER_THREADS, "crucible_emu.region.flush:StagedFlush.run", "numpy:unique"), layers.FLUSH),
        ((OTHER_THREADS, "crucible_emu.region.storage:OsStorage.sync_files", "[os.fdatasync]"), layers.K_SYNC),
        ((OTHER_THREADS, "crucible_emu.region.storage:OsStorage.pwrite", "[os.pwrite]"), layers.K_WRITE),
        ((OTHER_THREADS,), OTHER),
        ((MAIN_THREAD, "crucible_emu.nbdkit:serve"), OTHER),  # a name that begins like a module's is not within it
        ((MAIN_THREAD, "numpy:dot", "[os.pwrite]"), OTHER),
        ((MAIN_THREAD, "[os.pwrite]"), OTHER),
        ((SAMPLER,), layers.OBSERVER),
        ((COLLECTOR,), layers.GARBAGE),
        ((), OTHER),
    ],
)
def test_threads_the_loop_and_what_nobody_claims(stack: Stack, layer: str) -> None:
    assert layer_of(stack) == layer


def test_every_stack_has_one_layer_and_the_sum_is_what_was_measured() -> None:
    drawn = random.Random(7)
    known = [f"{rule.module}:{rule.function}" for rule in FRAMES] + ["numpy:dot", "json:loads", "a:b"]
    known += [f"{call.module}:calls" for call in CALLS]
    called = [f"[x.{name}]" for call in CALLS for name in sorted(call.names)] + ["[len]"]
    stacks: list[tuple[Stack, float]] = [((SAMPLER,), 3.0), ((COLLECTOR,), 2.0)]
    for _ in range(2000):
        end = drawn.sample(called, drawn.randint(0, 1))
        stack = (drawn.choice((MAIN_THREAD, OTHER_THREADS)), *drawn.choices(known, k=drawn.randint(0, 6)), *end)
        stacks.append((stack, drawn.random()))
    names = [layer.name for layer in LAYERS]
    assert len(set(names)) == len(names)
    assert {layer_of(stack) for stack, _ in stacks} == set(names)
    costs = table(stacks, 17.25)
    assert [cost.layer for cost in costs] == names
    assert sum(cost.cpu_us for cost in costs) == pytest.approx(17.25)
    assert sum(cost.share for cost in costs) == pytest.approx(1)
    assert 0 < sum(cost.in_threads_us for cost in costs) < 17.25


def test_shares_are_of_weight_and_threads_are_told_apart() -> None:
    work = "crucible_emu.integrity:hash_blocks"
    costs = table([((MAIN_THREAD, work), 30), ((OTHER_THREADS, work), 10), ((MAIN_THREAD, "a:b"), 40)], 8.0)
    told = {cost.layer: (cost.cpu_us, cost.in_threads_us, cost.share) for cost in costs if cost.cpu_us}
    assert told == {layers.HASH: (4.0, 1.0, 0.5), OTHER: (4.0, 0.0, 0.5)}


def test_nothing_sampled_is_no_table() -> None:
    with pytest.raises(ValueError, match="no stack was sampled"):
        table([], 1.0)


def test_rules_name_what_there_is() -> None:
    """A function that was renamed would silently be somebody else's cost."""
    for rule in FRAMES:
        module = importlib.import_module(rule.module)
        first, _, second = rule.function.partition(".")
        assert not first or hasattr(module, first), rule
        if second:
            assert any(name.startswith(second) for name in vars(getattr(module, first))), rule
    for call in CALLS:
        importlib.import_module(call.module)
