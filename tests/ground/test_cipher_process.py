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
from crucible_emu.integrity import BlockContexts, Rows, hash_blocks, hash_sealed_blocks
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


def sealed_rightly(cipher: Cipher, blocks: list[memoryview]) -> bool:
    """Seal them, with the process where it helps, and look at everything that came of it. Whether it was asked."""
    sealing = cipher.begin(blocks, BLOCK)
    right(blocks, *(cipher.seal(blocks, Slab(len(blocks), BLOCK)) if sealing is None else sealing.finish()))
    return sealing is not None


def right(blocks: list[memoryview], sealed: Rows, contexts: BlockContexts) -> None:
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


@pytest.mark.parametrize("count", [64, 65, 128, 700, 1024])
def test_a_share_is_sealed_there(count: int) -> None:
    """Up to what it has room for."""
    cipher, process = in_use()
    for seed in range(3):
        process.hashes[:], process.stored[:] = 0, 0
        taken = int(count * process.share)
        assert sealed_rightly(cipher, plaintext(count, seed))
        assert not process.gone and 0 < taken < count
        assert np.array_equal(process.stored[:count], hash_blocks(process.slab.rows[:count, 28:-16].copy()))


@pytest.mark.parametrize("count", [63, 1025])
def test_what_is_small_and_what_it_has_no_room_for_is_not_shared(count: int) -> None:
    cipher, _ = in_use()
    assert not sealed_rightly(cipher, plaintext(count))


def test_blocks_of_another_size_and_of_a_cipher_without_it_are_not_shared() -> None:
    in_use()
    assert Cipher(KEY, sharing=the_process).begin([memoryview(bytes(512))] * 1024, 512) is None
    assert Cipher(KEY).begin(plaintext(), BLOCK) is None


def test_another_disk_has_its_own_key_in_the_same_process() -> None:
    in_use()
    sealing = Cipher(bytes(32), sharing=the_process).begin(plaintext(), BLOCK)
    assert sealing is not None
    rows, contexts = sealing.finish()
    assert Cipher(bytes(32)).open([row.data for row in np.ascontiguousarray(rows)], contexts) == []


def test_two_are_under_way_and_a_third_is_not_shared() -> None:
    """Each has its half of the memory until it is finished."""
    cipher, _ = in_use()
    one, two = plaintext(seed=2), plaintext(200, seed=3)
    first, second = cipher.begin(one, BLOCK), cipher.begin(two, BLOCK)
    assert first is not None and second is not None
    assert not sealed_rightly(cipher, plaintext(seed=4))
    right(one, *first.finish())
    assert sealed_rightly(cipher, plaintext(seed=5))
    right(two, *second.finish())


def test_what_nobody_finishes_takes_no_room() -> None:
    """Race: a disk is closed while one of its writes is under way."""
    cipher, process = in_use()
    for seed in range(5):
        sealing = cipher.begin(plaintext(seed=seed), BLOCK)
        assert sealing is not None
        del sealing
    assert sealed_rightly(cipher, plaintext(seed=9))
    assert not process.gone


def test_only_the_thread_that_started_it_asks() -> None:
    """Another one might use what is encrypted while the first encrypts something else there."""
    cipher, _ = in_use()
    with ThreadPoolExecutor(1) as threads:
        assert not threads.submit(sealed_rightly, cipher, plaintext()).result()
    assert sealed_rightly(cipher, plaintext())


def test_race_of_its_end_with_a_write() -> None:
    """It is killed behind the question, and before it."""
    cipher, process = in_use()
    begin = process.begin

    def and_kill(key: bytes, payloads: list[memoryview], first: int) -> int:
        os.kill(process.pid, signal.SIGSTOP)
        number = begin(key, payloads, first)
        os.kill(process.pid, signal.SIGKILL)
        return number

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


def test_race_of_its_end_with_two_that_are_under_way() -> None:
    """What was answered before stays right, what was not is done by its owner."""
    cipher, process = in_use()
    one, two = plaintext(seed=2), plaintext(seed=3)
    first = cipher.begin(one, BLOCK)
    second = cipher.begin(two, BLOCK)
    assert first is not None and second is not None and process._answered == process._asked - 1
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    right(two, *second.finish())
    right(one, *first.finish())


def test_the_answer_to_another_question_is_none() -> None:
    cipher, process = in_use()
    process._asked += 1
    assert sealed_rightly(cipher, plaintext(seed=9))
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
