"""Guests of the soak of replacements: each takes a disk, writes and reads, gives it back, and takes the next.

What it guarantees: every block that is read is compared with what it may be (:mod:`heal_memory`): when the disk comes
into service, in between, and before it goes. A guest that loses its disk while nobody killed its host, an answer that
does not come, a disk that cannot be brought into service: each is a :class:`~soak_rack.Violation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio
from heal_memory import Frozen, Memory, Tokens
from heal_rack import Hardware, sockets_of
from soak_rack import PROJECT, Caller, Json, Violation, instance_body

from crucible_emu.client.failures import RequestFailed
from crucible_emu.client.nbd import NbdDisk, opened

STAY_S = (4.0, 25.0)
PAUSE_S = 0.02
WRITE_BLOCKS_MAX, READ_BLOCKS_MAX = 16, 32
READ_EVERY, FLUSH_EVERY = 3, 10
PIECE_BYTES = 256 * 1024
ANSWER_S_MAX = 90.0
SERVED_S_MAX = 180.0
POLL_S = 0.2


@dataclass(slots=True)
class Things:
    """What users made, by name, and the disks that a guest has, by id. Things stay known when they are deleted.
    ``io_errors``: requests of guests that failed although nobody killed their host."""

    disks: dict[str, Memory] = field(default_factory=dict)
    snapshots: dict[str, Frozen] = field(default_factory=dict)
    images: dict[str, Frozen] = field(default_factory=dict)
    io_errors: list[str] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)
    tokens: Tokens = field(default_factory=Tokens)


class HostDied(Exception):
    """What had the disk was killed, or is given up."""


class Guest:
    """One at a time has one disk."""

    def __init__(
        self, number: int, caller: Caller, hardware: Hardware, things: Things, random: Random, done: Counter[str]
    ) -> None:
        self._number, self._caller, self._hardware = number, caller, hardware
        self._things, self._random, self._done = things, random, done
        self._instances = 0

    async def run(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            disk = await self._free_disk()
            if disk is None:
                await trio.sleep(POLL_S)
                continue
            stay_until = trio.current_time() + self._random.uniform(*STAY_S)
            await self.have(disk, lambda until=stay_until: goes_on() and trio.current_time() < until)

    async def _free_disk(self) -> Json | None:
        found = [
            each
            for each in await self._caller.items("disks")
            if each["state"]["state"] == "detached" and each["id"] not in self._things.in_use
        ]
        return self._random.choice(found) if found else None

    async def have(self, disk: Json, goes_on: Callable[[], bool]) -> bool:
        """Work on one disk while ``goes_on``, and read all of it at least twice; whether it was to be had."""
        if disk["id"] in self._things.in_use:
            return False
        self._things.in_use.add(disk["id"])
        self._instances += 1
        name = f"guest-{self._number}-{self._instances}"
        memory = self._things.disks[disk["name"]]
        try:
            had = await self._session(name, disk, memory, goes_on)
            await self._put_away(name)
        finally:
            self._things.in_use.discard(disk["id"])
        return had

    async def _session(self, name: str, disk: Json, memory: Memory, goes_on: Callable[[], bool]) -> bool:
        for _ in range(3):  # a silence is no answer
            await self._caller.ask("POST", "/v1/instances", instance_body(name) | {"start": False}, project=PROJECT)
            where = f"/v1/instances/{name}/disks/attach"
            status, _ = await self._caller.ask("POST", where, {"disk": disk["id"]}, project=PROJECT)
            if status:
                break
        if not 200 <= status < 300:
            return False  # somebody deleted it
        while True:
            path = await self._serving(name, disk)
            try:
                await self._work(path, disk, memory, goes_on)
                return True
            except HostDied:
                self._done["hosts died under a guest"] += 1
            await self._stopped(name)

    # -- the instance -----------------------------------------------------------------------------------------------

    async def _state(self, name: str) -> str | None:
        """Its run state, ``None`` where there is no such instance."""
        while True:
            status, found = await self._caller.ask("GET", f"/v1/instances/{name}", project=PROJECT)
            if status:
                return str(found["run_state"]) if status == 200 else None
            await trio.sleep(POLL_S)

    async def _serving(self, name: str, disk: Json) -> Path:
        """Have the disk brought into service; its socket."""
        began = trio.current_time()
        running_since: float | None = None
        while trio.current_time() < began + SERVED_S_MAX:
            state = await self._state(name)
            running_since = (running_since or trio.current_time()) if state == "running" else None
            if state == "running":
                sockets = sockets_of(self._hardware.rack.directory, self._hardware.hosts, disk["id"])
                if sockets:
                    return sockets[0]
                if running_since is not None and trio.current_time() - running_since > 5:
                    await self._do(name, "stop")  # it runs on a host that was killed, and has not the disk any more
            elif state in ("stopped", "failed"):
                await self._do(name, "start" if state == "stopped" else "stop")
            await trio.sleep(POLL_S)
        raise Violation(f"disk {disk['name']} is not in service after {SERVED_S_MAX:.0f} s: {name} is {state}")

    async def _do(self, name: str, what: str) -> None:
        await self._caller.ask("POST", f"/v1/instances/{name}/{what}", project=PROJECT)

    async def _stopped(self, name: str) -> None:
        deadline = trio.current_time() + SERVED_S_MAX
        while trio.current_time() < deadline:
            state = await self._state(name)
            if state in ("stopped", None):
                return
            if state != "stopping":
                await self._do(name, "stop")
            await trio.sleep(POLL_S)
        raise Violation(f"instance {name} is {state} after {SERVED_S_MAX:.0f} s of stopping it")

    async def _put_away(self, name: str) -> None:
        """Stopped, and gone; its disk is free."""
        deadline = trio.current_time() + SERVED_S_MAX
        while trio.current_time() < deadline:
            await self._stopped(name)
            await self._caller.ask("DELETE", f"/v1/instances/{name}", project=PROJECT)
            if await self._state(name) is None:
                return
            await trio.sleep(POLL_S)
        raise Violation(f"instance {name} cannot be deleted for {SERVED_S_MAX:.0f} s")

    # -- the disk -----------------------------------------------------------------------------------------------------

    async def _work(self, path: Path, disk: Json, memory: Memory, goes_on: Callable[[], bool]) -> None:
        """Raises :class:`HostDied`."""
        began, sled, came_in = trio.current_time(), path.parts[-3], False
        try:
            async with opened(f"nbd+unix:///?socket={path}") as nbd:
                came_in = True
                self._done["sessions"] += 1
                await self._use(nbd, disk, memory, goes_on)
        except OSError as lost:
            memory.lost()
            told = f"disk {disk['name']} on {sled}, which nobody killed: {lost!r}"
            # Who dies is written down before it is killed; and a socket stays for a moment when its host is dead.
            if came_in and self._hardware.died_s.get(sled, 0.0) < began - 1.0:
                if not isinstance(lost, RequestFailed):
                    raise Violation(told) from None
                # It spoils the result, and the rest may be seen all the same.
                self._things.io_errors.append(told)
            raise HostDied from None
        except trio.TooSlowError:
            raise Violation(f"disk {disk['name']} on {sled} has not answered for {ANSWER_S_MAX:.0f} s") from None

    async def _use(self, nbd: NbdDisk, disk: Json, memory: Memory, goes_on: Callable[[], bool]) -> None:
        await self._read(nbd, disk, memory, 0, memory.blocks)
        while goes_on():
            if not disk["read_only"]:
                await self._write(nbd, memory)
            if disk["read_only"] or self._random.randrange(READ_EVERY) == 0:
                blocks = self._random.randint(1, READ_BLOCKS_MAX)
                await self._read(nbd, disk, memory, self._random.randrange(memory.blocks - blocks + 1), blocks)
            await trio.sleep(PAUSE_S)
        if not disk["read_only"]:
            await self._flush(nbd, memory)
        await self._read(nbd, disk, memory, 0, memory.blocks)

    async def _write(self, nbd: NbdDisk, memory: Memory) -> None:
        blocks = self._random.randint(1, WRITE_BLOCKS_MAX)
        first = self._random.randrange(memory.blocks - blocks + 1)
        data = memory.write(first, blocks, self._things.tokens.next())
        with trio.fail_after(ANSWER_S_MAX):
            await nbd.write(first * memory.block_bytes, data)
        memory.answered()
        self._done["writes"] += 1
        if self._random.randrange(FLUSH_EVERY) == 0:
            await self._flush(nbd, memory)

    async def _flush(self, nbd: NbdDisk, memory: Memory) -> None:
        with trio.fail_after(ANSWER_S_MAX):
            await nbd.flush()
        memory.flushed()
        self._done["flushes"] += 1

    async def _read(self, nbd: NbdDisk, disk: Json, memory: Memory, first: int, blocks: int) -> None:
        step = PIECE_BYTES // memory.block_bytes
        wrong: list[str] = []
        for block in range(first, first + blocks, step):
            count = min(step, first + blocks - block)
            with trio.fail_after(ANSWER_S_MAX):
                data = await nbd.read(block * memory.block_bytes, count * memory.block_bytes)
            wrong += memory.read(block, data)
            self._done["blocks read"] += count
        if wrong:
            self._done["data errors"] += len(wrong)
            raise Violation(f"disk {disk['name']} ({disk['id']}): {len(wrong)} blocks are wrong: {wrong[:3]}")
