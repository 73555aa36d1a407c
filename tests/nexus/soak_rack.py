"""What soaks over real processes share: a rack as commands and APIs show it, and callers that bear dying Nexus.

What it guarantees: what a client may not hear, or what does not come to its end, is a :class:`Violation`, whose words
say what it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import trio

PROJECT = "demo"
MIB_BYTES = 1 << 20
ANSWER_S_MAX = 120.0
REFUSED = frozenset({400, 404, 409, 429, 503, 507})
"""What a client may hear when others do what they like at the same time."""

Json = Any


class Violation(Exception):
    """What must not happen."""


class Caller:
    """Asks any Nexus; one that dies meanwhile is a silence, after which nobody knows what was done."""

    def __init__(
        self, urls: list[str], token: str, random: Random, seen: Counter[str], refused: frozenset[int] = REFUSED
    ) -> None:
        self._urls, self._random, self._seen, self._refused = urls, random, seen, refused
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {token}"}, timeout=ANSWER_S_MAX, trust_env=False
        )

    async def ask(self, method: str, path: str, body: Json = None, **query: str) -> tuple[int, Json]:
        """Status and JSON of the answer; status 0 where none came. Raises :class:`Violation`."""
        url = self._random.choice(self._urls) + path
        try:
            answer = await self._http.request(method, url, json=body, params=query)
        except httpx2.ReadTimeout as error:
            raise Violation(f"{method} {path}: no answer in {ANSWER_S_MAX:.0f} s") from error
        except httpx2.HTTPError:
            self._seen["silence"] += 1
            await trio.sleep(0.05)
            return 0, None
        if not answer.is_success and answer.status_code not in self._refused:
            raise Violation(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        self._seen[f"{method} {kind_of(path)} {answer.status_code}"] += 1
        return answer.status_code, answer.json() if answer.content else None

    async def items(self, kind: str) -> list[Json]:
        """All disks, snapshots, images or instances of the project, as far as an answer came."""
        found: list[Json] = []
        token: str | None = None
        while True:
            more = {} if token is None else {"page_token": token}
            status, page = await self.ask("GET", f"/v1/{kind}", project=PROJECT, limit="100", **more)
            if status != 200:
                return found
            found += page["items"]
            token = page.get("next_page")
            if token is None:
                return found


def kind_of(path: str) -> str:
    """What is asked for: disks, say."""
    parts = path.strip("/").split("/")
    return next((each for each in parts if each not in ("v1", "emulator")), path)


def instance_body(name: str) -> Json:
    return {"name": name, "description": "soak", "hostname": name, "memory": 1 << 30, "ncpus": 1}


class Rack:
    """The rack and its Nexus, as commands show them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "nexus", *words], cwd=self.directory, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise Violation(f"nexus {' '.join(words)}: {done.returncode} {done.stderr.strip()[-300:]}")
        return done

    def nexus(self) -> list[Json]:
        """The Nexus of the rack: their state, pid and URLs."""
        status = json.loads(self.command("rack", "status", "--json").stdout)
        return [each for each in status["services"] if each["name"].startswith("nexus")]

    def sagas(self) -> list[Json]:
        return list(json.loads(self.command("saga", "list", "--json").stdout)["items"])

    def saga(self, saga_id: str) -> Json:
        """A saga with its log."""
        return json.loads(self.command("saga", "show", saga_id, "--json").stdout)

    def findings(self) -> list[Json]:
        return list(json.loads(self.command("check", "--json", check=False).stdout)["findings"])


async def settled(rack: Rack, timeout_s: float) -> None:
    """Return when every saga has ended. Raises :class:`Violation` for one that is stuck or does not end."""
    deadline = trio.current_time() + timeout_s
    while True:
        sagas = await trio.to_thread.run_sync(rack.sagas)
        stuck = [each for each in sagas if each["state"] == "stuck"]
        if stuck:
            first = await trio.to_thread.run_sync(rack.saga, stuck[0]["id"])
            raise Violation(f"{len(stuck)} sagas are stuck, the first: {json.dumps(first)[-1500:]}")
        going = [each for each in sagas if each["state"] in ("running", "unwinding")]
        if not going:
            return
        if trio.current_time() > deadline:
            first = await trio.to_thread.run_sync(rack.saga, going[0]["id"])
            raise Violation(f"{len(going)} sagas do not end, the first: {json.dumps(first)[-1500:]}")
        await trio.sleep(1)


async def delete_everything(caller: Caller) -> None:
    """As a user would: what refuses now may not later, for sagas of others still end."""
    with trio.fail_after(300):
        while True:
            left = 0
            for instance in await caller.items("instances"):
                left += 1
                await caller.ask("POST", f"/v1/instances/{instance['id']}/stop")
                for disk in await caller.items("disks"):
                    if disk["state"].get("instance") == instance["id"]:
                        path = f"/v1/instances/{instance['id']}/disks/detach"
                        await caller.ask("POST", path, {"disk": disk["id"]})
                await caller.ask("DELETE", f"/v1/instances/{instance['id']}")
            for kind in ("images", "snapshots", "disks"):
                for item in await caller.items(kind):
                    left += 1
                    await caller.ask("DELETE", f"/v1/{kind}/{item['id']}")
            if not left:
                return
            await trio.sleep(0.5)


def regions_left(directory: Path) -> list[str]:
    """What agents hold in their directories when nothing should be left."""
    return sorted(str(each.relative_to(directory)) for each in directory.glob("*/disk*/regions/*"))
