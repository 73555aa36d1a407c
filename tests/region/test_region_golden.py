"""Byte for byte what the reference model writes: Appendix A, and random op scripts.

The suite runs the scripts whose results are kept in ``tests/data/region_golden.json``. Where the specification lies
beside the checkout, it runs some more against the reference model itself; all 500 of the full run with::

    CRUCIBLE_EMU_SCRIPTS=500 python -m pytest tests/region/test_region_golden.py
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from derive_region_golden import APPENDIX_A, GOLDEN, digest, nonzero_runs
from op_scripts import REGION_UUID, ScriptRunner, random_script

from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import ENCRYPTED, BlockContexts, hash_blocks, hash_sealed_blocks
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.region.layout import ExtentLayout, extent_path

KEPT: dict[str, Any] = json.loads(GOLDEN.read_text())
FIRST_FRESH_SEED = 10_000
REFERENCE_MODEL = Path(__file__).resolve().parents[3] / "shared" / "spec"


@pytest.fixture(scope="module")
def model() -> Any:
    if not (REFERENCE_MODEL / "disk_examples.py").exists():
        pytest.skip("the reference model disk_examples.py does not lie beside the checkout")
    sys.path.insert(0, str(REFERENCE_MODEL))
    try:
        yield importlib.import_module("disk_examples")
    finally:
        sys.path.remove(str(REFERENCE_MODEL))


@pytest.mark.parametrize("name", list(APPENDIX_A))
def test_appendix_a(name: str, tmp_path: Path) -> None:
    block_size, blocks = APPENDIX_A[name]
    definition = RegionDefinition(block_size, blocks, 1, REGION_UUID)
    found = {}
    with Region.create(tmp_path / "region", definition, policy=SyncPolicy.ZFS) as region:

        def put(block: int, value: int, seal: tuple[bytes, bytes] | None = None) -> None:
            rows = np.full((1, block_size), value, np.uint8)
            contexts = BlockContexts.plain(hash_blocks(rows))
            if seal is not None:
                nonce, tag = (np.frombuffer(part, np.uint8)[None, :] for part in seal)
                kind = np.array([ENCRYPTED], np.uint8)
                contexts = BlockContexts(kind, hash_sealed_blocks(nonce, tag, rows), nonce, tag)
            region.write(np.array([block]), rows, contexts)

        def keep(step: str) -> None:
            stored = extent_path(region.path, 0).read_bytes()
            found[step] = nonzero_runs(stored[ExtentLayout(block_size, blocks).data_bytes :])

        put(0, 1)
        put(1, 9, (bytes(range(0x10, 0x1C)), bytes(range(0xA0, 0xB0))))
        keep("written")
        region.flush(70000, 3)
        keep("flushed")
        put(0, 2)
        keep("overwritten")
        put(0, 1)
        region.flush(70001, 3)
        keep("flushed again")
    assert found == KEPT["appendix_a"][name]


@pytest.mark.parametrize("kept", KEPT["scripts"], ids=lambda kept: str(kept["seed"]))
def test_kept_scripts(kept: dict[str, Any], tmp_path: Path) -> None:
    script = random_script(kept["seed"])
    assert digest(script.encode()) == kept["script"], "the generator of scripts changed: derive the golden data anew"
    runner = ScriptRunner(tmp_path / "region")
    answers = runner.run(script)
    assert digest("\n".join(answers).encode()) == kept["answers"]
    assert digest(*runner.files().values()) == kept["files"]


def test_kept_scripts_reach_the_rare_branches() -> None:
    assert sum(kept["bonus_syncs"] for kept in KEPT["scripts"]) > 50
    assert sum(kept["defragmentations"] for kept in KEPT["scripts"]) > 5


@pytest.mark.long
def test_fresh_scripts_against_the_reference_model(model: Any, tmp_path: Path) -> None:
    count = int(os.environ.get("CRUCIBLE_EMU_SCRIPTS", "8"))
    for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + count):
        script = random_script(seed)
        theirs, ours = tmp_path / f"theirs{seed}", tmp_path / f"ours{seed}"
        theirs.mkdir()
        expected, extent = model.run_script(str(theirs), script)
        extent.close()
        runner = ScriptRunner(ours)
        assert runner.run(script) == expected, f"seed {seed}"
        files = runner.files()
        assert files == {name: (theirs / name).read_bytes() for name in files}, f"seed {seed}"


@pytest.mark.parametrize("policy", [policy for policy in SyncPolicy if policy is not SyncPolicy.ZFS])
def test_other_policies_answer_the_same(policy: SyncPolicy, tmp_path: Path) -> None:
    """Their files differ in slots and counters, what a guest sees does not; but a staged write dies with the process,
    so these scripts do not reopen."""
    for kept in KEPT["scripts"][:20]:
        lines = [line for line in random_script(kept["seed"]).splitlines() if not line.startswith("open")]
        script = "\n".join(lines)
        zfs = ScriptRunner(tmp_path / f"zfs{kept['seed']}").run(script)
        other = ScriptRunner(tmp_path / f"other{kept['seed']}", policy).run(script)
        assert other == zfs
