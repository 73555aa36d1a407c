"""A Python program under a sampler that weighs each stack with the CPU time it took.

``python -P bench/sampled.py OUT PROGRAM ARGUMENT…`` runs a Python program as its own ``__main__``. SIGUSR1 begins
sampling, SIGUSR2 ends it and writes ``OUT``: JSON with every stack that was met and its CPU time. Before, between
and after the two nothing is done, so the same process can be measured with and without.

Why not by wall time, why not from outside: a disk waits most of the time, and what a profile must not do is take
waiting for work. The kernel's profiling timer (``ITIMER_PROF``) runs with the CPU time of the whole process and is
silent while it waits. Its signal comes late where a long call into C is under way, and once for many ticks; so a
signal counts nothing. What counts is each thread's CPU clock: all that ran on it since the last sample is put down to
the stack in which the thread is found. A thread that did not run gets nothing, however often it is seen.

With several threads the one that ran when the timer went off is where its stack says; another may have worked since
the last sample and be asleep by now, in a place that has nothing to do with its work. What such a thread spent is kept
apart, and in the end shared out over the stacks in which threads of its kind were met at work.

What it guarantees: the sum over all stacks is what the CPU clocks say, for every thread that is there at a sample (one
that begins and ends between two has its share, not its name). What the sampler took itself is a stack of its own
(:data:`SAMPLER`), and so are garbage collections (:data:`COLLECTOR`), which would otherwise be put down to whoever
happened to allocate.

Where a stack is told later than it was spent: Python runs a signal's handler in front of the next function, after the
next call into C, or at the next turn of a loop. A sample taken at the very first instruction of a function is
therefore put down to its caller. A call into C that was just left, or in which a thread still is, is the stack's last
entry, in brackets: ``[os.pwrite]``.

Standard library only, and no import of this package: it shares a process with what it measures.
"""

from __future__ import annotations

import ast
import dis
import gc
import json
import linecache
import os
import runpy
import signal
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Any

INTERVAL_S = 0.001
"""CPU time between samples that is asked for. The kernel looks once per tick, so one of 250 to 1,000 Hz gives at most
as many samples per second of CPU."""
SAMPLER = "(sampler)"
COLLECTOR = "(garbage collection)"
MAIN_THREAD, OTHER_THREADS = "main thread", "other threads"
"""What a stack begins with."""
FRAMES_MAX = 200
ASLEEP = frozenset({"EpollIOManager.get_events", "WorkerThread._work"})
"""Where Trio's loop waits for sockets, and its threads for work."""

_RESUME = dis.opmap["RESUME"]
_CALLS = frozenset(number for name, number in dis.opmap.items() if name.startswith(("CALL", "PRECALL")))

Key = tuple[int, int, tuple[CodeType, ...]]
"""Thread, instruction of the innermost frame (-1: it called a function and nothing else), codes from inside out."""


