"""Import and export: what goes in comes out, wherever it starts and however long it is."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import closing

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted_storage import interrupted_everywhere
from region_builder import ExtentFile, definition, patterned, save_region

from crucible_emu import errors
from crucible_emu.region import Region, directory, layout, transfer, verify
from crucible_emu.region.digest import volume_digest
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView


def imported(path, found, content, *, sparse=False, **settings):
    with closing(Region.create(path, found, **settings)) as region:
        return transfer.import_image(region, io.BytesIO(content), sparse=sparse)


def exported(path, **options):
    out = io.BytesIO()
    transfer.export_image(RegionView.open(path), out, **options)
    return out.getvalue()


class TestImport:
    def test_numbers_after_an_import_are_those_of_the_real_program(self, tmp_path):
        """Written extents end with flush 1 and generation 0, untouched ones stay at 0 and 0."""
        imported(tmp_path / "r", definition(512, 10, 3), patterned(512 * 12, 1))
        with closing(Region.open(tmp_path / "r", read_only=True)) as region:
            gens, flushes, dirty = (versions.tolist() for versions in region.extent_versions())
        assert (gens, flushes, dirty) == ([0, 0, 0], [1, 1, 0], [False] * 3)

    def test_tail_is_filled_up_with_zeros(self, tmp_path):
        content = patterned(512 * 2 + 100, 1)
        done = imported(tmp_path / "r", definition(512, 10, 1), content)
        assert done == transfer.Imported(1124, 3, 0)
        assert exported(tmp_path / "r") == content.ljust(5120, b"\0")

    def test_blocks_of_zeros_are_written_without_sparse(self, tmp_path):
        done = imported(tmp_path / "r", definition(512, 10, 1), bytes(5120))
        assert done == transfer.Imported(5120, 10, 0)
        with closing(Region.open(tmp_path / "r", read_only=True)) as region:
            assert region.written(0, 10).all()

    def test_blocks_of_zeros_are_left_out_with_sparse(self, tmp_path):
        content = bytes(512) + patterned(512, 1) + bytes(512 * 7) + patterned(512, 2)
        done = imported(tmp_path / "r", definition(512, 10, 1), content, sparse=True)
        assert done == transfer.Imported(5120, 2, 8)
        with closing(Region.open(tmp_path / "r", read_only=True)) as region:
            assert region.written(0, 10).nonzero()[0].tolist() == [1, 9]
        assert exported(tmp_path / "r") == content

    def test_sparse_still_overwrites_old_data(self, tmp_path):
        imported(tmp_path / "r", definition(512, 10, 1), patterned(5120, 1))
        with closing(Region.open(tmp_path / "r")) as region:
            transfer.import_image(region, io.BytesIO(bytes(1024)), sparse=True)
        assert exported(tmp_path / "r") == bytes(1024) + patterned(5120, 1)[1024:]

    def test_a_second_import_counts_up(self, tmp_path):
        imported(tmp_path / "r", definition(512, 10, 1), patterned(512, 1))
        with closing(Region.open(tmp_path / "r")) as region:
            region.write(np.arange(1), np.ones((1, 512), np.uint8), contexts_of(np.ones((1, 512), np.uint8)))
            region.flush(7, 4)
            transfer.import_image(region, io.BytesIO(patterned(512, 2)))
            gens, flushes, _ = region.extent_versions()
        assert (gens.tolist(), flushes.tolist()) == ([4], [8])

    def test_memory_for_writes_may_be_small(self, tmp_path):
        content = patterned(512 * 300, 1)
        imported(tmp_path / "r", definition(512, 100, 3), content, staged_bytes_max=512 * 16)
        assert exported(tmp_path / "r") == content

    def test_encrypted_region_takes_no_plain_image(self, tmp_path):
        with pytest.raises(errors.UsageError, match="attach to it with its key"):
            imported(tmp_path / "r", definition(512, 10, 1, encrypted=True), bytes(512))

    def test_image_that_does_not_fit(self, tmp_path):
        with pytest.raises(errors.UsageError, match="bigger than the region, which holds 5120 bytes"):
            imported(tmp_path / "r", definition(512, 10, 1), bytes(5121))

    def test_empty_image(self, tmp_path):
        assert imported(tmp_path / "r", definition(512, 10, 1), b"") == transfer.Imported(0, 0, 0)

    def test_what_was_imported_verifies(self, tmp_path):
        imported(tmp_path / "r", definition(4096, 100, 2), patterned(4096 * 150, 1))
        assert list(verify.verify_region(RegionView.open(tmp_path / "r"))) == []


def contexts_of(rows):
    from crucible_emu.integrity import BlockContexts, hash_blocks

    return BlockContexts.plain(hash_blocks(rows))


class TestExport:
    @pytest.fixture
    def path(self, tmp_path):
        imported(tmp_path / "r", definition(512, 10, 3), patterned(512 * 30, 1))
        return tmp_path / "r"

    @given(skip=st.integers(0, 30), count=st.integers(0, 30))
    @settings(max_examples=60)
    def test_skip_and_count_are_blocks_everywhere(self, tmp_path_factory, skip, count):
        path = tmp_path_factory.getbasetemp() / "exported"
        if not path.exists():
            imported(path, definition(512, 10, 3), patterned(512 * 30, 1))
        whole = patterned(512 * 30, 1)
        if skip + count > 30:
            with pytest.raises(errors.UsageError, match="go beyond the region, whose blocks are 0 to 29"):
                exported(path, skip_blocks=skip, count_blocks=count)
            return
        stop = (skip + count) * 512 if count else None
        assert exported(path, skip_blocks=skip, count_blocks=count) == whole[skip * 512 : stop]

    def test_equals_the_import(self, path):
        assert blake3(exported(path)).hexdigest() == volume_digest(RegionView.open(path))
        assert exported(path) == patterned(512 * 30, 1)

    def test_holes_stay_holes_in_a_file(self, tmp_path):
        with closing(Region.create(tmp_path / "r", definition(4096, 4096, 2))):
            pass
        with open(tmp_path / "image", "wb") as out:
            transfer.export_image(RegionView.open(tmp_path / "r"), out, sparse=True)
        found = os.stat(tmp_path / "image")
        assert found.st_size == 2 * 4096 * 4096
        assert found.st_blocks == 0

    def test_encrypted_region_gives_what_is_stored(self, tmp_path):
        extent = ExtentFile(512, 10)
        extent.write(3, patterned(512, 3), (bytes(12), bytes(16)))
        path = save_region(tmp_path / "r", definition(512, 10, 1, encrypted=True), [extent])
        assert exported(path, skip_blocks=3, count_blocks=1) == patterned(512, 3)

    def test_progress_counts_bytes(self, path):
        done = []
        exported(path, skip_blocks=5, progress=done.append)
        assert sum(done) == 25 * 512


class TestGrowing:
    def test_region_grows_to_hold_the_image(self, tmp_path):
        with closing(Region.create(tmp_path / "r", definition(512, 10, 1))):
            pass
        assert transfer.grow_for(tmp_path / "r", 5121).extent_count == 2
        assert transfer.grow_for(tmp_path / "r", 100).extent_count == 2
        with closing(Region.open(tmp_path / "r")) as region:
            assert region.definition.extent_count == 2

    def test_region_in_use_does_not_grow(self, tmp_path):
        with closing(Region.create(tmp_path / "r", definition(512, 10, 1))):
            with pytest.raises(errors.UsageError, match="open read-write elsewhere"):
                transfer.grow_for(tmp_path / "r", 5121)
            assert transfer.grow_for(tmp_path / "r", 5120).extent_count == 1

    def test_region_never_shrinks(self, tmp_path):
        path = save_region(tmp_path / "r", definition(512, 10, 3))
        with pytest.raises(errors.UsageError, match="will not shrink from 3 to 2 extents"):
            directory.extend(OsStorage(), path, 2)

    def test_foreign_file_in_the_way_is_not_overwritten(self, tmp_path):
        path = save_region(tmp_path / "r", definition(512, 10, 1))
        other = ExtentFile(512, 10)
        other.write(0, patterned(512, 1))
        other.flush(1, 1)
        other.save(layout.extent_path(path, 2))
        with pytest.raises(errors.UsageError, match="000/002 is in the way"):
            directory.extend(OsStorage(), path, 3)
        assert RegionView.open(path).definition.extent_count == 1
        assert layout.extent_path(path, 2).read_bytes() == other.content()

    @pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
    def test_interrupted_anywhere_the_region_has_the_old_or_the_new_size(self, tmp_path, kill):
        def prepare():
            shutil.rmtree(tmp_path / "r", ignore_errors=True)
            imported(tmp_path / "r", definition(512, 10, 1), patterned(5120, 1))
            return tmp_path / "r"

        for path in interrupted_everywhere(prepare, lambda disk, path: directory.extend(disk, path, 4), kill=kill):
            with closing(Region.open(path)) as region:
                assert region.definition.extent_count in (1, 4)
            assert directory.extend(OsStorage(), path, 4).extent_count == 4
            assert list(verify.verify_region(RegionView.open(path))) == []
            assert exported(path) == patterned(5120, 1) + bytes(3 * 5120)
