"""A mixin for the test cases of ``django.test``, for sites that do without pytest::

class DashboardTest(BipsyncTestMixin, TestCase):
    def test_staff_see_the_dashboard(self):
        self.bipsync_sign_in()
        self.assertEqual(self.client.get("/dashboard/").status_code, 200)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.test import Client, override_settings

from .people import SimulatedUser
from .simulator import SimulatedBipsync
from .site import SimulatedSite

__all__ = ["BipsyncTestMixin"]

if TYPE_CHECKING:
    from django.test import SimpleTestCase

    _Base = SimpleTestCase
else:
    _Base = object


class BipsyncTestMixin(_Base):
    """Gives each test a simulated Bipsync of its own. Name it before Django's class.

    It goes with ``TestCase``, ``TransactionTestCase`` and ``LiveServerTestCase``. With the last
    a real browser may sign in too: the simulated Bipsync has a page for that.

    Attributes:
        bipsync: the client of the site's only tenant, or of its first.
        bipsync_tenants: those of all tenants, by slug.
    """

    bipsync: SimulatedBipsync
    bipsync_tenants: Mapping[str, SimulatedBipsync]

    def setUp(self) -> None:
        """Start the simulated clients, and stop them after the test."""
        super().setUp()
        self._site = self.enterContext(SimulatedSite(getattr(settings, "BIPSYNC", {})))
        self.enterContext(override_settings(BIPSYNC=self._site.settings))
        self._site.allow("https://testserver", "http://testserver")
        if live_server_url := getattr(self, "live_server_url", None):
            self._site.allow(live_server_url)
        self.bipsync, self.bipsync_tenants = self._site.first, self._site.tenants

    def bipsync_sign_in(
        self,
        client: Client | None = None,
        *,
        user: str | SimulatedUser | None = None,
        next: str | None = None,  # noqa: A002 - the name that Django's own views use
        tenant: str | None = None,
    ) -> Any:
        """Sign somebody in through the whole flow; return the site's answer to the callback.

        Args:
            client: whose browser it is; by default ``self.client``.
            user: an id, an e-mail address or a ``SimulatedUser``; by default the first of them.
            next: where to go after the sign-in.
            tenant: the slug; by default that of the first tenant.
        """
        return self._site.sign_in(client or self.client, user=user, next_url=next, tenant=tenant)

    def bipsync_connect(
        self,
        client: Client | None = None,
        *,
        user: str | SimulatedUser | None = None,
        next: str | None = None,  # noqa: A002 - as above
        tenant: str | None = None,
    ) -> Any:
        """Connect a Bipsync account to the person who is signed in; as ``bipsync_sign_in``."""
        return self._site.connect(client or self.client, user=user, next_url=next, tenant=tenant)
