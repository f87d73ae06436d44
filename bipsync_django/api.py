"""``api_session(user)``: a ``requests`` session that always has a valid token.

``requests`` asks a transport adapter for each hop of each request, so that is where the token is
put on: redirects and prepared requests have it, other hosts do not. Below are the connections,
which all sessions of a process share.
"""

import copy
import os
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Model
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body
from urllib3.exceptions import (
    ConnectTimeoutError,
    InvalidHeader,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from . import lifecycle
from .conf import Tenant, get_tenant, is_secure_url
from .exceptions import AddressRefused, ForeignHost, MissingScope, SignInRequired, Unauthorized
from .models import BipsyncToken
from .redaction import without_traces

__all__ = ["api_session", "service_session"]

LONGEST_PAUSE = 3.0
"""Seconds that a request may sleep before it is tried again; someone may be waiting for a page."""

CONNECTIONS_KEPT = 32
"""How many connections to one host stay open; more threads than that still get one each."""


def api_session(
    user: AbstractBaseUser | AnonymousUser, tenant: str | None = None
) -> requests.Session:
    """Return a session that calls Bipsync's API on behalf of ``user``.

    URLs may be given relative to the tenant's API: ``api_session(user).get("/v1/users/me")``.
    Each request takes a valid access token, which costs one query when nothing is due, and has
    the tenant's ``HTTP_TIMEOUT`` (seconds) unless it names its own ``timeout``. The token goes to
    the tenant's API host over https and nowhere else, redirects included. ``tenant`` is a slug;
    it may be left out when there is one tenant.

    A token that Bipsync answers with 401 is replaced, and the request made once more. Answers of
    502, 503 and 504 and broken connections are tried again, twice at most, for methods that may be
    repeated (RFC 9110 section 9.2.2); the last answer is returned as it is. Neither the response
    nor what is raised holds the token.

    Raises ``SignInRequired`` when ``user`` has no grant. Requests raise what
    ``lifecycle.access_token`` and ``requests`` raise, and

    - ``ForeignHost``: the URL is not on the tenant's API host; nothing was sent;
    - ``MissingScope``: 401, and not because of the token: the grant does not cover this call;
    - ``Unauthorized``: 401, and the body cannot be sent twice: repeat the call;
    - ``AddressRefused``: 403, Bipsync's answer to an address that is not on its allow-list.
    """
    found = get_tenant(tenant)
    token = lifecycle.grant_of(user, found) if isinstance(user, Model) else None
    if token is None:
        raise SignInRequired("This person has not signed in with Bipsync.")
    return _ApiSession(found, token)


def service_session(tenant: str | None = None) -> requests.Session:
    """Return a session that calls Bipsync's API as the site's own service account.

    It is as that of ``api_session``, for work that belongs to nobody. ``tenant`` is a slug; it may
    be left out when there is one tenant. An administrator connects the account in the admin.

    Raises ``SignInRequired`` when the tenant has no service account; requests raise as those of
    ``api_session`` do.
    """
    found = get_tenant(tenant)
    token = lifecycle.service_grant_of(found)
    if token is None:
        raise SignInRequired(
            f"{found.slug} has no service account: connect one in the admin, under Bipsync tokens."
        )
    return _ApiSession(found, token)


class _ApiSession(requests.Session):
    def __init__(self, tenant: Tenant, token: BipsyncToken) -> None:
        super().__init__()
        self._tenant = tenant
        self.headers["Accept"] = "application/json"
        self.verify = tenant.ca_bundle or True
        for scheme in ("https://", "http://"):
            self.mount(scheme, _TokenAdapter(tenant, token))

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        request = copy.copy(request)
        url = request.url.decode() if isinstance(request.url, bytes) else request.url
        if not urlsplit(url).netloc:
            request.url = f"{self._tenant.api_url}/{url.lstrip('/')}"
        prepared = super().prepare_request(request)
        if not _is_tenants(prepared.url, self._tenant):
            raise ForeignHost(
                f"Only {self._tenant.api_url} gets this person's token; use another session for "
                "other hosts."
            )
        return prepared

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        # REQUESTS_CA_BUNDLE would go before the session's own.
        verify = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


class _TokenAdapter(BaseAdapter):
    """Puts an access token that is valid now on what goes to the tenant's API.

    The token is on a copy of the request that nobody else sees.
    """

    def __init__(self, tenant: Tenant, token: BipsyncToken) -> None:
        super().__init__()
        self._tenant = tenant
        self._token = token

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **kwargs: Any
    ) -> requests.Response:
        # That of .netrc, of auth= or of headers=. Bipsync would take it for the token.
        request.headers.pop("Authorization", None)
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._tenant.http_timeout
        if not _is_tenants(request.url, self._tenant):
            # A redirect led here: it is followed, without the token.
            return _exchange(request, kwargs)
        if request.url is not None and request.url.startswith("http:"):
            # A proxy of the environment would carry the token away from loopback, in clear.
            kwargs["proxies"] = {}
        try:
            response = self._send(request, kwargs)
        except requests.RequestException as error:
            error.request = request
            raise
        response.request = request
        return response

    def close(self) -> None:
        """Leave the connections open: they belong to all sessions of the process."""

    @without_traces
    def _send(self, request: requests.PreparedRequest, kwargs: dict[str, Any]) -> requests.Response:
        signed = _sign(request, lifecycle.access_token(self._token))
        response = _exchange(signed, kwargs)
        if response.status_code == 401:
            _discard(response)
            response = _exchange(self._sign_again(request, signed), kwargs)
        if response.status_code == 401:
            _discard(response)
            raise _missing_scope(request)
        if response.status_code == 403:
            _discard(response)
            raise AddressRefused(
                f"Bipsync answered 403 to {_name(request)}: the address that this server's calls "
                f"come from is not on the IP allow-list of {self._tenant.slug}. Have it added at "
                "Bipsync."
            )
        return response

    def _sign_again(
        self, request: requests.PreparedRequest, refused: requests.PreparedRequest
    ) -> requests.PreparedRequest:
        """Return ``request`` with another token than ``refused``."""
        access_token = refused.headers["Authorization"].removeprefix("Bearer ")
        replacement = lifecycle.replace_refused(self._token, access_token)
        if replacement is None:
            raise _missing_scope(request)
        if not _rewind(request):
            raise Unauthorized(
                f"Bipsync answered 401 to {_name(request)}. The token has been replaced, but the "
                "body of this request cannot be sent twice: repeat the call."
            )
        return _sign(request, replacement)


