"""Asks the source of a migration what the instance is made of.

What it is for: the target of a migration is given an address and the VCRs that change; everything else it has from the
source. A real Propolis answers ``GET /instance/spec``; a host of ours that holds many instances is asked first which of
them is meant.

What it guarantees: the spec is that of the instance that was asked for, by its id. *Safety*: another instance's disks
are never taken. The source is only read from: what stops it is the higher generation of the target's VCRs. An answer
is read to :data:`ANSWER_BYTES_MAX` at most.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import httpx2
import trio
from pydantic import ValidationError

from crucible_emu.errors import UsageError
from crucible_emu.host import documents as d
from crucible_emu.host.components import InstanceSpec
from crucible_emu.host.states import ALIVE

NEWEST = "5.0.0"
ANSWER_BYTES_MAX = 4 << 20
SOURCE_S_MAX = 15.0
INSTANCES = "/hosts/0/instances"


async def fetch_spec(address: str, instance_id: UUID, *, many: bool) -> InstanceSpec:
    """The spec of the instance at the host at ``address`` (``ip:port``); ``many``: look among many instances first.

    Raises :class:`UsageError`.
    """
    try:
        with trio.fail_after(SOURCE_S_MAX):
            async with httpx2.AsyncClient(
                base_url=f"http://{address}", headers={"api-version": NEWEST}, trust_env=False, timeout=SOURCE_S_MAX
            ) as http:
                path = await _place(http, instance_id) if many else "/instance"
                found = d.InstanceSpecGetResponse.model_validate_json(await _get(http, f"{path}/spec"))
    except (httpx2.HTTPError, trio.TooSlowError) as error:
        raise UsageError(f"the source at {address} does not answer: {error or type(error).__name__}") from None
    except ValidationError:
        raise UsageError(f"the source at {address} answers with what is no spec of an instance") from None
    if found.properties.id != instance_id:
        raise UsageError(f"the source at {address} has the instance {found.properties.id}, not {instance_id}")
    if not isinstance(found.spec, d.SpecPresent):
        raise UsageError(f"the source at {address} has no spec itself yet: the instance is {found.state}")
    return found.spec.value


async def _place(http: httpx2.AsyncClient, instance_id: UUID) -> str:
    """The path of the instance at a host of many."""
    for hosted in d.HostedInstances.model_validate_json(await _get(http, INSTANCES)).instances:
        if hosted.id == instance_id and hosted.state in ALIVE:
            return "/instance" if hosted.key is None else f"{INSTANCES}/{hosted.key}"
    return "/instance"


async def _get(http: httpx2.AsyncClient, path: str) -> bytes:
    """Raises :class:`UsageError`."""
    async with http.stream("GET", path) as response:
        announced = response.headers.get("content-length", "")
        if not announced.isdecimal() or int(announced) > ANSWER_BYTES_MAX:
            raise UsageError(
                f"the source answers to {path} with {announced or 'an unknown number of'} bytes: "
                f"at most {ANSWER_BYTES_MAX} are read"
            )
        answer = await response.aread()
        if path == INSTANCES and response.status_code == 404:
            return b'{"instances": [], "lost": []}'  # a real one
        if response.status_code != 200:
            raise UsageError(f"the source answers {response.status_code} to {path}{_reason(answer)}")
    return answer


def _reason(answer: bytes) -> str:
    try:
        members: Any = json.loads(answer)
    except ValueError:
        return ""
    message = members.get("message") if isinstance(members, dict) else None
    return f": {message[:200]}" if isinstance(message, str) else ""
