"""Token rows: how they are read and written, and what they say."""

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from django.db import Error, connections, models, transaction
from django.db.models.expressions import RawSQL
from django.dispatch import Signal
from django.utils import timezone

from .. import breaker, durable, policy
from ..claim_paths import find as find_claim
from ..conf import get_settings, get_tenant
from ..durable import database
from ..exceptions import RefreshUnavailable, SignInRequired
from ..models import BipsyncToken, BipsyncTokenQuerySet, TenantState
from ..oauth.claims import Claims
from ..oauth.client import TokenPair

__all__ = [
    "find",
    "granted",
    "is_quarantined",
    "is_refused",
    "kept_claims",
    "may_be_used",
    "pair_values",
    "raise_if_ended",
    "raise_if_foreign",
    "read",
    "read_beside",
    "send",
    "tokens",
    "write",
]

logger = logging.getLogger(__name__)

# As SQL, because building it from expressions costs more than the database's whole work.
_DEPLOYMENT = RawSQL(  # noqa: S611 - constant
    f"(SELECT deployment FROM {TenantState._meta.db_table} AS state"  # noqa: S608
    f" WHERE state.tenant = {BipsyncToken._meta.db_table}.tenant)",
    (),
    output_field=models.CharField(null=True),
)

_LONGEST_KEPT = 255
_MOST_KEPT = 50
_GREATEST_KEPT = 2**53

Status = BipsyncToken.Status


def tokens() -> BipsyncTokenQuerySet:
    return BipsyncToken.objects.using(database())


def find(pk: int) -> BipsyncToken | None:
    """Return the row with its person, and with the deployment that its tenant belongs to."""
    rows = tokens().annotate(deployment=_DEPLOYMENT).select_related("user")
    return rows.filter(pk=pk).first()


def read(pk: int) -> BipsyncToken:
    """Return the row as ``find`` does. Raises ``SignInRequired`` when it is gone."""
    row = find(pk)
    if row is None:
        raise SignInRequired("There is no connection to Bipsync any more; sign in again.")
    return row


def read_beside(pk: int) -> BipsyncToken:
    """Read the row as it is now: a transaction of the caller's may show it as it was."""
    try:
        return durable.outside_transaction(lambda: read(pk), database())
    except RefreshUnavailable:
        # SQLite, or no connection to be had.
        return read(pk)


def write(rows: models.QuerySet[Any], **values: Any) -> int:
    return durable.persist(lambda: durable.update(rows, **values), database(), patience=10)


# --- what a row says


def may_be_used(row: BipsyncToken) -> bool:
    """Whether the grant serves anybody: an active person or a service account, at a tenant."""
    is_active = row.kind == BipsyncToken.Kind.SERVICE or (
        row.user is not None and row.user.is_active
    )
    return is_active and row.tenant in get_settings().tenants


def is_refused(row: BipsyncToken) -> bool:
    return row.last_error == "token_refused"


def is_quarantined(row: BipsyncToken) -> bool:
    return is_refused(row) and row.validated_generation < row.generation


def raise_if_ended(row: BipsyncToken) -> None:
    if row.status != Status.ACTIVE:
        raise SignInRequired("The connection to Bipsync has ended; sign in again.")


def raise_if_foreign(row: BipsyncToken) -> None:
    """Raise ``UnknownTenant`` for a tenant without settings, and ``OtherDeployment``."""
    get_tenant(row.tenant)
    # Annotated by read; a row that was just signed in has it from the same process.
    breaker.raise_if_foreign(row.tenant, getattr(row, "deployment", None) or "")


# --- what a new pair writes


def pair_values(row: BipsyncToken, pair: TokenPair) -> dict[str, Any]:
    """Return the columns of a row that has just got ``pair``."""
    now = timezone.now()
    lifetime = timedelta(seconds=pair.expires_in)
    values = {
        "access_token": row.seal("access_token", pair.access_token),
        "obtained_at": now,
        "access_expires_at": now + lifetime,
        "next_refresh_at": policy.next_refresh(now, lifetime),
        "status": Status.ACTIVE,
        "lease_id": None,
        "lease_until": None,
        "attempt": 0,
        "in_doubt_at": None,
        "next_attempt_at": None,
        "last_error": "",
    }
    if pair.refresh_token is not None:
        values["refresh_token"] = row.seal("refresh_token", pair.refresh_token)
    return values


def granted(claims: Claims, asked: Iterable[str]) -> str:
    named = claims.scopes if "scopes" in claims.claims else asked
    return " ".join(sorted(set(named)))


def kept_claims(claims: Claims) -> dict[str, Any]:
    """Return those of the claims that ``KEEP_CLAIMS`` names, for administrators to see."""
    found = {name: find_claim(claims.claims, name) for name in get_settings().keep_claims}
    return {name: value for name, value in found.items() if _is_short(value)}


def _is_short(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= _MOST_KEPT and all(
            _is_short(item) and not isinstance(item, list) for item in value
        )
    if isinstance(value, str):
        # Databases refuse NUL and half characters, and nobody can read the others.
        return len(value) <= _LONGEST_KEPT and value.isprintable()
    return isinstance(value, bool | int) and abs(value) <= _GREATEST_KEPT


# --- telling the site


def send(signal: Signal, row: BipsyncToken, **arguments: object) -> None:
    durable.afterwards(lambda: _deliver(signal, row, arguments))


def _deliver(signal: Signal, row: BipsyncToken, arguments: dict[str, object]) -> None:
    """Tell the site's receivers. What fails there must not break the caller's transaction."""
    try:
        with transaction.atomic(using=database()) if _in_transaction() else nullcontext():
            signal.send_robust(sender=BipsyncToken, token=row, **arguments)
    except Error as error:
        logger.error("A receiver broke the transaction (%s); undone.", type(error).__name__)


def _in_transaction() -> bool:
    return connections[database()].in_atomic_block
