"""The refresh protocol, on each database, against the simulated Bipsync over real HTTP."""

import logging
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connections, transaction
from django.db.models import F
from django.utils import timezone

from bipsync_django import durable, lifecycle, signals
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import (
    RefreshInsideTransaction,
    RefreshUnavailable,
    SecretUnreadable,
    SignInRefused,
    SignInRequired,
)
from bipsync_django.key_budget import DatabaseBudget
from bipsync_django.lifecycle import Outcome, protocol
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.client import TokenPair, refresh_pair
from bipsync_django.oauth.keys import use_budget
from bipsync_django.testing import Answer, DropAfter, DropBefore, Html, SimulatedBipsync
from tests.databases import on_servers, on_sqlite
from tests.grants import at_once, connect, expire, nearly_expire, refresh_token_of, reload
from tests.signing import forget_keys

pytestmark = pytest.mark.usefixtures("database")

Status = BipsyncToken.Status


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@pytest.fixture
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What receivers of the signals were told."""
    told: list[tuple[str, dict[str, Any]]] = []
    receivers = []
    for name in signals.__all__:

        def receiver(sender: object, _name: str = name, **kwargs: Any) -> None:
            told.append((_name, kwargs))

        receivers.append((getattr(signals, name), receiver))
        getattr(signals, name).connect(receiver)
    yield told
    for signal, receiver in receivers:
        signal.disconnect(receiver)


def events(token: BipsyncToken) -> list[tuple[str, str]]:
    return [(e.name, e.reason) for e in TokenEvent.objects.filter(token=token).order_by("id")]


# --- nothing due


def test_a_token_that_is_not_due_costs_one_query_and_no_write(
    token: BipsyncToken, database: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1, connection=connections[database]) as queries:
        assert lifecycle.access_token(token) == token.unseal("access_token")
    assert queries.captured_queries[0]["sql"].startswith("SELECT")


def test_a_pair_younger_than_thirty_seconds_is_not_refreshed_even_by_force(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    assert lifecycle.refresh(token, force=True).generation == token.generation
    assert bipsync.calls["refresh"] == 0


def test_a_caller_with_an_older_generation_gets_the_newer_pair_without_a_call(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    stale = expire(token)
    fresh = lifecycle.refresh(stale)
    expire(fresh)
    assert lifecycle.refresh(stale, force=True).generation == fresh.generation
    assert bipsync.calls["refresh"] == 1


def test_min_validity_counts_for_a_quarter_of_the_lifetime_at_most(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    now = timezone.now()
    BipsyncToken.objects.filter(pk=token.pk).update(
        obtained_at=now - timedelta(seconds=60), access_expires_at=now + timedelta(seconds=60)
    )
    lifecycle.access_token(token, min_validity=3600)
    assert bipsync.calls["refresh"] == 0
    lifecycle.access_token(nearly_expire(token, seconds_left=59), min_validity=60)
    assert bipsync.calls["refresh"] == 1


# --- the refresh


def test_an_expired_token_is_refreshed_and_stored(
    token: BipsyncToken, bipsync: SimulatedBipsync, heard: list[Any]
) -> None:
    before = refresh_token_of(token)
    access_token = lifecycle.access_token(expire(token))
    row = reload(token)
    assert bipsync.is_access_token_alive(access_token)
    assert bipsync.is_alive(refresh_token_of(token))
    assert not bipsync.is_alive(before)
    assert (row.generation, row.validated_generation) == (2, 2)
    assert (row.lease_id, row.lease_until, row.in_doubt_at) == (None, None, None)
    assert row.access_expires_at is not None
    assert row.access_expires_at > timezone.now() + timedelta(minutes=59)
    assert row.next_refresh_at is not None
    ahead = row.access_expires_at - row.next_refresh_at
    assert timedelta(seconds=300) <= ahead <= timedelta(seconds=600)
    assert [name for name, _ in heard] == ["token_refreshed"]
    assert heard[0][1]["claims"].subject == row.subject
    assert HourlyCount.objects.get(name="refreshed").count == 1


def test_eight_threads_on_one_expired_token_make_one_call_and_all_are_served(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.latency = 0.1
    bipsync.family_revocation = True
    expired = expire(token)
    served = at_once(8, lambda _: lifecycle.access_token(expired))
    assert bipsync.calls["refresh"] == 1
    assert set(served) == {reload(token).unseal("access_token")}
    assert bipsync.is_alive(refresh_token_of(token))


def test_eight_threads_inside_transactions_make_one_call(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    bipsync.latency = 0.1
    bipsync.family_revocation = True
    expired = expire(token)

    def work(_: int) -> str:
        with transaction.atomic(using=database):
            return lifecycle.access_token(expired)

    served = at_once(8, work)
    if database == "default":
        assert {type(error) for error in served} == {RefreshInsideTransaction}
        assert bipsync.calls["refresh"] == 0
    else:
        assert set(served) == {reload(token).unseal("access_token")}
        assert bipsync.calls["refresh"] == 1
    assert bipsync.is_alive(refresh_token_of(token))


@on_servers
def test_a_rotated_token_survives_the_callers_rollback(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    expired = expire(token)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        User.objects.create_user("rolled-back")
        lifecycle.access_token(expired)
        raise ZeroDivisionError
    assert not User.objects.filter(username="rolled-back").exists()
    assert bipsync.calls["refresh"] == 1
    assert bipsync.is_alive(refresh_token_of(token))


@on_sqlite
def test_sqlite_inside_a_transaction_refuses_before_the_call(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    with transaction.atomic():
        with pytest.raises(RefreshInsideTransaction, match="Call Bipsync outside"):
            lifecycle.access_token(expire(token))
        still_good = nearly_expire(token)
        assert lifecycle.access_token(still_good) == still_good.unseal("access_token")
    assert bipsync.calls["token"] == 0
    assert bipsync.is_alive(refresh_token_of(token))


def test_autocommit_switched_off_counts_as_a_transaction(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    expired = expire(token)
    transaction.set_autocommit(False, using=database)
    try:
        if database == "default":
            with pytest.raises(RefreshInsideTransaction):
                lifecycle.access_token(expired)
        else:
            lifecycle.access_token(expired)
        transaction.rollback(using=database)
    finally:
        transaction.set_autocommit(True, using=database)
    assert bipsync.is_alive(refresh_token_of(token))


def test_no_transaction_or_lock_of_ours_is_open_while_bipsync_is_waited_for(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    bipsync.latency = 1.5
    expired = expire(token)
    caller = threading.Thread(target=lambda: at_once(1, lambda _: lifecycle.access_token(expired)))
    caller.start()
    _wait_until(lambda: bipsync.calls["refresh"] == 1)
    started = time.monotonic()
    BipsyncToken.objects.filter(pk=token.pk).update(attempt=F("attempt"))
    assert time.monotonic() - started < 1
    caller.join()
    assert bipsync.is_alive(refresh_token_of(token))


@on_servers
def test_a_caller_who_holds_the_rows_lock_is_told_before_the_call(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "WAIT_FOR_WINNER", 1.0)
    monkeypatch.setattr(durable, "LOCK_TIMEOUT", 0.3)
    expired = expire(token)
    with transaction.atomic(using=database):
        BipsyncToken.objects.select_for_update().get(pk=token.pk)
        with pytest.raises(RefreshUnavailable):
            lifecycle.access_token(expired)
    assert bipsync.calls["refresh"] == 0
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))


# --- beside the caller's transaction


@on_servers
def test_a_receiver_may_want_what_the_caller_has_locked(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    """On the own connection it would wait for the caller, and the caller for it, for ever."""
    told: list[str] = []

    def rename(token: BipsyncToken, **kwargs: object) -> None:
        User.objects.update(username="from the receiver")
        told.append(threading.current_thread().name)

    expired = expire(token)
    signals.token_refreshed.connect(rename)
    try:
        with transaction.atomic(using=database):
            User.objects.update(username="from the view")
            lifecycle.access_token(expired)
            assert told == [threading.current_thread().name]
    finally:
        signals.token_refreshed.disconnect(rename)
    assert User.objects.get().username == "from the receiver"


def test_a_receiver_with_a_database_error_does_not_break_the_callers_transaction(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    def fail(token: BipsyncToken, **kwargs: object) -> None:
        User.objects.create(username=token.user.username if token.user else "")

    signals.disconnected.connect(fail)
    try:
        with transaction.atomic(using=database):
            lifecycle.disconnect(token)
            User.objects.create(username="from the view")
    finally:
        signals.disconnected.disconnect(fail)
    assert User.objects.filter(username="from the view").exists()
    assert reload(token).status == Status.DISCONNECTED


@on_servers
def test_a_reader_who_validates_leaves_no_lock_and_no_setting_behind(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    BipsyncToken.objects.update(validated_generation=0)
    with transaction.atomic(using=database):
        lifecycle.access_token(token)
        if database == "postgresql":
            with connections[database].cursor() as cursor:
                cursor.execute("SHOW lock_timeout")
                assert cursor.fetchone() == ("0",)
        (other,) = at_once(1, lambda _: lifecycle.refresh(expire(token)))
        assert not isinstance(other, Exception), other
    assert reload(token).validated_generation == 2


@on_servers
def test_a_verdict_outlives_the_callers_rollback(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    stranger = bipsync.sign({**bipsync.access_token_claims(token.subject), "aud": "elsewhere"})
    sealed = token.seal("access_token", stranger)
    BipsyncToken.objects.update(access_token=sealed, validated_generation=0)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        with pytest.raises(RefreshUnavailable, match="validate"):
            lifecycle.access_token(token)
        raise ZeroDivisionError
    assert reload(token).last_error == "token_refused"


@on_sqlite
def test_sqlite_inside_a_transaction_looks_and_does_not_write(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    BipsyncToken.objects.update(validated_generation=0)
    with transaction.atomic(using=database):
        assert lifecycle.access_token(token) == token.unseal("access_token")
    assert reload(token).validated_generation == 0
    lifecycle.access_token(token)
    assert reload(token).validated_generation == 1


def test_a_slow_secret_store_is_asked_once_and_before_the_clock_is_looked_at(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    asked: list[int] = []

    def secret() -> str:
        asked.append(1)
        if len(asked) > 1:
            time.sleep(0.5)
        return "portal-secret"

    expired = expire(token)
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": secret}
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))
    assert len(asked) == 1


# --- leases


def test_an_expired_lease_is_taken_over_and_the_doubt_is_noted(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    assert protocol._claim(expired) is not None
    assert protocol._claim(expired) is None
    past = timezone.now() - timedelta(seconds=1)
    BipsyncToken.objects.filter(pk=token.pk).update(lease_until=past)
    assert reload(token).in_doubt_at is None
    assert protocol._claim(expired) is not None
    assert reload(token).in_doubt_at is not None


def test_who_read_the_row_too_long_ago_gets_no_lease(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    before_a_refresh = expire(token)
    lifecycle.access_token(token)
    assert protocol._claim(before_a_refresh) is None
    before_its_death = expire(token)
    BipsyncToken.objects.update(status=Status.NEEDS_SIGN_IN)
    assert protocol._claim(before_its_death) is None
    assert bipsync.calls["refresh"] == 1


def test_who_read_the_row_before_a_refresh_failed_does_not_try_at_once_again(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    stale = expire(token)
    bipsync.fail("token", Html(503))
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(token)
    assert protocol._claim(stale) is None
    assert bipsync.calls["token"] == 1


def test_a_lease_in_force_makes_background_work_give_way_and_foreground_wait(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = expire(token)
    claim = protocol._claim(expired)
    assert claim is not None
    assert lifecycle.refresh_if_due(token.pk) is Outcome.HELD_BACK
    monkeypatch.setattr(protocol, "WAIT_FOR_WINNER", 0.2)
    with pytest.raises(RefreshUnavailable) as busy:
        lifecycle.access_token(expired)
    assert busy.value.code == "busy"
    assert bipsync.calls["refresh"] == 0
    protocol._carry_out(claim)
    assert bipsync.is_alive(refresh_token_of(token))


def test_the_lease_runs_on_the_databases_clock(token: BipsyncToken) -> None:
    claimed_at = timezone.now()
    assert protocol._claim(expire(token)) is not None
    until = reload(token).lease_until
    assert until is not None
    assert timedelta(seconds=28) < until - claimed_at < timedelta(seconds=33)


def test_an_owner_whose_lease_was_taken_over_still_stores_the_live_pair(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    slow = protocol._claim(expired)
    assert slow is not None
    issued = refresh_pair(get_tenant(), refresh_token_of(token))
    past = timezone.now() - timedelta(seconds=1)
    BipsyncToken.objects.filter(pk=token.pk).update(lease_until=past)
    other = protocol._claim(expired)
    assert other is not None
    assert _store(expired, issued).generation == 2
    assert bipsync.is_alive(refresh_token_of(token))
    assert protocol._carry_out(other) is None
    assert bipsync.is_alive(refresh_token_of(token))


def test_a_dead_answer_counts_only_as_long_as_the_lease_is_ones_own(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    slow = protocol._claim(expired)
    assert slow is not None
    past = timezone.now() - timedelta(seconds=1)
    BipsyncToken.objects.filter(pk=token.pk).update(lease_until=past)
    other = protocol._claim(expired)
    assert other is not None
    assert protocol._mark_dead(slow, expired, "invalid_grant") is False
    assert reload(token).status == Status.ACTIVE
    protocol._carry_out(other)
    assert protocol._mark_dead(slow, expired, "invalid_grant") is False
    assert protocol._mark_dead(other, expired, "invalid_grant") is False
    row = reload(token)
    assert (row.status, row.generation) == (Status.ACTIVE, 2)


def test_a_late_answer_revives_a_row_that_a_second_sender_found_dead(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    assert protocol._claim(expired) is not None
    issued = refresh_pair(get_tenant(), refresh_token_of(token))
    past = timezone.now() - timedelta(seconds=1)
    BipsyncToken.objects.filter(pk=token.pk).update(lease_until=past)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expired)
    dead = reload(token)
    assert (dead.status, dead.last_error) == (Status.NEEDS_SIGN_IN, "answer_lost")
    assert _store(expired, issued).status == Status.ACTIVE
    assert events(token)[-1] == ("revived", "")
    assert bipsync.is_access_token_alive(lifecycle.access_token(token))


def test_a_claim_that_is_too_old_sends_nothing(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SEND_WITHIN", 0.0)
    with pytest.raises(RefreshUnavailable) as slow:
        lifecycle.access_token(expire(token))
    assert slow.value.code == "busy"
    assert bipsync.calls["token"] == 0
    assert reload(token).lease_id is None


# --- others win


def test_a_sign_in_during_a_refresh_wins(token: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    bipsync.latency = 0.5
    expired = expire(token)
    results: list[Any] = []
    refresher = threading.Thread(
        target=lambda: results.extend(at_once(1, lambda _: lifecycle.access_token(expired)))
    )
    refresher.start()
    _wait_until(lambda: bipsync.calls["refresh"] == 1)
    signed_in = connect(bipsync, user=token.user)
    refresher.join()
    assert reload(token).generation == signed_in.generation
    assert results == [signed_in.unseal("access_token")]
    assert bipsync.is_alive(refresh_token_of(token))
    assert ("discarded", "") in events(token)


def test_a_disconnect_during_a_refresh_wins(token: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    bipsync.latency = 0.5
    expired = expire(token)
    results: list[Any] = []
    refresher = threading.Thread(
        target=lambda: results.extend(at_once(1, lambda _: lifecycle.access_token(expired)))
    )
    refresher.start()
    _wait_until(lambda: bipsync.calls["refresh"] == 1)
    lifecycle.disconnect(expired)
    refresher.join()
    row = reload(token)
    assert (row.status, row.access_token, row.refresh_token) == (Status.DISCONNECTED, None, None)
    assert isinstance(results[0], SignInRequired)


def test_a_person_deleted_during_a_refresh_takes_the_row_along(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    assert token.user is not None
    token.user.delete()
    with pytest.raises(SignInRequired):
        lifecycle.access_token(token)


# --- dead means dead, and nothing else does


@pytest.mark.parametrize("dialect", ["8", "9"])
def test_a_withdrawn_grant_needs_sign_in(
    token: BipsyncToken, bipsync: SimulatedBipsync, heard: list[Any], dialect: Any
) -> None:
    bipsync.dialect = dialect
    bipsync.withdraw(next(iter(bipsync.users)))
    expired = expire(token)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expired)
    row = reload(token)
    assert (row.status, row.last_error) == (Status.NEEDS_SIGN_IN, "invalid_grant")
    assert row.generation == token.generation
    assert row.refresh_token is not None
    assert [(name, said["reason"]) for name, said in heard] == [("needs_sign_in", "invalid_grant")]
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expired)
    assert bipsync.calls["refresh"] == 1


def test_a_dead_grant_hands_out_what_still_works(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("token", Answer(400, {"error": "invalid_grant"}))
    due = nearly_expire(token)
    access_token = lifecycle.access_token(due)
    assert bipsync.is_access_token_alive(access_token)
    assert reload(token).status == Status.NEEDS_SIGN_IN
    assert lifecycle.access_token(due) == access_token


TROUBLE: dict[str, tuple[Any, str, bool]] = {
    "a wrong secret": (Answer(401, {"error": "invalid_client"}), "invalid_client", False),
    "a wrong URL": (Html(404), "wrong_endpoint", False),
    "an address not allowed": (Html(403), "forbidden", False),
    "a proxy's page": (Html(502), "server_error", True),
    "too many requests": (Answer(429, {}), "rate_limited", False),
    "nonsense": (Answer(200, b"[]"), "unexpected_answer", True),
    "no token in the answer": (Answer(200, {"access_token": None}), "unexpected_answer", True),
    "a connection dropped": (DropBefore(), "connection_error", True),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_ends_no_grant(
    token: BipsyncToken, bipsync: SimulatedBipsync, heard: list[Any], trouble: str
) -> None:
    failure, code, in_doubt = TROUBLE[trouble]
    bipsync.fail("token", failure)
    expired = expire(token)
    with pytest.raises(RefreshUnavailable) as told:
        lifecycle.access_token(expired)
    row = reload(token)
    assert told.value.code == row.last_error == code
    assert (row.status, row.attempt, row.lease_id) == (Status.ACTIVE, 1, None)
    assert (row.in_doubt_at is not None) is in_doubt
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > timezone.now()
    assert [(name, said["reason"]) for name, said in heard] == [("refresh_failed", code)]
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expired)
    assert bipsync.calls["token"] == 1
    _forget_waiting()
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))
    assert TenantState.objects.filter(breaker_until__isnull=False).count() == 0


def test_a_failed_refresh_hands_out_what_still_works(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("token", Html(503), times=None)
    due = nearly_expire(token)
    assert lifecycle.access_token(due) == token.unseal("access_token")
    assert lifecycle.access_token(due) == token.unseal("access_token")
    assert bipsync.calls["token"] == 1


def test_an_answer_that_is_lost_after_the_rotation_is_labelled(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("token", DropAfter())
    expired = expire(token)
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expired)
    assert reload(token).in_doubt_at is not None
    _forget_waiting()
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expired)
    assert reload(token).last_error == "answer_lost"


def test_a_wrong_client_secret_holds_the_whole_tenant_back_and_a_right_one_relieves_it(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    other = expire(connect(bipsync, person=list(bipsync.users)[1]))
    expired = expire(token)
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, "CLIENT_SECRET": "wrong"}
    bipsync.reset_calls()
    with pytest.raises(RefreshUnavailable) as first:
        lifecycle.access_token(expired)
    assert first.value.code == "invalid_client"
    with pytest.raises(RefreshUnavailable, match="held back"):
        lifecycle.access_token(other)
    assert bipsync.calls["token"] == 1
    settings.BIPSYNC = right
    TenantState.objects.update(breaker_until=timezone.now())
    lifecycle.access_token(other)
    state = TenantState.objects.get()
    assert (state.breaker_until, state.configuration_error) == (None, "")
    assert bipsync.is_alive(refresh_token_of(token))


def test_five_deaths_in_a_row_hold_the_tenant_back(
    database: str, bipsync: SimulatedBipsync
) -> None:
    tokens = [_grant_for_subject(bipsync, f"{number:024x}") for number in range(6)]
    bipsync.fail("token", Answer(400, {"error": "invalid_grant"}), times=None)
    bipsync.reset_calls()
    for token in tokens[:5]:
        with pytest.raises(SignInRequired):
            lifecycle.access_token(expire(token))
    with pytest.raises(RefreshUnavailable, match="many_dead"):
        lifecycle.access_token(expire(tokens[5]))
    assert bipsync.calls["token"] == 5
    assert reload(tokens[5]).status == Status.ACTIVE


def test_an_inactive_person_is_neither_refreshed_nor_served(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    assert token.user is not None
    User.objects.filter(pk=token.user.pk).update(is_active=False)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(token)
    with pytest.raises(SignInRequired):
        lifecycle.refresh(expire(token), force=True)
    assert not lifecycle.take_due(10)
    assert bipsync.calls["token"] == 0


def test_the_switch_stops_refreshes_and_nothing_else(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    assert lifecycle.access_token(nearly_expire(token)) == token.unseal("access_token")
    with pytest.raises(RefreshUnavailable, match="REFRESH_ENABLED"):
        lifecycle.access_token(expire(token))
    assert bipsync.calls["token"] == 0


def test_another_applications_grant_is_not_sent(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    BipsyncToken.objects.update(client_id="the-old-portal")
    with pytest.raises(RefreshUnavailable) as told:
        lifecycle.access_token(expire(token))
    assert told.value.code == "other_application"
    assert bipsync.calls["token"] == 0
    assert reload(token).lease_id is None


def test_an_unreadable_refresh_token_is_not_sent_and_not_overwritten(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    BipsyncToken.objects.update(refresh_token=token.access_token)
    with pytest.raises(SecretUnreadable):
        lifecycle.access_token(expire(token))
    row = reload(token)
    assert (row.status, row.last_error, row.lease_id) == (Status.ACTIVE, "secret_unreadable", None)
    assert row.refresh_token == token.access_token
    assert bipsync.calls["token"] == 0


def test_what_only_an_administrator_can_mend_is_tried_once_a_minute(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    BipsyncToken.objects.update(client_id="the-old-portal")
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expire(token))
    with pytest.raises(RefreshUnavailable, match=r"other_application\); the next try"):
        lifecycle.access_token(token)


def test_background_work_leaves_an_unreadable_row_to_the_administrator(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    BipsyncToken.objects.update(refresh_token=token.access_token)
    expire(token)
    assert lifecycle.refresh_if_due(token.pk) is Outcome.FAILED
    assert reload(token).last_error == "secret_unreadable"


def test_a_grant_without_a_refresh_token_needs_sign_in_when_it_expires(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    BipsyncToken.objects.update(refresh_token=None)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expire(token))
    assert reload(token).last_error == "no_refresh_token"
    assert bipsync.calls["token"] == 0


def test_an_answer_without_a_refresh_token_keeps_the_old_one(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    issued = bipsync.issue_pair()
    answer = {"token_type": "Bearer", "expires_in": 60, "access_token": issued.access_token}
    bipsync.fail("token", Answer(200, answer))
    before = refresh_token_of(token)
    assert lifecycle.access_token(expire(token)) == issued.access_token
    assert refresh_token_of(token) == before


# --- validation comes after storing


def test_keys_that_cannot_be_fetched_cost_no_token(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.rotate_keys()
    bipsync.fail("jwks", Html(500), times=None)
    access_token = lifecycle.access_token(expire(token))
    row = reload(token)
    assert bipsync.is_access_token_alive(access_token)
    assert (row.generation, row.validated_generation) == (2, 1)
    bipsync.clear_failures()
    _forget_key_cooldown()
    lifecycle.access_token(token)
    assert reload(token).validated_generation == 2


def test_a_token_that_does_not_validate_is_held_back_and_not_thrown_away(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    claims = bipsync.access_token_claims(next(iter(bipsync.users.values())))
    forged = bipsync.sign({**claims, "aud": "another-application"})
    answer = {
        "token_type": "Bearer",
        "expires_in": 3600,
        "access_token": forged,
        "refresh_token": bipsync.issue_pair().refresh_token,
    }
    bipsync.fail("token", Answer(200, answer))
    expired = expire(token)
    for _ in range(2):
        with pytest.raises(RefreshUnavailable, match=r"does not validate|held back"):
            lifecycle.access_token(expired)
    row = reload(token)
    assert (row.status, row.last_error) == (Status.ACTIVE, "token_refused")
    assert bipsync.is_alive(refresh_token_of(token))
    assert [e for e in events(token) if e[0] == "quarantined"] == [("quarantined", "token_refused")]
    bipsync.fail("jwks", Html(500), times=None)
    forget_keys()
    with pytest.raises(RefreshUnavailable, match=r"held back"):
        lifecycle.access_token(token)
    bipsync.clear_failures()
    _forget_waiting()
    assert bipsync.is_access_token_alive(lifecycle.access_token(expire(token)))


def test_a_token_that_was_refused_by_mistake_is_good_again_once_it_validates(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, "AUDIENCE": "a-typo"}
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expire(token))
    assert reload(token).last_error == "token_refused"
    settings.BIPSYNC = right
    assert bipsync.is_access_token_alive(lifecycle.access_token(token))
    assert reload(token).last_error == ""


def test_a_refused_token_stays_refused_although_the_next_refresh_fails_otherwise(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, "AUDIENCE": "elsewhere"}
    with pytest.raises(RefreshUnavailable, match="validate"):
        lifecycle.access_token(expire(token))
    _forget_waiting()
    bipsync.fail("token", Html(503))
    with pytest.raises(RefreshUnavailable):
        lifecycle.refresh(reload(nearly_expire(token)), force=True)
    bipsync.fail("jwks", Html(503), times=None)
    forget_keys()
    with pytest.raises(RefreshUnavailable, match="held back"):
        lifecycle.access_token(token)


def test_no_secret_stays_in_the_frames_of_what_is_raised(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    """Error trackers show the variables of every frame."""
    secrets = [refresh_token_of(token), "portal-secret"]
    bipsync.fail("token", Html(503))
    with pytest.raises(RefreshUnavailable) as raised:
        lifecycle.access_token(expire(token))
    shown = []
    error: BaseException | None = raised.value
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # The frames of this test hold them on purpose.
            if "bipsync_django" in frame.f_code.co_filename:
                shown.append(repr(frame.f_locals))
        error = error.__context__
    assert shown
    assert [secret for secret in secrets if any(secret in text for text in shown)] == []


def test_another_persons_token_ends_the_grant_and_is_erased(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    issued = bipsync.issue_pair(list(bipsync.users)[1])
    answer = {
        "token_type": "Bearer",
        "expires_in": 3600,
        "access_token": issued.access_token,
        "refresh_token": issued.refresh_token,
    }
    bipsync.fail("token", Answer(200, answer))
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expire(token))
    row = reload(token)
    assert (row.status, row.last_error) == (Status.NEEDS_SIGN_IN, "other_subject")
    assert (row.access_token, row.refresh_token) == (None, None)


def test_granted_scopes_follow_the_token(token: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    assert token.scope_set == {"users:read"}
    issued = bipsync.issue_pair(scopes=("users:read", "tasks:read"))
    answer = {
        "token_type": "Bearer",
        "expires_in": 3600,
        "access_token": issued.access_token,
        "refresh_token": issued.refresh_token,
    }
    bipsync.fail("token", Answer(200, answer))
    row = lifecycle.refresh(expire(token))
    assert row.scope_set == reload(token).scope_set == {"users:read", "tasks:read"}


# --- the database fails


def test_a_database_that_fails_while_storing_is_tried_again(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, failures = durable.update, iter([OperationalError("gone"), OperationalError("gone")])

    def fails_twice(rows: Any, **values: Any) -> int:
        if "access_token" in values and (failure := next(failures, None)):
            raise failure
        return update(rows, **values)

    monkeypatch.setattr(durable, "update", fails_twice)
    assert bipsync.is_access_token_alive(lifecycle.access_token(expire(token)))
    assert bipsync.calls["refresh"] == 1


def test_a_commit_whose_answer_was_lost_is_recognised(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, failures = durable.update, iter([OperationalError("gone after the commit")])

    def commits_then_fails(rows: Any, **values: Any) -> int:
        changed = update(rows, **values)
        if "access_token" in values and (failure := next(failures, None)):
            raise failure
        return changed

    monkeypatch.setattr(durable, "update", commits_then_fails)
    assert bipsync.is_access_token_alive(lifecycle.access_token(expire(token)))
    assert reload(token).generation == 2
    assert "discarded" not in [name for name, _ in events(token)]


def test_a_database_that_stays_away_gives_up_in_the_end(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("gone")

    with pytest.raises(OperationalError):
        durable.persist(fail, database, patience=0.1)


def test_a_claim_that_the_database_refuses_is_lost(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rows: Any, **values: Any) -> int:
        raise OperationalError("could not obtain lock")

    monkeypatch.setattr(durable, "update", refuse)
    assert protocol._claim(expire(token)) is None


def test_a_counter_that_cannot_be_raised_costs_nobody_an_error(
    token: BipsyncToken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(HourlyCount.objects, "using", lambda alias: _Failing())
    with caplog.at_level(logging.WARNING):
        lifecycle.access_token(expire(token))
    assert "counter refreshed" in caplog.text


class _Failing:
    def filter(self, **kwargs: object) -> "_Failing":
        return self

    def update(self, **kwargs: object) -> int:
        raise OperationalError("gone")


# --- signing in, disconnecting, taking


def test_a_new_sign_in_replaces_a_dead_grant(
    token: BipsyncToken, bipsync: SimulatedBipsync, heard: list[Any]
) -> None:
    bipsync.withdraw(next(iter(bipsync.users)))
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expire(token))
    again = connect(bipsync, user=token.user)
    assert (again.pk, again.status, again.generation) == (token.pk, Status.ACTIVE, 2)
    assert bipsync.is_access_token_alive(lifecycle.access_token(again))
    assert [name for name, _ in heard] == ["needs_sign_in", "signed_in"]


def test_a_refused_sign_in_leaves_nothing_behind(database: str, bipsync: SimulatedBipsync) -> None:
    issued = bipsync.issue_pair()
    tenant = get_tenant()
    claims = validate_access_token(issued.access_token, tenant, from_provider=True)

    def refuse(known: object) -> Any:
        raise SignInRefused("not_allowed")

    with pytest.raises(SignInRefused):
        lifecycle.sign_in(
            tenant,
            claims,
            TokenPair(issued.access_token, issued.refresh_token, issued.expires_in),
            scopes=tenant.scopes,
            resolve_user=refuse,
        )
    assert not BipsyncToken.objects.exists()
    assert not TokenEvent.objects.exists()


def test_subjects_that_differ_in_case_are_two_people(
    database: str, bipsync: SimulatedBipsync
) -> None:
    lower, upper = (User.objects.create_user(name) for name in ("lower", "upper"))
    _grant_for_subject(bipsync, "abcdef", lower)
    try:
        token = _grant_for_subject(bipsync, "ABCDEF", upper)
    except SignInRefused:
        # The collation cannot tell them apart, so the second one stays outside.
        assert BipsyncToken.objects.get().user == lower
    else:
        assert token.user == upper


def test_a_sign_in_without_a_refresh_token_does_not_keep_the_earlier_grants(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    issued = bipsync.issue_pair()
    tenant = get_tenant()
    lifecycle.sign_in(
        tenant,
        validate_access_token(issued.access_token, tenant, from_provider=True),
        TokenPair(issued.access_token, None, issued.expires_in),
        scopes=tenant.scopes,
        resolve_user=lambda row: row.user or User(),
    )
    assert reload(token).refresh_token is None


def test_a_user_has_one_account_at_a_tenant_whoever_asks(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    assert token.user is not None
    with pytest.raises(SignInRefused, match="another account"):
        connect(bipsync, user=token.user, person="grace@acme.example")
    assert BipsyncToken.objects.get() == token
    assert lifecycle.grant_of(token.user, get_tenant()) == token
    assert lifecycle.grant_of(User.objects.create_user("nobody"), get_tenant()) is None


def test_a_refresh_of_a_disconnected_grant_says_so(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    lifecycle.disconnect(token)
    with pytest.raises(SignInRequired):
        lifecycle.refresh(token, force=True)


def test_a_lease_that_is_lost_before_it_is_used_is_asked_for_again(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, lost = protocol._claim, iter([True])

    def loses_the_first(row: BipsyncToken) -> Any:
        won = claim(row)
        if next(lost, False):
            BipsyncToken.objects.update(lease_id=None, lease_until=None)
        return won

    monkeypatch.setattr(protocol, "_claim", loses_the_first)
    assert bipsync.is_access_token_alive(lifecycle.access_token(expire(token)))
    assert bipsync.calls["refresh"] == 1


def test_a_disconnect_erases_the_pair_and_is_told_once(
    token: BipsyncToken, heard: list[Any]
) -> None:
    lifecycle.disconnect(token, actor=token.user)
    lifecycle.disconnect(token)
    row = reload(token)
    assert (row.status, row.access_token, row.refresh_token) == (Status.DISCONNECTED, None, None)
    assert [name for name, _ in heard] == ["disconnected"]
    event = TokenEvent.objects.get(token=token, name="disconnected")
    assert event.actor_id == token.user_id
    with pytest.raises(SignInRequired):
        lifecycle.access_token(token)


def test_a_failing_receiver_breaks_nothing(token: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    def fail(**kwargs: object) -> None:
        raise ZeroDivisionError

    signals.token_refreshed.connect(fail)
    try:
        assert bipsync.is_access_token_alive(lifecycle.access_token(expire(token)))
    finally:
        signals.token_refreshed.disconnect(fail)


def test_a_row_that_was_taken_is_not_taken_again(token: BipsyncToken) -> None:
    expire(token)
    assert list(lifecycle.take_due(10)) == [token.pk]
    assert not lifecycle.take_due(10)
    assert lifecycle.refresh_if_due(token.pk) is Outcome.REFRESHED
    assert lifecycle.refresh_if_due(token.pk) is Outcome.NOT_DUE


def test_background_work_on_a_row_that_is_gone_does_nothing(token: BipsyncToken) -> None:
    pk = token.pk
    token.delete()
    assert lifecycle.refresh_if_due(pk) is Outcome.NOT_DUE


def test_rows_of_inactive_people_are_put_off_and_not_looked_at_every_minute(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    other = connect(bipsync, person=list(bipsync.users)[1])
    assert token.user is not None
    User.objects.filter(pk=token.user.pk).update(is_active=False)
    expire(token, seconds_ago=10)
    expire(other)
    assert list(lifecycle.take_due(1)) == [other.pk]
    again = reload(token).next_refresh_at
    assert again is not None
    assert timedelta(hours=23) < again - timezone.now() <= timedelta(days=1)


def test_two_who_take_at_once_take_each_row_once(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    tokens = [_grant_for_subject(bipsync, f"{number:024x}") for number in range(12)]
    for row in [token, *tokens]:
        expire(row)
    taken = at_once(4, lambda _: lifecycle.take_due(5))
    pks = [pk for pks in taken if isinstance(pks, dict) for pk in pks]
    assert len(pks) == len(set(pks))
    left: list[int] = []
    while more := lifecycle.take_due(5):
        left += more
    assert sorted(pks + left) == sorted(row.pk for row in [token, *tokens])


def test_the_switch_hands_nothing_to_workers(token: BipsyncToken, settings: Any) -> None:
    expire(token)
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    assert not lifecycle.take_due(10)
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": True}
    assert list(lifecycle.take_due(10)) == [token.pk]


def test_on_demand_a_row_is_refreshed_when_it_is_needed_and_kept_alive_else(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_AHEAD": None, "KEEP_ALIVE": 7200}
    expired = expire(token)
    # It was due by the policy of before: taken, found not due, and scheduled anew.
    assert list(lifecycle.take_due(10)) == [token.pk]
    assert lifecycle.refresh_if_due(token.pk) is Outcome.NOT_DUE
    again = reload(token).next_refresh_at
    assert again is not None
    assert timedelta(minutes=45) < again - timezone.now() <= timedelta(minutes=60)
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))
    long_ago = timezone.now() - timedelta(hours=2)
    BipsyncToken.objects.update(obtained_at=long_ago, next_refresh_at=long_ago)
    assert list(lifecycle.take_due(10)) == [token.pk]
    assert lifecycle.refresh_if_due(token.pk) is Outcome.REFRESHED
    assert bipsync.calls["refresh"] == 2


def test_on_demand_a_failure_does_not_bring_the_row_to_the_workers(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_AHEAD": None}
    lifecycle.access_token(expire(token))
    planned = reload(token).next_refresh_at
    BipsyncToken.objects.update(access_expires_at=timezone.now(), obtained_at=None)
    bipsync.fail("token", Html(503))
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(token)
    row = reload(token)
    assert (row.next_refresh_at, row.attempt) == (planned, 1)


def test_a_lease_that_runs_out_while_others_wait_is_taken_over(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    assert protocol._claim(expired) is not None
    soon = timezone.now() + timedelta(seconds=1)
    BipsyncToken.objects.filter(pk=token.pk).update(lease_until=soon)
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))
    assert bipsync.calls["refresh"] == 1


# --- what the API refused


def test_a_refused_token_that_was_replaced_meanwhile_gives_the_present_one(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = token.unseal("access_token")
    assert refused is not None
    present = lifecycle.access_token(expire(token))
    assert lifecycle.replace_refused(token, refused) == present != refused
    assert bipsync.calls["refresh"] == 1


@on_servers
def test_a_refused_token_is_compared_outside_the_callers_transaction(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    refused = token.unseal("access_token")
    assert refused is not None
    with transaction.atomic(using=database):
        # From here on MariaDB shows this transaction the row as it is now.
        BipsyncToken.objects.get(pk=token.pk)
        (present,) = at_once(1, lambda _: lifecycle.access_token(expire(token)))
        assert lifecycle.replace_refused(token, refused) == present != refused
    assert bipsync.calls["refresh"] == 1


def test_a_refused_token_is_refreshed_once_however_many_ask(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = _older(token, minutes=11)
    bipsync.latency = 0.2
    results = at_once(6, lambda _: lifecycle.replace_refused(token, refused))
    assert len(set(results)) == 1
    assert results[0] != refused
    assert bipsync.calls["refresh"] == 1


def test_a_young_token_that_is_refused_is_not_worth_a_refresh(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = _older(token, minutes=9)
    assert lifecycle.replace_refused(token, refused) is None
    assert bipsync.calls["refresh"] == 0


def test_a_refused_token_of_a_withdrawn_grant_asks_for_a_sign_in(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = _older(token, minutes=11)
    bipsync.withdraw(token.subject)
    for _ in range(2):
        # The second time the row says so, although the token has not expired.
        with pytest.raises(SignInRequired):
            lifecycle.replace_refused(token, refused)
    assert bipsync.calls["refresh"] == 1


def test_a_refused_token_that_cannot_be_replaced_now_says_so(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = _older(token, minutes=11)
    bipsync.fail("token", Html(503))
    with pytest.raises(RefreshUnavailable):
        lifecycle.replace_refused(token, refused)
    assert reload(token).status == Status.ACTIVE


def test_sessions_can_be_ended_and_the_grant_stays(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    lifecycle.end_sessions(token, actor=token.user)
    row = reload(token)
    assert row.sessions_valid_after is not None
    assert (row.status, row.generation) == (Status.ACTIVE, token.generation)
    event = TokenEvent.objects.get(name="sessions_ended")
    assert event.actor_id == token.user_id


def test_grants_are_found_by_their_scopes(token: BipsyncToken) -> None:
    BipsyncToken.objects.update(scopes="research:read users:read")
    found = BipsyncToken.objects.active()
    assert found.with_scopes("users:read").count() == 1
    assert found.with_scopes("users:read", "research:read").count() == 1
    assert found.with_scopes().count() == 1
    for missing in ("users", "read", "users:rea", "sers:read", "USERS:READ", "users:r%", "notes"):
        assert found.with_scopes(missing).count() == 0, missing
        assert found.with_scopes("users:read", missing).count() == 0


# --- helpers


def _older(token: BipsyncToken, *, minutes: float) -> str:
    """Let the token be some minutes old, and return it."""
    at = timezone.now() - timedelta(minutes=minutes)
    BipsyncToken.objects.filter(pk=token.pk).update(obtained_at=at)
    access_token = reload(token).unseal("access_token")
    assert access_token is not None
    return access_token


def _store(sent: BipsyncToken, pair: TokenPair) -> BipsyncToken:
    return protocol._tell(sent, pair, protocol._store(sent, pair))


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _forget_waiting() -> None:
    """Let the time pass until the next attempt."""
    BipsyncToken.objects.update(next_attempt_at=None)
    TenantState.objects.update(breaker_until=None)


def _forget_key_cooldown() -> None:
    TenantState.objects.update(keys_asked_at=None)
    use_budget(DatabaseBudget())


def _grant_for_subject(
    bipsync: SimulatedBipsync, subject: str, user: User | None = None
) -> BipsyncToken:
    site_user = user or User.objects.create_user(f"user-{subject}")
    issued = bipsync.issue_pair()
    claims = bipsync.access_token_claims(next(iter(bipsync.users.values())))
    access_token = bipsync.sign({**claims, "sub": subject})
    tenant = get_tenant()
    return lifecycle.sign_in(
        tenant,
        validate_access_token(access_token, tenant, from_provider=True),
        TokenPair(access_token, issued.refresh_token, 3600),
        scopes=tenant.scopes,
        resolve_user=lambda row: row.user or site_user,
    )
