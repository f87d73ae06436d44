"""pytest fixtures for sites that use bipsync-django.

Name the module in the site's top ``conftest.py``::

    pytest_plugins = ["bipsync_django.testing.fixtures"]

and sign somebody in::

    @pytest.mark.django_db
    def test_staff_see_the_dashboard(client, bipsync_sign_in):
        bipsync_sign_in(client)
        assert client.get("/dashboard/").status_code == 200
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.urls import reverse

from . import SimulatedBipsync, SimulatedUser

# Settings that a simulated tenant cannot satisfy, whatever the site sets them to.
_REAL_TENANT_ONLY = {"TENANTS", "AUDIENCE", "ISSUER", "REDIRECT_URI", "CA_BUNDLE"}
_SCHEMES = ("https", "http")


@pytest.fixture
def bipsync(settings: Any) -> Iterator[SimulatedBipsync]:
    """A running simulated Bipsync that the site's ``BIPSYNC`` setting points to."""
    with SimulatedBipsync() as simulated:
        configured = {
            key: value
            for key, value in getattr(settings, "BIPSYNC", {}).items()
            if key not in _REAL_TENANT_ONLY
        }
        settings.BIPSYNC = {**configured, **simulated.settings}
        callback = reverse("bipsync:callback")
        simulated.redirect_uris |= {f"{scheme}://testserver{callback}" for scheme in _SCHEMES}
        yield simulated


@pytest.fixture
def bipsync_sign_in(bipsync: SimulatedBipsync) -> Callable[..., Any]:
    """A callable that signs somebody in to the site through the whole flow.

    ``sign_in(client, *, user=None, next=None)`` starts at the site's sign-in view with Django's
    test client, approves at the simulated Bipsync over real HTTP, and returns the site's response
    to the callback. ``user`` is an id, an e-mail address or a ``SimulatedUser``, by default the
    first of ``bipsync.users``; ``next`` is where to go after the sign-in.
    """

    def sign_in(
        client: Client,
        *,
        user: str | SimulatedUser | None = None,
        next: str | None = None,  # noqa: A002 - the name that Django's own views use
    ) -> Any:
        query = {} if next is None else {"next": next}
        # Over https, as in production: "testserver" is no loopback address, so the site would
        # not take a code over http there.
        response = client.get(reverse("bipsync:login"), query, secure=True)
        if response.status_code != 302:
            raise AssertionError(f"The sign-in view answered {response.status_code}, not 302.")
        callback = urlsplit(bipsync.approve(response["Location"], user=user))
        response = client.get(f"{callback.path}?{callback.query}", secure=True)
        if "Refresh" in response:
            # With SESSION_COOKIE_SAMESITE = "Strict" a page asks the browser to come again.
            response = client.get(response["Refresh"].partition("url=")[2], secure=True)
        return response

    return sign_in
