"""SIGKILL an agent at random instants: a slice of the long run, and proof that its comparison can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kill_agent
import pytest
from agent_rig import A, B
from kill_agent import RegionModel, SnapshotModel, Violation, World


@pytest.mark.long
def test_an_agent_survives_kills() -> None:
    """Four kills. In full: ``python tests/agent/kill_agent.py --kills 200``."""
    world = kill_agent.run(4, seed=3)
    assert all(region.possible == {"destroyed"} for region in world.regions.values())


@pytest.mark.long
def test_an_agent_with_isolated_downstairs_survives_kills() -> None:
    """One kill. In full: ``python tests/agent/kill_agent.py --kills 100 --isolate``."""
    kill_agent.run(1, seed=4, isolate=True)


class TamperedWorld(World):
    """A world whose agent is a document."""

    def __init__(self, directory: Path, found: dict[str, Any], snapshots: dict[str, Any] | None = None) -> None:
        super().__init__(directory, "127.0.0.1:1", seed=1, isolate=False)
        self.found, self.snapshots = found, snapshots or {"snapshots": [], "running_snapshots": {}}

    async def get(self, path: str) -> Any:
        if path == "":
            return [dict(each) for each in self.found.values()]
        if path.endswith("/digest"):
            return {"state": "done", "digest": kill_agent.digest_of(5)}
        return self.snapshots

    async def look_into(self, region: RegionModel) -> None:
        """Nobody runs."""


def listed(region_id: str, port: int = 19000, state: str = "created") -> dict[str, Any]:
    return {"id": region_id, "port_number": port, "state": state}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with region A and its snapshot s."""
    (tmp_path / "regions" / A / ".zfs" / "snapshot" / "s").mkdir(parents=True)
    (tmp_path / "crucible.json").touch()
    return tmp_path


def true_world(directory: Path, **changes: Any) -> TamperedWorld:
    found = changes.pop("found", {A: listed(A)})
    snapshots = {"snapshots": [{"name": name} for name in changes.pop("names", ["s"])], "running_snapshots": {}}
    world = TamperedWorld(directory, found, snapshots)
    world.regions[A] = RegionModel(A, False, changes.pop("possible", {"created"}))
    world.regions[A].snapshots["s"] = SnapshotModel(changes.pop("fill", 5), {"there"})
    return world


async def test_a_true_story_passes(directory: Path) -> None:
    await true_world(directory).compare()


TAMPERED: dict[str, dict[str, Any]] = {
    "nobody asked for": {"found": {A: listed(A), B: listed(B, 19001)}},
    "both|belongs to": {"found": {A: listed(A), B: listed(B)}},
    "is created, and may be": {"possible": {"destroyed"}},
    "is absent, and may be": {"found": {}},
    "failed": {"found": {A: listed(A, state="failed")}},
    "nobody took": {"names": ["s", "t"]},
    "s of .* is absent": {"names": []},
    "does not hold what was written": {"fill": 6},
}


@pytest.mark.parametrize("said", TAMPERED)
async def test_a_tampered_story_is_found(directory: Path, said: str) -> None:
    with pytest.raises(Violation, match=said):
        await true_world(directory, **TAMPERED[said]).compare()


async def test_a_port_that_moves_is_found(directory: Path) -> None:
    world = true_world(directory)
    world.ports[A, None] = 19007
    with pytest.raises(Violation, match="had port 19007, and now has 19000"):
        await world.compare()


@pytest.mark.parametrize(
    "leaked",
    [".crucible.json.new", f"regions/.making-{B}", f"regions/.removing-{A}", f"regions/{A}/.zfs/snapshot/.making-t"],
)
async def test_what_is_left_over_is_found(directory: Path, leaked: str) -> None:
    (directory / leaked).mkdir()
    with pytest.raises(Violation):
        await true_world(directory).compare()
