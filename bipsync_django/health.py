"""How the connections of each tenant are, in figures: for operators, monitoring and the admin.

Everything here is counted from indexes and hourly counters, so that it costs the same whatever
has happened, and next to nothing however many are connected.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Case, CharField, Count, Q, Sum, Value, When
from django.utils import timezone

from .conf import get_settings
from .durable import database
from .models import BipsyncToken, HourlyCount, TenantState

__all__ = [
    "EXPIRY_STEPS",
    "OVERDUE_AFTER",
    "SERVICE_RUNS_OUT_AFTER",
    "Hour",
    "Report",
    "TenantHealth",
    "last_day",
    "report",
    "services_running_out",
    "tenants",
]

# Beat ticks once a minute, and a message that is taken for a row is waited for ten minutes.
OVERDUE_AFTER = timedelta(minutes=15)
# Bipsync's refresh tokens are good for a month unless they are used.
SERVICE_RUNS_OUT_AFTER = timedelta(days=20)
EXPIRY_STEPS: Mapping[str, timedelta] = {
    "expired": timedelta(0),
    "15 minutes": timedelta(minutes=15),
    "30 minutes": timedelta(minutes=30),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
"""Until when access tokens expire, by the names that ``TenantHealth.expiries`` has for it."""

_LATER = "later"
_DAY = 24

Status = BipsyncToken.Status


@dataclass(frozen=True)
class TenantHealth:
    """One tenant's figures, from four queries for all tenants.

    ``by_status`` has every status. ``failing`` are active grants whose last refresh failed, and
    ``overdue`` those whose refresh has been due for a quarter of an hour and is not put off.
    ``expiries`` are the active grants by when their access token expires: the names of
    ``EXPIRY_STEPS``, and ``"later"``. ``held_back_until`` is an aware datetime while calls are
    held back, else ``None``.
    """

    tenant: str
    by_status: Mapping[str, int]
    failing: int
    overdue: int
    held_back_until: datetime | None
    held_back_for: str
    deployment: str
    expiries: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Hour:
    """What happened within an hour; ``start`` is an aware datetime."""

    start: datetime
    refreshed: int = 0
    failed: int = 0
    ended: int = 0
    signed_in: int = 0


@dataclass(frozen=True)
class Report:
    """What the panel shows above its list; ``hours`` are the last 24, the present one last."""

    tenants: list[TenantHealth]
    hours: list[Hour]
    services: list[BipsyncToken]


def report() -> Report:
    """Return how all is at this moment, from seven queries. Raises ``ConfigurationError``."""
    return Report(tenants(), last_day(), services_running_out())


def tenants() -> list[TenantHealth]:
    """Return the figures of each tenant in the settings. Raises ``ConfigurationError``."""
    slugs = list(get_settings().tenants)
    now = timezone.now()
    late = now - OVERDUE_AFTER
    rows = BipsyncToken.objects.using(database()).order_by()
    figures: dict[str, Counter[tuple[str, str]]] = {slug: Counter() for slug in slugs}
    counted = rows.filter(tenant__in=slugs).values("tenant", "status", step=_step(now))
    for tenant, status, step, count in counted.annotate(count=Count("pk")).values_list(
        "tenant", "status", "step", "count"
    ):
        figures[tenant][status, step] += count
    # Few rows each, found by an index: whether their person is active costs little then.
    failing = _by_tenant(rows.active().filter(attempt__gt=0))
    is_put_off = Q(next_attempt_at__gt=late)
    overdue = _by_tenant(rows.active().filter(~is_put_off, next_refresh_at__lt=late))
    states = {state.tenant: state for state in TenantState.objects.using(database())}
    return [
        _of(slug, figures[slug], failing[slug], overdue[slug], states.get(slug), now)
        for slug in slugs
    ]


def last_day() -> list[Hour]:
    """Return what happened in each of the last 24 hours, in all tenants together."""
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    starts = [this_hour - timedelta(hours=ago) for ago in reversed(range(_DAY))]
    counts: dict[datetime, Counter[str]] = {start: Counter() for start in starts}
    rows = HourlyCount.objects.using(database()).filter(
        tenant__in=list(get_settings().tenants), hour__gte=starts[0]
    )
    for hour, name, count in (
        rows.order_by().values_list("hour", "name").annotate(total=Sum("count"))
    ):
        counts.setdefault(hour, Counter())[name] += count
    return [
        Hour(
            start=start,
            refreshed=counts[start]["refreshed"],
            failed=counts[start]["refresh_failed"],
            ended=counts[start]["refresh_dead"],
            signed_in=counts[start]["signed_in"] + counts[start]["connected"],
        )
        for start in starts
    ]


def services_running_out() -> list[BipsyncToken]:
    """Return the service accounts that have ended, or will unless somebody does something."""
    old = timezone.now() - SERVICE_RUNS_OUT_AFTER
    rows = BipsyncToken.objects.using(database()).filter(
        Q(status=Status.NEEDS_SIGN_IN)
        | Q(status=Status.ACTIVE, attempt__gt=0)
        | Q(status=Status.ACTIVE, obtained_at__lt=old),
        kind=BipsyncToken.Kind.SERVICE,
        tenant__in=list(get_settings().tenants),
    )
    return list(rows.exclude(signed_in_at=None).defer("access_token", "refresh_token"))


def _step(now: datetime) -> Case:
    """Name when the row's access token expires."""
    return Case(
        When(access_expires_at=None, then=Value("")),
        *(
            When(access_expires_at__lte=now + ahead, then=Value(name))
            for name, ahead in EXPIRY_STEPS.items()
        ),
        default=Value(_LATER),
        output_field=CharField(),
    )


def _by_tenant(rows: Any) -> Counter[str]:
    return Counter(dict(rows.values_list("tenant").annotate(Count("pk"))))


def _of(
    slug: str,
    figures: Counter[tuple[str, str]],
    failing: int,
    overdue: int,
    state: TenantState | None,
    now: datetime,
) -> TenantHealth:
    until = state.breaker_until if state is not None else None
    is_open = until is not None and until > now
    by_status = Counter({str(status): 0 for status in Status.values})
    for (status, _), count in figures.items():
        by_status[status] += count
    return TenantHealth(
        tenant=slug,
        by_status=dict(by_status),
        failing=failing,
        overdue=overdue,
        held_back_until=until if is_open else None,
        held_back_for=state.configuration_error if state is not None and is_open else "",
        deployment=state.deployment if state is not None else "",
        expiries={step: figures[Status.ACTIVE, step] for step in (*EXPIRY_STEPS, _LATER)},
    )
