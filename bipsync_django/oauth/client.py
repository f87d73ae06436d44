"""The authorization URL and the token endpoint (RFC 6749, RFC 7636).

Every answer of the token endpoint becomes a ``TokenPair`` or one of three errors: ``GrantDead``,
``ProviderMisconfigured`` or ``RetryLater``. What a person's grant may be ended for is decided
here and nowhere else.
"""

import io
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import requests
from oauthlib.oauth2 import WebApplicationClient
from requests_oauthlib import OAuth2Session

from ..conf import Tenant, is_secure_url
from ..exceptions import (
    ConfigurationError,
    GrantDead,
    ProviderMisconfigured,
    RetryLater,
    TokenEndpointError,
)
from ..redaction import without_traces
from .claims import is_scope
from .transport import ExchangeFailed, exchange

__all__ = [
    "TokenPair",
    "authorization_url",
    "create_verifier",
    "exchange_code",
    "refresh_pair",
]

_MAX_ANSWER = 128 * 1024
_MAX_TOKEN = 32 * 1024
_MAX_LIFETIME = 31 * 24 * 3600
# For an answer that does not say how long the access token lives: soon enough to find out.
_ASSUMED_LIFETIME = 300

_VISIBLE = re.compile(r"[!-~]+")

_DEAD_IN_LEAGUE_8 = "The refresh token is invalid."
_DEAD_CODE_HINTS_IN_LEAGUE_8 = (
    "Authorization code has been revoked",
    "Authorization code has expired",
    "Cannot decrypt the authorization code",
)
_APPLICATION_ERRORS = {
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_request",
}


