"""The cipher alone: it counts what it did, and is asked sequential lines only."""

from __future__ import annotations

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from bench import cipher
from bench.fio import FioError
from bench.lines import RUN

WRITE, READ = (line for line in RUN if line.sequential)


@pytest.mark.parametrize("work", [cipher.encrypt, cipher.decrypt])
def test_it_works_at_least_once_and_while_there_is_time(work) -> None:
    key = AESGCMSIV(AESGCMSIV.generate_key(256))
    left = [True, True, False]
    assert work(key, lambda: left.pop(0)) == 3 * cipher.BLOCKS_AT_ONCE


def test_all_threads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cipher.os, "cpu_count", lambda: 3)
    found = cipher.measure(WRITE, 0)
    assert found is not None
    # 3 x 64 blocks of 4 KiB are less than one request of the line.
    assert found.operations == 1
    assert found.mib_s == pytest.approx(found.iops)
    assert cipher.measure(READ, 0) is not None
    assert [cipher.measure(line, 0) for line in RUN if not line.sequential] == [None] * 7


def test_where_there_is_no_such_cipher_the_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        @staticmethod
        def generate_key(bits: int) -> bytes:
            return bytes(bits // 8)

        def __init__(self, key: bytes) -> None:
            raise UnsupportedAlgorithm("not here")

    monkeypatch.setattr(cipher, "AESGCMSIV", Missing)
    with pytest.raises(FioError, match=r"write-1m-qd4: this machine's OpenSSL has no AES-GCM-SIV \(not here\)"):
        cipher.measure(WRITE, 0)
