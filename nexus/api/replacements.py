"""Our routes about replacements, ``/emulator/v1/replacements``: looked at, asked for, decided (nexus.md §4.11).

For operators. To look changes nothing. What is asked for is only written down: the background tasks find it, whichever
Nexus they run in, as they find what they asked for themselves.
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from crucible_emu.service import Call
from nexus.api import replacement_documents as documents
from nexus.api import replacement_views as views
from nexus.api.queries import by_attribute, page_of, path_id, slice_of
from nexus.api.refusals import bad_request
from nexus.objects.lookups import Order
from nexus.running import Nexus

BY_ID = (Order.ID_ASCENDING,)
STATES = get_args(documents.State)


class Replacements:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._world = nexus.world

    async def page(self, call: Call) -> object:
        wanted, state = slice_of(call, BY_ID), call.query.get("state")
        if state is not None and state not in STATES:
            raise bad_request(f"state is one of {', '.join(STATES)}")
        everything = call.query.get("all", "false")
        if everything not in ("true", "false"):
            raise bad_request("all is true or false")
        find = partial(views.page, wanted=wanted, state=state, everything=everything == "true")
        items = await self._world.database.read(find)
        return documents.ReplacementPage(items=tuple(items), next_page=page_of(items, wanted, by_attribute))

    async def one(self, call: Call) -> object:
        request_id = path_id(call, "request_id")
        return await self._world.database.read(lambda c: views.detail(c, request_id))

    async def waiting(self, _call: Call) -> object:
        now = self._world.now()
        return await self._world.database.read(lambda c: views.waiting(c, now))

    async def to_do(self, _call: Call) -> object:
        return await self._world.database.read(views.to_do)


def rows(nexus: Nexus) -> tuple[tuple[str, str, str, Any, Any, int], ...]:
    """The rows of the API."""
    do, path = Replacements(nexus), documents.PATH
    return (
        ("emulator_replacement_list", "GET", path, do.page, None, 200),
        ("emulator_replacement_view", "GET", f"{path}/{{request_id}}", do.one, None, 200),
        ("emulator_replacement_waiting", "GET", f"{path}/waiting", do.waiting, None, 200),
        ("emulator_replacement_to_do", "GET", f"{path}/to-do", do.to_do, None, 200),
    )
