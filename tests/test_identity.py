"""Which token row is meant: an object, a message and a connection may each mean another one."""

import contextvars
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connections, transaction

from bipsync_django import durable, lifecycle, tasks
from bipsync_django.durable import DatabaseNow
from bipsync_django.exceptions import (
    BipsyncError,
    NoSecondConnection,
    RowMismatch,
    SignInRequired,
)
from bipsync_django.lifecycle import Identity, protocol
from bipsync_django.models import BipsyncToken, TenantState, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.databases import on_servers
from tests.grants import connect, expire, nearly_expire, refresh_token_of, reload

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


@pytest.mark.parametrize("ask", [lifecycle.refresh_if_due, lifecycle.refresh_asked])
def test_a_message_of_before_the_secret_key_was_rotated_is_still_understood(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any, ask: Callable[..., object]
) -> None:
    expire(token)
    ((pk, digest),) = lifecycle.take_due(10).items()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 10
    ask(pk, digest)
    assert bipsync.calls["refresh"] == 1
    # New messages are made with the new key.
    assert Identity.of(token).digest != digest


@pytest.mark.parametrize("task", [tasks.refresh_token, tasks.refresh_asked])
@pytest.mark.parametrize("how", ["another key", "no digest"])
def test_a_message_that_cannot_be_understood_leaves_the_row_alone_and_says_why(
    token: BipsyncToken,
    bipsync: SimulatedBipsync,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
    task: Any,
    how: str,
) -> None:
    arguments = [token.pk, Identity.of(token).digest][: 1 if how == "no digest" else 2]
    expire(token)
    settings.SECRET_KEY = "another" * 10
    assert task.apply(args=arguments).state == "SUCCESS"
    assert bipsync.calls["token"] == 0
    assert "SECRET_KEY_FALLBACKS" in caplog.text


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


def end_connection(database: str) -> None:
    """Let the server end this thread's connection, which finds out at its next query."""
    ours: Any = connections[database].connection
    if connections[database].vendor == "postgresql":
        end, pid = "SELECT pg_terminate_backend(%s, 5000)", ours.info.backend_pid
    else:
        end, pid = "KILL %s", ours.thread_id()

    def run() -> None:
        with connections[database].cursor() as cursor:
            cursor.execute(end, [pid])
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def breaks_after_the_answer(
    database: str, monkeypatch: pytest.MonkeyPatch, also: Callable[[], object] = lambda: None
) -> None:
    """Let the database end the connection between Bipsync's answer and the store."""
    refresh_pair: Any = vars(protocol)["refresh_pair"]

    def answer(*arguments: Any, **more: Any) -> Any:
        pair = refresh_pair(*arguments, **more)
        end_connection(database)
        also()
        return pair

    monkeypatch.setattr(protocol, "refresh_pair", answer)


@on_servers
def test_the_sites_function_is_given_an_open_connection_after_a_reconnect_too(
    token: BipsyncToken,
    bipsync: SimulatedBipsync,
    database: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found_open: list[bool] = []

    def prepare(connection: Any, caller: Any) -> None:
        found_open.append(connection.connection is not None)
        # The driver's own.
        connection.connection.cursor().execute("SELECT 1")

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    monkeypatch.setattr(durable, "persist", partial(durable.persist, patience=5.0))
    breaks_after_the_answer(database, monkeypatch)
    row = expire(token)
    with transaction.atomic(using=database):
        raw = lifecycle.access_token(row)
    assert found_open == [True, True]
    assert bipsync.is_access_token_alive(raw)
    assert bipsync.is_alive(refresh_token_of(token))


@on_servers
def test_a_function_that_hangs_is_named_and_holds_no_other_refresh_up(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str, settings: Any
) -> None:
    hangs, end = threading.Event(), threading.Event()

    def prepare(connection: Any, caller: Any) -> None:
        if not hangs.is_set():
            hangs.set()
            assert end.wait(60)

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    row = expire(token)
    try:
        with (
            transaction.atomic(using=database),
            pytest.raises(NoSecondConnection, match="PREPARE_CONNECTION"),
        ):
            lifecycle.access_token(row)
        assert hangs.is_set()
        assert bipsync.calls["token"] == 0
        with transaction.atomic(using=database):
            assert bipsync.is_access_token_alive(lifecycle.access_token(row))
    finally:
        end.set()
    assert bipsync.calls["refresh"] == 1


@on_servers
def test_the_command_gives_the_sites_function_open_connections(
    token: BipsyncToken, database: str, settings: Any
) -> None:
    found_open: list[bool] = []

    def prepare(connection: Any, caller: Any) -> None:
        found_open.append(connection.connection is not None)

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    expire(token)
    call_command("bipsync_refresh", threads=2)
    assert found_open == [True, True]


@on_servers
def test_a_function_that_fails_after_the_answer_leaves_the_row_in_doubt(
    token: BipsyncToken,
    bipsync: SimulatedBipsync,
    database: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pair is lost with the database; the death that follows is not the application's."""
    is_down: list[bool] = []

    def prepare(connection: Any, caller: Any) -> None:
        if is_down:
            raise OperationalError("the database system is starting up")

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    row = expire(token)
    with monkeypatch.context() as outage:
        outage.setattr(durable, "persist", partial(durable.persist, patience=1.0))
        breaks_after_the_answer(database, outage, lambda: is_down.append(True))
        with transaction.atomic(using=database), pytest.raises(BipsyncError) as failure:
            lifecycle.access_token(row)
    assert "nothing was sent" not in str(failure.value)
    assert bipsync.calls["refresh"] == 1
    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": None}
    BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
    with pytest.raises(SignInRequired):
        lifecycle.access_token(reload(token))
    assert reload(token).last_error == "answer_lost"
    assert not TenantState.objects.filter(dead_in_a_row__gt=0).exists()
