"""Step 10 of docs/refresh-protocol.md: look at a token that is stored already.

The pair is safe whatever comes out.
"""

from contextlib import suppress
from typing import Any

from django.utils import timezone

from .. import breaker, signals
from ..conf import get_tenant
from ..events import record
from ..exceptions import (
    ConfigurationError,
    KeysUnavailable,
    RefreshUnavailable,
    SignInRequired,
    TokenRefused,
)
from ..models import BipsyncToken, TokenEvent
from ..oauth.claims import Claims, validate_access_token
from ..redaction import without_traces
from .rows import Identity, beside, is_refused, kept_claims, refreshed_scopes, send, write

__all__ = ["validate", "validate_beside"]

Status = BipsyncToken.Status
Event = TokenEvent.Name


@without_traces
def validate(row: BipsyncToken, *, from_provider: bool = False) -> Claims | None:
    """Step 10: look at the token that is stored already; the pair is safe whatever comes out.

    Whoever is first to find a pair in order tells the site. Returns ``None`` when the keys cannot
    be had: the token may go to the API, and changes no user.
    """
    try:
        claims = _check(row, from_provider=from_provider)
    except RefreshUnavailable:
        _quarantine(row)
        raise
    except SignInRequired:
        _end(row, "other_subject")
        raise
    if claims is None:
        return None
    found: dict[str, Any] = {
        **refreshed_scopes(row, claims),
        "claims": kept_claims(claims),
        "last_error": "" if is_refused(row) else row.last_error,
    }
    for name, value in found.items():
        setattr(row, name, value)
    is_first = write(
        Identity.of(row)
        .rows()
        .filter(generation=row.generation, validated_generation__lt=row.generation),
        validated_generation=row.generation,
        **found,
    )
    row.validated_generation = row.generation
    if is_first:
        send(signals.token_refreshed, row, claims=claims)
    return claims


@without_traces
def validate_beside(row: BipsyncToken) -> None:
    """Validate, and keep the verdict whatever becomes of the caller's transaction.

    In the caller's own it would lock the row until the caller commits, and a refresh elsewhere
    with it. Where no other connection is to be had, the verdict is left to the next reader.
    """
    try:
        claims = _check(row)
    except (RefreshUnavailable, SignInRequired):
        _keep_verdict(row)
        raise
    if claims is not None:
        _keep_verdict(row)
    elif is_refused(row):
        raise RefreshUnavailable("token_refused", "The token did not validate and is held back.")


def _keep_verdict(row: BipsyncToken) -> None:
    with suppress(ConfigurationError, RefreshUnavailable, SignInRequired):
        beside(row, lambda _: validate(row))


@without_traces
def _check(row: BipsyncToken, *, from_provider: bool = False) -> Claims | None:
    raw = row.unseal("access_token")
    if raw is None:
        return None
    try:
        claims = validate_access_token(raw, get_tenant(row.tenant), from_provider=from_provider)
    except KeysUnavailable:
        return None
    except TokenRefused as error:
        raise RefreshUnavailable(
            "token_refused", "Bipsync handed out a token that does not validate; it is held back."
        ) from error
    if claims.subject != row.subject:
        raise SignInRequired("Bipsync handed out another person's token; sign in again.")
    return claims


def _quarantine(row: BipsyncToken) -> None:
    pause = timezone.now() + breaker.HELD_BACK
    if write(
        Identity.of(row)
        .rows()
        .filter(generation=row.generation)
        .exclude(last_error="token_refused"),
        last_error="token_refused",
        next_attempt_at=pause,
        next_refresh_at=pause,
    ):
        record(row, Event.QUARANTINED, "token_refused")
        breaker.note_failure(row.tenant, "token_refused", is_first=True)


def _end(row: BipsyncToken, reason: str) -> None:
    if write(
        Identity.of(row).rows().filter(generation=row.generation),
        access_token=None,
        refresh_token=None,
        access_expires_at=None,
        next_refresh_at=None,
        status=Status.NEEDS_SIGN_IN,
        last_error=reason,
        generation=row.generation + 1,
    ):
        record(row, Event.NEEDS_SIGN_IN, reason)
        breaker.note_death(row.tenant)
        send(signals.needs_sign_in, row, reason=reason)
