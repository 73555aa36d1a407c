"""The data file of an agent, ``crucible.json``, and the lock of its directory (apis-and-tools.md §1.7).

What it guarantees: at any instant, whatever kills the process or the machine, the file holds the records before a save
or those after it; when :meth:`Store.save` returns, those after it are durable. One agent has a directory at a time.

How: the text goes to a temporary file, which is synced and renamed, and the directory is synced. What an interrupted
save leaves is removed when the directory is opened.
"""

from __future__ import annotations

import os
from pathlib import Path

from crucible_emu.agent.records import Records, dumps, loads
from crucible_emu.errors import UsageError
from crucible_emu.region.storage import OsStorage

DATA_FILE = "crucible.json"
TEMPORARY = ".crucible.json.new"
PRIVATE = 0o600
"""Records hold private keys."""


class Store:
    """The data file in ``directory``, which is made where it is missing. Close it to give the directory back.

    Raises :class:`UsageError` where ``directory`` is none, or another agent has it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / DATA_FILE
        self._directory = directory
        self._storage = OsStorage()
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is no directory: name one for the agent's regions")
        directory.mkdir(parents=True, exist_ok=True)
        lock = self._storage.lock(directory)
        if lock is None:
            raise UsageError(f"another agent has {directory}: stop that one, or name another directory")
        self._lock = lock

    def close(self) -> None:
        """Give the directory back."""
        os.close(self._lock)

    def load(self) -> Records:
        """The records; none where there is no file yet. Raises :class:`UsageError` for a file that is none of ours."""
        (self._directory / TEMPORARY).unlink(missing_ok=True)
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Records()
        except UnicodeDecodeError:
            raise UsageError(f"{self.path} is no data file of an agent: it is no text") from None
        # What a power cut could still take back must not be acted upon: the rename may be younger than its sync.
        self._storage.sync_directory(self._directory)
        return loads(text, str(self.path))

    def save(self, records: Records) -> None:
        """Write ``records``; durable when it returns. Raises :class:`OSError`; then the file holds these or those
        before."""
        temporary = self._directory / TEMPORARY
        data = dumps(records).encode()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        try:
            self._storage.pwrite(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, self.path)
        self._storage.sync_directory(self._directory)