def _missing_scope(request: requests.PreparedRequest) -> MissingScope:
    return MissingScope(
        f"Bipsync answered 401 to {_name(request)} although the token is fresh: the permission "
        "lacks a scope that this call needs, or has just been withdrawn. Ask the person for it."
    )


def _sign(request: requests.PreparedRequest, access_token: str) -> requests.PreparedRequest:
    signed = request.copy()
    signed.headers["Authorization"] = f"Bearer {access_token}"
    return signed


def _discard(response: requests.Response) -> None:
    """Read the answer to its end, so that its connection serves the next request."""
    response.raw.drain_conn()
    response.close()


def _rewind(request: requests.PreparedRequest) -> bool:
    """Make the body ready to be sent, and return whether that can be done once more later."""
    body: object = request.body
    if body is None or isinstance(body, bytes | str):
        return True
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True


def _name(request: requests.PreparedRequest) -> str:
    """What messages call the request: without the query, which may be nobody else's business."""
    return f"{request.method} {urlsplit(str(request.url)).path}"


def _is_tenants(url: str | None, tenant: Tenant) -> bool:
    if url is None or not is_secure_url(
        url.partition("#")[0], allow_insecure_loopback=tenant.allow_insecure_loopback
    ):
        return False
    return _origin(url) == _origin(tenant.api_url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


# --- connections


class _Retry(Retry):
    """urllib3's, for callers who do not wait long."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        retry = self
        if (response is not None and self._has_to_wait(response)) or _has_waited(error):
            # read=False lets requests call a timeout a timeout.
            retry = self.new(total=0, read=False)
        return super(_Retry, retry).increment(method, url, response, error, *args, **kwargs)

    def _has_to_wait(self, response: BaseHTTPResponse) -> bool:
        # urllib3 can only shorten the wait, and come back before it is asked to.
        try:
            return (self.get_retry_after(response) or 0) > LONGEST_PAUSE
        except (InvalidHeader, ValueError, OverflowError):
            return True


def _has_waited(error: Exception | None) -> bool:
    """Whether a whole ``HTTP_TIMEOUT`` has passed already."""
    if isinstance(error, ProxyError):
        error = error.original_error
    if isinstance(error, NewConnectionError):  # a timeout by class, but refused at once
        return False
    return isinstance(error, ConnectTimeoutError | ReadTimeoutError)


_RETRY = _Retry(
    total=2,
    # urllib3 repeats a POST after what it counts as "other" errors, such as those of TLS.
    other=0,
    status_forcelist={502, 503, 504},
    raise_on_status=False,
    backoff_factor=0.2,
    backoff_jitter=0.4,
)

# By whether a request may be repeated: urllib3 would repeat one with the rest of its body.
_adapters: dict[bool, HTTPAdapter] = {}
_of_parent: list[object] = []


def _exchange(request: requests.PreparedRequest, kwargs: dict[str, Any]) -> requests.Response:
    """Send ``request`` as it is, on a connection that is open already if there is one."""
    can_be_repeated = _rewind(request)
    adapter = _adapters.get(can_be_repeated) or _adapters.setdefault(
        can_be_repeated,
        HTTPAdapter(pool_maxsize=CONNECTIONS_KEPT, max_retries=_RETRY if can_be_repeated else 0),
    )
    return adapter.send(request, **kwargs)


def _start_afresh() -> None:
    """Leave the connections of the parent process to it.

    They are not closed: that takes locks which another thread of the parent may have held.
    """
    global _adapters
    _of_parent.append(_adapters)
    _adapters = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
