"""What a browser does in a sign-in: Django's test client with a browser's manners, and Chromium."""

import html
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.models import Session
from django.db import connections
from django.test import Client
from playwright import sync_api

from bipsync_django.testing import SimulatedBipsync
from tests import databases

LOGIN = "/bipsync/login/"
CALLBACK = "/bipsync/callback/"
LOGOUT = "/bipsync/logout/"

_CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser(Client):
    """Django's test client, over https, which forgets cookies that have been taken back."""

    def request(self, **request: Any) -> Any:
        response = super().request(**request)
        for name in [name for name, morsel in self.cookies.items() if morsel["max-age"] == 0]:
            del self.cookies[name]
        return response

    def open(self, url: str, **extra: Any) -> Any:
        """Go to ``url``, absolute or not, on this site."""
        parts = urlsplit(url)
        return self.get(f"{parts.path}?{parts.query}", secure=True, **extra)

    def begin(self, next_url: str | None = None) -> str:
        """Start a sign-in; return where at Bipsync the browser is sent."""
        query = {} if next_url is None else {"next": next_url}
        response = self.get(LOGIN, query, secure=True)
        assert response.status_code == 302, response.content
        return str(response["Location"])

    def trips(self) -> dict[str, str]:
        """The sealed cookies of trips under way, by name."""
        return {
            name: morsel.value
            for name, morsel in self.cookies.items()
            if name.startswith(("__Host-bipsync-", "bipsync-"))
        }

    def user_id(self) -> str | None:
        """The primary key of the user whose session this browser has, as text."""
        morsel = self.cookies.get("sessionid")
        session = Session.objects.filter(pk=morsel.value).first() if morsel else None
        return session.get_decoded().get(SESSION_KEY) if session else None

    def twin(self) -> "Browser":
        """The same browser once more, for a request at the same moment."""
        twin = Browser()
        for name, morsel in self.cookies.items():
            twin.cookies[name] = morsel.value
        return twin


def signed_in(bipsync: SimulatedBipsync, user: Any = None) -> Browser:
    """A browser that has gone through a whole sign-in."""
    browser = Browser()
    response = browser.open(bipsync.approve(browser.begin(), user=user))
    assert response.status_code == 302, response.content
    return browser


def way_to_bipsync(response: Any) -> str:
    """Where a page that goes on by itself leads, as it says in its header and in its link."""
    assert response.status_code == 200, response.content
    url = str(response["Refresh"]).removeprefix("0; url=")
    assert links(response.content.decode()) == [url]
    return url


def answer_confirmation(browser: Browser, response: Any, do: str = "connect") -> Any:
    """Press a button of the page that ``response`` leads to: whose Bipsync account is it?."""
    assert response.status_code == 302, response.content
    url = str(response["Location"])
    assert url.startswith("/bipsync/connect/confirm/")
    return browser.post(url, {"do": do}, secure=True)


def visible_text(page: str) -> str:
    """What a person reads of a page, title included."""
    page = re.sub(r"(?s)<style.*?</style>", "", page)
    return " ".join(html.unescape(re.sub(r"(?s)<[^>]+>", " ", page)).split())


def links(page: str) -> list[str]:
    """Where the links of a page lead."""
    return [html.unescape(url) for url in re.findall(r'<a [^>]*href="([^"]*)"', page)]


def at_the_same_moment(*work: Callable[[], Any]) -> list[Any]:
    """Run each piece of work in a thread of its own, all released at once; return the results."""
    barrier = threading.Barrier(len(work))
    results: list[Any] = [None] * len(work)

    def run(place: int) -> None:
        try:
            barrier.wait(10)
            results[place] = work[place]()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            results[place] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """Debian's Chromium. Where there is none, the test is skipped, or fails in CI."""
    path = shutil.which("chromium")
    if path is None:
        reason = "There is no chromium on the PATH."
        if databases.IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()