class Sampler:
    """Collects while it is on; one per process, told by signals."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stacks: dict[Key, int] = {}
        self._clocks: dict[int, int] = {}  # a thread's CPU clock -> where it stood at the last sample
        self._collecting: dict[int, int] = {}
        self._collected: dict[int, int] = {}  # a thread -> CPU time that it spent collecting since the last sample
        self._collected_ns = 0
        self._own_ns = 0
        self._samples = 0
        self._adrift = [0, 0]  # CPU time of threads found asleep: other threads, the main thread
        self._busy = False
        self._first: dict[CodeType, int] = {}
        self._own = {method.__code__ for method in (Sampler._begin, Sampler._end, Sampler._collection)}

    def listen(self) -> None:
        """Obey the two signals."""
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)
        signal.signal(signal.SIGPROF, self._sample)

    def _begin(self, _number: int, _frame: FrameType | None) -> None:
        self._stacks.clear()
        self._collected.clear()
        self._adrift = [0, 0]
        self._collected_ns = self._own_ns = self._samples = 0
        self._clocks = {clock: time.clock_gettime_ns(clock) for clock in map(_clock, sys._current_frames())}
        gc.callbacks.append(self._collection)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _end(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._sample(number, frame)  # what ran since the last one
        gc.callbacks.remove(self._collection)
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self._document(), file)
        os.replace(temporary, self._path)

    def _collection(self, phase: str, _information: dict[str, int]) -> None:
        thread = threading.get_ident()
        now = time.thread_time_ns()
        if phase == "start":
            self._collecting[thread] = now
        elif thread in self._collecting:
            self._collected[thread] = self._collected.get(thread, 0) + now - self._collecting.pop(thread)

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        if self._busy:  # the timer goes on meanwhile: what it would find is this
            return
        self._busy = True
        begun = time.thread_time_ns()
        here = threading.get_ident()
        self._samples += 1
        moved: list[tuple[int, int, Key]] = []
        for thread, innermost in sys._current_frames().items():
            clock = _clock(thread)
            now = begun if thread == here else time.clock_gettime_ns(clock)
            spent = now - self._clocks.get(clock, 0)
            if spent:
                self._clocks[clock] = now
                moved.append((spent, clock, self._key(thread, frame if thread == here else innermost)))
        working = sum(not _asleep(key) for _, _, key in moved)
        for spent, clock, key in moved:
            thread = key[0]
            collected = self._collected.pop(thread, 0)
            self._collected_ns += collected
            adrift = working if _asleep(key) else thread != here and _blocked(clock)
            if adrift:
                self._adrift[thread == here] += spent - collected
            else:
                self._stacks[key] = self._stacks.get(key, 0) + spent - collected
        mine = _clock(here)
        self._clocks[mine] = ended = time.clock_gettime_ns(mine)
        self._own_ns += ended - begun
        self._busy = False

    def _key(self, thread: int, frame: FrameType | None) -> Key:
        at = -1 if frame is None else frame.f_lasti
        if frame is not None and frame.f_back is not None and at == self._resume(frame.f_code):
            frame, at = frame.f_back, -1
        while frame is not None and frame.f_code in self._own:  # the signal came while it began, ended or was told
            frame, at = frame.f_back, -1
        codes: list[CodeType] = []
        while frame is not None and len(codes) < FRAMES_MAX:
            codes.append(frame.f_code)
            frame = frame.f_back
        return thread, at, tuple(codes)

    def _resume(self, code: CodeType) -> int:
        """Where a function begins, behind what sets its frame up."""
        found = self._first.get(code)
        if found is None:
            text = code.co_code
            found = next((at for at in range(0, len(text), 2) if text[at] == _RESUME), -1)
            self._first[code] = found
        return found

    def _document(self) -> dict[str, Any]:
        modules = {getattr(module, "__file__", None): name for name, module in list(sys.modules.items())}
        main = threading.main_thread().ident
        stacks: dict[tuple[str, ...], float] = {}
        for (thread, at, codes), spent in self._stacks.items():
            stack = [MAIN_THREAD if thread == main else OTHER_THREADS]
            stack += [f"{modules.get(code.co_filename, code.co_filename)}:{code.co_qualname}" for code in codes[::-1]]
            called = callee(codes[0], at) if codes and at >= 0 else None
            stack += [f"[{called}]"] if called else []
            stacks[tuple(stack)] = stacks.get(tuple(stack), 0) + spent
        for kind, adrift in zip((OTHER_THREADS, MAIN_THREAD), self._adrift):
            share_out(stacks, kind, adrift)
        stacks[(SAMPLER,)] = self._own_ns
        stacks[(COLLECTOR,)] = self._collected_ns
        return {"samples": self._samples, "stacks": [[list(stack), round(spent)] for stack, spent in stacks.items()]}


def share_out(stacks: dict[tuple[str, ...], float], kind: str, adrift: float) -> None:
    """Add ``adrift`` to the stacks of one kind of thread, to each in proportion to what it has; to one of its own
    where there is none."""
    known = {stack: spent for stack, spent in stacks.items() if stack[0] == kind}
    total = sum(known.values())
    if total:
        stacks.update((stack, spent + adrift * spent / total) for stack, spent in known.items())
    elif adrift:
        stacks[(kind,)] = adrift


def _asleep(key: Key) -> bool:
    """Whether a thread was found where threads wait for something to do."""
    return bool(key[2]) and key[1] >= 0 and key[2][0].co_qualname in ASLEEP


def _blocked(clock: int) -> bool:
    """Whether the thread of a CPU clock waits for a device. (Asleep is not enough: it may wait for the interpreter,
    which the sampler has.) Linux keeps the thread's number in that of the clock."""
    try:
        with open(f"/proc/self/task/{~(clock >> 3)}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"D"
    except OSError:  # it has just ended, or there is no /proc
        return False


def _clock(thread: int) -> int:
    """A live thread's CPU clock. Asked for each time: a number may pass from a thread that ended to a new one."""
    return time.pthread_getcpuclockid(thread)


def callee(code: CodeType, at: int) -> str | None:
    """What the call at an instruction calls, as the source has it (``os.pwrite``); ``None`` where it is no call or
    there is no source."""
    if code.co_code[at] not in _CALLS:
        return None
    first, last, begin, end = list(code.co_positions())[at // 2]
    if first is None or last is None or begin is None or end is None:
        return None
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][begin:]
    try:
        found = ast.parse(b"".join(lines).decode().strip(), mode="eval").body
    except SyntaxError:  # a comprehension's or a decorator's call has no text of its own
        return None
    return ast.unparse(found.func) if isinstance(found, ast.Call) else None


def main() -> None:
    path, program, *arguments = sys.argv[1:]
    Sampler(path).listen()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
