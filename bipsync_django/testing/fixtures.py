"""pytest fixtures for sites that use bipsync-django.

Name the module in the site's top ``conftest.py``::

    pytest_plugins = ["bipsync_django.testing.fixtures"]

and sign somebody in::

    @pytest.mark.django_db
    def test_staff_see_the_dashboard(client, bipsync_sign_in):
        bipsync_sign_in(client)
        assert client.get("/dashboard/").status_code == 200
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from django.test import Client

from .people import SimulatedUser
from .simulator import SimulatedBipsync
from .site import SimulatedSite
from .tls import Authority

_ORIGINS = ("https://testserver", "http://testserver")


@pytest.fixture
def bipsync_tls() -> Authority | None:
    """How the simulated clients speak: http. Override it with an ``Authority`` for https."""
    return None


@pytest.fixture
def bipsync_site(
    settings: Any, request: pytest.FixtureRequest, bipsync_tls: Authority | None
) -> Iterator[SimulatedSite]:
    """The site's ``BIPSYNC`` setting points to a simulated client for each of its tenants.

    With pytest-django's ``live_server`` browsers may be sent back there as well.
    """
    with SimulatedSite(getattr(settings, "BIPSYNC", {}), tls=bipsync_tls) as site:
        settings.BIPSYNC = site.settings
        site.allow(*_ORIGINS)
        if "live_server" in request.fixturenames:
            site.allow(request.getfixturevalue("live_server").url)
        yield site


@pytest.fixture
def bipsync(bipsync_site: SimulatedSite) -> SimulatedBipsync:
    """The running simulated client of the site's only tenant, or of its first."""
    return bipsync_site.first


@pytest.fixture
def bipsync_tenants(bipsync_site: SimulatedSite) -> Mapping[str, SimulatedBipsync]:
    """The running simulated clients of all tenants, by slug."""
    return bipsync_site.tenants


@pytest.fixture
def bipsync_sign_in(bipsync_site: SimulatedSite) -> Callable[..., Any]:
    """A callable that signs somebody in to the site through the whole flow.

    ``sign_in(client, *, user=None, next=None, tenant=None)`` starts at the site's sign-in view
    with Django's test client, approves at the simulated Bipsync over real HTTP, and returns the
    site's response to the callback. ``user`` is an id, an e-mail address or a ``SimulatedUser``,
    by default the first of ``bipsync.users``; ``next`` is where to go after the sign-in;
    ``tenant`` is a slug, by default that of the first tenant.
    """

    def sign_in(
        client: Client,
        *,
        user: str | SimulatedUser | None = None,
        next: str | None = None,  # noqa: A002 - the name that Django's own views use
        tenant: str | None = None,
    ) -> Any:
        return bipsync_site.sign_in(client, user=user, next_url=next, tenant=tenant)

    return sign_in


@pytest.fixture
def bipsync_connect(bipsync_site: SimulatedSite) -> Callable[..., Any]:
    """A callable that connects a Bipsync account to the person who is signed in.

    ``connect(client, *, user=None, next=None, tenant=None)``; arguments and answer are those of
    ``bipsync_sign_in``.
    """

    def connect(
        client: Client,
        *,
        user: str | SimulatedUser | None = None,
        next: str | None = None,  # noqa: A002 - as above
        tenant: str | None = None,
    ) -> Any:
        return bipsync_site.connect(client, user=user, next_url=next, tenant=tenant)

    return connect
