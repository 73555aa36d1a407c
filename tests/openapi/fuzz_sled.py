"""What the fuzz runs against, of a sled: an agent, a pantry and a host, each with regions and disks behind it.

Each is the service as its command starts it, on a socket of loopback. The agent has regions, one of them written to,
with snapshots of which one runs. The pantry holds a volume of three Downstairs and volumes of plain files, and has an
image to import. The host has an instance with a disk of three Downstairs, and one below its own routes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import trio
from agent_rig import POOL, Served, own_host
from disk_rig import make_regions, region_set
from fuzz_judge import World
from fuzz_requests import Extension, Making
from host_rig import DISK, ensure_body
from hypothesis import strategies as st
from image_server import image_server
from openapi_document import Operation, load

from crucible_emu.agent import AgentOptions, agent_api, running_agent
from crucible_emu.agent.api import BODY_BYTES_MAX as AGENT_BODY_BYTES_MAX
from crucible_emu.host import Settings, hosting
from crucible_emu.host import api as host_api
from crucible_emu.host.operations import BODY_BYTES_MAX as HOST_BODY_BYTES_MAX
from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.operations import BODY_BYTES_MAX as PANTRY_BODY_BYTES_MAX
from crucible_emu.pantry.operations import api as pantry_api
from crucible_emu.service import Exposure, application, serving
from crucible_emu.volume import vcr

BLOCK = 4096
DISK_BYTES = 1 << 20
LEARNT_MAX = 16
ANYWHERE = Exposure("127.0.0.1:0")
NOBODY = "127.0.0.1:9"
CAPACITY_BYTES = 64 << 20

# -- agent ------------------------------------------------------------------------------------------------------------

REGIONS = [str(UUID(int=number + 1)) for number in range(24)]
WRITTEN = REGIONS[0]
SNAPSHOTS = [f"snapshot-{number}" for number in range(10)]
RUNNING = SNAPSHOTS[0]


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[World]:
    """Three regions, the first of them with snapshots, one of which runs."""
    options = AgentOptions(host=own_host(), pool=POOL, capacity_bytes=CAPACITY_BYTES)
    async with running_agent(folder, options) as made:
        api = agent_api(made)
        transport = httpx2.ASGITransport(app=application(api))
        async with httpx2.AsyncClient(transport=transport, base_url="http://agent") as http:
            served = Served(made, http)
            for region_id in REGIONS[:3]:
                await served.made(region_id)
            for generation, name in enumerate(SNAPSHOTS, start=1):
                await served.fill(WRITTEN, generation, snapshot=name, generation=generation)
            repair_port = (await served.run(WRITTEN, RUNNING))["port_number"] + 4000
        numbers = st.sampled_from([512, 4096, 8, 1, 4, 0, 3, 2**32, 2**64 - 1])
        source = st.sampled_from([None, f"{options.host}:{repair_port}", NOBODY, "[::1]:9", "here"])
        wishes = st.fixed_dictionaries(
            {
                "id": st.sampled_from(REGIONS),
                "block_size": st.just(512) | numbers,
                "extent_size": st.just(8) | numbers,
                "extent_count": st.just(4) | numbers,
                "encrypted": st.booleans(),
            },
            optional={"source": source, "cert_pem": st.none(), "root_pem": st.text(max_size=9)},
        )
        sensible = st.sampled_from(REGIONS).map(
            lambda name: {"id": name, "block_size": 512, "extent_size": 8, "extent_count": 4, "encrypted": False}
        )
        base = "/crucible/0/regions/{id}"
        async with serving(api, ANYWHERE) as url:
            yield World(
                url,
                Making(
                    load("agent"),
                    AGENT_BODY_BYTES_MAX,
                    versioned=True,
                    bodies={"region_create": sensible | wishes},
                    extensions=[
                        Extension("GET", f"{base}/digest"),
                        Extension("GET", f"{base}/snapshots/{{name}}/digest"),
                    ],
                ),
                _agent_known,
                documented=frozenset({("region_delete", 503)}),
                told=frozenset({"region not made"}),
            )


def _agent_known(operation: Operation, name: str, n: int) -> str | None:
    if name == "name":
        return SNAPSHOTS[n % len(SNAPSHOTS)]
    return WRITTEN if "snapshots" in operation.path or n % 2 else REGIONS[n % len(REGIONS)]


# -- disks ------------------------------------------------------------------------------------------------------------


def volume_of(*parts: vcr.VolumeConstructionRequest, parent: vcr.VolumeConstructionRequest | None = None) -> Any:
    """A volume's request."""
    return vcr.VolumeRequest(type="volume", id=uuid4(), block_size=BLOCK, sub_volumes=parts, read_only_parent=parent)


