"""The directories of an agent's regions: made, cloned, removed, and their snapshots (apis-and-tools.md §1.6, §1.8).

What it is for: what is a ZFS dataset for the real agent is the directory ``regions/<id>`` here, and a snapshot of it
the directory ``.zfs/snapshot/<name>`` inside, which the region's Downstairs makes as part of a flush.

What it guarantees: a directory ``regions/<id>`` is a whole region with its certificates. It grows as ``.making-<id>``,
is synced, and gets its name by a rename; it goes by a rename to ``.removing-<id>``. So whatever ends the process leaves
a whole region or a name that begins with a dot, and :meth:`Datasets.sweep` removes the latter. Doing anything again is
fine: making starts over, removing what is gone is done.

Everything here waits for the disk: call it in a thread (but for :meth:`Datasets.clone`, which does so itself).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import trio

from crucible_emu.agent.books import definition_of, directory_name
from crucible_emu.agent.documents import CreateRegion, Snapshot, split_address
from crucible_emu.agent.store import PRIVATE
from crucible_emu.downstairs.network_clone import clone_from, open_source
from crucible_emu.errors import SnapshotFailed
from crucible_emu.region import directory, snapshot
from crucible_emu.region.clone import check_compatible
from crucible_emu.region.storage import OsStorage, Storage
from crucible_emu.wire.messages import SocketAddress

REGIONS = "regions"
MAKING, REMOVING = ".making-", ".removing-"


class Datasets:
    """The region directories below ``parent``."""

    def __init__(self, parent: Path, storage: Storage | None = None) -> None:
        self.root = parent / REGIONS
        self._storage = storage or OsStorage()
        if not self._storage.exists(self.root):
            self._storage.make_directories(self.root)
            self._storage.sync_directory(parent)

    def path(self, region_id: str) -> Path | None:
        """The directory of a region, whether it exists or not; ``None`` for an id that can have none."""
        name = directory_name(region_id)
        return None if name is None else self.root / name

    def exists(self, region_id: str) -> bool:
        """Whether the region has files."""
        path = self.path(region_id)
        return path is not None and path.is_dir()

    def held(self) -> set[str]:
        """Ids of all regions that have files, those included that are being made or removed."""
        return {name.removeprefix(MAKING).removeprefix(REMOVING) for name in self._storage.names(self.root)}

    def sweep(self) -> None:
        """Remove what an interruption left: directories that were being made or removed, and such snapshots."""
        for name in sorted(self._storage.names(self.root)):
            if name.startswith((MAKING, REMOVING)):
                self._storage.remove_tree(self.root / name)
            else:
                snapshot.sweep(self.root / name, self._storage)
        self._storage.sync_directory(self.root)

    # Making

    def make(self, wish: CreateRegion) -> None:
        """Make a region of zeros. Raises :class:`UsageError`, a CrucibleError, :class:`OSError`."""
        making = self.begin(wish)
        self.finish(wish, making)

    async def clone(self, wish: CreateRegion) -> None:
        """Make a region with the contents of another, which a read-only Downstairs serves. Raises as :meth:`make`."""
        assert wish.source is not None
        host, port = split_address(wish.source)
        async with open_source(SocketAddress(host, port)) as source:
            check_compatible(source.definition, definition_of(wish))
            making = await trio.to_thread.run_sync(self.begin, wish)
            await clone_from(source, making)
        await trio.to_thread.run_sync(self.finish, wish, making)

    def begin(self, wish: CreateRegion) -> Path:
        """A region of zeros under the name of something that grows; what was begun or made earlier is removed."""
        definition = definition_of(wish)
        self.remove(wish.id)
        making = self.root / (MAKING + wish.id)
        directory.create(self._storage, making, definition)
        return making

    def finish(self, wish: CreateRegion, making: Path) -> None:
        """Put the certificates beside the region, and give it its name."""
        for name, text in (("cert.pem", wish.cert_pem), ("key.pem", wish.key_pem), ("root.pem", wish.root_pem)):
            if text is not None:
                descriptor = self._storage.open(making / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE)
                try:
                    self._storage.pwrite(descriptor, text.encode(), 0)
                finally:
                    self._storage.close(descriptor)
        self._storage.sync_tree(making)
        self._storage.rename(making, self.root / wish.id)
        self._storage.sync_directory(self.root)

    # Removing

    def remove(self, region_id: str) -> None:
        """Remove a region and what was begun of it; nothing there is fine. Raises :class:`OSError`."""
        path = self.path(region_id)
        if path is None:
            return
        removing = self.root / (REMOVING + path.name)
        for leftover in (removing, self.root / (MAKING + path.name)):
            self._storage.remove_tree(leftover)
        if self._storage.exists(path):
            self._storage.rename(path, removing)
            self._storage.sync_directory(self.root)
            self._storage.remove_tree(removing)
        self._storage.sync_directory(self.root)

    # Snapshots

    def snapshots(self, region_id: str) -> list[Snapshot]:
        """Snapshots of a region, by name; none where there is no region."""
        path = self.path(region_id)
        if path is None:
            return []
        found = (self.snapshot(region_id, name) for name in snapshot.list_snapshots(path, self._storage))
        return [each for each in found if each is not None]

    def snapshot(self, region_id: str, name: str) -> Snapshot | None:
        """A snapshot, ``None`` where there is none of that name."""
        path = self.snapshot_path(region_id, name)
        if path is None:
            return None
        try:
            # Nothing changes in it after it was made, and the rename that names it does not change this time.
            made = path.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Snapshot(name=name, created=datetime.fromtimestamp(made, UTC).isoformat().replace("+00:00", "Z"))

    def snapshot_path(self, region_id: str, name: str) -> Path | None:
        """The directory of a snapshot, whether it exists or not; ``None`` for a name that can have none."""
        path = self.path(region_id)
        if path is None:
            return None
        try:
            return snapshot.snapshot_path(path, name)
        except SnapshotFailed:
            return None

    def delete_snapshot(self, region_id: str, name: str) -> None:
        """Delete a snapshot; one that is not there is fine. Raises :class:`SnapshotFailed`."""
        if self.snapshot_path(region_id, name) is not None:
            path = self.path(region_id)
            assert path is not None
            snapshot.delete_snapshot(path, name, self._storage)
