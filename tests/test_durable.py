"""Where database work runs, seen from a site's own TestCase and from transactions."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connections, transaction
from django.test import TestCase
from django.utils import timezone

from bipsync_django import durable, lifecycle, signals
from bipsync_django.exceptions import RefreshInsideTransaction, RefreshUnavailable
from bipsync_django.lifecycle import protocol
from bipsync_django.models import BipsyncToken, TenantState
from bipsync_django.testing import SimulatedBipsync
from tests.databases import for_child, on, on_servers
from tests.grants import at_once, connect, expire, nearly_expire, refresh_token_of


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


# Django pools connections to PostgreSQL only.
@pytest.mark.parametrize("database", on("postgresql"), indirect=True)
def test_a_connection_pool_that_is_used_up_fails_before_the_call(
    database: str, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = nearly_expire(connect(bipsync))
    bipsync.reset_calls()
    connection = connections[database]
    connection.close()
    options = {
        **connection.settings_dict["OPTIONS"],
        "pool": {"min_size": 1, "max_size": 1, "timeout": 0.5},
    }
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    try:
        with transaction.atomic(using=database):
            # The only connection is the caller's.
            assert lifecycle.access_token(token) == token.unseal("access_token")
            with pytest.raises(RefreshUnavailable, match="second database connection"):
                lifecycle.refresh(token, force=True)
        assert bipsync.calls["token"] == 0
        # Nor does a token that is good need one, although nobody has validated it yet.
        BipsyncToken.objects.update(
            validated_generation=0, access_expires_at=timezone.now() + timedelta(hours=1)
        )
        with transaction.atomic(using=database):
            assert lifecycle.access_token(token) == token.unseal("access_token")
        nearly_expire(token)
        # Outside of a transaction it is enough.
        assert bipsync.is_access_token_alive(lifecycle.access_token(token))
    finally:
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]


# --- turns


@on_servers
def test_a_receiver_may_wait_for_a_caller_that_waits_for_its_turn(
    database: str, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller has a person locked and waits for the other, whose receiver needs the person."""
    row = expire(connect(bipsync))
    bipsync.reset_calls()
    is_locked, stands_in_line = threading.Event(), threading.Event()
    in_turn, refresh_pair = durable.in_turn, vars(protocol)["refresh_pair"]
    received: list[bool] = []

    def refresh(number: int) -> BipsyncToken:
        threading.current_thread().name = f"caller {number}"
        with transaction.atomic(using=database):
            if number == 0:
                User.objects.select_for_update().get(pk=row.user_id or 0)
                is_locked.set()
                assert has_turn.wait(30)
            else:
                assert is_locked.wait(30)
            return lifecycle.refresh(row)

    has_turn = threading.Event()

    def stand_in_line(*arguments: Any, **more: Any) -> Any:
        if threading.current_thread().name == "caller 0":
            stands_in_line.set()
        return in_turn(*arguments, **more)

    def answer(*arguments: Any, **more: Any) -> Any:
        has_turn.set()
        assert stands_in_line.wait(30)
        return refresh_pair(*arguments, **more)

    def receive(*, token: BipsyncToken, **more: Any) -> None:
        User.objects.filter(pk=token.user_id or 0).update(first_name="Seen")
        received.append(True)

    monkeypatch.setattr(durable, "in_turn", stand_in_line)
    monkeypatch.setattr(protocol, "refresh_pair", answer)
    signals.token_refreshed.connect(receive)
    try:
        results = at_once(2, refresh)
    finally:
        signals.token_refreshed.disconnect(receive)
    assert [getattr(result, "generation", result) for result in results] == [2, 2]
    assert received == [True]
    assert bipsync.calls["refresh"] == 1


