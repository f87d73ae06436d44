"""Signing keys are fetched within a budget that all processes share."""

import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction

from bipsync_django import key_budget
from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import KeysUnavailable
from bipsync_django.key_budget import DatabaseBudget
from bipsync_django.models import TenantState
from bipsync_django.oauth import keys
from bipsync_django.oauth.keys import LocalBudget, signing_key, use_budget
from bipsync_django.testing import Html, SimulatedBipsync
from tests.browser import at_the_same_moment
from tests.databases import for_child, on_servers
from tests.grants import at_once

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    return get_tenant()


def later(seconds: float) -> None:
    """Let the permits of the database be so much older."""
    for state in TenantState.objects.all():
        for column in ("keys_asked_at", "keys_asked_by_sign_in_at"):
            moment = getattr(state, column)
            if moment is not None:
                setattr(state, column, moment - timedelta(seconds=seconds))
        state.save()


def another_process() -> DatabaseBudget:
    """A process that knows nothing but the database."""
    budget = DatabaseBudget()
    use_budget(budget)
    keys._parsed.clear()
    return budget


def test_one_permit_in_ten_seconds_for_all_processes(tenant: Tenant) -> None:
    processes = [DatabaseBudget() for _ in range(8)]
    permits = at_once(8, lambda number: processes[number].ask(tenant, for_sign_in=False))
    granted = [permit for permit in permits if isinstance(permit, keys.Permit) and permit.granted]
    assert len(granted) == 1, permits
    later(9.5)
    assert not DatabaseBudget().ask(tenant, for_sign_in=False).granted
    later(0.6)
    assert DatabaseBudget().ask(tenant, for_sign_in=False).granted


def test_a_sign_in_has_a_budget_of_its_own(tenant: Tenant) -> None:
    budget = DatabaseBudget()
    assert budget.ask(tenant, for_sign_in=False).granted
    assert budget.ask(tenant, for_sign_in=True).granted
    assert not budget.ask(tenant, for_sign_in=True).granted
    later(1.1)
    assert budget.ask(tenant, for_sign_in=True).granted
    assert not budget.ask(tenant, for_sign_in=False).granted


def test_one_tenants_budget_is_not_anothers(tenant: Tenant, settings: Any) -> None:
    assert DatabaseBudget().ask(tenant, for_sign_in=False).granted
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT": "globex"}
    assert DatabaseBudget().ask(get_tenant(), for_sign_in=False).granted


def test_a_clock_that_was_put_back_holds_nobody_up(tenant: Tenant) -> None:
    assert DatabaseBudget().ask(tenant, for_sign_in=False).granted
    later(-3600)
    assert DatabaseBudget().ask(tenant, for_sign_in=False).granted


def test_a_host_whose_clock_is_wrong_shares_the_budget_all_the_same(
    tenant: Tenant, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    later(10.5)
    another_process()
    bipsync.fail("jwks", Html(503))
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, "forged")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    assert signing_key(tenant, bipsync.rotate_keys(), from_provider=True)
    monkeypatch.setattr(time, "time", real)
    assert signing_key(tenant, "forged") is None
    assert bipsync.calls["jwks"] == 3


