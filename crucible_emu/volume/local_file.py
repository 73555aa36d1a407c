"""Blocks of a local file (upstairs-volume.md §11.11).

What it is for: a disk image on this machine as a part of a volume: written as a sub-volume, only read as a parent or
where the file cannot be written.

What it guarantees: requests take effect in the order in which they were submitted, and the loop is not held up. What
the page cache has is read at once, and short writes are done at once; from the first request on that would wait for the
device, everything queues behind it, and one task works the queue off with threads: runs of reads together, each change
and flush by itself. A flush is ``fdatasync``; when one has failed, so do all that follow.

All blocks count as written, so nothing shows through from a parent below; write-unwritten is not supported.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path
from uuid import UUID

import trio

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Completed, Kind, Request
from crucible_emu.errors import UsageError
from crucible_emu.volume.backend import Backend

SHORT_BYTES = 65536
"""A write of up to so many bytes goes to the page cache at once: 10 µs, where a thread costs 60."""
PIECE_BYTES = 1 << 20
"""A read of up to so many bytes is tried at once: 100 µs, where all of it is in memory."""
READS_AT_ONCE = 8
QUEUED_REQUESTS_MAX = 256
NOT_TO_BE_WRITTEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NOWAIT = getattr(os, "RWF_NOWAIT", None)
"""Where the kernel cannot say what is in memory, every read goes to a thread."""


class LocalFile(Backend):
    """The file ``path`` as blocks; call :meth:`close`. Raises :class:`UsageError` where it is not one of whole blocks.

    With ``read_only`` it is not written; a file that may not be written is read-only by itself.
    """

    def __init__(self, path: Path, block_size: int, *, read_only: bool = False, backend_id: UUID | None = None) -> None:
        super().__init__(self, backend_id)
        self.path = path
        self._block_size = block_size
        self._fd, self._read_only = _open(path, read_only)
        try:
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            if self._size_bytes == 0 or self._size_bytes % block_size:
                raise UsageError(
                    f"the file {path} has {self._size_bytes} bytes, which is not made of whole blocks of {block_size} "
                    "bytes: pad it"
                )
        except BaseException:
            os.close(self._fd)
            raise
        self._queue: deque[tuple[Request, Completed]] = deque()
        self._busy = False
        self._sync_error: OSError | None = None
        self._wanted = trio.Event()
        self._room = trio.Event()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    # -- what a door asks ---------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Of the file as it was opened, or as the last activation found it."""
        return self._size_bytes

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def read_only(self) -> bool:
        return self._read_only

    def submit(self, requests: list[Request], completed: Completed) -> None:
        done: list[Request] = []
        for request in requests:
            request.error = self._refusal(request)
            if request.error is not None or (not self._busy and not self._queue and self._at_once(request)):
                if request.error is None and request.owned is not None:
                    request.owned[:] = True
                done.append(request)
            else:
                self._queue.append((request, completed))
                self._wanted.set()
        if done:
            completed(done)

    async def wait_for_room(self) -> None:
        while len(self._queue) >= QUEUED_REQUESTS_MAX:
            self._room = trio.Event()
            await self._room.wait()

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        """One run: every block counts as written."""
        await trio.lowlevel.checkpoint()
        return [Allocation(length, 1)]

    # -- life ---------------------------------------------------------------------------------------------------------

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        """Looks at the file's length once more: a volume notices when it has changed."""
        self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        await trio.lowlevel.checkpoint()

    async def deactivate(self) -> None:
        """Make everything durable."""
        try:
            await trio.to_thread.run_sync(self._sync)
        except OSError as error:
            raise _io_error(self.path, error) from error

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work off what cannot be done at once."""
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            self._busy = True
            try:
                while self._queue:
                    await self._work_off(self._next_group())
            finally:
                self._busy = False

    # -- requests -----------------------------------------------------------------------------------------------------

    def _refusal(self, request: Request) -> errors.CrucibleError | None:
        offset, length = request.offset, request.length
        if request.kind is Kind.FLUSH:
            return None
        if offset % self._block_size:
            return errors.OffsetUnaligned()
        if length % self._block_size:
            return errors.DataLenUnaligned()
        if offset < 0 or offset + length > self._size_bytes:
            return errors.OffsetInvalid()
        if request.kind is Kind.WRITE_UNWRITTEN:
            return errors.Unsupported("a file does not know which of its blocks were written")
        if request.kind is not Kind.READ and self._read_only:
            return errors.ModifyingReadOnlyRegion()
        return None

    def _at_once(self, request: Request) -> bool:
        """Whether the request is done without waiting for a device. *Optimisation*."""
        if request.kind is Kind.TRIM or (not request.length and request.kind is not Kind.FLUSH):
            return True
        try:
            if request.kind is Kind.READ and NOWAIT is not None and request.length <= PIECE_BYTES:
                assert request.buffer is not None
                return os.preadv(self._fd, [request.buffer], request.offset, NOWAIT) == request.length
            if request.kind is Kind.WRITE and request.length <= SHORT_BYTES and not request.fua:
                assert request.buffer is not None
                return os.pwrite(self._fd, request.buffer, request.offset) == request.length
        except OSError:
            return False  # the thread meets the same error and reports it, or does not meet it
        return False

    def _next_group(self) -> list[tuple[Request, Completed]]:
        """What may be done together: a run of reads, or one other request."""
        group = [self._queue.popleft()]
        while group[0][0].kind is Kind.READ and self._queue and self._queue[0][0].kind is Kind.READ:
            if len(group) == READS_AT_ONCE:
                break
            group.append(self._queue.popleft())
        if len(self._queue) < QUEUED_REQUESTS_MAX:
            self._room.set()
        return group

    async def _work_off(self, group: list[tuple[Request, Completed]]) -> None:
        if len(group) == 1:
            await self._perform(group[0][0])
        else:
            async with trio.open_nursery() as nursery:
                for request, _ in group:
                    nursery.start_soon(self._perform, request)
        for request, completed in group:
            completed([request])

    async def _perform(self, request: Request) -> None:
        """In a thread. A request that has begun is finished, also when cancelled: its buffer is in use."""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._transfer, request)
        except OSError as error:
            request.error = _io_error(self.path, error)
        else:
            if request.owned is not None:
                request.owned[:] = True

    def _transfer(self, request: Request) -> None:
        if request.kind is Kind.READ:
            assert request.buffer is not None
            _read_all(self._fd, request.buffer, request.offset)
        elif request.kind is Kind.WRITE:
            assert request.buffer is not None
            _write_all(self._fd, request.buffer, request.offset)
        elif request.kind is Kind.WRITE_ZEROES:
            zeros = memoryview(bytes(min(PIECE_BYTES, request.length)))
            for at in range(0, request.length, PIECE_BYTES):
                _write_all(self._fd, zeros[: request.length - at], request.offset + at)
        if request.fua or request.kind is Kind.FLUSH:
            self._sync()

    def _sync(self) -> None:
        """Make what was written durable. *Safety*: when it has failed once, the kernel takes the pages for clean, and
        another sync would succeed without them; so none does."""
        if self._sync_error is not None:
            raise self._sync_error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_error = error
            raise


def _open(path: Path, read_only: bool) -> tuple[int, bool]:
    """Descriptor, and whether it can only be read. Raises :class:`UsageError`."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{path} is neither a file nor a block device: name one")
        if not read_only:
            try:
                return os.open(path, os.O_RDWR | os.O_CLOEXEC), False
            except OSError as error:
                if error.errno not in NOT_TO_BE_WRITTEN:
                    raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), True
    except ValueError:
        raise UsageError("the path of a file has a zero byte in it: no file is named so") from None
    except OSError as error:
        raise UsageError(f"cannot open the file {path}: {(error.strerror or str(error)).lower()}") from None


def _io_error(path: Path, error: OSError) -> errors.IoError:
    return errors.IoError(f"{path}: {(error.strerror or str(error)).lower()}")


def _read_all(fd: int, out: memoryview, offset: int) -> None:
    while out:
        done = os.preadv(fd, [out], offset)
        if not done:
            raise OSError("the file ends here: it has become shorter")
        out, offset = out[done:], offset + done


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
