"""Sessions that lapse, beside other code of the site: middleware, receivers, backends, packages."""

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib import messages
from django.contrib.auth import BACKEND_SESSION_KEY, alogin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.middleware import get_user
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient
from django.urls import path

from bipsync_django import lifecycle
from bipsync_django.backends import BipsyncBackend
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests import urls
from tests.browser import LOGIN, LOGOUT, Browser, signed_in
from tests.test_middleware import ENDS, withdraw

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "ada@acme.example"
PASSWORDS = "django.contrib.auth.backends.ModelBackend"


@login_not_required
def writes(request: HttpRequest) -> HttpResponse:
    """A page for everybody that stores something in the session."""
    request.session["language"] = "de"
    return HttpResponse("ok")


@login_not_required
def streams(request: HttpRequest) -> StreamingHttpResponse:
    """A page for everybody that is written while it is sent."""
    return StreamingHttpResponse(f"{name} " for name in [*request.session.keys(), "end"])


@login_not_required
async def signs_in(request: HttpRequest) -> HttpResponse:
    """A page of the site's own that signs somebody in, asynchronously."""
    await alogin(request, await User.objects.aget(username="other"), PASSWORDS)
    user = await request.auser()
    return HttpResponse(user.get_username())


urlpatterns = [
    path("writes/", writes),
    path("streams/", streams),
    path("signs-in/", signs_in),
    *urls.urlpatterns,
]


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    cache.clear()


@pytest.fixture
def ada(bipsync: SimulatedBipsync) -> Browser:
    return signed_in(bipsync, ADA)


def copy_of(key: str) -> Browser:
    browser = Browser()
    browser.cookies["sessionid"] = key
    return browser


def asks_anew(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware behind ours that asks Django once more who is signed in."""

    def middleware(request: HttpRequest) -> Any:
        request.user = get_user(request)
        return get_response(request)

    return middleware


def asked_before(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware in front of ours that wants to know who comes."""

    def middleware(request: HttpRequest) -> Any:
        str(request.user)
        return get_response(request)

    return middleware


@pytest.mark.parametrize("end", [None, *ENDS])
def test_middleware_that_asks_anew_finds_nobody(
    bipsync: SimulatedBipsync, ada: Browser, settings: Any, end: Callable[[], None] | None
) -> None:
    ours = settings.MIDDLEWARE.index("bipsync_django.middleware.BipsyncSessionMiddleware")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.asks_anew"]
    settings.MIDDLEWARE.insert(ours, f"{__name__}.asked_before")
    if end is None:
        withdraw(bipsync)
    else:
        end()
    assert ada.twin().open("/open-house/").content == b"Hello visitor"


def test_a_view_that_signs_somebody_in_knows_them(bipsync: SimulatedBipsync, ada: Browser) -> None:
    User.objects.create_user("other")
    withdraw(bipsync)
    client = AsyncClient()
    client.cookies = ada.cookies
    answer = async_to_sync(client.get)("/signs-in/", secure=True)
    assert answer.content == b"other"


def test_a_receiver_that_needs_later_middleware_stops_no_page(ada: Browser) -> None:
    def say_goodbye(*, request: HttpRequest, **kwargs: object) -> None:
        messages.info(request, "Goodbye")

    user_logged_out.connect(say_goodbye)
    try:
        lifecycle.disconnect(BipsyncToken.objects.get())
        ada.raise_request_exception = False
        assert ada.open("/greeting/").content == b"Hello visitor"
        assert ada.user_id() is None
    finally:
        user_logged_out.disconnect(say_goodbye)


def test_a_session_of_a_backend_that_is_gone_is_a_visitors() -> None:
    browser = Browser()
    browser.force_login(User.objects.create_user("old"), PASSWORDS)
    session = browser.session
    session[BACKEND_SESSION_KEY] = "social_core.backends.google.GoogleOAuth2"
    session.save()
    assert browser.open("/greeting/").content == b"Hello visitor"


def test_a_signal_without_a_request_is_none_of_ours() -> None:
    """As packages send it that sign in without a session."""
    user = User.objects.create_user("api")
    user_logged_in.send(sender=User, request=None, user=user)


class Blocking(BipsyncBackend):
    """A site's backend with a rule of its own about who may be signed in."""

    def get_user(self, user_id: Any) -> Any:
        user: Any = super().get_user(user_id)
        return None if user is not None and user.last_name == "blocked" else user


@pytest.mark.parametrize("page", ["/greeting/", "/agreeting/"])
def test_an_asynchronous_view_asks_the_sites_get_user_too(
    bipsync: SimulatedBipsync, settings: Any, page: str
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Blocking"]
    browser = signed_in(bipsync, ADA)
    assert browser.open(page).content == b"Hello ada"
    User.objects.update(last_name="blocked")
    assert browser.open(page).content == b"Hello visitor"


# --- a session that waits, and a visitor's that takes its place


def test_a_copied_cookie_is_dead_once_a_visitors_session_took_its_place(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    old = ada.cookies["sessionid"].value
    withdraw(bipsync)
    ada.open("/writes/")
    assert not Session.objects.filter(pk=old).exists()
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    assert ada.open("/greeting/").content == b"Hello ada"
    assert copy_of(old).open("/greeting/").content == b"Hello visitor"


def test_signing_out_ends_it_after_such_a_page_too(bipsync: SimulatedBipsync, ada: Browser) -> None:
    old = ada.cookies["sessionid"].value
    withdraw(bipsync)
    ada.open("/writes/")
    ada.post(LOGOUT, secure=True)
    assert not Session.objects.filter(pk=old).exists()


def test_an_answer_that_is_still_written_sees_no_persons_session(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    withdraw(bipsync)
    response = ada.open("/streams/")
    assert b"".join(response.streaming_content) == b"end "
    assert ada.open(LOGIN).status_code == 302
