"""The ``BIPSYNC`` settings dict, checked and typed.

Resolved lazily on first use and again whenever the setting changes, so that tests may override it.
"""

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.dispatch import receiver

from .exceptions import ConfigurationError
from .secret_sources import SecretSource, secret

__all__ = [
    "ClaimSource",
    "Problem",
    "Settings",
    "Tenant",
    "get_settings",
    "get_tenant",
    "is_loopback",
    "is_secure_url",
    "problems",
]

ClaimSource = str | Callable[[Mapping[str, Any]], object]

# The lease on a token row is sized for this: see lifecycle.py.
MAX_HTTP_TIMEOUT = 10.0


@dataclass(frozen=True)
class Tenant:
    """One Bipsync client and this site's application there. Durations are in seconds."""

    slug: str
    client_id: str
    client_secret_source: SecretSource = field(repr=False)
    scopes: tuple[str, ...]
    web_url: str
    authorize_url: str
    token_url: str
    jwks_url: str
    api_url: str
    redirect_uri: str | None
    audience: str
    issuer: str | None
    leeway: float
    http_timeout: float
    ca_bundle: str | None
    allow_insecure_loopback: bool
    claims: Mapping[str, ClaimSource | None] = field(repr=False)

    @property
    def client_secret(self) -> str:
        """The client secret, read from its source. Raises ``ConfigurationError``."""
        return secret(self.client_secret_source, name="BIPSYNC['CLIENT_SECRET']")


@dataclass(frozen=True)
class Settings:
    """The whole of ``BIPSYNC``."""

    tenants: Mapping[str, Tenant]
    create_users: bool
    refresh_enabled: bool
    refresh_ahead: float | None
    keep_alive: float | None
    deployment: str
    session_check_interval: float
    keep_events: float


@dataclass(frozen=True)
class Problem:
    """Something wrong with ``BIPSYNC``: what, and what to do about it."""

    key: str
    message: str
    hint: str
    unknown: bool = False


def get_settings() -> Settings:
    """Return the checked settings. Raises ``ConfigurationError`` naming every problem."""
    return _load()


def get_tenant(slug: str | None = None) -> Tenant:
    """Return the tenant called ``slug``, or the only one when ``slug`` is ``None``.

    Raises ``ConfigurationError`` when there is no such tenant, or when none is named and there
    are several.
    """
    tenants = get_settings().tenants
    if slug is None and len(tenants) == 1:
        return next(iter(tenants.values()))
    if slug is not None and slug in tenants:
        return tenants[slug]
    names = ", ".join(sorted(tenants))
    raise ConfigurationError(f"BIPSYNC has no tenant {slug!r}; it has: {names}. Name one of them.")


def problems() -> list[Problem]:
    """Return everything that is wrong with the ``BIPSYNC`` setting, most basic first."""
    raw = getattr(django_settings, "BIPSYNC", None)
    if not isinstance(raw, dict):
        return [
            Problem(
                "BIPSYNC",
                "The setting BIPSYNC is missing or not a dict.",
                'Add BIPSYNC = {"CLIENT": …, "CLIENT_ID": …, "CLIENT_SECRET": …, "SCOPES": […]}.',
            )
        ]
    return _unknown_keys(raw) + _missing_keys(raw) + _wrong_values(raw)


_UNAMBIGUOUS = re.compile(r"[^\s\x00-\x20\x7f\\#]+")


