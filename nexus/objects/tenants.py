"""Silos, projects, and the tokens that open them (nexus.md §1.3).

A token is a word that somebody has; here only its digest is. So whoever reads the database, a dump or a log of it
cannot come in with what he read. Tokens are drawn with 256 bits, so a plain digest is as good as a slow one.

What it guarantees: a token that was taken back, has ended, or whose project is deleted, opens nothing. A project is
deleted only when nothing is in it: what is charged to it would be charged to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blake3 import blake3
from sqlalchemy import Connection, Row, insert, select, update

from nexus.db import schema
from nexus.db.schema.user_visible import TokenRole
from nexus.db.transitions import insert_if_absent
from nexus.objects.refusals import already_exists, invalid_request, not_found

_SILO, _PROJECT, _TOKEN = schema.silo, schema.project, schema.access_token
_CHARGED = schema.virtual_provisioning_resource
TOKEN_BYTES = 32
TOKEN_PREFIX = "nexus-"
_IN_A_PROJECT = {"disk": schema.disk, "snapshot": schema.snapshot, "image": schema.image, "instance": schema.instance}


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who has a token. ``project_id``: what it opens; ``None``: everything."""

    token_id: str
    role: TokenRole
    project_id: str | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be written down. ``digest``: :func:`digest_of` the token."""

    id: str
    digest: str
    role: TokenRole
    project_id: str | None = None
    time_expires: datetime | None = None


def token_of(drawn: bytes) -> str:
    """The token that is made of :data:`TOKEN_BYTES` random bytes."""
    return f"{TOKEN_PREFIX}{drawn.hex()}"


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return blake3(token.encode()).hexdigest()


# -- silos and projects -----------------------------------------------------------------------------------------------


def silo_create(connection: Connection, silo_id: str, name: str, description: str, now: datetime) -> None:
    """Raises :class:`~nexus.saga.ActionFailed` (object_already_exists)."""
    row = {"id": silo_id, "name": name, "description": description, "time_created": now, "time_modified": now}
    if not insert_if_absent(connection, _SILO, row):
        raise already_exists("silo", name)


def only_silo(connection: Connection) -> str:
    """The silo that is meant where nobody says which. Raises :class:`~nexus.saga.ActionFailed`."""
    found = connection.execute(select(_SILO.c.id).where(_SILO.c.time_deleted.is_(None)).limit(2)).scalars().all()
    if len(found) != 1:
        raise invalid_request("there is no silo yet" if not found else "there is more than one silo: say which")
    return str(found[0])


def silo_of(connection: Connection, project_id: str) -> str:
    """Whose project it is. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    query = select(_PROJECT.c.silo_id).where(_PROJECT.c.id == project_id, _PROJECT.c.time_deleted.is_(None))
    found = connection.execute(query).scalar_one_or_none()
    if found is None:
        raise not_found("project", project_id)
    return str(found)


def project_create(
    connection: Connection, project_id: str, silo_id: str, name: str, description: str, now: datetime
) -> None:
    """Raises :class:`~nexus.saga.ActionFailed` (object_already_exists, not_found)."""
    there = select(_SILO.c.id).where(_SILO.c.id == silo_id, _SILO.c.time_deleted.is_(None))
    if connection.execute(there).first() is None:
        raise not_found("silo", silo_id)
    row = {"id": project_id, "silo_id": silo_id, "name": name, "description": description}
    if not insert_if_absent(connection, _PROJECT, row | {"time_created": now, "time_modified": now}):
        raise already_exists("project", name)


def project_delete(connection: Connection, project_id: str, now: datetime) -> None:
    """Delete an empty project; its tokens are taken back. Raises :class:`~nexus.saga.ActionFailed`."""
    silo_of(connection, project_id)
    for what, table in _IN_A_PROJECT.items():
        inside = select(table.c.name).where(table.c.project_id == project_id, table.c.time_deleted.is_(None)).limit(1)
        name = connection.execute(inside).scalar_one_or_none()
        if name is not None:
            raise invalid_request(f"project to be deleted contains a {what}: {name}")
    charged = select(_CHARGED.c.id).where(_CHARGED.c.project_id == project_id).limit(1)
    if connection.execute(charged).first() is not None:
        # *Safety*: a saga charges what it is about to make, before there is anything else of it.
        raise invalid_request("project to be deleted contains something that is being made or deleted")
    gone = {"time_deleted": now, "time_modified": now}
    connection.execute(update(_PROJECT).where(_PROJECT.c.id == project_id).values(**gone))
    opens = (_TOKEN.c.project_id == project_id) & _TOKEN.c.project_id.is_not(None) & _TOKEN.c.time_revoked.is_(None)
    connection.execute(update(_TOKEN).where(opens).values(time_revoked=now))


# -- tokens -----------------------------------------------------------------------------------------------------------


def token_insert(connection: Connection, new: NewToken, now: datetime) -> None:
    """Raises :class:`~nexus.saga.ActionFailed` where the project is none."""
    if (new.role is TokenRole.TENANT) != (new.project_id is not None):
        raise invalid_request("a tenant's token opens a project, and an operator's names none")
    if new.project_id is not None:
        silo_of(connection, new.project_id)
    row = {"id": new.id, "digest": new.digest, "role": new.role, "project_id": new.project_id}
    connection.execute(insert(_TOKEN).values(**row, time_created=now, time_expires=new.time_expires))


def token_revoke(connection: Connection, token_id: str, now: datetime) -> None:
    """Take a token back; of one that was taken back it is done. Raises :class:`~nexus.saga.ActionFailed`."""
    if connection.execute(select(_TOKEN.c.id).where(_TOKEN.c.id == token_id)).first() is None:
        raise not_found("token", token_id)
    revoked = update(_TOKEN).where(_TOKEN.c.id == token_id, _TOKEN.c.time_revoked.is_(None))
    connection.execute(revoked.values(time_revoked=now))


def token_get(connection: Connection, token_id: str) -> Row[Any]:
    """A token's row, without its digest. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = connection.execute(tokens_selected().where(_TOKEN.c.id == token_id)).one_or_none()
    if row is None:
        raise not_found("token", token_id)
    return row


def tokens_selected() -> Any:
    """The query for tokens; digests stay where they are."""
    return select(*(column for column in _TOKEN.c if column is not _TOKEN.c.digest))


def bearer_of(connection: Connection, digest: str, now: datetime) -> Bearer | None:
    """Who has the token with this digest; ``None`` where it opens nothing."""
    query = select(_TOKEN.c.id, _TOKEN.c.role, _TOKEN.c.project_id).where(
        _TOKEN.c.digest == digest,
        _TOKEN.c.time_revoked.is_(None),
        _TOKEN.c.time_expires.is_(None) | (_TOKEN.c.time_expires > now),
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Bearer(row.id, TokenRole(row.role), row.project_id)
