"""A person gives up a connection of their own, by a button of this site's own, and no other way."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, signed_in
from tests.grants import refresh_token_of, reload

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/bipsync/disconnect/acme/"
ADA, GRACE = "ada@acme.example", "grace@acme.example"
BACKEND = "django.contrib.auth.backends.ModelBackend"


@pytest.fixture
def ada(bipsync: SimulatedBipsync) -> Browser:
    return signed_in(bipsync, ADA)


def works(bipsync: SimulatedBipsync, token: BipsyncToken) -> bool:
    row = reload(token)
    return row.status == "active" and bipsync.is_alive(refresh_token_of(row))


def strict(browser: Browser) -> Browser:
    """The same browser at a site that looks at what Django's CSRF protection looks at."""
    twin = Browser(enforce_csrf_checks=True)
    twin.cookies.update(browser.cookies)
    return twin


def test_the_button_gives_up_ones_own_connection_and_nobody_elses(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    signed_in(bipsync, GRACE)
    own, other = BipsyncToken.objects.order_by("pk")
    lost = refresh_token_of(own)
    assert ada.post(PAGE, secure=True).status_code == 200
    assert reload(own).status == "disconnected"
    assert not bipsync.is_alive(lost)
    assert works(bipsync, other)
    event = TokenEvent.objects.get(name="disconnected")
    assert (event.token_id, event.actor) == (own.pk, own.user)


@pytest.mark.parametrize("method", ["get", "post"])
def test_somebody_without_a_connection_gives_up_nobodys(
    bipsync: SimulatedBipsync, ada: Browser, method: str
) -> None:
    browser = Browser()
    browser.force_login(User.objects.create_superuser("boss"), BACKEND)
    response = getattr(browser, method)(PAGE, secure=True)
    assert (response.status_code, response["Location"]) == (302, "/bipsync/connection/")
    assert works(bipsync, BipsyncToken.objects.get())


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_visitor_is_sent_to_sign_in(bipsync: SimulatedBipsync, ada: Browser, method: str) -> None:
    response = getattr(Browser(), method)(PAGE, secure=True)
    assert response.status_code == 302
    assert response["Location"].startswith("/bipsync/login/")
    assert works(bipsync, BipsyncToken.objects.get())


@pytest.mark.parametrize("method", ["get", "head", "options", "put", "patch", "delete", "trace"])
def test_only_a_post_gives_a_connection_up(
    bipsync: SimulatedBipsync, ada: Browser, method: str
) -> None:
    response = getattr(ada, method)(PAGE, secure=True)
    assert response.status_code == (200 if method in {"get", "head", "options"} else 405)
    assert works(bipsync, BipsyncToken.objects.get())
    assert ada.open("/greeting/").content == b"Hello ada"


@pytest.mark.parametrize("has_middleware", [True, False], ids=["protected site", "bare site"])
def test_another_sites_form_gives_nothing_up(
    bipsync: SimulatedBipsync, ada: Browser, settings: Any, has_middleware: bool
) -> None:
    if not has_middleware:
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    browser = strict(ada)
    elsewhere = {"referer": "https://evil.example/", "origin": "https://evil.example"}
    assert browser.post(PAGE, secure=True, headers=elsewhere).status_code == 403
    assert browser.post(PAGE, secure=True).status_code == 403
    assert works(bipsync, BipsyncToken.objects.get())


def test_our_own_form_does_it(bipsync: SimulatedBipsync, ada: Browser) -> None:
    browser = strict(ada)
    page = browser.open(PAGE).content.decode()
    token = page.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    response = browser.post(
        PAGE,
        {"csrfmiddlewaretoken": token},
        secure=True,
        headers={"referer": f"https://testserver{PAGE}"},
    )
    assert response.status_code == 200
    assert BipsyncToken.objects.get().status == "disconnected"
    assert browser.open("/greeting/").content == b"Hello visitor"
