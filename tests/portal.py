"""A portal in a real browser: Debian's Chromium, driven by Playwright. A plugin of pytest's.

The portal is at ``localhost`` and the simulated Bipsync at ``127.0.0.1``: to a browser these are
two sites, as a portal and Bipsync are.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import BrowserContext, Page
from pytest_django.live_server_helper import LiveServer

import bipsync_django
from bipsync_django.testing import SimulatedBipsync
from tests.browser import CALLBACK, chromium

CSP = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'"
# Django's own admin has scripts and pictures.
ADMIN_CSP = f"{CSP}; script-src 'self'; img-src 'self'"
SHOTS = os.environ.get("BIPSYNC_SCREENSHOTS")
"""A directory to save pictures of the pages in."""


class CspMiddleware:
    """The strictest Content-Security-Policy under which pages with a style sheet can work."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        is_admins = request.path.startswith("/admin/")
        response.headers["Content-Security-Policy"] = ADMIN_CSP if is_admins else CSP
        return response


@pytest.fixture(scope="module")
def chromium_browser() -> Iterator[Chromium]:
    # Playwright keeps an event loop running in this thread, which Django takes for async code.
    with pytest.MonkeyPatch.context() as patch, chromium() as browser:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield browser


@pytest.fixture
def portal(
    transactional_db: None, bipsync: SimulatedBipsync, settings: Any, tmp_path: Path
) -> Iterator[str]:
    """The portal's address. Its server shares this process's settings and database."""
    static = tmp_path / "static"
    static.mkdir()
    for package, name in ((bipsync_django, "bipsync_django"), (admin, "admin")):
        assert package.__file__ is not None
        (static / name).symlink_to(Path(package.__file__).parent / "static" / name)
    settings.STATIC_ROOT = str(static)
    settings.MIDDLEWARE = [f"{__name__}.CspMiddleware", *settings.MIDDLEWARE]
    # One for each test: middleware is loaded when a server starts.
    server = LiveServer("localhost")
    bipsync.redirect_uris.add(f"{server.url}{CALLBACK}")
    assert server.url.startswith("http://localhost:")
    assert bipsync.url.startswith("http://127.0.0.1:")
    yield str(server.url)
    server.stop()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console holds against the pages; asserted to be nothing at the end."""
    return []


@pytest.fixture
def context(
    chromium_browser: Chromium, portal: str, complaints: list[str]
) -> Iterator[BrowserContext]:
    context = chromium_browser.new_context(base_url=portal)
    context.set_default_timeout(15_000)

    def note(message: Any) -> None:
        # A failure page's own status is no complaint about the page.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def note_missing(response: Any) -> None:
        if response.status >= 400 and not response.request.is_navigation_request():
            complaints.append(f"{response.status} {response.url}")

    context.on("console", note)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("response", note_missing)
    yield context
    context.close()
    assert complaints == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def allow(page: Page, who: str = "Ada Lovelace") -> None:
    """Agree, on Bipsync's page, as ``who``."""
    page.get_by_label(who).check()
    page.get_by_role("button", name="Allow").click()


def choose(page: Page, action: str) -> None:
    """Choose what to do to the rows that are ticked, in a list of the admin's."""
    page.locator("select[name=action]").select_option(label=action)
    # Its words differ between versions of Django.
    page.locator(".actions button[type=submit]").first.click()


def log_in(page: Page, portal: str, user: User) -> None:
    """Give the browser a session of ``user``'s, as a password would."""
    session = Client()
    session.force_login(user, django_settings.AUTHENTICATION_BACKENDS[-1])
    cookie = session.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": cookie, "url": portal}])


def shoot(page: Page, name: str) -> None:
    """Save a picture of the page, where somebody has asked for pictures."""
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def violations(page: Page, within: str | None = None) -> list[str]:
    """What axe finds wrong with the page, or with the part ``within`` it, in all colours."""
    found = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        # Django's admin fades from one colour to another.
        page.wait_for_timeout(400)
        # It would fetch style sheets by script, which the portal's policy forbids.
        results = Axe().run(page, context=within, options={"preload": False})
        for violation in results.response["violations"]:
            nodes = "; ".join(
                f"{node['html'][:200]} {node['failureSummary']}" for node in violation["nodes"][:3]
            )
            found.append(f"{scheme}: {violation['id']}: {violation['help']} ({nodes})")
    return found
