"""A page that needs to ask Bipsync is shown once that is possible, and never asks in a circle."""

import logging
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, RequestFactory
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

from bipsync_django import lifecycle, returns
from bipsync_django.decorators import bipsync_token_required
from bipsync_django.exceptions import (
    AddressRefused,
    KeysUnavailable,
    MissingScope,
    OtherDeployment,
    RefreshInsideTransaction,
    RefreshUnavailable,
    SignInRequired,
    Unauthorized,
)
from bipsync_django.failures import FAILURES
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import Answer, SimulatedBipsync, SimulatedUser
from tests import test_views
from tests.browser import CALLBACK, LOGIN, Browser, links, signed_in, visible_text
from tests.documentation import block, run
from tests.test_flow import everything, reason_of
from tests.test_middleware import JSON, PEOPLE, PROGRAMS, withdraw
from tests.test_views import JARGON

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.test_decorators"),
]

ADA, GRACE = "ada@acme.example", "grace@acme.example"
ADA_AT_BIPSYNC = "68b993fa85d14160d4030391"

# --- the pages

WORK: SimpleNamespace = SimpleNamespace()
"""What the pages do: ``WORK.do(request)``."""

needs_research = bipsync_token_required(scopes=["research:read"])


def page(request: HttpRequest, name: str = "") -> HttpResponse:
    WORK.do(request)
    return HttpResponse(f"Here you are, {request.user.get_username()}{name}")


