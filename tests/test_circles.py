"""A person who is signed in and lacks a permission is told so, and not sent round for ever."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.urls import include, path
from django.views.generic import RedirectView

from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests import urls
from tests.browser import LOGIN, Browser, links, signed_in
from tests.test_middleware import withdraw

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "ada@acme.example"
REPORTS = "/reports/?year=2024"


def visit(bipsync: SimulatedBipsync, browser: Browser, url: str) -> tuple[Any, int]:
    """Go where the site leads, allowing everything; return the last answer and how many trips."""
    trips = 0
    response = browser.open(url)
    while response.status_code == 302 and trips < 10:
        location = response["Location"]
        if location.startswith(bipsync.authorize_url):
            trips += 1
            location = bipsync.approve(location, user=ADA)
        response = browser.open(location)
    return response, trips


def test_a_page_behind_a_permission_is_no_circle(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    response, trips = visit(bipsync, browser, REPORTS)
    assert (response.status_code, trips) == (403, 1)
    assert response.context["reason"] == "no_permission"
    (link,) = links(response.content.decode())
    assert link == f"{LOGIN}?next=%2Freports%2F%3Fyear%3D2024"
    # The link is for another account, and asks Bipsync; what comes after it is no circle either.
    response, trips = visit(bipsync, browser, link)
    assert (response.status_code, trips) == (403, 1)


def test_a_person_who_was_signed_in_before_makes_one_trip(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    response, trips = visit(bipsync, browser, REPORTS)
    assert (response.status_code, trips) == (403, 1)
    user = User.objects.get()
    user.user_permissions.add(Permission.objects.get(codename="add_user"))
    response, trips = visit(bipsync, browser, REPORTS)
    assert (response.content, trips) == (b"Reports", 0)


def test_whatever_sends_people_there(bipsync: SimulatedBipsync, settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    for page in ("/gate/", "/front-door/"):
        response, trips = visit(bipsync, Browser(), page)
        assert response.context["reason"] == "no_permission", page
        assert trips <= 3


def test_a_page_with_scopes_and_a_permission_is_no_circle(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.ROOT_URLCONF = __name__
    response, trips = visit(bipsync, Browser(), "/restricted-research/")
    assert response.status_code == 403
    assert trips <= 3


def test_who_opens_the_sign_in_twice_is_sent_on(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    assert visit(bipsync, browser, "/note/?a=1")[1] == 1
    again = browser.open(f"{LOGIN}?next=%2Fnote%2F%3Fa%3D1")
    assert again["Location"] == "/note/?a=1"
    assert browser.open(again["Location"]).status_code == 200


def test_a_page_whose_grant_dies_at_once_is_no_circle(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    browser = Browser()
    visit(bipsync, browser, "/research/")
    trips = 0
    for _ in range(4):
        BipsyncToken.objects.update(status="needs_sign_in")
        response = browser.open("/research/")
        if response.status_code != 302:
            break
        trips += 1
        browser.open(bipsync.approve(response["Location"], user=ADA))
    assert (response.status_code, response.context["reason"]) == (403, "no_connection")
    assert trips <= 1


def test_a_button_that_is_pressed_again_goes_to_bipsync(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    assert browser.open(LOGIN)["Location"].startswith(bipsync.authorize_url)


def test_a_session_that_has_lapsed_goes_to_bipsync(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    assert visit(bipsync, browser, "/note/?a=1")[1] == 1
    withdraw(bipsync)
    cache.clear()
    assert visit(bipsync, browser, "/note/?a=1")[1] == 1


def test_a_script_is_told_as_before(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    visit(bipsync, browser, REPORTS)
    answer = browser.open(f"{LOGIN}?next=/reports/", headers={"sec-fetch-mode": "cors"})
    assert answer.status_code == 401


def _gate(request: Any) -> Any:
    from django.contrib.auth.views import redirect_to_login

    return redirect_to_login(request.get_full_path(), LOGIN)


def _restricted_research(request: Any) -> Any:
    from django.contrib.auth.decorators import permission_required

    return permission_required("auth.add_user")(urls.research)(request)


urlpatterns = [
    path("gate/", _gate),
    path("front-door/", RedirectView.as_view(url=LOGIN)),
    path("", RedirectView.as_view(url=LOGIN)),
    path("restricted-research/", _restricted_research),
    path("bipsync/", include("bipsync_django.urls")),
]
