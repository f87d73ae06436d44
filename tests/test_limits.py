"""Sign-ins are bounded for each browser and for each tenant, and nobody else pays for it."""

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.core import signing
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache

from bipsync_django import limits
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import Html, SimulatedBipsync
from tests.browser import CALLBACK, LOGIN, Browser, signed_in, visible_text

pytestmark = pytest.mark.django_db(transaction=True)


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


def _code_that_is_made_up(bipsync: SimulatedBipsync, tenant: str = "") -> Any:
    """The answer to a trip that was begun in order, and comes back with a code of no server."""
    browser = Browser()
    query = parse_qs(urlsplit(browser.begin()).query)
    answer = {"state": query["state"][0], "code": "def50200" + "0" * 40}
    return browser.open(f"{CALLBACK}?{urlencode(answer)}")


# --- a browser


def test_a_browser_that_is_sent_in_a_circle_is_stopped(
    bipsync: SimulatedBipsync, clock: Clock
) -> None:
    browser = Browser()
    for number in range(limits.MOST_IN_A_BROWSER):
        # Each time for another page: for one, a person who has just come from here is refused.
        assert browser.open(bipsync.approve(browser.begin(f"/{number}/"))).status_code == 302
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
    assert "people who have never signed in here are turned away" in error.getMessage()
    del browser.cookies["sessionid"]
    assert browser.open(bipsync.approve(browser.begin())).status_code == 302
    # A new browser has to wait.
    new = Browser()
    assert new.open(bipsync.approve(new.begin())).status_code == 429


@pytest.mark.parametrize("cookie", ["", "x", signing.dumps(1, salt="another purpose")])
def test_a_browser_cannot_say_by_itself_that_it_was_here(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, cookie: str
) -> None:
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1)
    _code_that_is_made_up(bipsync)
    browser = Browser()
    browser.cookies["__Host-bipsync_known"] = cookie
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


class NoCache(LocMemCache):
    """A cache whose server is gone."""

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no cache")

    get = add = incr = set = _fail


def test_a_cache_that_fails_limits_nobody(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.NoCache"}}
    assert _code_that_is_made_up(bipsync).status_code == 400
    assert signed_in(bipsync).user_id()
    assert "sign-ins are not limited" in caplog.text
    assert "a sign-in is not counted" in caplog.text


def test_a_count_that_runs_out_in_between_is_forgotten(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "add", lambda *args, **kwargs: False)
    assert _code_that_is_made_up(bipsync).status_code == 400
