"""What happened, for administrators: single events, and hourly counts of what happens all day."""

import logging
import random
from datetime import timedelta

from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, models
from django.db.models import F
from django.utils import timezone

from .conf import get_settings
from .durable import database
from .models import BipsyncToken, HourlyCount, TokenEvent

__all__ = ["count", "prune", "record", "record_for_tenant"]

logger = logging.getLogger(__name__)

_PARTS = 8
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
