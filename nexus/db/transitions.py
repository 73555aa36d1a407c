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
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, RowMapping, Table, and_, bindparam, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from nexus.db.errors import Conflict, NotFound

HOLDER = "operating_saga_id"
WAS_CHANGED = "was_changed"
STATEMENTS_KEPT_MAX = 512
NULL, EQUAL, ANY_OF = "null", "equal", "any of"
"""What may be expected of a column."""

Values = Mapping[str, Any]
Shape = tuple[tuple[str, str], ...]


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
    keys = _keys(table, key)
    computed = {name: value for name, value in new.items() if isinstance(value, ColumnElement)}
    plain = {name: value for name, value in new.items() if name not in computed}
    shape = tuple((name, _kind(value)) for name, value in expected.items())
    one_statement = connection.dialect.name == "postgresql"
    if computed:
        change, look = _statements(table, shape, tuple(plain), one_statement, computed)
    else:
        change, look = _kept_statements(table, shape, tuple(plain), one_statement)
    values = {f"key_{name}": value for name, value in keys.items()}
    told = values | {f"new_{name}": value for name, value in plain.items()}
    told |= {f"old_{name}": _bound(value) for name, value in expected.items() if value is not None}
    found: RowMapping | None = None
    if one_statement:
        found = connection.execute(change, told).mappings().one_or_none()
        changed = found is not None and bool(found[WAS_CHANGED])
    else:
        changed = connection.execute(change, told).rowcount == 1
        found = None if changed else connection.execute(look, values).mappings().one_or_none()
    if changed:
        return Outcome.UPDATED
    if found is None:
        raise NotFound(table.name, _shown(key))
    if _holds(found, new if same is None else same):
        return Outcome.ALREADY
    raise _conflict(table, key, expected, found)


def insert_if_absent(connection: Connection, table: Table, values: Values) -> bool:
    """Add a row, if none has its key or is in the way by a unique index; whether it was added."""
    added = connection.execute(_insert(table, connection.dialect.name), dict(values))
    return added.one_or_none() is not None


@lru_cache(maxsize=STATEMENTS_KEPT_MAX)
def _insert(table: Table, dialect_name: str) -> Any:
    """*Optimisation*, as :func:`_kept_statements`; which columns it writes the values say."""
    dialect: Any = postgresql if dialect_name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)


def _statements(
    table: Table, expected: Shape, new: tuple[str, ...], one_statement: bool, computed: Values
) -> tuple[Any, Any]:
    """What changes the row, and what looks at it. As one statement the first does both: it finds the row as it was
    before, with a column that says whether it was changed."""
    where = and_(*(column == bindparam(f"key_{column.name}") for column in table.primary_key.columns))
    change = (
        update(table)
        .where(where, *(_condition(table.c[name], kind) for name, kind in expected))
        .values({name: bindparam(f"new_{name}") for name in new} | dict(computed))
    )
    look = select(table).where(where)
    if not one_statement:
        return change, look
    found = look.cte("found")
    changed = change.returning(*table.primary_key.columns).cte("changed")
    return select(found, exists(select(changed.c[0])).label(WAS_CHANGED)), look


@lru_cache(maxsize=STATEMENTS_KEPT_MAX)
def _kept_statements(table: Table, expected: Shape, new: tuple[str, ...], one_statement: bool) -> tuple[Any, Any]:
    """*Optimisation*: there are as many shapes as edges in the tables of states, and to make a statement costs several
    times what it costs to run it."""
    return _statements(table, expected, new, one_statement, {})


def _keys(table: Table, key: str | Values) -> Values:
    columns = table.primary_key.columns
    if isinstance(key, Mapping):
        assert set(key) == {column.name for column in columns}
        return key
    (column,) = columns
    return {column.name: key}


def _kind(expected: Any) -> str:
    if expected is None:
        return NULL
    return ANY_OF if isinstance(expected, (set, frozenset)) else EQUAL


def _bound(expected: Any) -> Any:
    return sorted(expected) if isinstance(expected, (set, frozenset)) else expected


def _condition(column: Column[Any], kind: str) -> ColumnElement[bool]:
    name = f"old_{column.name}"
    if kind == NULL:
        return column.is_(None)
    return column.in_(bindparam(name, expanding=True)) if kind == ANY_OF else column == bindparam(name)


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
