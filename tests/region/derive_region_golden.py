"""Derive ``tests/data/region_golden.json`` from the reference model of the format (``disk_examples.py``).

    python tests/region/derive_region_golden.py path/to/spec

Two things are kept, in a form of our own: the bytes of the two extents that the format's description dumps (Appendix
A), as runs of non-zero bytes; and what the reference model answers to, and leaves on disk after, some random op
scripts (:mod:`op_scripts`), as digests. The tests need this file and nothing outside the checkout.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from op_scripts import random_script

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "region_golden.json"
SCRIPTS = 60
APPENDIX_A = {"512x100": (512, 100), "4096x16": (4096, 16)}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def nonzero_runs(data: bytes) -> dict[str, str]:
    """Offset to hex for every stretch of bytes between two stretches of at least 16 zeros."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        if data[position] == 0:
            position += 1
            continue
        end = position
        while end < len(data) and data[end : end + 16].strip(b"\0"):
            end += 1
        found[str(position)] = data[position:end].rstrip(b"\0").hex()
        position = end
    return found


def appendix_a(model: Any, block_size: int, blocks: int) -> dict[str, dict[str, str]]:
    """Everything but the block data, after each of the four steps of Appendix A."""
    one, nine, two = (bytes([value]) * block_size for value in (1, 9, 2))
    steps = {}
    with tempfile.TemporaryDirectory() as directory:
        extent = model.RawExtent.create(directory, 0, block_size, blocks)
        path = Path(model.extent_path(directory, 0))

        def keep(name: str) -> None:
            steps[name] = nonzero_runs(path.read_bytes()[extent.L.a :])

        seal = (model.DEMO_NONCE, model.DEMO_TAG)
        extent.write(0, one, [(model.xxh64(one), None)])
        extent.write(1, nine, [(model.xxh64(*seal, nine), seal)])
        keep("written")
        extent.flush(70000, 3)
        keep("flushed")
        extent.write(0, two, [(model.xxh64(two), None)])
        keep("overwritten")
        extent.write(0, one, [(model.xxh64(one), None)])
        extent.flush(70001, 3)
        keep("flushed again")
        extent.close()
    return steps


def scripts(model: Any) -> list[dict[str, Any]]:
    found = []
    for seed in range(SCRIPTS):
        script = random_script(seed)
        with tempfile.TemporaryDirectory() as directory:
            answers, extent = model.run_script(directory, script)
            counters = {"bonus_syncs": extent.bonus, "defragmentations": extent.defrag}
            extent.close()
            files = [Path(directory, "region.json").read_bytes(), Path(model.extent_path(directory, 0)).read_bytes()]
        found.append(
            {
                "seed": seed,
                "script": digest(script.encode()),
                "answers": digest("\n".join(answers).encode()),
                "files": digest(*files),
                **counters,
            }
        )
    return found


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import disk_examples as model

    golden = {
        "appendix_a": {name: appendix_a(model, *geometry) for name, geometry in APPENDIX_A.items()},
        "scripts": scripts(model),
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
