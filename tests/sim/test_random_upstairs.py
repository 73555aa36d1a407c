"""Random histories of an Upstairs: a slice of the long run, and proof that they find what is broken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from crucible_emu.sim import random_upstairs
from crucible_emu.sim.random_upstairs import run_seed
from crucible_emu.upstairs import reconciliation
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.dispatcher import Dispatcher
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.members import Client
from crucible_emu.upstairs.rules import RULES, WRITES, JobKind, Rule
from crucible_emu.wire import messages as m

SEEDS = 75


@pytest.mark.long
def test_random_histories() -> None:
    """A slice; the full run is ``python -m crucible_emu.sim.random_upstairs --seeds 20000``."""
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        verdict = run_seed(seed)
        assert verdict.failure is None, str(verdict)
        counts.update(verdict.counts)
    for reached in ("activations", "replays", "repaired extents", "replacements", "errors", "all replicas away"):
        assert counts[reached], f"no history comes to: {reached}"


@pytest.mark.parametrize("seed", [8059, 11672])
def test_a_failure_that_is_still_on_its_way_when_a_disk_is_deactivated_is_the_replicas_own(seed: int) -> None:
    """These were once taken for a disk that loses a replica by itself."""
    verdict = run_seed(seed)
    assert verdict.failure is None, str(verdict)


def trace_hash(seed: int) -> str:
    lines: list[str] = []
    run_seed(seed, trace=lines.append)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_seed_repeats_bit_for_bit() -> None:
    """In this process, and in another one where sets are hashed otherwise."""
    seeds = range(5)
    here = [trace_hash(seed) for seed in seeds]
    assert [trace_hash(seed) for seed in seeds] == here
    program = f"import test_random_upstairs as t; print([t.trace_hash(seed) for seed in {list(seeds)}])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert found.stdout.strip() == str(here)


def test_the_command_names_how_to_repeat_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, JobKind.FLUSH, Rule(2, 1, 1))
    assert random_upstairs.main(["--seeds", "20", "--processes", "1"]) == 1
    printed = capsys.readouterr().out
    command = next(line.split("again: ")[1] for line in printed.splitlines() if "again: " in line)
    assert command.startswith("python -m crucible_emu.sim.random_upstairs --seed ")
    assert random_upstairs.main(command.split()[3:]) == 1
    assert "VIOLATION a flush is acknowledged" in capsys.readouterr().out


def test_steps_cut_a_history_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert random_upstairs.main(["--seed", "0", "--steps", "3", "-v"]) == 0
    printed = capsys.readouterr().out
    assert "step 2:" in printed and "step 3:" not in printed and "all held" in printed


# -- broken on purpose ------------------------------------------------------------------------------------------------


def acknowledge_flushes_at_one(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, JobKind.FLUSH, Rule(2, 1, 1))


def forget_dependencies_of_writes(patch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._dependencies

    def forget(core: Dispatcher, job: Job) -> list[list[int]]:
        found = real(core, job)
        return [[] for _ in found] if job.kind in WRITES else found

    patch.setattr(Dispatcher, "_dependencies", forget)


def forget_dependencies_of_flushes(patch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._dependencies
    patch.setattr(Dispatcher, "_dependencies", lambda core, job: [[]] if job.kind is JobKind.FLUSH else real(core, job))


def forget_dependencies_of_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "_depend_on_writes", lambda core, job: setattr(job, "dependencies", [[]]))


def name_jobs_that_were_never_sent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "_was_sent", lambda core, job_id, job, client: True)


def leave_a_job_out_of_the_replay(patch: pytest.MonkeyPatch) -> None:
    real_replay, real_send = Dispatcher.replay, Dispatcher.send

    def replay(core: Dispatcher, client: Client) -> None:
        left_out: list[Job] = []

        def send(index: int, item: Any) -> None:
            if isinstance(item, Job) and item.kind in WRITES and not left_out:
                left_out.append(item)
            else:
                real_send(core, index, item)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(core, "send", send)
            real_replay(core, client)
        for job in left_out:
            core.done(job, client.index, job.full)

    patch.setattr(Dispatcher, "replay", replay)


def claim_a_flush_that_was_not_acknowledged(patch: pytest.MonkeyPatch) -> None:
    real = Dispatcher.replay

    def replay(core: Dispatcher, client: Client) -> None:
        client.last_flush = max((job.first_id for job in core.jobs if job.kind is JobKind.FLUSH), default=None)
        real(core, client)

    patch.setattr(Dispatcher, "replay", replay)


def use_a_flush_number_twice(patch: pytest.MonkeyPatch) -> None:
    real = Dispatcher.submit_flush

    def submit(core: Dispatcher, handle: Any, snapshot: str | None = None) -> Job:
        job = real(core, handle, snapshot)
        core.next_flush -= core.next_flush % 2
        return job

    patch.setattr(Dispatcher, "submit_flush", submit)


def make_replicas_equal_to_the_oldest(patch: pytest.MonkeyPatch) -> None:
    def mend(extent_id: int, gen: Any, flush: Any, dirty: Any) -> reconciliation.Mend:
        triples = list(zip(gen.tolist(), flush.tolist(), dirty.tolist()))
        source = triples.index(min(triples))
        return reconciliation.Mend(extent_id, source, tuple(other for other in range(3) if other != source))

    patch.setattr(reconciliation, "_mend", mend)


def repair_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        LiveRepair,
        "_fetch",
        lambda repair, fetch_id, close_id: repair._submit(JobKind.EXTENT_NO_OP, fetch_id, [close_id]),
    )


def send_no_writes_to_what_is_repaired(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LiveRepair, "reaches", lambda repair, job: job.kind not in WRITES)


def say_nothing_of_lost_writes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "all_were_away", lambda core: None)


def deactivate_without_a_flush(patch: pytest.MonkeyPatch) -> None:
    real = UpstairsCore.deactivate

    def deactivate(core: UpstairsCore, handle: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(core, "submit_flush", lambda *_: None)
            real(core, handle)

    patch.setattr(UpstairsCore, "deactivate", deactivate)


def read_from_replicas_under_repair(patch: pytest.MonkeyPatch) -> None:
    real = UpstairsCore.members_changed

    def changed(core: UpstairsCore) -> None:
        real(core)
        core.readers = [client.index for client in core.clients if client.state.phase.value in ("Active", "LiveRepair")]

    patch.setattr(UpstairsCore, "members_changed", changed)


def forget_what_a_replay_needs(patch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._finished

    def finished(core: Dispatcher, job: Job) -> None:
        real(core, job)
        if job.kind in WRITES:
            core.jobs.forget(job)

    patch.setattr(Dispatcher, "_finished", finished)


def limit_no_flush(patch: pytest.MonkeyPatch) -> None:
    real = LiveRepair.limited_flush

    def limited(repair: LiveRepair, job: Job, client: Client) -> m.Flush:
        found = real(repair, job, client)
        return m.Flush(*(getattr(found, name) for name in found.__slots__[:-1]), None)

    patch.setattr(LiveRepair, "limited_flush", limited)


BROKEN: dict[Callable[[pytest.MonkeyPatch], None], tuple[int, int]] = {
    acknowledge_flushes_at_one: (10, 0),
    forget_dependencies_of_writes: (10, 0),
    forget_dependencies_of_flushes: (10, 0),
    forget_dependencies_of_reads: (10, 0),
    name_jobs_that_were_never_sent: (10, 0),
    leave_a_job_out_of_the_replay: (10, 0),
    claim_a_flush_that_was_not_acknowledged: (10, 0),
    use_a_flush_number_twice: (10, 0),
    make_replicas_equal_to_the_oldest: (60, 10),
    repair_nothing: (80, 0),
    send_no_writes_to_what_is_repaired: (150, 28),
    say_nothing_of_lost_writes: (60, 0),
    deactivate_without_a_flush: (200, 89),
    read_from_replicas_under_repair: (80, 0),
    forget_what_a_replay_needs: (300, 53),
    limit_no_flush: (300, 243),
}
"""What is broken, within how many seeds it must be found, and the seed near which to look first, for it was found
there."""


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_what_is_broken_is_found(broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    count, likely = BROKEN[broken]
    nearest_first = sorted(range(count), key=lambda seed: abs(seed - likely))
    assert any(run_seed(seed).failure is not None for seed in nearest_first)
