"""Using a grant: whoever needs its access token, at this moment."""

from datetime import timedelta

from django.db import models
from django.utils import timezone

from .. import policy
from ..conf import Tenant
from ..exceptions import (
    ConfigurationError,
    NoSecondConnection,
    RefreshUnavailable,
    SecretUnreadable,
    SignInRequired,
)
from ..models import BipsyncToken
from ..redaction import without_traces
from .protocol import obtain, revive
from .rows import may_be_used, raise_if_ended, raise_if_foreign, read, read_beside, tokens
from .validation import validate_beside

__all__ = [
    "access_token",
    "grant_of",
    "refresh",
    "replace_refused",
    "retry",
    "service_grant_of",
]

REFUSED_EARLIEST = timedelta(minutes=10)

Status = BipsyncToken.Status


@without_traces
def access_token(token: BipsyncToken, *, min_validity: float = 60) -> str:
    """Return an access token that is good for ``min_validity`` seconds more, refreshing if needed.

    ``min_validity`` counts for at most a quarter of the token's lifetime. With nothing due this
    is one query and no write. A refresh kills the access token that other requests of this person
    are using at this moment; they get a 401 from Bipsync and have to ask again.

    When a refresh is due but cannot be had, the present token is returned as long as it has not
    expired.

    Raises ``SignInRequired`` when the person has to sign in again, ``RefreshUnavailable`` when
    another try later may succeed (``RefreshInsideTransaction`` on SQLite inside a transaction),
    and ``SecretUnreadable`` or ``ConfigurationError`` when an administrator has to act.
    """

    def is_due(row: BipsyncToken) -> bool:
        return policy.is_due(row, min_validity)

    row = read(token)
    if row.status == Status.ACTIVE and may_be_used(row) and is_due(row):
        try:
            row = obtain(row, row.generation, is_due, wait=True)
        except NoSecondConnection:
            # Asking for one again would only take as long again.
            if not _is_alive(row):
                raise
        except (ConfigurationError, RefreshUnavailable, SecretUnreadable, SignInRequired):
            row = read_beside(token)
            if not _is_alive(row):
                raise
    return _hand_out(row)


@without_traces
def refresh(token: BipsyncToken, *, force: bool = False) -> BipsyncToken:
    """Refresh the grant if that is due in the background, or with ``force`` in any case.

    A pair that is newer than ``token``, or younger than 30 seconds, is not refreshed again even
    then. Returns the row as it is now. A refresh kills the access token that is in use.

    Raises as ``access_token`` does.
    """

    def is_due(row: BipsyncToken) -> bool:
        return force or policy.is_due_in_background(row)

    row = obtain(read(token), token.generation, is_due, wait=True)
    raise_if_ended(row)
    return row


@without_traces
def retry(token: BipsyncToken) -> BipsyncToken:
    """Ask Bipsync once more about a grant that needs sign-in; return the row as it is now.

    It comes back to life if Bipsync still takes its refresh token, and stays as it was otherwise.

    Raises ``SignInRequired`` when Bipsync does not take it, or none is left to try, and as
    ``access_token`` does.
    """
    row = read(token)
    if row.status == Status.ACTIVE:
        return row
    if row.status != Status.NEEDS_SIGN_IN or row.refresh_token is None:
        raise SignInRequired("Nothing is left to try with; the person has to sign in.")
    return revive(row)


@without_traces
def replace_refused(token: BipsyncToken, refused: str) -> str | None:
    """Return another access token than ``refused``, which Bipsync's API has answered with 401.

    A row that holds another one by now gives that. Otherwise its pair is refreshed, once. Returns
    ``None`` when ``refused`` is less than ten minutes old: a 401 is also how Bipsync says that a
    scope is missing, and no refresh mends that.

    Raises as ``access_token`` does.
    """
    row = read_beside(token)
    if row.unseal("access_token") != refused:
        return _hand_out(row)
    raise_if_ended(row)
    if row.obtained_at is not None and timezone.now() < row.obtained_at + REFUSED_EARLIEST:
        return None
    return _hand_out(obtain(row, row.generation, lambda row: True, wait=True))


def grant_of(user: models.Model, tenant: Tenant) -> BipsyncToken | None:
    """Return the person's grant at ``tenant``, or ``None`` where they have never signed in."""
    rows = tokens().for_user(user).filter(tenant=tenant.slug)
    return rows.exclude(signed_in_at=None).first()


def service_grant_of(tenant: Tenant) -> BipsyncToken | None:
    """Return the grant of the tenant's service account, or ``None`` where there is none."""
    rows = tokens().filter(tenant=tenant.slug, kind=BipsyncToken.Kind.SERVICE)
    confirmed = rows.exclude(signed_in_at=None).exclude(status=Status.DISCONNECTED)
    return confirmed.order_by("-signed_in_at").first()


def _is_alive(row: BipsyncToken) -> bool:
    """Whether the access token itself still works, whatever became of the grant."""
    return (
        row.status not in {Status.DISCONNECTED, Status.UNCONFIRMED}
        and row.access_token is not None
        and row.access_expires_at is not None
        and row.access_expires_at > timezone.now()
    )


@without_traces
def _hand_out(row: BipsyncToken) -> str:
    raise_if_foreign(row)
    if not may_be_used(row):
        raise SignInRequired("This person's account is not active.")
    if row.status != Status.ACTIVE and not _is_alive(row):
        raise SignInRequired("The connection to Bipsync has ended; sign in again.")
    if row.validated_generation < row.generation:
        validate_beside(row)
    token = row.unseal("access_token")
    if token is None:
        raise SignInRequired("No token is stored; sign in again.")
    return token
