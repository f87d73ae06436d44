"""Refreshing ahead of time: which rows, and what became of them."""

import enum
import logging
from datetime import datetime, timedelta

from django.db import Error, transaction
from django.utils import timezone

from .. import breaker, durable, policy
from ..conf import get_settings
from ..durable import database
from ..events import record
from ..exceptions import BipsyncError, RefreshUnavailable, SecretUnreadable, SignInRequired
from ..models import BipsyncToken, TokenEvent
from ..redaction import without_traces
from .protocol import obtain
from .rows import Identity, find, may_be_used, tokens
from .use import refresh, retry

__all__ = ["Outcome", "refresh_asked", "refresh_if_due", "take_due"]

logger = logging.getLogger(__name__)

TAKEN_FOR = timedelta(minutes=10)
# Rows of inactive people come up again at long intervals, or they would be looked at every time.
_IDLE_FOR = timedelta(days=1)

Status = BipsyncToken.Status


class Outcome(enum.Enum):
    """What became of a refresh in the background."""

    REFRESHED = "refreshed"
    NOT_DUE = "not due"
    HELD_BACK = "held back"
    FAILED = "failed"
    NEEDS_SIGN_IN = "needs sign-in"


@without_traces
def refresh_if_due(pk: int, digest: str | None = None) -> Outcome:
    """Refresh the row ``pk`` in the background, without waiting for anyone else who does.

    ``digest`` is the row's ``Identity.digest`` where ``pk`` comes from another process: another
    row with this primary key is left alone. What went wrong is on the row, not raised.
    """
    before = _find(pk, digest)
    if before is None or before.status != Status.ACTIVE or not may_be_used(before):
        return Outcome.NOT_DUE
    if not policy.is_due_in_background(before):
        _schedule(before)
        return Outcome.NOT_DUE
    try:
        after = obtain(before, before.generation, policy.is_due_in_background, wait=False)
    except SignInRequired:
        return Outcome.NEEDS_SIGN_IN
    except RefreshUnavailable as error:
        if error.until is not None:
            _put_back(before, error.until)
        return Outcome.HELD_BACK if error.until or error.code == "busy" else Outcome.FAILED
    except BipsyncError:
        return Outcome.FAILED
    except Error as error:
        # Of one row: the others are refreshed all the same.
        logger.error("Row %s could not be refreshed (%s).", pk, type(error).__name__)
        return Outcome.FAILED
    return Outcome.NOT_DUE if after.generation == before.generation else Outcome.REFRESHED


@without_traces
def refresh_asked(pk: int, digest: str | None = None) -> str:
    """Refresh the row ``pk`` because an administrator wants it, even if it needs sign-in.

    ``digest`` as for ``refresh_if_due``. Returns an empty text for a row that has a new pair, else
    the code of the reason, which an event tells as well.
    """
    row = _find(pk, digest)
    if row is None:
        return "disconnected"
    started = timezone.now()
    try:
        ask = retry if row.status == Status.NEEDS_SIGN_IN else _refresh
        after = ask(row)
        reason = "" if after.generation > row.generation else "recent"
    except BipsyncError as error:
        reason = _reason(error, _find(pk, Identity.of(row).digest) or row)
    told = TokenEvent.objects.using(database()).filter(token_id=pk, at__gte=started)
    if reason and not told.exists():
        record(row, TokenEvent.Name.NOT_REFRESHED, reason)
    return reason


def _find(pk: int, digest: str | None) -> BipsyncToken | None:
    row = find(pk)
    if row is None or digest is None or Identity.of(row).has_digest(digest):
        return row
    logger.error(
        "A message names row %s, which is another account's on this connection, or has changed "
        "hands, or the message was made with another SECRET_KEY; the row is left alone. Where each "
        "customer has a schema, workers have to use the customer's: see docs/installing.md, A "
        "schema for each customer. Where SECRET_KEY has changed, put the old one into "
        "SECRET_KEY_FALLBACKS.",
        pk,
    )
    return None


def _refresh(row: BipsyncToken) -> BipsyncToken:
    return refresh(row, force=True)


def _reason(error: BipsyncError, row: BipsyncToken) -> str:
    if row.status == Status.UNCONFIRMED:
        return row.status
    if isinstance(error, SignInRequired):
        return "inactive" if not may_be_used(row) else row.last_error or row.status
    if isinstance(error, SecretUnreadable):
        return "secret_unreadable"
    return getattr(error, "code", "configuration")


@without_traces
def take_due(limit: int) -> dict[int, str]:
    """Return up to ``limit`` rows that are due, and not again for ten minutes: id to digest.

    Both go to ``refresh_if_due``, in this process or another. Nothing means that nothing is due,
    or that nothing may be refreshed. Taking a row only moves ``next_refresh_at``: a lost message
    costs ten minutes, never a grant.
    """
    while get_settings().refresh_enabled:
        pks = _set_aside(limit)
        rows = tokens().active().filter(pk__in=pks).defer("access_token", "refresh_token", "claims")
        usable = {row.pk: Identity.of(row).digest for row in rows}
        if len(usable) < len(pks):
            idle = tokens().filter(pk__in=set(pks) - set(usable), status=Status.ACTIVE)
            idle.update(next_refresh_at=timezone.now() + _IDLE_FOR)
        if usable or not pks:
            return usable
    return {}


def _set_aside(limit: int) -> list[int]:
    """Return the ids of rows that are due; of two callers at once each row goes to one."""
    now = timezone.now()
    due = tokens().filter(status=Status.ACTIVE, next_refresh_at__lte=now)
    # Those of a tenant that was taken out of the settings are left alone.
    due = due.filter(tenant__in=list(get_settings().tenants))
    due = due.exclude(tenant__in=breaker.tenants_held_back()).order_by("next_refresh_at")
    with transaction.atomic(using=database()):
        pks = list(durable.skip_locked(due).values_list("pk", flat=True)[:limit])
        tokens().filter(pk__in=pks, next_refresh_at__lte=now).update(
            next_refresh_at=now + TAKEN_FOR
        )
    return pks


def _schedule(row: BipsyncToken) -> None:
    """Let a row that was taken too early, by another policy than today's, come up when it is due.

    A row that is not due because it was refreshed meanwhile is known by its generation.
    """
    if row.obtained_at is not None and row.access_expires_at is not None:
        at = policy.next_refresh(row.obtained_at, row.access_expires_at - row.obtained_at)
        as_read = Identity.of(row).rows().filter(generation=row.generation)
        as_read.update(next_refresh_at=at)


def _put_back(row: BipsyncToken, until: datetime) -> None:
    """Let a row that was taken come up again when another try makes sense."""
    at = until + policy.spread(timedelta(minutes=1))
    as_read = Identity.of(row).rows().filter(generation=row.generation)
    as_read.filter(next_refresh_at__gt=at).update(next_refresh_at=at)