def replaced_third(volume: Any, region: vcr.RegionRequest) -> Any:
    """``volume`` over the region set with another third target, where nobody is."""
    opts = region.opts.model_copy(update={"target": (*region.opts.target[:2], NOBODY)})
    return volume.model_copy(update={"sub_volumes": (region.model_copy(update={"opts": opts}),)})


def written(request: vcr.VolumeConstructionRequest) -> Any:
    """The request as JSON's objects."""
    return json.loads(vcr.dumps(request))


def file_of(folder: Path, name: str) -> vcr.VolumeConstructionRequest:
    """A file of a mebibyte as a disk."""
    path = folder / name
    path.write_bytes(bytes(DISK_BYTES))
    return vcr.FileRequest(type="file", id=uuid4(), block_size=BLOCK, path=str(path))


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[Callable[[int], vcr.RegionRequest]]:
    """A region set of a mebibyte on loopback: yields what makes its request with a generation."""
    paths = make_regions(folder, block_size=BLOCK, blocks_per_extent=16, extent_count=16)
    async with region_set(paths) as servers:
        yield servers.request


# -- pantry -----------------------------------------------------------------------------------------------------------

HELD = "held"
FILES = [f"file-{number}" for number in range(4)]


class PantryIds:
    """Volumes by name, and the jobs that were started last."""

    def __init__(self) -> None:
        self.jobs: list[str] = [HELD]

    def known(self, operation: Operation, name: str, n: int) -> str | None:
        if "/job/" in operation.path:
            return self.jobs[n % len(self.jobs)]
        if operation.operation_id == "detach":
            return FILES[n % len(FILES)]
        return HELD if n % 4 == 0 else FILES[n % len(FILES)]

    def learn(self, _operation: Operation, body: bytes) -> None:
        found = json.loads(body) if body else None
        if isinstance(found, dict) and "job_id" in found:
            self.jobs = [*self.jobs, found["job_id"]][-LEARNT_MAX:]


def _pantry_bodies(requests: list[Any], replacement: Any, image_url: str) -> dict[str, st.SearchStrategy[Any]]:
    request = st.sampled_from(requests)
    digest = st.sampled_from([hashlib.sha256(bytes(DISK_BYTES)).hexdigest(), "0" * 64, "no digest", ""])
    expected = st.fixed_dictionaries({"sha256": digest})
    offset = st.sampled_from([0, BLOCK, DISK_BYTES - BLOCK, DISK_BYTES, 1, 2**64 - 1, 2**64 - BLOCK])
    size = st.sampled_from([BLOCK, 0, 1, 512 * 1024, 512 * 1024 + BLOCK, DISK_BYTES, 2**63])
    data = st.sampled_from([bytes(BLOCK), b"\x07" * 2 * BLOCK, b"", b"x", bytes(512 * 1024)])
    encoded = data.map(lambda raw: base64.b64encode(raw).decode()) | st.sampled_from(["=", "!!!!", "AA", "\u00e9"])
    urls = st.sampled_from([image_url, f"http://{NOBODY}/x", "file:///dev/zero", "", "http://", "ftp://127.0.0.1/x"])
    return {
        "attach": st.fixed_dictionaries({"volume_construction_request": request}),
        "attach_activate_background": st.fixed_dictionaries(
            {"volume_construction_request": request, "job_id": st.sampled_from([*FILES, "another"])}
        ),
        "replace": st.fixed_dictionaries({"volume_construction_request": request | st.just(replacement)}),
        "bulk_write": st.fixed_dictionaries({"offset": offset, "base64_encoded_data": encoded}),
        "bulk_read": st.fixed_dictionaries({"offset": offset, "size": size}),
        "import_from_url": st.fixed_dictionaries({"url": urls}, optional={"expected_digest": expected | st.none()}),
        "snapshot": st.fixed_dictionaries(
            {"snapshot_id": st.uuids().map(str) | st.sampled_from(["a", "", "..", "a/b", "x" * 300, "\x00"])}
        ),
        "validate": st.fixed_dictionaries(
            {"expected_digest": expected}, optional={"size_to_validate": size | st.none()}
        ),
    }


