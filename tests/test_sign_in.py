"""One whole sign-in after another, over real HTTP."""

import logging
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.browser import LOGIN, Browser, signed_in

pytestmark = pytest.mark.django_db(transaction=True)

ADA, GRACE = "ada@acme.example", "grace@acme.example"


def test_a_first_sign_in_makes_a_user_and_stores_the_pair(
    client: Client, bipsync: SimulatedBipsync, sign_in: Any
) -> None:
    response = sign_in(client, next="/?tab=1")
    assert (response.status_code, response["Location"]) == (302, "/?tab=1")
    user = User.objects.get()
    token = BipsyncToken.objects.get()
    assert token.user == user
    assert (user.first_name, user.last_name) == ("Ada", "Lovelace")
    assert not user.has_usable_password()
    assert not user.is_staff
    refresh_token = token.unseal("refresh_token")
    assert refresh_token is not None
    assert bipsync.is_alive(refresh_token)
    assert client.get("/", secure=True).status_code == 200


def test_a_second_sign_in_finds_the_same_user_and_replaces_the_pair(
    bipsync: SimulatedBipsync,
) -> None:
    signed_in(bipsync)
    first = BipsyncToken.objects.get()
    signed_in(bipsync)
    second = BipsyncToken.objects.get()
    assert User.objects.count() == 1
    assert second.user == first.user
    assert second.generation > first.generation
    assert second.unseal("refresh_token") != first.unseal("refresh_token")
    refresh_token = second.unseal("refresh_token")
    assert refresh_token is not None
    assert bipsync.is_alive(refresh_token)


def test_two_people_become_two_users(bipsync: SimulatedBipsync) -> None:
    ada, grace = signed_in(bipsync, ADA), signed_in(bipsync, GRACE)
    assert ada.user_id() != grace.user_id()
    assert set(User.objects.values_list("first_name", flat=True)) == {"Ada", "Grace"}
    assert BipsyncToken.objects.count() == 2


def test_a_sign_in_over_plain_http_works_on_loopback(bipsync: SimulatedBipsync) -> None:
    bipsync.redirect_uris.add("http://localhost/bipsync/callback/")
    browser = Browser(headers={"host": "localhost"})
    started = browser.get(LOGIN)
    assert all(name.startswith("bipsync-") for name in browser.trips())
    callback = bipsync.approve(started["Location"])
    assert callback.startswith("http://localhost/bipsync/callback/?")
    assert browser.get(callback.removeprefix("http://localhost")).status_code == 302
    assert browser.user_id() is not None


def test_a_sign_in_from_plain_http_elsewhere_is_refused_before_it_starts() -> None:
    browser = Browser()
    response = browser.get(LOGIN)
    assert response.status_code == 503
    assert b'data-reason="misconfigured"' in response.content
    assert not browser.trips()


def test_a_fixed_redirect_uri_serves_sites_behind_a_proxy(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "REDIRECT_URI": "https://portal.example/bipsync/callback/",
    }
    bipsync.redirect_uris = {"https://portal.example/bipsync/callback/"}
    browser = Browser()
    # The proxy ends TLS and says nothing about it.
    response = browser.get(LOGIN)
    callback = bipsync.approve(response["Location"])
    assert callback.startswith("https://portal.example/")
    answer = browser.get(callback.removeprefix("https://portal.example"))
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert browser.user_id() is not None


@pytest.mark.parametrize("dialect", ["8", "9"])
def test_both_dialects_sign_in(bipsync: SimulatedBipsync, dialect: Any) -> None:
    bipsync.dialect = dialect
    assert signed_in(bipsync).user_id() is not None


def test_a_provider_clock_a_few_seconds_ahead_signs_in(bipsync: SimulatedBipsync) -> None:
    bipsync.clock_ahead = 5
    assert signed_in(bipsync).user_id() is not None


def test_a_sign_in_after_a_key_rotation_fetches_the_new_key(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    bipsync.rotate_keys()
    bipsync.retire_keys()
    assert signed_in(bipsync, GRACE).user_id() is not None
    assert bipsync.calls["jwks"] == 2


def test_a_sign_in_leaves_an_event_that_says_who(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    event = TokenEvent.objects.get()
    assert (event.name, event.actor) == ("signed_in", User.objects.get())


def test_no_secret_of_a_sign_in_reaches_a_log(
    bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        browser = Browser()
        started = browser.begin()
        cookies = list(browser.trips().values())
        browser.open(bipsync.approve(started))
    form = next(request.form for request in bipsync.requests if "code" in request.form)
    token = BipsyncToken.objects.get()
    hidden = [
        *cookies,
        str(form["code"]),
        str(form["code_verifier"]),
        str(form["client_secret"]),
        token.unseal("access_token") or "",
        token.unseal("refresh_token") or "",
    ]
    # The simulator runs in this process; what it logs is the provider's own affair.
    ours = [
        record.getMessage()
        for record in caplog.records
        if "process_request_thread" not in (record.threadName or "")
    ]
    assert ours
    logged = "\n".join(ours)
    assert all(len(secret) > 8 and secret not in logged for secret in hidden)
