"""The client of a control API: that of ``downstairs run-many``, or of the real ``dsc``.

What it is for: scenarios stop and start Downstairs while a disk is in use. Only what the real API has is needed; where
``GET /vcr`` is missing the volume construction request is put together from ports and region info, three regions to a
sub-volume, as the real tester does (§16.1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import trio

from crucible_emu.errors import IoError, RemoteError, UsageError
from crucible_emu.volume import vcr

REQUEST_S_MAX = 15.0
STATE_S_MAX = 60.0
POLL_S = 0.05
NOT_FOUND = 404


class Control:
    """One control API. Downstairs are named by ``cid``, their number in it."""

    def __init__(self, http: httpx2.AsyncClient, host: str) -> None:
        self._http = http
        self._host = host

    async def get(self, path: str) -> Any:
        """Raises :class:`RemoteError`, :class:`IoError`."""
        return (await self._ask("GET", path)).json()

    async def post(self, path: str) -> None:
        """Raises :class:`RemoteError`, :class:`IoError`."""
        await self._ask("POST", path)

    async def stop(self, cid: int) -> None:
        """Kill it, and wait until it is gone."""
        await self.post(f"/stop/cid/{cid}")
        await self._until(cid, "exit", "stopped", "failed")

    async def start(self, cid: int) -> None:
        """Start it, and wait until it can be reached."""
        await self.post(f"/start/cid/{cid}")
        await self._until(cid, "running")

    async def targets(self) -> list[str]:
        """The address of every Downstairs, by cid; on the machine of the control API."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        count = await self.get("/regioncount")
        return [f"{host}:{await self.get(f'/port/cid/{cid}')}" for cid in range(count)]

    async def volume_request(self, key: str | None) -> vcr.VolumeConstructionRequest:
        """The disk that these Downstairs make; surplus ones are left out. Raises :class:`UsageError`."""
        answer = await self._ask("GET", "/vcr", may_be_missing=True)
        if answer.status_code == NOT_FOUND:
            return await self._assembled(key)
        if answer.json() is None:
            raise UsageError("fewer than three Downstairs run there: a disk needs three")
        return _with_key(vcr.parse(answer.content, "the control API's VCR"), key)

    async def _assembled(self, key: str | None) -> vcr.VolumeConstructionRequest:
        info, read_only, targets = await self.get("/regioninfo"), await self.get("/readonly"), await self.targets()
        identity = UUID(await self.get("/uuid/cid/0"))
        parts = [
            {
                "type": "region",
                **{name: info[name] for name in ("block_size", "blocks_per_extent", "extent_count")},
                "opts": {"id": identity, "target": tuple(targets[at : at + 3]), "key": key, "read_only": read_only},
                "gen": 1,
            }
            for at in range(0, len(targets) - 2, 3)
        ]
        if not parts:
            raise UsageError("fewer than three Downstairs run there: a disk needs three")
        whole = {"type": "volume", "id": identity, "block_size": info["block_size"], "sub_volumes": tuple(parts)}
        return vcr.VolumeRequest.model_validate(whole)

    async def _until(self, cid: int, *states: str) -> None:
        state = None
        with trio.move_on_after(STATE_S_MAX):
            while (state := await self.get(f"/state/cid/{cid}")) not in states:  # noqa: ASYNC110
                await trio.sleep(POLL_S)
            return
        raise IoError(f"Downstairs {cid} is {state} after {STATE_S_MAX:g} s, not {' or '.join(states)}")

    async def _ask(self, method: str, path: str, *, may_be_missing: bool = False) -> httpx2.Response:
        try:
            answer = await self._http.request(method, path)
        except httpx2.HTTPError as error:
            raise IoError(f"the control API does not answer {method} {path}: {error or type(error).__name__}") from None
        if answer.is_error and not (may_be_missing and answer.status_code == NOT_FOUND):
            raise RemoteError(f"the control API refuses {method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Control]:
    """A client of the control API at ``url`` (``ip:port``, or with ``http://``). Raises :class:`UsageError`."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        good = parts.scheme == "http" and parts.hostname is not None and parts.port is not None
    except ValueError:
        good = False
    if not good or parts.hostname is None:
        raise UsageError(f"{url!r} is no control API: write http://ip:port, as run-many prints it")
    async with httpx2.AsyncClient(base_url=whole, trust_env=False, timeout=REQUEST_S_MAX) as http:
        yield Control(http, parts.hostname)


def _with_key(request: vcr.VolumeConstructionRequest, key: str | None) -> vcr.VolumeConstructionRequest:
    """``request`` with ``key`` in every region set that has none; an API does not hand out keys."""
    if key is None:
        return request
    if isinstance(request, vcr.RegionRequest):
        members = {**request.opts.model_dump(), "key": request.opts.key or key}
        return request.model_copy(update={"opts": vcr.CrucibleOpts.model_validate(members)})
    if isinstance(request, vcr.VolumeRequest):
        return request.model_copy(update={"sub_volumes": tuple(_with_key(each, key) for each in request.sub_volumes)})
    return request
