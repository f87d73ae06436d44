"""The management commands, as an operator meets them."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.utils import timezone

from bipsync_django import breaker, lifecycle
from bipsync_django.models import BipsyncToken, SpentState, TenantState, TokenEvent
from bipsync_django.testing import Html, SimulatedBipsync
from tests.databases import for_child, on_sqlite
from tests.grants import connect, expire, refresh_token_of, reload

pytestmark = pytest.mark.usefixtures("database")

Status = BipsyncToken.Status


@pytest.fixture
def tokens(database: str, bipsync: SimulatedBipsync) -> list[BipsyncToken]:
    tokens = [connect(bipsync, person=person) for person in bipsync.users]
    bipsync.reset_calls()
    return tokens


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(command: str, *arguments: str, stdout: io.StringIO | None = None) -> str:
    stdout = stdout or io.StringIO()
    call_command(command, *arguments, stdout=stdout)
    return stdout.getvalue()


# --- bipsync_refresh


def test_everything_due_is_refreshed_and_nothing_else(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    for token in tokens[:2]:
        expire(token)
    told = run("bipsync_refresh")
    assert told == "2 refreshed, 0 not due, 0 held back, 0 failed, 0 needs sign-in.\n"
    assert bipsync.calls["refresh"] == 2
    assert all(bipsync.is_alive(refresh_token_of(token)) for token in tokens)
    assert [reload(token).generation for token in tokens] == [2, 2, 1]
    assert run("bipsync_refresh").startswith("0 refreshed")


def test_a_dry_run_says_what_is_due_and_changes_nothing(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    before = reload(expire(tokens[0])).next_refresh_at
    SpentState.objects.create(digest="old", expires_at=timezone.now() - timedelta(days=1))
    assert run("bipsync_refresh", "--dry-run") == "1 due.\n"
    assert bipsync.calls["token"] == 0
    assert reload(tokens[0]).next_refresh_at == before
    assert SpentState.objects.exists()


def test_a_failure_is_an_exit_status_and_a_withdrawn_grant_is_not(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    bipsync.withdraw(tokens[0].subject)
    expire(tokens[0])
    assert "0 failed, 1 needs sign-in" in run("bipsync_refresh")
    bipsync.fail("token", Html(503))
    expire(tokens[1])
    stdout = io.StringIO()
    with pytest.raises(CommandError, match="tried again later"):
        run("bipsync_refresh", stdout=stdout)
    assert "1 failed" in stdout.getvalue()
    assert reload(tokens[1]).status == Status.ACTIVE


def test_held_back_calls_are_an_exit_status(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    expire(tokens[0])
    breaker.open_for("acme", "invalid_client")
    with pytest.raises(CommandError, match="held back for: acme"):
        run("bipsync_refresh")
    assert bipsync.calls["token"] == 0


def test_the_switch_is_respected_and_said(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, settings: Any
) -> None:
    expire(tokens[0])
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    assert "REFRESH_ENABLED" in run("bipsync_refresh")
    assert bipsync.calls["token"] == 0


def test_old_rows_are_deleted_on_the_way(tokens: list[BipsyncToken]) -> None:
    long_ago = timezone.now() - timedelta(days=400)
    SpentState.objects.create(digest="old", expires_at=long_ago)
    TokenEvent.objects.create(tenant="acme", name="refresh_failed", at=long_ago)
    run("bipsync_refresh")
    assert not SpentState.objects.exists()
    assert not TokenEvent.objects.filter(at=long_ago).exists()


def test_a_terminal_sees_a_bar_and_a_log_file_does_not(tokens: list[BipsyncToken]) -> None:
    for token in tokens:
        expire(token)
    assert f"] {len(tokens)}/{len(tokens)}\n" in run("bipsync_refresh", stdout=Terminal())
    assert "[" not in run("bipsync_refresh")


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_a_useless_number_of_threads_is_refused(database: str, threads: str) -> None:
    with pytest.raises(CommandError, match=r"--threads.*1 or more"):
        run("bipsync_refresh", "--threads", threads)


@on_sqlite
def test_sigterm_ends_the_command_after_what_is_under_way(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, database: str
) -> None:
    for token in tokens:
        expire(token)
    bipsync.latency = 1.5
    environment = {**for_child(database), "TEST_BIPSYNC": bipsync.url}
    command = [sys.executable, "-m", "django", "bipsync_refresh", "--threads", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not bipsync.calls["refresh"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        told, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert told.startswith("1 refreshed")
    assert bipsync.calls["refresh"] == 1
    assert sorted(reload(token).generation for token in tokens) == [1, 1, 2]
    assert all(bipsync.is_alive(refresh_token_of(token)) for token in tokens)


# --- bipsync_deployment


@pytest.fixture
def copied(tokens: list[BipsyncToken], settings: Any) -> list[BipsyncToken]:
    """The grants of production, on staging."""
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    breaker.claim_deployment("acme")
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    return tokens


def test_ones_own_grants_are_said_to_be_so(tokens: list[BipsyncToken], settings: Any) -> None:
    assert "No DEPLOYMENT is set" in run("bipsync_deployment")
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    breaker.claim_deployment("acme")
    assert "those of this deployment ('production')" in run("bipsync_deployment")


def test_grants_that_no_deployment_has_named_are_said_to_be_so_and_can_be_erased(
    tokens: list[BipsyncToken], bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    assert "nobody's yet" in run("bipsync_deployment")
    assert f"{len(tokens)} grants erased" in run("bipsync_deployment", "--start-afresh")
    assert TenantState.objects.get().deployment == "staging"


def test_a_sweep_names_the_grants_although_nothing_is_due(
    tokens: list[BipsyncToken], settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    run("bipsync_refresh")
    assert TenantState.objects.get().deployment == "production"


def test_a_copy_is_told_what_the_choices_are(copied: list[BipsyncToken]) -> None:
    stdout = io.StringIO()
    with pytest.raises(CommandError, match=r"--take-over.*--start-afresh"):
        run("bipsync_deployment", stdout=stdout)
    assert stdout.getvalue() == "acme: of the deployment 'production'.\n"


def test_starting_afresh_erases_here_and_leaves_the_other_deployment_alone(
    copied: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    alive = [refresh_token_of(token) for token in copied]
    told = run("bipsync_deployment", "--start-afresh")
    assert f"acme: {len(copied)} grants erased here" in told
    assert {reload(token).status for token in copied} == {Status.DISCONNECTED}
    assert {reload(token).refresh_token for token in copied} == {None}
    assert all(bipsync.is_alive(refresh_token) for refresh_token in alive)
    assert bipsync.calls["token"] == 0
    assert TenantState.objects.get().deployment == "staging"
    connect(bipsync, user=copied[0].user)
    assert reload(copied[0]).status == Status.ACTIVE


def test_taking_over_uses_the_grants_from_now_on(
    copied: list[BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    run("bipsync_deployment", "--take-over")
    assert bipsync.is_access_token_alive(lifecycle.access_token(expire(copied[0])))


def test_both_choices_at_once_are_refused(copied: list[BipsyncToken]) -> None:
    with pytest.raises(CommandError, match="not allowed with"):
        run("bipsync_deployment", "--take-over", "--start-afresh")


def test_migrate_warns_of_a_copy(copied: list[BipsyncToken], database: str) -> None:
    found = [message.id for message in run_checks(databases=[database])]
    assert "bipsync_django.W003" in found
    assert "bipsync_django.W003" not in [message.id for message in run_checks(databases=[])]
    run("bipsync_deployment", "--take-over")
    assert "bipsync_django.W003" not in [m.id for m in run_checks(databases=[database])]
