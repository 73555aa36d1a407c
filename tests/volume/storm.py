"""A storm over one disk: real Downstairs processes are killed, stopped, restarted and replaced under a real client.

    python tests/volume/storm.py --rounds 200
    python tests/volume/storm.py --rounds 200 --load files      (as root: ext4 on a loop device, copied to and compared)
    python tests/volume/storm.py --rounds 200 --unix            (over unix sockets: blocks are read past processes)

One replica at a time is away, so the client may not see a single error, and at the end the three replicas must be equal
and verify. Each round is one of :data:`BLOWS`; then the disk gets the time it needs until all three are active again,
unless the next blow hits the replica that is being repaired.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import trio

from crucible_emu import logs, nbd
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.verify import verify_region
from crucible_emu.region.view import RegionView
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume.construction import build
from crucible_emu.volume.in_service import in_service
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest

DISK = UUID(int=0x5708)
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
HEALED_WITHIN_S = 180
EXTENT_S = 0.05
"""What the messages of an extent may take besides, on a busy machine."""
BLOWS = {"kill": 4, "stall": 2, "replace": 2, "kill while it is repaired": 2, "kill and wait": 1}
"""What may happen to a replica, and how often beside the others."""


@dataclass
class Downstairs:
    """One Downstairs process over one region, which may be started again at its port, or its unix socket."""

    region: Path
    unix: Path | None = None
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def target(self) -> str:
        return str(self.unix or f"127.0.0.1:{self.port}")

    async def start(self) -> None:
        self._spawn()
        assert self.process is not None and self.process.stdout is not None
        ready = await trio.to_thread.run_sync(self.process.stdout.readline)
        if not ready:
            raise RuntimeError(f"the Downstairs of {self.region} did not start: exit code {self.process.wait()}")
        self.port = int(json.loads(ready)["port"])

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "crucible_emu", "downstairs", "run", str(self.region), "--json"]
        command += ["--port", str(self.port), "--repair-port", "0"]
        if self.unix is not None:
            command += ["--unix", str(self.unix)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def send(self, which: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(which)

    async def end(self, which: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(which)
            await trio.to_thread.run_sync(self.process.wait)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for the condition; whether it came."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110  the world outside tells nobody
            await trio.sleep(0.02)
        return True
    return False


class Storm:
    """The disk under way: its Downstairs, its guest side, and what has happened so far."""

    def __init__(self, folder: Path, definition: RegionDefinition, seed: int, *, unix: bool = False) -> None:
        self.folder = folder
        self.definition = definition
        self.unix = unix
        self.reads_at_hand = 0
        self.random = random.Random(seed)
        self.members: list[Downstairs] = []
        self.made = 0
        self.blows = dict.fromkeys(BLOWS, 0)

    async def new_downstairs(self) -> Downstairs:
        was = self.definition
        path = self.folder / f"region-{self.made}"
        self.made += 1
        definition = RegionDefinition(was.block_size, was.blocks_per_extent, was.extent_count, uuid4(), was.encrypted)
        Region.create(path, definition).close()
        made = Downstairs(path, path.with_suffix(".sock") if self.unix else None)
        await made.start()
        return made

    def request(self) -> RegionRequest:
        was = self.definition
        opts = CrucibleOpts(
            id=DISK, target=tuple(member.target for member in self.members), key=KEY if was.encrypted else None
        )
        return RegionRequest(
            type="region",
            block_size=was.block_size,
            blocks_per_extent=was.blocks_per_extent,
            extent_count=was.extent_count,
            opts=opts,
            gen=1,
        )

    # -- blows --------------------------------------------------------------------------------------------------------

    async def strike(self, guest: Guest) -> None:
        """One blow at one replica, and the time until the disk is whole again."""
        blow = self.random.choices(list(BLOWS), list(BLOWS.values()))[0]
        self.blows[blow] += 1
        victim = self.random.randrange(3)
        member = self.members[victim]
        core = guest.upstairs.core
        if blow == "stall":
            member.send(signal.SIGSTOP)
            await trio.sleep(self.random.uniform(0.05, 2))
            member.send(signal.SIGCONT)
        elif blow == "replace":
            await self._replace(guest, victim)
        else:
            await member.end()
            if blow == "kill and wait":
                # Long enough, under load, to owe more than can be replayed.
                await within(20, lambda: not core.clients[victim].state.accepts_io)
            else:
                await trio.sleep(self.random.choice([0, 0.1, 1]))
            await member.start()
            if blow == "kill while it is repaired":
                await within(5, lambda: core.clients[victim].state.phase is Phase.LIVE_REPAIR)
                await member.end()
                await member.start()
        await self.whole_again(guest)

    async def _replace(self, guest: Guest, victim: int) -> None:
        old = self.members[victim]
        if self.random.random() < 0.5:
            await old.end()
        new = await self.new_downstairs()
        result = guest.upstairs.replace_downstairs(old.target, new.target)
        assert result is ReplaceResult.STARTED, result
        self.members[victim] = new
        await self.whole_again(guest)
        await old.end()
        shutil.rmtree(old.region)

    async def whole_again(self, guest: Guest) -> None:
        clients = guest.upstairs.core.clients
        patience_s = HEALED_WITHIN_S + EXTENT_S * self.definition.extent_count
        if not await within(patience_s, lambda: all(client.state.phase is Phase.ACTIVE for client in clients)):
            raise AssertionError(f"not whole after {patience_s:.0f} s: {[str(client.state) for client in clients]}")

    def differences(self) -> list[str]:
        """What is wrong with the replicas at rest."""
        paths = [member.region for member in self.members]
        wrong = [f"{path.name}: {failure}" for path in paths for failure in verify_region(RegionView.open(path))]
        if len({region_digest(RegionView.open(path)).region for path in paths}) != 1:
            wrong.append("the three replicas differ")
        return wrong


# -- the clients ------------------------------------------------------------------------------------------------------


async def run_client(command: list[str], folder: Path) -> None:
    """Run a client to its end. Raises :class:`AssertionError` with what it said where it fails."""
    done = await trio.run_process(
        command, cwd=folder, capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=b""
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0 and "verify: bad" not in output, f"{command[0]} failed:\n{output[-3000:]}"


async def fio(storm: Storm, socket: Path, again: trio.Event) -> None:
    """Random reads and writes that fio verifies, over and over."""
    turn = 0
    while not again.is_set():
        turn += 1
        command = ["fio", "--name=storm", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", "--rw=randwrite"]
        command += [f"--bs={max(4096, storm.definition.block_size)}", f"--iodepth={storm.random.choice([1, 8, 32])}"]
        command += [f"--randseed={turn}", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=64"]
        command += ["--size=8m", "--fsync=64", f"--offset={storm.random.randrange(4) * 2}m", "--output-format=terse"]
        await run_client(command, storm.folder)


async def files(storm: Storm, socket: Path, again: trio.Event) -> None:
    """A file system on a loop device: a tree is copied to it, compared, and removed, over and over."""
    folder = storm.folder
    (folder / "fuse").touch()
    (folder / "mounted").mkdir()
    tree = folder / "tree"
    for number in range(60):
        path = tree / f"{number % 7}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storm.random.randbytes(storm.random.choice([100, 5_000, 100_000])))
    async with trio.open_nursery() as nursery:
        uri = f"nbd+unix:///?socket={socket}"
        nursery.start_soon(partial(trio.run_process, ["nbdfuse", str(folder / "fuse"), uri], check=False))
        assert await within(20, lambda: (folder / "fuse").stat().st_size > 0)
        shown = await trio.run_process(
            ["losetup", "--sector-size", str(min(4096, storm.definition.block_size)), "-f", "--show", "fuse"],
            cwd=folder,
            capture_stdout=True,
        )
        loop = shown.stdout.decode().strip()
        try:
            await run_client(["mkfs.ext4", "-q", "-F", loop], folder)
            await run_client(["mount", loop, "mounted"], folder)
            try:
                turn = 0
                while not again.is_set():
                    turn += 1
                    await run_client(["cp", "-a", "tree", f"mounted/{turn}"], folder)
                    await run_client(["sync", "-f", "mounted"], folder)
                    await run_client(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], folder)
                    await run_client(["diff", "-r", "tree", f"mounted/{turn}"], folder)
                    if turn > 3:
                        await run_client(["rm", "-r", f"mounted/{turn - 3}"], folder)
            finally:
                await run_client(["umount", "mounted"], folder)
            await run_client(["fsck.ext4", "-fn", loop], folder)
        finally:
            await run_client(["losetup", "-d", loop], folder)
            await run_client(["fusermount3", "-u", "-z", "fuse"], folder)


LOADS = {"fio": fio, "files": files}


# -- the run ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(guest: Guest, socket: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(nbd.Server({"": nbd.Export(guest, "storm")}).serve, [nbd.listen_on_unix(socket)])
        yield
        nursery.cancel_scope.cancel()


async def blow(storm: Storm, rounds: int, load: str, *, progress: bool) -> None:
    """All rounds over one disk; the disk is left in order afterwards."""
    storm.members = [await storm.new_downstairs() for _ in range(3)]
    socket = storm.folder / "disk.sock"
    try:
        async with in_service(build(storm.request(), reconnect_delay_s=0.2), timeout_s=60) as guest:
            async with served(guest, socket), trio.open_nursery() as nursery:
                enough = trio.Event()
                nursery.start_soon(LOADS[load], storm, socket, enough)
                for number in range(rounds):
                    await storm.strike(guest)
                    if progress:
                        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
                enough.set()
            await storm.whole_again(guest)
            storm.reads_at_hand = guest.upstairs.statistics.reads_at_hand
    finally:
        with trio.CancelScope(shield=True):
            for member in storm.members:
                await member.end(signal.SIGTERM)


def run(
    rounds: int,
    seed: int,
    *,
    load: str = "fio",
    block_size: int = 4096,
    encrypted: bool = False,
    extent_count: int = 16,
    unix: bool = False,
    progress: bool = False,
) -> list[str]:
    """A storm of so many rounds; what was wrong at its end. Raises what a client failed with."""
    size_bytes = 64 * 1024 * 1024 if load == "files" else 16 * 1024 * 1024
    definition = RegionDefinition(
        block_size, size_bytes // block_size // extent_count, extent_count, uuid4(), encrypted
    )
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder), definition, seed, unix=unix)
        trio.run(partial(blow, storm, rounds, load, progress=progress))
        print(f"\n{rounds} rounds, seed {seed}: {storm.blows}", file=sys.stderr)
        if unix:
            print(f"{storm.reads_at_hand} reads past processes", file=sys.stderr)
        return storm.differences()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", choices=list(LOADS), default="fio")
    parser.add_argument("--block-size", type=int, default=4096)
    parser.add_argument("--extents", type=int, default=16)
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--unix", action="store_true")
    given = parser.parse_args()
    logs.configure(level="error")
    wrong = run(
        given.rounds,
        given.seed,
        load=given.load,
        block_size=given.block_size,
        encrypted=given.encrypted,
        extent_count=given.extents,
        unix=given.unix,
        progress=True,
    )
    print("\n".join(wrong) if wrong else "0 errors; the three replicas are equal")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