def is_loopback(url: str) -> bool:
    """Whether the host of ``url`` is this machine, by its name or by its address."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_secure_url(url: str, *, allow_insecure_loopback: bool) -> bool:
    """Whether secrets may travel to ``url``: https, or loopback http where that is allowed.

    A URL with user, password, fragment, blanks or backslashes is not: parsers differ over these.
    """
    if not _UNAMBIGUOUS.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - a property that raises ValueError for a bad port
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc:
        return False
    if parts.scheme == "https":
        return True
    return parts.scheme == "http" and allow_insecure_loopback and is_loopback(url)


# --- one row for each key: what a right value looks like

_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DAY = 86_400
_LONGEST_DEPLOYMENT = 64
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # scope-token, RFC 6749 section 3.3


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(low: float, high: float) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        )

    return check


def _is_number_or_none(low: float, high: float) -> Callable[[object], bool]:
    is_number = _is_number(low, high)
    return lambda value: value is None or is_number(value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_scopes(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(scope, str) and _SCOPE.fullmatch(scope) for scope in value)
    )


def _is_claims(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and (source is None or _is_text(source) or callable(source))
        for name, source in value.items()
    )


def _is_url(value: object) -> bool:
    return isinstance(value, str) and is_secure_url(
        value, allow_insecure_loopback=_loopback_allowed()
    )


def _is_file(value: object) -> bool:
    try:
        return isinstance(value, str | Path) and Path(value).is_file()
    except OSError:  # such as a name that is too long: the certificates instead of their path
        return False


def _loopback_allowed() -> bool:
    allowed = django_settings.BIPSYNC.get("ALLOW_INSECURE_LOOPBACK", django_settings.DEBUG)
    return allowed is True


@dataclass(frozen=True)
class _Key:
    is_valid: Callable[[object], bool]
    expected: str
    required: bool = False


_URL = (
    "an https:// URL without user, password or fragment (http:// only on loopback, and only with "
    "ALLOW_INSECURE_LOOPBACK)"
)

_KEYS: Mapping[str, _Key] = {
    "CLIENT": _Key(
        lambda value: isinstance(value, str) and bool(_SLUG.fullmatch(value)),
        'the Bipsync client\'s slug, as in https://{slug}.bipsync.com, for example "acme"',
        required=True,
    ),
    "CLIENT_ID": _Key(_is_text, "the application's client id, a str", required=True),
    "CLIENT_SECRET": _Key(
        lambda value: _is_text(value) or callable(value),
        'the application\'s client secret: "env:NAME", "file:/path", a callable, or the secret',
        required=True,
    ),
    "SCOPES": _Key(_is_scopes, 'a list of scopes, for example ["users:read"]', required=True),
    "AUTHORIZE_URL": _Key(_is_url, _URL),
    "TOKEN_URL": _Key(_is_url, _URL),
    "JWKS_URL": _Key(_is_url, _URL),
    "API_URL": _Key(_is_url, _URL),
    "REDIRECT_URI": _Key(_is_url, _URL),
    "AUDIENCE": _Key(_is_text, "a str, the expected aud of access tokens (default: CLIENT_ID)"),
    "ISSUER": _Key(lambda v: v is None or _is_text(v), "a str, or None to check no issuer"),
    "LEEWAY": _Key(_is_number(0, 300), "seconds of clock difference to forgive, 0 to 300"),
    "HTTP_TIMEOUT": _Key(_is_number(0.1, MAX_HTTP_TIMEOUT), "seconds, 0.1 to 10"),
    "CA_BUNDLE": _Key(
        lambda v: v is None or _is_file(v), "the path of a readable file of CA certificates (PEM)"
    ),
    "ALLOW_INSECURE_LOOPBACK": _Key(_is_bool, "True or False"),
    "CLAIMS": _Key(
        _is_claims,
        'a dict from user field to claim, for example {"first_name": "profile.given_name"}; '
        "a claim is a dotted path, a callable that is given the claims, or None",
    ),
    "CREATE_USERS": _Key(_is_bool, "True or False"),
    "REFRESH_ENABLED": _Key(_is_bool, "True or False"),
    "REFRESH_AHEAD": _Key(
        _is_number_or_none(0, _DAY), "seconds, 0 to 86400, or None to refresh on demand only"
    ),
    "KEEP_ALIVE": _Key(
        _is_number_or_none(3600, 90 * _DAY),
        "seconds, 3600 (an hour) to 7776000 (90 days), or None to let unused grants run out",
    ),
    "DEPLOYMENT": _Key(
        lambda value: isinstance(value, str) and len(value) <= _LONGEST_DEPLOYMENT,
        'a name for this deployment, of at most 64 characters, for example "production"',
    ),
    "SESSION_CHECK_INTERVAL": _Key(_is_number(0, _DAY), "seconds, 0 to 86400"),
    "KEEP_EVENTS": _Key(
        _is_number(7 * _DAY, 3660 * _DAY), "seconds, 604800 (7 days) to 316224000 (10 years)"
    ),
}


def _unknown_keys(raw: Mapping[Any, object]) -> list[Problem]:
    found = []
    for key in raw:
        if key in _KEYS:
            continue
        nearest = difflib.get_close_matches(str(key).upper(), _KEYS, n=1, cutoff=0.4)
        hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Keys are: {', '.join(_KEYS)}."
        found.append(Problem(str(key), f"BIPSYNC has an unknown key {key!r}.", hint, unknown=True))
    return found


def _missing_keys(raw: Mapping[Any, object]) -> list[Problem]:
    return [
        Problem(name, f"BIPSYNC[{name!r}] is missing.", f"Set it to {key.expected}.")
        for name, key in _KEYS.items()
        if key.required and name not in raw
    ]


def _wrong_values(raw: Mapping[Any, object]) -> list[Problem]:
    # The value is not shown: it may be a secret under the wrong key.
    return [
        Problem(
            name,
            f"BIPSYNC[{name!r}] is not valid (it is a {type(raw[name]).__name__}).",
            f"Set it to {key.expected}.",
        )
        for name, key in _KEYS.items()
        if name in raw and not key.is_valid(raw[name])
    ]


# --- from dict to dataclasses


@functools.cache
def _load() -> Settings:
    found = problems()
    if found:
        raise ConfigurationError(" ".join(f"{p.message} {p.hint}" for p in found))
    raw: Mapping[str, Any] = django_settings.BIPSYNC
    tenant = _tenant(raw)
    return Settings(
        tenants={tenant.slug: tenant},
        create_users=raw.get("CREATE_USERS", True),
        refresh_enabled=raw.get("REFRESH_ENABLED", True),
        refresh_ahead=_seconds(raw.get("REFRESH_AHEAD", 600)),
        keep_alive=_seconds(raw.get("KEEP_ALIVE", 7 * _DAY)),
        deployment=raw.get("DEPLOYMENT", "").strip(),
        session_check_interval=float(raw.get("SESSION_CHECK_INTERVAL", 60)),
        keep_events=float(raw.get("KEEP_EVENTS", 365 * _DAY)),
    )


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


def _tenant(raw: Mapping[str, Any]) -> Tenant:
    slug = raw["CLIENT"]
    web_url = f"https://{slug}.bipsync.com"
    api_url = raw.get("API_URL", f"https://{slug}-api.bipsync.com").rstrip("/")
    ca_bundle = raw.get("CA_BUNDLE")
    return Tenant(
        slug=slug,
        client_id=raw["CLIENT_ID"],
        client_secret_source=raw["CLIENT_SECRET"],
        scopes=tuple(dict.fromkeys(raw["SCOPES"])),
        web_url=web_url,
        authorize_url=raw.get("AUTHORIZE_URL", f"{web_url}/oauth/authorize"),
        token_url=raw.get("TOKEN_URL", f"{api_url}/v1/oauth/token"),
        jwks_url=raw.get("JWKS_URL", f"{api_url}/v1/oauth/jwks"),
        api_url=api_url,
        redirect_uri=raw.get("REDIRECT_URI"),
        audience=raw.get("AUDIENCE", raw["CLIENT_ID"]),
        issuer=raw.get("ISSUER"),
        leeway=float(raw.get("LEEWAY", 30)),
        http_timeout=float(raw.get("HTTP_TIMEOUT", MAX_HTTP_TIMEOUT)),
        ca_bundle=str(ca_bundle) if ca_bundle is not None else None,
        allow_insecure_loopback=raw.get("ALLOW_INSECURE_LOOPBACK", django_settings.DEBUG),
        claims=raw.get("CLAIMS", {}),
    )


@receiver(setting_changed)
def _reload(*, setting: str, **kwargs: object) -> None:
    if setting in {"BIPSYNC", "DEBUG"}:
        _load.cache_clear()
