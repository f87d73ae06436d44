"""A site with two Bipsync clients. A plugin of pytest's."""

from collections.abc import Iterator
from typing import Any

import pytest

from bipsync_django.testing import SimulatedBipsync
from tests.browser import LOGIN, Browser

HOST = "https://testserver"
CALLBACKS = {"acme": "/bipsync/callback/", "globex": "/bipsync/callback/globex/"}


@pytest.fixture
def tenants(settings: Any) -> Iterator[dict[str, SimulatedBipsync]]:
    """Two clients with the same people and, because the second chose it so, the same client id."""
    with SimulatedBipsync(client="acme") as acme, SimulatedBipsync(client="globex") as globex:
        both = {"acme": acme, "globex": globex}
        shared = {"ALLOW_INSECURE_LOOPBACK": True, "SCOPES": ["users:read"]}
        own: dict[str, dict[str, Any]] = {slug: one.settings for slug, one in both.items()}
        for slug, one in both.items():
            own[slug].pop("ALLOW_INSECURE_LOOPBACK")
            own[slug]["NAME"] = f"{slug.title()} Capital"
            one.redirect_uris = {f"{HOST}{CALLBACKS[slug]}"}
        settings.BIPSYNC = {**shared, "TENANTS": own}
        yield both


@pytest.fixture
def acme(tenants: dict[str, SimulatedBipsync]) -> SimulatedBipsync:
    return tenants["acme"]


@pytest.fixture
def globex(tenants: dict[str, SimulatedBipsync]) -> SimulatedBipsync:
    return tenants["globex"]


def begin(browser: Browser, tenant: str, next_url: str = "") -> str:
    """Start a sign-in at ``tenant``; return where at Bipsync the browser is sent."""
    query = {"next": next_url} if next_url else {}
    return str(browser.get(f"{LOGIN}{tenant}/", query, secure=True)["Location"])


def sign_in_at(bipsync: SimulatedBipsync, user: Any = None) -> Browser:
    """A browser that has gone through a whole sign-in at this client."""
    browser = Browser()
    response = browser.open(bipsync.approve(begin(browser, bipsync.client), user=user))
    assert response.status_code == 302, response.content
    return browser


def configure(settings: Any, tenant: str, **values: Any) -> None:
    """Change settings of one tenant."""
    own = settings.BIPSYNC["TENANTS"]
    tenants = {**own, tenant: {**own[tenant], **values}}
    settings.BIPSYNC = {**settings.BIPSYNC, "TENANTS": tenants}


def take_out(settings: Any, tenant: str) -> None:
    """Take a tenant out of the settings."""
    tenants = {slug: own for slug, own in settings.BIPSYNC["TENANTS"].items() if slug != tenant}
    settings.BIPSYNC = {**settings.BIPSYNC, "TENANTS": tenants}
