"""Who may use the page: invitations, sessions and API tokens.

A secret is 256 random bits that only its owner has; the store has its SHA-256. An invitation is
exchanged once for a session, so a link that was used, forwarded or logged opens nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, select, update

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.adding import labeler_id
from lit_rlhf.feedback.database import Database
from lit_rlhf.feedback.schema import access, labelers

Role = Literal["labeler", "admin", "api"]
Kind = Literal["invitation", "session", "api"]

_DAY_S = 86_400.0
# An API token is for a program: nobody is there to renew it.
_LIVES_S = {"invitation": 14 * _DAY_S, "session": 90 * _DAY_S, "api": 3650 * _DAY_S}
_LONGEST_NAME = 100


class User(NamedTuple):
    """Who sends a request.

    Attributes:
        name: the labeler's name in the store.
        role: what the user may do.
        is_paused: whether the user gets no tasks for now.
    """

    name: str
    role: Role
    is_paused: bool


def invite(database: Database, name: str, role: Role) -> str:
    """Add a user, and return the secret of an invitation, or of an API token for the role "api".

    Raises:
        ConfigError: the role is unknown, or the name is empty or too long.
    """
    if role not in get_args(Role):
        raise ConfigError(f"role {role!r}: expected one of {', '.join(get_args(Role))}.")
    has_controls = any(character < " " for character in name.strip())
    if has_controls or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise ConfigError(f"a labeler's name has 1 to {_LONGEST_NAME} characters, not {name!r}.")
    with database.writing() as connection:
        owner = labeler_id(connection, name.strip())
        return _issue(connection, owner, "api" if role == "api" else "invitation", role)


def is_invitation(database: Database, secret: str) -> bool:
    """Say whether this is an invitation that `exchange` would take, without a write."""
    query = select(exists().where(access.c.digest == _digest(secret), *_is_open(time.time())))
    with database.reading() as connection:
        return connection.execute(query).scalar_one()


def exchange(database: Database, secret: str) -> str | None:
    """Return the secret of a new session for an invitation; None where it opens nothing."""
    now = time.time()
    with database.writing() as connection:
        used = (
            update(access)
            .where(access.c.digest == _digest(secret), *_is_open(now))
            .values(used_at=now)
            .returning(access.c.labeler_id, access.c.role)
        )
        found = connection.execute(used).one_or_none()
        if found is None:
            return None
        return _issue(connection, found.labeler_id, "session", found.role)


def find_user(database: Database, secret: str, kind: Kind) -> User | None:
    """Return whose session or API token this is; None for nobody's."""
    query = (
        select(labelers.c.name, access.c.role, labelers.c.is_paused)
        .join_from(access, labelers)
        .where(access.c.digest == _digest(secret), access.c.kind == kind)
        .where(access.c.expires_at > time.time())
    )
    with database.reading() as connection:
        found = connection.execute(query).one_or_none()
    return None if found is None else User(found.name, found.role, found.is_paused)


def end_session(database: Database, secret: str) -> None:
    """Forget a session."""
    with database.writing() as connection:
        connection.execute(delete(access).where(access.c.digest == _digest(secret)))


def revoke(database: Database, name: str) -> None:
    """Forget every invitation, session and API token of a user."""
    owner = select(labelers.c.id).where(labelers.c.name == name).scalar_subquery()
    with database.writing() as connection:
        connection.execute(delete(access).where(access.c.labeler_id == owner))


def has_admin(database: Database) -> bool:
    """Say whether somebody has been invited to administer the store."""
    with database.reading() as connection:
        return connection.execute(select(exists().where(access.c.role == "admin"))).scalar_one()


def csrf_token(session: str) -> str:
    """Return what the forms of a session must send: another site cannot know it."""
    return _digest(f"csrf:{session}")


def _is_open(now: float) -> tuple[ColumnElement[bool], ...]:
    is_unused = access.c.used_at.is_(None)
    return access.c.kind == "invitation", is_unused, access.c.expires_at > now


def _issue(connection: Connection, owner: int, kind: Kind, role: Role) -> str:
    secret, now = secrets.token_urlsafe(32), time.time()
    row = {"digest": _digest(secret), "kind": kind, "role": role, "labeler_id": owner}
    connection.execute(
        insert(access).values(row | {"created_at": now, "expires_at": now + _LIVES_S[kind]})
    )
    return secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
