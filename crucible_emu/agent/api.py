"""The agent's API: the nine routes of the real one and four for digests (apis-and-tools.md §1.1).

What it is for: :func:`agent_api` is the table of operations, under the ids and paths of ``crucible-agent-1.0.0.json``;
a handler calls the agent and says how the outcome looks. :data:`STATUSES` says with which status each refusal goes out:
a *faithful* agent answers as the real one does, which for some mistakes of the client is a bare 500 (§9 rows 1, 2);
otherwise these get a status of their own. §9 rows 3 to 5 (ids used once, POST as a way to wait, 503 while a clone runs)
are the same in both; row 7 (answers that change until a restart) is in neither.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from crucible_emu.agent.agent import Agent
from crucible_emu.agent.core import Reason, Refused
from crucible_emu.agent.documents import CreateRegion
from crucible_emu.errors import CrucibleError
from crucible_emu.logs import get_logger
from crucible_emu.service import Api, Call, Operation, Refusal, Versions

NAME = "crucible-agent"
VERSION = "1.0.0"
BODY_BYTES_MAX = 10_240

STATUSES: dict[Reason, tuple[int, int]] = {
    Reason.UNKNOWN_REGION: (404, 404),
    Reason.UNKNOWN_REGION_TO_DELETE: (500, 404),
    Reason.OTHER_PARAMETERS: (500, 409),
    Reason.NO_FREE_PORT: (500, 409),
    Reason.HAS_SNAPSHOTS: (400, 400),
    Reason.CLONING: (503, 503),
    Reason.UNKNOWN_SNAPSHOT: (404, 404),
    Reason.SNAPSHOT_IN_USE: (500, 409),
    Reason.NO_DATASET: (500, 404),
    Reason.NEVER_RUN: (500, 404),
    Reason.RUN_FAILED: (500, 409),
    Reason.NOT_CREATED: (409, 409),
}
"""Status of each refusal: of a faithful agent, and otherwise."""

log = get_logger(__name__)

Handler = Callable[[Call], Awaitable[object]]


def agent_api(agent: Agent, *, faithful: bool = False, lenient: bool = False) -> Api:
    """The API of ``agent``. ``lenient``: a request without ``api-version`` is answered, too."""
    region, snapshots = "/crucible/0/regions/{id}", "/crucible/0/regions/{id}/snapshots"
    snapshot = f"{snapshots}/{{name}}"
    rows: tuple[tuple[str, str, str, Handler, int], ...] = (
        ("region_list", "GET", "/crucible/0/regions", _regions(agent), 200),
        ("region_get", "GET", region, _region(agent), 200),
        ("region_delete", "DELETE", region, lambda call: agent.delete_region(call.path["id"]), 204),
        ("region_get_snapshots", "GET", snapshots, lambda call: agent.snapshots(call.path["id"]), 200),
        ("region_get_snapshot", "GET", snapshot, lambda call: agent.snapshot(*_named(call)), 200),
        ("region_delete_snapshot", "DELETE", snapshot, lambda call: agent.delete_snapshot(*_named(call)), 204),
        ("region_run_snapshot", "POST", f"{snapshot}/run", lambda call: agent.run_snapshot(*_named(call)), 200),
        (
            "region_delete_running_snapshot",
            "DELETE",
            f"{snapshot}/run",
            lambda call: agent.stop_snapshot(*_named(call)),
            204,
        ),
        ("region_digest", "GET", f"{region}/digest", lambda call: agent.region_digest(call.path["id"]), 200),
        ("snapshot_digest", "GET", f"{snapshot}/digest", lambda call: agent.snapshot_digest(*_named(call)), 200),
        ("region_digest_forget", "DELETE", f"{region}/digest", _forgetting(agent), 204),
        ("snapshot_digest_forget", "DELETE", f"{snapshot}/digest", _forgetting(agent), 204),
    )
    operations = [Operation(name, method, path, _told(handler), None, ok) for name, method, path, handler, ok in rows]
    operations.append(
        Operation("region_create", "POST", "/crucible/0/regions", _told(_create(agent)), CreateRegion, 200)
    )
    return Api(NAME, operations, BODY_BYTES_MAX, versions=Versions((VERSION,)), faithful=faithful, lenient=lenient)


def _named(call: Call) -> tuple[str, str]:
    return call.path["id"], call.path["name"]


def _regions(agent: Agent) -> Handler:
    async def handler(call: Call) -> object:
        return [agent.document(record, faithful=call.faithful) for record in agent.regions()]

    return handler


def _region(agent: Agent) -> Handler:
    async def handler(call: Call) -> object:
        return agent.document(agent.region(call.path["id"]), faithful=call.faithful)

    return handler


def _forgetting(agent: Agent) -> Handler:
    async def handler(call: Call) -> object:
        agent.forget_digest(call.path["id"], call.path.get("name"))
        return None

    return handler


def _create(agent: Agent) -> Handler:
    async def handler(call: Call) -> object:
        return agent.document(await agent.create_region(call.body), faithful=call.faithful)

    return handler


def _told(handler: Handler) -> Handler:
    """``handler``, with its refusals as the answers that they are."""

    async def told(call: Call) -> object:
        try:
            return await handler(call)
        except Refused as refused:
            faithful, otherwise = STATUSES[refused.reason]
            raise Refusal(faithful if call.faithful else otherwise, str(refused)) from None
        except (CrucibleError, OSError) as error:
            log.error("request failed", operation=call.operation.operation_id, reason=str(error))
            raise Refusal(500, str(error)) from None

    return told
