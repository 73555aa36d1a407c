"""A soak of replacements over real processes: disks and sleds are lost one after another while everything goes on.

    python tests/nexus/heal.py --seconds 900 --nexus 3

A rack with real agents, hosts and pantries, and several Nexus on a PostgreSQL server of its own. Guests write through
NBD to whatever disk they get, and compare every block that they read with what was acknowledged. Users make disks of
snapshots and images and delete all of it again. Every few seconds a Nexus, an agent, a pantry or a host gets SIGKILL,
and comes back. And one physical disk or sled after the other is expunged; the next one when everything that was on the
last has a successor. Never are two copies lost at once: what then may be told is another story (*The last good copy*
in docs/replacement.md).

At the end nothing is killed any more: every request is complete, no saga is stuck, `nexus check` finds nothing, every
disk and image has three good copies that agree, and reads back right. Then everything is deleted, and nothing is left,
neither in the database nor at living agents; the records of expunged disks are forgotten as well.

One line of JSON comes out; exit code 0 means that all of this held. `--verbose` tells the story on standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio
from sqlalchemy import Connection, func, select

sys.path.append(str(Path(__file__).parent.parent))

from db_rig import open_database, postgres_server
from heal_guests import Guest, Things
from heal_rack import DISK_SIZE, LOOK_S, PANTRIES, SLEDS, Hardware, killing, losing
from heal_users import User
from soak_rack import REFUSED, Caller, Json, Rack, Violation, delete_everything, settled

from nexus.api.emulator_documents import VolumeTree
from nexus.api.refusals import STATUSES
from nexus.cli.demonstration.proving import good_copies
from nexus.cli.demonstration.verdict import COPIES
from nexus.cli.rack_files import Wanted, write_files
from nexus.db import schema

ACTIVATE_S = 1.0
BEGIN_DISKS = 10
SPARE_DISK_EVERY_S, SPARE_SLED_EVERY_S = 20.0, 45.0
QUIET_S_MAX = 180.0
FAILED = 500
"""What a user hears where a disk is given up in the middle of what was asked for. What it was is asked afterwards: a
saga says why it unwound, by one of :data:`EXPLAINED`."""
EXPLAINED = frozenset(STATUSES)
OF_THINGS = (
    *(schema.volume, schema.region, schema.region_snapshot, schema.volume_resource_usage, schema.volume_repair),
    schema.virtual_provisioning_resource,
)


@dataclass(slots=True)
class Told:
    """What the line of JSON says."""

    seen: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    expunges: Counter[str] = field(default_factory=Counter)
    guests: Counter[str] = field(default_factory=Counter)
    unwound: Counter[str] = field(default_factory=Counter)
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    verified: int = 0
    leaks: list[str] = field(default_factory=list)
    io_errors: list[str] = field(default_factory=list)
    violation: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing happened that must not."""
        return self.violation is None and not self.io_errors


