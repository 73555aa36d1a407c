"""Users of the soak of replacements: they make disks, snapshots and images, and delete whatever they find.

What it guarantees: of everything that they make it is known what it has to hold. Where an answer did not come, the
thing may be there or not; it is known under its name in either case. A snapshot of a disk in use is of some moment
between the question and when it is there.
"""

from __future__ import annotations

from random import Random

import trio
from heal_guests import Things
from heal_memory import Frozen, Memory, Window
from soak_rack import MIB_BYTES, PROJECT, Caller, Json

DISKS_MAX, SNAPSHOTS_MAX, IMAGES_MAX = 18, 8, 3
DISKS_MIN = 8
"""Guests need something to write to."""
BLOCK_SIZES = (512, 4096)
REST_S = (0.1, 1.0)
SETTLED_S = 45.0
"""For a saga whose Nexus died: another looks for such every ten seconds."""
POLL_S = 1.0


class User:
    """One of those who do what they like. ``nursery``: where what has no answer yet is followed up."""

    def __init__(self, number: int, caller: Caller, things: Things, random: Random, nursery: trio.Nursery) -> None:
        self._number, self._caller, self._things, self._random = number, caller, things, random
        self._nursery = nursery
        self._made = 0

    async def run(self) -> None:
        """For ever."""
        doings = (
            *((self.make_disk, 5), (self.take_snapshot, 4), (self.make_image, 1)),
            *((self.delete_disk, 3), (self.delete_snapshot, 3), (self.delete_image, 1)),
        )
        while True:
            (doing,) = self._random.choices([each for each, _ in doings], [weight for _, weight in doings])
            await doing()
            await trio.sleep(self._random.uniform(*REST_S))

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._number}-{self._made}"

    # -- making ---------------------------------------------------------------------------------------------------

    async def make_disk(self) -> None:
        if len(await self._caller.items("disks")) >= DISKS_MAX:
            return
        name, kind = self._name("disk"), self._random.choice(["blank", "snapshots", "images"])
        found = [] if kind == "blank" else await self._sources(kind)
        block_size = self._random.choice(BLOCK_SIZES)
        source: Json = {"type": "blank", "block_size": block_size}
        size = self._random.randint(1, 3) * MIB_BYTES
        memory = Memory.blank(size, block_size)
        if found:
            origin = self._random.choice(found)
            key, size = kind.removesuffix("s"), origin["size"]
            source = {"type": key, f"{key}_id": origin["id"], "read_only": self._random.random() < 0.2}
            memory = Memory.of(self._frozen(kind)[origin["name"]])
        self._things.disks[name] = memory
        backend = {"type": "distributed", "disk_source": source}
        body = {"name": name, "description": "heal", "size": size, "disk_backend": backend}
        await self._caller.ask("POST", "/v1/disks", body, project=PROJECT)

    def _frozen(self, kind: str) -> dict[str, Frozen]:
        return self._things.snapshots if kind == "snapshots" else self._things.images

    async def _sources(self, kind: str) -> list[Json]:
        """Those of which it is known what they hold."""
        known = self._frozen(kind)
        return [each for each in await self._caller.items(kind) if each["name"] in known]

    async def take_snapshot(self) -> None:
        disks = await self._caller.items("disks")
        if not disks or len(await self._caller.items("snapshots")) >= SNAPSHOTS_MAX:
            return
        disk, name = self._random.choice(disks), self._name("snapshot")
        memory = self._things.disks[disk["name"]]
        window = memory.window()
        body = {"name": name, "description": "heal", "disk": disk["id"]}
        status, _ = await self._caller.ask("POST", "/v1/snapshots", body, project=PROJECT)
        if status == 0:
            self._nursery.start_soon(self._follow, name, memory, window)
            return
        memory.close(window)
        if 200 <= status < 300:
            self._things.snapshots[name] = window.frozen()

    async def _follow(self, name: str, memory: Memory, window: Window) -> None:
        """Until it is known whether there is a snapshot, or what Nexus was doing is undone."""
        with trio.move_on_after(SETTLED_S):
            while True:
                status, found = await self._caller.ask("GET", f"/v1/snapshots/{name}", project=PROJECT)
                if status == 200 and found["state"] == "ready":
                    memory.close(window)
                    self._things.snapshots[name] = window.frozen()
                    return
                await trio.sleep(POLL_S)
        memory.close(window)  # whatever comes of it now, nobody uses it

    async def make_image(self) -> None:
        found = await self._sources("snapshots")
        if not found or len(await self._caller.items("images")) >= IMAGES_MAX:
            return
        snapshot, name = self._random.choice(found), self._name("image")
        self._things.images[name] = self._things.snapshots[snapshot["name"]]
        source = {"type": "snapshot", "id": snapshot["id"]}
        body = {"name": name, "description": "heal", "os": "none", "version": "1", "source": source}
        await self._caller.ask("POST", "/v1/images", body, project=PROJECT)

    # -- deleting -------------------------------------------------------------------------------------------------

    async def delete_disk(self) -> None:
        await self._delete("disks", DISKS_MIN)

    async def delete_snapshot(self) -> None:
        await self._delete("snapshots", 0)

    async def delete_image(self) -> None:
        await self._delete("images", 0)

    async def _delete(self, kind: str, least: int) -> None:
        found = await self._caller.items(kind)
        if len(found) > least:
            await self._caller.ask("DELETE", f"/v1/{kind}/{self._random.choice(found)['id']}")
