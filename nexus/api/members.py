"""What the documents of all APIs are made of: names, ids, sizes, moments.

What it guarantees: what a client sends is held to the real documents' patterns before anything else sees it. Members
that nobody knows are ignored, as in the real servers.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME_LENGTH_MAX = 63
DESCRIPTION_LENGTH_MAX = 512
SIGNED_MAX = 2**63 - 1
YEAR_MIN = 1000
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_NAME = re.compile(r"[a-z]([a-zA-Z0-9-]*[a-zA-Z0-9]+)?")

T = TypeVar("T")


def is_id(text: str) -> bool:
    """Whether ``text`` is written as an id, and so is no name."""
    return _UUID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a user may call something so."""
    return len(text) <= NAME_LENGTH_MAX and _NAME.fullmatch(text) is not None and not is_id(text)


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            f"a name is up to {NAME_LENGTH_MAX} letters, digits and hyphens, begins with a small letter, ends with"
            " none of the hyphens, and is no id"
        )
    return text


def _name_or_id(text: str) -> str:
    return text.lower() if is_id(text) else _name(text)


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a moment says its zone")
    try:
        found = moment.astimezone(UTC)
    except OverflowError:
        found = None
    # *Safety*: texts of moments are compared in the database, and an earlier year has fewer digits there.
    if found is None or found.year < YEAR_MIN:
        raise ValueError(f"a moment is in the years from {YEAR_MIN} to 9999")
    return found


def _no_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a null character, which no database takes")
    return text


Name = Annotated[str, AfterValidator(_name)]
NameOrId = Annotated[str, AfterValidator(_name_or_id)]
Words = Annotated[str, AfterValidator(_no_null), Field(max_length=DESCRIPTION_LENGTH_MAX)]
"""A user's own words."""
Uint64 = Annotated[int, Field(ge=0, lt=2**64)]
ByteCount = Uint64
BlockSize = Literal[512, 2048, 4096]
Moment = Annotated[datetime, AfterValidator(_in_utc)]


class Document(BaseModel):
    """The base of all documents."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Document, Generic[T]):
    """Some of many. ``next_page``: the ``page_token`` that asks for those that follow; ``None`` where none do."""

    items: tuple[T, ...]
    next_page: str | None = None


class Identity(Document):
    """What everything that users make has."""

    id: UUID
    name: str
    description: str
    time_created: datetime
    time_modified: datetime