def test_a_turn_that_is_interrupted_as_it_begins_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the exception of a signal's handler, such as Celery's soft time limit."""

    class Interrupted(dict[Any, Any]):
        def setdefault(self, key: Any, default: Any = None) -> Any:
            super().setdefault(key, default)
            raise ZeroDivisionError

    turns = Interrupted()
    monkeypatch.setattr(durable, "_turns", turns)
    with pytest.raises(ZeroDivisionError), durable.in_turn("row", patience=0):
        pass
    assert turns == {}


def test_who_gives_up_waiting_for_a_turn_leaves_it_to_its_owner() -> None:
    with durable.in_turn("row", patience=0):
        for _ in range(2):
            with pytest.raises(RefreshUnavailable), durable.in_turn("row", patience=0):
                pass
    with durable.in_turn("row", patience=0):
        pass


# --- signals that would interrupt


def test_what_would_interrupt_is_put_off_and_not_forgotten() -> None:
    done: list[str] = []
    told: list[int] = []
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: told.append(number)),
        # A process in the background ignores it.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    try:
        with pytest.raises(KeyboardInterrupt), durable.hold_signals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert told == []
            done.append("stored")
        assert (done, told) == (["stored"], [signal.SIGTERM])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_one_handler_raises_keeps_nobody_from_the_next() -> None:
    told: list[int] = []

    def fail(number: int, frame: object) -> None:
        raise ZeroDivisionError

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, fail),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number)),
    }
    try:
        for first, second in [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)]:
            with pytest.raises(ZeroDivisionError), durable.hold_signals():
                signal.raise_signal(first)
                signal.raise_signal(second)
            assert told == [signal.SIGUSR1]
            told.clear()
            assert signal.getsignal(signal.SIGTERM) is fail
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux can tell")
def test_a_handler_that_was_not_set_from_python_stays() -> None:
    """Such as those of uWSGI: what Python would put back is the default, which kills."""
    script = "import faulthandler, os, signal; faulthandler.register(signal.SIGUSR1)\n"
    script += "from bipsync_django import durable\nwith durable.hold_signals(): pass\n"
    script += "os.kill(os.getpid(), signal.SIGUSR1); print('alive')"
    script = "import django; django.setup()\n" + script
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "alive\n", told.stderr


def test_a_subinterpreter_cannot_hold_signals_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, handler: object) -> None:
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "signal", refuse)
    with durable.hold_signals():
        pass


def test_a_failed_write_does_not_throw_a_callers_work_away(database: str) -> None:
    connection = connections[database]
    connection.set_autocommit(False)
    attempts: list[int] = []

    def fail() -> None:
        attempts.append(1)
        raise OperationalError("once")

    try:
        TenantState.objects.create(tenant="the caller's")
        with pytest.raises(OperationalError):
            durable.persist(fail, database)
        assert attempts == [1]
        assert not connection.get_autocommit()
        connection.commit()
    finally:
        connection.set_autocommit(True)
    assert TenantState.objects.filter(tenant="the caller's").exists()


HANG = """
import time
from bipsync_django import durable

def test_hangs():
    with durable.hold_signals():
        time.sleep(60)
        print("it went on")
"""


def test_a_hang_while_signals_are_held_is_ended_by_the_time_limit(tmp_path: Path) -> None:
    """An alarm would be put off together with all other signals, for as long as the hang lasts."""
    (tmp_path / "test_hang.py").write_text(HANG)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--timeout=2"]
    command += ["-c", str(root / "pyproject.toml"), f"--rootdir={tmp_path}", str(tmp_path)]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert told.returncode != 0
    assert "it went on" not in told.stdout
    assert "Timeout" in told.stdout + told.stderr


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with durable.hold_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_come_back_when_the_work_fails() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), durable.hold_signals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_refresh_is_finished_before_the_process_ends_by_sigterm(
    database: str, bipsync: SimulatedBipsync
) -> None:
    """The default of SIGTERM ends a process at once: here a management command in a deploy."""
    token = expire(connect(bipsync))
    before = refresh_token_of(token)
    bipsync.reset_calls()
    bipsync.latency = 1.0
    environment = {**for_child(database), "TEST_BIPSYNC": bipsync.url}
    script = "import django; django.setup(); from bipsync_django import lifecycle\n"
    script += f"lifecycle.refresh_if_due({token.pk}); print('went on')"
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        deadline = time.monotonic() + 30
        while not bipsync.calls["refresh"]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    finally:
        process.kill()
    after = refresh_token_of(token)
    assert bipsync.is_alive(after)
    assert not bipsync.is_alive(before)


def test_the_databases_clock_is_utc(database: str) -> None:
    from django.utils import timezone

    TenantState.objects.create(tenant="clock")
    TenantState.objects.update(breaker_until=durable.DatabaseNow())
    told = TenantState.objects.get().breaker_until
    assert told is not None
    assert abs((told - timezone.now()).total_seconds()) < 5