@dataclass(frozen=True)
class TokenPair:
    """What the token endpoint handed out.

    ``refresh_token`` is ``None`` when a code's answer held none; when a refresh's answer holds
    none, the old one stays in use (RFC 6749, section 6). ``expires_in`` is the access token's
    lifetime in seconds from the moment of the answer. ``scopes`` are those that the answer says
    were granted (RFC 6749, section 5.1), or ``None`` when it does not say.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int
    scopes: tuple[str, ...] | None = None


def create_verifier() -> str:
    """Return a fresh PKCE code verifier of 64 characters (RFC 7636, section 4.1)."""
    return secrets.token_urlsafe(48)


@without_traces
def authorization_url(
    tenant: Tenant, *, state: str, verifier: str, redirect_uri: str, scopes: Iterable[str]
) -> str:
    """Return where to send the browser (RFC 6749 section 4.1.1, RFC 7636 section 4.3).

    ``verifier`` stays here: only its S256 challenge is part of the URL. ``redirect_uri`` must be
    the one registered at Bipsync, to the letter.

    Raises ``ConfigurationError`` when a URL is neither https nor an allowed loopback address.
    """
    for url in (tenant.authorize_url, redirect_uri):
        if not is_secure_url(url, allow_insecure_loopback=tenant.allow_insecure_loopback):
            raise ConfigurationError(
                f"Refusing to send a browser to or from {url!r}: use an https:// URL. Behind a "
                "proxy that ends TLS, set SECURE_PROXY_SSL_HEADER or BIPSYNC['REDIRECT_URI']."
            )
    session = OAuth2Session(tenant.client_id, redirect_uri=redirect_uri, scope=list(scopes))
    challenge = WebApplicationClient("").create_code_challenge(verifier, "S256")
    url, _ = session.authorization_url(
        _https_alias(tenant.authorize_url),
        state=state,
        code_challenge=challenge,
        code_challenge_method="S256",
    )
    return tenant.authorize_url.partition("://")[0] + "://" + url.partition("://")[2]


@without_traces
def exchange_code(tenant: Tenant, *, code: str, verifier: str, redirect_uri: str) -> TokenPair:
    """Turn an authorization code into a pair (RFC 6749 section 4.1.3, RFC 7636 section 4.5).

    Raises ``GrantDead`` (the code is spent or expired), ``ProviderMisconfigured``, ``RetryLater``
    or ``ConfigurationError``.
    """
    session = _TokenEndpoint(tenant, redirect_uri=redirect_uri, dead_hints=True)

    def fetch(client_secret: str) -> TokenPair:
        token = session.fetch_token(
            _https_alias(tenant.token_url),
            code=code,
            code_verifier=verifier,
            include_client_id=True,
            client_secret=client_secret,
        )
        return _pair(token, session)

    client_secret = tenant.client_secret
    try:
        return fetch(client_secret)
    except ProviderMisconfigured as error:
        # The secret may have been changed in its store. A refused exchange spends no code.
        if error.code != "invalid_client" or not tenant.has_another_secret(client_secret):
            raise
        return fetch(tenant.client_secret)


@without_traces
def refresh_pair(
    tenant: Tenant,
    refresh_token: str,
    *,
    client_secret: str | None = None,
    not_after: float | None = None,
) -> TokenPair:
    """Spend ``refresh_token`` for a new pair (RFC 6749 section 6). Never repeats the call.

    No scope is asked for, so that the grant keeps the scopes it has. ``client_secret`` is the
    tenant's, for a caller that has read it already; a secret store may be slow. After
    ``not_after``, a time of ``time.monotonic()``, nothing is sent and no answer awaited.

    Raises ``GrantDead``, ``ProviderMisconfigured``, ``RetryLater`` or ``ConfigurationError``.
    """
    session = _TokenEndpoint(tenant, not_after=not_after)
    token = session.refresh_token(
        _https_alias(tenant.token_url),
        refresh_token=refresh_token,
        client_id=tenant.client_id,
        client_secret=tenant.client_secret if client_secret is None else client_secret,
    )
    return _pair(token, session)


def _https_alias(url: str) -> str:
    # oauthlib refuses http, and its switch for loopback is an environment variable that opens
    # the whole process. Ours is checked per tenant, before any request, in transport.py.
    return "https://" + url.partition("://")[2]


def _pair(token: Mapping[str, Any], session: "_TokenEndpoint") -> TokenPair:
    access_token, refresh_token = token["access_token"], token.get("refresh_token")
    return TokenPair(access_token, refresh_token, token["expires_in"], session.granted)


class _TokenEndpoint(OAuth2Session):
    """``OAuth2Session`` on our transport.

    The original looks at no status, follows redirects with the secrets in the body, has no
    overall timeout, and lets malformed answers escape as TypeError, AttributeError and the like.
    """

    def __init__(
        self,
        tenant: Tenant,
        *,
        redirect_uri: str | None = None,
        dead_hints: bool = False,
        not_after: float | None = None,
    ) -> None:
        super().__init__(tenant.client_id, redirect_uri=redirect_uri)
        self._tenant = tenant
        self._dead_hints = dead_hints
        self._not_after = not_after
        # What the answer says of scopes: oauthlib raises a warning where others were asked for.
        self.granted: tuple[str, ...] | None = None

    def request(  # type: ignore[override]
        self, method: str, url: str, data: dict[str, str] | None = None, **kwargs: object
    ) -> requests.Response:
        try:
            response = exchange(
                "POST",
                self._tenant.token_url,
                tenant=self._tenant,
                max_bytes=_MAX_ANSWER,
                data=data,
                headers={"Accept": "application/json"},
                not_after=self._not_after,
            )
        except ExchangeFailed as error:
            raise RetryLater(
                error.code,
                "Bipsync's token endpoint gave no whole answer.",
                maybe_sent=error.maybe_sent,
                spent=error.status == 200,
            ) from None
        answer = _json_object(response.raw.read())
        if response.status_code != 200:
            # Whether a grant has ended is not read from what calls itself a page or a text.
            answer = answer if _is_json(response) else None
            _raise_for(response, answer, dead_hints=self._dead_hints)
        # Only what was checked reaches oauthlib's parser, whatever charset the header names.
        self.granted = _scopes(answer)
        response.encoding = "utf-8"
        response.raw = io.BytesIO(json.dumps(_token_fields(answer)).encode())
        return response


def _is_json(response: requests.Response) -> bool:
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    return media_type.strip().lower() == "application/json"


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _token_fields(answer: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a 200 hands out. How it is packed matters little: the old pair is dead already.

    Whatever the media type, then, and with the token type or the refresh token left out.
    """
    if answer is None:
        raise _nonsense()
    access_token = answer.get("access_token")
    refresh_token = answer.get("refresh_token")
    token_type = answer.get("token_type")
    if refresh_token == "":
        refresh_token = None
    if not _is_token(access_token) or not (refresh_token is None or _is_token(refresh_token)):
        raise _nonsense()
    if token_type is not None and not _is_bearer(token_type):
        raise RetryLater(
            "unexpected_token_type",
            "Bipsync's token endpoint answered with a token that is no Bearer token.",
            spent=True,
        )
    fields = {
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": _lifetime(answer.get("expires_in")),
    }
    if refresh_token is not None:
        fields["refresh_token"] = refresh_token
    return fields


