"""A site under test and the simulated Bipsync clients that its settings point to."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self
from urllib.parse import urlsplit

from django.test import Client
from django.urls import reverse

from .people import SimulatedUser
from .simulator import SimulatedBipsync
from .tls import Authority

# Settings that a simulated client cannot satisfy, whatever the site sets them to.
_REAL_ONLY = {"AUDIENCE", "ISSUER", "REDIRECT_URI", "CA_BUNDLE", "CLIENT"}


class SimulatedSite:
    """One simulated client for each tenant of a site. A context manager.

    Args:
        configured: the site's own ``BIPSYNC``, of which everything stays that a simulated client
            can satisfy.
        tls: who certifies the simulated clients; then they speak https.

    Attributes:
        tenants: the simulated clients by slug, in the order of the settings.
        settings: what the site has to have for ``BIPSYNC`` meanwhile.
    """

    def __init__(self, configured: Mapping[str, Any], *, tls: Authority | None = None) -> None:
        self._configured = configured
        self._running = ExitStack()
        own = configured.get("TENANTS")
        slugs = list(own) if own else [str(configured.get("CLIENT", "acme"))]
        self.tenants = {slug: SimulatedBipsync(client=slug, tls=tls) for slug in slugs}

    def __enter__(self) -> Self:
        with ExitStack() as running:
            for simulated in self.tenants.values():
                running.enter_context(simulated)
            self._running = running.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    @property
    def first(self) -> SimulatedBipsync:
        """The client of the first tenant, or of the only one."""
        return next(iter(self.tenants.values()))

    @property
    def settings(self) -> dict[str, Any]:
        """The site's settings, with the simulated clients in the place of the real ones."""
        if "TENANTS" not in self._configured:
            return {**_kept(self._configured), **self.first.settings}
        tenants = {}
        loopback = None
        for slug, own in self._configured["TENANTS"].items():
            simulated = self.tenants[slug].settings
            loopback = simulated.pop("ALLOW_INSECURE_LOOPBACK", None)
            tenants[slug] = {**_kept(own), **simulated}
        shared = {**_kept(self._configured), "TENANTS": tenants}
        return shared if loopback is None else {**shared, "ALLOW_INSECURE_LOOPBACK": True}

    def allow(self, *origins: str) -> None:
        """Let browsers be sent back to the site at these origins, such as ``https://testserver``.

        The settings have to be in use by then, because the addresses follow from them.
        """
        for place, (slug, simulated) in enumerate(self.tenants.items()):
            paths = {reverse("bipsync:callback", kwargs={"tenant": slug})}
            if place == 0:
                paths.add(reverse("bipsync:callback"))
            simulated.redirect_uris |= {f"{origin}{path}" for origin in origins for path in paths}

    def sign_in(
        self,
        client: Client,
        *,
        user: str | SimulatedUser | None = None,
        next_url: str | None = None,
        tenant: str | None = None,
    ) -> Any:
        """Take Django's test client through a sign-in; return the answer to the callback.

        Args:
            client: whose browser it is.
            user: an id, an e-mail address or a ``SimulatedUser``; by default the first of them.
            next_url: where to go after the sign-in.
            tenant: the slug; by default the first.
        """
        response = client.get(self._address("login", tenant), _query(next_url), secure=True)
        return self._come_back(client, response, user, tenant)

    def connect(
        self,
        client: Client,
        *,
        user: str | SimulatedUser | None = None,
        next_url: str | None = None,
        tenant: str | None = None,
    ) -> Any:
        """Connect an account to the person who is signed in, and confirm that at the button.

        Arguments as above. Returns the answer to the button, or to the callback where it is a
        failure page or the account is the person's already.
        """
        query = _query(next_url)
        response = client.post(
            self._address("connect", tenant), secure=True, query_params=query or None
        )
        response = self._come_back(client, response, user, tenant)
        url = urlsplit(response.headers.get("Location", "")).path
        if url.startswith(reverse("bipsync:connect") + "confirm/"):
            response = client.post(url, {"do": "connect"}, secure=True)
        return response

    def _address(self, name: str, tenant: str | None) -> str:
        if len(self.tenants) == 1:
            return reverse(f"bipsync:{name}")
        return reverse(f"bipsync:{name}", kwargs={"tenant": tenant or self.first.client})

    def _come_back(
        self, client: Client, response: Any, user: str | SimulatedUser | None, tenant: str | None
    ) -> Any:
        # The way to Bipsync is a redirect, or from a form a page that goes on by itself.
        away = response.headers.get("Location") or _refresh(response)
        if "state=" not in away:
            raise AssertionError(
                f"The site answered {response.status_code}, and not with the way to Bipsync."
            )
        simulated = self.tenants[tenant] if tenant else self.first
        callback = urlsplit(simulated.approve(away, user=user))
        # Over https, as in production: "testserver" is no loopback address, so the site would
        # not take a code over http there.
        response = client.get(f"{callback.path}?{callback.query}", secure=True)
        if again := _refresh(response):
            # With SESSION_COOKIE_SAMESITE = "Strict" a page asks the browser to come again.
            response = client.get(again, secure=True)
        return response


def _refresh(response: Any) -> str:
    return str(response.headers.get("Refresh", "")).partition("url=")[2]


def _kept(configured: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in configured.items() if key not in _REAL_ONLY}


def _query(next_url: str | None) -> dict[str, str]:
    return {} if next_url is None else {"next": next_url}
