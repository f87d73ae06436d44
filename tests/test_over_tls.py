"""The journeys that matter over https, with plain http forbidden, as everything real is.

Tests of other modules run here once more, against a simulated client that speaks TLS.
"""

from typing import Any

import pytest

from bipsync_django import lifecycle
from bipsync_django.api import api_session
from bipsync_django.exceptions import RefreshUnavailable
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import Answer, Authority, DropAfter, SimulatedBipsync, Trickle
from tests.browser import Browser, signed_in
from tests.grants import connect, expire, refresh_token_of, reload
from tests.test_api import (
    test_a_call_is_made_on_the_persons_behalf,
    test_an_expired_token_is_refreshed_on_the_way,
    user,
)
from tests.test_key_rotation import test_keys_rotate_under_load_and_nobody_notices
from tests.test_lapsed import (
    ada,
    test_a_page_that_needs_more_still_knows_whose_grant_it_was,
)
from tests.test_lifecycle import (
    test_a_rotated_token_survives_the_callers_rollback,
    test_an_answer_that_is_lost_after_the_rotation_is_labelled,
    test_eight_threads_inside_transactions_make_one_call,
    test_eight_threads_on_one_expired_token_make_one_call_and_all_are_served,
    token,
)
from tests.test_sign_in import (
    test_a_first_sign_in_makes_a_user_and_stores_the_pair,
    test_a_second_sign_in_finds_the_same_user_and_replaces_the_pair,
    test_two_people_become_two_users,
)

__all__ = [
    "ada",
    "test_a_call_is_made_on_the_persons_behalf",
    "test_a_first_sign_in_makes_a_user_and_stores_the_pair",
    "test_a_page_that_needs_more_still_knows_whose_grant_it_was",
    "test_a_rotated_token_survives_the_callers_rollback",
    "test_a_second_sign_in_finds_the_same_user_and_replaces_the_pair",
    "test_an_answer_that_is_lost_after_the_rotation_is_labelled",
    "test_an_expired_token_is_refreshed_on_the_way",
    "test_eight_threads_inside_transactions_make_one_call",
    "test_eight_threads_on_one_expired_token_make_one_call_and_all_are_served",
    "test_keys_rotate_under_load_and_nobody_notices",
    "test_two_people_become_two_users",
    "token",
    "user",
]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def bipsync_tls(authority: Authority, settings: Any) -> Authority:
    settings.BIPSYNC = {**settings.BIPSYNC, "ALLOW_INSECURE_LOOPBACK": False}
    return authority


def test_everything_here_speaks_https(bipsync: SimulatedBipsync, settings: Any) -> None:
    assert bipsync.url.startswith("https://127.0.0.1:")
    addresses = {name: value for name, value in settings.BIPSYNC.items() if name.endswith("_URL")}
    assert len(addresses) == 5
    assert all(value.startswith("https://") for value in addresses.values())
    assert settings.BIPSYNC["ALLOW_INSECURE_LOOPBACK"] is False


@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_a_certificate_that_is_not_trusted_gets_no_secret_and_ends_no_grant(
    bipsync: SimulatedBipsync, settings: Any, whose: str
) -> None:
    row = expire(connect(bipsync))
    bundle = Authority().bundle if whose == "another's" else None
    settings.BIPSYNC = {**settings.BIPSYNC, "CA_BUNDLE": bundle}
    calls = bipsync.calls.copy()
    with pytest.raises(RefreshUnavailable) as raised:
        lifecycle.access_token(row)
    assert raised.value.code == "tls_error"
    assert bipsync.calls == calls
    assert reload(row).status == BipsyncToken.Status.ACTIVE
    assert reload(row).in_doubt_at is None
    browser = Browser()
    answer = browser.get("/bipsync/login/", secure=True)
    settings.BIPSYNC = {**settings.BIPSYNC, "CA_BUNDLE": Authority().bundle}
    answer = browser.open(bipsync.approve(answer["Location"]))
    assert (answer.status_code, answer.context["reason"]) == (503, "unavailable")


def test_a_refused_token_is_replaced_on_the_way(bipsync: SimulatedBipsync) -> None:
    row = connect(bipsync)
    old = refresh_token_of(row)
    BipsyncToken.objects.update(obtained_at="2020-01-01T00:00:00Z")
    bipsync.fail("api", Answer(401))
    with api_session(row.user) as session:  # type: ignore[arg-type]
        assert session.get("/v1/users/me").status_code == 200
    assert refresh_token_of(row) != old


@pytest.mark.parametrize("how", [DropAfter(), Trickle(0.2)], ids=["lost", "dripping"])
def test_an_answer_that_breaks_off_leaves_a_doubt_and_the_grant(
    bipsync: SimulatedBipsync, settings: Any, how: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HTTP_TIMEOUT": 1}
    row = expire(connect(bipsync))
    bipsync.fail("token", how)
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(row)
    assert reload(row).in_doubt_at is not None
    assert reload(row).status == BipsyncToken.Status.ACTIVE


def test_a_disconnect_spends_the_refresh_token(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    row = BipsyncToken.objects.get()
    spent = refresh_token_of(row)
    lifecycle.disconnect(row)
    assert not bipsync.is_alive(spent)
    assert not TokenEvent.objects.filter(name=TokenEvent.Name.LEFT_VALID).exists()
