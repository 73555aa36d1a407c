"""The journal: what is found again, after a good end, a bad end and SIGKILL, and whom it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_emu.errors import UsageError
from crucible_emu.exercise.content import Rule
from crucible_emu.exercise.journal import opened
from crucible_emu.exercise.write_log import WriteLog

BLOCKS = 1000


@contextmanager
def journal(path: Path, *, disk: str = "d", blocks: int = BLOCKS, **changes: Any) -> Iterator[WriteLog]:
    with opened(path, disk, 512, blocks, **{"rule": Rule.CRUTEST, "blank": False, **changes}) as kept:
        yield kept.log


def some(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def test_counts_are_found_again_without_doubt_after_a_good_end(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with journal(path, rule=Rule.STAMPED, blank=True) as log:
        assert not log.doubtful.any()
        log.succeeded(some(1, 2), log.issue(some(1, 2)))
        log.commit(log.flush_begins())
        log.succeeded(some(2), log.issue(some(2)))
    with journal(path) as log:
        assert (log.rule, log.blank) == (Rule.STAMPED, True)  # what it was made with
        assert log.cur[:4].tolist() == [0, 1, 2, 0]
        assert log.min[:4].tolist() == [0, 1, 1, 0]
        assert not log.doubtful.any()
    # Whoever kept the log can still look at it.
    assert log.cur[2] == 2


def test_after_a_bad_end_everything_since_the_flush_is_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "j"

    def die() -> None:
        with journal(path) as log:
            log.succeeded(some(1, 2), log.issue(some(1, 2)))
            log.commit(log.flush_begins())
            log.issue(some(2, 7))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die()
    with journal(path) as log:
        assert np.flatnonzero(log.doubtful).tolist() == [2, 7]
    # Nobody has looked since: it stays so.
    with journal(path) as log:
        assert np.flatnonzero(log.doubtful).tolist() == [2, 7]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from crucible_emu.exercise.content import Rule
from crucible_emu.exercise.journal import opened
with opened(Path(sys.argv[1]), "d", 512, 1000, Rule.CRUTEST, False) as kept:
    log, kept.generation = kept.log, 7
    for number in range(500):
        here = np.array([number], np.int64)
        log.succeeded(here, log.issue(here))
        if number == 299:
            log.commit(log.flush_begins())
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sigkill_of_the_tester_loses_no_count(tmp_path: Path) -> None:
    path = tmp_path / "j"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60)
    assert done.returncode == -9
    with journal(path) as log:
        assert log.cur.tolist() == [1] * 500 + [0] * 500
        assert log.min.tolist() == [1] * 300 + [0] * 700
        assert np.flatnonzero(log.doubtful).tolist() == list(range(300, 500))
    with opened(path, "d", 512, 1000, Rule.CRUTEST, False) as kept:
        assert kept.generation == 7


def test_one_tester_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with journal(path), pytest.raises(UsageError, match="in use by another tester"), journal(path):
        pass


def test_journals_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with journal(path):
        pass
    for changes in ({"disk": "other"}, {"blocks": BLOCKS + 1}):
        with pytest.raises(UsageError, match="is of disk d with 1000 blocks of 512 bytes"), journal(path, **changes):
            pass
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="it is damaged"), journal(path):
        pass
    path.write_text("my diary")
    with pytest.raises(UsageError, match="is no journal of this tester"), journal(path):
        pass
    with pytest.raises(UsageError, match="cannot make the journal"), journal(tmp_path / "no" / "j"):
        pass
    with pytest.raises(UsageError, match="cannot open the journal"), journal(tmp_path):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["j"]
