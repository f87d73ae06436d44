"""A session goes the way of the grant that it came from."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.core import signing
from django.core.cache import cache, caches
from django.db import connection
from django.test import AsyncClient
from django.utils import timezone

from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.browser import LOGIN, LOGOUT, Browser, signed_in
from tests.grants import expire

pytestmark = pytest.mark.django_db(transaction=True)

ADA, GRACE = "ada@acme.example", "grace@acme.example"
GREETING = "/greeting/"
PROGRAMS: dict[str, dict[str, str]] = {
    "Accept": {"accept": "application/json"},
    "any Accept": {"accept": "*/*"},
    "fetch()": {"sec-fetch-mode": "cors", "accept": "text/html"},
    "an image": {"sec-fetch-mode": "no-cors"},
    "X-Requested-With": {"x-requested-with": "XMLHttpRequest", "accept": "text/html"},
}
PEOPLE: dict[str, dict[str, str]] = {
    "plain http": {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    "https": {"sec-fetch-mode": "navigate", "accept": "text/html"},
    "no Accept": {},
}
JSON = PROGRAMS["Accept"]


@pytest.fixture
def at_once(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}


@pytest.fixture
def browser(bipsync: SimulatedBipsync) -> Browser:
    return signed_in(bipsync, ADA)


def withdraw(bipsync: SimulatedBipsync) -> None:
    """Let Ada withdraw her consent, and the next refresh find that out."""
    bipsync.withdraw(ADA)
    token = BipsyncToken.objects.get(user__first_name="Ada")
    lifecycle.refresh_if_due(expire(token).pk)
    token.refresh_from_db()
    assert token.status == "needs_sign_in"


def disconnect() -> None:
    lifecycle.disconnect(BipsyncToken.objects.get())


def delete() -> None:
    BipsyncToken.objects.all().delete()


def deactivate() -> None:
    User.objects.update(is_active=False)


def hand_over() -> None:
    BipsyncToken.objects.update(user=User.objects.create_user("somebody"))


def orphan() -> None:
    BipsyncToken.objects.update(user=None)


def end_sessions() -> None:
    lifecycle.end_sessions(BipsyncToken.objects.get())


def end_sessions_of_somebody_to_sign_in() -> None:
    BipsyncToken.objects.update(status="needs_sign_in")
    end_sessions()


ENDS: list[Callable[[], None]] = [
    disconnect,
    delete,
    deactivate,
    hand_over,
    orphan,
    end_sessions,
    end_sessions_of_somebody_to_sign_in,
]
ends = pytest.mark.parametrize("end", ENDS)
programs = pytest.mark.parametrize("headers", PROGRAMS.values(), ids=PROGRAMS)
people = pytest.mark.parametrize("headers", PEOPLE.values(), ids=PEOPLE)


def text(response: Any) -> str:
    return str(response.content.decode())


def passes() -> set[str]:
    """The names under which the cache remembers that a session was fine."""
    local: Any = caches["default"]
    return {name.split(":", 2)[2] for name in local._cache if "bipsync_django.session" in name}


# --- the grant works


def test_a_session_knows_the_row_and_the_moment_it_came_from(browser: Browser) -> None:
    token = BipsyncToken.objects.get()
    assert token.signed_in_at is not None
    stamped = browser.session["_bipsync_session"]
    assert (stamped["token"], stamped["at"]) == (token.pk, token.signed_in_at.timestamp())


def test_a_check_costs_one_query_and_the_next_visit_none(
    browser: Browser, settings: Any, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(3):  # the session, the row with its person, the user
        assert text(browser.open("/")) == "Signed in as ada"
    for _ in range(2):
        with django_assert_num_queries(2):
            assert text(browser.open("/")) == "Signed in as ada"
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "bipsync" not in name]
    with django_assert_num_queries(2):
        assert browser.twin().open("/").status_code == 200


@pytest.mark.usefixtures("at_once")
def test_an_interval_of_zero_checks_every_visit(
    browser: Browser, django_assert_num_queries: Any
) -> None:
    for _ in range(2):
        with django_assert_num_queries(3):
            browser.open("/")


def test_a_visitors_page_does_not_vary_by_cookie() -> None:
    assert "Cookie" not in Browser().open("/welcome/").get("Vary", "")
    anonymous = Browser()
    assert text(anonymous.open(GREETING)) == "Hello visitor"
    assert not anonymous.cookies


# --- the grant needs a sign-in


@people
def test_a_page_view_goes_through_sign_in_and_comes_back(
    bipsync: SimulatedBipsync, browser: Browser, headers: dict[str, str]
) -> None:
    withdraw(bipsync)
    page = "/?year=2024&q=%C5%BC"
    response = browser.open(page, headers=headers)
    assert (response.status_code, response["Location"]) == (
        302,
        f"{LOGIN}?next={quote(page, safe='')}",
    )
    assert "no-store" in response["Cache-Control"]
    started = browser.open(response["Location"])
    back = browser.open(bipsync.approve(started["Location"], user=ADA))
    assert back["Location"] == page
    assert text(browser.open(page)) == "Signed in as ada"


def test_a_session_that_waits_for_a_sign_in_is_kept(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    session = browser.session
    session["basket"] = 3
    session.save()
    withdraw(bipsync)
    assert browser.open("/").status_code == 302
    browser.open(bipsync.approve(browser.begin(), user=ADA))
    assert browser.session["basket"] == 3


@programs
@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "head"])
def test_a_program_is_told_where_to_sign_in_and_not_redirected(
    bipsync: SimulatedBipsync, browser: Browser, headers: dict[str, str], method: str
) -> None:
    withdraw(bipsync)
    headers = {**headers, "referer": "https://testserver/board/?tab=2"}
    response = getattr(browser, method)(GREETING, secure=True, headers=headers)
    assert response.status_code == 401
    assert "Location" not in response
    assert response["WWW-Authenticate"] == "Session"
    assert "no-store" in response["Cache-Control"]
    if method != "head":
        assert response.json() == {
            "error": "sign_in_required",
            "sign_in_url": f"{LOGIN}?next={quote('https://testserver/board/?tab=2', safe='')}",
        }
    assert browser.user_id() is not None


def test_a_program_that_posts_json_is_told_too(bipsync: SimulatedBipsync, browser: Browser) -> None:
    withdraw(bipsync)
    response = browser.post(GREETING, "{}", content_type="application/json", secure=True)
    assert (response.status_code, response.json()["sign_in_url"]) == (401, LOGIN)


def test_a_program_is_not_led_to_another_site(bipsync: SimulatedBipsync, browser: Browser) -> None:
    withdraw(bipsync)
    headers = {**JSON, "referer": "https://evil.example/"}
    assert browser.open(GREETING, headers=headers).json()["sign_in_url"] == LOGIN


def test_a_grant_that_works_again_is_noticed_at_once(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    withdraw(bipsync)
    assert browser.open("/").status_code == 302
    BipsyncToken.objects.update(status="active")  # as a late answer to a refresh does
    assert browser.open("/").status_code == 200


def test_who_declines_is_told_so_and_not_sent_round_again(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    withdraw(bipsync)
    started = browser.open(browser.open("/")["Location"])
    page = browser.open(bipsync.decline(started["Location"]))
    assert (page.status_code, 'data-reason="declined"' in text(page)) == (403, True)


def test_who_signs_in_as_somebody_else_comes_to_the_page_as_that_person(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    withdraw(bipsync)
    started = browser.open(browser.open("/")["Location"])
    back = browser.open(bipsync.approve(started["Location"], user=GRACE))
    assert text(browser.open(back["Location"])) == "Signed in as grace"


def test_an_outage_is_a_page_and_no_loop(bipsync: SimulatedBipsync, browser: Browser) -> None:
    withdraw(bipsync)
    started = browser.open(browser.open("/")["Location"])
    bipsync.fail("token", Answer(503, b""))
    page = browser.open(bipsync.approve(started["Location"], user=ADA))
    assert (page.status_code, 'data-reason="unavailable"' in text(page)) == (503, True)


# --- the session is over


@ends
@people
def test_a_session_ends_and_the_sites_own_rules_decide(
    browser: Browser, end: Callable[[], None], headers: dict[str, str]
) -> None:
    end()
    assert text(browser.open(GREETING, headers=headers)) == "Hello visitor"
    assert browser.user_id() is None


@ends
def test_a_page_behind_a_login_asks_for_one(browser: Browser, end: Callable[[], None]) -> None:
    end()
    assert browser.open("/")["Location"] == f"{LOGIN}?next=/"
    assert browser.user_id() is None


@ends
@programs
def test_a_program_is_told_that_the_session_is_over(
    browser: Browser, end: Callable[[], None], headers: dict[str, str]
) -> None:
    end()
    response = browser.open(GREETING, headers=headers)
    assert (response.status_code, response.json()["error"]) == (401, "sign_in_required")
    assert browser.user_id() is None


@ends
@pytest.mark.usefixtures("at_once")
def test_with_an_interval_of_zero_a_session_ends_at_once(
    browser: Browser, end: Callable[[], None]
) -> None:
    assert text(browser.open(GREETING)) == "Hello ada"
    end()
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_behind_a_login_wall_the_session_ends_before_the_view(
    browser: Browser, settings: Any
) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    twin = browser.twin()
    assert text(twin.open(GREETING)) == "Hello ada"
    cache.clear()
    disconnect()
    assert twin.open(GREETING).status_code == 302
    assert twin.user_id() is None


def test_sessions_that_began_later_go_on(bipsync: SimulatedBipsync, browser: Browser) -> None:
    end_sessions()
    later = signed_in(bipsync, ADA)
    assert text(later.open("/")) == "Signed in as ada"
    # And its pass is no pass for the session that is over.
    assert text(browser.open(GREETING)) == "Hello visitor"
    assert text(later.open("/")) == "Signed in as ada"


def test_a_sign_in_in_the_same_browser_begins_anew(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    end_sessions()
    browser.open(bipsync.approve(browser.begin(), user=ADA))
    assert text(browser.open("/")) == "Signed in as ada"


def test_other_peoples_sessions_go_on(bipsync: SimulatedBipsync, browser: Browser) -> None:
    grace = signed_in(bipsync, GRACE)
    lifecycle.disconnect(BipsyncToken.objects.get(user__first_name="Ada"))
    assert text(grace.open(GREETING)) == "Hello grace"
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_an_ended_session_is_in_the_log(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    disconnect()
    with caplog.at_level(logging.INFO):
        browser.open(GREETING)
    assert f"The session of user {User.objects.get().pk} has ended" in caplog.text


# --- what is remembered


@ends
def test_a_session_that_was_fine_is_looked_at_again_after_the_interval(
    browser: Browser, end: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert text(browser.open(GREETING)) == "Hello ada"
    end()
    later = SimpleNamespace(time=lambda: time.time() + 62)
    monkeypatch.setattr(signing, "time", later)
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_within_the_interval_nothing_is_asked(browser: Browser) -> None:
    browser.open(GREETING)
    disconnect()
    assert text(browser.open(GREETING)) == "Hello ada"
    cache.clear()
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_a_shorter_interval_counts_for_passes_of_before(
    browser: Browser, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 3600}
    browser.open(GREETING)
    disconnect()
    monkeypatch.setattr(signing, "time", SimpleNamespace(time=lambda: time.time() + 120))
    assert text(browser.open(GREETING)) == "Hello ada"
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 60}
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_an_interval_of_zero_counts_for_passes_of_before(browser: Browser, settings: Any) -> None:
    browser.open(GREETING)
    disconnect()
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_only_good_news_is_remembered(bipsync: SimulatedBipsync, browser: Browser) -> None:
    withdraw(bipsync)
    browser.open("/")
    disconnect()
    browser.open("/")
    assert not passes()


@pytest.mark.parametrize("value", [True, "x", 7, b"\x00", {"token": 1}])
def test_a_pass_that_somebody_wrote_into_the_cache_is_not_believed(
    browser: Browser, value: object
) -> None:
    browser.open(GREETING)
    (name,) = passes()
    disconnect()
    cache.set(name, value)
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_one_sessions_pass_does_not_serve_another(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    browser.open(GREETING)
    (first,) = passes()
    grace = signed_in(bipsync, GRACE)
    grace.open(GREETING)
    (second,) = passes() - {first}
    lifecycle.disconnect(BipsyncToken.objects.get(user__first_name="Ada"))
    cache.set(first, cache.get(second))
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_a_pass_does_not_serve_another_person_in_the_same_session(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    assert text(browser.open(GREETING)) == "Hello ada"
    grace = signed_in(bipsync, GRACE)
    session = browser.session
    # As code that impersonates people may leave it, with Ada's stamp.
    for key in (SESSION_KEY, HASH_SESSION_KEY):
        session[key] = grace.session[key]
    session.save()
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_a_cache_that_fails_means_to_check_now(
    browser: Browser, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CACHES = {"default": {"BACKEND": "tests.test_middleware.BrokenCache"}}
    for _ in range(2):
        assert text(browser.open(GREETING)) == "Hello ada"
    assert "The cache failed (ConnectionError)" in caplog.text
    disconnect()
    assert text(browser.open(GREETING)) == "Hello visitor"


def test_a_database_that_fails_keeps_nobody_out(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    table = BipsyncToken._meta.db_table
    disconnect()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        assert text(browser.open(GREETING)) == "Hello ada"
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")
    assert "A session could not be checked (OperationalError)" in caplog.text
    # It was no pass.
    assert text(browser.open(GREETING)) == "Hello visitor"


# --- who and what is left alone


def test_sign_in_sign_out_and_public_pages_work_whatever_the_grant(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    withdraw(bipsync)
    assert text(browser.open("/welcome/")) == "Welcome"
    assert browser.open(LOGIN)["Location"].startswith(bipsync.authorize_url)
    assert browser.open("/admin/login/").status_code == 200
    assert browser.post(LOGOUT, secure=True).status_code == 200
    assert browser.user_id() is None


def test_a_mark_that_a_framework_put_on_its_views_keeps_no_session_alive(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    """Django REST framework marks all its views, and then asks the session by itself."""
    withdraw(bipsync)
    assert browser.open("/welcome/", headers=JSON).status_code == 401
    disconnect()
    assert browser.open("/welcome/", headers=JSON).status_code == 401
    assert browser.user_id() is None
    assert text(browser.open("/welcome/")) == "Welcome"


def test_who_signed_in_with_a_password_does_not_depend_on_a_grant(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    root = User.objects.create_user("root", password="pw")
    BipsyncToken.objects.update(user=root, sessions_valid_after=timezone.now())
    disconnect()
    client = Browser()
    assert client.login(username="root", password="pw")
    assert text(client.open("/")) == "Signed in as root"


def test_who_signs_in_again_with_a_password_depends_on_it_alone(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    user = User.objects.get()
    user.set_password("pw")
    user.is_staff = True
    user.save()
    browser.open(bipsync.approve(browser.begin(), user=ADA))
    credentials = {"username": "ada", "password": "pw", "next": "/"}
    assert browser.post("/admin/login/", credentials, secure=True).status_code == 302
    assert "_bipsync_session" in browser.session
    disconnect()
    assert text(browser.open("/")) == "Signed in as ada"


# --- asynchronously


def aget(browser: Browser, path: str, **headers: str) -> Any:
    client = AsyncClient()
    client.cookies = browser.cookies
    return async_to_sync(client.get)(path, secure=True, headers=headers)


@pytest.mark.parametrize("path", [GREETING, "/agreeting/"])
def test_it_works_under_asgi(bipsync: SimulatedBipsync, browser: Browser, path: str) -> None:
    assert text(aget(browser, path)) == "Hello ada"
    cache.clear()
    withdraw(bipsync)
    assert aget(browser, path)["Location"] == f"{LOGIN}?next={quote(path, safe='')}"
    assert aget(browser, path, accept="application/json").status_code == 401
    disconnect()
    assert text(aget(browser, path)) == "Hello visitor"
    assert browser.user_id() is None


def test_an_asynchronous_view_never_sees_the_person_of_an_ended_session(
    browser: Browser, settings: Any
) -> None:
    # A middleware in front of ours has asked who it is already.
    ours = settings.MIDDLEWARE.index("bipsync_django.middleware.BipsyncSessionMiddleware")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE]
    settings.MIDDLEWARE.insert(ours, f"{__name__}.curious")
    assert text(aget(browser, "/agreeting/")) == "Hello ada"
    cache.clear()
    disconnect()
    assert text(aget(browser, "/agreeting/")) == "Hello visitor"


# --- on every database


def test_sessions_are_checked_where_sign_ins_are_written(
    database: str, bipsync: SimulatedBipsync
) -> None:
    browser = signed_in(bipsync, ADA)
    assert text(browser.open(GREETING)) == "Hello ada"
    cache.clear()
    withdraw(bipsync)
    assert browser.open("/").status_code == 302
    browser.open(bipsync.approve(browser.begin(), user=ADA))
    assert text(browser.open(GREETING)) == "Hello ada"
    cache.clear()
    BipsyncToken.objects.update(
        sessions_valid_after=timezone.now() - timedelta(days=1),
    )
    assert text(browser.open(GREETING)) == "Hello ada"
    cache.clear()
    end_sessions()
    assert text(browser.open(GREETING)) == "Hello visitor"


# --- doubles


class BrokenCache:
    """A cache server that is away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("away")

    def close(self) -> None:
        pass


def curious(get_response: Any) -> Any:
    """A middleware that wants to know who comes."""

    async def middleware(request: Any) -> Any:
        await request.auser()
        return await get_response(request)

    middleware._is_coroutine = True  # type: ignore[attr-defined]
    return middleware


curious.async_capable = True  # type: ignore[attr-defined]
curious.sync_capable = False  # type: ignore[attr-defined]
