"""A pool of connections that is as large as the number of transactions.

Each transaction holds a connection, and a refresh in it needs a second one.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connections, transaction

from bipsync_django import durable, lifecycle
from bipsync_django.exceptions import NoSecondConnection
from bipsync_django.lifecycle import protocol, rows
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests.databases import on
from tests.grants import at_once, connect, expire, nearly_expire, refresh_token_of, reload

# Django pools connections to PostgreSQL only.
pytestmark = pytest.mark.parametrize("database", on("postgresql"), indirect=True)

NO_HANG = 45.0
"""Seconds; less than the pool's own patience, of which a caller must not know."""


@contextmanager
def pooled(alias: str, size: int, *, timeout: float = 60.0) -> Iterator[Any]:
    """Let the database ``alias`` have a pool of ``size`` connections, and yield the pool."""
    connection: Any = connections[alias]
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    pool = {"min_size": size, "max_size": size, "timeout": timeout}
    connection.settings_dict["OPTIONS"] = {**options, "pool": pool}
    try:
        connection.ensure_connection()
        yield connection.pool
    finally:
        connection.close()
        connection.close_pool()
        connection.settings_dict["OPTIONS"] = options


@pytest.fixture
def grants(bipsync: SimulatedBipsync, database: str) -> list[BipsyncToken]:
    """Four people's."""
    people = [
        SimulatedUser(
            f"68b993fa85d14160d60404{n:02}", "Nora Noon", "Nora", "Noon", f"n{n}@acme.org"
        )
        for n in range(4)
    ]
    found = [connect(bipsync, person=person) for person in people]
    bipsync.reset_calls()
    return found


