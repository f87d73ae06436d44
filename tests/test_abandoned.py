"""A grant that is given up while another process holds the lease, and may be dead."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, transaction
from django.utils import timezone

from bipsync_django import durable, lifecycle, tasks
from bipsync_django.durable import DatabaseNow
from bipsync_django.lifecycle import changes
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import Html, SimulatedBipsync
from tests.databases import for_child
from tests.grants import at_once, connect, expire, refresh_token_of, reload

pytestmark = pytest.mark.usefixtures("database")

KILLED = """
import django, time
django.setup()
from bipsync_django.lifecycle import protocol
from bipsync_django.models import BipsyncToken
assert protocol._claim(BipsyncToken.objects.get()) is not None
print("leased", flush=True)
time.sleep(60)
"""

GIVE_UP: dict[str, Callable[[BipsyncToken], None]] = {
    "disconnect": lifecycle.disconnect,
    "unlink": lifecycle.unlink,
}
TICKS: dict[str, Callable[[], object]] = {
    "beat": tasks.refresh_due_tokens,
    "cron": lambda: call_command("bipsync_refresh"),
}


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@pytest.fixture
def leased(token: BipsyncToken, bipsync: SimulatedBipsync, database: str) -> BipsyncToken:
    """A grant whose lease a process holds that was killed before it sent the refresh token."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env={**for_child(database), "TEST_BIPSYNC": bipsync.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "leased\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        process.stdout.close()
    row = reload(token)
    assert row.lease_id is not None
    return row


def let_the_lease_run_out() -> None:
    BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))


def events() -> list[tuple[str, str]]:
    return list(TokenEvent.objects.order_by("id").values_list("name", "reason"))


@pytest.mark.parametrize("give_up", GIVE_UP)
@pytest.mark.parametrize("tick", TICKS)
def test_the_token_of_a_killed_owner_is_spent_when_its_lease_has_run_out(
    leased: BipsyncToken, bipsync: SimulatedBipsync, give_up: str, tick: str
) -> None:
    refresh_token = refresh_token_of(leased)
    GIVE_UP[give_up](leased)
    row = reload(leased)
    assert (row.status, row.access_token, row.lease_id) == ("disconnected", None, None)
    # Its owner might send it.
    TICKS[tick]()
    assert bipsync.calls["token"] == 0
    assert bipsync.is_alive(refresh_token)
    let_the_lease_run_out()
    TICKS[tick]()
    TICKS[tick]()
    assert not bipsync.is_alive(refresh_token)
    assert bipsync.calls["refresh"] == 1
    row = reload(leased)
    assert (row.status, row.refresh_token, row.lease_until) == ("disconnected", None, None)
    assert "left_valid" not in dict(events())


