"""What administrators and people do to a grant: another try, an end at Bipsync too."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from bipsync_django import lifecycle, signals
from bipsync_django.exceptions import RefreshUnavailable, SignInRequired
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.testing import Answer, DropAfter, Html, SimulatedBipsync
from tests.grants import at_once, connect, expire, refresh_token_of, reload

pytestmark = pytest.mark.usefixtures("database")

Status = BipsyncToken.Status
DEAD = Answer(400, {"error": "invalid_grant"})


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@pytest.fixture
def dead(token: BipsyncToken, bipsync: SimulatedBipsync) -> BipsyncToken:
    """A grant that Bipsync called dead, although it is not."""
    bipsync.fail("token", DEAD)
    lifecycle.refresh_if_due(expire(token).pk)
    row = reload(token)
    assert (row.status, row.last_error) == (Status.NEEDS_SIGN_IN, "invalid_grant")
    bipsync.reset_calls()
    return row


def names(token: BipsyncToken) -> list[str]:
    return list(
        TokenEvent.objects.filter(token=token).order_by("id").values_list("name", flat=True)
    )


# --- another try


def test_a_grant_that_bipsync_still_takes_comes_back_to_life(
    dead: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    row = lifecycle.retry(dead)
    assert (row.status, row.last_error, row.generation) == ("active", "", dead.generation + 1)
    assert bipsync.is_alive(refresh_token_of(dead))
    assert names(dead)[-1] == "revived"
    assert row.next_refresh_at is not None
    assert lifecycle.access_token(row)


def test_a_grant_that_is_dead_stays_so_and_nobody_is_told_again(
    dead: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.withdraw(bipsync.find_user(None))
    heard: list[str] = []

    def note(**kwargs: Any) -> None:
        heard.append(kwargs["reason"])

    signals.needs_sign_in.connect(note)
    try:
        for _ in range(6):
            with pytest.raises(SignInRequired):
                lifecycle.retry(dead)
    finally:
        signals.needs_sign_in.disconnect(note)
    row = reload(dead)
    assert (row.status, row.last_error) == (Status.NEEDS_SIGN_IN, "invalid_grant")
    assert (row.generation, row.lease_id) == (dead.generation, None)
    assert bipsync.calls["refresh"] == 6
    assert heard == []
    # Six deaths in a row would hold everybody's calls back.
    state = TenantState.objects.get()
    assert (state.breaker_until, state.dead_in_a_row) == (None, 1)
    assert HourlyCount.objects.get(name="refresh_dead").count == 1


@pytest.mark.parametrize("how", [Html(503), DropAfter(), Answer(401, {"error": "invalid_client"})])
def test_a_try_without_an_answer_leaves_the_row_as_dead_as_it_was(
    dead: BipsyncToken, bipsync: SimulatedBipsync, how: Any
) -> None:
    bipsync.fail("token", how)
    with pytest.raises(RefreshUnavailable):
        lifecycle.retry(dead)
    row = reload(dead)
    assert (row.status, row.last_error) == (Status.NEEDS_SIGN_IN, "invalid_grant")
    assert (row.next_refresh_at, row.lease_id) == (None, None)
    assert names(dead)[-1] == "refresh_failed"


def test_of_many_tries_at_once_one_is_sent(dead: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    bipsync.latency = 0.3
    results = at_once(6, lambda _: lifecycle.retry(dead))
    assert bipsync.calls["refresh"] == 1
    assert bipsync.is_alive(refresh_token_of(dead))
    revived = [one for one in results if isinstance(one, BipsyncToken)]
    assert {one.status for one in revived} == {"active"}
    for one in results:
        assert isinstance(one, BipsyncToken | RefreshUnavailable)


def test_an_active_row_needs_no_other_try(token: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    assert lifecycle.retry(token).generation == token.generation
    assert bipsync.calls["refresh"] == 0


@pytest.mark.parametrize("why", ["disconnected", "nothing left", "inactive", "switched off"])
def test_nothing_is_sent_for_a_row_that_must_not_be_tried(
    dead: BipsyncToken, bipsync: SimulatedBipsync, settings: Any, why: str
) -> None:
    if why == "disconnected":
        lifecycle.disconnect(dead, end_at_bipsync=False)
    elif why == "nothing left":
        BipsyncToken.objects.update(refresh_token=None)
    elif why == "inactive":
        User.objects.update(is_active=False)
    else:
        settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    with pytest.raises((SignInRequired, RefreshUnavailable)):
        lifecycle.retry(dead)
    assert bipsync.calls["refresh"] == 0


def test_a_sign_in_that_comes_first_wins(dead: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    connect(bipsync, user=dead.user)
    bipsync.reset_calls()
    row = lifecycle.retry(dead)
    assert (row.status, bipsync.calls["refresh"]) == ("active", 0)


# --- what an administrator asked for


def test_what_was_asked_for_says_why_nothing_came_of_it(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    assert lifecycle.refresh_asked(token.pk) == "recent"
    expire(token)
    assert lifecycle.refresh_asked(token.pk) == ""
    expire(token)
    bipsync.fail("token", Html(503))
    assert lifecycle.refresh_asked(token.pk) == "server_error"
    assert lifecycle.refresh_asked(token.pk) == "server_error"
    BipsyncToken.objects.update(next_attempt_at=None)
    User.objects.update(is_active=False)
    assert lifecycle.refresh_asked(token.pk) == "inactive"
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    User.objects.update(is_active=True)
    assert lifecycle.refresh_asked(token.pk) == "disabled"
    told = TokenEvent.objects.filter(token=token).order_by("id").values_list("name", "reason")
    assert list(told)[1:] == [
        ("not_refreshed", "recent"),
        ("refresh_failed", "server_error"),
        # The second was not sent: the row is left alone for a while.
        ("not_refreshed", "server_error"),
        ("not_refreshed", "inactive"),
        ("not_refreshed", "disabled"),
    ]
    assert lifecycle.refresh_asked(0) == "disconnected"


# --- an end at Bipsync too


def test_who_disconnects_leaves_no_token_that_works(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token, access_token = refresh_token_of(token), reload(token).unseal("access_token")
    assert access_token is not None
    lifecycle.disconnect(token)
    assert not bipsync.is_alive(refresh_token)
    assert bipsync.calls["refresh"] == 1
    row = reload(token)
    assert (row.status, row.refresh_token, row.access_token) == ("disconnected", None, None)
    assert names(token)[-1] == "disconnected"


def test_in_a_transaction_the_token_is_spent_after_it_and_not_before(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    refresh_token = refresh_token_of(token)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        lifecycle.disconnect(token)
        raise ZeroDivisionError
    # Rolled back: the grant goes on, and works.
    assert bipsync.is_alive(refresh_token)
    assert reload(token).status == "active"
    with transaction.atomic(using=database):
        lifecycle.disconnect(token)
        assert bipsync.is_alive(refresh_token)
    assert not bipsync.is_alive(refresh_token)


@pytest.mark.parametrize(
    "how", [Html(503), "disabled", "breaker", "another application", "another deployment"]
)
def test_where_bipsync_cannot_be_asked_the_row_is_erased_and_an_event_says_what_is_left(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any, how: Any
) -> None:
    if how == "disabled":
        settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    elif how == "breaker":
        TenantState.objects.update_or_create(
            tenant="acme",
            defaults={
                "breaker_until": timezone.now() + timedelta(minutes=1),
                "configuration_error": "outage",
            },
        )
    elif how == "another deployment":
        settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "here"}
        TenantState.objects.update_or_create(tenant="acme", defaults={"deployment": "elsewhere"})
    elif how == "another application":
        BipsyncToken.objects.update(client_id="another")
    else:
        bipsync.fail("token", how)
    lifecycle.disconnect(token)
    assert reload(token).refresh_token is None
    assert bipsync.calls["refresh"] == (0 if isinstance(how, str) else 1)
    event = TokenEvent.objects.latest("id")
    reasons = {
        "disabled": "disabled",
        "breaker": "outage",
        "another deployment": "other_deployment",
    }
    expected = reasons.get(how, "other_application") if isinstance(how, str) else "server_error"
    assert (event.name, event.reason) == ("left_valid", expected)


def test_a_refresh_under_way_ends_the_old_pair_by_itself(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token = refresh_token_of(expire(token))
    bipsync.latency = 0.6

    def work(number: int) -> Any:
        if number:
            import time

            time.sleep(0.3)
            return lifecycle.disconnect(token)
        return lifecycle.refresh(expire(token))

    at_once(2, work)
    # Never two calls with one token at the same time.
    assert bipsync.calls["refresh"] == 1
    assert not bipsync.is_alive(refresh_token)
    assert reload(token).status == "disconnected"
    assert names(token)[-1] == "discarded"


def test_a_copy_of_the_database_gives_up_without_a_call(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token = refresh_token_of(token)
    lifecycle.disconnect(token, end_at_bipsync=False)
    assert bipsync.is_alive(refresh_token)
    assert bipsync.calls["refresh"] == 0
