"""The figures of each tenant: right, and from as many queries however many rows there are."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from bipsync_django import health
from bipsync_django.models import BipsyncToken, TenantState

pytestmark = pytest.mark.usefixtures("bipsync", "database")

Status = BipsyncToken.Status


def rows(count: int, **values: Any) -> None:
    users = User.objects.bulk_create(
        User(username=f"user-{User.objects.count()}-{number}") for number in range(count)
    )
    start = BipsyncToken.objects.count()
    BipsyncToken.objects.bulk_create(
        BipsyncToken(**{"tenant": "acme", "subject": f"s{start + place}", "user": user, **values})
        for place, user in enumerate(users)
    )


def test_the_figures_are_right(settings: Any) -> None:
    late = timezone.now() - timedelta(minutes=16)
    soon = timezone.now() + timedelta(minutes=5)
    rows(3, next_refresh_at=soon)
    rows(2, next_refresh_at=late)
    rows(1, next_refresh_at=late, next_attempt_at=soon, attempt=3)
    rows(4, status=Status.NEEDS_SIGN_IN, attempt=1)
    rows(1, status=Status.DISCONNECTED)
    rows(5, next_refresh_at=late, tenant="gone")
    someone = BipsyncToken.objects.filter(next_refresh_at=soon).earliest("pk")
    User.objects.filter(bipsync_tokens=someone).update(is_active=False)
    (acme,) = health.tenants()
    assert acme.tenant == "acme"
    assert acme.by_status == {
        "active": 6,
        "needs_sign_in": 4,
        "unconfirmed": 0,
        "disconnected": 1,
    }
    assert (acme.failing, acme.overdue) == (1, 2)
    assert (acme.held_back_until, acme.held_back_for, acme.deployment) == (None, "", "")


def test_people_who_were_switched_off_are_not_overdue() -> None:
    rows(2, next_refresh_at=timezone.now() - timedelta(hours=1))
    User.objects.update(is_active=False)
    (acme,) = health.tenants()
    assert (acme.by_status["active"], acme.overdue) == (2, 0)


def test_a_tenant_without_rows_is_there_all_the_same(settings: Any) -> None:
    (acme,) = health.tenants()
    assert not any(acme.by_status.values())
    assert set(acme.by_status) == set(Status.values)


def test_the_breaker_is_told_while_it_is_open() -> None:
    until = timezone.now() + timedelta(minutes=2)
    state = TenantState.objects.create(
        tenant="acme", breaker_until=until, configuration_error="invalid_client", deployment="live"
    )
    (acme,) = health.tenants()
    assert acme.held_back_until is not None
    assert (acme.held_back_for, acme.deployment) == ("invalid_client", "live")
    state.breaker_until = timezone.now() - timedelta(seconds=1)
    state.save()
    (acme,) = health.tenants()
    assert (acme.held_back_until, acme.held_back_for) == (None, "")


def test_the_number_of_queries_does_not_grow(database: str) -> None:
    counts = []
    for _ in range(2):
        rows(20)
        with CaptureQueriesContext(connections[database]) as queries:
            health.tenants()
        counts.append(len(queries))
    assert counts == [4, 4]
