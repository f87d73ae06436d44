"""``api_session(user)``: a ``requests`` session that always has a valid token."""

from typing import Any
from urllib.parse import urlsplit

import requests
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Model
from requests.auth import AuthBase

from . import lifecycle
from .conf import Tenant, get_tenant, is_secure_url
from .exceptions import ForeignHost, SignInRequired
from .models import BipsyncToken

__all__ = ["api_session"]


def api_session(
    user: AbstractBaseUser | AnonymousUser, tenant: str | None = None
) -> requests.Session:
    """Return a session that calls Bipsync's API on behalf of ``user``.

    URLs may be given relative to the tenant's API: ``api_session(user).get("/v1/users/me")``.
    Each request takes a valid access token, which costs one query when nothing is due, and has
    the tenant's ``HTTP_TIMEOUT`` (seconds) unless it names its own ``timeout``. The token goes to
    the tenant's API host over https and nowhere else, redirects included. ``tenant`` is a slug;
    it may be left out when there is one tenant. Close the session, or use it in a ``with``.

    Raises ``SignInRequired`` when ``user`` has no grant; requests raise what
    ``lifecycle.access_token`` raises, and ``ForeignHost``.
    """
    found = get_tenant(tenant)
    token = lifecycle.grant_of(user, found) if isinstance(user, Model) else None
    if token is None:
        raise SignInRequired("This person has not signed in with Bipsync.")
    return _ApiSession(found, token)


class _ApiSession(requests.Session):
    def __init__(self, tenant: Tenant, token: BipsyncToken) -> None:
        super().__init__()
        self._tenant = tenant
        self.auth = _CurrentToken(tenant, token)
        self.headers["Accept"] = "application/json"

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> Any:
        address = url.decode() if isinstance(url, bytes) else url
        if not urlsplit(address).netloc:
            address = f"{self._tenant.api_url}/{address.lstrip('/')}"
        kwargs.setdefault("timeout", self._tenant.http_timeout)
        if self._tenant.ca_bundle is not None:
            # As an argument, because REQUESTS_CA_BUNDLE goes before the session's own.
            kwargs.setdefault("verify", self._tenant.ca_bundle)
        return super().request(method, address, *args, **kwargs)

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Drop the token when a redirect leaves the tenant's API."""
        if not _is_tenants(prepared_request.url, self._tenant):
            prepared_request.headers.pop("Authorization", None)


class _CurrentToken(AuthBase):
    """Puts an access token that is valid now on a request to the tenant's API."""

    def __init__(self, tenant: Tenant, token: BipsyncToken) -> None:
        self._tenant = tenant
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if not _is_tenants(request.url, self._tenant):
            raise ForeignHost(
                f"Only {self._tenant.api_url} gets this person's token; use another session for "
                "other hosts."
            )
        access_token = lifecycle.access_token(self._token)
        request.headers["Authorization"] = f"Bearer {access_token}"
        return request


def _is_tenants(url: str | None, tenant: Tenant) -> bool:
    if url is None or not is_secure_url(
        url.partition("#")[0], allow_insecure_loopback=tenant.allow_insecure_loopback
    ):
        return False
    return _origin(url) == _origin(tenant.api_url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