def _scopes(answer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the scopes that the answer names. A pair is not thrown away over a strange list."""
    named = None if answer is None else answer.get("scope")
    if isinstance(named, str):
        named = named.split()
    if isinstance(named, list) and all(is_scope(scope) for scope in named):
        return tuple(named)
    return None


def _is_token(value: object) -> bool:
    """Whether ``value`` fits into a header: visible ASCII, of a sane length."""
    return isinstance(value, str) and len(value) <= _MAX_TOKEN and bool(_VISIBLE.fullmatch(value))


def _is_bearer(token_type: object) -> bool:
    return isinstance(token_type, str) and token_type.lower() == "bearer"


def _lifetime(value: object) -> int:
    # A pair is not thrown away over a bad number.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _ASSUMED_LIFETIME
    # False for NaN too.
    return int(value) if 1 <= value <= _MAX_LIFETIME else _ASSUMED_LIFETIME


def _nonsense() -> RetryLater:
    return RetryLater(
        "unexpected_answer",
        "Bipsync's token endpoint answered with something that is no token.",
        spent=True,
    )


def _raise_for(
    response: requests.Response, answer: dict[str, Any] | None, *, dead_hints: bool
) -> NoReturn:
    status = response.status_code
    error = answer.get("error") if answer is not None else None
    if answer is not None and _is_dead(status, answer, dead_hints=dead_hints):
        raise GrantDead("invalid_grant", "Bipsync says that the grant is spent or withdrawn.")
    if status in {400, 401, 403} and isinstance(error, str) and error in _APPLICATION_ERRORS:
        raise ProviderMisconfigured(
            error,
            f"Bipsync refused the application ({error}): check CLIENT_ID, CLIENT_SECRET, SCOPES "
            "and the redirect URI registered there.",
        )
    raise _by_status(status, response.headers.get("Retry-After"))


def _is_dead(status: int, answer: dict[str, Any], *, dead_hints: bool) -> bool:
    error = answer.get("error")
    if status == 400 and error == "invalid_grant":
        return True
    if dead_hints:
        hint = answer.get("hint")
        return status == 400 and error == "invalid_request" and hint in _DEAD_CODE_HINTS_IN_LEAGUE_8
    description = answer.get("error_description")
    return status == 401 and error == "invalid_request" and description == _DEAD_IN_LEAGUE_8


def _by_status(status: int, retry_after: str | None) -> TokenEndpointError:
    if status == 403:
        return ProviderMisconfigured(
            "forbidden",
            "Bipsync answered 403: this server's address is not on the client's IP allow-list.",
        )
    if 300 <= status < 400 or status in {404, 405, 410}:
        return ProviderMisconfigured(
            "wrong_endpoint", f"TOKEN_URL answered {status}: check CLIENT, API_URL and TOKEN_URL."
        )
    code = {429: "rate_limited"}.get(
        status, "server_error" if status >= 500 else "unexpected_answer"
    )
    return RetryLater(
        code,
        f"Bipsync's token endpoint answered {status}.",
        retry_after=_seconds(retry_after),
        # A 4xx that is refused for its form was not processed; a 5xx may have been.
        maybe_sent=status != 429,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, delay or date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    value = retry_after.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