@asynccontextmanager
async def pantry(folder: Path) -> AsyncIterator[World]:
    """A volume over three Downstairs, attached; files that are attached and detached."""
    made, ids = Pantry(reconnect_delay_s=0.05), PantryIds()
    async with replicated(folder) as request, image_server(bytes(DISK_BYTES)) as images, trio.open_nursery() as nursery:
        await nursery.start(made.run)
        held = volume_of(request(1))
        files = [volume_of(file_of(folder, name)) for name in FILES]
        other = held.model_copy(update={"sub_volumes": (request(2),)})
        async with serving(pantry_api(made), ANYWHERE) as url, httpx2.AsyncClient(base_url=url, timeout=60) as http:
            for name, each in ((HELD, held), *zip(FILES, files)):
                answer = await http.post(
                    f"/crucible/pantry/0/volume/{name}",
                    json={"volume_construction_request": written(each)},
                    headers={"api-version": "2.0.0"},
                )
                assert answer.status_code == 200, answer.text
            yield World(
                url,
                Making(
                    load("pantry"),
                    PANTRY_BODY_BYTES_MAX,
                    versioned=True,
                    bodies=_pantry_bodies(
                        [written(each) for each in (held, other, *files, *files)],
                        written(replaced_third(held, request(1))),
                        images.url,
                    ),
                    extensions=[Extension("GET", "/crucible/pantry/0/job/{id}")],
                ),
                ids.known,
                documented=PANTRY_MEANT,
                slow=frozenset({"job_result_ok", "attach"}),
                learn=ids.learn,
                behind={"image": images.url, "held": held, "replaced": replaced_third(held, request(1))},
            )
        nursery.cancel_scope.cancel()


_TOUCHING = ("replace", "import_from_url", "snapshot", "bulk_write", "bulk_read", "scrub", "validate", "detach")
PANTRY_MEANT = frozenset((name, 503) for name in (*_TOUCHING, "attach", "attach_activate_background"))
"""What the contract answers with 500 and above: a volume that is not active."""

# -- host -------------------------------------------------------------------------------------------------------------

NOT_OFFERED = frozenset(
    {"instance_migrate_start", "instance_issue_nmi", "instance_serial", "instance_serial_history_get"}
)
"""Operations of a virtual machine, which the host does not have."""
HOSTED = [str(UUID(int=number + 1)) for number in range(3)]


def _host_known(operation: Operation, name: str, n: int) -> str | None:
    if name == "id":
        return DISK if n % 8 else "none"
    return HOSTED[n % len(HOSTED)] if name == "instance_id" else str(UUID(int=n))


@asynccontextmanager
async def host(folder: Path) -> AsyncIterator[World]:
    """An instance that runs, and others that are ensured and stopped."""
    state = folder / "host"
    state.mkdir()
    settings = Settings(state, reconnect_delay_s=0.05, scrub_delay_s=None)
    async with replicated(folder) as request, hosting(settings) as made:
        disk = volume_of(request(1))
        again = disk.model_copy(update={"sub_volumes": (request(2),)})
        requests = [disk, again, replaced_third(disk, request(2)), volume_of(file_of(folder, "disk"))]
        texts = [vcr.dumps(each) for each in requests]
        ensures = st.sampled_from([ensure_body(each) for each in (*requests, None)])
        bodies = {
            "instance_ensure": ensures,
            "instance_state_put": st.sampled_from(["Run", "Run", "Run", "Run", "Reboot", "Stop"]),
            "instance_state_monitor": st.fixed_dictionaries({"gen": st.integers(0, 3)}),
            "instance_issue_crucible_vcr_request": st.fixed_dictionaries(
                {"vcr_json": st.sampled_from([*texts, "", "{}", "[" * 5000, "null", '{"type": "volume"}'])}
            ),
        }
        async with serving(host_api(made), ANYWHERE) as url:
            yield World(
                url,
                Making(
                    load("host"),
                    HOST_BODY_BYTES_MAX,
                    versioned=True,
                    bodies=bodies,
                    extensions=_host_extensions(bodies),
                    skipped=NOT_OFFERED,
                ),
                _host_known,
                behind={"requests": requests},
                slow=frozenset({"instance_state_monitor", "(ours) GET /hosts/0/instances/{instance_id}/state-monitor"}),
            )


def _host_extensions(bodies: dict[str, st.SearchStrategy[Any]]) -> list[Extension]:
    one = "/hosts/0/instances/{instance_id}"
    return [
        Extension("GET", "/instance/disks"),
        Extension("GET", "/hosts/0/instances"),
        Extension("PUT", one, bodies["instance_ensure"]),
        Extension("GET", one),
        Extension("GET", f"{one}/disks"),
        Extension("GET", f"{one}/disk/{{id}}/status"),
        Extension("PUT", f"{one}/state", bodies["instance_state_put"]),
        Extension("GET", f"{one}/state-monitor", bodies["instance_state_monitor"]),
    ]


SLED_WORLDS = {"agent": agent, "pantry": pantry, "host": host}
