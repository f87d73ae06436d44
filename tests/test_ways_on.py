"""Where a person goes on to: pages, and never the ends of a trip."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.testing import SimulatedBipsync
from tests.browser import CALLBACK, LOGIN, LOGOUT, Browser, links, signed_in, visible_text

pytestmark = pytest.mark.django_db(transaction=True)


# --- a callback that comes twice


def test_a_callback_that_a_browser_repeats_leads_on(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/note/?a=1"))
    assert browser.open(callback)["Location"] == "/note/?a=1"
    calls = bipsync.calls["code"]
    for _ in range(2):
        assert browser.open(callback)["Location"] == "/note/?a=1"
    assert (bipsync.calls["code"], SpentState.objects.count()) == (calls, 1)
    assert BipsyncToken.objects.get().generation == 1


def test_so_does_one_whose_first_answer_got_lost(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/note/"))
    copy = browser.twin()
    browser.open(callback)
    # The browser has the session by another tab, and the trip's cookie still.
    copy.cookies["sessionid"] = browser.cookies["sessionid"].value
    assert copy.open(callback)["Location"] == "/note/"


def test_another_browser_is_not_led_on(bipsync: SimulatedBipsync) -> None:
    browser, other = Browser(), signed_in(bipsync, "grace@acme.example")
    callback = bipsync.approve(browser.begin("/note/"))
    browser.open(callback)
    refused = other.open(callback)
    assert (refused.status_code, refused.context["reason"]) == (400, "replayed_state")


def test_nor_is_a_person_who_has_signed_out(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/note/"))
    browser.open(callback)
    browser.post(LOGOUT, secure=True)
    assert browser.open(callback).status_code == 400
    assert browser.user_id() is None


def test_a_head_request_changes_nothing(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    callback = bipsync.approve(browser.begin("/note/"))
    query = callback.partition("?")[2]
    answer = browser.head(f"{CALLBACK}?{query}", secure=True)
    assert (answer.status_code, answer["Allow"]) == (405, "GET, OPTIONS")
    assert not SpentState.objects.exists()
    assert not User.objects.exists()
    assert browser.open(callback)["Location"] == "/note/"


# --- addresses that are no pages


@pytest.mark.parametrize(
    "url",
    [
        LOGIN,
        f"{LOGIN}?next=/note/",
        f"{CALLBACK}?code=x&state=y",
        "/bipsync/callback/acme/",
        "/bipsync/%63allback/",
        LOGOUT,
        f"https://testserver{LOGOUT}",
        "note/",
        "?tab=2",
        "..",
    ],
)
def test_the_ends_of_a_trip_are_no_place_to_go_to(bipsync: SimulatedBipsync, url: str) -> None:
    browser = Browser()
    assert browser.open(bipsync.approve(browser.begin(url)))["Location"] == "/"


@pytest.mark.parametrize(
    "url",
    ["/note/", "/nowhere/", "https://testserver", "/bipsync/connection/", "/bipsync/connect/"],
)
def test_pages_are(bipsync: SimulatedBipsync, url: str) -> None:
    browser = Browser()
    assert browser.open(bipsync.approve(browser.begin(url)))["Location"] == url


def test_a_failure_page_links_to_no_end_of_a_trip(bipsync: SimulatedBipsync, settings: Any) -> None:
    """The site's base template may have the line for people whose connection has ended."""
    browser = signed_in(bipsync)
    BipsyncToken.objects.update(status="needs_sign_in")
    page = browser.get("/page/", secure=True)
    assert page.status_code in {200, 302}
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "bipsync" not in name]
    settings.TEMPLATES = [
        {
            **settings.TEMPLATES[0],
            "APP_DIRS": False,
            "OPTIONS": {
                **settings.TEMPLATES[0]["OPTIONS"],
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {
                            "bipsync_django/base.html": "{% load bipsync %}{% bipsync_attention %}"
                            "{% block title %}{% endblock %}{% block content %}{% endblock %}"
                        },
                    ),
                    "django.template.loaders.app_directories.Loader",
                ],
            },
        }
    ]
    twin = browser.twin()
    failed = twin.get(f"{CALLBACK}?code=secret&state={'s' * 43}", secure=True)
    assert failed.status_code == 400
    found = links(failed.content.decode())
    assert LOGIN in found
    assert not any("callback" in link for link in found)


# --- signing out


def test_a_link_to_sign_out_shows_the_button(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    page = browser.get(LOGOUT, secure=True)
    assert page.status_code == 200
    assert "Sign out?" in visible_text(page.content.decode())
    assert browser.user_id() is not None
    assert browser.head(LOGOUT, secure=True).status_code == 200
    assert browser.user_id() is not None
    assert browser.post(LOGOUT, secure=True).status_code == 200
    assert browser.user_id() is None
    assert "You are signed out" in visible_text(browser.get(LOGOUT, secure=True).content.decode())