def test_a_service_account_that_another_replaces_is_spent_too(
    leased: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token = refresh_token_of(leased)
    pair = {name: leased.unseal(name) for name in ("access_token", "refresh_token")}
    leased.kind, leased.user = BipsyncToken.Kind.SERVICE, None
    for name, value in pair.items():
        assert value is not None
        setattr(leased, name, leased.seal(name, value))
    leased.save(update_fields=["kind", "user", *pair])
    other = connect(bipsync, person=list(bipsync.users)[1])
    actor = other.user
    assert actor is not None
    BipsyncToken.objects.filter(pk=other.pk).update(kind="service", status="unconfirmed", user=None)
    bipsync.reset_calls()
    assert lifecycle.confirm_service(reload(other), actor=actor)
    assert reload(leased).status == "disconnected"
    assert bipsync.calls["token"] == 0
    BipsyncToken.objects.filter(pk=leased.pk).update(
        lease_until=DatabaseNow() - timedelta(seconds=1)
    )
    lifecycle.spend_abandoned()
    assert not bipsync.is_alive(refresh_token)


def test_the_databases_clock_says_whether_the_lease_is_in_force(
    leased: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(minutes=1))
    lifecycle.disconnect(leased)
    lifecycle.spend_abandoned()
    assert bipsync.calls["token"] == 0


def test_where_bipsync_cannot_be_asked_then_an_event_says_what_is_left(
    leased: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    lifecycle.disconnect(leased)
    let_the_lease_run_out()
    bipsync.fail("token", Html(503))
    lifecycle.spend_abandoned()
    assert events()[-1] == ("left_valid", "server_error")
    assert reload(leased).refresh_token is None


def test_a_sign_in_that_comes_first_says_what_is_left_and_keeps_its_own_pair(
    leased: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    lifecycle.disconnect(leased)
    connect(bipsync, user=leased.user)
    assert ("left_valid", "busy") in events()
    bipsync.reset_calls()
    let_the_lease_run_out()
    lifecycle.spend_abandoned()
    assert bipsync.calls["token"] == 0
    assert bipsync.is_alive(refresh_token_of(leased))
    assert reload(leased).status == "active"


def test_an_owner_that_lives_spends_the_token_itself(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token = refresh_token_of(expire(token))
    bipsync.latency = 1.0

    def work(number: int) -> Any:
        if number == 0:
            return lifecycle.refresh(expire(token))
        while not bipsync.calls["refresh"]:
            pass
        return lifecycle.disconnect(token)

    at_once(2, work)
    row = reload(token)
    assert (row.status, row.refresh_token, row.lease_until) == ("disconnected", None, None)
    assert events()[-1] == ("discarded", "")
    assert not bipsync.is_alive(refresh_token)
    lifecycle.spend_abandoned()
    assert bipsync.calls["refresh"] == 1


def test_an_owner_that_lives_and_fails_leaves_it_to_be_spent(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refresh_token = refresh_token_of(expire(token))
    bipsync.latency = 1.0
    bipsync.fail("token", Html(503))

    def work(number: int) -> Any:
        if number == 0:
            return lifecycle.refresh(expire(token))
        while not bipsync.calls["token"]:
            pass
        return lifecycle.disconnect(token)

    at_once(2, work)
    assert bipsync.is_alive(refresh_token)
    let_the_lease_run_out()
    lifecycle.spend_abandoned()
    assert not bipsync.is_alive(refresh_token)


def test_a_copy_of_the_database_keeps_nothing(
    leased: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    lifecycle.disconnect(leased, end_at_bipsync=False)
    row = reload(leased)
    assert (row.refresh_token, row.lease_until) == (None, None)


def test_a_copy_of_the_database_sends_nothing_that_an_earlier_disconnect_kept(
    leased: BipsyncToken, bipsync: SimulatedBipsync, settings: Any
) -> None:
    refresh_token = refresh_token_of(leased)
    lifecycle.disconnect(leased)
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    call_command("bipsync_deployment", "--start-afresh")
    row = reload(leased)
    assert (row.refresh_token, row.lease_until) == (None, None)
    let_the_lease_run_out()
    lifecycle.spend_abandoned()
    assert bipsync.calls["token"] == 0
    assert bipsync.is_alive(refresh_token)


def test_inside_a_transaction_nothing_is_spent(
    leased: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    """Its rollback would put the spent token back."""
    lifecycle.disconnect(leased)
    let_the_lease_run_out()
    with transaction.atomic(using=database), pytest.raises(RuntimeError, match="durable"):
        lifecycle.spend_abandoned()
    assert bipsync.calls["token"] == 0


@pytest.mark.parametrize("lost", [1, 2])
def test_a_token_is_spent_although_the_answer_of_a_commit_is_lost(
    leased: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    refresh_token = refresh_token_of(leased)
    lifecycle.disconnect(leased)
    let_the_lease_run_out()
    update, written = durable.update, []

    def lose_an_answer(*arguments: Any, **values: Any) -> int:
        count = update(*arguments, **values)
        written.append(count)
        if len(written) == lost:
            raise OperationalError("server closed the connection unexpectedly")
        return count

    monkeypatch.setattr(durable, "update", lose_an_answer)
    lifecycle.spend_abandoned()
    let_the_lease_run_out()
    lifecycle.spend_abandoned()
    assert not bipsync.is_alive(refresh_token)
    assert reload(leased).refresh_token is None
    assert bipsync.calls["refresh"] == 1
    assert "left_valid" not in dict(events())


def test_a_token_that_was_spent_by_a_killed_process_is_forgotten_by_the_next(
    leased: BipsyncToken, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.disconnect(leased)
    let_the_lease_run_out()

    def be_killed(row: BipsyncToken) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(changes, "forget_kept", be_killed)
        lifecycle.spend_abandoned()
    # The next leaves it alone for as long as the one before may be sending it.
    lifecycle.spend_abandoned()
    assert bipsync.calls["token"] == 1
    let_the_lease_run_out()
    lifecycle.spend_abandoned()
    assert reload(leased).refresh_token is None
    assert bipsync.calls["token"] == 2
    assert "left_valid" not in dict(events())
