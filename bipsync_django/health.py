"""How the connections of each tenant are, in figures: for operators, monitoring and the admin."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q
from django.utils import timezone

from .conf import get_settings
from .durable import database
from .models import BipsyncToken, TenantState

__all__ = ["OVERDUE_AFTER", "TenantHealth", "tenants"]

# Beat ticks once a minute, and a message that is taken for a row is waited for ten minutes.
OVERDUE_AFTER = timedelta(minutes=15)


@dataclass(frozen=True)
class TenantHealth:
    """One tenant's figures, from three queries for all tenants.

    ``by_status`` has every status. ``failing`` are active grants whose last refresh failed, and
    ``overdue`` those whose refresh has been due for a quarter of an hour and is not put off.
    ``held_back_until`` is an aware datetime while calls are held back, else ``None``.
    """

    tenant: str
    by_status: Mapping[str, int]
    failing: int
    overdue: int
    held_back_until: datetime | None
    held_back_for: str
    deployment: str


def tenants() -> list[TenantHealth]:
    """Return the figures of each tenant in the settings. Raises ``ConfigurationError``."""
    now = timezone.now()
    late = now - OVERDUE_AFTER
    is_put_off = Q(next_attempt_at__gt=late)
    rows = BipsyncToken.objects.using(database())
    figures: dict[str, Mapping[str, Any]] = {
        row["tenant"]: row
        for row in rows.order_by()
        .values("tenant")
        .annotate(**{status: Count("pk", filter=Q(status=status)) for status in _STATUSES})
    }
    active: dict[str, Mapping[str, Any]] = {
        row["tenant"]: row
        for row in rows.active()
        .order_by()
        .values("tenant")
        .annotate(
            failing=Count("pk", filter=Q(attempt__gt=0)),
            overdue=Count("pk", filter=Q(next_refresh_at__lt=late) & ~is_put_off),
        )
    }
    states = {state.tenant: state for state in TenantState.objects.using(database())}
    return [
        _of(slug, figures.get(slug, {}), active.get(slug, {}), states.get(slug), now)
        for slug in get_settings().tenants
    ]


_STATUSES = list(BipsyncToken.Status.values)


def _of(
    slug: str,
    figures: Mapping[str, Any],
    active: Mapping[str, Any],
    state: TenantState | None,
    now: datetime,
) -> TenantHealth:
    until = state.breaker_until if state is not None else None
    is_open = until is not None and until > now
    return TenantHealth(
        tenant=slug,
        by_status={status: figures.get(status, 0) for status in _STATUSES},
        failing=active.get("failing", 0),
        overdue=active.get("overdue", 0),
        held_back_until=until if is_open else None,
        held_back_for=state.configuration_error if state is not None and is_open else "",
        deployment=state.deployment if state is not None else "",
    )