def test_a_flood_of_forged_keys_asks_neither_bipsync_nor_the_database(
    tenant: Tenant, bipsync: SimulatedBipsync, database: str
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    bipsync.reset_calls()
    asked: list[str] = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        asked.append(sql)
        return execute(sql, *args)

    with connections[database].execute_wrapper(note):
        assert [signing_key(tenant, f"forged-{number}") for number in range(200)] == [None] * 200
    assert (asked, bipsync.calls["jwks"]) == ([], 0)


@on_servers
def test_no_lock_is_held_while_keys_are_fetched_inside_a_transaction(
    tenant: Tenant, bipsync: SimulatedBipsync, database: str
) -> None:
    bipsync.jwks_latency = 1.0
    seen: list[object] = []

    def lock_meanwhile() -> None:
        while not bipsync.calls["jwks"]:
            time.sleep(0.01)
        with transaction.atomic(using=database):
            states = TenantState.objects.using(database).select_for_update(nowait=True)
            seen.extend(states.values_list("tenant", flat=True))

    def fetch() -> None:
        with transaction.atomic(using=database):
            assert signing_key(tenant, bipsync.keys.current.kid)

    at_the_same_moment(fetch, lock_meanwhile)
    assert seen == ["acme"]


@on_servers
def test_a_permit_outlives_the_callers_rollback(tenant: Tenant, database: str) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        assert DatabaseBudget().ask(tenant, for_sign_in=False).granted
        raise ZeroDivisionError
    assert not DatabaseBudget().ask(tenant, for_sign_in=False).granted


def test_without_a_database_each_process_has_a_budget_of_its_own(
    tenant: Tenant, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(key_budget, "_ask", fail)
    assert signing_key(tenant, bipsync.keys.current.kid)
    assert [signing_key(tenant, "forged") for _ in range(20)] == [None] * 20
    assert bipsync.calls["jwks"] == 1
    assert signing_key(tenant, bipsync.rotate_keys(), from_provider=True)


def test_sqlite_inside_a_transaction_counts_by_itself(
    tenant: Tenant, bipsync: SimulatedBipsync, database: str
) -> None:
    with transaction.atomic(using=database):
        assert signing_key(tenant, bipsync.keys.current.kid)
        assert [signing_key(tenant, "forged") for _ in range(20)] == [None] * 20
    assert bipsync.calls["jwks"] == 1


def test_a_sign_in_takes_the_key_from_who_is_fetching_it(
    tenant: Tenant, bipsync: SimulatedBipsync
) -> None:
    signing_key(tenant, bipsync.keys.current.kid, from_provider=True)
    later(2)
    new = bipsync.rotate_keys()
    bipsync.jwks_latency = 0.5
    found = at_once(6, lambda _: signing_key(tenant, new, from_provider=True))
    assert all(found)
    assert not any(isinstance(key, Exception) for key in found), found
    assert bipsync.calls["jwks"] == 2


def test_a_sign_in_that_cannot_see_the_others_keys_gets_its_own_turn(
    tenant: Tenant, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a cache that each process has to itself."""
    assert DatabaseBudget().ask(tenant, for_sign_in=True).granted
    assert signing_key(tenant, bipsync.keys.current.kid, from_provider=True)
    assert bipsync.calls["jwks"] == 1


CHILD = """
import sys
import django
django.setup()
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import KeysUnavailable
from bipsync_django.oauth.keys import signing_key

tenant, verdicts = get_tenant(), []
for number in range(250):
    try:
        verdicts.append(signing_key(tenant, f"forged-{sys.argv[1]}-{number}") is None)
    except KeysUnavailable:
        verdicts.append(True)
assert all(verdicts) and len(verdicts) == 250
"""


def test_a_thousand_forged_keys_in_four_processes_fetch_once_and_delay_no_sign_in(
    tenant: Tenant, bipsync: SimulatedBipsync, database: str
) -> None:
    environment = {**for_child(database), "TEST_BIPSYNC": bipsync.url}
    start = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(number)], env=environment)
        for number in range(4)
    ]
    new = bipsync.rotate_keys()
    while not TenantState.objects.exclude(keys_asked_at=None).exists():
        assert any(process.poll() is None for process in start), "no process has asked"
        time.sleep(0.01)
    first = time.monotonic()
    assert signing_key(tenant, new, from_provider=True)
    assert time.monotonic() - first < LocalBudget.PAUSE
    assert [process.wait(60) for process in start] == [0] * 4
    # One of theirs, another for each cooldown that passed meanwhile, and the sign-in's.
    cooldowns = 1 + int((time.monotonic() - first + 0.1) // LocalBudget.PAUSE)
    assert 2 <= bipsync.calls["jwks"] <= cooldowns + 1
