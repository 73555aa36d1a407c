"""A second process that encrypts a share of what is large.

What it is for: threads bring a cipher nothing that is called for each block (:mod:`~crucible_emu.encryption`), and of
what 1 MiB costs on its way into an encrypted disk it is two thirds. A :class:`CipherProcess` takes a share of the
blocks of each large write, in memory that both processes have mapped; meanwhile its owner does the rest, and what came
before. How large the share is follows from who had to wait. (To decrypt so brought nothing on two cores: it costs half
as much, and whoever reads needs the other core.)

What it guarantees: nothing depends on it. What it does not answer in time, or cannot do, is done by its owner, and it
is never asked again. It ends with its owner, however that ends, and is told keys through a socket that nobody else has.
A process has one at most, for all of its disks whose blocks have the size of the first one's.

*Safety*: questions are numbered, and an answer to another one than the last is no answer; one that gave none is ended
before its owner uses the memory. It works in one half of that memory while what is in the other is taken away: a half
is given to the next only when nobody holds it any more. Only the thread that started it asks it.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from threading import get_ident

import numpy as np

from crucible_emu.encryption import KEY_BYTES, Cipher
from crucible_emu.integrity import SEAL_BYTES, TAG_BYTES, Hashes
from crucible_emu.logs import get_logger
from crucible_emu.slab import ROW_BYTES_MORE, Slab

ROOM_BYTES = 4 * 1024 * 1024
"""What is larger is not shared. There is room for two of that."""
ANSWER_S_MAX = 0.25
"""What takes it longer costs the guest more than doing without."""
SHARE_FIRST, SHARE_MIN, SHARE_MAX, SHARE_STEP = 0.6, 0.1, 0.9, 0.01
CIPHERS_MAX = 64
HASH_BYTES = 8
_GEOMETRY = struct.Struct("<QQ")
"""Room for how many blocks, and their size."""
_QUESTION = struct.Struct(f"<QQQ{KEY_BYTES}s")
"""Number, the first row to encrypt and the one behind the last, and the key."""
_ANSWER = struct.Struct("<Q")
"""The number of what is done."""

log = get_logger(__name__)


def bytes_for(count: int, block_size: int) -> int:
    """Of the memory of both, for so many blocks."""
    return count * (2 * HASH_BYTES + block_size + ROW_BYTES_MORE)


def mapped(descriptor: int, count: int, block_size: int) -> tuple[Slab, Hashes, Hashes]:
    """That memory: a slab of ``count`` blocks; for each the hash of what is sealed, and of what is stored, uint64."""
    memory = mmap.mmap(descriptor, bytes_for(count, block_size))
    numbers = np.frombuffer(memory, np.uint64, 2 * count)
    rows = np.frombuffer(memory, np.uint8, offset=numbers.nbytes)
    return Slab(count, block_size, rows), numbers[:count], numbers[count:]


class CipherProcess:
    """Starts the process for blocks of ``block_size``; it is of use once it is :attr:`ready`. ``room``: so many blocks
    it takes at a time. ``share``: of a large request, as much is best given to it. ``slab``, ``hashes``, ``stored``:
    where blocks are sealed, and the hashes of what is sealed and of what is stored. Raises OSError."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.room = max(1, ROOM_BYTES // block_size)
        self.share = SHARE_FIRST
        self._ready = False
        self._asked = self._answered = 0
        self._thread = get_ident()
        with ExitStack() as opened, ExitStack() as given_up:
            memory = os.memfd_create("crucible-cipher", os.MFD_CLOEXEC)
            opened.callback(os.close, memory)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            opened.enter_context(theirs)
            given_up.enter_context(ours)
            os.ftruncate(memory, bytes_for(2 * self.room, block_size))
            self.slab, self.hashes, self.stored = mapped(memory, 2 * self.room, block_size)
            process = subprocess.Popen(
                [sys.executable, "-m", "crucible_emu.cipher_process", str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is its owner's, with whom it ends
            )
            given_up.pop_all()
        self.pid = process.pid
        self._socket = ours
        self._answers = select.poll()
        self._answers.register(ours, select.POLLIN)
        self._holders: list[Callable[[], object | None]] = [_nobody, _nobody]
        # Not closed before nobody knows this any more: somebody may wait for what it says.
        self._closed = weakref.finalize(self, ours.close)
        self._end = weakref.finalize(self, _end, ours, process)
        self._say(_GEOMETRY.pack(2 * self.room, block_size))

    @property
    def gone(self) -> bool:
        """Whether it is of no use any more."""
        return not self._end.alive

    @property
    def ready(self) -> bool:
        """Whether it may be asked now."""
        if not self._ready and not self.gone and self._answers.poll(0):
            self._ready = self._heard()
        return self._ready

    @property
    def mine(self) -> bool:
        """Whether the calling thread may use it."""
        return self.ready and self._thread == get_ident()

    def half_for(self, holder: object) -> int | None:
        """The first row of a half of the slab, which is ``holder``'s until that is gone, or lets go of it; ``None``
        where both are somebody's."""
        for half, held_by in enumerate(self._holders):
            if held_by() is None:
                self._holders[half] = weakref.ref(holder)
                return half * self.room
        return None

    def let_go(self, first: int) -> None:
        """The half from row ``first`` on is nobody's any more."""
        self._holders[first // self.room] = _nobody

    def begin(self, key: bytes, payloads: Sequence[memoryview], first: int) -> int:
        """Have these whole blocks encrypted, in the rows of :attr:`slab` from ``first`` on, as soon as it is done with
        what it was asked before, for which this waits. The number of this question."""
        if self._answered < self._asked:
            self._wait()
        row = first
        for payload in payloads:
            blocks = np.frombuffer(payload, np.uint8).reshape(-1, self.block_size)
            self.slab.rows[row : row + len(blocks), SEAL_BYTES:-TAG_BYTES] = blocks
            row += len(blocks)
        self._asked += 1
        self._say(_QUESTION.pack(self._asked, first, row, key))
        return self._asked

    def is_done(self, number: int) -> bool:
        """Whether what has this number is done, once that is known. If not, nobody writes to its rows any more."""
        if self._answered < number:
            self._wait()
        return self._answered >= number

    @property
    def has_answered(self) -> bool:
        """Whether :meth:`is_done` would not have to wait."""
        return self.gone or self._answered == self._asked or bool(self._answers.poll(0))

    def fileno(self) -> int:
        """Of what becomes readable when it has answered, or is gone."""
        return self._socket.fileno()

    def _wait(self) -> None:
        if self.gone:
            return
        if self._answers.poll(0):
            self.share = min(SHARE_MAX, self.share + SHARE_STEP)
        else:
            self.share = max(SHARE_MIN, self.share - SHARE_STEP)
            if not self._answers.poll(ANSWER_S_MAX * 1000):
                self._drop("it does not answer")
                return
        self._heard()

    def _say(self, message: bytes) -> None:
        try:
            self._socket.send(message, socket.MSG_DONTWAIT)
        except OSError as error:
            self._drop(str(error))

    def _heard(self) -> bool:
        """Whether the message that is there says that what was asked last is done."""
        try:
            said = self._socket.recv(_ANSWER.size, socket.MSG_DONTWAIT)
        except OSError as error:
            self._drop(str(error))
            return False
        if said != _ANSWER.pack(self._asked):
            self._drop("it has ended" if not said else "it answers another question")
            return False
        self._answered = self._asked
        return True

    def _drop(self, why: str) -> None:
        if self._end.alive:
            log.info("encryption goes on in one process", reason=why)
        self._ready = False
        self._end()


def _nobody() -> None:
    return None


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # it has ended already
        ours.shutdown(socket.SHUT_RDWR)
    process.kill()
    process.wait()


_started: list[CipherProcess | None] = []


def the_process(block_size: int) -> CipherProcess | None:
    """The second process, which is started if none ever was; ``None`` where there is no core for it, where it is for
    blocks of another size, or could not be started."""
    if len(os.sched_getaffinity(0)) < 2:
        return None
    if not _started:
        try:
            _started.append(CipherProcess(block_size))
        except OSError as error:
            log.info("encryption goes on in one process", reason=str(error))
            _started.append(None)
    (process,) = _started
    return None if process is None or process.block_size != block_size else process


def serve(asked: socket.socket, memory: int) -> None:
    """Do what the owner asks for, until it is gone."""
    slab, hashes, stored = mapped(memory, *_GEOMETRY.unpack(asked.recv(_GEOMETRY.size)))
    cipher_of = lru_cache(CIPHERS_MAX)(Cipher)
    asked.send(_ANSWER.pack(0))
    while question := asked.recv(_QUESTION.size):
        number, first, stop, key = _QUESTION.unpack(question)
        rows = slice(first, stop)
        hashes[rows], stored[rows] = cipher_of(key).seal_rows(slab.stored[rows], slab, first, stop)
        asked.send(_ANSWER.pack(number))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as owner:
        try:
            serve(owner, int(sys.argv[2]))
        except (ConnectionError, struct.error):  # the owner has ended
            sys.exit(1)
