"""How the connections of each tenant are, in figures: for operators, monitoring and the admin.

All of it is counted from indexes and hourly counters: it costs the same whatever has happened, and
some tens of milliseconds for a hundred thousand connections.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db.models import Case, Count, Q, Sum, When
from django.utils import timezone

from .caching import despite_errors
from .conf import get_settings
from .durable import database
from .lifecycle import RemovedTenant, removed_tenants
from .models import BipsyncToken, HourlyCount, TenantState

__all__ = [
    "EXPIRY_STEPS",
    "OVERDUE_AFTER",
    "SERVICE_RUNS_OUT_AFTER",
    "Hour",
    "Report",
    "Service",
    "TenantHealth",
    "forget_report",
    "last_day",
    "report",
    "services_running_out",
    "tenants",
]

# Beat ticks once a minute, and a message that is taken for a row is waited for ten minutes.
OVERDUE_AFTER = timedelta(minutes=15)
# Bipsync's refresh tokens are good for a month unless they are used.
SERVICE_RUNS_OUT_AFTER = timedelta(days=20)
KEPT_FOR = 10.0
"""Seconds for which the panel's figures serve all who look."""
EXPIRY_STEPS: Mapping[str, timedelta] = {
    "expired": timedelta(0),
    "in_15_minutes": timedelta(minutes=15),
    "in_30_minutes": timedelta(minutes=30),
    "in_1_hour": timedelta(hours=1),
    "in_1_day": timedelta(days=1),
}
"""Until when access tokens expire, by the names that ``TenantHealth.expiries`` has for it."""

LATER = "later"
_FAILED = "the panel counts anew"
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
class Service:
    """A service account that has ended, or will unless somebody does something."""

    tenant: str
    account: str
    has_ended: bool
    fails: bool
    last_error: str


@dataclass(frozen=True)
class Report:
    """What the panel shows above its list; ``hours`` are the last 24, the present one last.

    ``removed`` are the tenants that have rows and no settings.
    """

    tenants: list[TenantHealth]
    hours: list[Hour]
    services: list[Service]
    removed: list[RemovedTenant]


def report() -> Report:
    """Return how all is, as it was at most ten seconds ago. Raises ``ConfigurationError``."""
    key = _key()
    found = despite_errors(lambda: cache.get(key), None, _FAILED)
    if isinstance(found, Report):
        return found
    counted = Report(tenants(), last_day(), services_running_out(), removed_tenants())
    despite_errors(lambda: cache.set(key, counted, KEPT_FOR), None, _FAILED)
    return counted


def forget_report() -> None:
    """Let the next who looks see what has just been done."""
    key = _key()
    despite_errors(lambda: cache.delete(key), None, _FAILED)


def _key() -> str:
    return f"bipsync_django.report:{','.join(get_settings().tenants)}"


def tenants() -> list[TenantHealth]:
    """Return the figures of each tenant in the settings. Raises ``ConfigurationError``."""
    slugs = list(get_settings().tenants)
    now = timezone.now()
    late = now - OVERDUE_AFTER
    rows = BipsyncToken.objects.using(database()).order_by()
    figures: dict[str, dict[str, Mapping[str, Any]]] = {slug: {} for slug in slugs}
    by_then = {
        name: Count(Case(When(access_expires_at__lte=now + ahead, then=1)))
        for name, ahead in EXPIRY_STEPS.items()
    }
    # In the order of the index that answers it: nothing is sorted and no row is looked at.
    counted = rows.filter(tenant__in=slugs).values("tenant", "status")
    row: Mapping[str, Any]
    for row in counted.annotate(**by_then, all=Count("*")):
        figures[row["tenant"]][row["status"]] = row
    # Few rows each, found by an index: whether their person is active costs little then.
    failing, overdue = _by_tenant(rows.failing()), _by_tenant(rows.overdue(late))
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


def services_running_out() -> list[Service]:
    """Return the service accounts that have ended, or will unless somebody does something."""
    old = timezone.now() - SERVICE_RUNS_OUT_AFTER
    rows = BipsyncToken.objects.using(database()).filter(
        Q(status=Status.NEEDS_SIGN_IN)
        | Q(status=Status.ACTIVE, attempt__gt=0)
        | Q(status=Status.ACTIVE, obtained_at__lt=old),
        kind=BipsyncToken.Kind.SERVICE,
        # By the index that all databases have: service accounts have no user.
        user=None,
        tenant__in=list(get_settings().tenants),
    )
    return [
        Service(
            tenant=row.tenant,
            account=row.owner,
            has_ended=row.status == Status.NEEDS_SIGN_IN,
            fails=row.attempt > 0,
            last_error=row.last_error,
        )
        for row in rows.exclude(signed_in_at=None).defer("access_token", "refresh_token")
    ]


def _by_tenant(rows: Any) -> Counter[str]:
    return Counter(dict(rows.values_list("tenant").annotate(count=Count("*"))))


def _of(
    slug: str,
    figures: Mapping[str, Mapping[str, Any]],
    failing: int,
    overdue: int,
    state: TenantState | None,
    now: datetime,
) -> TenantHealth:
    until = state.breaker_until if state is not None else None
    is_open = until is not None and until > now
    return TenantHealth(
        tenant=slug,
        by_status={status: figures.get(status, {}).get("all", 0) for status in Status.values},
        failing=failing,
        overdue=overdue,
        held_back_until=until if is_open else None,
        held_back_for=state.configuration_error if state is not None and is_open else "",
        deployment=state.deployment if state is not None else "",
        expiries=_between(figures.get(Status.ACTIVE, {})),
    )


def _between(figures: Mapping[str, Any]) -> dict[str, int]:
    """Return how many expire in each step, of how many have expired by the end of each."""
    steps, before = {}, 0
    for name in EXPIRY_STEPS:
        by_then = figures.get(name, 0)
        steps[name] = by_then - before
        before = by_then
    steps[LATER] = figures.get("all", 0) - before
    return steps
