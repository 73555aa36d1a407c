"""Kill what looks after a rack at random instants: ``python tests/rack/kill_rack.py ROUNDS [SEED] [--real]``.

Each round starts, kills, restarts or ends a rack of stand-in services and meanwhile sends SIGKILL to the command, the
supervisor or the fork server. Whatever was hit: the next ``rack up`` finds a rack with all its URLs, and after ``rack
down`` no process, socket or mount is left. With ``--real`` the services are the real ones, with a region in each agent
and each Downstairs a process of its own; the regions must be there as well. Ends with a line of figures, or with the
assertion that did not hold.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import rack_rig
from rack_rig import REAL, STAND_IN, call, nothing_left, processes_of, urls, wait_until

CALLS = (("up",), ("kill", "sled0"), ("start", "sled0"), ("kill", "sled1"), ("start", "sled1"), ("down",))
VICTIMS = ("command", "supervisor", "fork server", "nobody")
INSTANT_S_MAX = 2.5


def victims(root: Path) -> dict[str, int]:
    """The processes that look after the others, by their names."""
    found = {}
    for pid in processes_of(root):
        try:
            name = Path("/proc", str(pid), "comm").read_text().strip()
        except OSError:
            continue
        if name in ("rack-supervisor", "rack-forks"):
            found[{"rack-supervisor": "supervisor", "rack-forks": "fork server"}[name]] = pid
    return found


def make_regions(up: dict[str, Any]) -> None:
    for agent in agents(up):
        wanted = {"block_size": 512, "extent_size": 64, "extent_count": 2, "encrypted": False}
        call("POST", f"{agent}/crucible/0/regions", "1.0.0", {"id": str(UUID(int=1)), **wanted})
    wait_until(lambda: regions(up) == ["created"] * len(agents(up)))


def agents(up: dict[str, Any]) -> list[str]:
    """The URLs of those agents that are not dead on purpose."""
    return [each["url"] for each in up["services"] if each["kind"] == "agent" and each["state"] == "ready"]


def regions(up: dict[str, Any]) -> list[str]:
    """The states of all regions."""
    answers = [call("GET", f"{agent}/crucible/0/regions", "1.0.0") for agent in agents(up)]
    return [region["state"] for answer in answers for region in answer]


def main(rounds: int, seed: int, real: bool) -> None:
    rng = random.Random(seed)
    program = REAL if real else STAND_IN
    rack, command = partial(rack_rig.rack, program=program), partial(rack_rig.command, program=program)
    hit = dict.fromkeys(VICTIMS, 0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "rack")
        made = rack("up", root, "--sleds", 2, "--pantries", 1, *(["--isolate"] if real else []))
        first = urls(made)
        if real:
            make_regions(made)
        for number in range(rounds):
            what, victim, instant_s = rng.choice(CALLS), rng.choice(VICTIMS), rng.uniform(0, INSTANT_S_MAX)
            with command(what[0], root, *what[1:]) as process:
                time.sleep(instant_s)
                pid = process.pid if victim == "command" else victims(root).get(victim)
                if pid is not None and (victim != "command" or process.poll() is None):
                    os.kill(pid, signal.SIGKILL)
                    hit[victim] += 1
                process.communicate(timeout=90)
            print(f"{number}: {' '.join(what)}, {victim} after {instant_s:.3f} s", flush=True)
            up = rack("up", root)
            assert up["ready"] and urls(up) == first, up
            assert not real or regions(up) == ["created"] * len(agents(up)), regions(up)
            if rng.random() < 0.3:
                rack("down", root)
                wait_until(lambda: nothing_left(root))
        rack("down", root)
        assert nothing_left(root), processes_of(root)
    print(f"{rounds} rounds with seed {seed}; hit: {', '.join(f'{name} {count}' for name, count in hit.items())}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word != "--real"]
    main(numbers[0], numbers[1] if len(numbers) > 1 else 0, "--real" in sys.argv)
