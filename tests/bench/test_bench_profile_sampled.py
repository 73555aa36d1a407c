"""The sampler on programs whose shares are known: counts and sums of CPU clocks, never of wall time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from bench import sampled
from bench.sampled import COLLECTOR, MAIN_THREAD, OTHER_THREADS, SAMPLER, Sampler, callee, share_out

PROGRAM = """
import gc, hashlib, json, signal, sys, threading, time

piece, large = bytes(1 << 16), bytes(1 << 23)
told = {}

def spend(name, seconds, work):
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        work()
    told[name] = told.get(name, 0) + time.thread_time() - begun

def in_python():
    total = 0
    for number in range(2000):
        total += number

def in_short_calls():
    hashlib.sha256(piece)

def in_long_calls():
    hashlib.sha256(large)

def collecting():
    gc.collect()

def in_a_thread():
    spend("in_a_thread", 0.3, lambda: hashlib.sha256(piece))

def main():
    asleep = threading.Thread(target=threading.Event().wait, daemon=True)
    asleep.start()
    beside = threading.Thread(target=in_a_thread)
    beside.start()
    for _ in range(4):
        spend("in_python", 0.03, in_python)
        spend("in_short_calls", 0.05, in_short_calls)
        spend("in_long_calls", 0.08, in_long_calls)
    beside.join()
    spend("collecting", 0.1, collecting)

in_python()
signal.raise_signal(signal.SIGUSR1)
begun = time.process_time()
main()
told["all"] = time.process_time() - begun
signal.raise_signal(signal.SIGUSR2)
print(json.dumps([sys.argv, told]))
"""
KNOWN = ("in_python", "in_short_calls", "in_long_calls", "in_a_thread")


def test_shares_are_those_that_were_spent(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "samples.json"
    command = [sys.executable, "-P", sampled.__file__, str(out), "program.py", "--an-option"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    arguments, told = json.loads(done.stdout)
    assert arguments == ["program.py", "--an-option"]
    document = json.loads(out.read_text())
    assert document["samples"] > 20
    stacks = [(tuple(stack), spent / 1e9) for stack, spent in document["stacks"]]
    total = sum(spent for _, spent in stacks)
    assert total == pytest.approx(told["all"], rel=0.1)
    for name in KNOWN:
        found = sum(spent for stack, spent in stacks if any(frame.endswith(f":{name}") for frame in stack))
        assert found / total == pytest.approx(told[name] / told["all"], abs=0.15), name
    own = {stack[0]: spent for stack, spent in stacks if len(stack) == 1}
    assert own[COLLECTOR] / total == pytest.approx(told["collecting"] / told["all"], abs=0.15)
    assert 0 < own[SAMPLER] < total / 2
    kinds = {stack[0] for stack, _ in stacks if len(stack) > 1}
    assert kinds == {MAIN_THREAD, OTHER_THREADS}
    asleep = sum(spent for stack, spent in stacks if any(frame.endswith(":Event.wait") for frame in stack))
    assert asleep < total / 50, "a thread that sleeps costs no more than its start"
    assert any(stack[-1] == "[hashlib.sha256]" for stack, _ in stacks)
    assert not any("Sampler" in frame for stack, _ in stacks for frame in stack)


def test_nothing_is_done_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import signal\nprint(signal.getitimer(signal.ITIMER_PROF))\n")
    out = tmp_path / "samples.json"
    command = [sys.executable, "-P", sampled.__file__, str(out), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0.0, 0.0)"
    assert not out.exists()


def test_what_sleepers_spent_is_shared_out_in_proportion() -> None:
    stacks = {(MAIN_THREAD, "a"): 30.0, (MAIN_THREAD, "b"): 10.0, (OTHER_THREADS, "a"): 5.0}
    share_out(stacks, MAIN_THREAD, 20.0)
    assert stacks == {(MAIN_THREAD, "a"): 45.0, (MAIN_THREAD, "b"): 15.0, (OTHER_THREADS, "a"): 5.0}
    alone: dict[tuple[str, ...], float] = {}
    share_out(alone, OTHER_THREADS, 3.0)
    share_out(alone, MAIN_THREAD, 0.0)
    assert alone == {(OTHER_THREADS,): 3.0}


def test_sample_at_a_function_s_first_instruction_is_its_caller_s(tmp_path: Path) -> None:
    sampler = Sampler(str(tmp_path / "none"))
    seen = []

    def called():
        frame = sys._getframe()

        class AtTheBeginning:
            f_code, f_lasti, f_back = frame.f_code, sampler._resume(frame.f_code), frame.f_back

        seen.append((sampler._key(1, AtTheBeginning()), sampler._key(1, frame)))

    called()
    ((early, late),) = seen
    assert late[2][0].co_name == "called" and late[1] >= 0
    assert early[2] == late[2][1:] and early[1] == -1


def test_what_the_sampler_does_is_in_no_stack(tmp_path: Path) -> None:
    sampler = Sampler(str(tmp_path / "none"))
    here = sys._getframe()

    class InTheSampler:
        f_code, f_lasti, f_back = Sampler._collection.__code__, 40, here

    _, at, codes = sampler._key(1, InTheSampler())
    assert (at, codes[0]) == (-1, here.f_code)


def test_call_is_named_as_the_source_has_it() -> None:
    under_way: list[FrameType] = []
    places = []

    def look(_: int) -> int:
        under_way.append(sys._getframe(1))
        places.append(under_way[0].f_lasti)
        return 0

    max([1], key=look)
    code = under_way[0].f_code
    assert callee(code, places[0]) == "max"
    assert callee(code, 0) is None
    assert callee(compile("print(1)", "<nowhere>", "exec"), 0) is None
