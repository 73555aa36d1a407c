"""A second process for encryption: what it makes is what the cipher alone would have made, whatever happens to it."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crucible_emu import cipher_process, encryption
from crucible_emu.cipher_process import CipherProcess, the_process
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import hash_blocks, hash_sealed_blocks
from crucible_emu.slab import Slab

KEY = bytes(range(32))
BLOCK = 4096
BLOCKS = 128


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CipherProcess | None]]:
    """It is started by the first large write, and ended behind the test."""
    found: list[CipherProcess | None] = []
    monkeypatch.setattr(cipher_process, "_started", found)
    monkeypatch.setattr(encryption, "STARTS_AFTER_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    yield found
    for process in found:
        if process is not None:
            process._end()


def plaintext(count: int = BLOCKS, seed: int = 1) -> list[memoryview]:
    data = memoryview(np.random.default_rng(seed).bytes(count * BLOCK))
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


def sealed_rightly(cipher: Cipher, blocks: list[memoryview]) -> None:
    """Seal them, and look at everything that came of it."""
    sealed, contexts = cipher.seal(blocks, Slab(len(blocks), BLOCK))
    rows = np.ascontiguousarray(sealed)
    assert contexts.nonce is not None and contexts.tag is not None
    assert np.array_equal(contexts.stored, hash_blocks(rows))
    assert np.array_equal(contexts.hash, hash_sealed_blocks(contexts.nonce, contexts.tag, rows))
    assert len(np.unique(contexts.nonce, axis=0)) == len(blocks)
    assert Cipher(KEY).open([row.data for row in rows], contexts) == []
    assert rows.tobytes() == b"".join(blocks)


def in_use() -> tuple[Cipher, CipherProcess]:
    """A cipher whose process is ready."""
    cipher = Cipher(KEY, sharing=the_process)
    sealed_rightly(cipher, plaintext())
    (process,) = cipher_process._started
    assert process is not None
    assert process._answers.poll(30_000) and process.ready
    return cipher, process


@pytest.mark.parametrize("count", [64, 65, 128, 700, 2048])
def test_a_share_is_sealed_there(count: int) -> None:
    """Up to what it has room for."""
    cipher, process = in_use()
    for seed in range(3):
        number, own = process._asked, count - int(count * process.share)
        process.hashes[:], process.stored[:] = 0, 0
        sealed_rightly(cipher, plaintext(count, seed))
        assert process._asked == number + 1 and not process.gone
        assert 0 < own < count
        assert np.array_equal(process.stored[:count], hash_blocks(process.slab.rows[:count, 28:-16].copy()))


def test_what_it_has_no_room_for_is_not_shared() -> None:
    cipher, process = in_use()
    number = process._asked
    sealed_rightly(cipher, plaintext(process.room + 1))
    assert process._asked == number


def test_small_writes_and_other_blocks_are_not_shared() -> None:
    cipher, process = in_use()
    number = process._asked
    sealed_rightly(cipher, plaintext(63))
    Cipher(KEY, sharing=the_process).seal([memoryview(bytes(512))] * 1024, Slab(1024, 512))
    Cipher(KEY).seal(plaintext(), Slab(BLOCKS, BLOCK))
    assert process._asked == number


def test_another_disk_has_its_own_key_in_the_same_process() -> None:
    _, process = in_use()
    number, other = process._asked, Cipher(bytes(32), sharing=the_process)
    rows, contexts = other.seal(plaintext(), Slab(BLOCKS, BLOCK))
    assert process._asked == number + 1
    assert Cipher(bytes(32)).open([row.data for row in np.ascontiguousarray(rows)], contexts) == []


def test_only_the_thread_that_started_it_asks() -> None:
    """Another one might use what is encrypted while the first encrypts something else there."""
    cipher, process = in_use()
    number = process._asked
    with ThreadPoolExecutor(1) as threads:
        threads.submit(sealed_rightly, cipher, plaintext()).result()
    assert process._asked == number
    sealed_rightly(cipher, plaintext())
    assert process._asked == number + 1


def test_race_of_its_end_with_a_write() -> None:
    """It is killed behind the question, and before it."""
    cipher, process = in_use()
    begin = process.begin

    def and_kill(key: bytes, payloads: list[memoryview], first: int) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        begin(key, payloads, first)
        os.kill(process.pid, signal.SIGKILL)

    process.begin = and_kill  # type: ignore[method-assign, assignment]
    sealed_rightly(cipher, plaintext())
    assert process.gone
    sealed_rightly(cipher, plaintext())


def test_one_that_has_ended_is_not_waited_for() -> None:
    cipher, process = in_use()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    sealed_rightly(cipher, plaintext())
    assert process.gone and not process.ready


def test_one_that_has_stopped_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cipher_process, "ANSWER_S_MAX", 0.01)
    cipher, process = in_use()
    os.kill(process.pid, signal.SIGSTOP)
    sealed_rightly(cipher, plaintext())
    assert process.gone


def test_the_answer_to_another_question_is_none() -> None:
    """Race: a write failed between the question and its answer, which the next one would take for its own."""
    cipher, process = in_use()
    process.begin(KEY, plaintext(seed=8), 0)
    sealed_rightly(cipher, plaintext(seed=9))
    assert process.gone


def test_where_it_cannot_be_started_the_cipher_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    cipher = Cipher(KEY, sharing=the_process)
    gc.collect()  # the memory of processes of other tests goes now, and not in between
    before = sorted(os.listdir("/proc/self/fd"))
    sealed_rightly(cipher, plaintext())
    assert cipher_process._started == [None]
    sealed_rightly(cipher, plaintext())
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("cores", [1, 2])
def test_it_is_started_where_there_is_a_core_for_it_and_much_to_do(
    monkeypatch: pytest.MonkeyPatch, started: list[CipherProcess | None], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(encryption, "STARTS_AFTER_BYTES", 3 * BLOCKS * BLOCK)
    cipher = Cipher(KEY, sharing=the_process)
    counts = []
    for _ in range(4):
        sealed_rightly(cipher, plaintext())
        counts.append(len(started))
    assert counts == ([0, 0, 1, 1] if cores == 2 else [0] * 4)


OWNER = f"""
import sys
from crucible_emu.cipher_process import CipherProcess
process = CipherProcess({BLOCK})
assert process._answers.poll(30_000) and process.ready
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_it_ends_with_its_owner(how: str, tmp_path: Path) -> None:
    """Orderly, or by the kernel."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdin is not None
    with owner, os.fdopen(os.pidfd_open(int(owner.stdout.readline()))) as process:
        if how == "killed":
            owner.kill()
        else:
            owner.stdin.close()
        owner.wait(30)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        assert ended.poll(30_000), "it is still there"
