"""A session whose grant has ended is nobody's, whatever is asked by it and however."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY, get_user
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.http import HttpRequest
from django.utils import timezone
from playwright.sync_api import BrowserContext, expect

from bipsync_django import lifecycle
from bipsync_django.backends import BipsyncBackend
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.browser import LOGIN, LOGOUT, Browser, links, signed_in, visible_text
from tests.grants import expire
from tests.portal import allow
from tests.test_middleware import ENDS, PEOPLE, PROGRAMS, withdraw

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "ada@acme.example"
OURS = "bipsync_django.backends.BipsyncBackend"
METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "trace"]
PAGES = {
    "a page of the site's": "/greeting/",
    "an asynchronous one": "/agreeting/",
    "one that is marked as everybody's": "/open-house/",
    "one behind a login": "/note/",
    "one that needs Bipsync": "/research/",
    "one behind a permission": "/reports/",
    "the admin's": "/admin/auth/user/add/",
    "one that is not there": "/nowhere/",
    "our own": "/bipsync/connection/",
    "to connect": "/bipsync/connect/",
    "to disconnect": "/bipsync/disconnect/acme/",
    "service accounts": "/admin/bipsync_django/bipsynctoken/service/",
    "an action": "/admin/bipsync_django/bipsynctoken/do/disconnect/?tokens=1",
}

seen: list[tuple[object, ...]] = []


def witness(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware behind ours that notes who is signed in, by each way there is to ask."""

    def middleware(request: HttpRequest) -> Any:
        for moment in (False, True):
            response = get_response(request) if moment else None
            # After the answer the session may be back in its place; nobody looks at it then.
            seen.append((request.user.pk, moment or get_user(request).pk))
            if not moment:
                seen.append((request.session.get(SESSION_KEY),))
        return response

    return middleware


@pytest.fixture
def _witness(settings: Any) -> None:
    seen.clear()
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.witness"]


@pytest.fixture
def ada(bipsync: SimulatedBipsync) -> Browser:
    """Ada, who may do everything here."""
    browser = signed_in(bipsync, ADA)
    User.objects.update(is_staff=True, is_superuser=True)
    return browser


def lapse(bipsync: SimulatedBipsync, end: Callable[[], None] | None) -> None:
    if end is None:
        withdraw(bipsync)
    else:
        end()
    cache.clear()


WAYS = pytest.mark.parametrize("end", [None, *ENDS], ids=["withdraw", *(e.__name__ for e in ENDS)])
# Each way in which one is told from the other: tests/test_middleware.py tries the rest.
EVERYBODY = [PEOPLE["plain http"], PEOPLE["https"], PROGRAMS["Accept"], PROGRAMS["fetch()"]]


@WAYS
@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
@pytest.mark.usefixtures("_witness")
def test_nobody_is_signed_in_whatever_is_asked(
    bipsync: SimulatedBipsync, ada: Browser, path: str, end: Callable[[], None] | None
) -> None:
    before = (User.objects.count(), BipsyncToken.objects.count())
    lapse(bipsync, end)
    session = Session.objects.get(pk=ada.cookies["sessionid"].value)
    for method in METHODS:
        for headers in EVERYBODY:
            # The session of before, for each request once more.
            session.save()
            browser = Browser()
            browser.cookies["sessionid"] = session.pk
            seen.clear()
            arguments: dict[str, Any] = {"secure": True, "headers": headers}
            if method in {"post", "put", "patch"}:
                arguments |= {"data": "note=x", "content_type": "application/x-www-form-urlencoded"}
            response = getattr(browser, method)(path, **arguments)
            told = (method, headers, response.status_code)
            assert {who for found in seen for who in found} <= {None, True}, told
            assert b"ada" not in response.content, told
            assert b"Saved" not in response.content, told
    assert (User.objects.count(), BipsyncToken.objects.count()) in {before, (before[0], 0)} or (
        end is not None and end.__name__ == "hand_over"
    )


@WAYS
def test_no_superuser_is_made_by_a_form_of_the_admin(
    bipsync: SimulatedBipsync, ada: Browser, end: Callable[[], None] | None
) -> None:
    strict = Browser(enforce_csrf_checks=True)
    strict.cookies = ada.cookies
    page = strict.open("/admin/auth/user/add/")
    token = strict.cookies["csrftoken"].value
    assert page.status_code == 200
    form = {"username": "evil", "password1": "tr0ubadour", "password2": "tr0ubadour"}
    form["csrfmiddlewaretoken"] = token
    lapse(bipsync, end)
    count = User.objects.count()
    answer = strict.post(
        "/admin/auth/user/add/", form, secure=True, headers={"referer": "https://testserver/"}
    )
    assert (answer.status_code, answer.context["reason"]) == (403, "sign_in_again")
    assert User.objects.count() == count


