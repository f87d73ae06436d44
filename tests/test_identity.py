"""Which token row is meant: an object, a message and a connection may each mean another one."""

import contextvars
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction

from bipsync_django import lifecycle
from bipsync_django.exceptions import BipsyncError, RowMismatch, SignInRequired
from bipsync_django.lifecycle import Identity
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.databases import on_servers
from tests.grants import connect, expire, nearly_expire, reload

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


def hand_over(token: BipsyncToken, bipsync: SimulatedBipsync) -> BipsyncToken:
    """Let the Bipsync account belong to another user, who has signed in with it."""
    lifecycle.unlink(token)
    new = connect(bipsync, user=User.objects.create_user("the new owner"))
    assert (new.pk, new.subject) == (token.pk, token.subject)
    bipsync.reset_calls()
    return new


CALLS: dict[str, Any] = {
    "access_token": lifecycle.access_token,
    "refresh": lambda row: lifecycle.refresh(row, force=True),
    "replace_refused": lambda row: lifecycle.replace_refused(row, "refused"),
    "retry": lifecycle.retry,
    "disconnect": lifecycle.disconnect,
    "unlink": lifecycle.unlink,
    "end_sessions": lifecycle.end_sessions,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_row_that_has_changed_hands_gives_its_old_owner_nothing(
    token: BipsyncToken, bipsync: SimulatedBipsync, call: str
) -> None:
    new = hand_over(token, bipsync)
    events = TokenEvent.objects.count()
    before = BipsyncToken.objects.values().get()
    with pytest.raises(SignInRequired):
        CALLS[call](token)
    assert bipsync.calls["token"] == 0
    assert TokenEvent.objects.count() == events
    assert BipsyncToken.objects.values().get() == before
    assert lifecycle.access_token(new)


IDENTITY = ["tenant", "kind", "subject", "user", "created_at"]
INCOMPLETE: dict[str, Callable[[], Any]] = {
    "only": lambda: BipsyncToken.objects.only("status"),
    "raw": lambda: BipsyncToken.objects.raw(
        f"SELECT id, status FROM {BipsyncToken._meta.db_table}"  # noqa: S608 - constant
    ),
    "pickled": lambda: [pickle.loads(pickle.dumps(BipsyncToken.objects.only("status").get()))],  # noqa: S301 - our own
} | {
    f"without {column}": lambda column=column: BipsyncToken.objects.defer(column)
    for column in IDENTITY
}


@pytest.mark.parametrize("load", INCOMPLETE)
@pytest.mark.parametrize("call", [*CALLS, "reencrypt"])
def test_a_row_that_was_loaded_without_its_identity_gives_nobody_anything(
    token: BipsyncToken, bipsync: SimulatedBipsync, load: str, call: str
) -> None:
    """Django would read what is left out when it is asked for, whosever row it is by then."""
    (incomplete,) = INCOMPLETE[load]()
    hand_over(token, bipsync)
    before = BipsyncToken.objects.values().get()
    with pytest.raises(TypeError, match=r"loaded without .*\.only\(\)"):
        {**CALLS, "reencrypt": lifecycle.reencrypt}[call](incomplete)
    assert bipsync.calls["token"] == 0
    assert BipsyncToken.objects.values().get() == before


def test_a_row_without_its_secrets_is_known_all_the_same(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expire(token)
    row = BipsyncToken.objects.only(*IDENTITY).get()
    assert bipsync.is_access_token_alive(lifecycle.access_token(row))


@pytest.mark.parametrize("column", ["tenant", "kind", "subject", "created_at"])
def test_a_row_is_another_one_although_it_has_the_primary_key(
    token: BipsyncToken, bipsync: SimulatedBipsync, column: str
) -> None:
    """As on a connection that sees other tables; a subject may differ in its case alone."""
    now = {
        "tenant": token.tenant.upper(),
        "kind": token.kind.upper(),
        "subject": token.subject.upper(),
        "created_at": token.created_at.replace(microsecond=(token.created_at.microsecond + 1) % 10),
    }
    setattr(token, column, now[column])
    before = BipsyncToken.objects.values().get()
    for call in (*CALLS.values(), lifecycle.reencrypt):
        with pytest.raises(RowMismatch):
            call(token)
    assert bipsync.calls["token"] == 0
    assert BipsyncToken.objects.values().get() == before


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "globex"},
        {"kind": "service"},
        {"subject": "somebody"},
        {"user_id": None},
        {"created_at": datetime(2000, 1, 1, tzinfo=UTC)},
    ],
)
def test_nothing_is_written_to_a_row_that_is_another_one(
    token: BipsyncToken, change: dict[str, Any]
) -> None:
    assert Identity.of(token).rows().get() == token
    assert not replace(Identity.of(token), **change).rows().exists()


def test_a_digest_says_whose_row_it_is_to_nobody(token: BipsyncToken, settings: Any) -> None:
    identity = Identity.of(token)
    assert identity.digest == Identity.of(reload(token)).digest
    others = [
        replace(identity, pk=2**40),
        replace(identity, tenant="globex"),
        replace(identity, kind="service"),
        replace(identity, subject="somebody"),
        replace(identity, user_id=2**40),
        replace(identity, created_at=identity.created_at.replace(year=2000)),
    ]
    assert len({identity.digest, *(other.digest for other in others)}) == 1 + len(others)
    before = identity.digest
    assert token.subject not in before
    # Keyed: a list of all subjects does not lead back.
    settings.SECRET_KEY = "another" * 10
    assert identity.digest != before


def test_a_message_about_a_row_that_has_changed_hands_does_nothing(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    digest = Identity.of(token).digest
    new = expire(hand_over(token, bipsync))
    assert lifecycle.refresh_if_due(token.pk, digest) is lifecycle.Outcome.NOT_DUE
    assert lifecycle.refresh_asked(token.pk, digest) == "disconnected"
    assert bipsync.calls["token"] == 0
    assert lifecycle.refresh_if_due(token.pk, Identity.of(new).digest).value == "refreshed"


who = contextvars.ContextVar("who", default="nobody")


@on_servers
def test_the_sites_function_prepares_each_second_connection_before_its_first_query(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str, settings: Any
) -> None:
    prepared: list[tuple[Any, ...]] = []

    def prepare(connection: Any, caller: Any) -> None:
        prepared.append((caller, who.get(), threading.current_thread()))
        assert connection.connection is not None

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    context = contextvars.copy_context()
    context.run(who.set, "acorn")
    expire(token)

    def call() -> str:
        with transaction.atomic(using=database):
            return lifecycle.access_token(token)

    assert bipsync.is_access_token_alive(context.run(call))
    (only,) = prepared
    assert only[0] is connections[database]
    assert only[1] == "acorn"
    assert only[2] is not threading.current_thread()
    # Outside of a transaction there is no second connection.
    lifecycle.access_token(expire(reload(token)))
    assert len(prepared) == 1


@on_servers
@pytest.mark.parametrize("hook", ["no.such.module", "os.path"])
def test_a_function_that_is_not_there_refuses_and_says_so(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str, settings: Any, hook: str
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": hook}
    row = nearly_expire(token)
    with transaction.atomic(using=database):
        assert lifecycle.access_token(row) == row.unseal("access_token")
        with pytest.raises(BipsyncError, match="PREPARE_CONNECTION"):
            lifecycle.refresh(row, force=True)
    assert bipsync.calls["token"] == 0
