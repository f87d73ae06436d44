"""What happened, for administrators: single events, and hourly counts of what happens all day."""

import logging
import random
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, models
from django.db.models import Count, Exists, F, OuterRef, Q
from django.utils import timezone

from .conf import get_settings
from .durable import database
from .models import BipsyncToken, HourlyCount, TokenEvent

__all__ = [
    "Progress",
    "ask_for",
    "asked_for",
    "count",
    "progress",
    "prune",
    "record",
    "record_for_tenant",
]

logger = logging.getLogger(__name__)

_PARTS = 8
_BATCH_NAME = re.compile(r"(\d{1,11})-[0-9a-f]{8}")
_NOT_REFRESHED = [
    TokenEvent.Name.DISCONNECTED,
    TokenEvent.Name.NEEDS_SIGN_IN,
    TokenEvent.Name.NOT_REFRESHED,
    TokenEvent.Name.QUARANTINED,
    TokenEvent.Name.REFRESH_FAILED,
]
_BATCH = 1000
_BATCHES_AT_ONCE = 100


def record(
    row: BipsyncToken,
    name: str,
    reason: str = "",
    *,
    detail: str = "",
    generation: int | None = None,
    actor: AbstractBaseUser | None = None,
) -> None:
    """Record what happened to a grant; ``actor`` is who asked for it."""
    TokenEvent.objects.using(database()).create(
        token_id=row.pk,
        tenant=row.tenant,
        subject=row.subject,
        name=name,
        reason=reason,
        detail=detail[:255],
        generation=row.generation if generation is None else generation,
        actor_id=None if actor is None else actor.pk,
    )


def record_for_tenant(tenant: str, name: str, reason: str = "") -> None:
    """Record what happened to all grants of a tenant."""
    TokenEvent.objects.using(database()).create(tenant=tenant, name=name, reason=reason)


# --- what administrators have asked for, many rows at a time


@dataclass(frozen=True)
class Progress:
    """How far a batch has come."""

    asked: int
    refreshed: int
    failed: int

    @property
    def waiting(self) -> int:
        return self.asked - self.refreshed - self.failed


def ask_for(rows: Iterable[BipsyncToken], actor: AbstractBaseUser) -> str:
    """Record that ``actor`` wants these rows refreshed; return the name of the batch."""
    now = timezone.now()
    batch = f"{int(now.timestamp())}-{secrets.token_hex(4)}"
    TokenEvent.objects.using(database()).bulk_create(
        (
            TokenEvent(
                token_id=row.pk,
                tenant=row.tenant,
                subject=row.subject,
                name=TokenEvent.Name.REFRESH_ASKED,
                detail=batch,
                generation=row.generation,
                actor_id=actor.pk,
                at=now,
            )
            for row in rows
        ),
        batch_size=_BATCH,
    )
    return batch


def asked_for(batch: str) -> models.QuerySet[TokenEvent]:
    """Return the events of a batch, found by its time; none for a name that is no batch's."""
    events = TokenEvent.objects.using(database())
    found = _BATCH_NAME.fullmatch(batch)
    if found is None:
        return events.none()
    started = datetime.fromtimestamp(int(found[1]), UTC)
    return events.filter(
        at__gte=started,
        at__lte=started + timedelta(seconds=2),
        name=TokenEvent.Name.REFRESH_ASKED,
        detail=batch,
    )


def progress(batch: str) -> Progress:
    """Return what has become of a batch so far."""
    later = TokenEvent.objects.using(database()).filter(
        token=OuterRef("token"), at__gt=OuterRef("at"), name__in=_NOT_REFRESHED
    )
    is_refreshed = Q(token__obtained_at__gt=F("at"))
    counts = asked_for(batch).aggregate(
        asked=Count("pk"),
        refreshed=Count("pk", filter=is_refreshed),
        failed=Count("pk", filter=~is_refreshed & (Exists(later) | Q(token=None))),
    )
    return Progress(**counts)


def count(tenant: str, name: str) -> None:
    """Add one to this hour's counter; a figure is not worth an error to the caller."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    part = random.randrange(_PARTS)  # noqa: S311 - not a secret
    counter = {"tenant": tenant, "hour": hour, "name": name, "part": part}
    counts = HourlyCount.objects.using(database())
    try:
        if not counts.filter(**counter).update(count=F("count") + 1):
            counts.bulk_create([HourlyCount(**counter)], ignore_conflicts=True)
            counts.filter(**counter).update(count=F("count") + 1)
    except Error as error:
        logger.warning("The counter %s could not be raised (%s).", name, type(error).__name__)


def prune() -> int:
    """Delete events and counts older than ``KEEP_EVENTS``; return how many rows went.

    In small batches, so that nobody waits for the deletion, and not without end: what is left is
    for the next time.
    """
    oldest = timezone.now() - timedelta(seconds=get_settings().keep_events)
    events = TokenEvent.objects.using(database()).filter(at__lt=oldest)
    counts = HourlyCount.objects.using(database()).filter(hour__lt=oldest)
    return _delete(events) + _delete(counts)


def _delete(rows: models.QuerySet[TokenEvent] | models.QuerySet[HourlyCount]) -> int:
    deleted = 0
    for _ in range(_BATCHES_AT_ONCE):
        pks = list(rows.values_list("pk", flat=True)[:_BATCH])
        if pks:
            deleted += rows.model._default_manager.using(rows.db).filter(pk__in=pks).delete()[0]
        if len(pks) < _BATCH:
            break
    return deleted
