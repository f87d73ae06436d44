"""Several Bipsync clients at one site, one of them hostile."""

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.auth.models import User

from bipsync_django import lifecycle
from bipsync_django.api import api_session
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import ConfigurationError, SignInRequired, TokenRefused
from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.browser import (
    LOGIN,
    Browser,
    answer_confirmation,
    links,
    visible_text,
    way_to_bipsync,
)
from tests.grants import expire
from tests.two_tenants import CALLBACKS, HOST, begin, sign_in_at, take_out

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "68b993fa85d14160d4030391"


def reason_of(response: Any) -> str:
    page: str = response.content.decode()
    return page.partition('data-reason="')[2].partition('"')[0]


def state_in(url: str) -> str:
    return parse_qs(urlsplit(url).query)["state"][0]


def code_in(url: str) -> str:
    return parse_qs(urlsplit(url).query)["code"][0]


def nothing_came_of_it(browser: Browser) -> bool:
    return browser.user_id() is None and not BipsyncToken.objects.exclude(user=None).exists()


# --- choosing


def test_people_choose_where_they_have_their_account(acme: SimulatedBipsync) -> None:
    browser = Browser()
    response = browser.get(LOGIN, {"next": "/reports/"}, secure=True)
    assert response.status_code == 200
    page = response.content.decode()
    assert "Acme Capital" in visible_text(page)
    assert "Globex Capital" in visible_text(page)
    assert links(page) == [
        f"{LOGIN}acme/?next=%2Freports%2F",
        f"{LOGIN}globex/?next=%2Freports%2F",
    ]
    assert "no-store" in response["Cache-Control"]
    assert not browser.trips()


def test_an_unsafe_place_to_go_is_not_handed_on(acme: SimulatedBipsync) -> None:
    response = Browser().get(LOGIN, {"next": "https://evil.example/"}, secure=True)
    assert links(response.content.decode()) == [f"{LOGIN}acme/", f"{LOGIN}globex/"]