async def asynchronous_page(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    WORK.do(request)
    return HttpResponse(f"Here you are, {user.get_username()}")


class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return page(request)

    post = get


class AsynchronousPage(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await asynchronous_page(request)

    post = get


class PageWithMethod(View):
    @method_decorator(needs_research)
    def get(self, request: HttpRequest) -> HttpResponse:
        return page(request)

    post = get


class AsynchronousPageWithMethod(View):
    @method_decorator(needs_research)
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await asynchronous_page(request)

    post = get


on_dispatch = method_decorator(needs_research, name="dispatch")

urlpatterns = [
    path("sync/", needs_research(page)),
    path("async/", needs_research(asynchronous_page)),
    path("class/", on_dispatch(Page).as_view()),
    path("async-class/", on_dispatch(AsynchronousPage).as_view()),
    path("method/", PageWithMethod.as_view()),
    path("async-method/", AsynchronousPageWithMethod.as_view()),
    path("bare/", bipsync_token_required(page)),
    path("called/", bipsync_token_required()(page)),
    path("projects/", bipsync_token_required(scopes=["projects:read"])(page)),
    path("unknown/", bipsync_token_required(scopes=["no_such:scope"])(page)),
    path("tenant/", bipsync_token_required(tenant="acme")(page)),
    path("elsewhere/", bipsync_token_required(tenant="globex")(page)),
    path("named/<str:name>/", bipsync_token_required(page)),
    path("bipsync/", include("bipsync_django.urls")),
]
KINDS = ["/sync/", "/async/", "/class/", "/async-class/", "/method/", "/async-method/"]
kinds = pytest.mark.parametrize("url", KINDS)


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    WORK.do = lambda request: None
    return WORK


def fail(error: Exception) -> Callable[[HttpRequest], None]:
    def do(request: HttpRequest) -> None:
        raise error

    return do


@pytest.fixture
def browser(bipsync: SimulatedBipsync) -> Browser:
    return signed_in(bipsync, ADA)


@pytest.fixture
def without_middleware(browser: Browser, settings: Any) -> Browser:
    """Ada's browser at a site whose sessions are not checked."""
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "bipsync" not in name]
    return browser.twin()


def asked(response: Any) -> list[str]:
    """The scopes that a redirect to Bipsync asks for."""
    assert response.status_code == 302, response.content
    assert urlsplit(response["Location"]).path == "/oauth/authorize"
    (scopes,) = parse_qs(urlsplit(str(response["Location"])).query)["scope"]
    return scopes.split()


def there_and_back(bipsync: SimulatedBipsync, browser: Browser, response: Any, who: str) -> Any:
    back = browser.open(bipsync.approve(response["Location"], user=who))
    assert back.status_code == 302, back.content
    return back


def text(response: Any) -> str:
    return str(response.content.decode())


def grant_only(bipsync: SimulatedBipsync, *scopes: str) -> None:
    """Let Bipsync grant Ada no more than ``scopes``, whatever she is asked for."""
    ada = bipsync.users[ADA_AT_BIPSYNC]
    bipsync.add_user(
        SimulatedUser(
            ada.id,
            ada.name,
            ada.given_name,
            ada.family_name,
            ada.email,
            extra={"scopes": list(scopes)},
        )
    )


# --- there and back


@kinds
def test_a_visitor_signs_in_for_what_the_page_needs_and_comes_back(
    bipsync: SimulatedBipsync, url: str
) -> None:
    browser = Browser()
    response = browser.open(f"{url}?tab=2")
    assert asked(response) == ["users:read", "research:read"]
    assert "no-store" in response["Cache-Control"]
    back = there_and_back(bipsync, browser, response, ADA)
    assert back["Location"] == f"{url}?tab=2"
    assert text(browser.open(back["Location"])) == "Here you are, ada"
    assert BipsyncToken.objects.get().scopes == "research:read users:read"


@kinds
def test_who_lacks_a_scope_is_asked_for_it_and_comes_back(
    bipsync: SimulatedBipsync, browser: Browser, url: str
) -> None:
    response = browser.open(url)
    assert asked(response) == ["users:read", "research:read"]
    back = there_and_back(bipsync, browser, response, ADA)
    assert text(browser.open(back["Location"])) == "Here you are, ada"
    assert User.objects.count() == BipsyncToken.objects.count() == 1


@kinds
def test_who_has_no_usable_grant_any_more_signs_in_and_comes_back(
    bipsync: SimulatedBipsync, without_middleware: Browser, url: str
) -> None:
    browser = without_middleware
    BipsyncToken.objects.update(scopes="research:read users:read")
    withdraw(bipsync)
    back = there_and_back(bipsync, browser, browser.open(url), ADA)
    assert text(browser.open(back["Location"])) == "Here you are, ada"


@pytest.mark.parametrize("url", ["/bare/", "/called/", "/tenant/"])
def test_a_page_that_names_no_scopes_asks_for_the_tenants(
    bipsync: SimulatedBipsync, url: str
) -> None:
    browser = Browser()
    response = browser.open(url)
    assert asked(response) == ["users:read"]
    assert there_and_back(bipsync, browser, response, ADA)["Location"] == url
    assert text(browser.open(url)) == "Here you are, ada"


def test_a_page_gets_its_arguments(browser: Browser) -> None:
    assert text(browser.open("/named/x/")) == "Here you are, adax"


def test_what_was_granted_before_is_asked_for_again(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    response = browser.open("/projects/")
    assert asked(response) == ["users:read", "projects:read", "research:read"]
    there_and_back(bipsync, browser, response, ADA)
    for url in ("/sync/", "/projects/", "/bare/"):
        assert browser.open(url).status_code == 200


def test_what_a_person_has_given_up_is_not_asked_for_again(
    bipsync: SimulatedBipsync, without_middleware: Browser
) -> None:
    browser = without_middleware
    BipsyncToken.objects.update(scopes="research:read users:read")
    lifecycle.disconnect(BipsyncToken.objects.get())
    assert asked(browser.open("/bare/")) == ["users:read"]


def test_scopes_never_come_from_the_address(browser: Browser) -> None:
    response = browser.open("/sync/?scope=rest_api:write&scopes=rest_api:write")
    assert asked(response) == ["users:read", "research:read"]


def test_a_usable_grant_costs_one_query(
    bipsync: SimulatedBipsync, browser: Browser, django_assert_num_queries: Any
) -> None:
    browser.open("/bare/")
    with django_assert_num_queries(3):  # the session, the user, the grant
        browser.open("/bare/")


def test_scopes_as_one_text_are_a_mistake() -> None:
    with pytest.raises(TypeError, match=r'scopes is a list of scopes, for example \["'):
        bipsync_token_required(scopes="research:read")


def test_the_example_of_the_documentation_works(
    bipsync: SimulatedBipsync, browser: Browser, rf: RequestFactory
) -> None:
    example = run(block("pages.md", "def research(request)"))["research"]

    def render(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        return HttpResponse(f"{len(context['notes'])} notes")

    example.__wrapped__.__globals__["render"] = render
    request = rf.get("/sync/", secure=True)
    request.user, request.session = User.objects.get(), browser.session
    assert asked(example(request)) == ["users:read", "research:read"]
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    assert text(example(request)) == "5 notes"


def test_a_view_keeps_its_name_and_marks() -> None:
    def view(request: HttpRequest) -> HttpResponse:
        """Speak."""
        return HttpResponse()

    view.csrf_exempt = True  # type: ignore[attr-defined]
    decorated: Any = needs_research(view)
    assert (decorated.__name__, decorated.__doc__) == ("view", "Speak.")
    assert decorated.csrf_exempt


# --- whose trip


def test_a_person_without_a_grant_signs_in_as_anybody_and_is_joined_to_nobody(
    bipsync: SimulatedBipsync,
) -> None:
    User.objects.create_user("root", password="pw")
    browser = Browser()
    browser.login(username="root", password="pw")
    back = there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    assert text(browser.open(back["Location"])) == "Here you are, ada"
    token = BipsyncToken.objects.get()
    assert token.user is not None
    assert token.user.get_username() == "ada"
    assert not BipsyncToken.objects.filter(user__username="root").exists()


@pytest.mark.parametrize("make", ["withdraw", "disconnect"])
def test_a_grant_that_has_ended_still_says_whose_account_has_to_answer(
    bipsync: SimulatedBipsync, without_middleware: Browser, make: str
) -> None:
    browser = without_middleware
    if make == "withdraw":
        withdraw(bipsync)
    else:
        lifecycle.disconnect(BipsyncToken.objects.get())
    started = browser.open("/sync/")["Location"]
    before = everything()
    response = browser.open(bipsync.approve(started, user=GRACE))
    assert reason_of(response) == "other_account"
    assert everything() == before


# --- forms


def test_after_a_form_the_person_comes_to_the_page_it_was_on(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    headers = {"referer": "https://testserver/form/?draft=1"}
    response = browser.post("/sync/", {"note": "x"}, secure=True, headers=headers)
    back = there_and_back(bipsync, browser, response, ADA)
    assert back["Location"] == "https://testserver/form/?draft=1"


@pytest.mark.parametrize(
    "referer",
    ["", "https://evil.example/", "//evil.example/", "http://testserver/", "javascript:x"],
)
def test_after_a_form_from_elsewhere_the_person_comes_to_the_front_page(
    bipsync: SimulatedBipsync, browser: Browser, referer: str
) -> None:
    response = browser.post("/sync/", secure=True, headers={"referer": referer})
    assert there_and_back(bipsync, browser, response, ADA)["Location"] == "/"


# --- what the view cannot do


@kinds
def test_a_grant_that_turns_out_to_be_dead_leads_to_a_trip(
    bipsync: SimulatedBipsync, browser: Browser, url: str, work: SimpleNamespace, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SCOPES": ["users:read", "research:read"]}
    browser.open(bipsync.approve(browser.begin(), user=ADA))
    work.do = fail(SignInRequired("dead"))
    response = browser.open(url)
    assert asked(response) == ["users:read", "research:read"]
    work.do = lambda request: None
    back = there_and_back(bipsync, browser, response, ADA)
    assert text(browser.open(back["Location"])) == "Here you are, ada"


def test_a_scope_that_turns_out_to_be_missing_leads_to_a_trip(
    bipsync: SimulatedBipsync, browser: Browser, work: SimpleNamespace, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SCOPES": ["users:read", "research:read"]}
    browser.open(bipsync.approve(browser.begin(), user=ADA))

    def find_out(request: HttpRequest) -> None:
        # As a refresh does whose new token names fewer scopes.
        BipsyncToken.objects.update(scopes="users:read")
        raise MissingScope("no")

    work.do = find_out
    assert asked(browser.open("/sync/")) == ["users:read", "research:read"]


@pytest.mark.parametrize(
    "error", [Unauthorized("once more"), RuntimeError("a mistake")], ids=lambda e: type(e).__name__
)
def test_other_errors_are_the_sites_own(
    browser: Browser, work: SimpleNamespace, error: Exception
) -> None:
    work.do = fail(error)
    with pytest.raises(type(error)):
        browser.open("/bare/")


@pytest.mark.parametrize("url", ["/bare/", "/sync/"])
def test_what_a_view_did_before_it_failed_is_undone_under_atomic_requests(
    database: str,
    bipsync: SimulatedBipsync,
    work: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
) -> None:
    browser = signed_in(bipsync, ADA)
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    monkeypatch.setitem(connections[database].settings_dict, "ATOMIC_REQUESTS", True)

    def do(request: HttpRequest) -> None:
        User.objects.create_user("half-done")
        raise RefreshUnavailable("timeout", "away")

    work.do = do
    assert browser.open(url).status_code == 503
    assert not User.objects.filter(username="half-done").exists()


# --- once, and back


def come_back_without(bipsync: SimulatedBipsync, browser: Browser, url: str = "/sync/") -> Any:
    """Go to Bipsync for a page, and come back without the scope that it needs."""
    grant_only(bipsync, "users:read")
    back = there_and_back(bipsync, browser, browser.open(url), ADA)
    return browser.open(back["Location"])


@kinds
def test_who_comes_back_without_the_scope_is_told_so_and_not_sent_again(
    bipsync: SimulatedBipsync, browser: Browser, url: str
) -> None:
    response = come_back_without(bipsync, browser, url)
    assert (response.status_code, reason_of(response)) == (403, "missing_scope")
    (again,) = links(text(response))
    assert again == url
    assert asked(browser.open(again)) == ["users:read", "research:read"]


def test_a_visitor_who_comes_without_the_scope_is_told_so(bipsync: SimulatedBipsync) -> None:
    assert reason_of(come_back_without(bipsync, Browser())) == "missing_scope"


def test_asking_again_may_succeed(bipsync: SimulatedBipsync, browser: Browser) -> None:
    (again,) = links(text(come_back_without(bipsync, browser)))
    grant_only(bipsync, "users:read", "research:read")
    there_and_back(bipsync, browser, browser.open(again), ADA)
    assert text(browser.open("/sync/")) == "Here you are, ada"


def test_a_page_that_needs_something_else_may_ask_at_once(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    grant_only(bipsync, "users:read")
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    assert asked(browser.open("/projects/")) == ["users:read", "projects:read"]


def test_a_grant_that_turns_out_to_be_dead_right_after_the_trip_is_a_page(
    bipsync: SimulatedBipsync, browser: Browser, work: SimpleNamespace
) -> None:
    work.do = fail(SignInRequired("dead"))
    there_and_back(bipsync, browser, browser.open("/bare/"), ADA)
    response = browser.open("/bare/")
    assert (response.status_code, reason_of(response)) == (403, "no_connection")
    # Who tries again is asked again.
    assert asked(browser.open("/bare/"))


def test_a_scope_that_goes_missing_right_after_the_trip_is_a_page(
    bipsync: SimulatedBipsync, browser: Browser, work: SimpleNamespace
) -> None:
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)

    def find_out(request: HttpRequest) -> None:
        BipsyncToken.objects.update(scopes="users:read")
        raise MissingScope("no")

    work.do = find_out
    assert reason_of(browser.open("/sync/")) == "missing_scope"


def test_two_tabs_do_not_make_each_other_go_in_a_circle(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    grant_only(bipsync, "users:read")
    research, projects = browser.open("/sync/"), browser.open("/projects/")
    there_and_back(bipsync, browser, research, ADA)
    there_and_back(bipsync, browser, projects, ADA)
    assert reason_of(browser.open("/projects/")) == "missing_scope"


def test_a_trip_is_forgotten_after_a_minute(
    bipsync: SimulatedBipsync, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_only(bipsync, "users:read")
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    later = SimpleNamespace(time=lambda: time.time() + 61)
    monkeypatch.setattr(returns, "time", later)
    assert asked(browser.open("/sync/"))


def test_a_session_remembers_no_more_than_five_trips(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    started = browser.open("/sync/")
    session = browser.session
    note = [time.time(), "step-up", "acme", ["users:read"], "/sync/", "digest"]
    session["_bipsync_returns"] = [note] * 20
    session.save()
    there_and_back(bipsync, browser, started, ADA)
    assert len(browser.session["_bipsync_returns"]) == 5
    assert browser.session["_bipsync_returns"][-1][3] == ["users:read", "research:read"]


def test_an_ordinary_sign_in_is_no_trip_that_a_page_asked_for(browser: Browser) -> None:
    assert browser.session["_bipsync_returns"]
    assert asked(browser.open("/sync/")) == ["users:read", "research:read"]


def test_who_declines_is_told_so_and_may_be_asked_again(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    response = browser.open(bipsync.decline(browser.open("/sync/?tab=2")["Location"]))
    assert (response.status_code, reason_of(response)) == (403, "declined")
    assert browser.user_id() is not None
    (again,) = links(text(response))
    assert again == "/sync/?tab=2"
    assert asked(browser.open(again)) == ["users:read", "research:read"]


def test_an_outage_on_the_way_is_a_page_with_the_way_back(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    started = browser.open("/sync/")["Location"]
    bipsync.fail("token", Answer(503, b""))
    response = browser.open(bipsync.approve(started, user=ADA))
    assert (response.status_code, reason_of(response)) == (503, "unavailable")
    assert links(text(response)) == ["/sync/"]


def test_a_scope_that_bipsync_does_not_know_is_a_page(
    bipsync: SimulatedBipsync, browser: Browser
) -> None:
    response = browser.open(bipsync.decline(browser.open("/unknown/")["Location"]))
    assert (response.status_code, reason_of(response)) == (503, "misconfigured")


# --- programs

programs = pytest.mark.parametrize("headers", PROGRAMS.values(), ids=PROGRAMS)


@kinds
@programs
def test_a_visitors_program_is_told_where_to_sign_in(
    bipsync: SimulatedBipsync, url: str, headers: dict[str, str]
) -> None:
    headers = {**headers, "referer": "https://testserver/board/"}
    response = Browser().open(url, headers=headers)
    assert (response.status_code, response["WWW-Authenticate"]) == (401, "Session")
    assert response.json() == {
        "error": "sign_in_required",
        "sign_in_url": f"{LOGIN}?next={quote('https://testserver/board/', safe='')}",
    }
    assert "no-store" in response["Cache-Control"]


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
def test_a_program_is_told_which_scopes_are_missing(browser: Browser, method: str) -> None:
    response = getattr(browser, method)("/sync/", secure=True, headers=JSON)
    assert response.status_code == 401
    assert response.json() == {"error": "missing_scope", "scopes": ["research:read"]}


@kinds
def test_a_program_is_told_of_a_grant_that_turns_out_to_be_dead(
    bipsync: SimulatedBipsync, browser: Browser, url: str, work: SimpleNamespace
) -> None:
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    work.do = fail(SignInRequired("dead"))
    for _ in range(2):
        response = browser.open(url, headers=JSON)
        assert (response.status_code, response.json()["error"]) == (401, "sign_in_required")


def test_a_program_uses_no_note_up(bipsync: SimulatedBipsync, browser: Browser) -> None:
    grant_only(bipsync, "users:read")
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    assert browser.open("/sync/", headers=JSON).status_code == 401
    assert reason_of(browser.open("/sync/")) == "missing_scope"


# --- every failure page


def no_answer(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(RefreshUnavailable("timeout", "Bipsync did not answer in time."))


def no_answer_without_keys(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(KeysUnavailable("the keys cannot be fetched"))


def misconfigured_inside_a_transaction(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(RefreshInsideTransaction())


def address_refused(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(AddressRefused("not on the list"))


def not_permitted(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(MissingScope("no"))


def no_connection(bipsync: SimulatedBipsync, browser: Browser) -> None:
    WORK.do = fail(SignInRequired("dead"))
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)


def missing_scope(bipsync: SimulatedBipsync, browser: Browser) -> None:
    BipsyncToken.objects.update(scopes="users:read")
    grant_only(bipsync, "users:read")
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)


def other_account(bipsync: SimulatedBipsync, browser: Browser) -> str:
    BipsyncToken.objects.update(scopes="users:read")
    return bipsync.approve(browser.open("/sync/?tab=2")["Location"], user=GRACE)


def other_person(bipsync: SimulatedBipsync, browser: Browser) -> str:
    BipsyncToken.objects.update(scopes="users:read")
    callback = bipsync.approve(browser.open("/sync/?tab=2")["Location"], user=ADA)
    browser.open(bipsync.approve(browser.begin(), user=GRACE))
    return callback


FAILED: dict[str, Callable[[SimulatedBipsync, Browser], str | None]] = {
    "no_answer": no_answer,
    "no_answer without keys": no_answer_without_keys,
    "misconfigured inside a transaction": misconfigured_inside_a_transaction,
    "address_refused": address_refused,
    "not_permitted": not_permitted,
    "no_connection": no_connection,
    "missing_scope": missing_scope,
    "other_account": other_account,
    "other_person": other_person,
}
# Where the link leads elsewhere than back to the page.
ELSEWHERE = {"other_person": "/", "not_permitted": f"{LOGIN}?next=%2Fsync%2F%3Ftab%3D2"}


def test_every_failure_is_provoked() -> None:
    provoked = {test_views.reason_in(name) for name in (*FAILED, *test_views.FAILED)}
    # These end no sign-in: see test_service, test_lapsed, test_circles, test_confirm_connection.
    elsewhere = {"person_account", "impersonation", "sign_in_again", "no_permission"}
    elsewhere |= {"not_waiting"}
    assert provoked | elsewhere == {*FAILURES, "on_holiday"}


@pytest.fixture
def with_research(bipsync: SimulatedBipsync, browser: Browser) -> Browser:
    there_and_back(bipsync, browser, browser.open("/sync/"), ADA)
    session = browser.session
    del session["_bipsync_returns"]
    session.save()
    return browser


@pytest.mark.parametrize("name", FAILED)
def test_a_refused_step_up_is_an_honest_page_with_a_way_on(
    bipsync: SimulatedBipsync,
    with_research: Browser,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    browser = with_research
    url = FAILED[name](bipsync, browser) or "/sync/?tab=2"
    with caplog.at_level(logging.INFO):
        response = browser.open(url)
    reason = test_views.reason_in(name)
    failure = FAILURES[reason]
    shown = visible_text(text(response))
    assert (response.status_code, reason_of(response)) == (failure.status, reason)
    assert str(failure.title) in shown
    assert str(failure.text) in shown
    assert JARGON.search(shown) is None
    assert ("Please give your administrator" in shown) is failure.needs_administrator
    assert ("Retry-After" in response) is (failure.status == 503)
    elsewhere = [bipsync.url] if failure.shows_account else []
    assert links(text(response)) == [ELSEWHERE.get(reason, "/sync/?tab=2"), *elsewhere]
    assert str(failure.retry) in shown
    assert "no-store" in response["Cache-Control"]
    reference = re.search(r"Reference\s+([0-9A-F]{4}-[0-9A-F]{4})", shown)
    assert reference is not None
    (logged,) = [r for r in caplog.records if reference[1] in r.getMessage()]
    assert (logged.name, reason in logged.getMessage()) == ("bipsync_django.failures", True)
    is_for_administrators = reason in {"address_refused", "misconfigured", "not_permitted"}
    assert (logged.levelno == logging.ERROR) is is_for_administrators
    # Whoever was signed in still is.
    assert browser.user_id() is not None


@kinds
@pytest.mark.parametrize("name", ["no_answer", "address_refused", "not_permitted"])
@programs
def test_a_program_gets_the_same_as_json(
    bipsync: SimulatedBipsync, with_research: Browser, url: str, name: str, headers: dict[str, str]
) -> None:
    FAILED[name](bipsync, with_research)
    response = with_research.post(url, secure=True, headers=headers)
    failure = FAILURES[name]
    answer = response.json()
    assert response.status_code == failure.status
    assert (answer["error"], answer["detail"]) == (name, f"{failure.title}. {failure.text}")
    assert re.fullmatch(r"[0-9A-F]{4}-[0-9A-F]{4}", answer["reference"])
    assert ("Retry-After" in response) is (failure.status == 503)


def test_a_failed_form_leads_back_to_the_page_it_was_on(
    bipsync: SimulatedBipsync, with_research: Browser
) -> None:
    no_answer(bipsync, with_research)
    form = "https://testserver/f/"
    for referer, expected in {form: form, "": "/", "https://evil.example/": "/"}.items():
        response = with_research.post("/sync/", secure=True, headers={"referer": referer})
        assert links(text(response)) == [expected]


def test_the_link_of_a_failure_never_leads_to_another_site(
    with_research: Browser, bipsync: SimulatedBipsync
) -> None:
    no_answer(bipsync, with_research)
    response = with_research.get("/sync/", secure=True, SCRIPT_NAME="//evil.example")
    assert "evil" not in text(response)


def test_a_person_in_front_of_any_browser_gets_a_page(
    bipsync: SimulatedBipsync, with_research: Browser
) -> None:
    no_answer(bipsync, with_research)
    for headers in PEOPLE.values():
        assert reason_of(with_research.open("/sync/", headers=headers)) == "no_answer"


def test_a_tenant_that_does_not_exist_is_a_page(with_research: Browser) -> None:
    for browser in (with_research, Browser()):
        response = browser.open("/elsewhere/")
        assert (response.status_code, reason_of(response)) == (503, "misconfigured")


def test_a_database_of_another_deployment_is_a_page(
    bipsync: SimulatedBipsync, with_research: Browser
) -> None:
    WORK.do = fail(OtherDeployment("production", "staging"))
    response = with_research.open("/sync/")
    assert (response.status_code, reason_of(response)) == (503, "misconfigured")


def test_a_trip_that_cannot_be_begun_is_a_page(bipsync: SimulatedBipsync) -> None:
    # Plain http from elsewhere than this machine.
    response = Browser().get("/sync/")
    assert (response.status_code, reason_of(response)) == (503, "misconfigured")


# --- asynchronously, under ASGI


@kinds
def test_it_works_under_asgi(bipsync: SimulatedBipsync, browser: Browser, url: str) -> None:
    def aget(**headers: str) -> Any:
        client = AsyncClient()
        client.cookies = browser.cookies
        return async_to_sync(client.get)(url, secure=True, headers=headers)

    assert aget(accept="application/json").json()["error"] == "missing_scope"
    response = aget()
    assert asked(response) == ["users:read", "research:read"]
    browser.cookies.update(response.cookies)
    back = there_and_back(bipsync, browser, response, ADA)
    assert (back["Location"], CALLBACK) == (url, "/bipsync/callback/")
    assert text(aget()) == "Here you are, ada"
    WORK.do = fail(RefreshUnavailable("timeout", "away"))
    assert reason_of(aget()) == "no_answer"
    WORK.do = fail(SignInRequired("dead"))
    assert reason_of(aget()) == "no_connection"
