"""A Nexus over a plant with its three APIs, and clients of two tenants, an operator and nobody.

Every exchange is held to the real document, but for our own routes, and every answer is searched for secrets.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from nexus_rig import EXTENT_BYTES, Plant, plant
from sqlalchemy import select

from crucible_emu.service import Api, application
from crucible_emu.volume.vcr import RegionRequest, VolumeRequest
from nexus.api.callers import Doors
from nexus.api.external import external_api
from nexus.api.internal import internal_api
from nexus.api.lockstep import lockstep_api
from nexus.db import Database, schema
from nexus.db.schema.user_visible import TokenRole
from nexus.objects import tenants
from nexus.running import Conduct, Nexus, nexus_over
from nexus.volumes import recorded

sys.path += [str(Path(__file__).resolve().parent.parent / "openapi")]

from openapi_document import load
from openapi_recorded import Validated, validated

OPERATOR = "an-operator-of-the-tests"
SIZE_BYTES = 2 * EXTENT_BYTES
MEANT = frozenset({500, 503, 507})
"""Statuses of 500 and above that tests ask for; a test says which it gets."""
PEER = ("2001:db8::1", 1)


class Watched(httpx2.AsyncBaseTransport):
    """Looks into every answer for what must not be in one."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, secrets: set[str]) -> None:
        self._transport, self._secrets = transport, secrets

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._transport.handle_async_request(request)
        text = (await answer.aread()).decode()
        assert not [each for each in self._secrets if each in text], f"a secret in the answer to {request.url}"
        return answer


@dataclass
class Asking:
    """A client that says what it expects."""

    http: httpx2.AsyncClient

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200, **query: Any) -> Any:
        """The JSON of the answer, which has to have this status; of an error its envelope."""
        kind: dict[str, Any] = {} if body is None else {"json": body}
        answer = await self.http.request(method, path, params=query, **kind)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None


@dataclass
class Served:
    """All of it. ``user``: a tenant in the plant's project; ``other``: one in ``other_project``. ``seen``: which
    operations of each API were answered, and how."""

    rack: Plant
    nexus: Nexus
    other_project: str
    user: Asking = field(init=False)
    other: Asking = field(init=False)
    operator: Asking = field(init=False)
    nobody: Asking = field(init=False)
    internal: Asking = field(init=False)
    internal_stranger: Asking = field(init=False)
    lockstep: Asking = field(init=False)
    lockstep_user: Asking = field(init=False)
    tokens: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Validated] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)

    def watch_keys(self) -> None:
        """From now on the keys of all volumes are looked for in answers."""
        texts = self.rack.run(lambda c: list(c.execute(select(schema.volume.c.data)).scalars()))
        for text in texts:
            self.secrets |= set(_keys(recorded.parse(text)))

    async def disk(self, name: str, **changed: Any) -> Any:
        """A blank disk of the user."""
        return await self.user.ask("POST", "/v1/disks", disk_wish(name, **changed), 201)


def disk_wish(name: str, source: Any = None, **changed: Any) -> dict[str, Any]:
    made_of = {"type": "blank", "block_size": 512} if source is None else source
    backend = {"type": "distributed", "disk_source": made_of}
    return {"name": name, "description": "d", "size": SIZE_BYTES, "disk_backend": backend} | changed


def _keys(request: Any) -> list[str]:
    if isinstance(request, RegionRequest):
        return [] if request.opts.key is None else [request.opts.key.get_secret_value()]
    if not isinstance(request, VolumeRequest):
        return []
    parts = [*request.sub_volumes, *([request.read_only_parent] if request.read_only_parent else [])]
    return [key for part in parts for key in _keys(part)]


@asynccontextmanager
async def served(
    directory: Path, database: Database, *, faithful: bool = False, **options: Any
) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        rack = await stack.enter_async_context(plant(directory, database, **options))
        nexus = await stack.enter_async_context(nexus_over(rack.world, Conduct()))
        it = Served(rack, nexus, rack.id())
        rack.add(schema.project, id=it.other_project, silo_id=rack.silo_id, name="other-project", description="")
        for name, project_id in (("user", rack.project_id), ("other", it.other_project)):
            it.tokens[name] = token_for(rack, project_id)
        it.secrets |= {tenants.digest_of(each) for each in it.tokens.values()}
        doors = Doors(rack.world, tenants.digest_of(OPERATOR))
        apis = {
            "nexus-external": external_api(nexus, doors, faithful=faithful),
            "nexus-internal": internal_api(nexus, doors, faithful=faithful),
            "nexus-lockstep": lockstep_api(nexus, doors, faithful=faithful),
        }
        it.seen = {name: _transport(it, name, api) for name, api in apis.items()}
        clients = {
            "user": ("nexus-external", it.tokens["user"]),
            "other": ("nexus-external", it.tokens["other"]),
            "operator": ("nexus-external", OPERATOR),
            "nobody": ("nexus-external", None),
            "internal": ("nexus-internal", OPERATOR),
            "internal_stranger": ("nexus-internal", None),
            "lockstep": ("nexus-lockstep", OPERATOR),
            "lockstep_user": ("nexus-lockstep", it.tokens["user"]),
        }
        for name, (service, token) in clients.items():
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            if service == "nexus-internal":
                headers["api-version"] = "1.0.0"
            http = httpx2.AsyncClient(transport=it.seen[service], base_url="http://nexus", headers=headers, timeout=60)
            setattr(it, name, Asking(await stack.enter_async_context(http)))
        yield it


def _transport(it: Served, name: str, api: Api) -> Validated:
    beyond_loopback = httpx2.ASGITransport(app=application(api), client=PEER)
    return validated(Watched(beyond_loopback, it.secrets), load(name), allowed=MEANT)


def token_for(rack: Plant, project_id: str | None) -> str:
    """A token that opens a project, or everything."""
    token = tenants.token_of(rack.random.randbytes(32))
    role = TokenRole.OPERATOR if project_id is None else TokenRole.TENANT
    new = tenants.NewToken(rack.id(), tenants.digest_of(token), role, project_id)
    rack.run(tenants.token_insert, new, rack.now())
    return token


# -- rows without anything behind them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Things:
    """Ids of one of each kind, all of one name."""

    name: str
    disk: str
    snapshot: str
    image: str
    instance: str


def some_disk(rack: Plant, project_id: str, name: str, **changed: Any) -> str:
    states = {"disk_state": "detached", "time_state_updated": rack.now(), "disk_type": "crucible"}
    row = {"project_id": project_id, "name": name, "description": "", "size_bytes": SIZE_BYTES, "block_size": 512}
    disk_id = rack.add(schema.disk, **row | states | {"rcgen": 1, "state_generation": 1} | changed)
    rack.add(schema.disk_type_crucible, disk_id=disk_id, volume_id=rack.id(), read_only=False)
    return disk_id


def some_things(rack: Plant, project_id: str, name: str) -> Things:
    """Rows; no volume is behind any of them, so nothing may be done with them but look."""
    called = {"project_id": project_id, "name": name, "description": ""}
    sized = {"size_bytes": SIZE_BYTES, "block_size": 512}
    disk_id = some_disk(rack, project_id, name)
    volumes = {"volume_id": rack.id(), "destination_volume_id": rack.id()}
    snapshot_id = rack.add(schema.snapshot, disk_id=disk_id, state="ready", gen=1, **called, **sized, **volumes)
    image_id = rack.add(
        schema.image, silo_id=rack.silo_id, volume_id=rack.id(), os="os", version="1", **called, **sized
    )
    return Things(name, disk_id, snapshot_id, image_id, rack.add(schema.instance, state_generation=1, **called))
