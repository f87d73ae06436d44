"""Signing in with a real browser."""

from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from playwright.sync_api import BrowserContext, Page, expect

import tests.urls
from bipsync_django import lifecycle, views
from bipsync_django.exceptions import AddressRefused
from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.browser import CALLBACK, LOGIN, LOGOUT
from tests.grants import expire
from tests.portal import allow, log_in, shoot

pytestmark = pytest.mark.django_db(transaction=True)


class NoRefreshMiddleware:
    """A proxy that drops a header which it does not know."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        if "Refresh" in response:
            del response["Refresh"]
        return response


def sign_in(page: Page, target: str = "/") -> None:
    page.goto(target)
    allow(page)
    expect(page.locator("body")).to_contain_text("Signed in as ada")


def reason(page: Page) -> str | None:
    return page.locator(".bipsync-message").get_attribute("data-reason")


def test_a_visitor_signs_in_and_comes_to_the_page_they_wanted(page: Page, portal: str) -> None:
    page.goto("/?tab=reports")
    expect(page.get_by_role("heading", name="Sign in to portal")).to_be_visible()
    allow(page, "Grace Hopper")
    expect(page.locator("body")).to_have_text("Signed in as grace")
    assert page.url == f"{portal}/?tab=reports"
    assert User.objects.get().email == "grace@acme.example"


def test_the_portal_of_these_tests_forbids_inline_code(page: Page, complaints: list[str]) -> None:
    page.goto("/bipsync/callback/")
    page.evaluate("document.body.setAttribute('onclick', 'x()')")
    page.get_by_role("heading").click()
    assert "Content Security Policy" in complaints.pop()


def test_nothing_of_the_trip_is_left_in_the_browser(page: Page, context: BrowserContext) -> None:
    sign_in(page)
    names = {cookie["name"] for cookie in context.cookies()}
    assert "sessionid" in names
    # How many were begun within the last minute is no part of a trip, nor that somebody was here.
    assert {name for name in names if "bipsync" in name} == {"bipsync_pace", "bipsync_known"}


def test_scripts_cannot_read_the_trip(page: Page, context: BrowserContext, portal: str) -> None:
    page.goto("/")
    (trip,) = [c for c in context.cookies(portal) if c["name"].startswith("bipsync-")]
    assert (trip["httpOnly"], trip["sameSite"]) == (True, "Lax")


def test_who_declines_is_told_so_and_can_try_again(page: Page, portal: str) -> None:
    page.goto("/?tab=2")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading")).to_have_text("You did not give permission")
    assert not User.objects.exists()
    page.get_by_role("link", name="Try again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"


def test_who_is_stopped_by_an_outage_can_try_again(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("token", Answer(503, b""))
    page.goto("/?tab=2")
    allow(page)
    assert reason(page) == "unavailable"
    page.get_by_role("link", name="Try again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"


def test_two_tabs_come_to_their_own_pages(context: BrowserContext, portal: str) -> None:
    first, second = context.new_page(), context.new_page()
    first.goto("/?tab=1")
    second.goto("/?tab=2")
    allow(second)
    expect(second.locator("body")).to_have_text("Signed in as ada")
    allow(first)
    expect(first.locator("body")).to_have_text("Signed in as ada")
    assert (first.url, second.url) == (f"{portal}/?tab=1", f"{portal}/?tab=2")
    assert User.objects.count() == 1


def test_who_signs_out_is_signed_out(page: Page, context: BrowserContext) -> None:
    sign_in(page)
    page.goto("/")
    # The portal's own pages have this form; the test's portal is too plain for one.
    page.route(
        "**/form",
        lambda route: route.fulfill(
            content_type="text/html",
            body=f'<form method="post" action="{LOGOUT}">'
            f'<input name="csrfmiddlewaretoken" value="{_csrf(context)}"><button>Sign out</button>',
        ),
    )
    page.goto("/form")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading")).to_have_text("You are signed out")
    assert not [c for c in context.cookies() if c["name"] == "sessionid"]
    page.get_by_role("link", name="Sign in with Bipsync").click()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")


def _csrf(context: BrowserContext) -> str:
    return next(str(c["value"]) for c in context.cookies() if c["name"] == "csrftoken")


def test_a_callback_that_is_opened_again_leads_on_and_then_says_so(
    page: Page, context: BrowserContext, portal: str
) -> None:
    callbacks: list[str] = []
    page.on("request", lambda r: callbacks.append(r.url) if CALLBACK in r.url else None)
    sign_in(page)
    assert len(callbacks) == 1
    page.goto(callbacks[0])
    expect(page.locator("body")).to_have_text("Signed in as ada")
    # Later on, and to anybody else, it is a link that was used.
    key = next(cookie for cookie in context.cookies() if cookie["name"] == "sessionid")["value"]
    session = SessionStore(key)
    del session["_bipsync_returns"]
    session.save()
    page.goto(callbacks[0])
    assert reason(page) == "replayed_state"
    expect(page.get_by_role("heading")).to_have_text("This sign-in link was used already")
    page.goto("/")
    expect(page.locator("body")).to_have_text("Signed in as ada")


def test_the_back_button_never_leads_to_the_callback(page: Page, portal: str) -> None:
    sign_in(page)
    assert CALLBACK not in page.url
    page.goto("/greeting/")
    for _ in range(4):
        page.go_back()
        assert CALLBACK not in page.url
    page.goto("/")
    expect(page.locator("body")).to_have_text("Signed in as ada")


def test_a_failure_page_works_with_the_keyboard_alone(page: Page) -> None:
    page.goto("/?tab=2")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading")).to_be_visible()
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Try again")
    expect(link).to_be_focused()
    outline = link.evaluate("element => getComputedStyle(element).outlineWidth")
    assert outline == "3px"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sign in to portal")).to_be_visible()


# --- grants that end, and pages that need more


@pytest.fixture
def checked_at_once(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}


def withdraw(bipsync: SimulatedBipsync) -> None:
    """Let Ada take her permission back at Bipsync, and the site find out."""
    bipsync.withdraw("ada@acme.example")
    lifecycle.refresh_if_due(expire(BipsyncToken.objects.get()).pk)
    assert BipsyncToken.objects.get().status == "needs_sign_in"


@pytest.mark.usefixtures("checked_at_once")
def test_a_grant_that_was_withdrawn_is_renewed_on_the_way_to_the_next_page(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    sign_in(page)
    withdraw(bipsync)
    page.goto("/?tab=2")
    expect(page.get_by_role("heading", name="Sign in to portal")).to_be_visible()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"
    assert BipsyncToken.objects.get().status == "active"


@pytest.mark.usefixtures("checked_at_once")
def test_who_declines_to_renew_a_grant_is_told_so_and_can_sign_in_after_all(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    sign_in(page)
    withdraw(bipsync)
    page.goto("/?tab=2")
    page.get_by_role("button", name="Cancel").click()
    assert reason(page) == "declined"
    page.get_by_role("link", name="Try again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"


def test_a_page_that_needs_more_asks_for_it_and_is_shown(page: Page, portal: str) -> None:
    sign_in(page)
    page.goto("/research/?tab=2")
    expect(page.locator("#scopes")).to_contain_text("Read research notes")
    allow(page)
    expect(page.locator("body")).to_have_text("5 research notes")
    assert page.url == f"{portal}/research/?tab=2"


@pytest.mark.usefixtures("strict")
def test_a_page_that_needs_more_works_with_strict_cookies(page: Page, portal: str) -> None:
    sign_in(page)
    page.goto("/research/?tab=2")
    allow(page)
    expect(page.locator("body")).to_have_text("5 research notes")
    assert User.objects.count() == 1


def test_who_declines_what_a_page_needs_is_told_so_and_not_asked_in_a_circle(
    page: Page, portal: str
) -> None:
    sign_in(page)
    page.goto("/research/?tab=2")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading")).to_have_text("You did not give permission")
    shoot(page, "step-up-declined")
    page.get_by_role("link", name="Try again").click()
    expect(page.locator("#scopes")).to_contain_text("Read research notes")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading")).to_have_text("You did not give permission")
    page.goto("/")
    expect(page.locator("body")).to_have_text("Signed in as ada")
    page.goto("/research/?tab=2")
    allow(page)
    expect(page.locator("body")).to_have_text("5 research notes")
    assert page.url == f"{portal}/research/?tab=2"


def test_who_comes_back_without_what_a_page_needs_is_told_so_and_can_be_asked_again(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    sign_in(page)
    ada = bipsync.find_user("ada@acme.example")
    bipsync.add_user(replace(ada, extra={"scopes": ["users:read"]}))
    page.goto("/research/?tab=2")
    allow(page)
    assert reason(page) == "missing_scope"
    shoot(page, "missing-scope")
    bipsync.add_user(ada)
    page.get_by_role("link", name="Ask again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("5 research notes")
    assert page.url == f"{portal}/research/?tab=2"


def test_another_bipsync_account_does_not_answer_for_the_person_who_was_asked(
    page: Page, portal: str
) -> None:
    sign_in(page)
    page.goto("/research/")
    allow(page, "Grace Hopper")
    expect(page.get_by_role("heading")).to_have_text(
        "You are signed in at Bipsync as somebody else"
    )
    shoot(page, "other-account")
    assert User.objects.count() == BipsyncToken.objects.count() == 1
    page.get_by_role("link", name="Try again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("5 research notes")


def test_a_trip_does_not_end_in_the_session_of_the_next_person(
    context: BrowserContext, portal: str
) -> None:
    adas, graces = context.new_page(), context.new_page()
    sign_in(adas)
    adas.goto("/research/")
    graces.goto(LOGIN)
    allow(graces, "Grace Hopper")
    expect(graces.locator("body")).to_have_text("Signed in as grace")
    allow(adas)
    expect(adas.get_by_role("heading")).to_have_text("Somebody else is signed in here now")
    shoot(adas, "other-person")
    adas.get_by_role("link", name="Continue").click()
    expect(adas.locator("body")).to_have_text("Signed in as grace")


def test_an_address_that_bipsync_refuses_is_a_page(
    page: Page, portal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AddressRefused("not on the list")

    page.goto("/research/")
    allow(page)
    monkeypatch.setattr(tests.urls, "api_session", refuse)
    page.goto("/research/")
    assert reason(page) == "address_refused"
    shoot(page, "address-refused")


# --- SameSite=Strict


@pytest.fixture
def strict(settings: Any) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"


@pytest.mark.usefixtures("strict")
def test_with_strict_cookies_a_person_is_signed_in_where_they_wanted(
    page: Page, portal: str, context: BrowserContext, bipsync: SimulatedBipsync
) -> None:
    callbacks: list[str] = []
    page.on("request", lambda r: callbacks.append(r.url) if CALLBACK in r.url else None)
    page.goto("/?tab=2")
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"
    (session,) = [c for c in context.cookies() if c["name"] == "sessionid"]
    assert session["sameSite"] == "Strict"
    assert len(callbacks) == 2
    assert "resumed" not in callbacks[0]
    assert SpentState.objects.count() == 1
    assert bipsync.calls["code"] == 1


@pytest.mark.usefixtures("strict")
def test_with_strict_cookies_the_session_there_was_is_the_one_that_goes_on(
    page: Page, portal: str, context: BrowserContext
) -> None:
    sign_in(page)
    before = {c["name"]: c["value"] for c in context.cookies()}["sessionid"]
    page.goto(LOGIN)
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    after = {c["name"]: c["value"] for c in context.cookies()}["sessionid"]
    # The session of one who signs in again goes on under a new key; a callback without it had
    # left the old one where it was.
    assert after != before
    assert [session.pk for session in Session.objects.all()] == [after]


@pytest.mark.usefixtures("strict")
def test_with_strict_cookies_and_no_second_request_the_session_would_be_lost(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every callback holds a state, so none is asked for again.
    monkeypatch.setattr(views, "_RESUMED", "state")
    page.goto("/?tab=2")
    allow(page)
    # Signed in according to the site, and yet at the provider again.
    expect(page.get_by_role("heading", name="Sign in to portal")).to_be_visible()
    assert BipsyncToken.objects.count() == 1


@pytest.mark.usefixtures("strict")
def test_with_strict_cookies_who_declines_can_try_again(page: Page, portal: str) -> None:
    page.goto("/?tab=2")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading")).to_have_text("You did not give permission")
    page.get_by_role("link", name="Try again").click()
    allow(page)
    expect(page.locator("body")).to_have_text("Signed in as ada")
    assert page.url == f"{portal}/?tab=2"


@pytest.fixture
def no_refresh(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.NoRefreshMiddleware", *settings.MIDDLEWARE]


@pytest.mark.usefixtures("strict", "no_refresh")
def test_the_resume_page_can_be_left_by_hand(page: Page) -> None:
    page.goto("/?tab=2")
    allow(page)
    expect(page.get_by_role("heading")).to_have_text("Signing you in…")
    shoot(page, "resume")
    page.get_by_role("link", name="Continue").click()
    expect(page.locator("body")).to_have_text("Signed in as ada")


# --- how the pages look

SIZES = {"desktop": (1100, 700), "phone": (360, 640)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_failure_page_can_be_read_on_any_screen(
    page: Page, size: str, scheme: Any, bipsync: SimulatedBipsync, settings: Any
) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    settings.BIPSYNC = {**settings.BIPSYNC, "CREATE_USERS": False}
    page.goto("/")
    allow(page)
    assert reason(page) == "no_account"
    shoot(page, f"failure-{size}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("h1", ".bipsync-message p", ".bipsync-reference", ".bipsync-button"):
        assert _contrast(page, selector) >= 4.5, selector
    box = page.get_by_role("link", name="Try again").bounding_box()
    assert box is not None
    assert box["height"] >= 40


def _contrast(page: Page, selector: str) -> float:
    """The contrast of text to what is behind it (WCAG 2.2, 1.4.3)."""
    text, ground = page.locator(selector).first.evaluate(
        """element => {
            const opaque = colour => !/rgba\\(.*, 0\\)/.test(colour);
            let behind = element;
            while (!opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }"""
    )
    brighter, darker = sorted((_luminance(text), _luminance(ground)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_an_account_is_connected_by_a_button_under_a_strict_policy(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    log_in(page, portal, User.objects.create_superuser("boss"))
    page.goto(f"{portal}/bipsync/connect/?next=/greeting/")
    shoot(page, "connect")
    page.get_by_role("button", name="Connect my Bipsync account").click()
    page.get_by_label("Grace Hopper").check()
    page.get_by_role("button", name="Allow").click()
    expect(page.locator(".bipsync-account")).to_contain_text("Grace Hopper · grace@acme.example")
    page.get_by_role("button", name="Connect this account").click()
    expect(page.locator("body")).to_have_text("Hello boss")
    assert BipsyncToken.objects.get().user == User.objects.get()
    page.goto(f"{portal}/bipsync/connect/")
    page.get_by_role("button", name="Connect my Bipsync account").click()
    page.get_by_label("Ada Lovelace").check()
    page.get_by_role("button", name="Allow").click()
    expect(page.locator("h1")).to_have_text("You are signed in at Bipsync as somebody else")
    expect(page.locator(".bipsync-account")).to_contain_text("Ada Lovelace · ada@acme.example")
    shoot(page, "other-account")
    page.get_by_role("link", name="Open Bipsync").click()
    assert page.url == f"{bipsync.url}/"


def test_people_choose_one_of_several_tenants(
    page: Page, portal: str, bipsync: SimulatedBipsync, settings: Any
) -> None:
    own = {**settings.BIPSYNC}
    shared = {key: own.pop(key) for key in ("ALLOW_INSECURE_LOOPBACK", "SCOPES")}
    del own["CLIENT"]
    settings.BIPSYNC = {
        **shared,
        "TENANTS": {
            "acme": {**own, "NAME": "Acme Capital"},
            "globex": {**own, "NAME": "Globex Partners"},
        },
    }
    bipsync.redirect_uris = {f"{portal}{CALLBACK}globex/"}
    page.goto(f"{portal}{LOGIN}?next=/greeting/")
    shoot(page, "choose")
    page.get_by_role("link", name="Globex Partners").click()
    page.get_by_label("Grace Hopper").check()
    page.get_by_role("button", name="Allow").click()
    expect(page.locator("body")).to_have_text("Hello grace")
    assert BipsyncToken.objects.get().tenant == "globex"
