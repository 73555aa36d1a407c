"""The write log in a file, so that it outlives the tester.

    page 0       JSON of what the log is of, padded with zeros; at its end the disk's last generation (u64), and a byte
                 that is 1 while a tester has it open
    then         ``cur``, u32 little-endian for each block
    then         ``min``, likewise

Why it is safe: both arrays are mapped, shared. A store to them is in the kernel's page cache as soon as it is made, so
a SIGKILL of the tester, or its crash, loses none (a power cut of the tester's machine may). :meth:`WriteLog.issue`
stores before the write leaves the process, and ``min`` is stored after the flush has been answered. Each count is one
aligned store of four bytes and cannot be torn. Dying between two stores leaves one of them undone: a count that was
raised for a write that was never issued, or a flush that counts for less than it did. Both only widen what is accepted.

A tester that ends well clears the byte. Found set, or found with doubt left, everything between ``min`` and ``cur`` is
doubtful when the journal is opened next. One tester at a time: the file is locked.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crucible_emu.errors import UsageError
from crucible_emu.exercise.content import Rule
from crucible_emu.exercise.write_log import WriteLog

KIND = "crucible-emu write log"
VERSION = 1
HEAD_BYTES = 4096
IN_USE_AT = HEAD_BYTES - 1
GENERATION_AT = IN_USE_AT - 8
COUNT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """What a journal is of."""

    disk: str
    block_size: int
    block_count: int
    rule: Rule
    blank: bool


class Journal:
    """An open journal: its log, and the last generation that the disk was activated with."""

    def __init__(self, log: WriteLog, mapped: mmap.mmap) -> None:
        self.log = log
        self._mapped = mapped

    @property
    def generation(self) -> int:
        """0 where the disk was never activated."""
        return int.from_bytes(self._mapped[GENERATION_AT:IN_USE_AT], "little")

    @generation.setter
    def generation(self, generation: int) -> None:
        self._mapped[GENERATION_AT:IN_USE_AT] = generation.to_bytes(8, "little")


@contextmanager
def opened(path: Path, disk: str, block_size: int, block_count: int, rule: Rule, blank: bool) -> Iterator[Journal]:
    """The journal of a disk in the file ``path``, made if absent; ``rule`` and ``blank`` are for a new one.

    Raises :class:`UsageError` where it is of another disk, locked, or no journal.
    """
    descriptor = _open(path, Subject(disk, block_size, block_count, rule, blank))
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"the journal {path} is in use by another tester: wait for it, or give another") from None
        subject = _subject(descriptor, path)
        if (subject.disk, subject.block_size, subject.block_count) != (disk, block_size, block_count):
            raise UsageError(
                f"the journal {path} is of disk {subject.disk} with {subject.block_count} blocks of "
                f"{subject.block_size} bytes, not of this one: give another --journal"
            )
        with mmap.mmap(descriptor, HEAD_BYTES + 2 * COUNT_BYTES * block_count) as mapped:
            yield from _used(mapped, subject)
    finally:
        os.close(descriptor)


def _used(mapped: mmap.mmap, subject: Subject) -> Iterator[Journal]:
    count = subject.block_count
    arrays = np.frombuffer(mapped, "<u4", 2 * count, HEAD_BYTES).reshape(2, count)
    cur, low = arrays
    log = WriteLog(cur, low, rule=subject.rule, blank=subject.blank)
    if mapped[IN_USE_AT]:
        log.doubt()
    mapped[IN_USE_AT] = 1
    try:
        yield Journal(log, mapped)
        mapped[IN_USE_AT] = bool(log.doubtful.any())
    finally:
        # The map cannot be closed while arrays look at it; whoever kept the log has a copy from here on.
        log.cur, log.min = cur.copy(), low.copy()
        del cur, low, arrays


def _open(path: Path, subject: Subject) -> int:
    """The journal's descriptor; a new one appears under its name when it is whole."""
    if not path.exists():
        growing = path.with_name(f".{path.name}.{os.getpid()}.part")
        head = json.dumps(
            {
                "kind": KIND,
                "version": VERSION,
                "disk": subject.disk,
                "block_size": subject.block_size,
                "block_count": subject.block_count,
                "content": subject.rule.value,
                "blank": subject.blank,
            }
        ).encode()
        try:
            with growing.open("xb") as file:
                file.write(head.ljust(HEAD_BYTES, b"\0"))
                file.truncate(HEAD_BYTES + 2 * COUNT_BYTES * subject.block_count)
            os.link(growing, path)
        except FileExistsError:
            pass  # another tester was faster; its lock decides
        except OSError as error:
            raise UsageError(f"cannot make the journal {path}: {(error.strerror or str(error)).lower()}") from None
        finally:
            growing.unlink(missing_ok=True)
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        raise UsageError(f"cannot open the journal {path}: {(error.strerror or str(error)).lower()}") from None


def _subject(descriptor: int, path: Path) -> Subject:
    head = os.pread(descriptor, GENERATION_AT, 0)
    try:
        members = json.loads(head.rstrip(b"\0"))
        if members["kind"] != KIND or members["version"] != VERSION:
            raise ValueError
        subject = Subject(
            str(members["disk"]),
            int(members["block_size"]),
            int(members["block_count"]),
            Rule(members["content"]),
            bool(members["blank"]),
        )
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no journal of this tester: give another --journal") from None
    if os.fstat(descriptor).st_size != HEAD_BYTES + 2 * COUNT_BYTES * subject.block_count:
        raise UsageError(f"the journal {path} is not as long as it should be: it is damaged")
    return subject
