"""Nothing of the terminal's environment names a rack to the tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_rack_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRUCIBLE_RACK", raising=False)
