"""What is answered when something cannot be done: :data:`STATUSES`, the only place where that is decided.

What it guarantees: a failed saga is answered like a refusal before it: by its kind. The words of an error that nobody
meant are not sent, for they may quote anything; they are in the log, under the request's id. Why the rack failed (500)
is told to operators only: it names regions, addresses and disks, which are no tenant's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.service import Call, Refusal
from nexus.db import Conflict, Contention, DatabaseError, NotFound, Unreachable
from nexus.db.schema.user_visible import TokenRole
from nexus.objects.refusals import told_to_users
from nexus.objects.tenants import Bearer
from nexus.saga import ActionFailed, Fenced, SagaFailed, SagaStuck

Handler = Callable[[Call], Awaitable[object]]
HIDDEN = "Internal Server Error"

STATUSES: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "InvalidRequest"),
    "object_already_exists": (400, "ObjectAlreadyExists"),
    "not_found": (404, "ObjectNotFound"),
    "conflict": (409, "Conflict"),
    "capacity": (507, "InsufficientCapacity"),
    "unavailable": (503, "ServiceNotAvailable"),
    "gone": (500, "Internal"),
    "refused": (500, "Internal"),
}
"""Status and ``error_code`` of each kind; of a kind that is not here 500, without its words."""


def refusal_of(kind: str, sentence: str) -> Refusal:
    """The answer to a failure of this kind."""
    status, code = STATUSES.get(kind, (500, "Internal"))
    return Refusal(status, sentence if kind in STATUSES else HIDDEN, code)


def bad_request(sentence: str) -> Refusal:
    """The client can do better."""
    return refusal_of("invalid_request", sentence)


def not_found(what: str, name: str) -> Refusal:
    """There is no such thing, or not for this caller."""
    return refusal_of("not_found", f"there is no {what} {name}")


def answering(handler: Handler) -> Handler:
    """``handler``, with what it raises as the answers that they are."""

    async def answer(call: Call) -> object:
        try:
            return await _answer(handler, call)
        except Refusal as refusal:
            if refusal.status != 500 or not _is_tenant(call.caller):
                raise
            raise Refusal(500, HIDDEN, refusal.error_code) from refusal

    return answer


async def _answer(handler: Handler, call: Call) -> object:
    try:
        with told_to_users():
            return await handler(call)
    except (ActionFailed, SagaFailed) as error:
        raise refusal_of(error.kind, str(error)) from error
    except SagaStuck as error:
        raise Refusal(
            500, f"saga {error.saga_id} could not be undone, and waits for an operator", "Internal"
        ) from error
    except Fenced as error:
        raise refusal_of("unavailable", "another Nexus goes on with this: look again later") from error
    except NotFound as error:
        raise refusal_of("not_found", str(error)) from error
    except Conflict as error:
        raise refusal_of("conflict", str(error)) from error
    except (Contention, Unreachable) as error:
        raise refusal_of("unavailable", str(error)) from error
    except ServiceUnreachable as error:
        raise refusal_of("unavailable", "a service of the rack does not answer") from error
    except (DatabaseError, ServiceError) as error:
        raise refusal_of("refused", str(error)) from error


def _is_tenant(caller: object) -> bool:
    return isinstance(caller, Bearer) and caller.role is TokenRole.TENANT
