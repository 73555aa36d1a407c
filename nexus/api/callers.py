"""Who asks, and what he may touch.

A *tenant's* token opens one project: what is in it, and the images of its silo. Everything else does not exist for him
(404), and what only an operator may do is refused (403). An *operator's* token opens everything.

What it guarantees (*safety*): a caller is made out before his request is looked at, from the database and not from
anything that he says. An operator's token may also be given to the process when it starts, so that somebody can come in
where the database is empty; it is compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from crucible_emu.service import Knock, Refusal
from nexus.db import DatabaseError
from nexus.db.schema.user_visible import TokenRole
from nexus.objects.tenants import Bearer, bearer_of, digest_of
from nexus.services import World

Identify = Callable[[Knock], Awaitable[object]]

OPERATOR = Bearer("the operator", TokenRole.OPERATOR, None)
"""Who has the token that the process was started with, or is trusted for where he asks from."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Makes out callers. ``operator_digest``: of the token that the process was started with, if there was one."""

    world: World
    operator_digest: str | None = None

    async def anybody(self, knock: Knock) -> Bearer:
        """For who has a token. Raises :class:`Refusal` (401)."""
        found = await self._bearer(knock)
        if found is None:
            raise Refusal(401, "this service wants a bearer token: send Authorization: Bearer TOKEN", "Unauthorized")
        return found

    async def operators(self, knock: Knock) -> Bearer:
        """For operators. Raises :class:`Refusal` (401, 403)."""
        found = await self.anybody(knock)
        require_operator(found)
        return found

    async def operators_and_neighbours(self, knock: Knock) -> Bearer:
        """For operators and for this machine's programs: what runs beside Nexus has no token. A web page in a browser
        here is no neighbour. Raises :class:`Refusal` (401, 403)."""
        if knock.authorization is not None:
            return await self.operators(knock)
        if not _is_loopback(knock.peer):
            return await self.operators(knock)
        if knock.origin is not None:
            raise Refusal(403, "a web page may not ask here: the request has an Origin", "Forbidden")
        return OPERATOR

    async def _bearer(self, knock: Knock) -> Bearer | None:
        scheme, _, given = (knock.authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            return None
        digest = digest_of(given.strip())
        if self.operator_digest is not None and hmac.compare_digest(digest, self.operator_digest):
            return OPERATOR
        now = self.world.now()
        try:
            return await self.world.database.read(lambda connection: bearer_of(connection, digest, now))
        except DatabaseError as error:
            raise Refusal(503, "the database does not answer: nobody can be let in", "ServiceNotAvailable") from error


def _is_loopback(peer: str | None) -> bool:
    try:
        return peer is not None and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def require_operator(bearer: Bearer) -> None:
    """Raises :class:`Refusal` (403)."""
    if bearer.role is not TokenRole.OPERATOR:
        raise Refusal(403, "only an operator may do this", "Forbidden")