class Soak:
    """All of it, over a rack that runs."""

    def __init__(self, hardware: Hardware, options: argparse.Namespace, told: Told) -> None:
        self.hardware, self.options, self.told = hardware, options, told
        self.random, self.things = Random(options.seed), Things(io_errors=told.io_errors)
        self.say = hardware.say

    def caller(self) -> Caller:
        """A user."""
        token = (self.hardware.rack.directory / "nexus" / "tenant.token").read_text().strip()
        urls = access(self.hardware.rack)["external"]
        return Caller(urls, token, Random(self.random.random()), self.told.seen, REFUSED | {FAILED})

    async def run(self) -> None:
        hardware = self.hardware
        token = (hardware.rack.directory / "nexus" / "operator.token").read_text().strip()
        hardware.caller = Caller(access(hardware.rack)["operator"], token, Random(self.random.random()), self.told.seen)
        await hardware.begin()
        self.say(
            f"the rack is there: {len(hardware.sleds)} sleds with {sum(len(s.disks) for s in hardware.sleds)} disks"
        )
        guests = [self._guest(number) for number in range(self.options.guests)]
        try:
            async with trio.open_nursery() as looking:
                looking.start_soon(self._looking)
                await self._everything_goes_on(guests)
                await self._comes_to_rest()
                await self._holds(guests)
                await self._is_gone()
                looking.cancel_scope.cancel()
        except* Violation:
            await self._tell_how_it_is()
            raise

    async def _tell_how_it_is(self) -> None:
        """For whoever looks for the reason: requests, what they wait for, and sagas that have not ended."""
        with trio.move_on_after(QUIET_S_MAX):
            report = await self.hardware.insist("GET", "/emulator/v1/replacements/waiting")
            for each in report["requests"]:
                self.say(f"open: {json.dumps(each)}")
            for each in await self.hardware.everything("/emulator/v1/sagas"):
                if each["state"] not in ("done", "unwound"):
                    saga = await self.hardware.insist("GET", f"/emulator/v1/sagas/{each['id']}")
                    self.say(f"saga: {json.dumps(saga)[:3000]}")

    def _guest(self, number: int) -> Guest:
        random = Random(self.random.random())
        return Guest(number, self.caller(), self.hardware, self.things, random, self.told.guests)

    async def _looking(self) -> None:
        while True:
            await self.hardware.activate()
            await trio.sleep(ACTIVATE_S)

    async def _everything_goes_on(self, guests: list[Guest]) -> None:
        until_s = trio.current_time() + self.options.seconds

        def goes_on() -> bool:
            return trio.current_time() < until_s

        async with trio.open_nursery() as dying, trio.open_nursery() as users:
            maker = User(99, self.caller(), self.things, Random(self.random.random()), users)
            for _ in range(BEGIN_DISKS):
                await maker.make_disk()
            for number in range(self.options.users):
                one = User(number, self.caller(), self.things, Random(self.random.random()), users)
                users.start_soon(one.run)
            dying.start_soon(killing, self.hardware, Random(self.random.random()), self.told.kills)
            async with trio.open_nursery() as working:
                for guest in guests:
                    working.start_soon(guest.run, goes_on)
                random = Random(self.random.random())
                working.start_soon(losing, self.hardware, random, self.told.expunges, goes_on)
            users.cancel_scope.cancel()
            dying.cancel_scope.cancel()
        self.say("nothing dies any more")

    async def _comes_to_rest(self) -> None:
        hardware = self.hardware
        await hardware.ask_rack("up")
        await hardware.replaced("all that was lost")
        await settled(hardware.rack, QUIET_S_MAX)
        for each in await hardware.everything("/emulator/v1/replacements", all="true"):
            of_kind = self.told.requests.setdefault(each["kind"], {})
            of_kind[each["state"]] = of_kind.get(each["state"], 0) + 1
        findings = await trio.to_thread.run_sync(hardware.rack.findings)
        if findings:
            raise Violation(f"nexus check has {len(findings)} findings, the first: {findings[0]}")
        await self._unwound_for_a_reason()
        self.say("everything is replaced, and nexus check finds nothing")

    async def _unwound_for_a_reason(self) -> None:
        for each in await self.hardware.everything("/emulator/v1/sagas"):
            if each["state"] != "unwound":
                continue
            saga = await self.hardware.insist("GET", f"/emulator/v1/sagas/{each['id']}")
            for event in saga["events"]:
                if event["kind"] == "failed":
                    kind = event["data"]["kind"]
                    self.told.unwound[f"{each['name']} {event['label']}: {kind}"] += 1
                    if kind not in EXPLAINED:
                        raise Violation(f"saga {each['name']} {each['id']} failed at {event['label']}: {event['data']}")

    # -- what survives ------------------------------------------------------------------------------------------------

    async def _holds(self, guests: list[Guest]) -> None:
        """Three good copies of everything, which agree, and are what was written."""
        caller = self.caller()
        disks = await caller.items("disks")
        for each in disks:
            if each["state"]["state"] != "detached":
                raise Violation(f"disk {each['name']} is {each['state']} when nobody has it any more")
        for kind in ("disks", "snapshots", "images"):
            for each in await caller.items(kind):
                await self._verify(kind, each)
        waiting = list(disks)

        async def read_back(guest: Guest) -> None:
            while waiting:
                disk = waiting.pop()
                if not await guest.have(disk, lambda: False):
                    raise Violation(f"disk {disk['name']} cannot be attached in the end")

        async with trio.open_nursery() as nursery:
            for guest in guests:
                nursery.start_soon(read_back, guest)
        self.say(f"{len(disks)} disks read back right, {self.told.verified} volumes are verified")

    async def _verify(self, kind: str, thing: Json) -> None:
        what = f"{kind.removesuffix('s')} {thing['name']}"
        path = f"/emulator/v1/volumes/{thing['id']}"
        tree = VolumeTree.model_validate(await self.hardware.insist("GET", path))
        if set(good_copies(tree)) != {COPIES}:
            raise Violation(f"{what} has not three good copies of everything: {good_copies(tree)}")
        report = await self.hardware.insist("POST", f"{path}/verify")
        if report["findings"]:
            raise Violation(f"{what}: {report['findings'][:3]}")
        self.told.verified += 1

    # -- what is left -------------------------------------------------------------------------------------------------

    async def _is_gone(self) -> None:
        hardware = self.hardware
        await delete_everything(self.caller())
        await settled(hardware.rack, QUIET_S_MAX)
        deadline = trio.current_time() + QUIET_S_MAX
        while left := await self._left():
            if trio.current_time() > deadline:
                self.told.leaks = left
                raise Violation(f"after deleting everything there is left: {left[:5]}")
            await trio.sleep(LOOK_S)
        findings = await trio.to_thread.run_sync(hardware.rack.findings)
        if findings:
            raise Violation(f"after deleting everything nexus check has {len(findings)} findings: {findings[0]}")
        self.say("everything is deleted, and nothing is left")

    async def _left(self) -> list[str]:
        """Rows, bytes that are reserved, directories of regions at living agents, expunged disks that are known."""
        left = await rows_left(self.options.database)
        in_service = {disk.serial for sled in self.hardware.sleds for disk in sled.disks}
        services = await self.hardware.ask_rack("status")
        left += regions_at([each for each in services if each["name"] in in_service])
        body = {"bgtask_names": ["decommissioned_disk_cleaner"]}
        await self.hardware.caller.ask("POST", "/bgtasks/activate", body)
        for disk in await self.hardware.everything("/emulator/v1/physical-disks"):
            if disk["policy"] == "expunged" and (disk["state"] != "decommissioned" or disk["dataset_id"]):
                left.append(f"expunged disk {disk['serial']} is {disk['state']}, with dataset {disk['dataset_id']}")
        return left