def in_transactions(alias: str, work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do all of ``work`` at once, each in a transaction of its own that lasts as long as any."""
    begun, done = threading.Barrier(len(work)), threading.Barrier(len(work))

    def run(number: int) -> Any:
        with transaction.atomic(using=alias):
            BipsyncToken.objects.count()
            begun.wait(NO_HANG)
            try:
                return work[number]()
            finally:
                done.wait(NO_HANG)

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(at_once(len(work), run)), daemon=True)
    connections[alias].close()
    thread.start()
    thread.join(NO_HANG)
    assert not thread.is_alive(), "The callers wait as long as the pool does."
    return results


@pytest.mark.parametrize("is_same", [False, True])
def test_four_transactions_that_hold_all_connections_are_refused_and_nobody_hangs(
    grants: list[BipsyncToken], bipsync: SimulatedBipsync, database: str, is_same: bool
) -> None:
    expired = [expire(row) for row in grants]
    before = [refresh_token_of(row) for row in expired]
    work = [partial(lifecycle.access_token, expired[0 if is_same else n]) for n in range(4)]
    bystander: list[int] = []

    def refuse_while_somebody_comes_by() -> str:
        thread.start()
        return lifecycle.access_token(expired[0])

    def come_by() -> None:
        bystander.append(BipsyncToken.objects.count())
        connections.close_all()

    with pooled(database, 4):
        thread = threading.Thread(target=come_by, daemon=True)
        # While all four hold theirs, somebody else asks for one.
        results = in_transactions(database, [refuse_while_somebody_comes_by, *work[1:]])
        assert [type(result) for result in results] == [NoSecondConnection] * 4
        thread.join(NO_HANG)
        assert bystander == [4]
        assert bipsync.calls["token"] == 0
        # Nothing is lost: outside of the transactions all is as ever.
        for row, refresh_token in zip(expired, before, strict=True):
            assert refresh_token_of(row) == refresh_token
            assert bipsync.is_access_token_alive(lifecycle.access_token(row))
    assert bipsync.calls["refresh"] == 4


def test_a_token_that_still_works_needs_no_second_connection(
    grants: list[BipsyncToken], bipsync: SimulatedBipsync, database: str
) -> None:
    alive = [nearly_expire(row) for row in grants]
    work = [partial(lifecycle.access_token, row) for row in alive]
    with pooled(database, 4):
        results = in_transactions(database, work)
    assert results == [row.unseal("access_token") for row in alive]
    assert bipsync.calls["token"] == 0


def test_a_connection_that_is_not_free_is_asked_for_once(
    grants: list[BipsyncToken], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "CONNECT_WITHIN", 0.5)
    row = nearly_expire(grants[0])
    BipsyncToken.objects.update(validated_generation=0)
    with pooled(database, 1) as pool, transaction.atomic(using=database):
        before = pool.get_stats()["requests_num"]
        assert lifecycle.access_token(row) == row.unseal("access_token")
        assert pool.get_stats()["requests_num"] == before + 1
        # The one that was asked for stands in the queue still, and another would behind it.
        assert lifecycle.access_token(row) == row.unseal("access_token")
        with pytest.raises(NoSecondConnection):
            lifecycle.refresh(row, force=True)
        assert pool.get_stats()["requests_num"] == before + 1


def test_a_pool_that_gives_up_sooner_is_asked_once_for_each_call(
    grants: list[BipsyncToken], database: str
) -> None:
    row = nearly_expire(grants[0])
    with pooled(database, 1, timeout=0.3) as pool, transaction.atomic(using=database):
        before = pool.get_stats()["requests_num"]
        assert lifecycle.access_token(row) == row.unseal("access_token")
        assert pool.get_stats()["requests_num"] == before + 1


def test_a_pool_gets_its_connections_back_with_the_isolation_level_that_they_had(
    grants: list[BipsyncToken], database: str
) -> None:
    settings = connections[database].settings_dict
    options = settings["OPTIONS"]
    settings["OPTIONS"] = {
        **options,
        "options": "-c default_transaction_isolation=serializable",
    }
    row = expire(grants[0])
    seen: list[str] = []

    def use_the_other_connection() -> None:
        with transaction.atomic(using=database), connections[database].cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            seen.append(cursor.fetchone()[0])
        connections.close_all()

    try:
        with pooled(database, 2), transaction.atomic(using=database):
            lifecycle.access_token(row)
            thread = threading.Thread(target=use_the_other_connection)
            thread.start()
            thread.join()
    finally:
        settings["OPTIONS"] = options
    assert seen == ["serializable"]


def test_callers_of_one_token_share_one_second_connection(
    grants: list[BipsyncToken],
    bipsync: SimulatedBipsync,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than a thread waits for a connection, so that each would have to have its own.
    monkeypatch.setattr(durable, "CONNECT_WITHIN", 1.0)
    bipsync.latency = 3.0
    row = expire(grants[0])
    with pooled(database, 5):
        results = in_transactions(database, [lambda: lifecycle.access_token(row)] * 4)
        assert results == [reload(row).unseal("access_token")] * 4
    assert bipsync.calls["refresh"] == 1
    assert bipsync.is_alive(refresh_token_of(row))


def test_who_waits_for_another_process_holds_no_second_connection_meanwhile(
    grants: list[BipsyncToken],
    bipsync: SimulatedBipsync,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = expire(grants[0])
    claim = protocol._claim(row)
    assert claim is not None
    is_waiting, read_now = threading.Event(), rows.read_now

    def read_and_tell(row: Any) -> BipsyncToken:
        is_waiting.set()
        return read_now(row)

    monkeypatch.setattr(protocol, "read_now", read_and_tell)
    results: list[Any] = []
    with pooled(database, 2):
        connections[database].close()
        waiting = threading.Thread(
            target=lambda: results.extend(
                in_transactions(database, [lambda: lifecycle.access_token(row)])
            )
        )
        waiting.start()
        assert is_waiting.wait(NO_HANG)
        # The other process: it needs a connection too, of this pool of two.
        refreshed = protocol._carry_out(claim)
        connections[database].close()
        waiting.join(NO_HANG)
    assert refreshed is not None
    assert results == [refreshed.unseal("access_token")]
    assert bipsync.calls["refresh"] == 1
