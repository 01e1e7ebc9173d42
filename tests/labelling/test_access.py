import time

import pytest
import sqlalchemy as sa

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.schema import access
from lit_rlhf.labelling.access import end_session, exchange, find_user, has_admin, invite, revoke


def test_an_invitation_opens_one_session(store):
    secret = invite(store.database, "ana", "labeler")
    session = exchange(store.database, secret)
    assert find_user(store.database, session, "session") == ("ana", "labeler", False)
    assert exchange(store.database, secret) is None
    assert find_user(store.database, secret, "session") is None  # an invitation is no session
    end_session(store.database, session)
    assert find_user(store.database, session, "session") is None


def test_the_store_has_no_secret(store):
    secret = invite(store.database, "ana", "labeler")
    with store.database.reading() as connection:
        (row,) = connection.execute(sa.select(access)).all()
    assert secret not in map(str, row)
    assert len(secret) * 6 >= 256


def test_an_expired_invitation_opens_nothing(store):
    secret = invite(store.database, "ana", "labeler")
    with store.database.writing() as connection:
        connection.execute(sa.update(access).values(expires_at=time.time() - 1))
    assert exchange(store.database, secret) is None


def test_revoking_logs_out_everywhere(store):
    sessions = [exchange(store.database, invite(store.database, "ana", "admin")) for _ in range(2)]
    other = exchange(store.database, invite(store.database, "ben", "labeler"))
    assert has_admin(store.database)
    revoke(store.database, "ana")
    assert [find_user(store.database, s, "session") for s in sessions] == [None, None]
    assert find_user(store.database, other, "session").name == "ben"
    assert not has_admin(store.database)


@pytest.mark.parametrize(
    ("name", "role"), [("", "labeler"), ("x" * 101, "labeler"), ("ana", "root")]
)
def test_a_bad_invitation_is_refused(store, name, role):
    with pytest.raises(ConfigError):
        invite(store.database, name, role)
