"""The rack of the soak of replacements: a shelf of spares, deaths that pass, and losses that do not.

``nexus rack up`` makes a rack of :data:`SLEDS` sleds. Before it is used spares are written into its rack file: sleds,
and single disks that may be put into any sled; they are dead until they are needed, and Nexus is told of them then. So
a lost disk can be dead without its sled, and there is always somewhere to allocate.

What it guarantees: the next loss comes when everything that the last one took has a successor and every request is
complete; one that is not in time is a :class:`~soak_rack.Violation` with the reasons that Nexus gives. What dies for a
while comes back with what it held: the rack's supervisor starts it again.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import trio
from soak_rack import Caller, Json, Rack, Violation

from crucible_emu.cli.sizes import parse_size
from crucible_emu.rack import asking
from nexus.cli.sled import address_of

SLEDS, PANTRIES = 5, 3
DISK_SIZE = "4GiB"
PORTS_PER_AGENT = 50
SLED_EVERY = 3
"""Of so many losses one is a whole sled."""
SPARE_SLEDS_MAX, SPARE_DISKS_MAX = 17, 37
"""With those in use the most that a rack file may have."""
REPLACED_S_MAX = 420.0
"""For one loss, while others die. Longer than a guest may be silent about a repair before it is asked again (W10)."""
LOOK_S, PATIENCE_S = 0.5, 15.0
KILL_EVERY_S = (1.5, 5.0)
TWO_AT_ONCE = 0.15
KINDS = {"nexus": 4, "agent": 4, "pantry": 2, "host": 1}
"""Who dies how often: a host takes guests with it, who then have nothing to write to for a while."""
MENDING = ("lookup_region_port", "resume_volume_deletion", "lost_instances", "saga_recovery", "lease_reaper")
"""Background tasks that have a part in it, and are not called by the name of it."""


@dataclass(slots=True)
class PhysicalDisk:
    """``place``: the sled of the rack file whose agent it is."""

    serial: str
    place: str
    id: str = ""


@dataclass(slots=True)
class Sled:
    """A sled that Nexus knows; its host is that of the sled of the same name in the rack file."""

    name: str
    id: str = ""
    disks: list[PhysicalDisk] = field(default_factory=list)


class Hardware:
    """What of the rack is in service, and what lies on the shelf. ``caller``: as an operator, when the rack is up."""

    caller: Caller

    def __init__(self, rack: Rack, spare_sleds: int, spare_disks: int, say: Callable[[str], None]) -> None:
        self.rack, self.say = rack, say
        self.sleds: list[Sled] = []
        self.spare_sleds = [f"sled{SLEDS + number}" for number in range(min(spare_sleds, SPARE_SLEDS_MAX))]
        self.spare_disks = [f"disk{number}" for number in range(SLEDS + min(spare_disks, SPARE_DISKS_MAX))]
        self.died_s: dict[str, float] = {}
        """When the host of a sled was killed last, or its sled given up."""
        self.expunged: list[str] = []

    @property
    def hosts(self) -> list[str]:
        """The sleds whose hosts guests may be on."""
        return [each.name for each in self.sleds]

    async def ask_rack(self, do: str, sled: str | None = None) -> list[Json]:
        """The services of the rack when it is done."""
        request = {"do": do} | ({} if sled is None else {"sled": sled})
        found = await trio.to_thread.run_sync(partial(asking.ask, self.rack.directory, request))
        return list(found["services"])

    # -- the shelf ------------------------------------------------------------------------------------------------

    def write_ports(self) -> None:
        """Into a new rack file: few enough for an agent that those of the shelf get some."""
        path = self.rack.directory / "rack.toml"
        path.write_text(f"ports_per_agent = {PORTS_PER_AGENT}\n" + path.read_text())

    def write_shelf(self) -> None:
        """Into the rack file, while the rack is down."""
        path = self.rack.directory / "rack.toml"
        lines = [path.read_text()]
        for name in self.spare_sleds:
            lines += ["[[sled]]", f'name = "{name}"', "disks = 1", "pantry = true"]
        for name in self.spare_disks:
            lines += ["[[sled]]", f'name = "{name}"', "disks = 1", "host = false"]
        path.write_text("\n".join(lines) + "\n")

    async def begin(self) -> None:
        """The shelf is dead; each of the first sleds gets a second disk."""
        for name in (*self.spare_sleds, *self.spare_disks):
            await self.ask_rack("kill", name)
        for number in range(SLEDS):
            self.sleds.append(Sled(f"sled{number}"))
            await self.add_disk(self.sleds[-1])

    async def add_disk(self, sled: Sled) -> None:
        place = self.spare_disks.pop(0)
        await self.ask_rack("start", place)
        await self._introduce(sled, place)

    async def add_sled(self) -> None:
        name = self.spare_sleds.pop(0)
        await self.ask_rack("start", name)
        new = Sled(name)
        await self._introduce(new)
        await self.add_disk(new)
        self.sleds.append(new)

    async def _introduce(self, sled: Sled, *more: str) -> None:
        """Tell Nexus of a sled, and of disks that are new in it."""
        services = await self.ask_rack("status")
        # What is in the sled's own place is told of once: when it is lost it is not to come again.
        places = {*more, *(() if sled.id else (sled.name,))}
        agents = [each for each in services if each["kind"] == "agent" and each["sled"] in places]
        urls = {each["kind"]: each["url"] for each in services if each["sled"] == sled.name}
        body: Json = {
            "serial": sled.name,
            "host": address_of(urls["host"]).model_dump(),
            "pantry": address_of(urls["pantry"]).model_dump() if "pantry" in urls else None,
            "agents": [
                address_of(each["url"]).model_dump() | {"size_bytes": parse_size(DISK_SIZE), "serial": each["name"]}
                for each in agents
            ],
        }
        sled.id = (await self.insist("POST", "/emulator/v1/sleds", body))["id"]
        known = {each["serial"]: each["id"] for each in await self.everything("/emulator/v1/physical-disks")}
        sled.disks += [PhysicalDisk(each["name"], each["sled"], known[each["name"]]) for each in agents]

    # -- asking ---------------------------------------------------------------------------------------------------

    async def insist(self, method: str, path: str, body: Json = None, **query: str) -> Json:
        """The answer; asked again where none came. Raises :class:`Violation` for a refusal, or no answer at all."""
        with trio.move_on_after(REPLACED_S_MAX):
            while True:
                status, answer = await self.caller.ask(method, path, body, **query)
                if 200 <= status < 300:
                    return answer
                if status not in (0, 503):
                    raise Violation(f"{method} {path}: {status} {answer}")
                await trio.sleep(LOOK_S)
        raise Violation(f"{method} {path}: no answer")

    async def everything(self, path: str, **query: str) -> list[Json]:
        """A whole listing."""
        found: list[Json] = []
        more: dict[str, str] = {}
        while True:
            page = await self.insist("GET", path, limit="500", **query, **more)
            found += page["items"]
            if page.get("next_page") is None:
                return found
            more = {"page_token": page["next_page"]}

    async def activate(self) -> None:
        """Have one Nexus look again for everything that is to be mended, where it would come by every half minute."""
        status, known = await self.caller.ask("GET", "/bgtasks")
        if status == 200:
            names = [each for each in known if "replacement" in each or each in MENDING]
            await self.caller.ask("POST", "/bgtasks/activate", {"bgtask_names": names})

    # -- replaced -------------------------------------------------------------------------------------------------

    async def replaced(self, what: str) -> None:
        """Return when no request is open and nothing that is lost is without a successor."""
        began = told = trio.current_time()
        while True:
            lost = (await self.insist("GET", "/emulator/v1/replacements/to-do"))["copies"]
            report = await self.insist("GET", "/emulator/v1/replacements/waiting")
            if not lost and not report["requests"]:
                self.say(f"{what} is replaced after {trio.current_time() - began:.1f} s")
                return
            if trio.current_time() > began + REPLACED_S_MAX:
                raise Violation(f"{what} is not replaced after {REPLACED_S_MAX:.0f} s: {_reasons(lost, report)}")
            if trio.current_time() > told + PATIENCE_S:
                told = trio.current_time()
                self.say(f"{what} is not replaced yet: {_reasons(lost, report)}")
            await trio.sleep(LOOK_S)


def _reasons(lost: list[Json], report: Json) -> str:
    told = [
        f"{each['request']['kind']} {each['request']['old_region_id']} ({each['request']['state']}): "
        + "; ".join(f"since {reason['since']} {reason['sentence']}" for reason in each["reasons"])
        for each in report["requests"]
    ]
    unasked = [f"{each['kind']} {each['region_id']}: nobody has asked" for each in lost if not each["request_id"]]
    return " | ".join((told + unasked)[:5])


# -- deaths that pass -------------------------------------------------------------------------------------------------


async def killing(hardware: Hardware, random: Random, kills: Counter[str]) -> None:
    """One process after the other gets SIGKILL, for ever."""
    while True:
        await trio.sleep(random.uniform(*KILL_EVERY_S))
        services = await hardware.ask_rack("status")
        if any(each["state"] == "failed" for each in services):
            # Several deaths in a row are enough for the supervisor; a person looks after it then.
            services = await hardware.ask_rack("up")
        (kind,) = random.choices(list(KINDS), list(KINDS.values()))
        in_service = {place for sled in hardware.sleds for place in (sled.name, *(d.place for d in sled.disks))}
        alike = [each for each in services if _is(each, kind, in_service)]
        living = [each for each in alike if each["state"] == "ready" and each["pid"]]
        # As fast as this machine brings them back; seldom two at once.
        if living and (len(living) == len(alike) or random.random() < TWO_AT_ONCE):
            victim = random.choice(living)
            if kind == "host":
                hardware.died_s[victim["sled"]] = trio.current_time()
            os.kill(victim["pid"], signal.SIGKILL)
            kills[kind] += 1


def _is(service: Json, kind: str, in_service: set[str]) -> bool:
    if kind == "nexus":
        return bool(service["name"].startswith(kind))
    return service["kind"] == kind and service["sled"] in in_service


# -- losses that do not -----------------------------------------------------------------------------------------------


async def losing(hardware: Hardware, random: Random, expunges: Counter[str], goes_on: Callable[[], bool]) -> None:
    """One disk or sled after the other is lost for good, and replaced before the next."""
    number = 0
    while goes_on():
        number += 1
        if number % SLED_EVERY == 0 and hardware.spare_sleds and hardware.spare_disks:
            what = await lose_sled(hardware, random)
            expunges["sled"] += 1
        elif hardware.spare_disks:
            what = await lose_disk(hardware, random)
            expunges["disk"] += 1
        else:
            return  # the shelf is empty
        hardware.say(f"{what} is expunged")
        await hardware.replaced(what)
        await trio.sleep(random.uniform(0, 2))


async def lose_disk(hardware: Hardware, random: Random) -> str:
    """It may have died before, may die later, or never; a new one comes before or after it is given up."""
    sled = random.choice(hardware.sleds)
    disk = random.choice(sled.disks)
    sled.disks.remove(disk)
    first = random.random() < 0.5
    if first:
        await hardware.add_disk(sled)
    # What has its agent in the sled's own place in the rack file lives as long as the sled.
    if disk.place != sled.name and random.random() < 0.7:
        await hardware.ask_rack("kill", disk.place)
    await hardware.insist("POST", f"/emulator/v1/physical-disks/{disk.id}/expunge")
    hardware.expunged.append(disk.id)
    if not first:
        await hardware.add_disk(sled)
    return f"disk {disk.serial} of {sled.name}"


async def lose_sled(hardware: Hardware, random: Random) -> str:
    sled = random.choice(hardware.sleds)
    first = random.random() < 0.5
    if first:
        await hardware.add_sled()
    hardware.sleds.remove(sled)
    if random.random() < 0.7:
        hardware.died_s[sled.name] = trio.current_time()
        for place in {sled.name, *(each.place for each in sled.disks)}:
            await hardware.ask_rack("kill", place)
    hardware.died_s[sled.name] = float("inf")
    await hardware.insist("POST", f"/emulator/v1/sleds/{sled.id}/expunge")
    hardware.expunged += [each.id for each in sled.disks]
    if not first:
        await hardware.add_sled()
    return sled.name


def sockets_of(root: Path, hosts: list[str], disk_id: str) -> list[Path]:
    """Where a disk may be had just now."""
    return [path for name in hosts if (path := root / name / "host" / f"{disk_id}.sock").exists()]
