"""The trip through the browser: what is remembered, by whom it can be used, and how often."""

import base64
import hashlib
import json
import logging
import secrets
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.test import RequestFactory
from django.utils import timezone

from bipsync_django import flow, returns
from bipsync_django.backends import BipsyncBackend
from bipsync_django.conf import get_tenant
from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.testing import SimulatedBipsync
from tests.browser import CALLBACK, LOGIN, LOGOUT, Browser, at_the_same_moment, signed_in

pytestmark = pytest.mark.django_db(transaction=True)


def state_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["state"][0]


def reason_of(response: Any) -> str:
    page = response.content.decode()
    return str(page.partition('data-reason="')[2].partition('"')[0])


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let ``seconds`` pass for the flow alone."""
    monkeypatch.setattr(flow, "time", SimpleNamespace(time=lambda: time.time() + seconds))


# --- PKCE


def test_the_verifier_that_is_redeemed_matches_the_challenge_that_was_sent(
    bipsync: SimulatedBipsync,
) -> None:
    browser = Browser()
    started = browser.begin()
    sent = parse_qs(urlsplit(started).query)
    browser.open(bipsync.approve(started))
    verifier = str(next(r.form for r in bipsync.requests if "code" in r.form)["code_verifier"])
    digest = hashlib.sha256(verifier.encode()).digest()
    assert sent["code_challenge_method"] == ["S256"]
    assert sent["code_challenge"] == [base64.urlsafe_b64encode(digest).decode().rstrip("=")]
    assert 43 <= len(verifier) <= 128


def test_the_verifier_can_be_read_nowhere(
    bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    browser = Browser()
    with caplog.at_level(logging.DEBUG):
        response = browser.get(LOGIN, {"next": "/"}, secure=True)
        name, cookie = next(iter(browser.trips().items()))
        sessions = [session.get_decoded() for session in Session.objects.all()]
        begun = [record.getMessage() for record in caplog.records]
        browser.open(bipsync.approve(response["Location"]))
    form = next(r.form for r in bipsync.requests if "code" in r.form)
    verifier = str(form["code_verifier"])
    places = [
        name,
        cookie,
        base64.urlsafe_b64decode(cookie + "==").decode("latin-1"),
        json.dumps(sessions),
        response.content.decode(),
        str(response.headers),
        response["Location"],
        *begun,
    ]
    assert all(verifier not in place for place in places)
    # Nor is the rest of the trip: the cookie is sealed, not merely signed.
    assert state_of(response["Location"]) not in base64.urlsafe_b64decode(cookie + "==").decode(
        "latin-1"
    )


def test_a_trip_does_not_show_its_secrets_when_printed(bipsync: SimulatedBipsync) -> None:
    request = RequestFactory().get("/", secure=True)
    response = flow.begin(request, get_tenant())
    request.COOKIES = {name: morsel.value for name, morsel in response.cookies.items()}
    trip = flow.find(request, state_of(response["Location"]))
    assert trip.verifier not in repr(trip)
    assert trip.state not in repr(trip)


def test_every_trip_has_a_state_and_a_verifier_of_its_own(bipsync: SimulatedBipsync) -> None:
    urls = [Browser().begin() for _ in range(3)]
    challenges = {parse_qs(urlsplit(url).query)["code_challenge"][0] for url in urls}
    assert len({state_of(url) for url in urls}) == 3
    assert len(challenges) == 3


# --- a state is good once


def test_a_callback_that_is_opened_again_is_refused(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    assert browser.open(callback).status_code == 302
    # Within a minute it may be the browser that asks once more: tests/test_ways_on.py.
    monkeypatch.setattr(returns, "time", SimpleNamespace(time=lambda: time.time() + 61))
    again = browser.open(callback)
    assert (again.status_code, reason_of(again)) == (400, "replayed_state")
    assert bipsync.calls["code"] == 1


def test_a_callback_that_is_replayed_with_its_old_cookie_is_refused(
    bipsync: SimulatedBipsync,
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    thief = browser.twin()
    browser.open(callback)
    again = thief.open(callback)
    assert (again.status_code, reason_of(again)) == (400, "replayed_state")
    assert thief.user_id() is None
    assert bipsync.calls["code"] == 1


def test_a_state_is_spent_although_the_sign_in_failed(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    twin = browser.twin()
    bipsync.client_secret = "another"
    assert browser.open(callback).status_code == 503
    bipsync.client_secret = "portal-secret"
    assert reason_of(twin.open(callback)) == "replayed_state"


def test_of_two_simultaneous_callbacks_exactly_one_signs_in(
    database: str, bipsync: SimulatedBipsync
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    twins = [browser.twin(), browser.twin()]
    answers = at_the_same_moment(*[lambda b=b: b.open(callback) for b in twins])
    assert sorted(answer.status_code for answer in answers) == [302, 400]
    assert sorted(reason_of(answer) for answer in answers) == ["", "replayed_state"]
    assert len([twin for twin in twins if twin.user_id()]) == 1
    assert bipsync.calls["code"] == 1


def test_spent_states_are_forgotten_when_nothing_can_be_done_with_them(
    bipsync: SimulatedBipsync,
) -> None:
    signed_in(bipsync)
    flow.prune()
    assert SpentState.objects.count() == 1
    SpentState.objects.update(expires_at=timezone.now() - timedelta(seconds=flow.LIFETIME + 1))
    flow.prune()
    assert SpentState.objects.count() == 0


def test_a_spent_state_is_remembered_for_longer_than_its_trip_could_last(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    twin = browser.twin()
    browser.open(callback)
    # As if this much time had passed: a moment at which the trip itself would still be good.
    SpentState.objects.update(expires_at=timezone.now() + timedelta(seconds=5))
    flow.prune()
    later(monkeypatch, flow.LIFETIME - 5)
    assert reason_of(twin.open(callback)) == "replayed_state"


# --- ten minutes


@pytest.mark.parametrize("seconds", [flow.LIFETIME + 1, 3599, -61])
def test_a_trip_that_took_too_long_is_refused_and_keeps_where_it_was_going(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/reports/?year=2024"))
    later(monkeypatch, seconds)
    response = browser.open(callback)
    assert (response.status_code, reason_of(response)) == (400, "expired_state")
    assert f"{LOGIN}?next={quote('/reports/?year=2024', safe='')}" in response.content.decode()
    assert browser.user_id() is None
    assert bipsync.calls["code"] == 0


def test_a_trip_of_almost_ten_minutes_is_in_time(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    later(monkeypatch, flow.LIFETIME - 5)
    assert browser.open(callback).status_code == 302


def test_the_browser_forgets_a_trip_after_an_hour(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    browser.begin()
    assert [browser.cookies[name]["max-age"] for name in browser.trips()] == [3600]


# --- whose trip it is


def test_an_attackers_callback_does_not_sign_a_victim_in(bipsync: SimulatedBipsync) -> None:
    attacker, victim = Browser(), Browser()
    callback = bipsync.approve(attacker.begin(), user="grace@acme.example")
    victim.begin()
    response = victim.open(callback)
    assert (response.status_code, reason_of(response)) == (400, "unknown_state")
    assert victim.user_id() is None
    assert bipsync.calls["code"] == 0
    # And the attacker learnt nothing: the victim's own trip is as it was.
    assert len(victim.trips()) == 1
    assert attacker.open(callback).status_code == 302


def test_an_attackers_callback_does_not_replace_a_session(bipsync: SimulatedBipsync) -> None:
    attacker, victim = Browser(), signed_in(bipsync, "ada@acme.example")
    ada = victim.user_id()
    victim.open(bipsync.approve(attacker.begin(), user="grace@acme.example"))
    assert victim.user_id() == ada


@pytest.mark.parametrize("place", [0, 15, 16, 42])
def test_a_state_with_one_character_changed_is_refused(
    bipsync: SimulatedBipsync, place: int
) -> None:
    browser = Browser()
    started = browser.begin()
    state = state_of(started)
    other = "A" if state[place] != "A" else "B"
    changed = state[:place] + other + state[place + 1 :]
    callback = bipsync.approve(started).replace(state, changed)
    response = browser.open(callback)
    assert (response.status_code, reason_of(response)) == (400, "unknown_state")
    assert bipsync.calls["code"] == 0


@pytest.mark.parametrize("state", ["x", "x" * 43, "é" * 43, "\x00" * 43, "x" * 44, "*" * 43])
def test_a_state_that_was_never_given_out_is_refused(bipsync: SimulatedBipsync, state: str) -> None:
    browser = Browser()
    browser.begin()
    response = browser.open(f"{CALLBACK}?{urlencode({'state': state, 'code': 'x'})}")
    assert (response.status_code, reason_of(response)) == (400, "unknown_state")


def test_the_sealed_cookie_of_one_trip_does_not_serve_another(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    first = bipsync.approve(browser.begin())
    (first_name, _), *_ = browser.trips().items()
    second_browser = Browser()
    second_browser.begin()
    browser.cookies[first_name] = next(iter(second_browser.trips().values()))
    response = browser.open(first)
    assert reason_of(response) == "unknown_state"


def _cut(cookie: str) -> str:
    return cookie[:-8]


def _flip(cookie: str) -> str:
    middle = len(cookie) // 2
    return cookie[:middle] + ("A" if cookie[middle] != "A" else "B") + cookie[middle + 1 :]


def _of_another_version(cookie: str) -> str:
    return flow._sealer().encrypt(b'{"state": "x", "scopes": []}').decode()


def _of_a_later_version(cookie: str) -> str:
    trip = json.loads(flow._sealer().decrypt(cookie))
    return flow._sealer().encrypt(json.dumps({**trip, "device": "x"}).encode()).decode()


def _not_a_trip(cookie: str) -> str:
    return flow._sealer().encrypt(b"[]").decode()


def _not_ascii(cookie: str) -> str:
    return "é" * len(cookie)


@pytest.mark.parametrize(
    "tamper",
    [_cut, _flip, _of_another_version, _of_a_later_version, _not_a_trip, _not_ascii, str],
)
def test_a_cookie_that_was_tampered_with_is_an_unknown_trip(
    bipsync: SimulatedBipsync, tamper: Any
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    name, cookie = next(iter(browser.trips().items()))
    browser.cookies[name] = tamper(cookie)
    response = browser.open(callback)
    expected = "" if tamper is str else "unknown_state"
    assert reason_of(response) == expected


def test_a_trip_that_an_earlier_version_began_can_be_ended(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/reports/"))
    name, cookie = next(iter(browser.trips().items()))
    trip = json.loads(flow._sealer().decrypt(cookie))
    assert trip.pop("user") == ""
    browser.cookies[name] = flow._sealer().encrypt(json.dumps(trip).encode()).decode()
    assert browser.open(callback)["Location"] == "/reports/"


def test_a_cookie_sealed_with_another_secret_key_is_an_unknown_trip(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    settings.SECRET_KEY = "another-" + "x" * 50
    assert reason_of(browser.open(callback)) == "unknown_state"


def test_a_trip_survives_a_change_of_the_secret_key(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = b"bytes-work-too-" + b"x" * 50
    assert browser.open(callback).status_code == 302


# --- a trip that is bound to a person (begun by a page, see test_decorators.py)

ADA, GRACE, ZOE = "ada@acme.example", "grace@acme.example", "zoe@acme.example"


def begin_bound(browser: Browser) -> str:
    """Let the page that needs another scope send the browser to Bipsync."""
    response = browser.open("/research/")
    assert response.status_code == 302
    return str(response["Location"])


def everything() -> tuple[Any, ...]:
    return (
        list(BipsyncToken.objects.order_by("pk").values()),
        list(User.objects.order_by("pk").values()),
    )


def test_a_bound_trip_is_ended_by_its_person(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    session = browser.session
    session["basket"] = "kept"
    session.save()
    response = browser.open(bipsync.approve(begin_bound(browser), user=ADA))
    assert (response.status_code, response["Location"]) == (302, "/research/")
    assert BipsyncToken.objects.get().scopes == "research:read users:read"
    # The session goes on, under a new key.
    assert browser.session["basket"] == "kept"
    assert browser.session.session_key != session.session_key
    assert browser.user_id() == str(User.objects.get().pk)


def test_a_bound_trip_does_not_end_in_another_persons_session(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    callback = bipsync.approve(begin_bound(browser), user=ADA)
    browser.open(bipsync.approve(browser.begin(), user=GRACE))
    before = everything()
    response = browser.open(callback)
    assert (response.status_code, reason_of(response)) == (403, "other_person")
    assert everything() == before
    assert browser.user_id() == str(User.objects.get(first_name="Grace").pk)
    # The code was not even redeemed, and the trip is over.
    assert bipsync.calls["code"] == 2
    assert not browser.trips()
    assert 'href="/"' in response.content.decode()


def test_the_retry_link_of_another_person_does_not_name_the_page(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    callback = bipsync.approve(begin_bound(browser), user=ADA)
    browser.open(bipsync.approve(browser.begin(), user=GRACE))
    assert "research" not in browser.open(callback).content.decode()


@pytest.mark.parametrize("who", [GRACE, ZOE], ids=["known", "unknown"])
def test_a_bound_trip_is_not_ended_by_another_bipsync_account(
    bipsync: SimulatedBipsync, who: str
) -> None:
    signed_in(bipsync, GRACE)
    browser = signed_in(bipsync, ADA)
    before, session = everything(), dict(browser.session)
    response = browser.open(bipsync.approve(begin_bound(browser), user=who))
    assert (response.status_code, reason_of(response)) == (403, "other_account")
    assert everything() == before
    assert dict(browser.session) == session
    assert 'href="/research/"' in response.content.decode()


def test_a_bound_trip_may_be_ended_after_signing_out(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    started = begin_bound(browser)
    browser.post("/bipsync/logout/", secure=True)
    assert browser.open(bipsync.approve(started, user=ADA)).status_code == 302
    assert browser.user_id() == str(User.objects.get().pk)


def test_a_bound_trip_after_signing_out_is_not_ended_by_another_account(
    bipsync: SimulatedBipsync,
) -> None:
    browser = signed_in(bipsync, ADA)
    started = begin_bound(browser)
    browser.post("/bipsync/logout/", secure=True)
    before = everything()
    assert reason_of(browser.open(bipsync.approve(started, user=GRACE))) == "other_account"
    assert (everything(), browser.user_id()) == (before, None)


def test_a_database_that_fails_when_the_person_is_looked_up_is_a_page(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = signed_in(bipsync, ADA)
    callback = bipsync.approve(begin_bound(browser), user=ADA)

    def fail(*args: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(BipsyncBackend, "get_user", fail)
    assert reason_of(browser.open(callback)) == "storage_unavailable"


# --- several tabs


def test_each_tab_comes_to_its_own_page(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    pages = ["/one/", "/two/?a=1", "/three/#part"]
    callbacks = [bipsync.approve(browser.begin(page)) for page in pages]
    for callback, page in reversed(list(zip(callbacks, pages, strict=True))):
        assert browser.open(callback)["Location"] == page


def test_tabs_that_start_at_the_same_moment_without_a_session_keep_their_own_page(
    bipsync: SimulatedBipsync,
) -> None:
    pages = ["/one/", "/two/", "/three/"]
    tabs = [Browser() for _ in pages]
    started = at_the_same_moment(
        *[lambda t=t, p=p: t.begin(p) for t, p in zip(tabs, pages, strict=True)]
    )
    browser = Browser()
    for tab in tabs:
        # One browser takes what all three answers set.
        browser.cookies.update(tab.cookies)
    assert len(browser.trips()) == 3
    assert "sessionid" not in browser.cookies
    for url, page in zip(started, pages, strict=True):
        assert browser.open(bipsync.approve(url))["Location"] == page


def test_an_abandoned_tab_does_not_stop_another(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    declined = bipsync.decline(browser.begin("/one/"))
    other = browser.begin("/two/")
    assert browser.open(declined).status_code == 403
    assert browser.open(bipsync.approve(other))["Location"] == "/two/"


def test_a_browser_never_carries_more_than_five_trips(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    started = [browser.begin(f"/{number}/") for number in range(12)]
    assert len(browser.trips()) == 5
    for number in (7, 11):
        assert browser.open(bipsync.approve(started[number]))["Location"] == f"/{number}/"
    assert reason_of(browser.open(bipsync.approve(started[0]))) == "unknown_state"


@pytest.mark.parametrize("letter", ["a", "é", "ż", "\U0001f600", '"'])
def test_what_a_browser_carries_stays_small_whatever_next_is(
    bipsync: SimulatedBipsync, letter: str
) -> None:
    browser = Browser()
    for _ in range(8):
        started = browser.begin("/" + letter * 990)
        sizes = [len(name) + len(cookie) for name, cookie in browser.trips().items()]
        assert max(sizes) < 4096, "a browser would not keep it"
        assert sum(sizes) < 5000, "a web server would refuse every request"
    assert browser.open(bipsync.approve(started)).status_code == 302


def test_cookies_that_hold_no_trip_make_room_first(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    started = browser.begin("/kept/")
    for number in range(6):
        browser.cookies[f"__Host-bipsync-{number}"] = "rubbish"
    browser.begin()
    assert browser.open(bipsync.approve(started))["Location"] == "/kept/"


def test_a_finished_trip_leaves_no_cookie(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    browser.open(callback)
    assert not browser.trips()


def test_a_failed_trip_leaves_no_cookie(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    browser.open(bipsync.decline(browser.begin()))
    assert not browser.trips()


def test_the_trips_cookie_is_bound_to_this_host_and_to_https(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    browser.begin()
    (name,) = browser.trips()
    cookie = browser.cookies[name]
    assert name.startswith("__Host-bipsync-")
    assert cookie["secure"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    assert cookie["path"] == "/"
    assert not cookie["domain"]


def test_the_cookies_end_keeps_to_the_rules_of_its_name(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    answer = browser.open(bipsync.decline(browser.begin()))
    (ended,) = answer.cookies.values()
    # A browser ignores a __Host- cookie, its deletion included, that is not like this.
    assert (ended["secure"], ended["path"], ended["domain"]) == (True, "/", "")
    assert ended["max-age"] == 0


# --- where to go afterwards

UNSAFE = [
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "https://evil.example/",
    "http://evil.example/",
    "HTTPS://evil.example/",
    "https:evil.example",
    "https:/evil.example",
    "https:///evil.example",
    "http://testserver/downgraded",
    "//testserver@evil.example/",
    "https://testserver@evil.example/",
    "https://testserver.evil.example/",
    "https://evil.example\\@testserver/",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "ftp://testserver/",
    "\\\\evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\x00//evil.example",
    "\x08javascript:alert(1)",
    "\r\n//evil.example",
    "http:[",
    "/" + "a" * 1000,
    "/" + "é" * 200,
    "",
]


@pytest.mark.parametrize("url", UNSAFE)
def test_an_unsafe_next_is_dropped(bipsync: SimulatedBipsync, url: str) -> None:
    browser = Browser()
    response = browser.open(bipsync.approve(browser.begin(url)))
    assert (response.status_code, response["Location"]) == (302, "/")


@pytest.mark.parametrize("url", UNSAFE)
def test_an_unsafe_next_does_not_survive_a_failure(bipsync: SimulatedBipsync, url: str) -> None:
    browser = Browser()
    page = browser.open(bipsync.decline(browser.begin(url))).content.decode()
    assert f'href="{LOGIN}"' in page
    assert "evil" not in page


def test_a_next_that_was_safe_is_looked_at_again_at_the_end(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.ALLOWED_HOSTS = ["old.example", "testserver"]
    browser = Browser(headers={"host": "old.example"})
    bipsync.redirect_uris.add("https://old.example/bipsync/callback/")
    callback = bipsync.approve(browser.begin("https://old.example/reports/"))
    moved = browser.twin()
    assert moved.open(callback)["Location"] == "/"


@pytest.mark.parametrize(
    "url", ["/", "/a/b/?c=d&e=f#g", "/ünï/", "https://testserver/x", "/a\x00b"]
)
def test_a_next_on_this_site_is_kept(bipsync: SimulatedBipsync, url: str) -> None:
    browser = Browser()
    response = browser.open(bipsync.approve(browser.begin(url)))
    assert response["Location"] == quote(url, safe="/:?=&#%")


def test_a_forged_host_header_starts_nothing(bipsync: SimulatedBipsync) -> None:
    browser = Browser(headers={"host": "evil.example"})
    response = browser.get(LOGIN, secure=True)
    assert response.status_code == 400
    assert not browser.trips()
    assert b"evil.example/" not in response.content


# --- the session


def test_the_session_key_changes_and_its_content_stays(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    session = browser.session
    session["basket"] = 3
    session.save()
    planted = session.session_key
    browser.open(bipsync.approve(browser.begin()))
    assert browser.session.session_key != planted
    assert browser.session["basket"] == 3
    assert not Session.objects.filter(pk=planted).exists()


def test_another_persons_session_is_emptied(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, "ada@acme.example")
    session = browser.session
    session["salary"] = 1
    session.save()
    browser.open(bipsync.approve(browser.begin(), user="grace@acme.example"))
    assert "salary" not in browser.session
    assert browser.user_id() == str(User.objects.get(first_name="Grace").pk)


def test_the_next_page_is_not_asked_of_the_provider(bipsync: SimulatedBipsync) -> None:
    started = Browser().begin("/private/?case=4711")
    assert "4711" not in started


def test_only_what_is_needed_is_asked_of_the_provider(bipsync: SimulatedBipsync) -> None:
    asked = parse_qs(urlsplit(Browser().begin()).query)
    assert set(asked) == {
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "state",
        "code_challenge",
        "code_challenge_method",
    }
    assert asked["scope"] == ["users:read"]
    assert asked["redirect_uri"] == ["https://testserver/bipsync/callback/"]


def test_a_trip_keeps_the_scopes_it_was_begun_with(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    settings.BIPSYNC = {**settings.BIPSYNC, "SCOPES": ["research:read"]}
    browser.open(callback)
    assert BipsyncToken.objects.get().scopes == "users:read"


# --- behind a proxy, between hosts


def test_behind_a_proxy_the_redirect_uri_says_that_the_browser_speaks_https(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    """Or a sibling domain could plant the cookie of its own trip, and sign the person in as it."""
    address = f"https://testserver{CALLBACK}"
    settings.BIPSYNC = {**settings.BIPSYNC, "REDIRECT_URI": address}
    client = Browser()
    # TLS ends at the proxy, and nothing tells Django.
    response = client.get(LOGIN)
    assert all(one.key.startswith("__Host-") for one in response.cookies.values())
    assert all(one["secure"] is True for one in response.cookies.values())
    (cookie,) = [one for one in response.cookies.values() if one.key.startswith("__Host-bipsync-")]
    callback = urlsplit(bipsync.approve(response["Location"]))
    victim = Browser()
    victim.cookies[cookie.key.removeprefix("__Host-")] = cookie.value
    assert victim.get(f"{callback.path}?{callback.query}").status_code == 400
    assert client.get(f"{callback.path}?{callback.query}").status_code == 302


def test_behind_a_proxy_no_next_leads_back_to_plain_http(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REDIRECT_URI": f"https://testserver{CALLBACK}"}
    client = Browser()
    for scheme, kept in (("http", False), ("https", True)):
        page = f"{scheme}://testserver/reports/"
        started = client.get(LOGIN, {"next": page})
        callback = urlsplit(bipsync.approve(started["Location"]))
        answer = client.get(f"{callback.path}?{callback.query}")
        assert answer["Location"] == (page if kept else "/")
        connect = client.get("/bipsync/connect/", {"next": page}).content.decode()
        assert (quote(page, safe="") in connect) is kept
        json_answer = client.get(LOGIN, headers={"accept": "application/json", "referer": page})
        assert (quote(page, safe="") in json_answer.json()["sign_in_url"]) is kept
        gone = client.post(LOGOUT, {"next": page})
        assert gone.status_code == (302 if kept else 200)
        assert gone.get("Location") == (page if kept else None)


@pytest.mark.parametrize(("behind", "status"), [(50, 302), (70, 400)])
def test_the_clocks_of_two_hosts_may_differ_by_a_minute(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, behind: int, status: int
) -> None:
    client = Browser()
    response = client.get(LOGIN, secure=True)
    callback = urlsplit(bipsync.approve(response["Location"]))
    later(monkeypatch, -behind)
    answer = client.get(f"{callback.path}?{callback.query}", secure=True)
    assert answer.status_code == status


def test_sign_ins_clear_up_behind_all_where_nothing_else_does(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    for number in range(5):
        SpentState.objects.create(digest=f"old-{number}", expires_at=long_ago)
    monkeypatch.setattr(flow, "_PRUNED_AT_ONCE", 3)
    cleared = []
    for first in "f0":
        digest = first * 64
        monkeypatch.setattr(flow, "_digest", lambda state, digest=digest: digest)
        flow.spend(_begun())
        cleared.append(SpentState.objects.filter(digest__startswith="old").count())
    assert cleared == [5, 2]


def _begun() -> flow.Trip:
    return flow.Trip(
        state=secrets.token_urlsafe(32),
        verifier="v" * 64,
        purpose=flow.SIGN_IN,
        tenant="acme",
        scopes=("users:read",),
        redirect_uri="https://testserver/",
        next="",
        started=time.time(),
    )
