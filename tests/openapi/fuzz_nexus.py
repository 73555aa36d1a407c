"""What the fuzz runs against, of Nexus: its three APIs, over a rack in one process with real agents.

There are disks with snapshots and images, one of them being imported, and an instance that runs. Who asks has a
tenant's token at the external API, the operator's at the lockstep API, and none at the internal one. Names come from a
few, so that things are made, found, made again in vain, and deleted.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openapi_neighbours  # noqa: F401  opens the ways to the neighbours
from api_rig import OPERATOR, SIZE_BYTES, Served, disk_wish, served
from db_rig import open_database
from fuzz_judge import World
from fuzz_requests import Extension, Making
from hypothesis import strategies as st
from nexus_doings import REGION, REPAIR, SESSION, TIME, UPSTAIRS
from openapi_document import Operation, load

from crucible_emu.service import Api, Exposure, serving
from nexus.api import external, internal, lockstep
from nexus.api.callers import Doors
from nexus.api.emulator_documents import BASE
from nexus.db import schema
from nexus.objects import tenants

ANYWHERE = Exposure("[::1]:0")
NAMES = ("alpha", "beta", "gamma", "delta")
NEVER = "11111111-2222-4333-8444-555555555555"
MEANT = frozenset(
    {(name, 507) for name in ("disk_create", "snapshot_create", "instance_create", "disk_finalize_import")}
    | {(f"(ours) POST {BASE}/volumes/{{volume_id}}/verify", 503)}
)
"""What the contract answers with 500 and above: there is no room, or after all sleds were expunged no pantry."""


@dataclass
class WithToken(Making):
    """Requests that carry a token."""

    token: str | None = field(default=None, repr=False)

    def headers(self, operation: Operation) -> dict[str, str]:
        given = super().headers(operation)
        return given if self.token is None else given | {"authorization": f"Bearer {self.token}"}


async def furnished(it: Served) -> Mapping[str, Sequence[str]]:
    """What there is, by the name of the parameter that says it."""
    importing = {"type": "importing_blocks", "block_size": 512}
    await it.disk("alpha")
    await it.user.ask("POST", "/v1/disks", disk_wish("beta", importing), 201)
    frozen = await it.user.ask("POST", "/v1/snapshots", {"name": "alpha", "description": "", "disk": "alpha"}, 201)
    wish: dict[str, Any] = {"name": "alpha", "description": "", "os": "o", "version": "1"}
    wish["source"] = {"type": "snapshot", "id": frozen["id"]}
    image = await it.user.ask("POST", "/v1/images", wish, 201, project="project")
    await it.disk("gamma")
    attached = [{"type": "attach", "name": "gamma"}]
    wish = {"name": "alpha", "description": "", "hostname": "vm", "ncpus": 1, "memory": 0, "disks": attached}
    await it.user.ask("POST", "/v1/instances", wish, 201)

    def ids(table: Any) -> list[str]:
        return list(it.rack.run(lambda c: [row[0] for row in c.execute(table.select().with_only_columns(table.c.id))]))

    return {
        "disk": [*NAMES, *ids(schema.disk)],
        "snapshot": [*NAMES, frozen["id"]],
        "image": [*NAMES, image["id"]],
        "instance": NAMES,
        "project": ["project", "other-project", it.rack.project_id, it.other_project],
        "sled_id": ids(schema.sled),
        "disk_id": ids(schema.disk) + ids(schema.physical_disk),
        "volume_id": ids(schema.volume),
        "propolis_id": ids(schema.vmm),
        "upstairs_id": [UPSTAIRS],
        "downstairs_id": [REGION],
        "repair_id": [REPAIR],
        "saga_id": ids(schema.saga),
        "token_id": ids(schema.access_token),
        "request_id": [REPAIR],
        "region_id": ids(schema.region),
        "dataset_id": ids(schema.crucible_dataset),
        "bgtask_name": it.nexus.tasks.names,
        "limit": ["1", "0", "-1", "1000", "x", "4294967296"],
        "sort_by": ["name_ascending", "name_descending", "id_ascending", "size"],
        "page_token": ["", "e30=", "eyJ2IjogMSwgImJ5IjogIm5hbWVfYXNjZW5kaW5nIiwgImxhc3QiOiAiYSJ9"],
    }


def _external_bodies(there: Mapping[str, Sequence[str]]) -> dict[str, st.SearchStrategy[Any]]:
    names, disks = st.sampled_from(NAMES), st.sampled_from([*there["disk"], NEVER])
    snapshots, images = (st.sampled_from([there[each][-1], NEVER]) for each in ("snapshot", "image"))
    block_sizes, flags = st.sampled_from([512, 512, 4096, 1024]), st.booleans()
    sources = st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["blank", "importing_blocks"]), "block_size": block_sizes}),
        st.fixed_dictionaries({"type": st.just("snapshot"), "snapshot_id": snapshots, "read_only": flags}),
        st.fixed_dictionaries({"type": st.just("image"), "image_id": images, "read_only": flags}),
    )
    sizes = st.sampled_from([SIZE_BYTES, SIZE_BYTES, SIZE_BYTES, 1, 0, SIZE_BYTES // 2, 2**63, 2**64 - 1])
    backends = st.fixed_dictionaries({"type": st.just("distributed"), "disk_source": sources})
    named = {"name": names, "description": st.sampled_from(["", "words", "\0", "d" * 600])}
    disk = {**named, "size": sizes, "disk_backend": backends | st.just({"type": "local"})}
    attachments = st.one_of(
        st.fixed_dictionaries({"type": st.just("attach"), "name": names}),
        st.fixed_dictionaries({"type": st.just("create"), **disk}),
    )
    offsets = st.sampled_from([0, 512, 1, SIZE_BYTES - 512, SIZE_BYTES, 2**63, 2**64 - 1])
    data = st.sampled_from([base64.b64encode(bytes(n)).decode() for n in (0, 512, 1024, 513, 600_000)] + ["!", "é"])
    instance = {**named, "hostname": st.sampled_from(["vm", "-", ""]), "ncpus": st.just(1), "memory": st.just(0)}
    optional = {"start": flags, "disks": st.lists(attachments, max_size=2), "boot_disk": attachments | st.none()}
    return {
        "disk_create": st.fixed_dictionaries(disk),
        "disk_bulk_write_import": st.fixed_dictionaries({"offset": offsets, "base64_encoded_data": data}),
        "disk_finalize_import": st.fixed_dictionaries({}, optional={"snapshot_name": names | st.none()}),
        "snapshot_create": st.fixed_dictionaries({**named, "disk": disks}),
        "image_create": st.fixed_dictionaries(
            {
                **named,
                "os": st.just("o"),
                "version": st.just("1"),
                "source": st.fixed_dictionaries({"type": st.just("snapshot"), "id": snapshots}),
            }
        ),
        "instance_create": st.fixed_dictionaries(instance, optional=optional),
        "instance_disk_attach": st.fixed_dictionaries({"disk": disks}),
        "instance_disk_detach": st.fixed_dictionaries({"disk": disks}),
    }


def _internal_bodies() -> dict[str, st.SearchStrategy[Any]]:
    times = st.sampled_from([TIME, "2026-01-01T00:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "now"])
    addresses = st.sampled_from(["[fd00::1]:19000", "127.0.0.1:1", "[::1]:0", "[fe80::1%1]:1", "[::1]:99999", ""])
    repairs = st.lists(st.fixed_dictionaries({"region_uuid": st.just(REGION), "target_addr": addresses}), max_size=3)
    told = {
        "time": times,
        "session_id": st.just(SESSION),
        "repair_id": st.just(REPAIR),
        "repair_type": st.sampled_from(["live", "reconciliation"]),
        "repairs": repairs,
    }
    numbers = st.sampled_from([0, 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1])
    states = st.sampled_from(["starting", "running", "stopping", "stopped", "failed", "destroyed"])
    vmm = st.fixed_dictionaries({"gen": numbers, "state": states, "time_updated": times})
    return {
        "cpapi_upstairs_repair_start": st.fixed_dictionaries(told),
        "cpapi_upstairs_repair_finish": st.fixed_dictionaries({**told, "aborted": st.booleans()}),
        "cpapi_upstairs_repair_progress": st.fixed_dictionaries(
            {"time": times, "current_item": numbers, "total_items": numbers}
        ),
        "cpapi_instances_put": st.fixed_dictionaries({"vmm_state": vmm}),
    }


def _lockstep_bodies(there: Mapping[str, Sequence[str]]) -> dict[str, st.SearchStrategy[Any]]:
    return {
        "bgtask_activate": st.fixed_dictionaries(
            {"bgtask_names": st.lists(st.sampled_from([*there["bgtask_name"], "none"]), max_size=3, unique=True)}
        ),
        "physical_disk_expunge": st.fixed_dictionaries({"disk_id": st.sampled_from([*there["disk_id"], NEVER])}),
        "sled_expunge": st.fixed_dictionaries({"sled": st.sampled_from([*there["sled_id"], NEVER])}),
    }


def _our_bodies(there: Mapping[str, Sequence[str]]) -> dict[str, st.SearchStrategy[Any]]:
    """By path, of routes that only this project has."""
    ips = st.sampled_from(["::1", "fd00::1", "127.0.0.1", "fe80::1%1", "", "[::1]"])
    address = {"ip": ips, "port": st.sampled_from([7000, 7001, 0, 65536])}
    serials = st.sampled_from(["one", "two", "", "s" * 200])
    sizes = st.sampled_from([1 << 30, 0, 2**63 - 1, 2**63])
    agents = st.lists(st.fixed_dictionaries({**address, "size_bytes": sizes, "serial": serials}), max_size=2)
    named = st.fixed_dictionaries({"name": st.sampled_from([*NAMES, "No"])})
    regions, volumes = st.sampled_from([*there["region_id"], NEVER]), st.sampled_from([*there["volume_id"], NEVER])
    datasets, snapshots = (
        st.sampled_from([*there["dataset_id"], NEVER]),
        st.sampled_from([there["snapshot"][-1], NEVER]),
    )
    region = {"type": st.just("region"), "region_id": regions}
    target = {"dataset_id": datasets, "region_id": regions, "snapshot_id": snapshots}
    targets = st.fixed_dictionaries(region) | st.fixed_dictionaries({"type": st.just("region_snapshot"), **target})
    return {
        "replacements": st.fixed_dictionaries({"target": targets}),
        "believe": st.fixed_dictionaries({"volume_id": volumes, "region_id": regions}),
        "sleds": st.fixed_dictionaries(
            {"serial": serials, "host": st.fixed_dictionaries(address)},
            optional={"agents": agents, "pantry": st.fixed_dictionaries(address) | st.none()},
        ),
        "silos": named,
        "projects": named,
        "tokens": st.fixed_dictionaries(
            {"role": st.sampled_from(["tenant", "operator", "root"])},
            optional={"project_id": st.sampled_from([*there["project"][2:], NEVER]) | st.none()},
        ),
    }


def _extensions(api: Api, there: Mapping[str, Sequence[str]]) -> list[Extension]:
    bodies = _our_bodies(there)
    found = []
    for operation in api.operations:
        if operation.path.startswith(BASE):
            body = None if operation.body is None else bodies[operation.path.rpartition("/")[2]]
            found.append(Extension(operation.method, operation.path, body))
        elif operation.operation_id.endswith("_list"):
            for query in ("?limit={limit}&sort_by={sort_by}", "?page_token={page_token}", "?project={project}"):
                found.append(Extension(operation.method, operation.path + query))
    return found


@asynccontextmanager
async def _nexus(folder: Path, name: str) -> AsyncIterator[World]:
    with open_database("sqlite://", inline=True) as database:
        async with served(folder, database) as it:
            there = await furnished(it)
            doors = Doors(it.rack.world, tenants.digest_of(OPERATOR))
            document = load(name)
            if name == "nexus-external":
                api, bodies, token = external.external_api(it.nexus, doors), _external_bodies(there), it.tokens["user"]
            elif name == "nexus-internal":
                api, bodies, token = internal.internal_api(it.nexus, doors), _internal_bodies(), None
            else:
                api, bodies, token = lockstep.lockstep_api(it.nexus, doors), _lockstep_bodies(there), OPERATOR
            offered = {each.operation_id for each in api.operations}
            making = WithToken(
                document,
                api.body_bytes_max,
                versioned=name == "nexus-internal",
                bodies=bodies,
                extensions=_extensions(api, there),
                skipped=frozenset(set(document.operations) - offered),
                token=token,
            )

            def known(_operation: Operation, parameter: str, n: int) -> str | None:
                values = there.get(parameter, ())
                return values[n % len(values)] if values else None

            async with serving(api, ANYWHERE) as url:
                yield World(url, making, known, documented=MEANT)


@asynccontextmanager
async def nexus_external(folder: Path) -> AsyncIterator[World]:
    """A user's."""
    async with _nexus(folder, "nexus-external") as world:
        yield world


@asynccontextmanager
async def nexus_internal(folder: Path) -> AsyncIterator[World]:
    """What Upstairs and sled agents use."""
    async with _nexus(folder, "nexus-internal") as world:
        yield world


@asynccontextmanager
async def nexus_lockstep(folder: Path) -> AsyncIterator[World]:
    """An operator's, with our own routes."""
    async with _nexus(folder, "nexus-lockstep") as world:
        yield world


NEXUS_WORLDS = {"nexus-external": nexus_external, "nexus-internal": nexus_internal, "nexus-lockstep": nexus_lockstep}
