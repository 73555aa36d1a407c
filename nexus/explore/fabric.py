"""The sleds of a light rack, and who listens where: the network, without a network.

What it guarantees: an address is answered by whatever listens there *at that moment*. Ports of what is destroyed are
given to the next, the lowest first, so that an address that is kept too long leads to a stranger, as it would in a real
rack. A sled that is dead answers nothing, neither its agent nor its Downstairs, hosts and pantry.

Troubles are switches here: an agent may be slow, may lose answers (it does what it was asked, and nobody hears of it),
may refuse after it did it, or be silent for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crucible_emu.agent.documents import State
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from nexus.explore.storage import Contents, Region
from nexus.volumes import Address

FIRST_PORT = 20000
PORTS = 64
REPAIR_PORT_OFFSET = 4000
AGENT_PORT, HOST_PORT, PANTRY_PORT = 17000, 17500, 17900


@dataclass(slots=True)
class Trouble:
    """What is wrong with a sled's services. ``lost_answers`` and ``refusals`` count down; ``slow_s`` is how long an
    agent takes to make or destroy something."""

    silent: bool = False
    lost_answers: int = 0
    refusals: int = 0
    slow_s: float = 0.0


@dataclass(slots=True)
class Sled:
    """One sled: a dataset with its regions, a place for guests, and perhaps a pantry."""

    number: int
    ip: str
    sled_id: str = ""
    disk_id: str = ""
    dataset_id: str = ""
    alive: bool = True
    trouble: Trouble = field(default_factory=Trouble)
    regions: dict[str, Region] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        return self.alive and not self.trouble.silent

    def free_port(self) -> int:
        """The lowest that nothing living has."""
        taken = {each.port for each in self.regions.values() if each.state is not State.DESTROYED}
        for region in self.regions.values():
            taken |= {each.port for each in region.served.values() if each.state is not State.DESTROYED}
        return next(port for port in range(FIRST_PORT, FIRST_PORT + PORTS) if port not in taken)

    def request(self, url: str) -> None:
        """A request comes in. Raises :class:`ServiceUnreachable`."""
        if not self.answers:
            raise ServiceUnreachable(url, "nobody answers")

    def answer(self, url: str) -> None:
        """What was asked for is done, and the answer is on its way. Raises :class:`ServiceUnreachable`,
        :class:`ServiceError`."""
        if self.trouble.lost_answers:
            self.trouble.lost_answers -= 1
            raise ServiceUnreachable(url, "the answer was lost")
        if self.trouble.refusals:
            self.trouble.refusals -= 1
            raise ServiceError(500, "it was done, and this says that it failed")


@dataclass(slots=True)
class Downstairs:
    """What listens at an address: a region, or a snapshot of one (and then nobody writes)."""

    region: Region
    contents: Contents
    read_only: bool


class Fabric:
    """All sleds. ``now_s`` is the clock."""

    def __init__(self, sleds: int) -> None:
        self.sleds = [Sled(number, f"fd00::{number + 1:x}") for number in range(sleds)]
        self.sessions = 0
        self.wrong_orders: list[str] = []
        """What a service was asked for in the wrong order, and had to refuse: a Nexus that knows what it does never
        asks for it."""
        self.now_s: Callable[[], float] = lambda: 0.0

    def __getstate__(self) -> dict[str, object]:
        return {"sleds": self.sleds, "sessions": self.sessions}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.wrong_orders = []
        self.now_s = lambda: 0.0

    def refuse(self, status: int, sentence: str) -> ServiceError:
        """The answer to a wrong order, which is noted."""
        self.wrong_orders.append(sentence)
        return ServiceError(status, sentence)

    def sled_at(self, ip: str) -> Sled | None:
        return next((each for each in self.sleds if each.ip == ip), None)

    def by_dataset(self, dataset_id: str) -> Sled:
        return next(each for each in self.sleds if each.dataset_id == dataset_id)

    def new_session(self) -> str:
        self.sessions += 1
        return f"session-{self.sessions}"

    def downstairs(self, target: str) -> Downstairs | None:
        """What listens at ``[ip]:port``; ``None`` where nobody does."""
        address = Address.parse(target)
        sled = self.sled_at(address.ip)
        if sled is None or not sled.answers:
            return None
        return next((found for port, found in listening(sled) if port == address.port), None)

    def repair_source(self, source: str) -> Contents | None:
        """The bytes behind a repair address."""
        address = Address.parse(source)
        found = self.downstairs(str(Address.of(address.ip, address.port - REPAIR_PORT_OFFSET)))
        return None if found is None else found.contents


def listening(sled: Sled) -> Iterator[tuple[int, Downstairs]]:
    """Every Downstairs of a sled, and its port."""
    for region in sled.regions.values():
        if region.state is State.CREATED:
            yield region.port, Downstairs(region, region.contents, region.read_only)
        for name, served in region.served.items():
            if served.state is State.CREATED:
                yield served.port, Downstairs(region, region.snapshots[name], True)
