"""An access token (a JWT, RFC 7519) becomes validated claims, or a refusal."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import jwt

from ..conf import Tenant
from ..exceptions import TokenRefused
from ..redaction import without_traces
from .keys import signing_key

__all__ = ["Claims", "is_scope", "is_subject", "validate_access_token"]

_MAX_LENGTH = 16 * 1024
_MAX_SUBJECT = 255
_DATES = ("exp", "nbf", "iat")
_SCOPE_CLAIMS = ("scopes", "scope")
_LATEST = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
# PyJWT forgives padding; one token must have one spelling.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# scope-token, RFC 6749 section 3.3: what else a JSON string may hold, no database column takes.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@dataclass(frozen=True)
class Claims:
    """What Bipsync signed: who, for which scopes, until when (UTC), and all claims as they came.

    ``scopes`` is empty when the token names none. ``says_scopes`` tells a token that grants none
    from one that does not speak of scopes.
    """

    subject: str
    scopes: tuple[str, ...]
    expires_at: datetime
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def says_scopes(self) -> bool:
        """Whether the token says which scopes were granted."""
        return _said_scopes(self.claims) is not None


@without_traces
def validate_access_token(raw: str, tenant: Tenant, *, from_provider: bool = False) -> Claims:
    """Return the claims of an access token that ``tenant``'s Bipsync signed for this application.

    Only RS256 with a key from the tenant's JWKS, chosen by ``kid``, or the only one if there are
    no names; ``exp``, ``sub`` and ``aud``
    are required; ``nbf``, ``iat`` and ``exp`` are checked with the tenant's leeway; ``iss`` when
    ``ISSUER`` is set (RFC 8725). ``from_provider`` says that the token came straight from the
    token endpoint, whose unknown ``kid`` is worth a fetch.

    Raises ``TokenRefused``, or ``KeysUnavailable`` when that cannot be decided now.
    """
    if not isinstance(raw, str) or len(raw) > _MAX_LENGTH or not _SHAPE.fullmatch(raw):
        raise TokenRefused("The access token is not a JWT of at most 16 KiB.")
    if not all(_is_utf8(part) for part in raw.split(".")[:2]):
        raise TokenRefused("The access token is not JSON in UTF-8.")
    payload = _verified(raw, tenant, from_provider=from_provider)
    if not all(_is_number(payload[name]) for name in _DATES if name in payload):
        raise TokenRefused("The access token's dates are not numbers.")
    return Claims(
        subject=_subject(payload["sub"]),
        scopes=_scopes(payload),
        expires_at=_moment(payload["exp"]),
        claims=MappingProxyType(payload),
    )


def _verified(raw: str, tenant: Tenant, *, from_provider: bool) -> dict[str, Any]:
    """Return the payload once a key of the tenant's has verified the signature."""
    kid = _kid(raw)
    key = signing_key(tenant, kid, from_provider=from_provider)
    try:
        return _decode(raw, tenant, key)
    except _WrongSignature:
        # Where keys have no names, this is what a token looks like that a new key has signed.
        newer = signing_key(tenant, kid, from_provider=from_provider, other_than=key)
    refused = TokenRefused("The access token is refused (InvalidSignatureError).")
    if newer is None:
        raise refused
    try:
        return _decode(raw, tenant, newer)
    except _WrongSignature:
        raise refused from None


class _WrongSignature(Exception):
    """The key at hand did not sign the token."""


def _decode(raw: str, tenant: Tenant, key: jwt.PyJWK | None) -> dict[str, Any]:
    if key is None:
        raise TokenRefused("The access token is signed with a key that Bipsync does not publish.")
    try:
        return jwt.decode(
            raw,
            key,
            algorithms=["RS256"],
            audience=tenant.audience,
            issuer=tenant.issuer,
            leeway=tenant.leeway,
            options={"require": ["exp", "sub", "aud"]},
        )
    except jwt.InvalidSignatureError:
        raise _WrongSignature from None
    except jwt.PyJWTError as error:
        raise TokenRefused(f"The access token is refused ({type(error).__name__}).") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise TokenRefused("The access token is malformed.") from None


def _is_utf8(part: str) -> bool:
    """Return whether ``part`` can be JSON as it is exchanged (RFC 8259, section 8.1)."""
    # The parser would guess at UTF-16 and UTF-32, which are full of zeros, and pass over a mark.
    try:
        text = base64.urlsafe_b64decode(part + "==").decode()
    except ValueError:
        return False
    return "\x00" not in text and not text.startswith("\ufeff")


def _kid(raw: str) -> str | None:
    """Return the name of the key, which is optional (RFC 7515, section 4.1.4)."""
    try:
        header = jwt.get_unverified_header(raw)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("The access token's header is malformed.") from None
    kid = header.get("kid")
    if header.get("alg") != "RS256":
        raise TokenRefused("The access token is not signed with RS256.")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= 255):
        raise TokenRefused("The access token's name of a signing key (kid) is not usable.")
    return kid


def is_scope(value: object) -> bool:
    """Return whether ``value`` is a scope-token (RFC 6749, section 3.3)."""
    return isinstance(value, str) and _SCOPE.fullmatch(value) is not None


def is_subject(value: object) -> bool:
    """Return whether ``value`` can be somebody's id at Bipsync: short, printable, not blank."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_SUBJECT
        and value.isprintable()
        and value == value.strip()
    )


def _subject(value: object) -> str:
    if not isinstance(value, str) or not is_subject(value):
        raise TokenRefused("The access token's subject is not usable.")
    return value


def _is_number(value: object) -> bool:
    # PyJWT reads text and truth values as numbers too.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _moment(value: float) -> datetime:
    if not 0 < value < _LATEST:
        raise TokenRefused("The access token's expiry is not usable.")
    return datetime.fromtimestamp(value, UTC)


def _said_scopes(payload: Mapping[str, Any]) -> object:
    """Return league's claim, or that of RFC 9068 (section 2.2.3), or ``None``."""
    return next((payload[name] for name in _SCOPE_CLAIMS if payload.get(name) is not None), None)


def _scopes(payload: Mapping[str, Any]) -> tuple[str, ...]:
    scopes = _said_scopes(payload)
    if scopes is None:
        return ()
    if isinstance(scopes, str):
        scopes = scopes.split()
    if not isinstance(scopes, list) or not all(is_scope(scope) for scope in scopes):
        raise TokenRefused("The access token's scopes are not a list of names.")
    return tuple(scopes)
