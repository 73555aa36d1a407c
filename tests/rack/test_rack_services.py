"""A rack of the real services: how much it takes to start one, and what becomes of blocks when its parts die."""

from __future__ import annotations

import base64
import os
import resource
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import rack_rig
from rack_rig import REAL, call, end_by_force, nothing_left, processes_of, states, urls, wait_until

CPU_S_MAX = 4.0
"""What a rack of five sleds may cost until it is ready. On two cores that is well under five seconds, whatever else the
machine does while this is measured."""
BLOCK, EXTENT_BLOCKS, EXTENTS = 512, 256, 4

rack = partial(rack_rig.rack, program=REAL)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rack"
    yield path
    end_by_force(path)


def cpu_s(pid: int) -> float:
    user, system = Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_five_sleds_are_ready_for_little(root: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    up = rack("up", root, "--sleds", 5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert set(states(up).values()) == {"ready"} and len(up["services"]) == 12
    command_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert command_s + sum(map(cpu_s, processes_of(root))) < CPU_S_MAX
    rack("down", root)
    assert nothing_left(root)


class Disk:
    """A disk with a replica on each of three sleds, attached to the pantry of the first."""

    id = UUID(int=1)

    def __init__(self, up: dict[str, Any]) -> None:
        self.agents = [urls(up)[f"sled{index}-disk0"] for index in range(3)]
        self.volume = f"{urls(up)['sled0-pantry']}/crucible/pantry/0/volume/{self.id}"
        self.generation = 0

    def make(self) -> None:
        wanted = {"block_size": BLOCK, "extent_size": EXTENT_BLOCKS, "extent_count": EXTENTS, "encrypted": False}
        for index, agent in enumerate(self.agents):
            call("POST", f"{agent}/crucible/0/regions", "1.0.0", {"id": str(UUID(int=10 + index)), **wanted})
        wait_until(lambda: all(region["state"] == "created" for region in self.regions()))

    def regions(self) -> list[dict[str, Any]]:
        return [region for agent in self.agents for region in call("GET", f"{agent}/crucible/0/regions", "1.0.0")]

    def attach(self) -> None:
        self.generation += 1
        targets = [
            f"[{urlsplit(agent).hostname}]:{region['port_number']}"
            for agent, region in zip(self.agents, self.regions(), strict=True)
        ]
        region_set = {
            "type": "region",
            "block_size": BLOCK,
            "blocks_per_extent": EXTENT_BLOCKS,
            "extent_count": EXTENTS,
            "gen": self.generation,
            "opts": {"id": str(self.id), "target": targets, "lossy": False, "read_only": False},
        }
        request = {"type": "volume", "id": str(self.id), "block_size": BLOCK, "sub_volumes": [region_set]}
        call("POST", self.volume, "2.0.0", {"volume_construction_request": {**request, "read_only_parent": None}})

    def write(self, offset: int, data: bytes) -> None:
        encoded = base64.b64encode(data).decode()
        call("POST", f"{self.volume}/bulk-write", "2.0.0", {"offset": offset, "base64_encoded_data": encoded})

    def read(self, offset: int, size: int) -> bytes:
        answer = call("POST", f"{self.volume}/bulk-read", "2.0.0", {"offset": offset, "size": size})
        return base64.b64decode(answer["base64_encoded_data"])

    def detach(self) -> None:
        call("DELETE", self.volume, "2.0.0")


@pytest.mark.parametrize("isolate", [False, True], ids=["tasks", "processes"])
def test_blocks_survive_the_death_of_a_sled_and_of_the_supervisor(root: Path, isolate: bool) -> None:
    up = rack("up", root, "--sleds", 3, "--pantries", 1, *(["--isolate"] if isolate else []))
    disk = Disk(up)
    disk.make()
    disk.attach()
    first, second = os.urandom(64 * BLOCK), os.urandom(64 * BLOCK)
    disk.write(0, first)
    rack("kill", root, "sled2")
    disk.write(len(first), second)  # two of three replicas are enough
    assert disk.read(0, len(first) * 2) == first + second
    assert urls(rack("start", root, "sled2")) == urls(up)
    disk.detach()
    disk.attach()  # with all three: what sled2 has missed is reconciled
    disk.detach()
    os.kill(rack("status", root)["pid"], signal.SIGKILL)
    assert urls(rack("up", root)) == urls(up)
    rack("kill", root, "sled1")
    rack("start", root, "sled1")
    disk.attach()
    assert disk.read(0, len(first) * 2) == first + second
    rack("down", root)
    assert nothing_left(root)
