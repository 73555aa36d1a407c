"""Clones: what may become a clone of what, and that every extent arrives whole."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import trio
from region_builder import UUIDS, ExtentFile, definition, patterned, save_region

from crucible_emu import errors
from crucible_emu.region import Region, clone, layout, snapshot
from crucible_emu.region.digest import region_digest
from crucible_emu.region.repair_files import FileType
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView


@pytest.fixture
def source(tmp_path):
    extents = []
    for extent_id in range(3):
        extent = ExtentFile(512, 10)
        extent.write(extent_id, patterned(512, extent_id))
        extent.flush(extent_id + 1, 1)
        extents.append(extent)
    return RegionView.open(save_region(tmp_path / "source", definition(uuid=UUIDS[0]), extents))


def extents_of(region):
    return [layout.extent_path(region.path, extent).read_bytes() for extent in range(region.definition.extent_count)]


class TestCompatible:
    @pytest.mark.parametrize(
        ("other", "field"),
        [
            (definition(block_size=1024, uuid=UUIDS[1]), "block_size"),
            (definition(blocks=20, uuid=UUIDS[1]), "extent_size"),
            (definition(extents=4, uuid=UUIDS[1]), "extent_count"),
            (definition(encrypted=True, uuid=UUIDS[1]), "encrypted"),
            (definition(uuid=UUIDS[0]), "UUIDs are the same"),
            (definition(block_size=1024, blocks=20, uuid=UUIDS[0]), "block_size"),
        ],
    )
    def test_first_difference_is_named(self, other, field):
        with pytest.raises(errors.RegionIncompatible) as caught:
            clone.check_compatible(definition(uuid=UUIDS[0]), other)
        assert caught.value.detail == field

    def test_another_uuid_is_all_that_differs(self):
        clone.check_compatible(definition(uuid=UUIDS[0]), definition(uuid=UUIDS[1]))


class TestNew:
    def test_clone_has_the_same_files_and_another_uuid(self, source, tmp_path):
        done = []
        found = clone.clone_definition(source.definition, UUIDS[1])
        clone.clone_new(source, tmp_path / "clone", found, lambda: done.append(1))
        cloned = RegionView.open(tmp_path / "clone")
        assert cloned.definition == definition(uuid=UUIDS[1])
        assert extents_of(cloned) == extents_of(source)
        assert len(done) == 3
        assert region_digest(cloned) == region_digest(source)
        with closing(Region.open(tmp_path / "clone")) as region:
            assert region.extent_versions()[1].tolist() == [1, 2, 3]

    def test_damaged_source_is_not_cloned(self, source, tmp_path):
        with layout.extent_path(source.path, 1).open("r+b") as file:
            file.write(b"damage")
        with pytest.raises(errors.RepairFilesInvalid, match="block 0 is not what its context says"):
            clone.clone_new(source, tmp_path / "clone", clone.clone_definition(source.definition, UUIDS[1]))
        assert not (tmp_path / "clone" / "region.json").exists()


class TestOver:
    def test_every_extent_is_replaced(self, source, tmp_path):
        target = RegionView.open(save_region(tmp_path / "target", definition(uuid=UUIDS[1])))
        clone.clone_over(source, target)
        assert extents_of(target) == extents_of(source)
        assert RegionView.open(target.path).definition.uuid == UUIDS[1]

    def test_incompatible_target_is_untouched(self, source, tmp_path):
        target = RegionView.open(save_region(tmp_path / "target", definition(extents=2, uuid=UUIDS[1])))
        before = extents_of(target)
        with pytest.raises(errors.RegionIncompatible):
            clone.clone_over(source, target)
        assert extents_of(target) == before

    def test_a_region_that_is_served_cannot_be_copied(self, source):
        served = closing(Region.open(source.path))
        with served, pytest.raises(errors.UsageError, match="open read-write elsewhere"), clone.unwritten(source):
            raise AssertionError("it was let in")
        with clone.unwritten(source), pytest.raises(errors.UsageError):
            Region.open(source.path)
        with closing(Region.open(source.path)):
            pass


class TestSourceDirectory:
    def test_region_or_snapshot(self, source):
        assert clone.source_directory(source.path, None) == source.path
        found = snapshot.take_snapshot(source.path, "monday", source.definition)
        assert clone.source_directory(source.path, "monday") == found

    def test_unknown_snapshot_names_those_there_are(self, source):
        with pytest.raises(errors.UsageError, match="no snapshot 'monday'; its snapshots are: none"):
            clone.source_directory(source.path, "monday")
        snapshot.take_snapshot(source.path, "sunday", source.definition)
        with pytest.raises(errors.UsageError, match="its snapshots are: sunday"):
            clone.source_directory(source.path, "monday")

    def test_no_region(self, tmp_path):
        with pytest.raises(errors.UsageError, match="is no region"):
            clone.source_directory(tmp_path / "nothing", "monday")


class SlowSource:
    """A source behind a network: it waits everywhere, and counts what is asked of it."""

    def __init__(self, region: Path) -> None:
        self._files = clone.LocalSource(OsStorage(), region)
        self.asked: list[str] = []

    async def files(self, extent_id):
        self.asked.append("files")
        await trio.lowlevel.checkpoint()
        return await self._files.files(extent_id)

    async def stream(self, extent_id, kind):
        self.asked.append(kind.value)
        async for piece in self._files.stream(extent_id, kind):
            for start in range(0, len(piece), 999):
                await trio.lowlevel.checkpoint()
                yield piece[start : start + 999]

    async def ready(self, extent_id):
        self.asked.append("ready")
        await trio.lowlevel.checkpoint()
        return True


class TestNetwork:
    async def test_the_same_procedure_waits_for_a_network(self, source, tmp_path):
        target = RegionView.open(save_region(tmp_path / "target", definition(uuid=UUIDS[1])))
        network = SlowSource(source.path)
        for extent_id in range(3):
            await clone.copy_extent(
                OsStorage(),
                target.path,
                extent_id,
                target.layout,
                network,
                cloning=True,
                in_thread=trio.to_thread.run_sync,
            )
        assert extents_of(target) == extents_of(source)
        assert network.asked == ["files", FileType.DATA.value, "ready"] * 3

    async def test_cancelled_download_leaves_the_extent_and_nothing_else(self, source, tmp_path):
        target = RegionView.open(save_region(tmp_path / "target", definition(uuid=UUIDS[1])))
        before = extents_of(target)

        class Endless(SlowSource):
            async def stream(self, extent_id, kind):
                scope.cancel()
                yield b"some"
                await trio.sleep_forever()

        with trio.CancelScope() as scope:
            await clone.copy_extent(OsStorage(), target.path, 0, target.layout, Endless(source.path), cloning=False)
        assert scope.cancelled_caught
        assert extents_of(target) == before
        assert [file.name for file in layout.extent_path(target.path, 0).parent.iterdir() if file.is_dir()] == []

    def test_a_procedure_that_waits_needs_an_event_loop(self):
        class Never:
            def __await__(self):
                yield

        async def waits():
            await Never()

        with pytest.raises(RuntimeError, match="needs an event loop"):
            clone.run_now(waits())
