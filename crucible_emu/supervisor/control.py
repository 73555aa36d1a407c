"""The control API over HTTP: the paths, methods and answers of the real ``dsc`` (apis-and-tools.md §3.3).

What it is for: a tester stops, starts and halts Downstairs while a disk is in use. :data:`ROUTES` is the whole API; the
last three rows of it are additions of this project: signals (a replica that stalls is not one that is gone), a list of
all members in one answer, and the volume construction request of the disk.

What it guarantees: a POST is answered 204 when the request is admitted, not when it has been obeyed; states tell that.
What cannot be meant (a number that is none, an unknown member or signal) is answered 400 with a sentence, in the real
servers' envelope: ``request_id`` and ``message``, the id also as ``x-request-id``.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from crucible_emu import http_errors
from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.http_errors import error_response
from crucible_emu.supervisor.driver import Supervisor
from crucible_emu.supervisor.fleet import Member

HEAD_BYTES_MAX = 8192
CLOSE_S_MAX = 1.0


class Control:
    """What the API does. ``volume_request`` makes the document that ``GET /vcr`` answers with."""

    def __init__(
        self,
        supervisor: Supervisor,
        definition: RegionDefinition,
        *,
        read_only: bool = False,
        volume_request: Callable[[], Any] = lambda: None,
    ) -> None:
        self.supervisor = supervisor
        self.fleet = supervisor.fleet
        self.definition = definition
        self.read_only = read_only
        self.volume_request = volume_request

    def member(self, parameters: dict[str, str]) -> Member:
        return self.fleet.member(number(parameters["cid"]))

    def region_info(self) -> dict[str, int]:
        found = self.definition
        return {
            "block_size": found.block_size,
            "blocks_per_extent": found.blocks_per_extent,
            "extent_count": found.extent_count,
        }

    def random_stop(self, enabled: bool) -> None:
        self.fleet.random_stop.enabled = enabled
        self.supervisor.random_stop_changed()

    def random_window(self, *, min_s: int | None = None, max_s: int | None = None) -> None:
        self.fleet.set_random_window(min_s=min_s, max_s=max_s)
        self.supervisor.random_stop_changed()

    def list_members(self) -> list[dict[str, Any]]:
        places = self.supervisor.places
        return [
            {
                "cid": member.cid,
                "state": member.state.value,
                "pid": member.pid,
                "returncode": member.returncode,
                "port": member.port,
                "uuid": str(member.uuid),
                "region": str(place.region),
                "auto_restart": member.auto_restart,
                "halted": member.paused,
            }
            for member, place in zip(self.fleet.members, places)
        ]


Answering = Callable[[Control, dict[str, str]], Any]

ROUTES: tuple[tuple[str, str, Answering], ...] = (
    ("GET", "/allrunning", lambda c, p: c.fleet.all_running),
    ("GET", "/allstopped", lambda c, p: c.fleet.all_stopped),
    ("GET", "/pid/cid/{cid}", lambda c, p: c.member(p).pid),
    ("GET", "/port/cid/{cid}", lambda c, p: c.member(p).port),
    ("GET", "/state/cid/{cid}", lambda c, p: c.member(p).state.value),
    ("GET", "/uuid/cid/{cid}", lambda c, p: str(c.member(p).uuid)),
    ("GET", "/regioncount", lambda c, p: len(c.fleet.members)),
    ("GET", "/regioninfo", lambda c, p: c.region_info()),
    ("GET", "/readonly", lambda c, p: c.read_only),
    ("POST", "/stop/all", lambda c, p: c.fleet.stop_all()),
    ("POST", "/stop/rand", lambda c, p: c.fleet.stop_one_at_random()),
    ("POST", "/stop/cid/{cid}", lambda c, p: c.fleet.stop(c.member(p).cid)),
    ("POST", "/start/all", lambda c, p: c.fleet.start_all()),
    ("POST", "/start/cid/{cid}", lambda c, p: c.fleet.start(c.member(p).cid)),
    ("POST", "/disablerestart/all", lambda c, p: c.fleet.each(lambda cid: c.fleet.set_restart(cid, False))),
    ("POST", "/disablerestart/cid/{cid}", lambda c, p: c.fleet.set_restart(c.member(p).cid, False)),
    ("POST", "/enablerestart/all", lambda c, p: c.fleet.each(lambda cid: c.fleet.set_restart(cid, True))),
    ("POST", "/enablerestart/cid/{cid}", lambda c, p: c.fleet.set_restart(c.member(p).cid, True)),
    ("POST", "/randomstop/enable", lambda c, p: c.random_stop(True)),
    ("POST", "/randomstop/disable", lambda c, p: c.random_stop(False)),
    ("POST", "/randomstop/min/{min}", lambda c, p: c.random_window(min_s=number(p["min"]))),
    ("POST", "/randomstop/max/{max}", lambda c, p: c.random_window(max_s=number(p["max"]))),
    ("POST", "/shutdown", lambda c, p: c.supervisor.shut_down()),
    ("POST", "/signal/cid/{cid}/{name}", lambda c, p: c.fleet.signal(c.member(p).cid, p["name"])),
    ("GET", "/members", lambda c, p: c.list_members()),
    ("GET", "/vcr", lambda c, p: c.volume_request()),
)


def number(text: str) -> int:
    """A non-negative integer out of a path. Raises :class:`UsageError`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise UsageError(f"{text[:40]!r} is no number: write it with digits")
    return int(text)


def application(control: Control) -> ASGIApp:
    """The API as an ASGI application."""
    return http_errors.application(
        [Route(path, _endpoint(control, answer), methods=[method]) for method, path, answer in ROUTES]
    )


def _endpoint(control: Control, answer: Answering) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            value = answer(control, request.path_params)
        except UsageError as error:
            return error_response(400, str(error))
        if request.method != "POST":
            return JSONResponse(value, headers={"x-request-id": str(uuid4())})
        control.supervisor.perform()
        return Response(status_code=204, headers={"x-request-id": str(uuid4())})

    return endpoint


@asynccontextmanager
async def serving(control: Control, address: str) -> AsyncIterator[str]:
    """Serve the API at ``address`` (``ip:port``, port 0: any) while the block runs; yields its URL.

    Raises :class:`UsageError` where nobody can listen there.
    """
    config = Config()
    config.bind = [f"fd://{_listener(address).detach()}"]  # bound here: hypercorn leaks what it cannot bind
    config.errorlog = None  # a line of its own for each start; what goes wrong is raised
    config.graceful_timeout = CLOSE_S_MAX
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    leaving = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(application(control), config, shutdown_trigger=leaving.wait, task_status=task_status)  # type: ignore[arg-type]

        urls: list[str] = await nursery.start(run)
        try:
            yield urls[0]
        finally:
            leaving.set()


def _listener(address: str) -> socket.socket:
    """A socket bound to ``ip:port`` or ``[ip]:port``. Raises :class:`UsageError`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"the control API cannot listen on {address}: {reason.lower()}") from None
    return listener
