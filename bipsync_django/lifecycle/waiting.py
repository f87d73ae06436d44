"""Pairs that wait: stored, and used by nobody until a person has read whose account it is.

The browser that is sent to Bipsync may be signed in there as anybody.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from .. import policy
from ..conf import Tenant
from ..models import BipsyncToken
from ..oauth.claims import Claims
from ..oauth.client import TokenPair
from ..redaction import without_traces
from .changes import discard
from .rows import granted_scopes, kept_claims, pair_values, tokens

__all__ = ["CONFIRMED_WITHIN", "in_use", "is_waiting", "new_grant", "prune_unconfirmed", "waiting"]

CONFIRMED_WITHIN = timedelta(hours=1)

Status = BipsyncToken.Status


def new_grant(
    row: BipsyncToken, tenant: Tenant, claims: Claims, pair: TokenPair, scopes: Iterable[str]
) -> dict[str, Any]:
    """Return the columns of ``row`` once ``pair`` has replaced the pair that it holds.

    ``claims`` are those of the validated access token, and ``scopes`` what was asked for.
    """
    return {
        "refresh_token": None,
        **pair_values(row, pair),
        "client_id": tenant.client_id,
        "generation": row.generation + 1,
        "validated_generation": row.generation + 1,
        **granted_scopes(claims, pair, scopes),
        "claims": kept_claims(claims),
    }


def waiting() -> dict[str, Any]:
    """Return the columns that keep a pair from being used and refreshed."""
    return {"status": Status.UNCONFIRMED, "next_refresh_at": None}


def in_use(row: BipsyncToken) -> dict[str, Any]:
    """Return the columns that take the waiting pair of ``row`` into use."""
    now = timezone.now()
    due = now
    if row.obtained_at is not None and row.access_expires_at is not None:
        lifetime = row.access_expires_at - row.obtained_at
        due = policy.next_refresh(row.obtained_at, lifetime) or due
    return {"status": Status.ACTIVE, "signed_in_at": now, "next_refresh_at": due}


def is_waiting(row: BipsyncToken) -> bool:
    """Return whether the row holds a pair that may still be confirmed, for an hour at most."""
    return (
        row.status == Status.UNCONFIRMED
        and row.user_id is None
        and row.obtained_at is not None
        and timezone.now() < row.obtained_at + CONFIRMED_WITHIN
    )


@without_traces
def prune_unconfirmed() -> None:
    """Give up the pairs that nobody has confirmed within an hour."""
    late = timezone.now() - CONFIRMED_WITHIN
    for row in tokens().filter(status=Status.UNCONFIRMED, obtained_at__lt=late):
        discard(row)
