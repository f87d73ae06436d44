"""The ``BIPSYNC`` settings dict, checked and typed.

Resolved lazily on first use and again whenever the setting changes, so that tests may override it.
"""

import difflib
import enum
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import receiver
from django.utils.module_loading import import_string

from .exceptions import ConfigurationError, UnknownTenant
from .redaction import without_traces
from .secret_sources import SecretSource, reread, secret

__all__ = [
    "ClaimRule",
    "ClaimSource",
    "GroupRules",
    "MatchUsersBy",
    "PrepareConnection",
    "Problem",
    "Settings",
    "Tenant",
    "UserResolver",
    "break_glass_users",
    "get_settings",
    "get_tenant",
    "is_loopback",
    "is_secure_url",
    "is_sso_only",
    "problems",
]

ClaimSource = str | Callable[[Mapping[str, Any]], object]

ClaimRule = Mapping[str, tuple[object, ...]] | Callable[[Mapping[str, Any]], object]
"""Claim (a dotted path) to the values that satisfy the rule; or a callable given the claims."""

GroupRules = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Claim (a dotted path) to the groups that each of its values stands for."""

UserResolver = str | Callable[..., object]
"""A callable, or its dotted path: ``(tenant, claims)`` to an existing user or ``None``."""

PrepareConnection = Callable[[BaseDatabaseWrapper, BaseDatabaseWrapper], object]
"""Given a connection that was just opened and the one of its caller, lets the first see the same
rows as the second."""

# The lease on a token row is sized for this: see lifecycle/protocol.py.
MAX_HTTP_TIMEOUT = 10.0
_SHORTEST_HEALTH_TOKEN = 20


@dataclass(frozen=True)
class Tenant:
    """One Bipsync client and this site's application there. Durations are in seconds."""

    slug: str
    name: str
    client_id: str
    client_secret_source: SecretSource = field(repr=False)
    scopes: tuple[str, ...]
    service_scopes: tuple[str, ...]
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
    create_users: bool
    allowed_email_domains: tuple[str, ...] | None
    groups: GroupRules
    staff: ClaimRule | None
    superuser: ClaimRule | None

    @property
    def client_secret(self) -> str:
        """The client secret, read from its source. Raises ``ConfigurationError``."""
        return secret(
            self.client_secret_source,
            name=f"CLIENT_SECRET of {self.slug}",
            allow_insecure_loopback=self.allow_insecure_loopback,
        )

    @without_traces
    def has_another_secret(self, refused: str) -> bool:
        """Return whether the source has another secret by now than the one that was refused."""
        reread(self.client_secret_source)
        try:
            return self.client_secret != refused
        except ConfigurationError:
            return False


@dataclass(frozen=True)
class MatchUsersBy:
    """Which claim of which tenant may join a first sign-in to a user that exists already.

    ``verified_claim`` is the claim that has to be ``True``; ``None`` trusts every address.
    """

    tenant: str
    claim: str
    verified_claim: str | None