def test_each_tenant_signs_in_at_its_own_and_comes_back_to_its_own(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    first, second = sign_in_at(acme), sign_in_at(globex)
    assert (acme.calls["code"], globex.calls["code"]) == (1, 1)
    assert first.user_id() != second.user_id(), "one subject, two tenants, two people"
    assert set(BipsyncToken.objects.values_list("tenant", "subject")) == {
        ("acme", ADA),
        ("globex", ADA),
    }


def test_the_first_tenant_may_use_the_long_callback_too(acme: SimulatedBipsync) -> None:
    browser = Browser()
    callback = acme.approve(begin(browser, "acme"))
    assert browser.open(callback.replace("/callback/", "/callback/acme/")).status_code == 302


def test_a_tenant_that_is_not_there_is_a_page(acme: SimulatedBipsync) -> None:
    for url in (f"{LOGIN}initech/", "/bipsync/connect/initech/"):
        browser = sign_in_at(acme)
        response = browser.get(url, secure=True)
        assert (response.status_code, reason_of(response)) == (404, "unknown_tenant")
    response = Browser().get("/bipsync/callback/initech/?state=x&code=y", secure=True)
    assert (response.status_code, reason_of(response)) == (400, "unknown_state")


def test_trying_again_leads_to_the_same_tenant(globex: SimulatedBipsync) -> None:
    browser = Browser()
    response = browser.open(globex.decline(begin(browser, "globex", "/reports/")))
    assert links(response.content.decode())[0] == f"{LOGIN}globex/?next=%2Freports%2F"


def test_a_program_is_told_where_its_own_tenant_is(globex: SimulatedBipsync) -> None:
    browser = sign_in_at(globex)
    globex.withdraw(ADA)
    token = expire(BipsyncToken.objects.get())
    with pytest.raises(SignInRequired):
        lifecycle.access_token(token)
    response = browser.get("/", secure=True, headers={"accept": "application/json"})
    assert response.json()["sign_in_url"] == f"{LOGIN}globex/"
    page = browser.get("/", secure=True)
    assert page["Location"] == f"{LOGIN}globex/?next=%2F"


# --- in code


def test_what_could_mean_several_has_to_be_named(acme: SimulatedBipsync) -> None:
    user = User.objects.get(pk=sign_in_at(acme).user_id() or "")
    with pytest.raises(ConfigurationError, match="several tenants"):
        get_tenant()
    with pytest.raises(ConfigurationError, match="several tenants"):
        api_session(user)
    with api_session(user, tenant="acme") as session:
        assert session.get("/v1/users/me").status_code == 200
    with pytest.raises(SignInRequired):
        api_session(user, tenant="globex")


def test_one_person_connected_at_two_tenants_calls_each_with_its_own_token(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    browser = sign_in_at(acme)
    begun = way_to_bipsync(browser.post("/bipsync/connect/globex/", secure=True))
    back = browser.open(globex.approve(begun, user="grace@acme.example"))
    assert answer_confirmation(browser, back).status_code == 302
    user = User.objects.get()
    for slug, bipsync in (("acme", acme), ("globex", globex)):
        with api_session(user, tenant=slug) as session:
            assert session.get("/v1/users/me").status_code == 200
        assert bipsync.calls["api"] == 1
    assert {token.subject for token in BipsyncToken.objects.for_user(user)} == {
        ADA,
        globex.find_user("grace@acme.example").id,
    }


def test_a_refresh_goes_to_the_tenant_of_the_grant(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    sign_in_at(globex)
    lifecycle.refresh(expire(BipsyncToken.objects.get()))
    assert (acme.calls["token"], globex.calls["refresh"]) == (0, 1)


# --- a hostile tenant


def test_a_hostile_tenants_code_is_not_taken_for_anothers(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    """Globex sends the browser on to Acme's callback with a code of its own and Acme's state."""
    browser = Browser()
    begun = begin(browser, "acme")
    code = code_in(globex.approve(begin(Browser(), "globex")))
    acme.reset_calls()
    query = urlencode({"state": state_in(begun), "code": code})
    response = browser.open(f"{CALLBACKS['acme']}?{query}")
    assert reason_of(response) == "code_refused", "Acme knows no such code"
    assert nothing_came_of_it(browser)


def test_a_code_of_acme_never_reaches_globex(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    """Mix-up: the person chose Globex, which sends them through Acme with the same state."""
    browser = Browser()
    begun = begin(browser, "globex")
    parameters = {name: values[0] for name, values in parse_qs(urlsplit(begun).query).items()}
    parameters["redirect_uri"] = f"{HOST}{CALLBACKS['acme']}"
    from_acme = acme.approve(f"{acme.authorize_url}?{urlencode(parameters)}")
    assert state_in(from_acme) == state_in(begun)
    for calls in (acme, globex):
        calls.reset_calls()
    response = browser.open(from_acme)
    assert (response.status_code, reason_of(response)) == (400, "wrong_address")
    assert (acme.calls["token"], globex.calls["token"]) == (0, 0), "the code went nowhere"
    assert nothing_came_of_it(browser)
    assert SpentState.objects.count() == 1, "and the state is of no more use"
    again = browser.open(from_acme.replace(CALLBACKS["acme"], CALLBACKS["globex"]))
    assert globex.calls["token"] == 0
    assert reason_of(again) == "replayed_state"


def test_an_error_at_anothers_callback_is_not_believed(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    browser = Browser()
    state = state_in(begin(browser, "acme"))
    query = urlencode({"state": state, "error": "access_denied"})
    assert reason_of(browser.open(f"{CALLBACKS['globex']}?{query}")) == "wrong_address"


def test_a_hostile_tenant_that_answers_with_anothers_token_signs_nobody_in(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    stolen = acme.issue_pair(ADA)
    globex.fail(
        "token",
        Answer(
            200,
            {
                "token_type": "Bearer",
                "expires_in": 3600,
                "access_token": stolen.access_token,
                "refresh_token": stolen.refresh_token,
            },
        ),
    )
    browser = Browser()
    response = browser.open(globex.approve(begin(browser, "globex")))
    assert reason_of(response) == "token_refused"
    assert nothing_came_of_it(browser)


def test_a_hostile_tenant_that_publishes_anothers_keys_makes_nobody_that_person(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    """Then its own people are who it says they are, at Globex; and nobody is somebody at Acme."""
    sign_in_at(acme)
    at_acme = BipsyncToken.objects.get()
    stolen = acme.issue_pair(ADA)
    globex.fail("jwks", Answer(200, acme.keys.jwks()), times=None)
    answer = {
        "token_type": "Bearer",
        "expires_in": 3600,
        "access_token": stolen.access_token,
        "refresh_token": stolen.refresh_token,
    }
    globex.fail("token", Answer(200, answer))
    browser = Browser()
    browser.open(globex.approve(begin(browser, "globex")))
    user = User.objects.get(pk=browser.user_id() or "")
    assert user != at_acme.user
    assert BipsyncToken.objects.get(user=user).tenant == "globex"
    at_acme.refresh_from_db()
    assert at_acme.generation == 1
    with pytest.raises(SignInRequired):
        api_session(user, tenant="acme")


def test_keys_of_one_tenant_open_nothing_at_another(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    """Even for the same kid, and although the other's keys are cached."""
    kid = acme.keys.current.kid
    assert validate_access_token(acme.issue_pair().access_token, get_tenant("acme"))
    forged = globex.sign(globex.access_token_claims(), kid=kid)
    with pytest.raises(TokenRefused):
        validate_access_token(forged, get_tenant("acme"))
    globex.fail(
        "jwks", Answer(200, {"keys": [{**globex.keys.current.jwk(), "kid": kid}]}), times=None
    )
    assert validate_access_token(forged, get_tenant("globex"))
    with pytest.raises(TokenRefused):
        validate_access_token(forged, get_tenant("acme"))


def test_a_hostile_tenant_may_not_connect_its_account_to_anothers_person(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    """The callback of a connection belongs to the tenant that it was begun with, too."""
    browser = sign_in_at(acme)
    begun = way_to_bipsync(browser.post("/bipsync/connect/acme/", secure=True))
    code = code_in(globex.approve(begin(Browser(), "globex")))
    query = urlencode({"state": state_in(begun), "code": code})
    assert reason_of(browser.open(f"{CALLBACKS['globex']}?{query}")) == "wrong_address"
    assert BipsyncToken.objects.get().tenant == "acme"


def test_a_hostile_tenant_matches_nobody_by_address(
    acme: SimulatedBipsync, globex: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "MATCH_USERS_BY": {"TENANT": "acme", "TRUST_UNVERIFIED": True},
    }
    local = User.objects.create_user("ada", "ada@acme.example")
    assert sign_in_at(globex).user_id() != str(local.pk)
    User.objects.exclude(pk=local.pk).delete()
    assert sign_in_at(acme).user_id() == str(local.pk)


def test_one_tenants_breaker_leaves_the_other_alone(
    acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    for bipsync in (acme, globex):
        sign_in_at(bipsync)
    acme.client_secret = "changed"
    at_acme, at_globex = (BipsyncToken.objects.get(tenant=slug) for slug in ("acme", "globex"))
    with pytest.raises(Exception, match="invalid_client"):
        lifecycle.refresh(expire(at_acme))
    assert lifecycle.refresh(expire(at_globex)).generation == 2
    assert not lifecycle.take_due(10)


# --- a tenant that was taken out of the settings (what else becomes of it: tests/test_give_up.py)


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "delete", "options"])
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_a_session_of_a_tenant_that_was_taken_out_is_over_at_its_next_request(
    acme: SimulatedBipsync, globex: SimulatedBipsync, settings: Any, method: str, accept: str
) -> None:
    stays, goes = sign_in_at(acme), sign_in_at(globex, "grace@acme.example")
    for browser in (stays, goes):
        # The middleware remembers for a while that this session is well.
        assert "Hello visitor" not in browser.get("/greeting/", secure=True).content.decode()
    name = User.objects.get(pk=goes.user_id() or "").get_username()
    take_out(settings, "globex")
    answer = getattr(goes, method)("/greeting/", secure=True, headers={"accept": accept})
    assert name not in answer.content.decode()
    assert goes.user_id() is None
    assert goes.get("/", secure=True).status_code == 302
    assert stays.get("/", secure=True).status_code == 200


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(
    "url", ["connect/", "connect/acme/", "connection/", "disconnect/acme/", "disconnect/globex/"]
)
def test_our_own_pages_know_nobody_of_a_tenant_that_was_taken_out(
    acme: SimulatedBipsync, globex: SimulatedBipsync, settings: Any, url: str, method: str
) -> None:
    browser = sign_in_at(globex)
    user = User.objects.get()
    take_out(settings, "globex")
    answer = getattr(browser, method)(f"/bipsync/{url}", secure=True)
    assert user.get_username() not in answer.content.decode()
    assert browser.user_id() is None


def test_a_session_that_ended_with_its_tenant_does_not_come_back_with_it(
    globex: SimulatedBipsync, settings: Any
) -> None:
    before, browser = settings.BIPSYNC, sign_in_at(globex)
    copy = browser.twin()
    take_out(settings, "globex")
    assert browser.get("/", secure=True).status_code == 302
    settings.BIPSYNC = before
    for one in (browser, copy):
        assert one.get("/", secure=True).status_code == 302
