"""What every table of the schema is made of: kinds of columns that mean the same on SQLite and on PostgreSQL.

What it guarantees: a value that does not fit is refused by the database itself, whoever writes it. Tables of SQLite are
STRICT, so that a text never lands in a column of numbers; enumerations are texts with a CHECK; an identifier has the
length of a UUID; a moment has a zone on its way in and is UTC on its way out. Texts are compared byte by byte on both,
so that a page of a listing ends at the same row wherever it is read.

Every column is made by one of these functions, which ask for its explanation; ``docs/nexus-database.md`` is made of
those.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy import text as sql
from sqlalchemy.types import TypeDecorator, TypeEngine

METADATA = MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "ck": "%(table_name)s_%(constraint_name)s"},
)
"""Every table of Nexus."""

UUID_LENGTH = 36
NAME_LENGTH_MAX = 63
BLOCK_SIZES = (512, 2048, 4096)
MOMENT_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


class PlainText(TypeDecorator[str]):
    """Text that sorts by its bytes."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())


class Moment(TypeDecorator[datetime]):
    """A point in time to the microsecond. SQLite has no such type: there it is a text of fixed length that sorts."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=True) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a zone does not say when it is")
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.strftime(MOMENT_FORMAT)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        found: datetime = value
        return found.astimezone(UTC)


class Flag(TypeDecorator[bool]):
    """Yes or no; 1 or 0 where the database has no such type."""

    impl = Boolean
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Boolean() if dialect.name == "postgresql" else Integer())

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else int(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> bool | None:
        return None if value is None else bool(value)


class Enumeration(TypeDecorator[StrEnum]):
    """One of the texts of an enumeration; a plain text is accepted as well, and read back as the member."""

    impl = Text
    cache_ok = True

    def __init__(self, members: type[StrEnum]) -> None:
        super().__init__()
        self.members = members

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else self.members(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.members(value)


WHOLE_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def table(name: str, explanation: str, *parts: Any, state: str | None = None) -> Table:
    """A table of the schema. ``state``: the column that says how far a row is, for who is told that it is elsewhere."""
    return Table(name, METADATA, *parts, comment=explanation, info={"state": state}, sqlite_strict=True)


def check(name: str, condition: str) -> CheckConstraint:
    """A condition that every row of the table satisfies."""
    return CheckConstraint(condition, name=name)


def index(
    name: str, *columns: str, unique: bool = False, where: str | None = None, where_on_sqlite: str | None = None
) -> Index:
    """An index over ``columns``, of the rows for which ``where`` holds. SQLite uses one only for a query that says the
    same in the same words, and SQLAlchemy words a flag as a number there."""
    condition = None if where is None else sql(where)
    return Index(
        name,
        *columns,
        unique=unique,
        sqlite_where=condition if where_on_sqlite is None else sql(where_on_sqlite),
        postgresql_where=condition,
    )


def identifier(name: str, explanation: str, *, nullable: bool = False, key: bool = False) -> Column[str]:
    """A UUID as text."""
    condition = check(f"{name}_is_an_id", f"length({name}) = {UUID_LENGTH}")
    return Column(name, PlainText(), condition, primary_key=key, nullable=nullable, comment=explanation)


def text(
    name: str, explanation: str, *, nullable: bool = False, key: bool = False, secret: bool = False
) -> Column[str]:
    """Any text. ``secret``: what stands there must not be shown, logged or handed on."""
    return Column(name, PlainText(), primary_key=key, nullable=nullable, comment=explanation, info={"secret": secret})


def called(explanation: str = "What the user calls it.") -> Column[str]:
    """The column ``name`` of what users make."""
    condition = check("name_has_a_length", f"length(name) BETWEEN 1 AND {NAME_LENGTH_MAX}")
    return Column("name", PlainText(), condition, nullable=False, comment=explanation)


def number(
    name: str,
    explanation: str,
    *,
    nullable: bool = False,
    key: bool = False,
    least: int | None = 0,
    most: int | None = None,
    default: int | None = None,
) -> Column[int]:
    """A whole number of up to 63 bits, not below ``least`` and not above ``most``."""
    limits = [f"{name} >= {least}"] * (least is not None) + [f"{name} <= {most}"] * (most is not None)
    conditions = [check(f"{name}_is_in_range", " AND ".join(limits))] if limits else []
    return Column(
        name,
        WHOLE_NUMBER,
        *conditions,
        primary_key=key,
        autoincrement=False,
        nullable=nullable,
        comment=explanation,
        server_default=None if default is None else str(default),
    )


def block_size() -> Column[int]:
    """The column ``block_size``."""
    condition = check("block_size_is_known", f"block_size IN ({', '.join(map(str, BLOCK_SIZES))})")
    return Column("block_size", WHOLE_NUMBER, condition, nullable=False, comment="Bytes of a block.")


def port(name: str, explanation: str, *, nullable: bool = False) -> Column[int]:
    """A TCP port."""
    return number(name, explanation, nullable=nullable, least=1, most=65535)


def ip(name: str, explanation: str, *, nullable: bool = False) -> Column[str]:
    """An IPv6 address in its canonical text; IPv4 is illegal everywhere (nexus.md §0.2)."""
    condition = check(f"{name}_is_ipv6", f"{name} LIKE '%:%' AND {name} NOT LIKE '%[%'")
    return Column(name, PlainText(), condition, nullable=nullable, comment=explanation)


def address(name: str, explanation: str, *, nullable: bool = False) -> Column[str]:
    """``[ip]:port`` in its canonical text."""
    condition = check(f"{name}_is_an_address", f"{name} LIKE '[%:%]:%'")
    return Column(name, PlainText(), condition, nullable=nullable, comment=explanation)


def moment(name: str, explanation: str, *, nullable: bool = False, key: bool = False) -> Column[datetime]:
    """A point in time."""
    return Column(name, Moment(), primary_key=key, nullable=nullable, comment=explanation)


def flag(name: str, explanation: str, *, default: bool | None = False) -> Column[bool]:
    """Yes or no; no by default."""
    condition = check(f"{name}_is_yes_or_no", f"{name} IN (FALSE, TRUE)")
    return Column(name, Flag(), condition, nullable=False, comment=explanation, default=default)


def enumeration(
    name: str, members: type[StrEnum], explanation: str, *, nullable: bool = False, key: bool = False
) -> Column[StrEnum]:
    """One of the values of ``members``."""
    values = ", ".join(f"'{member.value}'" for member in members)
    condition = check(f"{name}_is_known", f"{name} IN ({values})")
    return Column(name, Enumeration(members), condition, primary_key=key, nullable=nullable, comment=explanation)


def timestamps(*, deleted: str | None = None) -> list[Column[datetime]]:
    """When the row was made and changed; with ``deleted``, what a value in ``time_deleted`` means."""
    columns = [
        moment("time_created", "When the row was made."),
        moment("time_modified", "When the row was last changed by what it says about itself."),
    ]
    return columns + ([moment("time_deleted", deleted, nullable=True)] if deleted else [])


def one_of(column: str, members: tuple[StrEnum, ...]) -> str:
    """The condition that ``column`` holds one of ``members``, for a CHECK or a partial index."""
    return f"{column} IN ({', '.join(repr(member.value) for member in members)})"
