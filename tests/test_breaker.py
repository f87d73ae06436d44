"""What holds for a whole tenant."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from bipsync_django import breaker, lifecycle
from bipsync_django.exceptions import OtherDeployment, RefreshUnavailable, SignInRequired
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken, TenantState, TokenEvent
from bipsync_django.testing import Answer, Html, SimulatedBipsync
from tests.grants import at_once, connect, expire, nearly_expire, refresh_token_of, reload

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _say_it_again() -> None:
    breaker.say_once.cache_clear()


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


def named(settings: Any, deployment: str | None) -> None:
    keys = {key: value for key, value in settings.BIPSYNC.items() if key != "DEPLOYMENT"}
    settings.BIPSYNC = keys if deployment is None else {**keys, "DEPLOYMENT": deployment}


def let_time_pass() -> None:
    """Until the breaker's time is over."""
    TenantState.objects.update(breaker_until=timezone.now() - timedelta(seconds=1))


def test_ten_failures_in_a_row_are_an_outage_and_one_success_ends_it(
    token: BipsyncToken, bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    bipsync.fail("token", Html(503), times=None)
    expired = expire(token)
    with caplog.at_level(logging.INFO, logger="bipsync_django"):
        for _ in range(12):
            with pytest.raises(RefreshUnavailable):
                lifecycle.access_token(expired)
            BipsyncToken.objects.update(next_attempt_at=None)
    assert bipsync.calls["token"] == breaker.FAILURES_BEFORE_PAUSE == 10
    state = TenantState.objects.get()
    assert state.configuration_error == "outage"
    assert state.breaker_until is not None
    held_back = state.breaker_until - timezone.now()
    assert timedelta(seconds=50) < held_back <= timedelta(seconds=75)
    assert [record.levelname for record in caplog.records if "held back" in record.message] == [
        "ERROR"
    ]
    bipsync.clear_failures()
    let_time_pass()
    assert bipsync.is_access_token_alive(lifecycle.access_token(expired))
    state = TenantState.objects.get()
    assert (state.breaker_until, state.configuration_error) == (None, "")
    assert (state.failed_in_a_row, state.dead_in_a_row) == (0, 0)
    names = TokenEvent.objects.filter(token=None).values_list("name", "reason")
    assert list(names) == [("breaker_opened", "outage"), ("breaker_closed", "")]


def test_one_caller_tries_when_the_breakers_time_is_over(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    tokens = [token, *(connect(bipsync, person=person) for person in list(bipsync.users)[1:])]
    expired = [expire(token) for token in tokens]
    breaker.open_for("acme", "invalid_client")
    let_time_pass()
    bipsync.reset_calls()
    bipsync.fail("token", Answer(401, {"error": "invalid_client"}), times=None)
    bipsync.latency = 0.5
    results = at_once(len(expired), lambda number: lifecycle.access_token(expired[number]))
    assert all(isinstance(result, RefreshUnavailable) for result in results)
    assert bipsync.calls["token"] == 1
    state = TenantState.objects.get()
    assert state.breaker_until is not None
    assert state.breaker_until > timezone.now() + timedelta(minutes=4)


def test_a_trial_that_is_never_finished_is_followed_by_another(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    breaker.open_for("acme", "invalid_client")
    with pytest.raises(RefreshUnavailable, match="held back"):
        breaker.admit("acme")
    for _ in range(2):
        let_time_pass()
        assert breaker.admit("acme") is True
        breaker.take_trial("acme")
        for ask in (breaker.admit, breaker.take_trial):
            with pytest.raises(RefreshUnavailable, match="held back"):
                ask("acme")


def test_rows_that_cannot_be_sent_do_not_use_the_trial_up(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    other = expire(connect(bipsync, person=list(bipsync.users)[1]))
    BipsyncToken.objects.filter(pk=token.pk).update(client_id="the-old-portal")
    breaker.open_for("acme", "outage")
    let_time_pass()
    with pytest.raises(RefreshUnavailable, match="client id"):
        lifecycle.access_token(expire(token))
    assert bipsync.is_access_token_alive(lifecycle.access_token(other))


def test_somebody_elses_trial_costs_the_row_nothing(
    token: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker.open_for("acme", "outage")
    let_time_pass()
    take_trial = breaker.take_trial

    def is_second(tenant: str) -> None:
        take_trial(tenant)
        take_trial(tenant)

    monkeypatch.setattr(breaker, "take_trial", is_second)
    with pytest.raises(RefreshUnavailable, match="held back"):
        lifecycle.access_token(expire(token))
    row = reload(token)
    assert (row.lease_id, row.lease_until, row.next_attempt_at) == (None, None, None)
    assert (row.last_error, row.attempt) == ("", 0)
    assert bipsync.calls["token"] == 0


@pytest.mark.parametrize("error", ["invalid_scope", "invalid_request"])
def test_what_may_be_about_one_row_has_to_come_three_times_in_a_row(
    token: BipsyncToken, bipsync: SimulatedBipsync, error: str
) -> None:
    tokens = [token, *(connect(bipsync, person=person) for person in list(bipsync.users)[1:])]

    def fail(row: BipsyncToken) -> str:
        bipsync.fail("token", Answer(400, {"error": error}))
        with pytest.raises(RefreshUnavailable):
            lifecycle.access_token(expire(row))
        BipsyncToken.objects.update(next_attempt_at=None)
        return TenantState.objects.get().configuration_error

    # However often it is the same row.
    assert [fail(token) for _ in range(4)] == [""] * 4
    # A success starts the count anew.
    lifecycle.access_token(expire(token))
    assert [fail(row) for row in tokens] == ["", "", error]


def test_an_answer_that_cost_a_token_stops_the_next_one_at_once(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("token", Html(200))
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expire(token))
    assert TenantState.objects.get().configuration_error == "unexpected_answer"
    assert reload(token).in_doubt_at is not None


def test_a_lost_answer_explains_a_death_and_says_nothing_about_the_tenant(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.withdraw(token.subject)
    expired = expire(token)
    for _ in range(breaker.DEATHS_BEFORE_DOUBT + 1):
        BipsyncToken.objects.update(status="active", in_doubt_at=timezone.now())
        with pytest.raises(SignInRequired):
            lifecycle.access_token(expired)
    assert reload(token).last_error == "answer_lost"
    assert not TenantState.objects.exclude(dead_in_a_row=0).exists()


@pytest.mark.parametrize(
    ("reason", "is_closed"), [("invalid_client", True), ("unexpected_answer", False)]
)
def test_a_sign_in_closes_what_it_shows_to_be_well_and_nothing_else(
    token: BipsyncToken, bipsync: SimulatedBipsync, reason: str, is_closed: bool
) -> None:
    breaker.open_for("acme", reason)
    connect(bipsync, person=list(bipsync.users)[1])
    assert (TenantState.objects.get().breaker_until is None) is is_closed


def test_a_secret_that_cannot_be_read_holds_the_tenant_back_and_is_told_once(
    token: BipsyncToken,
    bipsync: SimulatedBipsync,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = connect(bipsync, person=list(bipsync.users)[1])
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": "env:NO_SUCH_VARIABLE"}
    with caplog.at_level(logging.ERROR, logger="bipsync_django"):
        # While the present token works, nobody is bothered.
        assert lifecycle.access_token(nearly_expire(token)) == token.unseal("access_token")
        for row in (token, other):
            assert lifecycle.refresh_if_due(expire(row).pk) is Outcome.HELD_BACK
    assert len(caplog.records) == 1
    assert TenantState.objects.get().configuration_error == "configuration"
    assert TokenEvent.objects.filter(name="refresh_failed", reason="configuration").count() == 1


def test_other_peoples_tokens_for_everybody_hold_the_tenant_back(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    stranger = bipsync.sign({**bipsync.access_token_claims(token.subject), "sub": "stranger"})
    answer = {"token_type": "bearer", "expires_in": 3600, "access_token": stranger}
    pair = reload(token)
    for _ in range(breaker.DEATHS_BEFORE_DOUBT):
        TenantState.objects.update(failed_in_a_row=0)
        BipsyncToken.objects.update(
            status="active", refresh_token=pair.refresh_token, obtained_at=None
        )
        bipsync.fail("token", Answer(200, {**answer, "refresh_token": "next"}))
        with pytest.raises(SignInRequired):
            lifecycle.access_token(expired)
    assert TenantState.objects.get().configuration_error == "many_dead"


def test_rows_without_a_refresh_token_say_nothing_about_the_tenant(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expired = expire(token)
    for _ in range(breaker.DEATHS_BEFORE_DOUBT + 1):
        BipsyncToken.objects.update(status=BipsyncToken.Status.ACTIVE, refresh_token=None)
        with pytest.raises(SignInRequired):
            lifecycle.access_token(expired)
    assert bipsync.calls["token"] == 0
    assert not TenantState.objects.exclude(breaker_until=None).exists()


def test_an_open_breaker_is_told_once_however_many_meet_it(
    token: BipsyncToken, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="bipsync_django"):
        for _ in range(5):
            breaker.open_for("acme", "many_dead")
    assert len(caplog.records) == 1
    assert TokenEvent.objects.filter(name="breaker_opened").count() == 1


def test_a_shorter_reason_does_not_shorten_the_breaker(token: BipsyncToken) -> None:
    breaker.open_for("acme", "invalid_client")
    before = TenantState.objects.get().breaker_until
    breaker.open_for("acme", "outage", breaker.OUTAGE_HELD_BACK)
    state = TenantState.objects.get()
    assert (state.breaker_until, state.configuration_error) == (before, "invalid_client")


def test_background_work_leaves_a_tenant_that_is_held_back_alone(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expire(token)
    breaker.open_for("acme", "outage", breaker.OUTAGE_HELD_BACK)
    assert not lifecycle.take_due(10)
    let_time_pass()
    assert list(lifecycle.take_due(10)) == [token.pk]


def test_a_row_that_was_taken_before_the_breaker_opened_comes_up_again_soon(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expire(token)
    assert list(lifecycle.take_due(10)) == [token.pk]
    breaker.open_for("acme", "outage", breaker.OUTAGE_HELD_BACK)
    assert lifecycle.refresh_if_due(token.pk) is Outcome.HELD_BACK
    row = reload(token)
    assert row.next_refresh_at is not None
    assert row.next_refresh_at - timezone.now() < timedelta(seconds=75 + 60)
    assert bipsync.calls["token"] == 0


def test_a_failed_row_of_a_well_tenant_waits_alone(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    other = connect(bipsync, person=list(bipsync.users)[1])
    bipsync.fail("token", Html(503))
    assert lifecycle.refresh_if_due(expire(token).pk) is Outcome.FAILED
    assert lifecycle.refresh_if_due(expire(other).pk) is Outcome.REFRESHED


# --- deployments


def test_the_first_deployment_with_a_name_puts_it_on_the_rows(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    assert not TenantState.objects.exclude(deployment="").exists()
    named(settings, "production")
    lifecycle.access_token(expire(token))
    assert TenantState.objects.get().deployment == "production"
    lifecycle.access_token(token)


def test_a_sign_in_puts_the_name_on_the_rows_too(
    database: str, bipsync: SimulatedBipsync, settings: Any
) -> None:
    named(settings, "production")
    connect(bipsync)
    assert TenantState.objects.get().deployment == "production"


@pytest.mark.parametrize("here", ["staging", None])
def test_a_copy_of_the_database_makes_no_call_and_says_so_once(
    token: BipsyncToken,
    bipsync: SimulatedBipsync,
    settings: Any,
    here: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    named(settings, "production")
    lifecycle.access_token(expire(token))
    before = refresh_token_of(token)
    bipsync.reset_calls()
    named(settings, here)
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="bipsync_django"):
        for row in (token, nearly_expire(token), expire(token)):
            with pytest.raises(OtherDeployment, match="bipsync_deployment"):
                lifecycle.access_token(row)
            with pytest.raises(OtherDeployment):
                lifecycle.refresh(reload(token), force=True)
            with pytest.raises(OtherDeployment):
                lifecycle.replace_refused(row, row.unseal("access_token") or "")
        assert lifecycle.refresh_if_due(token.pk) is Outcome.FAILED
        assert not lifecycle.take_due(10)
        with pytest.raises(OtherDeployment):
            connect(bipsync, person=list(bipsync.users)[1])
    assert bipsync.calls["token"] == 0
    assert bipsync.is_alive(before)
    assert refresh_token_of(token) == before
    assert BipsyncToken.objects.count() == 1
    assert len(caplog.records) == 1
    assert "production" in caplog.text


def test_the_name_that_came_first_stays(token: BipsyncToken, settings: Any) -> None:
    named(settings, "production")
    breaker.claim_deployment("acme")
    named(settings, "staging")
    with pytest.raises(OtherDeployment):
        breaker.claim_deployment("acme")
    assert TenantState.objects.get().deployment == "production"


def test_a_dead_grant_of_the_same_deployment_is_not_confused_with_a_copy(
    token: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    named(settings, "production")
    bipsync.withdraw(token.subject)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expire(token))
