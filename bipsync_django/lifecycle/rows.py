"""Token rows: which one is meant, how they are read and written, and what they say."""

import hmac
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from django.conf import settings
from django.db import Error, connections, models, transaction
from django.db.models.expressions import RawSQL
from django.dispatch import Signal
from django.utils import timezone
from django.utils.crypto import salted_hmac

from .. import breaker, durable, policy
from ..claim_paths import find as find_claim
from ..conf import get_settings, get_tenant
from ..durable import database
from ..exceptions import ConfigurationError, RefreshUnavailable, RowMismatch, SignInRequired
from ..models import BipsyncToken, BipsyncTokenQuerySet, TenantState
from ..oauth.claims import Claims
from ..oauth.client import TokenPair

__all__ = [
    "Identity",
    "beside",
    "find",
    "forget_kept",
    "granted_scopes",
    "is_quarantined",
    "is_refused",
    "kept",
    "kept_claims",
    "may_be_used",
    "pair_values",
    "raise_if_ended",
    "raise_if_foreign",
    "read",
    "read_beside",
    "read_now",
    "refreshed_scopes",
    "send",
    "tokens",
    "whole",
    "write",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


@dataclass(frozen=True)
class Identity:
    """Which token row is meant: its primary key, whose account it holds, and when it was made.

    A primary key alone names another row on a connection that sees other tables: those of another
    customer's schema, or of another role. So each read compares the whole identity, in Python,
    because a collation may ignore case; and each write filters by it.
    """

    pk: int
    tenant: str
    kind: str
    subject: str
    user_id: Any
    created_at: datetime

    @classmethod
    def of(cls, row: "BipsyncToken | Identity") -> Self:
        """Return the identity of ``row``, which may be one already.

        Raises ``TypeError`` for a row that was loaded without one of these columns: Django would
        read it now, on whichever connection this is, and the row found there would be compared
        with itself.
        """
        if isinstance(row, BipsyncToken):
            missing = row.get_deferred_fields() & {field.name for field in fields(cls)}
            if missing:
                raise TypeError(
                    f"The Bipsync token with primary key {row.pk} was loaded without "
                    f"{', '.join(sorted(missing))}, so nothing says whose it is. Load the whole "
                    "row: without .only(), and with .defer() for access_token, refresh_token and "
                    "claims alone."
                )
        return cls(row.pk, row.tenant, row.kind, row.subject, row.user_id, row.created_at)

    @property
    def digest(self) -> str:
        """A keyed digest, for messages and sessions that must not say whose row they mean."""
        return self._digest(settings.SECRET_KEY)

    def has_digest(self, digest: str) -> bool:
        """Return whether ``digest`` is this one's, by ``SECRET_KEY`` or one of its fallbacks."""
        return any(
            hmac.compare_digest(self._digest(key), digest)
            for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        )

    def _digest(self, key: str | bytes) -> str:
        text = json.dumps([str(value) for value in self._values()])
        hashed = salted_hmac("bipsync_django.row", text, secret=key, algorithm="sha256")
        return hashed.hexdigest()[:32]

    def rows(self) -> BipsyncTokenQuerySet:
        """Return the row to be written to; empty when another one has its primary key here."""
        return tokens().filter(
            pk=self.pk,
            tenant=self.tenant,
            kind=self.kind,
            subject=self.subject,
            user_id=self.user_id,
            created_at=self.created_at,
        )

    def rows_of_account(self) -> BipsyncTokenQuerySet:
        """Return the row of this account, whoever has it now: that is what a pair is sealed for."""
        return tokens().filter(pk=self.pk, tenant=self.tenant, kind=self.kind, subject=self.subject)

    def require(self, found: BipsyncToken) -> None:
        """Compare ``found``, which was read by this primary key.

        Raises ``SignInRequired`` when the account belongs to another user by now, and
        ``RowMismatch`` when it is another account.
        """
        self.require_account(found)
        if found.user_id != self.user_id:
            raise SignInRequired("The Bipsync account belongs to another user here; sign in again.")

    def require_account(self, found: BipsyncToken) -> None:
        """Compare all but the user. Raises ``RowMismatch``."""
        if not self.is_account(found):
            raise _mismatch(self, is_there=True)

    def is_account(self, found: BipsyncToken) -> bool:
        """Return whether ``found`` is this very row, whoever has the account by now."""
        theirs = Identity.of(found)
        return (*theirs._account(), theirs.created_at) == (*self._account(), self.created_at)

    def _account(self) -> tuple[int, str, str, str]:
        return (self.pk, self.tenant, self.kind, self.subject)

    def _values(self) -> tuple[object, ...]:
        # The same moment, whatever the time zone of the connection that it was read from.
        return (*self._account(), self.user_id, self.created_at.timestamp())


def _mismatch(wanted: Identity, *, is_there: bool) -> RowMismatch:
    # Callers whose token still works do not see the exception.
    breaker.say_once(
        wanted.tenant,
        "A database connection shows other token rows than the one that a row came from, so "
        "nothing is refreshed on it. See docs/installing.md, A schema for each customer.",
    )
    return RowMismatch(wanted.pk, is_there=is_there)


def whole() -> BipsyncTokenQuerySet:
    """Return all rows with their person, and with the deployment that their tenant belongs to."""
    return tokens().annotate(deployment=_DEPLOYMENT).select_related("user")


def find(pk: int) -> BipsyncToken | None:
    """Return the row of ``whole`` that has this primary key here, whichever it is.

    A caller that holds a row already uses ``read``, which compares.
    """
    return whole().filter(pk=pk).first()


def read(row: BipsyncToken | Identity, *, of_anybody: bool = False) -> BipsyncToken:
    """Return ``row`` as it is now on this connection; with ``of_anybody`` whoever has it now.

    Raises ``SignInRequired`` when it is gone or belongs to another user, and ``RowMismatch`` when
    another account's row is found in its place.
    """
    wanted = Identity.of(row)
    found = find(wanted.pk)
    if found is None:
        if durable.is_beside():
            # The caller's own connection has it.
            raise _mismatch(wanted, is_there=False)
        raise SignInRequired("There is no connection to Bipsync any more; sign in again.")
    if of_anybody:
        wanted.require_account(found)
    else:
        wanted.require(found)
    return found


def beside(row: BipsyncToken, work: Callable[[BipsyncToken], T]) -> T:
    """Return ``work(row)``, done where its writes commit at once.

    On a connection of its own ``row`` is first read anew, and compared: nothing may be done there
    to a row that is another one. Raises as ``read`` and ``durable.outside_transaction`` do.
    """
    return durable.outside_transaction(
        lambda: work(read(row) if durable.is_beside() else row), database()
    )


def read_now(row: BipsyncToken | Identity) -> BipsyncToken:
    """Read the row as it is now: a transaction of the caller's may show it as it was.

    Raises as ``read`` and ``durable.outside_transaction`` do.
    """
    return durable.outside_transaction(lambda: read(row), database())


def read_beside(row: BipsyncToken | Identity) -> BipsyncToken:
    """Return the row as ``read_now`` does, or as the caller's connection shows it."""
    try:
        return read_now(row)
    except (ConfigurationError, RefreshUnavailable):
        # SQLite, no free connection, or one that sees other rows or cannot be prepared.
        return read(row)


def kept(row: BipsyncToken) -> BipsyncTokenQuerySet:
    """Return ``row`` if it is disconnected and keeps its refresh token for after a lease."""
    as_read = Identity.of(row).rows().filter(generation=row.generation, status=Status.DISCONNECTED)
    return as_read.filter(refresh_token__isnull=False)


def forget_kept(row: BipsyncToken) -> None:
    """Erase the refresh token that a disconnected ``row`` keeps."""
    write(kept(row), refresh_token=None, lease_until=None)


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
    if pair.scopes is not None:
        values |= {"scopes": _joined(pair.scopes), "scopes_are_known": True}
    if pair.refresh_token is not None:
        values["refresh_token"] = row.seal("refresh_token", pair.refresh_token)
    return values


def granted_scopes(claims: Claims, pair: TokenPair, asked: Iterable[str]) -> dict[str, Any]:
    """Return the columns that say which scopes a new grant has, and whether Bipsync said so.

    The token says it, or the answer that brought the token. Where both are silent, all that was
    asked for counts as granted (RFC 6749, section 5.1).
    """
    answered = pair.scopes
    said = claims.scopes if claims.says_scopes else answered
    return {
        "scopes": _joined(asked if said is None else said),
        "scopes_are_known": said is not None,
    }


def refreshed_scopes(row: BipsyncToken, claims: Claims) -> dict[str, Any]:
    """Return the same columns once the access token of ``row`` has been validated."""
    if not claims.says_scopes:
        return {"scopes": row.scopes, "scopes_are_known": row.scopes_are_known}
    return {"scopes": _joined(claims.scopes), "scopes_are_known": True}


def _joined(scopes: Iterable[str]) -> str:
    return " ".join(sorted(set(scopes)))


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
