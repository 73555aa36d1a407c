"""A sled of real processes: agents, a pantry and hosts, each the command that people run, asked over HTTP.

The rig speaks plain HTTP and JSON, as another project's control plane would: it shares no model with the services.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
from command_rig import Command, running

BLOCK = 4096
BLOCKS_PER_EXTENT = 1024
EXTENT_BYTES = BLOCK * BLOCKS_PER_EXTENT
WAIT_S = 60.0
REPAIR_PORT_OFFSET = 4000
PORTS = 40
LOW_PORT = 8_700
"""Apart from where racks and the tests of Nexus have theirs, for tests run side by side."""

Json = Any


class Service:
    """One service and a client of its own; ``base`` is put before every path."""

    def __init__(self, command: Command, base: str, version: str) -> None:
        self.command = command
        self.url = command.ready["url"]
        self._client = httpx2.Client(
            base_url=self.url + base, headers={"api-version": version}, timeout=WAIT_S, trust_env=False
        )

    def ask(self, method: str, path: str, body: Json = None, *, status: int | None = None) -> Json:
        """The answer's JSON; ``status``: which one it must have, by default any success."""
        answer = self._client.request(method, path, **({} if body is None else {"json": body}))
        good = answer.is_success if status is None else answer.status_code == status
        assert good, f"{method} {path}: {answer.status_code} {answer.text[:400]}"
        return answer.json() if answer.content else None

    def get(self, path: str, **settings: Any) -> Json:
        return self.ask("GET", path, **settings)

    def post(self, path: str, body: Json = None, **settings: Any) -> Json:
        return self.ask("POST", path, body, **settings)

    def put(self, path: str, body: Json = None, **settings: Any) -> Json:
        return self.ask("PUT", path, body, **settings)

    def delete(self, path: str, **settings: Any) -> Json:
        return self.ask("DELETE", path, **settings)

    def close(self) -> None:
        self._client.close()


class Sled:
    """``agents`` of pretended disks, one ``pantry``, and ``hosts``, each with one instance."""

    def __init__(self, agents: list[Service], pantries: list[Service], hosts: list[Service]) -> None:
        self.agents, self.pantries, self.hosts = agents, pantries, hosts

    @property
    def pantry(self) -> Service:
        return self.pantries[0]

    def region(self, agent: Service, extents: int, *, source: str | None = None) -> dict[str, Any]:
        """Ask an agent for a region until it is there."""
        wanted = {
            "id": str(uuid4()),
            "block_size": BLOCK,
            "extent_size": BLOCKS_PER_EXTENT,
            "extent_count": extents,
            "encrypted": False,
            "source": source,
        }
        return wait_for(lambda: created(agent.post("/regions", wanted)), f"the region {wanted['id']}")

    def regions(self, extents: int) -> list[dict[str, Any]]:
        """A region on each of the first three agents."""
        return [self.region(agent, extents) for agent in self.agents[:3]]

    def run_snapshot(self, agent: Service, region_id: str, name: str) -> dict[str, Any]:
        path = f"/regions/{region_id}/snapshots/{name}/run"
        return wait_for(lambda: created(agent.post(path)), f"the running snapshot {name}")

    def digest(self, agent: Service, path: str) -> str:
        """The whole digest of a region or snapshot, when it is computed."""
        found = wait_for(
            lambda: answer if (answer := agent.get(f"{path}/digest"))["state"] == "done" else None, f"{path}/digest"
        )
        assert len(found["extents"]) == found["extent_count"]
        return str(found["digest"])

    def job(self, job_id: str) -> bool:
        return bool(self.pantry.get(f"/job/{job_id}/ok")["job_result_ok"])


def created(record: dict[str, Any]) -> dict[str, Any] | None:
    assert record["state"] in ("requested", "created"), record
    return record if record["state"] == "created" else None


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """What ``look`` finds as soon as it is something: other processes are waited for."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {WAIT_S:.0f} s for {what}"
        time.sleep(0.02)
    return found


def address(port: int) -> str:
    return f"[::1]:{port}"


def region_set(ports: list[int], extents: int, *, gen: int, read_only: bool = False) -> dict[str, Any]:
    """The region node of a volume construction request."""
    opts = {"id": str(uuid4()), "target": [address(port) for port in ports], "lossy": False, "read_only": read_only}
    return {
        "type": "region",
        "block_size": BLOCK,
        "blocks_per_extent": BLOCKS_PER_EXTENT,
        "extent_count": extents,
        "opts": opts,
        "gen": gen,
    }


def volume(sub_volume: dict[str, Any], parent: dict[str, Any] | None = None, *, volume_id: str = "") -> dict[str, Any]:
    return {
        "type": "volume",
        "id": volume_id or str(uuid4()),
        "block_size": BLOCK,
        "sub_volumes": [sub_volume],
        "read_only_parent": parent,
    }


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def sled(
    folder: Path, *, agents: int = 3, pantries: int = 1, hosts: int = 0, warned: frozenset[str] = frozenset()
) -> Iterator[Sled]:
    """The services, ready; at the end each must leave in order and without a word, but for the warnings ``warned``."""
    with ExitStack() as stack:

        def start(base: str, version: str, *words: object) -> Service:
            command = stack.enter_context(running(*words, "--json", "--listen", "[::1]:0"))
            stack.callback(end_in_order, command, warned)
            service = Service(command, base, version)
            stack.callback(service.close)
            return service

        yield Sled(
            [
                start(
                    "/crucible/0",
                    "1.0.0",
                    *("agent", "run", folder / f"agent{number}"),
                    *("--low-port", LOW_PORT + PORTS * number, "--ports", PORTS),
                )
                for number in range(agents)
            ],
            [start("/crucible/pantry/0", "2.0.0", "pantry", "run") for _ in range(pantries)],
            [start("", "5.0.0", "host", "run", folder / f"host{number}") for number in range(hosts)],
        )


def end_in_order(command: Command, warned: frozenset[str]) -> None:
    code, _, err = command.end()
    assert code == 0, err
    said = {json.loads(line)["event"] for line in err.splitlines()}
    assert said <= warned, err


def instance(disks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The request that makes an instance with these disks: key of the backend to volume construction request."""
    spec = {
        "board": {"chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}, "cpus": 1, "memory_mb": 128},
        "components": {
            key: {
                "type": "crucible_storage_backend",
                "component": {"readonly": False, "request_json": json.dumps(request)},
            }
            for key, request in disks.items()
        },
    }
    metadata = {
        **{f"{what}_id": str(uuid4()) for what in ("project", "silo", "sled")},
        "sled_model": "laptop",
        "sled_revision": 1,
        "sled_serial": "1",
    }
    properties = {"id": str(uuid4()), "name": "guest", "description": "a test", "metadata": metadata}
    return {"properties": properties, "init": {"method": "Spec", "value": {"spec": spec}}}


def start_instance(host: Service, disks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Make the host's instance and run it; the NBD address of each disk."""
    wanted = instance(disks)
    host.put("/instance", wanted, status=201)
    host.put("/instance/state", "Run", status=204)
    wait_for(lambda: host.get("/instance")["instance"]["state"] == "Running", "the instance to run")
    found = {disk["id"]: disk["uri"] for disk in host.get("/instance/disks")["disks"]}
    return {key: found[key] for key in disks}


def stop_instance(host: Service) -> None:
    host.put("/instance/state", "Stop", status=204)
    wait_for(lambda: host.get("/instance")["instance"]["state"] in ("Stopped", "Destroyed"), "the instance to stop")
