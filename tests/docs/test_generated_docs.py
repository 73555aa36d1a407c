"""Generated documents equal what their generator would write now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_state_machines_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = (DOCS / "state-machines.md").read_text(encoding="utf-8")
    assert written == generate.render(), "run: python docs/generate.py"
