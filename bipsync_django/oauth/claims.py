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

__all__ = ["Claims", "is_subject", "validate_access_token"]

_MAX_LENGTH = 16 * 1024
_MAX_SUBJECT = 255
_DATES = ("exp", "nbf", "iat")
_LATEST = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
# PyJWT forgives padding; one token must have one spelling.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# scope-token, RFC 6749 section 3.3: what else a JSON string may hold, no database column takes.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@dataclass(frozen=True)
class Claims:
    """What Bipsync signed: who, for which scopes, until when (UTC), and all claims as they came.

    ``scopes`` is empty when the token names none.
    """

    subject: str
    scopes: tuple[str, ...]
    expires_at: datetime
    claims: Mapping[str, Any] = field(repr=False)


@without_traces
def validate_access_token(raw: str, tenant: Tenant, *, from_provider: bool = False) -> Claims:
    """Return the claims of an access token that ``tenant``'s Bipsync signed for this application.

    Only RS256 with a key from the tenant's JWKS, chosen by ``kid``; ``exp``, ``sub`` and ``aud``
    are required; ``nbf``, ``iat`` and ``exp`` are checked with the tenant's leeway; ``iss`` when
    ``ISSUER`` is set (RFC 8725). ``from_provider`` says that the token came straight from the
    token endpoint, whose unknown ``kid`` is worth a fetch.

    Raises ``TokenRefused``, or ``KeysUnavailable`` when that cannot be decided now.
    """
    if not isinstance(raw, str) or len(raw) > _MAX_LENGTH or not _SHAPE.fullmatch(raw):
        raise TokenRefused("The access token is not a JWT of at most 16 KiB.")
    if not all(_is_utf8(part) for part in raw.split(".")[:2]):
        raise TokenRefused("The access token is not JSON in UTF-8.")
    key = signing_key(tenant, _kid(raw), from_provider=from_provider)
    if key is None:
        raise TokenRefused("The access token is signed with a key that Bipsync does not publish.")
    try:
        payload = jwt.decode(
            raw,
            key,
            algorithms=["RS256"],
            audience=tenant.audience,
            issuer=tenant.issuer,
            leeway=tenant.leeway,
            options={"require": ["exp", "sub", "aud"]},
        )
    except jwt.PyJWTError as error:
        raise TokenRefused(f"The access token is refused ({type(error).__name__}).") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise TokenRefused("The access token is malformed.") from None
    if not all(_is_number(payload[name]) for name in _DATES if name in payload):
        raise TokenRefused("The access token's dates are not numbers.")
    return Claims(
        subject=_subject(payload["sub"]),
        scopes=_scopes(payload),
        expires_at=_moment(payload["exp"]),
        claims=MappingProxyType(payload),
    )


def _is_utf8(part: str) -> bool:
    """Return whether ``part`` can be JSON as it is exchanged (RFC 8259, section 8.1)."""
    # The parser would guess at UTF-16 and UTF-32, which are full of zeros, and pass over a mark.
    try:
        text = base64.urlsafe_b64decode(part + "==").decode()
    except ValueError:
        return False
    return "\x00" not in text and not text.startswith("\ufeff")


def _kid(raw: str) -> str:
    try:
        header = jwt.get_unverified_header(raw)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("The access token's header is malformed.") from None
    kid = header.get("kid")
    if header.get("alg") != "RS256":
        raise TokenRefused("The access token is not signed with RS256.")
    if not isinstance(kid, str) or not 0 < len(kid) <= 255:
        raise TokenRefused("The access token names no signing key (kid).")
    return kid


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


def _scopes(payload: Mapping[str, Any]) -> tuple[str, ...]:
    scopes = payload.get("scopes", [])
    if not isinstance(scopes, list) or not all(
        isinstance(scope, str) and _SCOPE.fullmatch(scope) for scope in scopes
    ):
        raise TokenRefused("The access token's scopes are not a list of names.")
    return tuple(scopes)
