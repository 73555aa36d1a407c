"""Kill what looks after a rack at random instants: ``python tests/rack/kill_rack.py ROUNDS [SEED]``.

Each round starts, kills, restarts or ends a rack of stand-in services and meanwhile sends SIGKILL to the command, the
supervisor or the fork server. Whatever was hit: the next ``rack up`` finds a rack with all its URLs, and after ``rack
down`` no process, socket or mount is left. Ends with a line of figures, or with the assertion that did not hold.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from rack_rig import command, nothing_left, processes_of, rack, urls, wait_until

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


def main(rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    hit = dict.fromkeys(VICTIMS, 0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "rack")
        first = urls(rack("up", root, "--sleds", 2, "--pantries", 1))
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
            if rng.random() < 0.3:
                rack("down", root)
                wait_until(lambda: nothing_left(root))
        rack("down", root)
        assert nothing_left(root), processes_of(root)
    print(f"{rounds} rounds with seed {seed}; hit: {', '.join(f'{name} {count}' for name, count in hit.items())}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
