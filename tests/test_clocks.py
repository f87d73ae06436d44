"""Leases and the cooldown of the signing keys run on the database's clock, whatever a host's says.

A host here is the thread of the test, with a clock that is a minute fast or slow.
"""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.durable import DatabaseNow
from bipsync_django.key_budget import DatabaseBudget
from bipsync_django.lifecycle import protocol
from bipsync_django.models import BipsyncToken, TenantState
from bipsync_django.testing import SimulatedBipsync
from tests.grants import connect, expire, reload

pytestmark = pytest.mark.usefixtures("database")

MINUTE = timedelta(minutes=1)
fast_or_slow = pytest.mark.parametrize("error", [MINUTE, -MINUTE], ids=["fast", "slow"])


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    return expire(connect(bipsync))


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    return get_tenant()


def database_now() -> datetime:
    """Return what time it is on the database's clock."""
    states = TenantState.objects.annotate(now=DatabaseNow())
    TenantState.objects.get_or_create(tenant="acme")
    now: datetime = states.values_list("now", flat=True).get()
    return now


def put_clock(monkeypatch: pytest.MonkeyPatch, error: timedelta) -> None:
    """Let this host's clock be wrong by ``error``. The database's goes on as it did."""
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + error)


@fast_or_slow
def test_a_lease_ends_by_the_databases_clock(
    token: BipsyncToken, monkeypatch: pytest.MonkeyPatch, error: timedelta
) -> None:
    put_clock(monkeypatch, error)
    assert protocol._claim(token) is not None
    until = reload(token).lease_until
    assert until is not None
    assert timedelta(seconds=10) < until - database_now() <= timedelta(seconds=30)


def test_a_host_whose_clock_is_fast_takes_no_lease_that_is_in_force(
    token: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = protocol._claim(token)
    assert owner is not None
    put_clock(monkeypatch, MINUTE)
    assert protocol._claim(token) is None
    assert reload(token).lease_id == owner.lease_id


def test_a_host_whose_clock_is_slow_takes_over_a_lease_that_has_run_out(
    token: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protocol._claim(token) is not None
    BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
    put_clock(monkeypatch, -MINUTE)
    assert protocol._claim(token) is not None
    in_doubt_at = reload(token).in_doubt_at
    assert in_doubt_at is not None
    assert timedelta(0) <= database_now() - in_doubt_at < timedelta(seconds=20)


@fast_or_slow
@pytest.mark.parametrize("for_sign_in", [False, True], ids=["any token", "sign-in"])
def test_a_host_whose_clock_is_wrong_fetches_no_keys_in_the_cooldown(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, error: timedelta, for_sign_in: bool
) -> None:
    assert DatabaseBudget().ask(tenant, for_sign_in=for_sign_in).granted
    # Asked at this moment, so that the cooldown of a sign-in's fetches, one second, lasts.
    column = "keys_asked_by_sign_in_at" if for_sign_in else "keys_asked_at"
    put_clock(monkeypatch, error)
    TenantState.objects.update(**{column: DatabaseNow()})
    assert not DatabaseBudget().ask(tenant, for_sign_in=for_sign_in).granted


@fast_or_slow
def test_the_cooldown_of_a_host_whose_clock_is_wrong_ends_for_the_others(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, error: timedelta
) -> None:
    with monkeypatch.context() as elsewhere:
        put_clock(elsewhere, error)
        permit = DatabaseBudget().ask(tenant, for_sign_in=False)
        assert permit.granted
    assert not DatabaseBudget().ask(tenant, for_sign_in=False).granted
    asked_at = TenantState.objects.get().keys_asked_at
    assert asked_at is not None
    assert timedelta(0) <= database_now() - asked_at < timedelta(seconds=20)
