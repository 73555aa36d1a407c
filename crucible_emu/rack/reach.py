"""Whether the services on other machines answer.

What it is for: a rack may span machines; its file then names services that are started elsewhere. ``rack status`` asks
each of them one small question, all at once.

What it guarantees: an answer within :data:`TIMEOUT_S` for every service, whatever becomes of its machine. The token is
sent only to addresses that the rack file names, and over ``http`` not at all (*safety*: anybody on the way could read
it).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import trio

from crucible_emu.errors import UsageError
from crucible_emu.rack.document import RackFile
from crucible_emu.service.exposure import read_token

TIMEOUT_S = 3.0
QUESTIONS = {
    "agent": ("/crucible/0/regions", "1.0.0"),
    "pantry": ("/crucible/pantry/0", "2.0.0"),
    "host": ("/instance", "5.0.0"),
}
"""A question that changes nothing, for each kind of service, and the version that it is asked in."""


async def look(rack: RackFile, root: Path, services: list[dict[str, Any]]) -> None:
    """Put ``ready``, or what is wrong, as the state of each of ``services``. Raises :class:`UsageError` for files of
    the rack that cannot be read."""
    token = read_token(None if rack.token_file is None else root / rack.token_file)
    try:
        context = ssl.create_default_context(cafile=None if rack.ca_file is None else str(root / rack.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificates in {rack.ca_file} cannot be used: {error}") from None
    client = httpx2.AsyncClient(verify=context, timeout=TIMEOUT_S, trust_env=False)
    async with client, trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(_ask, client, token, service)


async def _ask(client: httpx2.AsyncClient, token: str | None, service: dict[str, Any]) -> None:
    path, version = QUESTIONS[service["kind"]]
    headers = {"api-version": version}
    if token is not None and urlsplit(service["url"]).scheme == "https":
        headers["authorization"] = f"Bearer {token}"
    service["state"] = "unreachable"
    with trio.move_on_after(TIMEOUT_S):
        try:
            answer = await client.get(f"{service['url']}{path}", headers=headers)
        except httpx2.HTTPError:
            return
        service["state"] = verdict(service["kind"], answer.status_code)


def verdict(kind: str, status: int) -> str:
    """What an answer with this HTTP status says about a service."""
    if status in (401, 403):
        return "token refused"
    # A host without an instance says so with an error of its own; whoever says that is there.
    if status == 200 or (kind == "host" and status < 500):
        return "ready"
    return f"answers {status}"