@WAYS
def test_a_form_is_answered_with_a_page_that_says_how_it_is_kept(
    bipsync: SimulatedBipsync,
    ada: Browser,
    end: Callable[[], None] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lapse(bipsync, end)
    for headers in PEOPLE.values():
        twin = ada.twin()
        answer = twin.post("/note/", {"note": "all my work"}, secure=True, headers=headers)
        if answer.status_code == 302 and end is not None:
            break  # the session is over by now, and this is a visitor
        assert answer.status_code == 403
        assert "no-store" in answer["Cache-Control"]
        page = answer.content.decode()
        assert "go back to your form, and send it once more" in visible_text(page)
        assert 'target="_blank" rel="noopener"' in page
        assert links(page) == [LOGIN]
    assert "A form of user" in caplog.text
    assert "all my work" not in caplog.text


@pytest.mark.parametrize("path", ["/greeting/", "/note/", "/research/", "/bipsync/connection/"])
def test_a_program_gets_401_by_any_method(
    bipsync: SimulatedBipsync, ada: Browser, path: str
) -> None:
    withdraw(bipsync)
    for method in METHODS:
        answer = getattr(ada, method)(path, secure=True, headers=PROGRAMS["Accept"])
        assert answer.status_code == 401
        assert answer["WWW-Authenticate"] == "Session"


def test_a_session_that_waits_is_not_a_visitors_but_comes_back(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    session = ada.session
    session["basket"] = 3
    session.save()
    key = ada.cookies["sessionid"].value
    withdraw(bipsync)
    assert ada.open("/open-house/").content == b"Hello visitor"
    assert ada.cookies["sessionid"].value == key
    assert ada.session["basket"] == 3
    BipsyncToken.objects.update(status="active")  # as a late answer to a refresh does
    assert ada.open("/open-house/").content == b"Hello ada"


def test_who_signs_in_meanwhile_takes_nothing_over(
    bipsync: SimulatedBipsync, ada: Browser, settings: Any
) -> None:
    session = ada.session
    session["basket"] = 3
    session.save()
    old = ada.cookies["sessionid"].value
    User.objects.create_superuser("grace", password="pw")
    withdraw(bipsync)
    credentials = {"username": "grace", "password": "pw", "next": "/"}
    assert ada.post("/admin/login/", credentials, secure=True).status_code == 302
    assert ada.open("/greeting/").content == b"Hello grace"
    assert "basket" not in ada.session
    assert not Session.objects.filter(pk=old).exists()


def test_the_same_person_keeps_their_session_by_a_password_too(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    user = User.objects.get()
    user.set_password("pw")
    user.save()
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    session = ada.session
    session["basket"] = 3
    session.save()
    withdraw(bipsync)
    credentials = {"username": "ada", "password": "pw", "next": "/"}
    assert ada.post("/admin/login/", credentials, secure=True).status_code == 302
    assert ada.open("/greeting/").content == b"Hello ada"
    assert ada.session["basket"] == 3


@pytest.mark.parametrize("path", [LOGOUT, "/admin/logout/"])
def test_a_person_can_sign_out_of_a_session_that_waits(
    bipsync: SimulatedBipsync, ada: Browser, path: str
) -> None:
    withdraw(bipsync)
    key = ada.cookies["sessionid"].value
    assert ada.post(path, secure=True).status_code in {200, 302}
    assert not Session.objects.filter(pk=key).exists()


def test_a_person_who_declines_is_out(bipsync: SimulatedBipsync, ada: Browser) -> None:
    withdraw(bipsync)
    key = ada.cookies["sessionid"].value
    started = ada.open(ada.open("/note/")["Location"])
    assert ada.open(bipsync.decline(started["Location"])).status_code == 403
    assert not Session.objects.filter(pk=key).exists()
    BipsyncToken.objects.update(status="active")
    assert ada.open("/greeting/").content == b"Hello visitor"


def test_a_page_that_needs_more_still_knows_whose_grant_it_was(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    ada.open(bipsync.approve(ada.open("/research/")["Location"], user=ADA))
    session = ada.session
    del session["_bipsync_returns"]  # as if it were a minute ago
    session.save()
    withdraw(bipsync)
    started = ada.open("/research/")["Location"]
    assert "research%3Aread" in started
    # It is Ada's trip: nobody else's account ends it.
    refused = ada.open(bipsync.approve(started, user="grace@acme.example"))
    assert (refused.status_code, refused.context["reason"]) == (403, "other_account")
    assert (
        ada.open(bipsync.approve(ada.open("/research/")["Location"], user=ADA)).status_code == 302
    )
    assert b"research notes" in ada.open("/research/").content


def test_a_trip_to_connect_ends_with_the_session(bipsync: SimulatedBipsync, ada: Browser) -> None:
    leaving = ada.post("/bipsync/connect/", secure=True)
    withdraw(bipsync)
    url = str(leaving["Refresh"]).removeprefix("0; url=")
    answer = ada.open(bipsync.approve(url, user="grace@acme.example"))
    assert (answer.status_code, answer.context["reason"]) == (403, "other_person")
    assert BipsyncToken.objects.count() == 1


# --- sessions that other code begins


@pytest.fixture
def handed(bipsync: SimulatedBipsync, ada: Browser) -> Browser:
    """A browser with a session of Ada's that the site's own code began."""
    browser = Browser()
    browser.force_login(User.objects.get(), OURS)
    assert browser.open("/greeting/").content == b"Hello ada"
    return browser


def forget_how_it_began(browser: Browser) -> None:
    """Let the session be one that Django's signal told nobody of."""
    session = browser.session
    del session["_bipsync_session"]
    session.save()


@WAYS
@pytest.mark.parametrize("is_noted", [True, False])
def test_a_session_that_login_began_ends_with_the_grant(
    bipsync: SimulatedBipsync, handed: Browser, end: Callable[[], None] | None, *, is_noted: bool
) -> None:
    if not is_noted:
        forget_how_it_began(handed)
    cache.clear()
    assert handed.open("/greeting/").content == b"Hello ada"
    lapse(bipsync, end)
    assert handed.open("/open-house/").content == b"Hello visitor"


def test_with_two_accounts_one_that_works_is_enough(
    bipsync: SimulatedBipsync, handed: Browser, settings: Any
) -> None:
    acme = {**settings.BIPSYNC}
    shared = {name: acme.pop(name) for name in ("SCOPES", "ALLOW_INSECURE_LOOPBACK")}
    del acme["CLIENT"]
    globex = {"CLIENT_ID": "portal", "CLIENT_SECRET": "secret"}
    settings.BIPSYNC = {**shared, "TENANTS": {"acme": acme, "globex": globex}}
    forget_how_it_began(handed)
    row = BipsyncToken.objects.get()
    second = BipsyncToken.objects.create(
        tenant="globex", subject="s", user=row.user, signed_in_at=timezone.now(), status="active"
    )
    BipsyncToken.objects.filter(pk=row.pk).update(status="needs_sign_in")
    cache.clear()
    assert handed.open("/open-house/").content == b"Hello ada"
    BipsyncToken.objects.filter(pk=second.pk).update(status="disconnected")
    cache.clear()
    assert handed.open("/open-house/").content == b"Hello visitor"


def test_a_user_without_an_account_depends_on_none(client: Any) -> None:
    """As in the tests of a site, which sign in with Django's ``force_login()``."""
    client.force_login(User.objects.create_user("temp"))
    assert client.session[BACKEND_SESSION_KEY] == OURS
    assert client.get("/greeting/").content == b"Hello temp"


@pytest.mark.parametrize(
    "stored",
    [
        {"hijack_history": ["{pk}"]},
        {"exit_users_pk": [["{pk}", OURS]]},
        {"loginas_from_user": "{pk}:1abcde:signature"},
    ],
    ids=["django-hijack", "django-su", "django-loginas"],
)
def test_a_session_of_somebody_who_acts_as_another_ends_with_their_own_grant(
    bipsync: SimulatedBipsync, ada: Browser, stored: dict[str, Any]
) -> None:
    other = User.objects.create_user("other")
    browser = Browser()
    browser.force_login(other, OURS)
    pk = str(User.objects.get(username="ada").pk)
    session = browser.session
    for name, value in stored.items():
        session[name] = _filled(value, pk)
    session.save()
    assert browser.open("/greeting/").content == b"Hello other"
    lapse(bipsync, None)
    assert browser.open("/open-house/").content == b"Hello visitor"


@pytest.mark.parametrize("path", ["/bipsync/connect/", "/bipsync/connect/acme/"])
def test_nobody_connects_an_account_while_they_act_as_another(
    bipsync: SimulatedBipsync, ada: Browser, path: str
) -> None:
    other = User.objects.create_user("other", password="pw")
    browser = Browser()
    browser.force_login(other, OURS)
    leaving = browser.post(path, secure=True)
    session = browser.session
    session["hijack_history"] = [str(User.objects.get(username="ada").pk)]
    session.save()
    at_the_button = browser.post(path, secure=True)
    url = str(leaving["Refresh"]).removeprefix("0; url=")
    at_the_callback = browser.open(bipsync.approve(url, user="grace@acme.example"))
    for answer in (at_the_button, at_the_callback):
        assert (answer.status_code, answer.context["reason"]) == (403, "impersonation")
    assert BipsyncToken.objects.count() == 1


class ReplaceUser:
    """A package that leaves the session alone, and replaces the user of each request."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        request.user = User.objects.get(username="other")
        return self.get_response(request)


def test_nor_where_the_user_of_the_request_is_replaced(
    bipsync: SimulatedBipsync, ada: Browser, settings: Any
) -> None:
    User.objects.create_user("other")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.ReplaceUser"]
    answer = ada.twin().post("/bipsync/connect/", secure=True)
    assert (answer.status_code, answer.context["reason"]) == (403, "impersonation")


def _filled(value: Any, pk: str) -> Any:
    if isinstance(value, list):
        return [_filled(one, pk) for one in value]
    return value.replace("{pk}", pk)


# --- a tenant that is gone


def test_a_tenant_that_is_not_in_the_settings_keeps_nobody_in(
    bipsync: SimulatedBipsync, ada: Browser, settings: Any
) -> None:
    assert ada.open("/greeting/").content == b"Hello ada"
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT": "another"}
    cache.clear()
    assert ada.open("/greeting/").content == b"Hello visitor"
    assert ada.user_id() is None


# --- whom the next request would not know


class Forgetful(BipsyncBackend):
    """A site's backend that signs people in and does not know them afterwards."""

    def get_user(self, user_id: Any) -> Any:
        return None


class Strict(BipsyncBackend):
    """A site's backend with a rule of its own about who may be signed in."""

    def user_can_authenticate(self, user: Any) -> bool:
        return False


class Another(BipsyncBackend):
    """A site's backend whose users are not those that its policy returns."""

    def get_user(self, user_id: Any) -> Any:
        user: Any = super().get_user(user_id)
        user.get_session_auth_hash = lambda: "another"
        return user


@pytest.mark.parametrize("backend", [Forgetful, Strict])
def test_who_would_not_be_known_at_the_next_request_is_refused(
    bipsync: SimulatedBipsync, settings: Any, backend: type, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{backend.__name__}"]
    browser = Browser()
    with caplog.at_level(logging.WARNING):
        answer = browser.open(bipsync.approve(browser.begin("/note/"), user=ADA))
    assert (answer.status_code, answer.context["reason"]) == (403, "not_allowed")
    assert not User.objects.exists()
    assert not BipsyncToken.objects.exists()
    assert browser.user_id() is None
    assert "the next request would not be signed in" in caplog.text


def test_a_known_person_who_would_not_be_known_keeps_the_pair_that_they_had(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    signed_in(bipsync, ADA)
    before = BipsyncToken.objects.get()
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Forgetful"]
    browser = Browser()
    assert browser.open(bipsync.approve(browser.begin(), user=ADA)).status_code == 403
    assert BipsyncToken.objects.get().generation == before.generation


def test_the_session_is_that_of_the_user_whom_the_backend_knows(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Another"]
    browser = signed_in(bipsync, ADA)
    assert browser.open("/greeting/").content == b"Hello ada"


# --- in a real browser


@pytest.mark.parametrize("end", [None, lifecycle.disconnect])
def test_a_form_is_sent_again_after_signing_in_in_another_tab(
    context: BrowserContext, portal: str, bipsync: SimulatedBipsync, end: Any
) -> None:
    page = context.new_page()
    page.goto("/note/")
    allow(page)
    page.get_by_label("Note").fill("all my work")
    row = BipsyncToken.objects.get()
    if end is None:
        bipsync.withdraw(ADA)
        lifecycle.refresh_if_due(expire(row).pk)
    else:
        end(row)
    cache.clear()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading")).to_have_text("Nothing was sent: please sign in again")
    with context.expect_page() as opened:
        page.get_by_role("link", name="Sign in again (new tab)").click()
    allow(opened.value)
    expect(opened.value.locator("body")).to_contain_text("Signed in as ada")
    page.go_back()
    expect(page.get_by_label("Note")).to_have_value("all my work")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("body")).to_have_text("Saved all my work")


def test_a_form_stays_valid_over_one_sign_in_and_no_more(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    ada.open("/note/")
    before = ada.cookies["csrftoken"].value
    lifecycle.disconnect(BipsyncToken.objects.get())
    cache.clear()
    assert ada.post("/note/", {"note": "x"}, secure=True).status_code == 403
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    assert ada.cookies["csrftoken"].value == before
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    assert ada.cookies["csrftoken"].value != before


def test_another_persons_form_is_not_valid_after_a_sign_in(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    ada.open("/note/")
    before = ada.cookies["csrftoken"].value
    withdraw(bipsync)
    ada.open(bipsync.approve(ada.begin(), user="grace@acme.example"))
    assert ada.cookies["csrftoken"].value != before
