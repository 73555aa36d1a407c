"""What the fuzz runs against: a Downstairs' repair service, an Upstairs' control API, a supervisor's control API.

Each is the service as its command starts it, on a socket, with something behind it: a region with closed and open
extents, region sets in several states with jobs in flight, processes that are stopped and started.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from socket import create_server
from uuid import UUID

import numpy as np
import trio
from downstairs_rig import BLOCK, contexts_of, definition, payload
from downstairs_rig import serving as serving_downstairs
from fuzz_judge import World
from fuzz_requests import Extension, Making
from hypothesis import strategies as st
from openapi_document import Operation, load
from upstairs_rig import Rig

from crucible_emu.control.server import BODY_BYTES_MAX, Control, serve_control
from crucible_emu.downstairs.repair_http import BODY_BYTES_MAX as REPAIR_BODY_BYTES_MAX
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.supervisor import Fleet, Member
from crucible_emu.supervisor.control import Control as DscControl
from crucible_emu.supervisor.control import serving as serving_dsc
from crucible_emu.supervisor.driver import Launch, Supervisor
from crucible_emu.supervisor.layout import Place, uuid_of
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.links import Connector

MEMBERS = 3
STAND_IN = "echo '{\"ready\": true}'; exec cat"
"""A process that says what a Downstairs says, for the supervisor to start and stop."""


# -- repair -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def repair(folder: Path) -> AsyncIterator[World]:
    """A region of four extents; one of them is closed."""
    with Region.create(folder / "region", definition()) as region:
        region.write(np.arange(16), np.full((16, BLOCK), 7, np.uint8), contexts_of(payload(16, 7)))
        region.flush(1, 1)
        region.close_extent(1)
        async with serving_downstairs(region) as server:
            yield World(
                f"http://{server.repair_address}",
                Making(load("repair"), REPAIR_BODY_BYTES_MAX, versioned=False),
                lambda operation, name, n: str(n % 5) if name == "eid" else "data",
            )


# -- the Upstairs' control API ----------------------------------------------------------------------------------------

USED = [f"127.0.0.1:{4000 + client}" for client in range(3)]
OTHERS = [f"[::1]:{5000 + number}" for number in range(4)]


class Nowhere:
    """The way to a Downstairs that nobody goes."""

    in_process = False

    def __init__(self, target: str) -> None:
        self.target = target

    async def run(self, port: object) -> str:
        raise AssertionError("nobody connects here")


class Unmoved(Upstairs):
    """An Upstairs that carries out nothing: its core is moved by the rig."""

    def perform(self) -> None:
        self.core.take_actions()


def upstairs_of(rig: Rig, number: int = 0) -> Upstairs:
    """An Upstairs over a scripted region set; with ``number`` it has another id."""
    if number:
        rig.core.identity = type(rig.core.identity)(UUID(int=100 + number), UUID(int=200 + number))

    def connector_for(_client: int, target: str) -> Connector:
        return Nowhere(target)

    return Unmoved(rig.core, [Nowhere(target) for target in USED], connector_for=connector_for)


def region_sets() -> list[Upstairs]:
    """Region sets in several states: with jobs, with a lost replica, not connected yet."""
    busy = Rig().active()
    for start in range(6):
        busy.write(start)
    busy.flush("flush")
    busy.answer_all()
    busy.write(5)
    busy.read("read")
    hurt = Rig().active()
    hurt.write()
    hurt.fault(1)
    return [upstairs_of(busy), upstairs_of(hurt, 1), upstairs_of(Rig(), 2)]


@asynccontextmanager
async def control(folder: Path) -> AsyncIterator[World]:
    """Three region sets; ``/info`` and ``/work`` take ``?upstairs=``, an extension, through hostile queries."""
    sets = region_sets()
    listener = create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    address = st.sampled_from([*USED, *OTHERS, "127.0.0.1:0", "localhost:1", "", "[::1]:99999"])
    extensions = [
        Extension("GET", "/trace"),
        Extension("GET", "/metrics"),
        Extension("GET", "/volume-info"),
        Extension("POST", "/replace", st.fixed_dictionaries({"old": address, "new": address})),
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, Control(sets), listener)
        yield World(
            f"http://{host}:{port}",
            Making(load("control"), BODY_BYTES_MAX, versioned=False, extensions=extensions),
            lambda operation, name, n: None,
        )
        nursery.cancel_scope.cancel()


# -- the supervisor's control API -------------------------------------------------------------------------------------


def _cid_or_seconds(_operation: Operation, name: str, n: int) -> str | None:
    """Members that exist, and the one after; windows of random stops, long but for the first; signals."""
    if name == "name":
        return ("stop", "cont", "term", "kill", "STOP")[n % 5]
    if name == "cid":
        return str(n % (MEMBERS + 1))
    return str(n if name == "min" else n + 10)


@asynccontextmanager
async def dsc(folder: Path) -> AsyncIterator[World]:
    """Three processes that do nothing."""
    places = [Place(cid, folder / str(8810 + 10 * cid), 8810 + 10 * cid) for cid in range(MEMBERS)]
    fleet = Fleet([Member(place.cid, place.port, uuid_of(place.port)) for place in places], Random(0))
    launch = Launch(("sh", "-c", STAND_IN), "127.0.0.1", folder)
    supervisor = Supervisor(fleet, places, launch, lambda _changed: None)
    served = DscControl(supervisor, RegionDefinition(4096, 100, 15, UUID(int=1)), volume_request=lambda: {})
    extensions = [Extension("POST", "/signal/cid/{cid}/{name}"), Extension("GET", "/members"), Extension("GET", "/vcr")]
    async with serving_dsc(served, "127.0.0.1:0") as url, trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield World(
            url,
            Making(
                load("dsc"), BODY_BYTES_MAX, versioned=False, extensions=extensions,
                skipped=frozenset({"dsc_shutdown"}),
            ),
            _cid_or_seconds,
            last=("dsc_shutdown",),
        )  # fmt: skip
        supervisor.shut_down()


WORLDS = {"repair": repair, "control": control, "dsc": dsc}
