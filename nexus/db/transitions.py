"""Update and check: how nearly every state in the database changes (nexus.md §0.4).

One question to the database: change this row if it is as expected, and tell what is found there in any case. Three
answers are in order: it was changed; it was not, and already is as it was to become, which is how an action that runs
a second time recognises its own work; or there is no such row. Anything else is a :class:`~nexus.db.errors.Conflict`,
which names the state found and the saga that holds the row, and quotes nothing else.

PostgreSQL is asked in one statement. SQLite cannot say what it did not change; it is asked a second time only where
nothing was changed, and inside the same transaction nobody comes in between.

:func:`insert_if_absent` is the same for a row that is to be there: made, or there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, and_, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from nexus.db.errors import Conflict, NotFound

HOLDER = "operating_saga_id"
Values = Mapping[str, Any]


class Outcome(Enum):
    """How an update ended well."""

    UPDATED = "updated"
    ALREADY = "already so"


def update_and_check(
    connection: Connection,
    table: Table,
    key: str | Values,
    *,
    expected: Values,
    new: Values,
    same: Values | None = None,
) -> Outcome:
    """Change the row ``key`` of ``table`` to ``new`` if it is as ``expected``.

    ``key``: the value of its only key column, or all key columns by name. ``expected``: what each of these columns must
    hold; a set means any of its members, ``None`` NULL. ``same``: what a row must hold that needs no change any more;
    where it is left out, what ``new`` says. Raises :class:`~nexus.db.errors.Conflict`,
    :class:`~nexus.db.errors.NotFound`.
    """
    where = _key_condition(table, key)
    change = update(table).where(where, *_conditions(table, expected)).values(dict(new))
    if connection.dialect.name == "postgresql":
        found, changed = _in_one_statement(connection, table, where, change)
    else:
        changed = connection.execute(change).rowcount == 1
        found = None if changed else connection.execute(select(table).where(where)).mappings().one_or_none()
    if changed:
        return Outcome.UPDATED
    if found is None:
        raise NotFound(table.name, _shown(key))
    if _holds(found, new if same is None else same):
        return Outcome.ALREADY
    raise _conflict(table, key, expected, found)


def insert_if_absent(connection: Connection, table: Table, values: Values) -> bool:
    """Add a row, if none has its key or is in the way by a unique index; whether it was added."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    added = connection.execute(statement.returning(*table.primary_key.columns))
    return added.one_or_none() is not None


def _in_one_statement(
    connection: Connection, table: Table, where: ColumnElement[bool], change: Any
) -> tuple[RowMapping | None, bool]:
    """What was found before the change, and whether it was made."""
    found = select(table).where(where).cte("found")
    changed = change.returning(*table.primary_key.columns).cte("changed")
    asked = select(found, exists(select(changed.c[0])).label("was_changed"))
    row = connection.execute(asked).mappings().one_or_none()
    return row, row is not None and bool(row["was_changed"])


def _key_condition(table: Table, key: str | Values) -> ColumnElement[bool]:
    columns = table.primary_key.columns
    if isinstance(key, Mapping):
        assert set(key) == {column.name for column in columns}
        return and_(*(table.c[name] == value for name, value in key.items()))
    (column,) = columns
    return column == key


def _conditions(table: Table, expected: Values) -> list[ColumnElement[bool]]:
    return [
        table.c[name].in_(value) if isinstance(value, (set, frozenset)) else table.c[name].is_not_distinct_from(value)
        for name, value in expected.items()
    ]


def _holds(found: RowMapping, wanted: Values) -> bool:
    return all(
        found[name] in value if isinstance(value, (set, frozenset)) else found[name] == value
        for name, value in wanted.items()
    )


def _conflict(table: Table, key: str | Values, expected: Values, found: RowMapping) -> Conflict:
    """*Safety*: of the columns only the state and the holder are named, for others may be secret."""
    column = table.info["state"]
    state = None if column is None else str(found[column])
    holder = found.get(HOLDER)
    sentence = f"{table.name} {_shown(key)} is {state or 'not as expected'}"
    if holder is not None:
        sentence += f", held by saga {holder}"
    if column in expected:
        wanted = expected[column]
        names = sorted(map(str, wanted)) if isinstance(wanted, (set, frozenset)) else [str(wanted)]
        sentence += f"; expected {' or '.join(names)}"
        if HOLDER in expected:
            sentence += f" held by {'nobody' if expected[HOLDER] is None else f'saga {expected[HOLDER]}'}"
    return Conflict(sentence, state=state, operating_saga_id=holder)


def _shown(key: str | Values) -> str:
    return key if isinstance(key, str) else ", ".join(f"{name} {value}" for name, value in key.items())
