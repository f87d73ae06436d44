"""Sign-ins are bounded for each browser and for each tenant, and nobody else pays for it."""

import hashlib
import os
import re
import uuid
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.core import signing
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache

from bipsync_django import limits
from bipsync_django.conf import get_tenant
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import Html, SimulatedBipsync, Trickle
from tests.browser import CALLBACK, LOGIN, Browser, signed_in, visible_text
from tests.grants import at_once

pytestmark = pytest.mark.django_db(transaction=True)

REDIS = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
KNOWN = "__Host-bipsync_known"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr(limits, "time", self)

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    cache.clear()
    yield Clock(monkeypatch)
    cache.clear()


@pytest.fixture(params=["locmem", "redis"])
def shared_cache(request: pytest.FixtureRequest, settings: Any, clock: Clock) -> None:
    """A cache in which threads meet, and one in which hosts do."""
    backend = {"locmem": "locmem.LocMemCache", "redis": "redis.RedisCache"}[request.param]
    settings.CACHES = {
        "default": {
            "BACKEND": f"django.core.cache.backends.{backend}",
            "LOCATION": REDIS if request.param == "redis" else "limits",
            "KEY_PREFIX": f"limits-{uuid.uuid4().hex}",
        }
    }


def _code_that_is_made_up(bipsync: SimulatedBipsync, browser: Browser | None = None) -> Any:
    """The answer to a trip that was begun in order, and comes back with a code of no server."""
    browser = browser or Browser()
    query = parse_qs(urlsplit(browser.begin()).query)
    answer = {"state": query["state"][0], "code": "def50200" + "0" * 40}
    return browser.open(f"{CALLBACK}?{urlencode(answer)}")


# --- a browser


def test_a_browser_that_is_sent_in_a_circle_is_stopped(
    bipsync: SimulatedBipsync, clock: Clock
) -> None:
    browser = Browser()
    for number in range(limits.MOST_IN_A_BROWSER):
        # By pages that send each other: one that sends back to itself is stopped before.
        away = browser.begin(f"/reports/{number}/")
        assert browser.open(bipsync.approve(away)).status_code == 302
    stopped = browser.get(LOGIN, {"next": "/reports/"}, secure=True)
    assert stopped.status_code == 429
    assert stopped["Retry-After"] == "60"
    assert "too many sign-ins" in visible_text(stopped.content.decode())
    assert stopped.context["retry_url"] == f"{LOGIN}?next=%2Freports%2F"
    clock.now += limits.PERIOD
    assert browser.begin("/reports/")


def test_another_browser_is_not_held_up(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    for _ in range(limits.MOST_IN_A_BROWSER):
        browser.begin()
    assert browser.get(LOGIN, secure=True).status_code == 429
    assert signed_in(bipsync).user_id()


def test_the_count_is_small_and_says_nothing(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    for _ in range(limits.MOST_IN_A_BROWSER):
        browser.begin()
    morsel = browser.cookies["__Host-bipsync_pace"]
    assert len(morsel.value) < 400
    assert morsel["httponly"]
    assert morsel["secure"]
    starts = signing.loads(morsel.value, salt="bipsync_django.limits")
    assert len(starts) == limits.MOST_IN_A_BROWSER


@pytest.mark.parametrize("cookie", ["", "x", "x:y:z", signing.dumps([0], salt="another purpose")])
def test_a_count_that_was_made_up_counts_for_nothing(
    bipsync: SimulatedBipsync, cookie: str
) -> None:
    browser = Browser()
    browser.cookies["__Host-bipsync_pace"] = cookie
    assert browser.begin()


# --- a tenant


def test_codes_that_are_made_up_cost_bipsync_a_bounded_number_of_calls(
    bipsync: SimulatedBipsync, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 5)
    answers = [_code_that_is_made_up(bipsync).status_code for _ in range(8)]
    assert answers == [400] * 5 + [429] * 3
    assert bipsync.calls["code"] == 5
    clock.now += limits.PERIOD
    assert signed_in(bipsync).user_id()


def test_a_stranger_who_uses_the_count_up_keeps_nobody_out_who_was_here_before(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 3)
    browser = signed_in(bipsync)
    assert [_code_that_is_made_up(bipsync).status_code for _ in range(4)] == [400, 400, 400, 429]
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "of people who have never signed in here at acme" in error.getMessage()
    del browser.cookies["sessionid"]
    assert browser.open(bipsync.approve(browser.begin())).status_code == 302
    # A new browser has to wait.
    new = Browser()
    assert new.open(bipsync.approve(new.begin())).status_code == 429


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "x",
        signing.dumps("0" * 32, salt="another purpose"),
        signing.dumps(1, salt="bipsync_django.limits.known"),
    ],
)
def test_a_browser_cannot_say_by_itself_that_it_was_here(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, cookie: str
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1)
    _code_that_is_made_up(bipsync)
    browser = Browser()
    browser.cookies[KNOWN] = cookie
    assert browser.open(bipsync.approve(browser.begin())).status_code == 429


def test_sign_ins_that_succeed_are_not_counted(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 2)
    for _ in range(4):
        assert signed_in(bipsync).user_id()
    assert BipsyncToken.objects.count() == 1


def test_a_provider_that_is_away_is_not_asked_by_everybody(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 2)
    bipsync.fail("token", Html(503), times=None)
    browsers = [Browser() for _ in range(4)]
    answers = [one.open(bipsync.approve(one.begin())).status_code for one in browsers]
    assert answers == [503, 503, 429, 429]