@dataclass(frozen=True)
class Settings:
    """The whole of ``BIPSYNC``. The first of ``tenants`` has the short callback address."""

    tenants: Mapping[str, Tenant]
    user_resolver: UserResolver | None
    match_users_by: MatchUsersBy | None
    refresh_enabled: bool
    refresh_ahead: float | None
    keep_alive: float | None
    deployment: str
    session_check_interval: float
    keep_events: float
    keep_claims: tuple[str, ...]
    health_token_source: SecretSource | None = field(repr=False)
    prepare_connection_source: str | PrepareConnection | None

    @property
    def prepare_connection(self) -> PrepareConnection | None:
        """The site's ``PREPARE_CONNECTION``, imported. Raises ``ConfigurationError``."""
        source = self.prepare_connection_source
        try:
            found = import_string(source) if isinstance(source, str) else source
        except ImportError as error:
            raise ConfigurationError(_NO_HOOK) from error
        if found is not None and not callable(found):
            raise ConfigurationError(_NO_HOOK)
        return found

    @property
    def health_token(self) -> str | None:
        """What monitoring has to show; ``None`` for no endpoint. Raises ``ConfigurationError``."""
        if self.health_token_source is None:
            return None
        token = secret(self.health_token_source, name="HEALTH_TOKEN")
        if len(token) < _SHORTEST_HEALTH_TOKEN:
            raise ConfigurationError(
                "BIPSYNC['HEALTH_TOKEN'] is too short to be a secret. Make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        return token


_NO_HOOK = (
    "BIPSYNC['PREPARE_CONNECTION'] names no callable that can be imported. Give the dotted path of "
    'a function, for example "portal.schemas.use_callers_schema".'
)


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

    Raises ``UnknownTenant`` when there is no such tenant, and ``ConfigurationError`` when none is
    named and there are several.
    """
    tenants = get_settings().tenants
    if slug is None and len(tenants) == 1:
        return next(iter(tenants.values()))
    if slug is not None and slug in tenants:
        return tenants[slug]
    names = ", ".join(tenants)
    if slug is None:
        raise ConfigurationError(f"BIPSYNC has several tenants ({names}): name one of them.")
    raise UnknownTenant(f"BIPSYNC has no tenant {slug!r}; it has: {names}. Name one of them.")


def is_sso_only() -> bool:
    """Return whether ``SSO_ONLY`` is set. Needs no other key to be right: it holds all the same."""
    return _raw().get("SSO_ONLY", False) is not False


def break_glass_users() -> frozenset[str]:
    """Return the usernames of the accounts for emergencies, whatever is wrong with other keys."""
    names = _raw().get("BREAK_GLASS_USERS", ())
    return frozenset(names) if _KEYS["BREAK_GLASS_USERS"].is_valid(names) else frozenset()


def _raw() -> Mapping[str, Any]:
    raw = getattr(django_settings, "BIPSYNC", None)
    return raw if isinstance(raw, dict) else {}


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
    found = _problems_of_several(raw) if "TENANTS" in raw else _problems_of_one(raw)
    return found or _contradictions(raw)


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


# --- one row for each key: what a right value looks like, and where it may stand

_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DAY = 86_400
_LONGEST_DEPLOYMENT = 64
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # scope-token, RFC 6749 section 3.3
_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+", re.IGNORECASE)
# Rights and secrets: claims give the first by STAFF, SUPERUSER and GROUPS alone.
_NOT_BY_CLAIMS = {"is_staff", "is_superuser", "password", "groups", "user_permissions"}
_MATCH_KEYS = {"TENANT", "CLAIM", "VERIFIED_CLAIM", "TRUST_UNVERIFIED"}


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


def _is_slug(value: object) -> bool:
    return isinstance(value, str) and bool(_SLUG.fullmatch(value))


def _is_list_of(is_valid: Callable[[Any], object]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(is_valid, value))


def _is_scopes(value: object) -> bool:
    is_list = _is_list_of(lambda scope: isinstance(scope, str) and _SCOPE.fullmatch(scope))
    return bool(value) and is_list(value)


def _is_claims(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name)
        and name not in _NOT_BY_CLAIMS
        and (source is None or _is_text(source) or callable(source))
        for name, source in value.items()
    )


def _is_rule_claim(value: object) -> bool:
    """Whether rights may depend on this claim. Scopes say what the site asked for, not who asks."""
    return _is_text(value) and str(value).partition(".")[0] not in {"scope", "scopes"}


def _is_claim_value(value: object) -> bool:
    return isinstance(value, str | int) and value != ""


def _is_rule(value: object) -> bool:
    if value is None or callable(value):
        return True
    return isinstance(value, dict) and all(
        _is_rule_claim(claim) and bool(_tuple(values)) and all(map(_is_claim_value, _tuple(values)))
        for claim, values in value.items()
    )


def _is_groups(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_rule_claim(claim)
        and isinstance(groups, dict)
        and all(
            _is_text(name) and bool(_tuple(names)) and all(map(_is_text, _tuple(names)))
            for name, names in groups.items()
        )
        for claim, groups in value.items()
    )


def _is_match(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not set(value) <= _MATCH_KEYS:
        return False
    texts = [value.get("TENANT"), value.get("CLAIM", "email")]
    verified = _is_text(value.get("VERIFIED_CLAIM"))
    trusted = value.get("TRUST_UNVERIFIED", False)
    return all(map(_is_text, texts)) and _is_bool(trusted) and verified is not trusted


def _is_tenants(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_slug(slug) and isinstance(own, dict) for slug, own in value.items())
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


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)


class _Place(enum.Enum):
    """Where a key stands once there are ``TENANTS``."""

    TENANT = "in each tenant"
    EITHER = "in a tenant, or beside them for all"
    SITE = "beside them"


@dataclass(frozen=True)
class _Key:
    is_valid: Callable[[object], bool]
    expected: str
    place: _Place = _Place.SITE
    required: bool = False


_URL = (
    "an https:// URL without user, password or fragment (http:// only on loopback, and only with "
    "ALLOW_INSECURE_LOOPBACK)"
)
_RULE = (
    'a dict from claim to the values that satisfy the rule, for example {"roles": ["admin"]}, a '
    "callable that is given the claims, or None; scopes give no rights"
)

_KEYS: Mapping[str, _Key] = {
    "CLIENT": _Key(
        _is_slug,
        'the Bipsync client\'s slug, as in https://{slug}.bipsync.com, for example "acme"',
        _Place.TENANT,
        required=True,
    ),
    "CLIENT_ID": _Key(_is_text, "the application's client id, a str", _Place.TENANT, required=True),
    "CLIENT_SECRET": _Key(
        lambda value: _is_text(value) or callable(value),
        'the application\'s client secret: "env:NAME", "file:/path", "aws-secretsmanager:ID#key", '
        '"azure-keyvault:https://…/secrets/NAME", a callable, or the secret',
        _Place.TENANT,
        required=True,
    ),
    "SCOPES": _Key(
        _is_scopes, 'a list of scopes, for example ["users:read"]', _Place.EITHER, required=True
    ),
    "SERVICE_SCOPES": _Key(
        lambda v: v is None or _is_scopes(v),
        'a list of scopes, for example ["users:read"], or None for those of SCOPES',
        _Place.EITHER,
    ),
    "TENANTS": _Key(
        _is_tenants,
        'a dict from slug to the settings of that tenant, for example {"acme": {"CLIENT_ID": …}}; '
        "slugs are lower-case letters, digits and hyphens",
    ),
    "NAME": _Key(_is_text, "what people call this client, a str", _Place.TENANT),
    "WEB_URL": _Key(_is_url, _URL, _Place.TENANT),
    "AUTHORIZE_URL": _Key(_is_url, _URL, _Place.TENANT),
    "TOKEN_URL": _Key(_is_url, _URL, _Place.TENANT),
    "JWKS_URL": _Key(_is_url, _URL, _Place.TENANT),
    "API_URL": _Key(_is_url, _URL, _Place.TENANT),
    "REDIRECT_URI": _Key(_is_url, _URL, _Place.TENANT),
    "AUDIENCE": _Key(
        _is_text,
        "a str, the expected aud of access tokens (default: CLIENT_ID)",
        _Place.TENANT,
    ),
    "ISSUER": _Key(
        lambda v: v is None or _is_text(v), "a str, or None to check no issuer", _Place.TENANT
    ),
    "LEEWAY": _Key(
        _is_number(0, 300), "seconds of clock difference to forgive, 0 to 300", _Place.EITHER
    ),
    "HTTP_TIMEOUT": _Key(_is_number(0.1, MAX_HTTP_TIMEOUT), "seconds, 0.1 to 10", _Place.EITHER),
    "CA_BUNDLE": _Key(
        lambda v: v is None or _is_file(v),
        "the path of a readable file of CA certificates (PEM)",
        _Place.EITHER,
    ),
    "ALLOW_INSECURE_LOOPBACK": _Key(_is_bool, "True or False"),
    "CLAIMS": _Key(
        _is_claims,
        'a dict from user field to claim, for example {"first_name": "profile.given_name"}; '
        "a claim is a dotted path, a callable that is given the claims, or None; rights come from "
        "STAFF, SUPERUSER and GROUPS",
        _Place.TENANT,
    ),
    "CREATE_USERS": _Key(_is_bool, "True or False", _Place.EITHER),
    "ALLOWED_EMAIL_DOMAINS": _Key(
        lambda v: (
            v is None
            or (bool(v) and _is_list_of(lambda d: isinstance(d, str) and _DOMAIN.fullmatch(d))(v))
        ),
        'a list of domains, for example ["acme.example"], or None to allow every address',
        _Place.EITHER,
    ),
    "GROUPS": _Key(
        _is_groups,
        "a dict from claim to a dict from that claim's values to groups, for example "
        '{"teams": {"research": "Analysts"}}; scopes give no rights',
        _Place.TENANT,
    ),
    "STAFF": _Key(_is_rule, _RULE, _Place.TENANT),
    "SUPERUSER": _Key(_is_rule, _RULE, _Place.TENANT),
    "USER_RESOLVER": _Key(
        lambda v: v is None or _is_text(v) or callable(v),
        'a callable or its dotted path, for example "portal.people.find", or None',
    ),
    "MATCH_USERS_BY": _Key(
        _is_match,
        'None, or {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"}, or {"TENANT": "acme", '
        '"TRUST_UNVERIFIED": True}; "CLAIM" may name another claim than "email"',
    ),
    "SSO_ONLY": _Key(_is_bool, "True or False"),
    "BREAK_GLASS_USERS": _Key(
        _is_list_of(_is_text), 'a list of usernames, for example ["emergency"]'
    ),
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
    "KEEP_CLAIMS": _Key(_is_list_of(_is_text), 'a list of claims, for example ["name", "email"]'),
    "PREPARE_CONNECTION": _Key(
        lambda v: v is None or _is_text(v) or callable(v),
        'a callable or its dotted path, for example "portal.schemas.use_callers_schema", or None',
    ),
    "HEALTH_TOKEN": _Key(
        lambda v: v is None or _is_text(v) or callable(v),
        'None, or where the secret of your monitoring is, for example "env:HEALTH_TOKEN"',
    ),
}

_REQUIRED = [name for name, key in _KEYS.items() if key.required]


# --- what is wrong with it


def _problems_of_one(raw: Mapping[Any, Any]) -> list[Problem]:
    return _problems_in(raw, "BIPSYNC", _KEYS, required=_REQUIRED)


def _problems_of_several(raw: Mapping[Any, Any]) -> list[Problem]:
    """A tenant inherits what is policy, and never what tells it from another."""
    beside, inside = _at(_Place.SITE, _Place.EITHER), _at(_Place.TENANT, _Place.EITHER)
    found = _problems_in(raw, "BIPSYNC", beside, required=())
    if not _is_tenants(raw["TENANTS"]):
        return found
    # CLIENT is the tenant's slug unless it says otherwise.
    required = [name for name in _REQUIRED if name != "CLIENT" and name not in raw.keys() & beside]
    for slug, own in raw["TENANTS"].items():
        found += _problems_in(own, f"BIPSYNC['TENANTS'][{slug!r}]", inside, required=required)
    return found


def _at(*places: _Place) -> dict[str, _Key]:
    return {name: key for name, key in _KEYS.items() if key.place in places}


def _problems_in(
    raw: Mapping[Any, object], where: str, allowed: Mapping[str, _Key], *, required: Iterable[str]
) -> list[Problem]:
    found = [_unknown(key, where) for key in raw if key not in _KEYS]
    found += [_misplaced(key, where) for key in raw if key in _KEYS and key not in allowed]
    found += [
        Problem(key, f"{where}[{key!r}] is missing.", f"Set it to {_KEYS[key].expected}.")
        for key in required
        if key not in raw
    ]
    # The value is not shown: it may be a secret under the wrong key.
    found += [
        Problem(
            name,
            f"{where}[{name!r}] is not valid (it is a {type(raw[name]).__name__}).",
            f"Set it to {key.expected}.",
        )
        for name, key in allowed.items()
        if name in raw and not key.is_valid(raw[name])
    ]
    return found


def _unknown(key: object, where: str) -> Problem:
    nearest = difflib.get_close_matches(str(key).upper(), _KEYS, n=1, cutoff=0.4)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Keys are: {', '.join(_KEYS)}."
    return Problem(str(key), f"{where} has an unknown key {key!r}.", hint, unknown=True)


def _misplaced(key: str, where: str) -> Problem:
    is_site_wide = _KEYS[key].place is _Place.SITE
    hint = (
        "It is for the whole site: put it beside TENANTS."
        if is_site_wide
        else ("With TENANTS it stands in each tenant, which inherits it from nowhere.")
    )
    return Problem(key, f"{where} has the key {key!r}, which does not belong there.", hint)


def _contradictions(raw: Mapping[str, Any]) -> list[Problem]:
    """What is wrong although each value is right by itself."""
    tenants = _tenants(raw)
    found = []
    match = raw.get("MATCH_USERS_BY")
    if match is not None and match["TENANT"] not in tenants:
        found.append(
            Problem(
                "MATCH_USERS_BY",
                "BIPSYNC['MATCH_USERS_BY'] names a tenant that is not there.",
                f'Its "TENANT" is one of: {", ".join(tenants)}.',
            )
        )
    fixed = [tenant.redirect_uri for tenant in tenants.values() if tenant.redirect_uri is not None]
    if len(fixed) > len(set(fixed)):
        found.append(
            Problem(
                "REDIRECT_URI",
                "Two tenants have the same REDIRECT_URI.",
                "Each tenant has a callback of its own, callback/ for the first and "
                "callback/<tenant>/ for the others: what one sends must not pass for another's.",
            )
        )
    return found


# --- from dict to dataclasses


@functools.cache
def _load() -> Settings:
    found = problems()
    if found:
        raise ConfigurationError(" ".join(f"{p.message} {p.hint}" for p in found))
    raw: Mapping[str, Any] = django_settings.BIPSYNC
    return Settings(
        tenants=_tenants(raw),
        user_resolver=raw.get("USER_RESOLVER"),
        match_users_by=_match(raw.get("MATCH_USERS_BY")),
        refresh_enabled=raw.get("REFRESH_ENABLED", True),
        refresh_ahead=_seconds(raw.get("REFRESH_AHEAD", 600)),
        keep_alive=_seconds(raw.get("KEEP_ALIVE", 7 * _DAY)),
        deployment=raw.get("DEPLOYMENT", "").strip(),
        session_check_interval=float(raw.get("SESSION_CHECK_INTERVAL", 60)),
        keep_events=float(raw.get("KEEP_EVENTS", 365 * _DAY)),
        keep_claims=tuple(raw.get("KEEP_CLAIMS", ("name", "email"))),
        health_token_source=raw.get("HEALTH_TOKEN"),
        prepare_connection_source=raw.get("PREPARE_CONNECTION"),
    )


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


def _match(raw: Mapping[str, Any] | None) -> MatchUsersBy | None:
    if raw is None:
        return None
    return MatchUsersBy(raw["TENANT"], raw.get("CLAIM", "email"), raw.get("VERIFIED_CLAIM"))


def _tenants(raw: Mapping[str, Any]) -> dict[str, Tenant]:
    if "TENANTS" not in raw:
        return {raw["CLIENT"]: _tenant(raw["CLIENT"], raw)}
    return {
        slug: _tenant(slug, {**raw, "CLIENT": slug, **own}) for slug, own in raw["TENANTS"].items()
    }


def _tenant(slug: str, raw: Mapping[str, Any]) -> Tenant:
    client = raw["CLIENT"]
    web_url = raw.get("WEB_URL", f"https://{client}.bipsync.com").rstrip("/")
    api_url = raw.get("API_URL", f"https://{client}-api.bipsync.com").rstrip("/")
    ca_bundle = raw.get("CA_BUNDLE")
    domains = raw.get("ALLOWED_EMAIL_DOMAINS")
    return Tenant(
        slug=slug,
        name=raw.get("NAME", slug),
        client_id=raw["CLIENT_ID"],
        client_secret_source=raw["CLIENT_SECRET"],
        scopes=tuple(dict.fromkeys(raw["SCOPES"])),
        service_scopes=tuple(dict.fromkeys(raw.get("SERVICE_SCOPES") or raw["SCOPES"])),
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
        create_users=raw.get("CREATE_USERS", True),
        allowed_email_domains=None if domains is None else tuple(d.lower() for d in domains),
        groups={
            claim: {value: _tuple(names) for value, names in groups.items()}
            for claim, groups in raw.get("GROUPS", {}).items()
        },
        staff=_rule(raw.get("STAFF")),
        superuser=_rule(raw.get("SUPERUSER")),
    )


def _rule(raw: Any) -> ClaimRule | None:
    if raw is None or callable(raw):
        return raw  # type: ignore[no-any-return]
    return {claim: _tuple(values) for claim, values in raw.items()}


@receiver(setting_changed)
def _reload(*, setting: str, **kwargs: object) -> None:
    if setting in {"BIPSYNC", "DEBUG"}:
        _load.cache_clear()