def regions_at(agents: list[Json]) -> list[str]:
    """What they hold in their directories."""
    return [f"{each['name']}: {path.name}" for each in agents for path in Path(each["directory"]).glob("regions/*")]


async def rows_left(url: str) -> list[str]:
    def body(connection: Connection) -> list[str]:
        counts = {each.name: select(func.count()).select_from(each) for each in OF_THINGS}
        found = {name: connection.execute(query).scalar_one() for name, query in counts.items()}
        used = connection.execute(select(func.sum(schema.crucible_dataset.c.size_used))).scalar_one()
        told = [f"{count} rows in {name}" for name, count in found.items() if count]
        return told + ([f"{used} bytes reserved on datasets"] if used else [])

    with open_database(url) as database:
        return await database.read(body)


def access(rack: Rack) -> Json:
    """Where the Nexus are."""
    return json.loads((rack.directory / "nexus" / "access.json").read_text())


def rack_up(rack: Rack, hardware: Hardware, options: argparse.Namespace) -> None:
    """The rack, and then its shelf: Nexus is told of what is in the rack file when it comes up first."""
    wanted = Wanted(
        sleds=SLEDS,
        disk_size=DISK_SIZE,
        pantries=PANTRIES,
        nexus=options.nexus,
        database=options.database,
        extent_size="256KiB",
        size_step="1MiB",
    )
    write_files(rack.directory, wanted)
    hardware.write_ports()
    for words in (("nexus", "rack", "up"), ("nexus", "rack", "down"), ("crucible_emu", "rack", "up")):
        if words[0] != "nexus":
            hardware.write_shelf()
        command = [sys.executable, "-P", "-m", *words, str(rack.directory)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--nexus", type=int, default=3)
    parser.add_argument("--guests", type=int, default=5)
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for the rack, which stays there; by default it goes")
    parser.add_argument("--verbose", action="store_true", help="tell what is lost and replaced on standard error")
    options = parser.parse_args()
    told, began = Told(), time.monotonic()

    def say(sentence: str) -> None:
        if options.verbose:
            print(f"{time.monotonic() - began:6.1f} s  {sentence}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        options.database = stack.enter_context(postgres_server()).empty_url()
        home = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heal-")))
        rack = Rack(home.absolute() / "rack")
        rack.directory.parent.mkdir(parents=True, exist_ok=True)
        spare_sleds = math.ceil(options.seconds / SPARE_SLED_EVERY_S)
        spare_disks = math.ceil(options.seconds / SPARE_DISK_EVERY_S)
        hardware = Hardware(rack, spare_sleds, spare_disks + spare_sleds, say)
        stack.callback(lambda: rack.command("rack", "down", check=False))
        rack_up(rack, hardware, options)
        try:
            trio.run(Soak(hardware, options, told).run)
        except* Violation as found:
            told.violation = str(first_of(found))
    print(json.dumps(line(told, time.monotonic() - began)))
    return 0 if told.ok else 1


def first_of(found: BaseExceptionGroup[Violation]) -> BaseException:
    first: BaseException = found
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def line(told: Told, seconds: float) -> Json:
    return {
        "ok": told.ok,
        "violation": told.violation,
        "data_errors": told.guests.pop("data errors", 0),
        "io_errors": told.io_errors,
        "leaks": told.leaks,
        "requests": told.requests,
        "kills": dict(sorted(told.kills.items())),
        "expunges": dict(sorted(told.expunges.items())),
        "guests": dict(sorted(told.guests.items())),
        "unwound": dict(sorted(told.unwound.items())),
        "volumes_verified": told.verified,
        "seen": dict(sorted(told.seen.items())),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
