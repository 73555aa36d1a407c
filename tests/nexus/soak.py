"""A soak of the control plane: several Nexus on PostgreSQL die while clients create and delete everything at random.

    python tests/nexus/soak.py --seconds 600 --clients 20 --nexus 3

A rack of five sleds with real services, a PostgreSQL server of its own, and clients that make disks (blank, from
snapshots, from images), take snapshots of disks that a guest has or has not, make images, attach and detach, and delete
whatever they find, their own and others' alike. Every few seconds one Nexus gets SIGKILL; the rack's supervisor starts
it again. An answer may be a refusal of what is impossible just now; what it may not be is a 500.

At the end nothing is killed any more: every saga ends and none is stuck, `nexus check` finds nothing, and when
everything is deleted nothing is left, neither in the database nor at the agents.

One line of JSON comes out; exit code 0 means that all of this held.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random

import trio

sys.path.append(str(Path(__file__).parent.parent))

from db_rig import postgres_server
from soak_rack import (
    MIB_BYTES,
    PROJECT,
    Caller,
    Json,
    Rack,
    Violation,
    delete_everything,
    instance_body,
    regions_left,
    settled,
)

DISKS_MAX, SNAPSHOTS_MAX, IMAGES_MAX, INSTANCES_MAX = 40, 30, 10, 12
KILL_EVERY_S = (2.0, 6.0)


class Client:
    """One of those who do what they like."""

    def __init__(self, number: int, caller: Caller, random: Random) -> None:
        self._number, self._caller, self._random = number, caller, random
        self._made = 0

    async def run(self) -> None:
        doings = (
            *((self.make_disk, 5), (self.take_snapshot, 5), (self.make_image, 1), (self.attach, 4), (self.detach, 3)),
            *((self.delete_disk, 4), (self.delete_snapshot, 4), (self.delete_image, 1), (self.start_or_stop, 3)),
            (self.make_instance, 2),
            (self.delete_instance, 1),
        )
        while True:
            (doing,) = self._random.choices([each for each, _ in doings], [weight for _, weight in doings])
            await doing()
            await trio.sleep(self._random.uniform(0, 0.2))

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._number}-{self._made}"

    async def _some(self, kind: str) -> Json | None:
        found = await self._caller.items(kind)
        return self._random.choice(found) if found else None

    async def _post(self, path: str, body: Json, **query: str) -> None:
        await self._caller.ask("POST", path, body, project=PROJECT, **query)

    async def make_disk(self) -> None:
        if len(await self._caller.items("disks")) >= DISKS_MAX:
            return
        source: Json = {"type": "blank", "block_size": 512}
        size = self._random.randint(1, 3) * MIB_BYTES
        kind = self._random.choice(["blank", "snapshots", "images"])
        origin = None if kind == "blank" else await self._some(kind)
        if origin is not None:
            key = kind.removesuffix("s")
            source = {"type": key, f"{key}_id": origin["id"], "read_only": self._random.random() < 0.2}
            size = origin["size"]
        backend = {"type": "distributed", "disk_source": source}
        body = {"name": self._name("disk"), "description": "soak", "size": size, "disk_backend": backend}
        await self._post("/v1/disks", body)

    async def take_snapshot(self) -> None:
        disk = await self._some("disks")
        if disk is not None and len(await self._caller.items("snapshots")) < SNAPSHOTS_MAX:
            body = {"name": self._name("snapshot"), "description": "soak", "disk": disk["id"]}
            await self._post("/v1/snapshots", body)

    async def make_image(self) -> None:
        snapshot = await self._some("snapshots")
        if snapshot is not None and len(await self._caller.items("images")) < IMAGES_MAX:
            source = {"type": "snapshot", "id": snapshot["id"]}
            body = {"name": self._name("image"), "description": "soak", "os": "none", "version": "1", "source": source}
            await self._post("/v1/images", body)

    async def start_or_stop(self) -> None:
        instance = await self._some("instances")
        if instance is not None:
            doing = "stop" if instance["run_state"] == "running" else "start"
            await self._post(f"/v1/instances/{instance['id']}/{doing}", None)

    async def attach(self) -> None:
        instance, disk = await self._some("instances"), await self._some("disks")
        if instance is not None and disk is not None:
            await self._post(f"/v1/instances/{instance['id']}/disks/attach", {"disk": disk["id"]})

    async def detach(self) -> None:
        for disk in await self._caller.items("disks"):
            if disk["state"].get("state") == "attached" and self._random.random() < 0.5:
                await self._post(f"/v1/instances/{disk['state']['instance']}/disks/detach", {"disk": disk["id"]})
                return

    async def _delete(self, kind: str) -> None:
        found = await self._some(kind)
        if found is not None:
            await self._caller.ask("DELETE", f"/v1/{kind}/{found['id']}")

    async def delete_disk(self) -> None:
        await self._delete("disks")

    async def delete_snapshot(self) -> None:
        await self._delete("snapshots")

    async def delete_image(self) -> None:
        await self._delete("images")

    async def delete_instance(self) -> None:
        await self._delete("instances")

    async def make_instance(self) -> None:
        if len(await self._caller.items("instances")) < INSTANCES_MAX:
            await self._post("/v1/instances", instance_body(self._name("instance")))


async def killing(rack: Rack, random: Random, seen: Counter[str], until_s: float) -> None:
    """One Nexus after the other gets SIGKILL."""
    while trio.current_time() < until_s:
        await trio.sleep(random.uniform(*KILL_EVERY_S))
        found = await trio.to_thread.run_sync(rack.nexus)
        if any(each["state"] == "failed" for each in found):
            # Five deaths in a row are enough for the supervisor; a person looks after it then, and starts it again.
            await trio.to_thread.run_sync(lambda: rack.command("rack", "up"))
        living = [each for each in found if each["pid"]]
        if living:
            os.kill(random.choice(living)["pid"], signal.SIGKILL)
            seen["kills"] += 1


async def soak(rack: Rack, options: argparse.Namespace, seen: Counter[str]) -> None:
    random = Random(options.seed)
    urls = [each["urls"]["external"] for each in rack.nexus()]
    token = (rack.directory / "nexus" / "tenant.token").read_text().strip()

    def caller() -> Caller:
        return Caller(urls, token, Random(random.random()), seen)

    until_s = trio.current_time() + options.seconds
    with trio.move_on_at(until_s):
        async with trio.open_nursery() as nursery:
            for number in range(options.clients):
                nursery.start_soon(Client(number, caller(), Random(random.random())).run)
            nursery.start_soon(killing, rack, random, seen, until_s)
    await trio.to_thread.run_sync(lambda: rack.command("rack", "up"))
    await settled(rack, 180)
    findings = await trio.to_thread.run_sync(rack.findings)
    if findings:
        raise Violation(f"nexus check has {len(findings)} findings, the first: {findings[0]}")
    await delete_everything(caller())
    await settled(rack, 180)
    left = await trio.to_thread.run_sync(rack.findings)
    if left:
        raise Violation(f"after deleting everything nexus check has {len(left)} findings, the first: {left[0]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--nexus", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for the rack, which stays there; by default it goes")
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    problem: str | None = None
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server())
        home = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        directory = home.absolute() / "rack"
        rack = Rack(directory)
        words = ("--sleds", "5", "--extent-size", "256KiB", "--size-step", "1MiB", "--nexus", str(options.nexus))
        directory.parent.mkdir(parents=True, exist_ok=True)
        up = [sys.executable, "-m", "nexus", "rack", "up", str(directory), *words, "--database", server.empty_url()]
        subprocess.run(up, check=True, stdout=subprocess.DEVNULL)
        stack.callback(lambda: rack.command("rack", "down", check=False))
        try:
            trio.run(soak, rack, options, seen)
            left = regions_left(directory)
            if left:
                raise Violation(f"{len(left)} regions are left on disk, the first: {left[0]}")
        except* Violation as found:
            problem = str(found.exceptions[0])
    print(json.dumps({"ok": problem is None, "violation": problem, "seen": dict(sorted(seen.items()))}))
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
