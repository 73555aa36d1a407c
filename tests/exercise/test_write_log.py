"""The write log by itself: counts, their low byte coming round, flushes, ranges; a property against a plain model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.exercise.content import Blocks, Rows, Rule, counts_in, fill, made
from crucible_emu.exercise.write_log import COUNT_MAX, WriteLog

SIZE = 512
RULES = list(Rule)


def blocks(*numbers: int) -> Blocks:
    return np.array(numbers, np.int64)


def rows_of(log: WriteLog, number: int, count: int) -> Rows:
    """What ``number`` holds after ``count`` writes."""
    return made(blocks(number), np.array([count], np.uint32), SIZE, log.rule)


def written(count: int, *, minimum: int | None = None, rule: Rule = Rule.CRUTEST, blank: bool = False) -> WriteLog:
    """A log of four blocks, each written ``count`` times, all flushed but what is above ``minimum``."""
    log = WriteLog.new(4, rule=rule, blank=blank)
    log.cur[:] = count
    log.min[:] = count if minimum is None else minimum
    return log


# -- content ----------------------------------------------------------------------------------------------------------


def test_content_is_that_of_the_real_tester() -> None:
    rows = made(blocks(0, 254, 255, 600), np.array([1, 2, 256, 0x1FF], np.uint32), SIZE, Rule.CRUTEST)
    assert [row[0] for row in rows] == [0, 254, 0, 90]
    assert [set(row[1:].tolist()) for row in rows] == [{1}, {2}, {0}, {255}]


def test_stamped_content_carries_the_whole_number_and_count() -> None:
    row = made(blocks(0x0102030405), np.array([0x01020304], np.uint32), SIZE, Rule.STAMPED)[0]
    assert row[1:9].tobytes() == (0x0102030405).to_bytes(8, "little")
    assert row[9:13].tobytes() == (0x01020304).to_bytes(4, "little")
    assert set(row[13:].tolist()) == {4}


@given(numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=8), count=st.integers(1, COUNT_MAX))
def test_counts_are_read_back(numbers: list[int], count: int) -> None:
    for rule in RULES:
        counts = np.full(len(numbers), count, np.uint32)
        rows = np.empty((len(numbers), SIZE), np.uint8)
        fill(rows, blocks(*numbers), counts, rule)
        assert counts_in(rows, counts, rule).tolist() == [count] * len(numbers)


# -- counts -----------------------------------------------------------------------------------------------------------


def test_issue_raises_each_count_once() -> None:
    log = WriteLog.new(8)
    assert log.issue(blocks(2, 5)).tolist() == [1, 1]
    assert log.issue(blocks(5)).tolist() == [2]
    assert log.cur.tolist() == [0, 0, 1, 0, 0, 2, 0, 0]
    assert log.min.tolist() == [0] * 8


def test_count_at_its_end_is_refused() -> None:
    log = written(COUNT_MAX)
    with pytest.raises(UsageError, match="begin a new write log"):
        log.issue(blocks(0))


@pytest.mark.parametrize("count", [255, 256, 257, 1024])
def test_low_byte_comes_round(count: int) -> None:
    log = written(count)
    assert log.check(blocks(1), rows_of(log, 1, count)) is None
    wrong = log.check(blocks(1), rows_of(log, 1, count - 1))
    assert wrong is not None
    assert str(wrong) == f"block 1 is wrong: expected write {count}, found write {count - 1}"


def test_flush_covers_what_had_succeeded_before_it_began() -> None:
    log = WriteLog.new(4)
    first = log.issue(blocks(0, 1))
    late = log.issue(blocks(2))
    log.succeeded(blocks(0, 1), first)
    mark = log.flush_begins()
    log.succeeded(blocks(2), late)
    log.commit(mark)
    assert log.min.tolist() == [1, 1, 0, 0]
    log.commit(log.flush_begins())
    assert log.min.tolist() == [1, 1, 1, 0]


def test_a_flush_that_failed_is_made_up_by_the_next() -> None:
    log = WriteLog.new(2)
    log.succeeded(blocks(0), log.issue(blocks(0)))
    mark = log.flush_begins()
    log.succeeded(blocks(0), log.issue(blocks(0)))
    log.flush_failed(mark)
    log.commit(log.flush_begins())
    assert log.min.tolist() == [2, 0]


def test_many_writes_between_two_flushes_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible_emu.exercise.write_log.MARKS_MAX", 3)
    log = WriteLog.new(2)
    for _ in range(20):
        log.succeeded(blocks(1), log.issue(blocks(1)))
    log.commit(log.flush_begins())
    assert log.min.tolist() == [0, 20]


# -- checking ---------------------------------------------------------------------------------------------------------


def test_strict_without_doubt() -> None:
    log = written(7, minimum=5)
    assert log.check(blocks(0, 1), np.vstack([rows_of(log, 0, 7), rows_of(log, 1, 7)])) is None
    wrong = log.check(blocks(0, 1), np.vstack([rows_of(log, 0, 7), rows_of(log, 1, 6)]))
    assert wrong is not None and wrong.block == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", [0, 250, 256, 1020])
def test_doubt_accepts_the_range_and_its_edges(base: int, rule: Rule) -> None:
    low, high = base + 3, base + 9
    for count in range(base + 1, base + 12):
        log = written(high, minimum=low, rule=rule)
        log.doubt()
        wrong = log.check(blocks(2), rows_of(log, 2, count))
        assert (wrong is None) == (low <= count <= high)
        if wrong is None:
            # What was found is what is there from now on.
            assert log.cur[2] == count
            assert log.check(blocks(2), rows_of(log, 2, count)) is None
            if count > low:
                assert log.check(blocks(2), rows_of(log, 2, count - 1)) is not None
        else:
            assert str(wrong).startswith(f"block 2 is wrong: expected one of writes {low} to {high}, found ")


def test_range_for_every_block_as_the_real_tester_has_it() -> None:
    log = written(9, minimum=4)
    assert log.check(blocks(1), rows_of(log, 1, 5)) is not None
    assert log.check(blocks(1), rows_of(log, 1, 5), log.expect(blocks(1), in_range=True)) is None
    assert log.cur[1] == 5


def test_a_range_of_256_and_more_takes_the_newest_that_fits() -> None:
    log = written(1000, minimum=100)
    log.doubt()
    assert log.check(blocks(0), rows_of(log, 0, 999)) is None
    assert log.cur[0] == 999
    log = written(1000, minimum=100)
    log.doubt()
    # 700 and 956 look the same.
    assert log.check(blocks(0), rows_of(log, 0, 700)) is None
    assert log.cur[0] == 956


def test_a_row_of_zeros_may_be_a_content_of_the_real_rule() -> None:
    """Block 0 modulo 255 with a count of 0 modulo 256, which is not the same as never written."""
    log = written(513, minimum=512)
    log.doubt()
    assert log.check(blocks(0), np.zeros((1, SIZE), np.uint8)) is None
    assert log.cur[0] == 512


def test_race_a_write_issued_while_a_doubtful_block_is_read_keeps_its_count() -> None:
    log = written(5, minimum=3)
    log.doubt()
    expected = log.expect(blocks(0))
    log.issue(blocks(0))
    assert log.check(blocks(0), rows_of(log, 0, 4), expected) is None
    assert log.cur[0] == 6


def test_race_a_read_that_is_tried_on_another_replica_finds_a_later_write() -> None:
    log = written(8)
    expected = log.expect(blocks(1))
    log.issue(blocks(1))
    for count, right in ((7, False), (8, True), (9, True), (10, False)):
        assert (log.check(blocks(1), rows_of(log, 1, count), expected) is None) is right
    assert log.cur[1] == 9


def test_race_two_reads_of_a_doubtful_block() -> None:
    """The first to come back settles the doubt; the block is written and flushed before the second does."""
    log = written(7, minimum=4)
    log.doubt()
    first, second = log.expect(blocks(0)), log.expect(blocks(0))
    assert log.check(blocks(0), rows_of(log, 0, 5), first) is None
    log.succeeded(blocks(0), log.issue(blocks(0)))
    log.commit(log.flush_begins())
    assert (log.cur[0], log.min[0]) == (6, 6)
    assert log.check(blocks(0), rows_of(log, 0, 5), second) is None
    assert log.cur[0] == 6


def test_a_failed_write_may_be_there_or_not() -> None:
    for count in (1, 2):
        log = written(1)
        log.issue(blocks(3))
        log.failed(blocks(3))
        assert log.check(blocks(3), rows_of(log, 3, count)) is None
        assert log.cur[3] == count
    log = written(1)
    log.issue(blocks(3))
    log.failed(blocks(3))
    log.succeeded(blocks(3), log.issue(blocks(3)))
    # The newest succeeded: nothing is in doubt any more.
    assert log.check(blocks(3), rows_of(log, 3, 1)) is not None


def test_success_of_an_older_write_leaves_the_doubt_of_a_newer_one() -> None:
    log = written(1)
    older = log.issue(blocks(0))
    log.issue(blocks(0))
    log.failed(blocks(0))
    log.succeeded(blocks(0), older)
    assert log.check(blocks(0), rows_of(log, 0, 2)) is None


def test_unknown_content_is_not_checked_and_blank_content_is_zeros() -> None:
    junk = np.full((1, SIZE), 0xAB, np.uint8)
    zeros = np.zeros((1, SIZE), np.uint8)
    assert WriteLog.new(4).check(blocks(0), junk) is None
    log = WriteLog.new(4, blank=True)
    assert log.check(blocks(0), zeros) is None
    wrong = log.check(blocks(0), junk)
    assert str(wrong) == (
        "block 0 is wrong: expected zeros, for it was never written, "
        "found a block whose number modulo 255 is 171 and whose count modulo 256 is 171"
    )


def test_a_first_write_in_doubt_may_have_left_what_was_there_before() -> None:
    junk, zeros = np.full((1, SIZE), 0xAB, np.uint8), np.zeros((1, SIZE), np.uint8)
    for blank, row, right in ((False, junk, True), (True, zeros, True), (True, junk, False)):
        log = written(1, minimum=0, blank=blank)
        log.doubt()
        assert (log.check(blocks(2), row) is None) is right


def test_what_is_wrong_is_told_apart() -> None:
    log = written(3)
    torn = rows_of(log, 1, 3)
    torn[0, 300:] = 2
    assert "found byte 300 as 0x02 instead of 0x03" in str(log.check(blocks(1), torn))
    assert "found zeros" in str(log.check(blocks(1), np.zeros((1, SIZE), np.uint8)))
    assert "found write 5" in str(log.check(blocks(1), rows_of(log, 1, 5)))
    assert "number modulo 255 is 2 and whose count" in str(log.check(blocks(1), rows_of(log, 2, 3)))
    log = written(3, rule=Rule.STAMPED)
    # 255 blocks further on the real rule sees no difference.
    assert "found byte 1 as 0x00 instead of 0x01" in str(log.check(blocks(1), rows_of(log, 256, 3)))


# -- the real tester's file -------------------------------------------------------------------------------------------


def test_verify_file_and_back() -> None:
    log = written(300, minimum=7)
    assert json.loads(log.dumps()) == {"count_cur": [300] * 4, "count_min": [7] * 4}
    other = WriteLog.new(4)
    other.load(log.dumps(), "f")
    assert (other.cur.tolist(), other.min.tolist()) == (log.cur.tolist(), log.min.tolist())
    assert other.check(blocks(0), rows_of(log, 0, 8)) is not None
    assert other.check(blocks(0), rows_of(log, 0, 299), other.expect(blocks(0), in_range=True)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "f is no write log"),
        ("{}", "f is no write log"),
        ('{"count_cur": 1, "count_min": [1]}', "f is of a disk of 1 blocks, this one has 2"),
        ('{"count_cur": [1], "count_min": [1]}', "f is of a disk of 1 blocks, this one has 2"),
        ('{"count_cur": [1, 4294967296], "count_min": [1, 1]}', "counts are 0 to 4294967295"),
        ('{"count_cur": [1, 1], "count_min": [1, 2]}', "count_min above its count_cur"),
        ('{"count_cur": [1, "x"], "count_min": [1, 2]}', "f is no write log"),
        ('{"count_cur": [[1], [1]], "count_min": [1, 1]}', "this one has 2"),
    ],
)
def test_files_that_are_no_write_log(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        WriteLog.new(2).load(text, "f")


# -- a property against a plain model ---------------------------------------------------------------------------------

BLOCKS = 3
HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, BLOCKS - 1)),
        st.tuples(st.just("fail"), st.integers(0, BLOCKS - 1)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, BLOCKS - 1)),
        st.tuples(st.just("crash"), st.integers(0, 2**16)),
    ),
    max_size=50,
)


@settings(max_examples=300)
@given(history=HISTORY, start=st.sampled_from([0, 250, 510]), rule=st.sampled_from(RULES), blank=st.booleans())
def test_no_honest_disk_is_ever_accused(history: list[tuple[str, int]], start: int, rule: Rule, blank: bool) -> None:
    """A disk that loses, in a crash, any un-flushed write of each block, and nothing else, is right in every read;
    one that loses a flushed write is found out."""
    log = written(start, rule=rule, blank=blank)
    there = [start] * BLOCKS  # the count of the content that is there
    versions = [[start] for _ in range(BLOCKS)]  # contents that a crash may bring back, oldest the flushed one
    for what, number in history:
        here = blocks(number % BLOCKS)
        if what in ("write", "fail"):
            count = log.issue(here)
            happened = what == "write" or number % 2 == 0
            if happened:
                there[number] = int(count[0])
                versions[number].append(there[number])
            if what == "write":
                log.succeeded(here, count)
            else:
                log.failed(here)
        elif what == "flush":
            mark = log.flush_begins()
            log.commit(mark)
            versions = [[count] for count in there]
        elif what == "crash":
            there = [kept[number % len(kept)] for kept in versions]
            log.doubt()
            versions = [[kept[0], there[index]] for index, kept in enumerate(versions)]
        else:
            assert log.check(here, rows_of(log, number, there[number])) is None
    for number in range(BLOCKS):
        low = int(log.min[number])
        assert log.check(blocks(number), rows_of(log, number, there[number])) is None
        if low > 1:
            lost = rows_of(log, number, low - 1)
            assert log.check(blocks(number), lost) is not None
