"""Where database work runs, seen from a site's own TestCase and from transactions."""

import threading
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import TestCase

from bipsync_django import durable, lifecycle
from bipsync_django.exceptions import RefreshInsideTransaction, RefreshUnavailable
from bipsync_django.models import TenantState
from bipsync_django.testing import SimulatedBipsync
from tests.databases import on_servers
from tests.grants import connect, expire


class InsideATestCase(TestCase):
    """Sites test with TestCase, whose data no other connection can see."""

    def test_a_refresh_works_inside_a_test_case(self) -> None:
        with (
            SimulatedBipsync() as bipsync,
            self.settings(BIPSYNC={**bipsync.settings, "SCOPES": ["users:read"]}),
        ):
            token = connect(bipsync)
            self.assertTrue(bipsync.is_access_token_alive(lifecycle.access_token(expire(token))))

    def test_a_transaction_of_the_sites_own_counts_inside_a_test_case_too(self) -> None:
        with transaction.atomic(), self.assertRaises(RefreshInsideTransaction):
            durable.outside_transaction(lambda: None, "default")


def test_work_in_autocommit_runs_on_the_callers_connection(database: str) -> None:
    thread = durable.outside_transaction(threading.current_thread, database)
    assert thread is threading.current_thread()


@on_servers
def test_work_inside_a_transaction_runs_beside_it_and_closes_its_connection(database: str) -> None:
    used: list[Any] = []

    def work() -> threading.Thread:
        TenantState.objects.create(tenant="kept")
        used.append(connections[database])
        return threading.current_thread()

    with pytest.raises(ZeroDivisionError), transaction.atomic(using=database):
        assert durable.outside_transaction(work, database) is not threading.current_thread()
        raise ZeroDivisionError
    assert TenantState.objects.filter(tenant="kept").exists()
    assert used[0].connection is None


@on_servers
def test_what_the_work_raises_reaches_the_caller(database: str) -> None:

    def work() -> None:
        raise ZeroDivisionError

    with transaction.atomic(using=database), pytest.raises(ZeroDivisionError):
        durable.outside_transaction(work, database)


@on_servers
def test_a_connection_that_cannot_be_opened_fails_before_the_work(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    connections[database].ensure_connection()
    monkeypatch.setitem(connections[database].settings_dict, "PORT", "1")
    with transaction.atomic(using=database), pytest.raises(RefreshUnavailable, match="second"):
        durable.outside_transaction(lambda: begun.append("work"), database)
    assert begun == []


def test_the_databases_clock_is_utc(database: str) -> None:
    from django.utils import timezone

    TenantState.objects.create(tenant="clock")
    TenantState.objects.update(breaker_until=durable.DatabaseNow())
    told = TenantState.objects.get().breaker_until
    assert told is not None
    assert abs((told - timezone.now()).total_seconds()) < 5