def test_a_copied_cookie_uses_up_the_bound_of_its_own_person_alone(
    bipsync: SimulatedBipsync, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED_OF_A_PERSON", 3)
    ada, grace = signed_in(bipsync, "ada@acme.example"), signed_in(bipsync, "grace@acme.example")
    thief = Browser()
    thief.cookies[KNOWN] = ada.cookies[KNOWN].value
    answers = [_code_that_is_made_up(bipsync, thief).status_code for _ in range(5)]
    assert answers == [400] * 3 + [429] * 2
    for browser, status in ((ada, 429), (grace, 302), (Browser(), 302)):
        browser.cookies.pop("sessionid", None)
        person = "grace@acme.example" if browser is grace else "ada@acme.example"
        assert browser.open(bipsync.approve(browser.begin(), user=person)).status_code == status
    clock.now += limits.PERIOD
    assert ada.open(bipsync.approve(ada.begin(), user="ada@acme.example")).status_code == 302


def test_the_bound_of_a_person_is_theirs_in_all_of_their_browsers(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED_OF_A_PERSON", 3)
    browsers = [signed_in(bipsync) for _ in range(4)]
    answers = [_code_that_is_made_up(bipsync, browser).status_code for browser in browsers]
    assert answers == [400, 400, 400, 429]


def test_a_browser_remembers_the_last_person_and_says_no_name(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, "ada@acme.example")
    seen = []
    for person in ("ada@acme.example", "grace@acme.example"):
        browser.open(bipsync.approve(browser.begin(), user=person))
        morsel = browser.cookies[KNOWN]
        assert morsel["secure"]
        assert morsel["httponly"]
        assert morsel["samesite"] == "Lax"
        pseudonym = signing.loads(morsel.value, salt="bipsync_django.limits.known")
        assert re.fullmatch(r"[0-9a-f]{32}", pseudonym)
        assert pseudonym not in {
            digest(str(browser.user_id()).encode()).hexdigest()[:32]
            for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256)
        }, "who knows the primary keys cannot tell whose it is"
        seen.append(pseudonym)
    assert len(set(seen)) == 2


def test_many_at_once_do_not_pass_the_bound(
    bipsync: SimulatedBipsync, shared_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 5)
    bipsync.fail("token", Trickle(0.02), times=None)
    answers = at_once(20, lambda number: _code_that_is_made_up(bipsync).status_code)
    assert Counter(answers) == {400: 5, 429: 15}
    assert bipsync.calls["code"] == 5


def test_many_who_arrive_at_once_leave_all_places_free(
    bipsync: SimulatedBipsync, shared_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 12)
    bipsync.fail("token", Trickle(0.0005), times=None)
    browsers = [Browser() for _ in range(12)]
    callbacks = [bipsync.approve(browser.begin()) for browser in browsers]
    answers = at_once(12, lambda number: browsers[number].open(callbacks[number]).status_code)
    assert Counter(answers) == {302: 12}
    bipsync.clear_failures()
    # Nothing was used up: as many can fail within the same minute as at its beginning.
    answers = [_code_that_is_made_up(bipsync).status_code for _ in range(13)]
    assert Counter(answers) == {400: 12, 429: 1}


def test_who_was_turned_away_has_no_place(
    bipsync: SimulatedBipsync, shared_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1)
    place = limits.place(get_tenant(), None)
    with place:
        for _ in range(5):
            assert _code_that_is_made_up(bipsync).status_code == 429
    assert signed_in(bipsync).user_id()


def test_a_sign_in_that_never_left_this_site_is_not_counted(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1)
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, "CLIENT_SECRET": "env:BIPSYNC_SECRET_THAT_IS_NOT_SET"}
    assert [_code_that_is_made_up(bipsync).status_code for _ in range(3)] == [503] * 3
    settings.BIPSYNC = right
    assert signed_in(bipsync).user_id()


def test_reaching_a_bound_is_one_line_in_the_log(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1)
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED_OF_A_PERSON", 1)
    ada = signed_in(bipsync)
    for browser in (None, ada):
        for _ in range(4):
            _code_that_is_made_up(bipsync, browser)
    said = [record for record in caplog.records if record.name == "bipsync_django.limits"]
    assert [record.levelname for record in said] == ["ERROR", "WARNING"]
    assert "of one person at acme" in said[1].getMessage()


class NoCache(LocMemCache):
    """A cache whose server is gone."""

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no cache")

    get = add = incr = decr = set = _fail


class CacheThatStops(LocMemCache):
    """A cache whose server is gone by the time that a place is given back."""

    def decr(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no cache")


class CacheThatForgets(LocMemCache):
    """A cache that is too small for what is put into it."""

    def incr(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no such key")

    decr = incr


@pytest.mark.parametrize("broken", [NoCache, CacheThatStops, CacheThatForgets])
def test_a_cache_that_fails_stops_nobody(
    bipsync: SimulatedBipsync, settings: Any, broken: type[LocMemCache]
) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.{broken.__name__}"}}
    for _ in range(3):
        assert _code_that_is_made_up(bipsync).status_code == 400
        assert signed_in(bipsync).user_id()


def test_a_cache_that_fails_is_in_the_log(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.NoCache"}}
    assert signed_in(bipsync).user_id()
    assert "sign-ins are not limited" in caplog.text
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.CacheThatStops"}}
    assert signed_in(bipsync).user_id()
    assert "a place for a sign-in is not given back" in caplog.text
