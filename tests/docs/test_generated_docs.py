"""Generated documents equal what their generator would write now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    "name", ["state-machines.md", "conformance.md", "nexus-database.md", "replacement.md", "profile.md"]
)
def test_documents_are_what_the_generator_writes(name: str) -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == generate.DOCUMENTS[name](), "run: python docs/generate.py"
