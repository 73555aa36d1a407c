"""What stands in a request's path and query: names, ids, and which page of a list.

A *page token* says where the last page ended and in which order, so a client that goes on says nothing else again. It
is nobody's secret: what it can ask for, the client could ask for without it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from crucible_emu.service import Call
from nexus.api.members import is_id, is_name
from nexus.api.refusals import bad_request
from nexus.objects.lookups import Order, Slice

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
TOKEN_LENGTH_MAX = 512
_DIGITS = re.compile(r"[0-9]{1,10}")
LIMIT_END = 2**32

T = TypeVar("T")


def name_or_id(text: str, what: str) -> str:
    """``text`` if it is one of the two; an id in small letters. Raises :class:`Refusal` (400)."""
    if is_id(text):
        return text.lower()
    if not is_name(text):
        raise bad_request(f"{text[:80]!r} is neither the name nor the id of a {what}")
    return text


def path_id(call: Call, name: str) -> str:
    """The id in the path. Raises :class:`Refusal` (400)."""
    text = call.path[name]
    if not is_id(text):
        raise bad_request(f"bad parameter in the path: {name} is a UUID")
    return text.lower()


def slice_of(call: Call, orders: Iterable[Order] = tuple(Order)) -> Slice:
    """Which page is wanted; ``orders``: what ``sort_by`` may say, the first where it says nothing. Raises
    :class:`Refusal` (400)."""
    limit = _limit(call.query.get("limit"))
    allowed = {each.value: each for each in orders}
    token = call.query.get("page_token")
    if token is not None:
        by, last = _read_token(token)
        if by not in allowed:
            raise bad_request("page_token is of another list")
        return Slice(limit, allowed[by], last)
    wanted = call.query.get("sort_by", next(iter(allowed)))
    if wanted not in allowed:
        raise bad_request(f"sort_by is one of {', '.join(allowed)}")
    return Slice(limit, allowed[wanted])


def page_of(rows: Sequence[T], wanted: Slice, key: Callable[[T, str], str]) -> str | None:
    """The ``next_page`` of a list of which these rows are told; ``key(row, column)`` is what a row is ordered by. A
    page that is not full is the last."""
    if len(rows) < wanted.limit:
        return None
    return _write_token(wanted.order, key(rows[-1], wanted.order.by))


def by_attribute(row: Any, column: str) -> str:
    """The usual ``key`` of :func:`page_of`."""
    return str(getattr(row, column))


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if _DIGITS.fullmatch(text) is None or not 0 < int(text) < LIMIT_END:
        raise bad_request(f"limit is a number from 1; pages have at most {LIMIT_MAX} entries")
    return min(int(text), LIMIT_MAX)


def _write_token(order: Order, last: str) -> str:
    return base64.urlsafe_b64encode(json.dumps({"v": 1, "by": order.value, "last": last}).encode()).decode()


def _read_token(token: str) -> tuple[str, str]:
    try:
        if len(token) > TOKEN_LENGTH_MAX:
            raise ValueError
        found = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        by, last = found["by"], found["last"]
        if found["v"] != 1 or not isinstance(by, str) or not isinstance(last, str) or not last.isprintable():
            raise ValueError
        last.encode()
    except (ValueError, binascii.Error, KeyError, TypeError, RecursionError):
        raise bad_request("page_token is none: send back what next_page said") from None
    return by, last
